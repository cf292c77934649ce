"""Classifiers of time series: the paper's (section 4.5), and those that it is compared with.

All have the same constructor and the same call. `build_classifier` takes them by the name of their
encoder: transformer, lstm or dilated-conv.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from itertools import pairwise

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from flowformer.models.cross_entropy import ClassifierOutput, classified
from flowformer.models.inputs import last_real
from flowformer.models.published import matched, rename_series
from flowformer.models.series.config import TimeSeriesModelConfig
from flowformer.nn import FlowMixer, PositionalEmbedding, TransformerBlock, build_mixer
from flowformer.nn.mixers.building import mixer_options
from flowformer.ops import FlowMap
from flowformer.ops.inputs import check_mask

KERNEL = 3  # of the dilated convolutions
WIDENING = 4  # of their last block: 160 features from 40 channels, as published
SLOPE = 0.01  # of the leaky ReLU


class SeriesClassifier(nn.Module, ABC):
    """The base of the classifiers of series: their sizes, their call and its checks.

    Args:
        config: the architecture.
        channels: features of a time step.
        num_classes: number of logits.
        max_length: longest series.

    Attributes:
        length_limit: the longest series that it takes; None for any length.
    """

    length_limit: int | None

    def __init__(
        self, config: TimeSeriesModelConfig, *, channels: int, num_classes: int, max_length: int
    ) -> None:
        super().__init__()
        self.config = config
        self.channels, self.max_length = channels, max_length
        self.length_limit = max_length
        self.num_classes = num_classes

    def forward(
        self,
        inputs: Float[Tensor, "b t c"],
        attention_mask: Bool[Tensor, "b t"] | None = None,
        labels: Int[Tensor, " b"] | None = None,
    ) -> ClassifierOutput:
        """Classify the series.

        Args:
            inputs: the series, each from place 0 on.
            attention_mask: real time steps (True); None when all are.
            labels: the classes, for the loss.

        Raises:
            ValueError: other channels than at construction, a series longer than length_limit, or
                labels outside the classes.
        """
        return classified(self._logits(inputs, attention_mask), labels)

    @abstractmethod
    def _logits(
        self, inputs: Float[Tensor, "b t c"], mask: Bool[Tensor, "b t"] | None
    ) -> Float[Tensor, "b classes"]:
        """Return the logits of the series, which are not checked yet."""

    def _checked(
        self, inputs: Float[Tensor, "b t c"], mask: Bool[Tensor, "b t"] | None
    ) -> Float[Tensor, "b t c"]:
        """Return the series with zeros in the padding: NaN there would reach gradients.

        Raises:
            ValueError: other channels, a series longer than length_limit, or a mask of another
                shape.
            TypeError: a mask that is not boolean.
        """
        if inputs.ndim != 3:
            raise ValueError(
                f"expected series [batch, time, channel], got shape {list(inputs.shape)}"
            )
        if inputs.shape[2] != self.channels:
            raise ValueError(f"expected {self.channels} channels, got {inputs.shape[2]}")
        check_mask("the series", mask, inputs)
        if self.length_limit is not None and inputs.shape[1] > self.length_limit:
            raise ValueError(
                f"expected at most {self.length_limit} time steps (max_length), "
                f"got {inputs.shape[1]}"
            )
        return inputs if mask is None else inputs.masked_fill(~mask.unsqueeze(-1), 0)


class TimeSeriesClassifier(SeriesClassifier):
    """Linear embedding · √dim + positions, blocks, layer norm, GELU, a linear layer over places.

    The published convolutions of width 1 are linear layers here: the same product without
    transposed copies. With a `kernel`, the embedding is a convolution over that many steps; zeros
    stand around a series, padded or not.

    Args:
        config: the architecture.
        channels: features of a time step.
        num_classes: number of logits.
        max_length: longest series; the flattened head has a weight for each of its places.

    Attributes:
        length_limit: longest series that it takes; None for any, where nothing in it is of a place:
            the mean is classified, the positions are sinusoidal, padding is masked, and the mixer
            is of any length.

    Examples:
        >>> import torch
        >>> from flowformer.models import TimeSeriesClassifier, TimeSeriesModelConfig
        >>> config = TimeSeriesModelConfig(dim=16, num_heads=2, feedforward=32)
        >>> model = TimeSeriesClassifier(config, channels=3, num_classes=2, max_length=50)
        >>> logits, loss = model(torch.randn(4, 50, 3), labels=torch.tensor([0, 1, 1, 0]))
        >>> logits.shape
        torch.Size([4, 2])
    """

    def __init__(
        self, config: TimeSeriesModelConfig, *, channels: int, num_classes: int, max_length: int
    ) -> None:
        """Create the layers.

        Raises:
            ValueError: an unknown mixer, kind of positions or norm, or an option that does not fit.
            NotImplementedError: the mixer has no bidirectional form.
        """
        super().__init__(config, channels=channels, num_classes=num_classes, max_length=max_length)
        self.embedding: nn.Linear | nn.Conv1d = nn.Linear(channels, config.dim)
        if config.kernel > 1:
            self.embedding = nn.Conv1d(
                channels, config.dim, config.kernel, padding=config.kernel // 2
            )
        self.positions = PositionalEmbedding(
            config.positions, dim=config.dim, max_length=max_length
        )
        blocks = [self._block() for _ in range(config.num_layers)]
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(config.dim)
        self.dropout = nn.Dropout(config.dropout)
        places = max_length if config.pooling == "flatten" else 1
        self.head = nn.Linear(places * config.dim, num_classes)
        placeless = (config.pooling, config.padding) == ("mean", "masked")
        placeless = placeless and config.positions != "learned"
        variable = all(block.mixer.capabilities.variable_length for block in blocks)
        self.length_limit = None if placeless and variable else max_length

    def _block(self) -> TransformerBlock:
        config = self.config
        options = {"max_length": self.max_length, **mixer_options(config, "series")}
        mixer = build_mixer(config.mixer, config.dim, config.num_heads, **options)
        mixer.attention.require("bidirectional")
        return TransformerBlock(
            mixer, config.dim, config.feedforward, norm=config.norm, dropout=config.dropout
        )

    def _logits(
        self, inputs: Float[Tensor, "b t c"], mask: Bool[Tensor, "b t"] | None
    ) -> Float[Tensor, "b classes"]:
        x, mask = self._embed(inputs, mask)
        for block in self.blocks:
            x = block(x, mask=self._mixing_mask(mask))
        return self._classify(self.dropout(F.gelu(self.norm(x))), mask)

    @torch.no_grad()
    def flow_maps(
        self,
        inputs: Float[Tensor, "b t c"],
        attention_mask: Bool[Tensor, "b t"] | None = None,
    ) -> list[FlowMap]:
        """Return the competition of the sources and the allocation of the sinks, one map a layer.

        Raises:
            TypeError: the mixer is not Flow-Attention.
        """
        x, mask = self._embed(inputs, attention_mask)
        maps = []
        for block in self.blocks:
            assert isinstance(block, TransformerBlock)
            if not isinstance(block.mixer, FlowMixer):
                raise TypeError(
                    f"flow maps exist for the mixer 'flow', this model has {self.config.mixer!r}"
                )
            mixed = block.norm1(x) if block.norm == "pre" else x
            maps.append(block.mixer.flow_map(mixed, mask=self._mixing_mask(mask)))
            x = block(x, mask=self._mixing_mask(mask))
        return maps

    def _embed(
        self, inputs: Float[Tensor, "b t c"], mask: Bool[Tensor, "b t"] | None
    ) -> tuple[Float[Tensor, "b n dim"], Bool[Tensor, "b n"] | None]:
        inputs = self._checked(inputs, self._mixing_mask(mask))
        if self.config.padding == "published":
            # The amount of padding changes the published attention: it is always the same.
            missing = self.max_length - inputs.shape[1]
            mask = inputs.new_ones(inputs.shape[:2], dtype=torch.bool) if mask is None else mask
            inputs, mask = F.pad(inputs, (0, 0, 0, missing)), F.pad(mask, (0, missing))
        if self.config.kernel > 1:
            x = self.embedding(inputs.transpose(1, 2)).transpose(1, 2)
        else:
            x = self.embedding(inputs)
        x = x * self.config.dim**0.5
        return self.dropout(self.positions(x)), mask

    def _mixing_mask(self, mask: Bool[Tensor, "b t"] | None) -> Bool[Tensor, "b t"] | None:
        return mask if self.config.padding == "masked" else None

    def _classify(
        self, x: Float[Tensor, "b t dim"], mask: Bool[Tensor, "b t"] | None
    ) -> Float[Tensor, "b classes"]:
        if mask is not None:
            x = x.masked_fill(~mask.unsqueeze(-1), 0)
        if self.config.pooling == "mean":
            count = x.shape[1] if mask is None else mask.sum(1, keepdim=True).clamp(min=1)
            return self.head(x.sum(1) / count)
        return self.head(F.pad(x, (0, 0, 0, self.max_length - x.shape[1])).flatten(1))

    def load_published_state_dict(self, state_dict: Mapping[str, Tensor]) -> None:
        """Load the parameters of the published `FlowformerClassiregressor` (thuml/Flowformer).

        Build the model with `padding="published"` to get the published numbers too.

        Raises:
            ValueError: parameters are missing, left over, or of another shape; all are listed.
        """
        if self.config.pooling != "flatten":
            raise ValueError(
                f"the published model has pooling='flatten', got {self.config.pooling!r}"
            )
        published = rename_series(state_dict)
        if self.config.positions == "sinusoidal":  # a buffer there, computed here
            published.pop("positions.weight", None)
        self.load_state_dict(
            matched(self, published, what="a published time-series model of this size")
        )


class LSTMClassifier(SeriesClassifier):
    """Stacked LSTM layers over the raw series; a linear layer reads the last real time step.

    It is the recurrent one of the paper's table (Hochreiter and Schmidhuber, 1997). Of the
    configuration it reads `dim` (width of the state), `num_layers` and `dropout` (between the
    layers, and before the last). Its arguments are those of `SeriesClassifier`.
    """

    def __init__(
        self, config: TimeSeriesModelConfig, *, channels: int, num_classes: int, max_length: int
    ) -> None:
        super().__init__(config, channels=channels, num_classes=num_classes, max_length=max_length)
        # torch warns of dropout between layers where there is one layer.
        between = config.dropout if config.num_layers > 1 else 0.0
        self.lstm = nn.LSTM(
            channels, config.dim, config.num_layers, batch_first=True, dropout=between
        )
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(config.dim, num_classes)

    def _logits(
        self, inputs: Float[Tensor, "b t c"], mask: Bool[Tensor, "b t"] | None
    ) -> Float[Tensor, "b classes"]:
        states, _ = self.lstm(self._checked(inputs, mask))
        return self.head(self.dropout(last_real(states, mask)))


class CausalConvolution(nn.Module):
    """A weight-normalised convolution that reads the time step itself and earlier ones.

    Args:
        inputs: channels that it reads.
        outputs: channels that it gives.
        dilation: time steps from one that it reads to the next.
    """

    def __init__(self, inputs: int, outputs: int, dilation: int) -> None:
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
        dilation: the dilation of both convolutions.
    """

    def __init__(self, inputs: int, outputs: int, dilation: int) -> None:
        super().__init__()
        self.first = CausalConvolution(inputs, outputs, dilation)
        self.second = CausalConvolution(outputs, outputs, dilation)
        self.shortcut = nn.Identity() if inputs == outputs else nn.Conv1d(inputs, outputs, 1)

    def forward(self, x: Float[Tensor, "b c t"]) -> Float[Tensor, "b d t"]:
        """Filter the series."""
        filtered = F.leaky_relu(self.first(x), SLOPE)
        return F.leaky_relu(self.second(filtered), SLOPE) + self.shortcut(x)


