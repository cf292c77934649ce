"""The compiled kernels of csrc/ as a backend: one fused pass over the tokens, on CPU tensors."""

from flowformer.ops.backends.arguments import LINEAR_OPTIONS, numbers
from flowformer.ops.backends.cpu import call, convolution
from flowformer.ops.backends.cpu.operators import OPERATORS
from flowformer.ops.backends.operator_backend import CompiledBackend
from flowformer.ops.options import FlowOptions
from flowformer.ops.state import FlowState, LinearState
from flowformer.ops.steps import Inputs, Step

PACKS_SEQUENCES = True
TAKES_HALF = True  # linear products too: sums and the row scale are float32 inside
CONTAINS_NONFINITE = True  # a later token's NaN reaches no earlier output (gradients apart)
# The attentions that take log_decay; chunked computes the others, but for the steps of flows that
# are prepared.
DECAYS = ("linear",)

__all__ = [
    "bidirectional",
    "causal",
    "linear_bidirectional",
    "linear_causal",
    "mobile",
    "prepare_convolution",
    "prepare_step",
    "short_convolution",
    "step",
]

_backend = CompiledBackend(OPERATORS)
bidirectional, causal, step = _backend.bidirectional, _backend.causal, _backend.step
linear_bidirectional, linear_causal = _backend.linear_bidirectional, _backend.linear_causal
mobile = _backend.mobile
short_convolution, prepare_convolution = convolution.short_convolution, convolution.prepare_step


def prepare_step(
    inputs: Inputs, state: FlowState | LinearState, *, options: FlowOptions | None
) -> Step | None:
    """Return one step of Flow-Attention, or of linear attention (no options), see steps.py."""
    given = LINEAR_OPTIONS if options is None else numbers(options)
    return call.prepare_step(inputs, state, given)
