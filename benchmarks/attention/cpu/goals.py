"""The numbers to reach on a CPU, and the ratios that were reached.

A case of a row is one ratio: of a peer's seconds to ours where ours is to be faster ("at least"),
of ours to what bounds it otherwise ("at most"). It holds where the median over the rounds does.
"""

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.attention.peers import BOTH, FAST, FORWARD, OURS, PUBLISHED, SOFTMAX, WIDTH
from benchmarks.runner import Seconds, medians, ratios

SGEMM = "sgemm"
SGEMM_FLOP = 2 * 1024**3
CAUSAL_FLOP = 4 * 2 * 64 * WIDTH  # a token and head: the four products of a chunk of 64 tokens
BIDIRECTIONAL_FLOP = 2 * 2 * WIDTH * WIDTH  # a token and head: kᵀv and q(kᵀv)
PASSES_OVER_MEMORY = 8  # the bidirectional form reads and writes a tensor this often


@dataclass(frozen=True, kw_only=True)
class Measured:
    """All rounds: seconds by "peer, pass" at each length, and what else the rows ask for."""

    heads: int
    bandwidth: float
    causal: dict[int, Seconds]
    bidirectional: dict[int, Seconds]
    threads: Seconds
    one_head: dict[int, list[float]]
    decoding: Seconds
    memory: dict[str, dict[int, int]]


def case(label: str, reached: list[float], *, least: float = 0, most: float = 0) -> dict:
    """Return one ratio beside its goal, at least or at most; without rounds it says so."""
    sign, goal = ("≥", least) if least else ("≤", most)
    result: dict[str, object] = {"label": label, "goal": f"{sign} {goal:g}"}
    if not reached:
        return result | {"ratio": None, "holds": False, "said": "not measured"}
    ratio = statistics.median(reached)
    holds = ratio >= least if least else ratio <= most
    spread = [min(reached), max(reached)]
    said = f"{ratio:.3g}, wanted {sign} {goal:g}: {'holds' if holds else 'falls short'}"
    return result | {"ratio": ratio, "range": spread, "holds": holds, "said": said}


def faster(
    label: str, times: Mapping[int, Seconds], length: int, peer: str, kind: str, least: float
) -> dict:
    """Return how many times as fast as a peer ours is."""
    at = times.get(length, {})
    reached = ratios(at.get(f"{peer}, {kind}", []), at.get(f"{OURS}, {kind}", []))
    return case(label, reached, least=least)


def row(what: str, against: str, *cases: dict) -> dict:
    """Return a line of the table."""
    return {"what": what, "against": against, "cases": list(cases)}


def rows(measured: Measured) -> list[dict]:
    """Return the table of goals, filled."""
    causal, both = measured.causal, measured.bidirectional
    wanted = ((128, 1), (512, 3), (4096, 12), (16_384, 45))
    return [
        row(
            "causal forward",
            "softmax attention (causal)",
            *(faster(f"{n:,} tokens", causal, n, SOFTMAX, FORWARD, goal) for n, goal in wanted),
        ),
        row(
            "causal forward and backward",
            "softmax attention (causal)",
            faster("256 tokens", causal, 256, SOFTMAX, BOTH, 1),
            faster("4,096 tokens", causal, 4096, SOFTMAX, BOTH, 8),
        ),
        row(
            "causal, 2,048 tokens",
            "the published equations",
            faster("forward", causal, 2048, PUBLISHED, FORWARD, 100),
            faster("both passes", causal, 2048, PUBLISHED, BOTH, 100),
        ),
        row(
            "causal, 2,048 tokens",
            "fast-transformers (linear attention without flow)",
            faster("forward", causal, 2048, FAST, FORWARD, 3),
            faster("both passes", causal, 2048, FAST, BOTH, 20),
        ),
        row(
            "causal forward, 4,096 tokens",
            "the limit's time",
            case("forward", over_limit(measured, 4096), most=1.75),
        ),
        row(
            "causal backward, 4,096 tokens",
            "own forward",
            case("backward", backward_over_forward(causal.get(4096, {})), most=3.5),
        ),
        row(
            "bidirectional, 4,096 tokens",
            "the published equations, eager",
            faster("forward", both, 4096, PUBLISHED, FORWARD, 2.5),
            faster("both passes", both, 4096, PUBLISHED, BOTH, 2.5),
        ),
        row(
            "causal on two threads, 8 heads",
            "on one",
            *(
                case(label, two_threads(measured.threads, kind), least=1.7)
                for label, kind in (("forward", FORWARD), ("both passes", BOTH))
            ),
        ),
        row(
            "peak memory of causal forward and backward, 131,072 tokens",
            "inputs, output and their gradients",
            case("bytes", over_floor(measured, 131_072), most=1.3),
        ),
        row(
            "time a token, one head, 1,024 to 1,048,576 tokens",
            "own at 1,024",
            case("the slowest", slowest_token(measured.one_head), most=1.4),
        ),
        row(
            "one decoding step",
            "position 1,000,000 against 1,000; softmax with a cache of 8,192",
            case("position", steps(measured.decoding, "1,000,000", "1,000"), most=1.1),
            case("softmax", steps(measured.decoding, SOFTMAX, "1,000,000"), least=20),
        ),
    ]


