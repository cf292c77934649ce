"""Flow-Attention: the public functions. They check, choose a backend and call it."""

from collections.abc import Callable, Mapping
from functools import partial
from types import ModuleType
from typing import Any, Literal, NamedTuple, Unpack, overload

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from flowformer.ops.backends import choose_backend, reference, that_decays
from flowformer.ops.features import FeatureMap, features, masked
from flowformer.ops.inputs import (
    check_causal,
    check_decay,
    check_state,
    check_tensors,
    exact_arithmetic,
    is_kept,
    may_look,
    refuse_growth,
    refuse_order,
    resolve_masks,
)
from flowformer.ops.layout import Layout, takes_layouts
from flowformer.ops.nonfinite import (
    either,
    may_be_spoiled,
    seen_from,
    spoiled,
    stained,
    stained_state,
    without,
)
from flowformer.ops.options import (
    DEFAULTS,
    Competition,
    FlowKeywords,
    FlowOptions,
    check_causal_options,
    resolve_options,
    spells_out,
)
from flowformer.ops.packing import Batch, BatchKeywords, attend_batch, resolve_batch, sequence_count
from flowformer.ops.state import FlowState, has_decayed
from flowformer.ops.steps import PreparedSteps, is_step, preparation


class FlowArguments(FlowKeywords, BatchKeywords, total=False):
    """The keyword arguments of :func:`flow_attention`, for type checkers."""

    log_decay: Tensor | None
    reverse: bool
    initial_state: FlowState | None


