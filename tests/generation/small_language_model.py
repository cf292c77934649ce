"""Small language models with random parameters, in float64."""

import torch
from torch import Tensor

from flowformer.models.language.config import LanguageModelConfig
from flowformer.models.language.model import LanguageModel
from flowformer.nn import MIXERS
from tests.conformance.cases import CASES, Case

VOCABULARY, LONGEST = 11, 64

CAUSAL = [name for name, kind in MIXERS.items() if kind.capabilities.causal]
STATEFUL = [name for name in CAUSAL if MIXERS[name].capabilities.state]
STATELESS = [name for name in CAUSAL if name not in STATEFUL]


def build(mixer: str = "flow", *, seed: int = 1, positions: str = "sinusoidal") -> LanguageModel:
    """A model whose next tokens depend on what came before: its weights are larger than usual."""
    config = LanguageModelConfig(
        mixer=mixer,
        mixer_options=dict(CASES.get(mixer, Case()).options),
        dim=24,
        num_heads=3,
        num_layers=2,
        feedforward=48,
        max_length=LONGEST,
        positions=positions,  # type: ignore[arg-type] - any string here, checked by the configuration
        tie_embeddings=False,
        scale_embeddings=False,
        initialization="gpt2",
    )
    torch.manual_seed(seed)
    model = LanguageModel(config, vocab_size=VOCABULARY).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(5)
    return model


def draw_ids(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, VOCABULARY, shape, generator=generator)