def floor(length: int, heads: int) -> int:
    """Return the bytes of inputs, output and their gradients in float32."""
    return 8 * 4 * length * heads * WIDTH


def over_limit(measured: Measured, length: int) -> list[float]:
    """Return our causal forward over the limit, whose rate is that of the product beside it."""
    times = measured.causal.get(length, {})
    share = CAUSAL_FLOP * length * measured.heads / SGEMM_FLOP
    return [
        ratio / share for ratio in ratios(times.get(f"{OURS}, {FORWARD}", []), times.get(SGEMM, []))
    ]


def backward_over_forward(times: Seconds) -> list[float]:
    """Return (both passes - forward) / forward: what a backward pass adds, keeping states too."""
    pairs = ratios(times.get(f"{OURS}, {BOTH}", []), times.get(f"{OURS}, {FORWARD}", []))
    return [ratio - 1 for ratio in pairs]


def two_threads(times: Seconds, kind: str) -> list[float]:
    """Return one thread's seconds over those of two."""
    return ratios(times.get(f"{kind}, 1", []), times.get(f"{kind}, 2", []))


def over_floor(measured: Measured, length: int) -> list[float]:
    """Return our peak over the bytes that no implementation can do without."""
    peak = measured.memory.get(OURS, {}).get(length)
    return [] if peak is None else [peak / floor(length, measured.heads)]


def slowest_token(times: dict[int, list[float]]) -> list[float]:
    """Return, by round, the longest time of a token over that at 1,024 tokens."""
    if not {1024, 1_048_576} <= times.keys():
        return []
    tokens = [[seconds / n for seconds in times[n]] for n in sorted(times)]
    return [max(by_length) / by_length[0] for by_length in zip(*tokens, strict=False)]


def steps(times: Seconds, over: str, under: str) -> list[float]:
    """Return the ratio of two steps."""
    return ratios(times.get(over, []), times.get(under, []))


def fill(measured: Measured) -> dict[str, object]:
    """Return the table and the medians behind it, as they are saved."""
    sgemm = statistics.median(seconds for at in measured.causal.values() for seconds in at[SGEMM])
    rate = SGEMM_FLOP / sgemm
    causal_limit = {n: CAUSAL_FLOP * n * measured.heads / rate for n in measured.causal}
    bidirectional_limit = {
        n: max(
            BIDIRECTIONAL_FLOP * n * measured.heads / rate,
            PASSES_OVER_MEMORY * 4 * n * measured.heads * WIDTH / measured.bandwidth,
        )
        for n in measured.bidirectional
    }
    return {
        "rows": rows(measured),
        "sgemm_gflop_per_second": rate / 1e9,
        "copy_gb_per_second": measured.bandwidth / 1e9,
        "seconds_by_length": {
            "causal": by_peer(measured.causal),
            "bidirectional": by_peer(measured.bidirectional),
        },
        "limit_by_length": {"causal": causal_limit, "bidirectional": bidirectional_limit},
        "one_head_by_length": {n: statistics.median(t) for n, t in measured.one_head.items()},
        "threads": medians(measured.threads),
        "step": medians(measured.decoding),
        "peak_memory_by_length": measured.memory,
        "smallest_memory_by_length": {
            n: floor(n, measured.heads) for n in measured.memory.get(OURS, {})
        },
    }


def by_peer(times: dict[int, Seconds]) -> dict[str, dict[int, float]]:
    """Return the medians by side and length instead of by length and side."""
    table: dict[str, dict[int, float]] = {}
    for length, seconds in times.items():
        for side, median in medians(seconds).items():
            table.setdefault(side, {})[length] = median
    return table


def table(result: dict[str, Any]) -> str:
    """Return the table of goals; a figure that falls short is bold."""
    lines = ["| what | against | wanted | measured |", "|---|---|---|---|"]
    for row in result["rows"]:
        cases = row["cases"]
        several = len(cases) > 1
        what = row["what"] + (f": {' / '.join(c['label'] for c in cases)}" if several else "")
        wanted = " / ".join(c["goal"] for c in cases)
        reached = " / ".join(figure(c) for c in cases)
        lines.append(f"| {what} | {row['against']} | {wanted} | {reached} |")
    where = result["machine"]
    lines += ["", f"On {where['processor']} ({where['vectors']}), backend `{result['backend']}`."]
    return "\n".join(lines)


def figure(case: dict[str, Any]) -> str:
    """Return a ratio, bold where it misses its goal."""
    if case["ratio"] is None:
        return "**not measured**"
    text = f"{case['ratio']:.3g}" if case["ratio"] < 100 else f"{case['ratio']:.0f}"
    return text if case["holds"] else f"**{text}**"