@overload
def flow_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    return_state: Literal[False] = False,
    **arguments: Unpack[FlowArguments],
) -> Tensor: ...
@overload
def flow_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    return_state: Literal[True],
    **arguments: Unpack[FlowArguments],
) -> tuple[Tensor, FlowState]: ...
@takes_layouts("query", "key", "value", "log_decay", warns=True)
def flow_attention(  # noqa: PLR0913 - the options of the published variants, keyword-only
    query: Float[Tensor, "b l h d"],
    key: Float[Tensor, "b s g d"],
    value: Float[Tensor, "b s g m"],
    *,
    causal: bool = False,
    feature_map: FeatureMap = "sigmoid",
    clamp: float | None = 1.0,
    eps: float = 1e-6,
    competition: Competition | None = "sources",
    allocation: bool = True,
    independent_sinks: bool = False,
    log_decay: Float[Tensor, "b l h"] | None = None,
    reverse: bool = False,
    mask: Bool[Tensor, "b l"] | None = None,
    query_mask: Bool[Tensor, "b l"] | None = None,
    key_mask: Bool[Tensor, "b s"] | None = None,
    cu_seqlens: Int[Tensor, " n"] | None = None,
    cu_seqlens_k: Int[Tensor, " n"] | None = None,
    initial_state: FlowState | None = None,
    return_state: bool = False,
    backend: str | None = None,
    layout: Layout = "bthd",  # noqa: ARG001 - of the tensors; the decorator reads it
) -> Float[Tensor, "b l h m"] | tuple[Float[Tensor, "b l h m"], FlowState]:
    """Attend with linear cost: sources compete, sinks are allocated (Flowformer, section 3).

    Tensors are ``[batch, time, head, feature]``; with ``layout="bhtd"``, as torch's own attention
    has them, ``[batch, head, time, feature]``.

    With q = φ(query), k = φ(key), L queries and S keys::

        I_i = (q_i + ε)·(Σ_j k_j + ε)            O_j = (k_j + ε)·(Σ_i q_i + ε)
        Î_i = (q_i + ε)·(Σ_j k_j/O_j + ε)        Ô_j = (k_j + ε)·(Σ_i q_i/I_i + ε)
        out_i = sigmoid(Î_i·L/S) / I_i · q_i Σ_j k_jᵀ (S · softmax_j(clamp(Ô_j)) · v_j)

    The causal form has running sums instead (docs/attention/math.md): it is not this form under a
    mask. With log_decay each of them shrinks by exp(log_decay_t) before token t is added.

    Args:
        query: ``[b, l, h, d]``, float16, bfloat16, float32 or float64.
        key: ``[b, s, g, d]`` where g divides h; fewer heads are repeated (grouped heads).
        value: ``[b, s, g, m]``; the width m is free.
        causal: whether token t sees the tokens up to t only. Needs l = s.
        feature_map: φ: ``"sigmoid"`` or ``"relu"``. :class:`FlowOptions` says more of this option
            and the next four, and which values the published code has.
        clamp: the bound of ±Ô before the competition, or None.
        eps: ε > 0.
        competition: whether the softmax of Ô runs over ``"sources"``, over ``"heads"``
            (bidirectional only), or not at all (None).
        allocation: false leaves out the sigmoid.
        independent_sinks: true leaves out both, whatever they say, so that each output depends on
            its own query and on the context alone: the form for a decoder's cross-attention. In
            any other, an earlier output knows the later queries.
        log_decay: ``[b, l, h]``, at most 0: the logarithm of what is left of all earlier tokens
            when a token is added (causal only). A padded token neither adds nor decays.
        reverse: whether the tokens are read from the last to the first (causal only): token t sees
            those from t on, in each packed sequence, and a state is that of the tokens behind.
        mask: ``[b, l]``, True = a real token, for self-attention: the mask of both sides.
        query_mask: ``[b, l]``, the same for the queries alone (not causal).
        key_mask: ``[b, s]``, the same for the keys and values alone (not causal).
        cu_seqlens: ``[n + 1]``, offsets of n sequences packed into ``[1, total, h, d]``.
        cu_seqlens_k: the same for key and value where they differ (cross-attention).
        initial_state: the state after earlier tokens (causal only), one row a sequence.
        return_state: whether to return the state after the last token too (causal only).
        backend: ``"reference"``, ``"chunked"``, ``"cpu"``, ``"triton"``, or None to choose.
        layout: where the heads stand in query, key, value and the output: ``"bthd"``, or ``"bhtd"``
            for ``[b, h, t, d]`` (packed: ``[1, h, total, d]``), which costs no copy; the output is
            a transposed view, and log_decay ``[b, h, l]``. Masks, offsets and states are the same
            in both.

    Returns:
        ``[b, l, h, m]`` in the value's dtype, zero at padded queries and where no key is real;
        with ``return_state``, a pair of it and the :class:`FlowState`.

    Raises:
        ValueError: an argument does not fit the others; the message says what was expected.
        TypeError: a mask is not boolean, offsets are no integers, decays are no numbers, a state
            is of another kind.
        RuntimeError: the backend asked for is not available; the message says why.

    Examples:
        >>> import torch
        >>> from flowformer import flow_attention
        >>> query, key, value = (torch.randn(2, 100, 4, 16) for _ in range(3))
        >>> flow_attention(query, key, value).shape
        torch.Size([2, 100, 4, 16])
        >>> _, state = flow_attention(query, key, value, causal=True, return_state=True)
        >>> state.key_value.shape  # constant, whatever the length
        torch.Size([2, 4, 16, 16])
    """
    given = mask, query_mask, key_mask, cu_seqlens, cu_seqlens_k
    if causal and return_state and is_step((query, key, value), initial_state, given):
        words = feature_map, clamp, eps, competition, allocation, independent_sinks
        spelled = dict(zip(DEFAULTS, words, strict=True))
        return _step(query, key, value, initial_state, backend, spelled, log_decay)
    options = resolve_options(
        feature_map=feature_map,
        clamp=clamp,
        eps=eps,
        competition=competition,
        allocation=allocation,
        independent_sinks=independent_sinks,
    )
    query, key, value = check_tensors(query, key, value)
    batch = resolve_batch(query, key, *given, causal=causal)
    if log_decay is not None:
        log_decay = check_decay(log_decay, query, batch.query_mask, causal=causal)
    module = choose_backend(backend, query, key, value, log_decay, *batch, *(initial_state or ()))
    if causal:
        check_causal(query, key, cu_seqlens_k, sums_over_sinks=True)
        check_causal_options(options)
    else:
        refuse_order(initial_state, return_state, reverse)
    check_state(initial_state, FlowState, query, value, sequence_count(query, batch.cu_seqlens))
    module = _that_decays(module, log_decay, initial_state)
    keys = (key, value) if log_decay is None else (key, value, log_decay)
    with exact_arithmetic(query):
        attend = partial(_attend_causal, module, options, return_state, reverse)
        attend = attend if causal else partial(_attend, module, options)
        packs = module.PACKS_SEQUENCES
        out, state = attend_batch(attend, (query,), keys, batch, initial_state, packs=packs)
    return out if not return_state or state is None else (out, state)


