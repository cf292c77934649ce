"""How long do the GPU kernels take at least? By what they move and multiply; needs no card.

Each pass takes the longer of two times, that of its bytes at the memory's rate and that of its
products at the tensor cores', and passes follow each other. Left out, and so a real time is longer:
arithmetic outside of products, what is read again, launches, what a card lacks of its datasheet.
"""

from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass

import torch

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
from benchmarks.pages import Tables, milliseconds

# Operations of a product in one of the dtype, in those of bfloat16: the kernels multiply float16,
# whose range is small, as TensorFloat-32, and float32 as three such products. See launch.py.
COST = {torch.bfloat16: 1, torch.float16: 2, torch.float32: 6}


@dataclass(frozen=True, kw_only=True)
class Card:
    """Bytes a second of its memory, and dense bfloat16 operations a second."""

    bandwidth: float
    flop: float

    def seconds(self, moved: int, flop: int, dtype: torch.dtype) -> float:
        """Return the time that a pass takes at least."""
        return max(moved / self.bandwidth, COST[dtype] * flop / self.flop)


# By what the driver calls them. NVIDIA's datasheets, without sparsity.
CARDS = {
    "NVIDIA A100-SXM4-40GB": Card(bandwidth=1.555e12, flop=312e12),
    "NVIDIA A100-SXM4-80GB": Card(bandwidth=2.039e12, flop=312e12),
    "NVIDIA A100 80GB PCIe": Card(bandwidth=1.935e12, flop=312e12),
    "NVIDIA H100 80GB HBM3": Card(bandwidth=3.35e12, flop=989e12),
    "NVIDIA H100 PCIe": Card(bandwidth=2.0e12, flop=756e12),
    "NVIDIA H200": Card(bandwidth=4.8e12, flop=989e12),
    "NVIDIA L40S": Card(bandwidth=0.864e12, flop=362e12),
}
H100, A100 = CARDS["NVIDIA H100 80GB HBM3"], CARDS["NVIDIA A100-SXM4-80GB"]

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


def results() -> list[Estimate]:
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
    linear, fading = (
        {
            each: 1e3 * at_least(linear_passes(each, decays=decays), H100, each.dtype)
            for each in (first.call, far.call)
        }
        for decays in (False, True)
    )
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
        "long, where the goal, against flash-linear-attention's, is 1.6. "
        f"With a decay it takes {' and '.join(f'{ms:.2f}' for ms in fading.values())} ms."
    )


def table(found: list[Estimate]) -> str:
    """Return the estimates in Markdown."""
    lines = [
        "| form and pass | tokens | passes | GB | GFLOP | H100, ms | A100, ms "
        "| FlashAttention: GFLOP | H100, ms | A100, ms |",
        "|" + "---|" * 10,
    ]
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


def execute(_: Namespace) -> None:
    """Print the estimates."""
    print(table(results()))


TABLES: Tables = {"gpu_roofline": table}
