"""The second half of Flow-Attention, shared with every other linear attention: q Σ kᵀ v."""

from functools import partial
from types import ModuleType
from typing import Any, Literal, Unpack, overload

from jaxtyping import Bool, Float, Int
from torch import Tensor

from flowformer.ops.backends import choose_backend
from flowformer.ops.features import compute_dtype, masked
from flowformer.ops.inputs import (
    check_causal,
    check_state,
    check_strided,
    check_tensors,
    exact_arithmetic,
    is_kept,
)
from flowformer.ops.layout import Layout, takes_layouts
from flowformer.ops.nonfinite import either, may_be_spoiled, seen_from, spoiled, stained, without
from flowformer.ops.packing import Batch, BatchKeywords, attend_batch, resolve_batch, sequence_count
from flowformer.ops.state import LinearState
from flowformer.ops.steps import PreparedSteps, is_step


class LinearArguments(BatchKeywords, total=False):
    """The keyword arguments of :func:`linear_attention`, for type checkers."""

    row_scale: Tensor | None
    initial_state: LinearState | None


@overload
def linear_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    return_state: Literal[False] = False,
    **arguments: Unpack[LinearArguments],
) -> Tensor: ...
@overload
def linear_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    return_state: Literal[True],
    **arguments: Unpack[LinearArguments],
) -> tuple[Tensor, LinearState]: ...
@takes_layouts("query", "key", "value", "row_scale", warns=True)
def linear_attention(  # noqa: PLR0913 - the options of flow_attention, keyword-only
    query: Float[Tensor, "b l h d"],
    key: Float[Tensor, "b s g d"],
    value: Float[Tensor, "b s g m"],
    *,
    causal: bool = False,
    row_scale: Float[Tensor, "b l h"] | None = None,
    mask: Bool[Tensor, "b l"] | None = None,
    query_mask: Bool[Tensor, "b l"] | None = None,
    key_mask: Bool[Tensor, "b s"] | None = None,
    cu_seqlens: Int[Tensor, " n"] | None = None,
    cu_seqlens_k: Int[Tensor, " n"] | None = None,
    initial_state: LinearState | None = None,
    return_state: bool = False,
    backend: str | None = None,
    layout: Layout = "bthd",  # noqa: ARG001 - of the tensors; the decorator reads it
) -> Float[Tensor, "b l h m"] | tuple[Float[Tensor, "b l h m"], LinearState]:
    """Return out_i = row_scale_i · query_i Σ_j key_jᵀ value_j, over j ≤ i in the causal form.

    There is no feature map and no normaliser in it: query and key are features, and row_scale is
    where a normaliser goes (Katharopoulos et al. 2020, "Transformers are RNNs", equations 5, 9).

    Args:
        query: ``[b, l, h, d]``, float16, bfloat16, float32 or float64.
        key: ``[b, s, g, d]`` where g divides h.
        value: ``[b, s, g, m]``.
        causal: whether token t sees the tokens up to t only. Needs l = s.
        row_scale: ``[b, l, h]``, applied in float32 before the output is rounded.
        mask: ``[b, l]``, True = a real token, both sides.
        query_mask: ``[b, l]`` (not causal).
        key_mask: ``[b, s]`` (not causal).
        cu_seqlens: ``[n + 1]``, offsets of n sequences packed into ``[1, total, h, d]``.
        cu_seqlens_k: the same for key and value where they differ.
        initial_state: the state after earlier tokens (causal only), one row a sequence.
        return_state: whether to return the state after the last token too (causal only).
        backend: as in :func:`flow_attention`.
        layout: as in :func:`flow_attention`; ``"bhtd"`` takes row_scale as ``[b, h, l]`` too.

    Returns:
        ``[b, l, h, m]`` in the value's dtype, zero at padded queries; with ``return_state``, a
        pair of it and the :class:`LinearState`.

    Raises:
        ValueError: an argument does not fit the others; the message says what was expected.
        TypeError: a mask is not boolean, offsets are no integers, a state is of another kind.
        RuntimeError: the backend asked for is not available; the message says why.

    Examples:
        >>> import torch
        >>> from flowformer import linear_attention
        >>> query, key, value = (torch.rand(2, 100, 4, 16) for _ in range(3))
        >>> scale = 1 / (query * key.cumsum(1)).sum(-1)  # rows of weights sum to one
        >>> linear_attention(query, key, value, causal=True, row_scale=scale).shape
        torch.Size([2, 100, 4, 16])
    """
    given, unrepeated = (mask, query_mask, key_mask, cu_seqlens, cu_seqlens_k), (query, key, value)
    one = causal and return_state and is_step(unrepeated, initial_state, (row_scale, *given))
    if one and (step := _STEPS.find((backend,), query, key, value, initial_state)) is not None:
        return step(query, key, value, initial_state)
    query, key, value = check_tensors(query, key, value)
    if row_scale is not None:
        check_strided("row_scale", row_scale)
        if row_scale.shape != query.shape[:3]:
            raise ValueError(
                f"row_scale must be [batch, time, head] = {list(query.shape[:3])}, got "
                f"{list(row_scale.shape)}"
            )
    batch = resolve_batch(query, key, *given, causal=causal)
    module = choose_backend(backend, query, key, value, row_scale, *batch, *(initial_state or ()))
    if causal:
        check_causal(query, key, cu_seqlens_k)
    elif initial_state is not None or return_state:
        raise ValueError("only a causal call has a state: pass causal=True")
    check_state(initial_state, LinearState, query, value, sequence_count(query, batch.cu_seqlens))
    queries = (query,) if row_scale is None else (query, row_scale)
    with exact_arithmetic(query):
        attend = partial(_attend_causal, module, return_state)
        attend = attend if causal else partial(_attend, module)
        packs = module.PACKS_SEQUENCES
        out, state = attend_batch(attend, queries, (key, value), batch, initial_state, packs=packs)
    if one:
        _STEPS.keep((backend,), module, None, *unrepeated, initial_state)
    out = out.to(value.dtype)
    return out if not return_state or state is None else (out, state)