def _that_decays(
    module: ModuleType, log_decay: Tensor | None, state: FlowState | None
) -> ModuleType:
    """Return the backend's module, or one that takes a decay, or the state after one."""
    decays = log_decay is not None or (state is not None and has_decayed(state))
    return that_decays(module, "flow", log_decay) if decays else module


def _attend(
    module: ModuleType,
    options: FlowOptions,
    queries: tuple[Tensor, ...],
    keys: tuple[Tensor, ...],
    batch: Batch,
    state: FlowState | None,
) -> tuple[Tensor, FlowState | None]:
    offsets: dict[str, Any] = {}
    if batch.cu_seqlens is not None:
        offsets = {"cu_seqlens": batch.cu_seqlens, "cu_seqlens_k": batch.cu_seqlens_k}
    masks = {"query_mask": batch.query_mask, "key_mask": batch.key_mask}
    return module.bidirectional(*queries, *keys, options=options, **masks, **offsets), state


def _attend_causal(
    module: ModuleType,
    options: FlowOptions,
    return_state: bool,
    reverse: bool,
    queries: tuple[Tensor, ...],
    keys: tuple[Tensor, ...],
    batch: Batch,
    state: FlowState | None,
) -> tuple[Tensor, FlowState | None]:
    rest: dict[str, Any] = {"mask": batch.key_mask, "return_state": return_state}
    rest["reverse"] = reverse
    if batch.cu_seqlens is not None:
        rest["cu_seqlens"] = batch.cu_seqlens
    run = partial(module.causal, options=options, state=state, **rest)
    query, key, value, *decay = *queries, *keys
    needed = not module.CONTAINS_NONFINITE or is_kept(query, key, value, *decay, *(state or ()))
    if needed and may_be_spoiled(query, key, value, *decay):
        log_decay = decay[0] if decay else None
        find_seen = partial(seen_from, cu_seqlens=batch.cu_seqlens, reverse=reverse)
        return _attend_contained(run, query, key, value, log_decay, batch, options, find_seen)
    return run(query, key, value, log_decay=decay[0]) if decay else run(query, key, value)


def _attend_contained(
    run: Callable[..., tuple[Tensor, FlowState | None]],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    log_decay: Tensor | None,
    batch: Batch,
    options: FlowOptions,
    find_seen: Callable[[Tensor], tuple[Tensor, Tensor]],
) -> tuple[Tensor, FlowState | None]:
    """Attend so that nothing which is not finite reaches an earlier token; see nonfinite.py."""
    mask = batch.key_mask
    sigmoid = options.feature_map == "sigmoid"  # of an infinity it is finite, and so is relu of -∞
    q, k = (masked(x, mask) if sigmoid else masked(x, mask).relu() for x in (query, key))
    tokens = either(*(spoiled(x, nan_only=sigmoid) for x in (q, k)))
    if log_decay is not None:  # -inf is one that forgets all
        tokens = either(tokens, log_decay.isnan()[..., None])
        run = partial(run, log_decay=without(log_decay, tokens[..., 0]))
    columns = spoiled(masked(value, mask), columns=True)
    flag = either(tokens, columns)
    if batch.cu_seqlens is None and not may_look(query, key, value):
        # A mask is read in passes that there are anyway: whole tokens cost less than zeros in them.
        tokens = flag = flag.any(3, keepdim=True).any(2, keepdim=True)
        lost = flag[:, :, 0, 0]
        out, state = run(query, key, value, mask=~lost if mask is None else mask & ~lost)
    else:
        out, state = run(without(query, tokens), without(key, tokens), without(value, flag))
    seen, sums = find_seen(flag)
    state = stained_state(state, find_seen(tokens)[1])
    if state is not None:
        state = state._replace(key_value=stained(state.key_value, sums[..., None, :]))
    return stained(out, seen, mask), state