class DilatedConvClassifier(SeriesClassifier):
    """Causal convolutions with doubling dilation, the maximum over time, a linear layer.

    It is the convolutional one of the paper's table (Franceschi et al., 2019). The published
    encoder is trained by a contrastive loss and read by a support vector machine; here it is
    trained on the labels, as the paper compares it, and its last linear layer gives the logits. Of
    the configuration it reads `dim` (channels), `num_layers` (blocks before the last, which has
    four times the channels) and `dropout` (before the last layer). Published are 40 channels and
    10 blocks. Its arguments are those of `SeriesClassifier`.
    """

    def __init__(
        self, config: TimeSeriesModelConfig, *, channels: int, num_classes: int, max_length: int
    ) -> None:
        super().__init__(config, channels=channels, num_classes=num_classes, max_length=max_length)
        widths = [channels, *[config.dim] * config.num_layers, WIDENING * config.dim]
        self.blocks = nn.Sequential(
            *(
                DilatedBlock(inputs, outputs, 2**depth)
                for depth, (inputs, outputs) in enumerate(pairwise(widths))
            )
        )
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(widths[-1], num_classes)

    def _logits(
        self, inputs: Float[Tensor, "b t c"], mask: Bool[Tensor, "b t"] | None
    ) -> Float[Tensor, "b classes"]:
        features = self.blocks(self._checked(inputs, mask).transpose(1, 2))
        if mask is not None:
            lowest = torch.finfo(features.dtype).min
            features = features.masked_fill(~mask[:, None, :], lowest)
        return self.head(self.dropout(features.amax(dim=2)))


ENCODERS: dict[str, type[SeriesClassifier]] = {
    "transformer": TimeSeriesClassifier,
    "lstm": LSTMClassifier,
    "dilated-conv": DilatedConvClassifier,
}


def build_classifier(
    config: TimeSeriesModelConfig, *, channels: int, num_classes: int, max_length: int
) -> SeriesClassifier:
    """Create the classifier with the encoder that the configuration names.

    Args:
        config: the architecture.
        channels: features of a time step.
        num_classes: number of logits.
        max_length: longest series.

    Raises:
        ValueError: there is no such encoder, or an option that it does not have.

    Examples:
        >>> from flowformer.models import TimeSeriesModelConfig, build_classifier
        >>> config = TimeSeriesModelConfig(encoder="lstm", dim=16)
        >>> model = build_classifier(config, channels=3, num_classes=2, max_length=50)
        >>> type(model).__name__
        'LSTMClassifier'
    """
    if config.encoder not in ENCODERS:
        raise ValueError(
            f"unknown encoder {config.encoder!r}: expected one of {', '.join(ENCODERS)}"
        )
    return ENCODERS[config.encoder](
        config, channels=channels, num_classes=num_classes, max_length=max_length
    )
