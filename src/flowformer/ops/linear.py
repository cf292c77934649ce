"""The second half of Flow-Attention, shared with every other linear attention: q Σ kᵀ v."""

from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any, Literal, Unpack, overload

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from flowformer.ops.backends import choose_backend, that_decays
from flowformer.ops.features import compute_dtype, masked
from flowformer.ops.inputs import (
    check_causal,
    check_decay,
    check_state,
    check_strided,
    check_tensors,
    exact_arithmetic,
    is_kept,
    refuse_order,
)
from flowformer.ops.layout import Layout, takes_layouts
from flowformer.ops.nonfinite import either, may_be_spoiled, seen_from, spoiled, stained, without
from flowformer.ops.packing import Batch, BatchKeywords, attend_batch, resolve_batch, sequence_count
from flowformer.ops.state import LinearState
from flowformer.ops.steps import Inputs, Prepare, PreparedSteps, Step, is_step, preparation


class LinearArguments(BatchKeywords, total=False):
    """The keyword arguments of :func:`linear_attention`, for type checkers."""

    row_scale: Tensor | None
    log_decay: Tensor | None
    normalize: bool
    reverse: bool
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
@takes_layouts("query", "key", "value", "row_scale", "log_decay", warns=True)
def linear_attention(  # noqa: PLR0913 - the options of flow_attention, keyword-only
    query: Float[Tensor, "b l h d"],
    key: Float[Tensor, "b s g d"],
    value: Float[Tensor, "b s g m"],
    *,
    causal: bool = False,
    row_scale: Float[Tensor, "b l h"] | None = None,
    log_decay: Float[Tensor, "b l h"] | None = None,
    normalize: bool = False,
    reverse: bool = False,
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

    There is no feature map in it: query and key are features. A normaliser goes into row_scale, or
    is made by ``normalize`` (Katharopoulos et al. 2020, "Transformers are RNNs", equations 5, 9).

    With log_decay the causal form forgets, token by token and head by head::

        out_t = row_scale_t · query_t Σ_{s≤t} D_ts key_sᵀ value_s   D_ts = exp Σ_{s<r≤t} log_decay_r

    which is the recurrence S_t = exp(log_decay_t) S_{t-1} + key_tᵀ value_t of RetNet (Sun et al.
    2023) and Mamba-2 (Dao & Gu 2024). A decay of e⁻³⁰⁰ in one step is exact, -inf forgets all.

    Args:
        query: ``[b, l, h, d]``, float16, bfloat16, float32 or float64.
        key: ``[b, s, g, d]`` where g divides h.
        value: ``[b, s, g, m]``.
        causal: whether token t sees the tokens up to t only. Needs l = s.
        row_scale: ``[b, l, h]``, applied in float32 before the output is rounded.
        log_decay: ``[b, l, h]``, at most 0: the logarithm of what is left of all earlier tokens
            when a token is added (causal only). A padded token neither adds nor decays.
        normalize: whether to divide by query_i Σ_j key_j, of the same decayed sums, so that the
            weights of each row sum to one; 0 where that is zero. The state has one more column.
        reverse: whether the tokens are read from the last to the first (causal only): token t sees
            those from t on, in each packed sequence, and a state is that of the tokens behind.
        mask: ``[b, l]``, True = a real token, both sides.
        query_mask: ``[b, l]`` (not causal).
        key_mask: ``[b, s]`` (not causal).
        cu_seqlens: ``[n + 1]``, offsets of n sequences packed into ``[1, total, h, d]``.
        cu_seqlens_k: the same for key and value where they differ.
        initial_state: the state after earlier tokens (causal only), one row a sequence.
        return_state: whether to return the state after the last token too (causal only).
        backend: as in :func:`flow_attention`.
        layout: as in :func:`flow_attention`; ``"bhtd"`` takes row_scale and log_decay as
            ``[b, h, l]`` too.

    Returns:
        ``[b, l, h, m]`` in the value's dtype, zero at padded queries; with ``return_state``, a
        pair of it and the :class:`LinearState`.

    Raises:
        ValueError: an argument does not fit the others; the message says what was expected.
        TypeError: a mask is not boolean, offsets are no integers, decays are no numbers, a state
            is of another kind.
        RuntimeError: the backend asked for is not available; the message says why.

    Examples:
        >>> import torch
        >>> from flowformer import linear_attention
        >>> query, key, value = (torch.rand(2, 100, 4, 16) for _ in range(3))
        >>> scale = 1 / (query * key.cumsum(1)).sum(-1)  # rows of weights sum to one
        >>> linear_attention(query, key, value, causal=True, row_scale=scale).shape
        torch.Size([2, 100, 4, 16])

        The same with a memory of about ten tokens, a part at a time:

        >>> log_decay = torch.full((2, 50, 4), -0.1)
        >>> state = None
        >>> for part in (slice(0, 50), slice(50, 100)):
        ...     out, state = linear_attention(
        ...         *(x[:, part] for x in (query, key, value)),
        ...         causal=True,
        ...         log_decay=log_decay,
        ...         normalize=True,
        ...         initial_state=state,
        ...         return_state=True,
        ...     )
        >>> out.shape, state.key_value.shape
        (torch.Size([2, 50, 4, 16]), torch.Size([2, 4, 16, 17]))
    """
    given, unrepeated = (mask, query_mask, key_mask, cu_seqlens, cu_seqlens_k), (query, key, value)
    one = causal and return_state and is_step(unrepeated, initial_state, (row_scale, *given))
    if log_decay is not None:
        unrepeated = *unrepeated, log_decay
    look = backend, normalize
    if one and (step := _STEPS.find(look, unrepeated, initial_state)) is not None:
        return step(unrepeated, initial_state)
    query, key, value = check_tensors(query, key, value)
    if row_scale is not None:
        check_strided("row_scale", row_scale)
        if row_scale.shape != query.shape[:3]:
            raise ValueError(
                f"row_scale must be [batch, time, head] = {list(query.shape[:3])}, got "
                f"{list(row_scale.shape)}"
            )
    batch = resolve_batch(query, key, *given, causal=causal)
    if log_decay is not None:
        log_decay = check_decay(log_decay, query, batch.query_mask, causal=causal)
    others = (row_scale, log_decay, *batch, *(initial_state or ()))
    module = choose_backend(backend, query, key, value, *others)
    if log_decay is not None:
        module = that_decays(module, "linear", log_decay)
    if causal:
        check_causal(query, key, cu_seqlens_k)
    else:
        refuse_order(initial_state, return_state, reverse)
    sequences = sequence_count(query, batch.cu_seqlens)
    check_state(initial_state, LinearState, query, value, sequences, more=int(normalize))
    queries = (query,) if row_scale is None else (query, row_scale)
    keys = (key, value) if log_decay is None else (key, value, log_decay)
    with exact_arithmetic(query):
        attend = partial(_attend_causal, module, normalize, return_state, reverse)
        attend = attend if causal else partial(_attend, module, normalize)
        packs = module.PACKS_SEQUENCES
        out, state = attend_batch(attend, queries, keys, batch, initial_state, packs=packs)
    if one:
        prepare = preparation(module, None)
        prepare = partial(_normalized_step, prepare) if prepare and normalize else prepare
        _STEPS.keep(look, prepare, unrepeated, initial_state)
    out = out.to(value.dtype)
    return out if not return_state or state is None else (out, state)


_STEPS = PreparedSteps(LinearState)


def _attend(
    module: ModuleType,
    normalize: bool,
    queries: tuple[Tensor, ...],
    keys: tuple[Tensor, ...],
    batch: Batch,
    state: LinearState | None,
) -> tuple[Tensor, LinearState | None]:
    q, k, v, scale = _readable(module, queries, keys, normalize)
    given: dict[str, Any] = {"query_mask": batch.query_mask, "key_mask": batch.key_mask}
    if batch.cu_seqlens is not None:
        given |= {"cu_seqlens": batch.cu_seqlens, "cu_seqlens_k": batch.cu_seqlens_k}

    run = partial(_multiply, module, state, given)
    if normalize:  # what is not finite in padding is not in the products, but would be in a ratio
        scale = None if scale is None else masked(scale[..., None], batch.query_mask)[..., 0]
        return _normalized(run, q, k, v, row_scale=scale)
    return run(q, k, v, row_scale=scale)


def _multiply(
    module: ModuleType,
    state: LinearState | None,
    given: dict[str, Any],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    row_scale: Tensor | None,
) -> tuple[Tensor, LinearState | None]:
    return module.linear_bidirectional(q, k, v, row_scale=row_scale, **given), state


def _readable(
    module: ModuleType, queries: tuple[Tensor, ...], keys: tuple[Tensor, ...], normalize: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Return query, key, value and row_scale in the dtypes that the module takes."""
    narrow = module.TAKES_HALF and not normalize
    dtype = queries[0].dtype if narrow else compute_dtype(queries[0].dtype)
    q, k, v = (tensor.to(dtype) for tensor in (queries[0], *keys[:2]))
    return q, k, v, queries[1].to(compute_dtype(dtype)) if len(queries) > 1 else None


def _attend_causal(
    module: ModuleType,
    normalize: bool,
    return_state: bool,
    reverse: bool,
    queries: tuple[Tensor, ...],
    keys: tuple[Tensor, ...],
    batch: Batch,
    state: LinearState | None,
) -> tuple[Tensor, LinearState | None]:
    q, k, v, scale = _readable(module, queries, keys, normalize)
    q, k, v = (masked(tensor, batch.key_mask) for tensor in (q, k, v))
    rows: dict[str, Tensor | None] = {"row_scale": scale}
    if scale is not None:
        rows["row_scale"] = masked(scale[..., None], batch.key_mask)[..., 0]
    if len(keys) > 2:
        rows["log_decay"] = keys[2]
        if batch.key_mask is not None:
            rows["log_decay"] = torch.where(batch.key_mask[..., None], keys[2], 0)
    rest: dict[str, Any] = {"state": state, "return_state": return_state, "reverse": reverse}
    if batch.cu_seqlens is not None:
        rest["cu_seqlens"] = batch.cu_seqlens
    run = partial(module.linear_causal, **rest)
    run = partial(_normalized, run) if normalize else run
    tensors = q, k, v, *rows.values()
    needed = not module.CONTAINS_NONFINITE or is_kept(*tensors, *(state or ()))
    if needed and may_be_spoiled(*tensors):
        find_seen = partial(seen_from, cu_seqlens=batch.cu_seqlens, reverse=reverse)
        return _attend_contained(run, q, k, v, rows, batch, normalize, find_seen)
    return run(q, k, v, **rows)


Run = Callable[..., tuple[Tensor, LinearState | None]]


def _attend_contained(
    run: Run,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rows: dict[str, Tensor | None],
    batch: Batch,
    normalize: bool,
    find_seen: Callable[[Tensor], tuple[Tensor, Tensor]],
) -> tuple[Tensor, LinearState | None]:
    """Attend so that nothing which is not finite reaches an earlier token; see nonfinite.py.

    A query and its scale are seen by themselves alone.
    """
    own, by_key = spoiled(q), spoiled(k)
    scale, log_decay = rows["row_scale"], rows.get("log_decay")
    if scale is not None:
        own = either(own, spoiled(scale[..., None]))
        rows = {**rows, "row_scale": without(scale, own[..., 0])}
    if log_decay is not None:  # -inf is one that forgets all
        by_key = either(by_key, log_decay.isnan()[..., None])
        rows = {**rows, "log_decay": without(log_decay, by_key[..., 0])}
    flag = either(by_key, spoiled(v, columns=True))
    out, after = run(without(q, own), without(k, by_key), without(v, flag), **rows)
    seen, sums = find_seen(flag)
    if after is not None:
        if normalize and sums.shape[-1] > 1:  # flags of columns: one more for the keys
            sums = torch.cat((sums, find_seen(by_key)[1]), -1)
        after = LinearState(stained(after.key_value, sums[..., None, :]))
    return stained(out, either(own, seen), batch.query_mask), after


def _normalized(
    run: Run, q: Tensor, k: Tensor, v: Tensor, *, row_scale: Tensor | None, **rest: Any
) -> tuple[Tensor, LinearState | None]:
    """Divide by the sum of the weights, before the rows are scaled."""
    out, state = run(q, k, with_ones(v, v.dtype), row_scale=None, **rest)
    out = divided(out, v.dtype)
    return out if row_scale is None else out * row_scale[..., None], state


def _normalized_step(prepare: Prepare, inputs: Inputs, state: Any) -> Step | None:
    """Prepare a step on values with ones, which divides as above."""

    def widened(inputs: Inputs) -> Inputs:
        return *inputs[:2], with_ones(inputs[2], inputs[2].dtype), *inputs[3:]

    step = prepare(widened(inputs), state)
    if step is None:
        return None

    def normalized(inputs: Inputs, state: Any) -> tuple[Tensor, Any]:
        out, after = step(widened(inputs), state)
        return divided(out, inputs[2].dtype), after

    return normalized


def with_ones(
    value: Float[Tensor, "b s g m"], dtype: torch.dtype
) -> Float[Tensor, "b s g m_plus_1"]:
    """Return the values and a column of ones, which sums the weights."""
    return F.pad(value.to(dtype), (0, 1), value=1.0)


def divided(
    product: Float[Tensor, "b l h m_plus_1"],
    dtype: torch.dtype,
    *,
    added: float = 0.0,
    least: float = 0.0,
) -> Float[Tensor, "b l h m"]:
    """Return the weighted sums over the sums of their weights, which stand in the last column."""
    total = product[..., -1:] + added
    # Without a bound, the sum of nothing is zero; 0 / 0 is to be 0, and 1 / tiny has no gradient.
    total = total.clamp(min=least) if least > 0 else torch.where(total == 0, 1, total)
    return (product[..., :-1] / total).to(dtype)