@takes_layouts("query", "key", "value", "log_decay")
@spells_out
def flow_attention_step(
    query: Float[Tensor, "b 1 h d"],
    key: Float[Tensor, "b 1 g d"],
    value: Float[Tensor, "b 1 g m"],
    state: FlowState | None,
    *,
    log_decay: Float[Tensor, "b 1 h"] | None = None,
    backend: str | None = None,
    layout: Layout = "bthd",  # noqa: ARG001 - of the tensors; the decorator reads it
    **options: Unpack[FlowKeywords],
) -> tuple[Float[Tensor, "b 1 h m"], FlowState]:
    """Attend with one more token: causal :func:`flow_attention` with l = 1, at constant cost.

    Args:
        query: ``[b, 1, h, d]``.
        key: ``[b, 1, g, d]``, g dividing h.
        value: ``[b, 1, g, m]``.
        state: the state after the earlier tokens, or None for the first one.
        log_decay: ``[b, 1, h]``, at most 0: the logarithm of what is left of the earlier tokens.
        backend: as in :func:`flow_attention`; those in PyTorch share one recurrence.
        layout: as in :func:`flow_attention`. The state is the same in both.
        options: those of :class:`FlowOptions`; no competition over heads, which is not causal.

    Returns:
        ``[b, 1, h, m]`` in the value's dtype, and the state after this token.

    Raises:
        ValueError: more than one token, or what :func:`flow_attention` raises.
        TypeError: the state is no :class:`FlowState`.
        RuntimeError: the backend asked for is not available; the message says why.

    Examples:
        >>> import torch
        >>> from flowformer import flow_attention_step
        >>> state = None
        >>> for _ in range(3):  # a token at a time, at constant cost
        ...     query, key, value = (torch.randn(2, 1, 4, 16) for _ in range(3))
        ...     out, state = flow_attention_step(query, key, value, state)
        >>> out.shape, state.tokens
        (torch.Size([2, 1, 4, 16]), tensor([3, 3]))
    """
    return _step(query, key, value, state, backend, options, log_decay)


_STEPS = PreparedSteps(FlowState)


def _step(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    state: FlowState | None,
    backend: str | None,
    options: Mapping[str, Any],
    log_decay: Tensor | None = None,
) -> tuple[Tensor, FlowState]:
    look = backend, *options.items()
    given = (query, key, value) if log_decay is None else (query, key, value, log_decay)
    if (step := _STEPS.find(look, given, state)) is not None:
        return step(given, state)
    resolved = resolve_options(**options)
    check_causal_options(resolved)
    query, key, value = check_tensors(query, key, value)
    if query.shape[1] != 1 or key.shape[1] != 1:
        raise ValueError(
            f"a step takes one token, got L={query.shape[1]} and S={key.shape[1]}: for more use "
            "flow_attention(causal=True, initial_state=state, return_state=True); tensors whose "
            "heads come first need layout='bhtd'"
        )
    check_state(state, FlowState, query, value, query.shape[0])
    decay = {}
    if log_decay is not None:
        decay["log_decay"] = check_decay(log_decay, query, None, causal=True)
    chosen = choose_backend(backend, query, key, value, *decay.values(), *(state or ()))
    module = _that_decays(chosen, log_decay, state)
    with exact_arithmetic(query):
        out, after = module.step(query, key, value, options=resolved, state=state, **decay)
    if state is not None:  # the chosen one may know this token of a decay, if not many
        _STEPS.keep(look, preparation(chosen, resolved), given, state)
    return out, after


