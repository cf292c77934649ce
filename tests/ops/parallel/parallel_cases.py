"""Cases of a sequence sharded over ranks: each is held to one process that has all of it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from flowformer.ops import FlowState, flow_attention
from flowformer.ops.parallel import sequence_parallel_flow_attention
from tests.distributed_run import Case

TOLERANCE = 1e-12  # of float64, relative to the largest number


@dataclass(frozen=True, kw_only=True)
class Sharded:
    """A call, and how its sequences are cut.

    Attributes:
        options: keywords of the attention.
        queries: shares of the queries' tokens of every rank, of which ``share`` takes turns.
        keys: of the keys' tokens, None for those of the queries (self-attention).
        padded: whether both sides have padding.
        packed: lengths of packed sequences, None for a batch of three.
        packed_keys: lengths of their keys, where they differ.
        heads: of query and key.
        stateful: whether a state goes in and out.
        decay: the largest of the decays, negated; None for a call without.
        parallel: keywords of the sharded call alone.
    """

    options: dict[str, Any] = field(default_factory=dict)
    queries: Sequence[int] = (5, 9, 2, 7)
    keys: Sequence[int] | None = None
    padded: bool = False
    packed: Sequence[int] | None = None
    packed_keys: Sequence[int] | None = None
    heads: tuple[int, int] = (2, 2)
    stateful: bool = False
    decay: float | None = None
    parallel: dict[str, Any] = field(default_factory=dict)


def cases() -> dict[str, Case]:
    """Every case by a name that says what is cut."""
    table: dict[str, Case] = {name: partial(check, case) for name, case in TABLE.items()}
    return {
        **table,
        **{
            f"{'causal' if causal else 'bidirectional'}, bfloat16": partial(rounding, causal=causal)
            for causal in (False, True)
        },
        "causal, NaN later": nothing_reads_the_future,
    }


def check(case: Sharded, group: ProcessGroup) -> None:
    """Compare output, state and gradients with those of one process."""
    lengths = share(case.queries, group.size())
    key_lengths = lengths if case.keys is None else share(case.keys, group.size())
    inputs = make_inputs(case, sum(lengths), sum(key_lengths))
    whole = {name: x.clone().requires_grad_() for name, x in inputs.tensors.items()}
    call: dict[str, Any] = {**whole, **inputs.shared, **inputs.masks}
    expected = outputs(flow_attention(**call))
    weights = [torch.randn(x.shape, dtype=torch.float64) for x in expected]
    sum_of_products(expected, weights).backward()

    rank = group.rank()
    cut = {"query": lengths, "key": key_lengths, "value": key_lengths, "log_decay": lengths}
    cut = {name: each for name, each in cut.items() if name in inputs.tensors}
    local = {
        name: part(x, cut[name], rank).clone().requires_grad_()
        if name in cut
        else x.clone().requires_grad_()
        for name, x in inputs.tensors.items()
    }
    masks = {
        name: part(mask, key_lengths if name == "key_mask" else lengths, rank)
        for name, mask in inputs.masks.items()
    }
    call = {**local, **inputs.shared, **masks, **case.parallel}
    found = outputs(sequence_parallel_flow_attention(**call, mesh=group))
    equal(found[0], part(expected[0], lengths, rank), "output")
    for name, field_, want in zip(FlowState._fields, found[1:], expected[1:], strict=False):
        equal(field_, want, f"state {name}")
    # The state is on every rank: its loss is that of one.
    used = len(found) if rank == group.size() - 1 else 1
    mine = [part(weights[0], lengths, rank), *weights[1:]]
    total = sum_of_products(found[:used], mine[:used])
    (total + 0 * sum_of_products(found, mine)).backward()
    for name in cut:
        grad = whole[name].grad
        assert grad is not None
        equal(local[name].grad, part(grad, cut[name], rank), f"gradient of {name}")


def rounding(group: ProcessGroup, *, causal: bool) -> None:
    """In half precision the error is at most twice that of rounding the exact result."""
    length = 64 * group.size()
    tensors = [torch.randn(1, length, 2, 16).bfloat16() for _ in range(3)]
    exact = flow_attention(*(x.double() for x in tensors), causal=causal, backend="reference")
    mine = slice(64 * group.rank(), 64 * group.rank() + 64)
    found = sequence_parallel_flow_attention(
        *(x[:, mine] for x in tensors), mesh=group, causal=causal
    )
    exact = exact[:, mine]
    assert found.dtype == torch.bfloat16
    error = (found.double() - exact).abs().max()
    assert error <= 2 * (exact.bfloat16().double() - exact).abs().max(), f"off by {error:.2e}"


def nothing_reads_the_future(group: ProcessGroup) -> None:
    """What a later rank holds, were it NaN, reaches no earlier one."""
    tensors = [torch.randn(1, 8 * group.size(), 2, 4, dtype=torch.float64) for _ in range(3)]
    expected = flow_attention(*tensors, causal=True, backend="reference")
    for x in tensors:
        x[:, -1] = torch.nan
    mine = slice(8 * group.rank(), 8 * group.rank() + 8)
    found = sequence_parallel_flow_attention(
        *(x[:, mine] for x in tensors), mesh=group, causal=True
    )
    if group.rank() < group.size() - 1:
        equal(found, expected[:, mine], "output before NaN")
    else:
        assert found[:, -1].isnan().all()


def share(tokens: Sequence[int], ranks: int) -> list[int]:
    """Sum neighbouring shares, so that so many ranks are left."""
    step = len(tokens) // ranks
    return [sum(tokens[start : start + step]) for start in range(0, len(tokens), step)]


def part(x: Tensor, lengths: Sequence[int], rank: int) -> Tensor:
    """The tokens of one rank."""
    start = sum(lengths[:rank])
    return x[:, start : start + lengths[rank]]


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Tensors that are cut, masks that are cut too, and what every rank is given alike."""

    tensors: dict[str, Tensor]
    masks: dict[str, Tensor]
    shared: dict[str, Any]


