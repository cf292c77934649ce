"""The time-series classifier of the paper (section 4.5): an encoder over the raw series."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from flowformer.models.cross_entropy import class_cross_entropy
from flowformer.models.inputs import check_labels
from flowformer.models.loading import matched, rename
from flowformer.models.series.config import TimeSeriesModelConfig
from flowformer.nn import FlowMixer, PositionalEmbedding, TransformerBlock, build_mixer
from flowformer.nn.mixers.building import mixer_options
from flowformer.ops import FlowMap
from flowformer.ops.inputs import check_mask


class TimeSeriesOutput(NamedTuple):
    """What the classifier returns: the logits, and the mean cross-entropy if labels were given."""

    logits: Float[Tensor, "b classes"]
    loss: Float[Tensor, ""] | None


def checked_series(
    inputs: Float[Tensor, "b t c"],
    mask: Bool[Tensor, "b t"] | None,
    *,
    channels: int,
    max_length: int | None,
) -> Float[Tensor, "b t c"]:
    """The series with zeros in the padding: NaN in it must not reach the first layer's gradient.

    Raises:
        ValueError: other channels, a series longer than max_length, or a mask of another shape.
        TypeError: a mask that is not boolean.
    """
    if inputs.ndim != 3:
        raise ValueError(f"expected series [batch, time, channel], got shape {list(inputs.shape)}")
    if inputs.shape[2] != channels:
        raise ValueError(f"expected {channels} channels, got {inputs.shape[2]}")
    check_mask("series", mask, inputs)
    if max_length is not None and inputs.shape[1] > max_length:
        raise ValueError(
            f"expected at most {max_length} time steps (max_length), got {inputs.shape[1]}"
        )
    return inputs if mask is None else inputs.masked_fill(~mask.unsqueeze(-1), 0)


class TimeSeriesClassifier(nn.Module):
    """Linear embedding · √dim + positions, blocks, layer norm, GELU, a linear layer over places.

    The published convolutions of width 1 are linear layers here: the same product without
    transposed copies.

    Args:
        config: the architecture.
        channels: features of a time step.
        num_classes: number of logits.
        max_length: longest series; the flattened head has a weight for each of its places.

    Attributes:
        length_limit: longest series that it takes; None for any, where nothing in it is of a place:
            the mean is classified, the positions are sinusoidal, padding is masked, and the mixer
            is of any length.
    """

    def __init__(
        self, config: TimeSeriesModelConfig, *, channels: int, num_classes: int, max_length: int
    ) -> None:
        """Create the layers; a setting that means nothing raises ValueError."""
        super().__init__()
        _check_choice("pooling", config.pooling, ("flatten", "mean"))
        _check_choice("padding", config.padding, ("masked", "published"))
        self.config = config
        self.channels, self.max_length = channels, max_length
        self.num_classes = num_classes
        self.embedding = nn.Linear(channels, config.dim)
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
        return TransformerBlock(
            mixer, config.dim, config.feedforward, norm=config.norm, dropout=config.dropout
        )

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
            ValueError: other channels than at construction, a series longer than length_limit, or
                labels that are none of the classes.
        """
        x, mask = self._embed(inputs, attention_mask)
        if labels is not None:
            check_labels(labels, inputs.shape[:1], self.num_classes)
        for block in self.blocks:
            x = block(x, mask=self._mixing_mask(mask))
        logits = self._classify(self.dropout(F.gelu(self.norm(x))), mask)
        loss = None if labels is None else class_cross_entropy(logits, labels)
        return TimeSeriesOutput(logits, loss)

    @torch.no_grad()
    def flow_maps(
        self,
        inputs: Float[Tensor, "b t c"],
        attention_mask: Bool[Tensor, "b t"] | None = None,
    ) -> list[FlowMap]:
        """The competition of the sources and the allocation of the sinks, one map a layer.

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
        inputs = checked_series(
            inputs,
            mask if self.config.padding == "masked" else None,
            channels=self.channels,
            max_length=self.length_limit,
        )
        if self.config.padding == "published":
            # The amount of padding changes the published attention: it is always the same.
            missing = self.max_length - inputs.shape[1]
            mask = inputs.new_ones(inputs.shape[:2], dtype=torch.bool) if mask is None else mask
            inputs, mask = F.pad(inputs, (0, 0, 0, missing)), F.pad(mask, (0, missing))
        x = self.embedding(inputs) * self.config.dim**0.5
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
        published = rename(state_dict, _PUBLISHED_NAMES)
        if self.config.positions == "sinusoidal":  # a buffer there, computed here
            published.pop("positions.weight", None)
        self.load_state_dict(
            matched(self.state_dict(), published, what="a published time-series model of this size")
        )


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


_PUBLISHED_NAMES = (
    ("project_inp.", "embedding."),
    ("pos_enc.pe", "positions.weight"),
    ("encoder.norm.", "norm."),
    ("encoder.attn_layers.", "blocks."),
    (".attention.", ".mixer."),
    (".conv1.", ".linear1."),
    (".conv2.", ".linear2."),
    ("output_layer.", "head."),
)
