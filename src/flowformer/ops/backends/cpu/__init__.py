"""The compiled kernels of csrc/ as a backend: one fused pass over the tokens, on CPU tensors."""

from flowformer.ops.backends.cpu.operators import KERNELS, OPERATORS
from flowformer.ops.backends.operator_backend import CompiledBackend

PACKS_SEQUENCES = True
TAKES_HALF = True  # linear products too: sums and the row scale are float32 inside
CONTAINS_NONFINITE = True  # a later token's NaN reaches no earlier output (gradients apart)

__all__ = ["bidirectional", "causal", "linear_bidirectional", "linear_causal", "mobile", "step"]

_backend = CompiledBackend(OPERATORS, direct=KERNELS)
bidirectional, causal, step = _backend.bidirectional, _backend.causal, _backend.step
linear_bidirectional, linear_causal = _backend.linear_bidirectional, _backend.linear_causal
mobile = _backend.mobile
