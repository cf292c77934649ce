"""The compiled kernels of csrc/ as a backend: one fused pass over the tokens, on CPU tensors."""

from flowformer.ops.backends.chunked import linear_bidirectional
from flowformer.ops.backends.cpu.operators import KERNELS, OPERATORS
from flowformer.ops.backends.operator_backend import CompiledBackend

PACKS_SEQUENCES = True
TAKES_HALF = False  # linear products get the dtype of the arithmetic
CONTAINS_NONFINITE = True  # a later token's NaN reaches no earlier output (gradients apart)
DECAYS = ()  # the attentions that take log_decay; chunked computes the others

__all__ = ["bidirectional", "causal", "linear_bidirectional", "linear_causal", "step"]

_backend = CompiledBackend(OPERATORS, direct=KERNELS)
bidirectional, causal, step = _backend.bidirectional, _backend.causal, _backend.step
linear_causal = _backend.linear_causal
