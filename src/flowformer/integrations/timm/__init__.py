"""Flowformer in timm: `timm.create_model("flowformer_hierarchical", ...)`.

Importing this package registers the models with timm.
"""

try:
    import timm as _timm  # noqa: F401 - what the modules below are made of
except ImportError as error:
    raise ImportError(
        "timm is needed for these models: pip install 'flowformer[vision]'"
    ) from error

from flowformer.integrations.timm.modeling import FlowformerImageModel
from flowformer.integrations.timm.registry import (
    flowformer_deit_base,
    flowformer_deit_small,
    flowformer_deit_tiny,
    flowformer_gated_deit_base,
    flowformer_gated_deit_small,
    flowformer_gated_deit_tiny,
    flowformer_gated_hierarchical,
    flowformer_hierarchical,
)

__all__ = [
    "FlowformerImageModel",
    "flowformer_deit_base",
    "flowformer_deit_small",
    "flowformer_deit_tiny",
    "flowformer_gated_deit_base",
    "flowformer_gated_deit_small",
    "flowformer_gated_deit_tiny",
    "flowformer_gated_hierarchical",
    "flowformer_hierarchical",
]
