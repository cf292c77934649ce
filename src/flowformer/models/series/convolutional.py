"""The dilated-convolution classifier of the paper's time-series table (Franceschi et al., 2019)."""

from itertools import pairwise

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from flowformer.models.cross_entropy import class_cross_entropy
from flowformer.models.inputs import check_labels
from flowformer.models.series.config import TimeSeriesModelConfig
from flowformer.models.series.transformer import TimeSeriesOutput, checked_series

KERNEL = 3
WIDENING = 4  # of the last block: 160 features from 40 channels, as published
SLOPE = 0.01  # of the leaky ReLU


class CausalConvolution(nn.Module):
    """A weight-normalised convolution that reads the time step itself and earlier ones.

    Args:
        inputs: channels that it reads.
        outputs: channels that it gives.
        dilation: time steps from one that it reads to the next.
    """

    def __init__(self, inputs: int, outputs: int, dilation: int) -> None:
        """Create the filters."""
        super().__init__()
        self.missing = (KERNEL - 1) * dilation
        self.filters = nn.Conv1d(inputs, outputs, KERNEL, dilation=dilation)
        weight_norm(self.filters)

    def forward(self, x: Float[Tensor, "b c t"]) -> Float[Tensor, "b d t"]:
        """Filter the series; zeros stand before it."""
        return self.filters(F.pad(x, (self.missing, 0)))


class DilatedBlock(nn.Module):
    """Two causal convolutions with leaky ReLU, and the input added.

    Args:
        inputs: channels that it reads.
        outputs: channels that it gives.
        dilation: of both convolutions.
    """

    def __init__(self, inputs: int, outputs: int, dilation: int) -> None:
        """Create the convolutions."""
        super().__init__()
        self.first = CausalConvolution(inputs, outputs, dilation)
        self.second = CausalConvolution(outputs, outputs, dilation)
        self.shortcut = nn.Identity() if inputs == outputs else nn.Conv1d(inputs, outputs, 1)

    def forward(self, x: Float[Tensor, "b c t"]) -> Float[Tensor, "b d t"]:
        """Filter the series."""
        filtered = F.leaky_relu(self.first(x), SLOPE)
        return F.leaky_relu(self.second(filtered), SLOPE) + self.shortcut(x)


class DilatedConvClassifier(nn.Module):
    """Causal convolutions with doubling dilation, the maximum over time, a linear layer.

    The published encoder is trained by a contrastive loss and read by a support vector machine; it
    is trained on the labels here, as the paper compares it, and its last linear layer is the one
    that gives the logits. Of the configuration it reads `dim` (channels), `num_layers` (blocks
    before the last, which has four times the channels) and `dropout` (before the last layer).
    Published are 40 channels and 10 blocks.

    Args:
        config: the architecture.
        channels: features of a time step.
        num_classes: number of logits.
        max_length: longest series.
    """

    def __init__(
        self, config: TimeSeriesModelConfig, *, channels: int, num_classes: int, max_length: int
    ) -> None:
        """Create the layers."""
        super().__init__()
        self.config = config
        self.channels, self.max_length = channels, max_length
        self.length_limit: int | None = max_length
        self.num_classes = num_classes
        widths = [channels, *[config.dim] * config.num_layers, WIDENING * config.dim]
        self.blocks = nn.Sequential(
            *(
                DilatedBlock(inputs, outputs, 2**depth)
                for depth, (inputs, outputs) in enumerate(pairwise(widths))
            )
        )
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(widths[-1], num_classes)

    def forward(
        self,
        inputs: Float[Tensor, "b t c"],
        attention_mask: Bool[Tensor, "b t"] | None = None,
        labels: Int[Tensor, " b"] | None = None,
    ) -> TimeSeriesOutput:
        """Classify the series.

        Args:
            inputs: the series, each from place 0 on.
            attention_mask: real time steps (True); None when all are.
            labels: the classes, for the loss.

        Raises:
            ValueError: other channels than at construction, a series longer than max_length, or
                labels that are none of the classes.
        """
        inputs = checked_series(
            inputs, attention_mask, channels=self.channels, max_length=self.length_limit
        )
        if labels is not None:
            check_labels(labels, inputs.shape[:1], self.num_classes)
        features = self.blocks(inputs.transpose(1, 2))
        if attention_mask is not None:
            lowest = torch.finfo(features.dtype).min
            features = features.masked_fill(~attention_mask[:, None, :], lowest)
        logits = self.head(self.dropout(features.amax(dim=2)))
        loss = None if labels is None else class_cross_entropy(logits, labels)
        return TimeSeriesOutput(logits, loss)
