"""A small model and two sequences, for all tests of this folder."""

from typing import Any

import torch

from flowformer.integrations.transformers import FlowformerConfig
from flowformer.integrations.transformers.cache import CACHE

PAD = 0
TOKENS = torch.tensor([[3, 1, 4, 1, 5, 9, 2], [6, 5, 3, 5, 8, 9, 7]])
RIGHT = torch.tensor([[1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0, 0]])
LEFT = RIGHT.flip(1)


def small(**changes: Any) -> FlowformerConfig:
    """A configuration of some thousand parameters."""
    settings: dict[str, Any] = {
        "vocab_size": 31,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 40,
        **changes,
    }
    return FlowformerConfig(**settings)


def cache_of(out: Any) -> Any:
    """The cache of an output, by the name that this release has for it."""
    return getattr(out, CACHE)
