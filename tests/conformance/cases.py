"""What the suite needs to know of a mixer beside its capabilities."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple


class Case(NamedTuple):
    """How one mixer is tested.

    Attributes:
        options: of its constructor, sized for a width of 24, 3 heads and at most 500 tokens.
        rounding: in low precision the output may differ by this many eps of its largest value.
            Three tensors are rounded on the way (heads, attention, output), each by eps / 2;
            projections with weights within 1/√width at most double it. A larger number says why.
        why: the reason for another number.
    """

    options: Mapping[str, Any] = MappingProxyType({})
    rounding: float = 3
    why: str = ""


# One entry for each mixer that differs from Case().
CASES: dict[str, Case] = {
    "local": Case({"window": 8}),
    "sparse": Case({"stride": 16, "summary": 2}),
    "longformer": Case({"window": 8}),
    "bigbird": Case({"block": 8}),
    "sinkhorn": Case({"block": 16}),
    "reformer": Case(
        {"num_buckets": 8, "chunk": 16},
        rounding=20,
        why="a hash jumps: a query that rounds over its boundary attends to another bucket",
    ),
    "deltanet": Case(
        rounding=7,
        why="a short key becomes one of length 1, and its rounding grows with it, as that of a "
        "head does in the norm: at the worst token a key of 0.22, and a head of 0.03",
    ),
    "gated-deltanet": Case(rounding=6, why="as of deltanet"),
    "soft": Case(
        rounding=100,
        why="the inverse of the landmarks' kernel matrix, with a condition of up to "
        "(landmarks + ridge) / ridge = 5,000, multiplies the rounding of the kernel beside it",
    ),
    "yoso": Case(rounding=9, why="the ninth power multiplies a weight's rounding by nine"),
}
