"""The compiled kernels of csrc/ as a backend: one fused pass over the tokens, on CPU tensors."""

from jaxtyping import Float
from torch import Tensor

from flowformer.ops.backends.chunked import linear_bidirectional
from flowformer.ops.backends.compiled import CompiledBackend
from flowformer.ops.backends.cpu.operators import KERNELS, OPERATORS
from flowformer.ops.options import FlowOptions
from flowformer.ops.state import FlowState

PACKS_SEQUENCES = True
TAKES_HALF = False  # linear products get the dtype of the arithmetic
CONTAINS_NONFINITE = True  # a later token's NaN reaches no earlier output (gradients apart)

__all__ = ["bidirectional", "causal", "linear_bidirectional", "linear_causal", "step"]

_backend = CompiledBackend(OPERATORS, direct=KERNELS)
bidirectional, causal = _backend.bidirectional, _backend.causal
linear_causal = _backend.linear_causal


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
