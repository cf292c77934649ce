"""The numbers to reach on a GPU, and what was reached, of the rows of results/attention_gpu.json.

As on a CPU (see ../cpu/goals.py): a ratio is taken within a round, and its median counts. They
are asked of bfloat16, 16 heads of width 128, batch × length = 65,536, on an H100.
"""

from typing import Any

from benchmarks.attention.cpu.goals import case, row
from benchmarks.attention.gpu.peers import FLA, FLASH
from benchmarks.attention.gpu.traffic import PASSES_OVER_MEMORY
from benchmarks.attention.peers import BOTH, FORWARD, OURS
from benchmarks.runner import ratios

DTYPE, WIDTH = "bfloat16", 128
FASTER_FROM = (2048, 4096, 8192, 16_384, 65_536)
FAR_FASTER_AT = 32_768
LENGTHS = (2048, 8192, 32_768)

Result = dict[str, Any]


def find(result: Result, form: str, kind: str, peer: str, length: int) -> dict[str, Any]:
    """Return the row of a side; without one, a row without rounds."""
    wanted = (form, DTYPE, WIDTH, kind, peer, length)
    parts = ("form", "dtype", "width", "kind", "peer", "length")
    for each in result["rows"].values():
        if wanted == tuple(each[part] for part in parts):
            return each | {"seconds": each["seconds"] or []}
    return {"batch": 0, "seconds": []}


def over(result: Result, peer: str, kind: str, length: int) -> list[float]:
    """Return a peer's seconds over ours, causal."""
    theirs, ours = (find(result, "causal", kind, name, length) for name in (peer, OURS))
    return ratios(theirs["seconds"], ours["seconds"])


def of_limit(result: Result, length: int) -> list[float]:
    """Return the time of eight tensor passes at a copy's bandwidth, over ours."""
    ours = find(result, "bidirectional", FORWARD, OURS, length)
    numbers = ours["batch"] * length * result["same"]["heads"] * WIDTH
    least = PASSES_OVER_MEMORY * 2 * numbers / result["limits"]["bandwidth"]
    return [least / taken for taken in ours["seconds"]]


def rows(result: Result) -> list[dict]:
    """Return the table of goals, filled."""
    return [
        row(
            "causal forward and backward",
            "FlashAttention",
            *(case(f"{n:,} tokens", over(result, FLASH, BOTH, n), least=1) for n in FASTER_FROM),
            case(f"{FAR_FASTER_AT:,} tokens", over(result, FLASH, BOTH, FAR_FASTER_AT), least=10),
        ),
        *(
            row(
                f"causal {name}",
                "flash-linear-attention (no flow, no row scale): our time over its",
                *(
                    case(
                        f"{n:,} tokens",
                        [1 / ratio for ratio in over(result, FLA, kind, n)],
                        most=1.6,
                    )
                    for n in LENGTHS
                ),
            )
            for name, kind in (("forward", FORWARD), ("forward and backward", BOTH))
        ),
        row(
            "bidirectional forward",
            "the limit: eight tensor passes at a copy's bandwidth",
            *(case(f"{n:,} tokens", of_limit(result, n), least=0.6) for n in LENGTHS),
        ),
    ]
