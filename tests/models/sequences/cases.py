"""What the tests of the Long Range Arena's models share."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from flowformer.models.cross_entropy import ClassifierOutput
from flowformer.models.sequences.config import SequenceModelConfig
from flowformer.models.sequences.model import PairClassifier, SequenceClassifier
from flowformer.nn import MIXERS

SMALL = SequenceModelConfig(dim=16, num_heads=4, num_layers=2, feedforward=24, qkv_dim=8)
BIDIRECTIONAL = [name for name, kind in MIXERS.items() if kind.capabilities.bidirectional]


def build(
    vocab_size: int | None = 11, channels: int | None = None, **changes: Any
) -> SequenceClassifier:
    torch.manual_seed(1)
    model = SequenceClassifier(
        replace(SMALL, **changes),
        vocab_size=vocab_size,
        channels=channels,
        num_classes=3,
        max_length=21,
    )
    return model.double().eval()


def build_pair(**changes: Any) -> PairClassifier:
    torch.manual_seed(1)
    config = replace(SMALL, **changes)
    model = PairClassifier(config, vocab_size=11, max_length=21)
    return model.double().eval()


def tokens(*shape: int) -> Tensor:
    return torch.randint(1, 11, shape, generator=torch.Generator().manual_seed(2))


def features(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(2)).double()


def loss_of(output: ClassifierOutput) -> Tensor:
    assert output.loss is not None
    return output.loss


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """Of every parameter; a missing one fails."""
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert [name for name, gradient in found.items() if gradient is None] == []
    return {name: gradient for name, gradient in found.items() if gradient is not None}


def padded(inputs: Tensor, length: int, content: float) -> Tensor:
    """The inputs, then what stands for nothing."""
    longer = inputs.new_full((len(inputs), length, *inputs.shape[2:]), content)
    longer[:, : inputs.shape[1]] = inputs
    return longer