def make_inputs(case: Sharded, length: int, key_length: int) -> Inputs:
    """Draw inputs, the same on every rank."""
    batch = 3 if case.packed is None else 1
    heads, kv_heads = case.heads
    tensors = {
        "query": torch.randn(batch, length, heads, 4, dtype=torch.float64),
        "key": torch.randn(batch, key_length, kv_heads, 4, dtype=torch.float64),
        "value": torch.randn(batch, key_length, kv_heads, 3, dtype=torch.float64),
    }
    if case.decay is not None:
        log_decay = -case.decay * torch.rand(batch, length, heads, dtype=torch.float64)
        tensors["log_decay"] = log_decay
    shared: dict[str, Any] = {"backend": "reference", **case.options}
    masks = {}
    if case.padded:
        real, real_keys = torch.rand(batch, length) < 0.6, torch.rand(batch, key_length) < 0.6
        real[0, : length // 2] = False  # none is real on the first ranks
        masks = {"query_mask": real, "key_mask": real_keys}
        masks = {"mask": real} if case.keys is None else masks
    if case.packed is not None:
        shared["cu_seqlens"] = offsets(case.packed)
        if case.packed_keys is not None:
            shared["cu_seqlens_k"] = offsets(case.packed_keys)
    if case.stateful:
        rows = batch if case.packed is None else len(case.packed)
        q, k, v = (torch.randn(rows, 6, heads, n, dtype=torch.float64) for n in (4, 4, 3))
        rest = {name: x for name, x in case.options.items() if name != "causal"}
        _, state = flow_attention(q, k, v, causal=True, return_state=True, **rest)
        shared |= {"initial_state": state, "return_state": True}
    return Inputs(tensors=tensors, masks=masks, shared=shared)


def offsets(lengths: Sequence[int]) -> Tensor:
    """Lengths as cu_seqlens."""
    return torch.tensor([0, *lengths]).cumsum(0)


def outputs(result: Any) -> list[Tensor]:
    """The output, and the fields of the state."""
    return [result[0], *result[1]] if isinstance(result, tuple) else [result]


def sum_of_products(tensors: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
    """A loss of everything that has a gradient; what is infinite counts for nothing."""
    pairs = zip(tensors, weights, strict=True)
    products = [torch.where(x.isfinite(), x, 0) * w for x, w in pairs if x.is_floating_point()]
    return torch.stack([product.sum() for product in products]).sum()


def equal(found: Tensor | None, expected: Tensor, what: str, tolerance: float = TOLERANCE) -> None:
    """Raise where two differ by more than rounding."""
    assert found is not None, f"{what} is missing"
    assert found.shape == expected.shape, f"{what}: {found.shape} instead of {expected.shape}"
    same = (found == expected) | ((found - expected).abs() <= tolerance * largest(expected))
    assert same.all(), f"{what} is off by {(found - expected).abs().max():.2e}"


def largest(x: Tensor) -> Tensor:
    """The largest finite number, at least 1."""
    return (
        torch.where(x.isfinite(), x, 0).abs().amax().clamp(min=1) if x.numel() else x.new_ones(())
    )


CAUSAL = {"causal": True}
REVERSE = {"causal": True, "reverse": True}
OPTIONS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "no clamp": {"clamp": None},
    "clamp 60": {"clamp": 60.0},
    "no competition": {"competition": None},
    "no allocation": {"allocation": False},
    "neither": {"independent_sinks": True},
    "relu": {"feature_map": "relu", "clamp": None},
}
EMPTY: dict[str, Any] = {"queries": (0, 9, 0, 3)}
EMPTY_LAST: dict[str, Any] = {"queries": (4, 5, 0, 0)}
PACKED = (3, 0, 1, 12, 2, 5)  # of 23 tokens: borders at 5, 14, 16
SPREAD = (23,)
WITHIN = (5, 9, 2, 7)  # every border is one of ranks

TABLE: dict[str, Sharded] = {
    **{f"bidirectional, {name}": Sharded(options=each) for name, each in OPTIONS.items()},
    **{f"causal, {name}": Sharded(options={**CAUSAL, **each}) for name, each in OPTIONS.items()},
    "heads": Sharded(options={"competition": "heads", "clamp": None}),
    "padded": Sharded(padded=True),
    "padded, no clamp": Sharded(padded=True, options={"clamp": None}),
    "cross": Sharded(keys=(1, 6, 4, 2), padded=True),
    "cross, empty": Sharded(keys=(0, 6, 0, 2), **EMPTY),
    "empty": Sharded(**EMPTY),
    "grouped heads": Sharded(heads=(4, 2)),
    "packed": Sharded(packed=PACKED),
    "packed, no clamp": Sharded(packed=PACKED, options={"clamp": None}),
    "packed, one": Sharded(packed=SPREAD),
    "packed, whole": Sharded(packed=WITHIN),
    "packed, whole, empty": Sharded(packed=(9, 0, 3), **EMPTY),
    "packed, empty": Sharded(packed=(4, 8), **EMPTY),
    "packed cross": Sharded(packed=PACKED, packed_keys=(1, 2, 0, 4, 5, 1), keys=(1, 6, 4, 2)),
    "packed cross, no clamp": Sharded(
        packed=PACKED, packed_keys=(5, 0, 0, 0, 0, 8), keys=(1, 6, 4, 2), options={"clamp": None}
    ),
    "causal, padded": Sharded(options=CAUSAL, padded=True),
    "causal, padded, no clamp": Sharded(options={**CAUSAL, "clamp": None}, padded=True),
    "causal, empty": Sharded(options=CAUSAL, **EMPTY),
    "causal, empty last": Sharded(options=CAUSAL, stateful=True, **EMPTY_LAST),
    "causal, grouped heads": Sharded(options=CAUSAL, heads=(4, 2)),
    "causal, state": Sharded(options=CAUSAL, stateful=True),
    "causal, state, no clamp": Sharded(options={**CAUSAL, "clamp": None}, stateful=True),
    "causal, state, no competition": Sharded(
        options={**CAUSAL, "competition": None}, stateful=True
    ),
    "causal, state, padded": Sharded(options=CAUSAL, stateful=True, padded=True),
    "causal, head groups": Sharded(options=CAUSAL, heads=(3, 3), parallel={"head_groups": 2}),
    "causal, chunked": Sharded(options={**CAUSAL, "backend": "chunked"}, padded=True),
    "causal, cpu": Sharded(options={**CAUSAL, "backend": None}, padded=True, stateful=True),
    "causal, cpu, no clamp": Sharded(options={**CAUSAL, "backend": None, "clamp": None}),
    "causal, packed": Sharded(options=CAUSAL, packed=PACKED),
    "causal, packed, one": Sharded(options=CAUSAL, packed=SPREAD),
    "causal, packed, whole": Sharded(options=CAUSAL, packed=WITHIN, stateful=True),
    "causal, packed, empty": Sharded(options=CAUSAL, packed=(4, 8), **EMPTY),
    "causal, packed, state": Sharded(options=CAUSAL, packed=PACKED, stateful=True),
    "causal, packed, no clamp": Sharded(
        options={**CAUSAL, "clamp": None}, packed=PACKED, stateful=True
    ),
    "causal, packed, cpu": Sharded(options={**CAUSAL, "backend": None}, packed=PACKED),
    **{
        f"decay, {name}": Sharded(options={**CAUSAL, **each}, decay=0.3, stateful=True)
        for name, each in OPTIONS.items()
    },
    "decay, padded": Sharded(options=CAUSAL, decay=0.3, padded=True),
    "decay, steep": Sharded(options=CAUSAL, decay=400.0, stateful=True),
    "decay, empty": Sharded(options=CAUSAL, decay=0.3, **EMPTY),
    "decay, empty last": Sharded(options=CAUSAL, decay=0.3, stateful=True, **EMPTY_LAST),
    "decay, head groups": Sharded(
        options=CAUSAL, decay=0.3, stateful=True, heads=(3, 3), parallel={"head_groups": 2}
    ),
    "decay, packed": Sharded(options=CAUSAL, decay=0.3, packed=PACKED, stateful=True),
    "decay, packed, one, no clamp": Sharded(
        options={**CAUSAL, "clamp": None}, decay=0.3, packed=SPREAD
    ),
    "decay, packed, empty": Sharded(options=CAUSAL, decay=0.3, packed=(4, 8), **EMPTY),
    "decay, packed, whole": Sharded(options=CAUSAL, decay=0.3, packed=WITHIN, stateful=True),
    **{
        f"reverse, {name}": Sharded(options={**REVERSE, **each}, decay=0.3, stateful=True)
        for name, each in OPTIONS.items()
    },
    "reverse, no decay": Sharded(options=REVERSE, stateful=True, padded=True),
    "reverse, padded": Sharded(options=REVERSE, decay=0.3, padded=True),
    "reverse, steep": Sharded(options=REVERSE, decay=400.0, stateful=True),
    "reverse, empty last": Sharded(options=REVERSE, decay=0.3, stateful=True, **EMPTY_LAST),
    "reverse, head groups": Sharded(
        options=REVERSE, decay=0.3, stateful=True, heads=(3, 3), parallel={"head_groups": 2}
    ),
    "reverse, cpu": Sharded(options={**REVERSE, "backend": None}, padded=True, stateful=True),
}
