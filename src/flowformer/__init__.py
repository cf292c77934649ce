"""Flow-Attention: attention with linear cost, exact, for PyTorch.

The public surface: ``flow_attention`` and its relatives. Layers are in ``flowformer.nn``, models
in ``flowformer.models``, data in ``flowformer.data``, training in ``flowformer.train`` and
``flowformer.recipes``.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flowformer.ops import (
        ConvolutionState,
        FlowMap,
        FlowState,
        LinearState,
        flow_attention,
        flow_attention_step,
        flow_map,
        linear_attention,
        mobile_attention,
        short_convolution,
        states_in_place,
    )

__version__ = "0.1.0"  # the one place: pyproject.toml reads it from here

__all__ = [
    "ConvolutionState",
    "FlowMap",
    "FlowState",
    "LinearState",
    "__version__",
    "flow_attention",
    "flow_attention_step",
    "flow_map",
    "linear_attention",
    "mobile_attention",
    "short_convolution",
    "states_in_place",
]


def __getattr__(name: str) -> object:
    """Import the operators on first use: the command line starts without torch."""
    if name in __all__:
        from flowformer import ops

        return getattr(ops, name)
    raise AttributeError(f"module 'flowformer' has no attribute {name!r}")
