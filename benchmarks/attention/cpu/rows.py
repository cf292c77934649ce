"""What a goal of attention's cost is made of: a row, its cases, and the calls in them.

A row has one goal for all its cases. A case is made of two things to call, or of one and a number:
a unit. They are made when their turn comes, since a million tokens take a gigabyte.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.attention.peers import BOTH, FORWARD, PASSES
from benchmarks.runner import processor_seconds
from flowformer import flow_attention

Shape = tuple[int, int, int, int]  # batch, tokens, heads, width
Attention = Callable[..., Tensor]
Side = Callable[[], object]
Clock = Callable[[Side, int], float]
Case = tuple[Callable[[], Side], Callable[[], Side] | float]

ALONE = "measured"  # the label of a row's only case
WORDS = {FORWARD: "forward", BOTH: "both passes"}
FORMS = {
    "bidirectional": flow_attention,
    "causal": partial(flow_attention, causal=True, layout="bthd"),  # fewer tokens than heads too
}


@dataclass(frozen=True, kw_only=True)
class Row:
    """A goal and its cases.

    Attributes:
        what: ours.
        against: what it is measured beside, or the unit.
        cases: by their labels.
        most: of what ours takes over what the other takes; or instead
        least: of what the other takes over what ours takes.
        clock: says what a number of calls take.
        threads: cores to stay on; more than one take other threads than the calling one in.
        missing: why it cannot be measured here, or None.
    """

    what: str
    against: str
    cases: dict[str, Case]
    most: float = 0.0
    least: float = 0.0
    clock: Clock = processor_seconds
    threads: int = 1
    missing: str | None = None


def passes(
    what: str, against: str, cases: Callable[[str], dict[str, Case]], **goal: Any
) -> Iterator[Row]:
    """Return a row for the forward pass, and one for both passes.

    Args:
        what: ours.
        against: what it is measured beside.
        cases: gives the cases of a kind of call, FORWARD or BOTH.
        goal: the rest of a `Row`.
    """
    for kind, name in WORDS.items():
        yield Row(what=f"{what}, {name}", against=against, cases=cases(kind), **goal)


def call(
    shape: Shape,
    kind: str,
    attention: Attention = flow_attention,
    *,
    dtype: torch.dtype = torch.float32,
    heads_first: bool = False,
) -> Callable[[], Side]:
    """Return what makes the call of an attention: its forward pass, or both."""

    def make() -> Side:
        torch.manual_seed(0)
        b, t, h, d = shape
        sizes = (b, h, t, d) if heads_first else shape
        inputs = [torch.randn(sizes).to(dtype) for _ in range(4)]
        for tensor in inputs[:3]:
            tensor.requires_grad_()
        return partial(PASSES[kind], attention, inputs)

    return make


def beside(sizes: list[Shape], kind: str, ours: Attention, other: Attention) -> dict[str, Case]:
    """Return two attentions beside each other at some sizes."""
    return {str(size): (call(size, kind, ours), call(size, kind, other)) for size in sizes}


def kept(inputs: list[Tensor], attention: Attention) -> int:
    """Return the bytes that a call keeps for its backward beyond its inputs and its output."""
    storages = {}

    def pack(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = attention(*inputs)
    for tensor in (*inputs, out):
        storages.pop(tensor.untyped_storage().data_ptr(), None)
    return sum(storages.values())


def bytes_of(side: Side, _: int) -> float:
    """Return what a side counts, in the place of a clock."""
    return float(str(side()))


def name_of(dtype: torch.dtype) -> str:
    """Return the name of a dtype."""
    return str(dtype).removeprefix("torch.")