class FlowMap(NamedTuple):
    """The effect of Flow-Attention on each token, as pictures show it.

    Attributes:
        source_competition: c, the weight of each source; 1 is its fair share. ``[b, s, h]``.
        sink_allocation: a, how far each sink is open, between 0 and 1. ``[b, l, h]``.
    """

    source_competition: Float[Tensor, "b s h"]
    sink_allocation: Float[Tensor, "b l h"]


@takes_layouts("query", "key", "log_decay", warns=True)
@spells_out
def flow_map(
    query: Float[Tensor, "b l h d"],
    key: Float[Tensor, "b s g d"],
    *,
    causal: bool = False,
    log_decay: Float[Tensor, "b l h"] | None = None,
    mask: Bool[Tensor, "b l"] | None = None,
    query_mask: Bool[Tensor, "b l"] | None = None,
    key_mask: Bool[Tensor, "b s"] | None = None,
    layout: Layout = "bthd",  # noqa: ARG001 - of the tensors; the decorator reads it
    **options: Unpack[FlowKeywords],
) -> FlowMap:
    """Return source_competition c and sink_allocation a of :func:`flow_attention`.

    Args:
        query: ``[b, l, h, d]``.
        key: ``[b, s, g, d]``, g dividing h.
        causal: whether the sums run up to each token only; c_t is then the weight of source t
            when it arrives.
        log_decay: ``[b, l, h]``, as in :func:`flow_attention`.
        mask: ``[b, l]``, both sides.
        query_mask: ``[b, l]``.
        key_mask: ``[b, s]``.
        layout: as in :func:`flow_attention`; ``"bhtd"`` gives c ``[b, h, s]`` and a ``[b, h, l]``.
        options: those of :class:`FlowOptions`; c = 1 without competition, a = 1 without allocation.

    Returns:
        Both, in float32 (float64 for float64), zero at padded tokens.

    Raises:
        ValueError: as :func:`flow_attention`.
        TypeError: a mask is not boolean.

    Examples:
        >>> import torch
        >>> from flowformer import flow_map
        >>> query, key = torch.randn(2, 100, 4, 16), torch.randn(2, 100, 4, 16)
        >>> competition, allocation = flow_map(query, key)
        >>> competition.shape, competition.mean().round(decimals=3).item()
        (torch.Size([2, 100, 4]), 1.0)
    """
    resolved = resolve_options(**options)
    query, key, _ = check_tensors(query, key)
    query_mask, key_mask = resolve_masks(
        query, key, causal=causal, mask=mask, query_mask=query_mask, key_mask=key_mask
    )
    if log_decay is not None:
        log_decay = check_decay(log_decay, query, query_mask, causal=causal)
    with exact_arithmetic(query):
        q = features(query, query_mask, resolved.feature_map)
        k = features(key, key_mask, resolved.feature_map)
        if causal:
            check_causal(query, key, sums_over_sinks=True)
            check_causal_options(resolved)
            if log_decay is not None:
                refuse_growth(log_decay)
            state = FlowState.initial(q.shape[0], q.shape[2], q.shape[3], 1, q.device)
            _, competed, allocated, _ = reference.conserve_causal(
                q, k, options=resolved, mask=key_mask, state=state, log_decay=log_decay
            )
        else:
            _, competed, allocated = reference.conserve(
                q, k, options=resolved, query_mask=query_mask, key_mask=key_mask
            )
    if key_mask is not None:
        competed = torch.where(key_mask[..., None], competed, 0)
    if query_mask is not None:
        allocated = torch.where(query_mask[..., None], allocated, 0)
    return FlowMap(competed, allocated)
