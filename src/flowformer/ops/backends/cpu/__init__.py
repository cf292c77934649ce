"""The compiled kernels of csrc/ as a backend: one fused pass over the tokens, on CPU tensors.

Packed sequences need no padding here. Where no past is given a state is not needed either: None
stands for it, and no memory is set to zero for it.
"""

from typing import Any

from jaxtyping import Bool, Float, Int
from torch import Tensor

from flowformer.ops.backends.chunked import linear_bidirectional
from flowformer.ops.backends.cpu.operators import OPERATORS, causal_kernel
from flowformer.ops.backends.operators import CAUSAL_TENSORS, LINEAR_OPTIONS, is_kept, numbers
from flowformer.ops.inputs import is_plain
from flowformer.ops.options import FlowOptions
from flowformer.ops.state import FlowState, LinearState

PACKS_SEQUENCES = True
TAKES_HALF = False  # linear products get the dtype of the arithmetic
CONTAINS_NONFINITE = True  # a later token's NaN reaches no earlier output (gradients apart)

__all__ = ["bidirectional", "causal", "linear_bidirectional", "linear_causal", "step"]


def bidirectional(
    query: Float[Tensor, "b l h d"],
    key: Float[Tensor, "b s h d"],
    value: Float[Tensor, "b s h m"],
    *,
    options: FlowOptions,
    query_mask: Bool[Tensor, "b l"] | None,
    key_mask: Bool[Tensor, "b s"] | None,
    cu_seqlens: Int[Tensor, " n"] | None = None,
    cu_seqlens_k: Int[Tensor, " n"] | None = None,
) -> Float[Tensor, "b l h m"]:
    """Flow-Attention."""
    keep = is_kept(query, key, value)
    masks = query_mask, key_mask, cu_seqlens, cu_seqlens_k
    return OPERATORS.bidirectional(query, key, value, *masks, *numbers(options), keep)[0]


def causal(
    query: Float[Tensor, "b t h d"],
    key: Float[Tensor, "b t h d"],
    value: Float[Tensor, "b t h m"],
    *,
    options: FlowOptions,
    mask: Bool[Tensor, "b t"] | None,
    state: FlowState | None,
    return_state: bool = True,
    cu_seqlens: Int[Tensor, " n"] | None = None,
) -> tuple[Float[Tensor, "b t h m"], FlowState | None]:
    """Causal Flow-Attention."""
    before = state or (None,) * 7
    keep = is_kept(query, key, value, *before)
    rest = (mask, cu_seqlens, None, *before, *numbers(options), keep, return_state)
    out, *fields = _causal(keep, query, key, value, *rest)
    if not return_state:
        return out, None
    after = FlowState(*fields[:7])
    if options.competition is None and state is not None:  # it passes by
        after = after._replace(competition=state.competition)
    return out, after


def step(
    query: Float[Tensor, "b 1 h d"],
    key: Float[Tensor, "b 1 h d"],
    value: Float[Tensor, "b 1 h m"],
    *,
    options: FlowOptions,
    state: FlowState | None,
) -> tuple[Float[Tensor, "b 1 h m"], FlowState]:
    """One token of causal Flow-Attention."""
    out, after = causal(query, key, value, options=options, mask=None, state=state)
    assert after is not None
    return out, after


def linear_causal(
    q: Float[Tensor, "b t h d"],
    k: Float[Tensor, "b t h d"],
    v: Float[Tensor, "b t h m"],
    *,
    row_scale: Float[Tensor, "b t h"] | None,
    state: LinearState | None,
    return_state: bool = True,
    cu_seqlens: Int[Tensor, " n"] | None = None,
) -> tuple[Float[Tensor, "b t h m"], LinearState | None]:
    """out_t = row_scale_t · q_t Σ_{s≤t} k_sᵀ v_s, in the dtype of the features."""
    key_value = None if state is None else state.key_value
    keep = is_kept(q, k, v, row_scale, key_value)
    rest = (None, cu_seqlens, row_scale, *(None,) * 6, key_value, *LINEAR_OPTIONS)
    out, *fields = _causal(keep, q, k, v, *rest, keep, return_state)
    return out, LinearState(fields[6]) if return_state else None


def _causal(keep: bool, *arguments: Any) -> tuple[Tensor, ...]:
    """Call the operator, or its function where no gradient, graph or mode has to see it.

    What torch does around an operator written in Python takes as long as the kernel does in a
    decoding step, which is where this matters.
    """
    direct = not keep and is_plain(*arguments[:CAUSAL_TENSORS])
    return (causal_kernel if direct else OPERATORS.causal)(*arguments)