_STEPS = PreparedSteps(LinearState)


def _attend(
    module: ModuleType,
    queries: tuple[Tensor, ...],
    keys: tuple[Tensor, ...],
    batch: Batch,
    state: LinearState | None,
) -> tuple[Tensor, LinearState | None]:
    q, k, v, scale = _readable(module, queries, keys)
    given: dict[str, Any] = {"query_mask": batch.query_mask, "key_mask": batch.key_mask}
    if batch.cu_seqlens is not None:
        given |= {"cu_seqlens": batch.cu_seqlens, "cu_seqlens_k": batch.cu_seqlens_k}
    return module.linear_bidirectional(q, k, v, row_scale=scale, **given), state


def _readable(
    module: ModuleType, queries: tuple[Tensor, ...], keys: tuple[Tensor, ...]
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Return query, key, value and row_scale in the dtypes that the module takes."""
    dtype = queries[0].dtype if module.TAKES_HALF else compute_dtype(queries[0].dtype)
    q, k, v = (tensor.to(dtype) for tensor in (queries[0], *keys))
    return q, k, v, queries[1].to(compute_dtype(dtype)) if len(queries) > 1 else None


def _attend_causal(
    module: ModuleType,
    return_state: bool,
    queries: tuple[Tensor, ...],
    keys: tuple[Tensor, ...],
    batch: Batch,
    state: LinearState | None,
) -> tuple[Tensor, LinearState | None]:
    q, k, v, scale = _readable(module, queries, keys)
    q, k, v = (masked(tensor, batch.key_mask) for tensor in (q, k, v))
    if scale is not None:
        scale = masked(scale[..., None], batch.key_mask)[..., 0]
    rest: dict[str, Any] = {"state": state, "return_state": return_state}
    if batch.cu_seqlens is not None:
        rest["cu_seqlens"] = batch.cu_seqlens
    run = partial(module.linear_causal, **rest)
    needed = not module.CONTAINS_NONFINITE or is_kept(q, k, v, scale, *(state or ()))
    if not (needed and may_be_spoiled(q, k, v, scale)):
        return run(q, k, v, row_scale=scale)
    # Nothing that is not finite reaches an earlier token; a query is seen by itself alone.
    own = spoiled(q)
    by_key = spoiled(k)
    if scale is not None:
        own = either(own, spoiled(scale[..., None]))
        scale = without(scale, own[..., 0])
    flag = either(by_key, spoiled(v, columns=True))
    out, after = run(without(q, own), without(k, by_key), without(v, flag), row_scale=scale)
    seen, sums = seen_from(flag, batch.cu_seqlens)
    if after is not None:
        after = LinearState(stained(after.key_value, sums[..., None, :]))
    return stained(out, either(own, seen), batch.query_mask), after
