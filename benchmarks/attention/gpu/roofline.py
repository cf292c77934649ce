"""How long the GPU kernels take at least, from what they move and multiply: nothing is measured.

Each pass takes the longer of two times, that of its bytes at the memory's rate and that of its
products at the tensor cores', and passes follow each other. Left out, and so a real time is longer:
arithmetic outside of products, what is read again, launches, what a card lacks of its datasheet.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from benchmarks.attention.gpu.cards import A100, H100, Card
from benchmarks.attention.gpu.traffic import (
    Call,
    Pass,
    both_passes,
    eight_passes,
    flash_bytes,
    flash_flop,
    forward_passes,
    linear_passes,
)
from benchmarks.attention.peers import BOTH, FORWARD

TOKENS, HEADS, WIDTH = 65_536, 16, 128
LENGTHS = (512, 2048, 8192, 32_768, 131_072, 1_048_576)
NAMED = {"H100": H100, "A100": A100}


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Of one call: what it moves and multiplies, and the seconds on each card."""

    call: Call
    kind: str
    launches: int
    moved: int
    flop: int
    seconds: dict[str, float]
    flash_flop: int
    flash_seconds: dict[str, float]


def at_least(passes: list[Pass], card: Card, dtype: torch.dtype) -> float:
    """Return the seconds of passes that follow each other."""
    return sum(card.seconds(each.moved, each.flop, dtype) for each in passes)


def estimate(call: Call, kind: str) -> Estimate:
    """Return the estimate of a call, beside FlashAttention's."""
    backward = kind == BOTH
    passes = both_passes(call) if backward else forward_passes(call)
    flop, moved = flash_flop(call, backward=backward), flash_bytes(call, backward=backward)
    return Estimate(
        call=call,
        kind=kind,
        launches=len(passes),
        moved=sum(each.moved for each in passes),
        flop=sum(each.flop for each in passes),
        seconds={name: at_least(passes, card, call.dtype) for name, card in NAMED.items()},
        flash_flop=flop,
        flash_seconds={name: card.seconds(moved, flop, call.dtype) for name, card in NAMED.items()},
    )


def estimates() -> list[Estimate]:
    """Return the estimates of the table."""
    return list(_estimates())


def _estimates() -> Iterator[Estimate]:
    for causal in (True, False):
        for kind in (FORWARD, BOTH):
            for length in LENGTHS:
                batch = max(1, TOKENS // length)
                call = Call(
                    causal=causal,
                    batch=batch,
                    length=length,
                    heads=HEADS,
                    width=WIDTH,
                    dtype=torch.bfloat16,
                )
                yield estimate(call, kind)


def milliseconds(seconds: float) -> str:
    """Return three digits, or all of a large number."""
    value = 1e3 * seconds
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def goals(found: list[Estimate], bound: int) -> str:
    """Return in words what the estimates say of the goals on an H100."""
    both = {each.call.length: each for each in found if each.call.causal and each.kind == BOTH}
    first, far = both[2048], both[32_768]
    (forward,) = (
        each
        for each in found
        if (each.call.causal, each.kind, each.call.length) == (False, FORWARD, 32_768)
    )
    shares = [
        100 * each.flash_flop / (factor * each.seconds["H100"] * H100.flop)
        for each, factor in ((first, 1), (far, 10))
    ]
    linear = {
        each: 1e3 * at_least(linear_passes(each), H100, each.dtype)
        for each in (first.call, far.call)
    }
    ratios = [1e3 * each.seconds["H100"] / linear[each.call] for each in (first, far)]
    return (
        "Of the goals on an H100: with both passes at this limit, the causal form is faster than "
        f"FlashAttention at {first.call.length:,} tokens where that runs below {shares[0]:.0f} % "
        f"of the tensor cores' rate, and ten times as fast at {far.call.length:,} where it runs "
        f"below {shares[1]:.0f} %; the bidirectional forward at {forward.call.length:,} tokens has "
        f"at most {100 * bound / forward.moved:.0f} % of the bandwidth limit, counted as eight "
        "tensor passes. Linear attention without flows, by the same kernels, takes "
        f"{' and '.join(f'{ms:.2f}' for ms in linear.values())} ms forward and backward at these "
        f"lengths: the causal form {' and '.join(f'{ratio:.2f}' for ratio in ratios)} times as "
        "long, where the goal, against flash-linear-attention's, is 1.6."
    )


def table() -> str:
    """Return the estimates in Markdown."""
    lines = [
        "| form and pass | tokens | passes | GB | GFLOP | H100, ms | A100, ms "
        "| FlashAttention: GFLOP | H100, ms | A100, ms |",
        "|" + "---|" * 10,
    ]
    found = estimates()
    for each in found:
        ours, flash = each.seconds, each.flash_seconds
        figures = [
            f"{'causal' if each.call.causal else 'bidirectional'}, {each.kind}",
            f"{each.call.length:,}",
            f"{each.launches}",
            f"{each.moved / 1e9:.3g}",
            f"{each.flop / 1e9:,.0f}",
            *(milliseconds(ours[name]) for name in NAMED),
            f"{each.flash_flop / 1e9:,.0f}",
            *(milliseconds(flash[name]) for name in NAMED),
        ]
        lines.append(f"| {' | '.join(figures)} |")
    bound = eight_passes(
        Call(causal=False, batch=1, length=TOKENS, heads=HEADS, width=WIDTH, dtype=torch.bfloat16)
    )
    lines += [
        "",
        f"bfloat16, {HEADS} heads of width {WIDTH}, batch × length = {TOKENS:,} (batch 1 beyond). "
        f"Eight tensor passes are {bound / 1e9:.3g} GB, on an H100 "
        f"{1e3 * bound / H100.bandwidth:.3g} ms. Rates: "
        + ", ".join(
            f"{name} {card.bandwidth / 1e12:g} TB/s and {card.flop / 1e12:.0f} TFLOP/s"
            for name, card in NAMED.items()
        )
        + ".",
        "",
        goals(found, bound),
    ]
    return "\n".join(lines)
