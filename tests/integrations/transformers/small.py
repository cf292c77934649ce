"""A small model and two sequences, for all tests of this folder."""

from typing import Any

import torch
from torch import Tensor, nn

from flowformer.integrations.transformers import FlowformerConfig
from flowformer.integrations.transformers.cache import CACHE

PAD = 0
TOKENS = torch.tensor([[3, 1, 4, 1, 5, 9, 2], [6, 5, 3, 5, 8, 9, 7]])
RIGHT = torch.tensor([[1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0, 0]])
LEFT = RIGHT.flip(1)
BART: dict[str, Any] = {
    "vocab_size": 31,
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
}


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


def undecided(model: nn.Module) -> Any:
    """The model with matrices so large that its next token is no foregone conclusion."""
    with torch.no_grad():
        for each in model.parameters():
            if each.ndim > 1:
                each.normal_(std=0.4)
    return model.double().eval()


def generate(model: Any, prompt: Tensor = TOKENS, **options: Any) -> Tensor:
    torch.manual_seed(5)
    return model.generate(prompt, **{"max_new_tokens": 9, "pad_token_id": PAD, **options})


def cache_of_sixty_steps(model: Any) -> Any:
    """The cache after sixty tokens, whose scores are those of the forward pass."""
    out = model.generate(
        TOKENS,
        max_new_tokens=60,
        do_sample=False,
        pad_token_id=PAD,
        output_logits=True,
        return_dict_in_generate=True,
    )
    expected = model(out.sequences[:, :-1]).logits[:, 6:]
    # generate hands its scores out in float32.
    torch.testing.assert_close(torch.stack(out.logits, 1), expected.float())
    assert cache_of(out).get_seq_length() == 66
    return cache_of(out)


def cache_of(out: Any) -> Any:
    """The cache of an output, by the name that this release has for it."""
    return getattr(out, CACHE)
