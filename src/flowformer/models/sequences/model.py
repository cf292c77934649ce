"""The Long Range Arena's models (Tay et al. 2021): classifiers of one long sequence or of two."""

from abc import ABC, abstractmethod
from itertools import pairwise
from typing import Any, Required, TypedDict, Unpack

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import DeviceMesh
from torch.nn import functional as F

from flowformer.models.cross_entropy import ClassifierOutput, classified
from flowformer.models.inputs import SequenceShards, check_mask, check_range, check_tokens
from flowformer.models.sequences.config import SequenceModelConfig
from flowformer.names import require_positive
from flowformer.nn import (
    PositionalEmbedding,
    TransformerBlock,
    build_mixer,
    set_sequence_parallel,
)
from flowformer.nn.mixers.building import mixer_options
from flowformer.ops.inputs import has_values

PADDING = 0  # padding; no real token has this id


class SequenceEncoder(nn.Module):
    """An encoder of tokens or features as one vector: embedding, blocks, layer norm, pooling.

    Padding takes no part: neither its content nor its amount changes the vector. With
    `padding="published"` every sequence is filled up to `max_length` with the token 0, or zeros,
    and all of it takes part in the attention and in the mean, as in the published code.

    Args:
        config: the architecture.
        vocab_size: number of tokens, that of padding (0) included; None for continuous input.
        channels: features of a place of continuous input; None for tokens.
        max_length: longest sequence.
    """

    def __init__(
        self,
        config: SequenceModelConfig,
        *,
        vocab_size: int | None,
        channels: int | None,
        max_length: int,
    ) -> None:
        """Create the layers and draw them as the published code does.

        Raises:
            ValueError: neither or both of vocab_size and channels, a size below 1, or an unknown
                mixer or option.
            NotImplementedError: the mixer has no bidirectional form.
        """
        super().__init__()
        require_positive(max_length=max_length)
        self.config = config
        self.vocab_size, self.channels = vocab_size, channels
        self.max_length = max_length
        self.embedding = _build_embedding(config.dim, vocab_size=vocab_size, channels=channels)
        self.cls = nn.Parameter(torch.zeros(config.dim)) if config.pooling == "cls" else None
        places = max_length + (self.cls is not None)
        self.positions = None
        if config.positions != "none":
            self.positions = PositionalEmbedding(
                config.positions, dim=config.dim, max_length=places
            )
            if config.positions == "learned":
                nn.init.normal_(self.positions.weight, std=0.02)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(_build_block(config, places) for _ in range(config.num_layers))
        self.norm = nn.LayerNorm(config.dim)
        self.shards: SequenceShards | None = None

    def forward(
        self,
        inputs: Int[Tensor, "b t"] | Float[Tensor, "b t c"],
        attention_mask: Bool[Tensor, "b t"] | None = None,
    ) -> Float[Tensor, "b dim"]:
        """Encode each sequence as one vector.

        Args:
            inputs: tokens, or features; each sequence from place 0 on.
            attention_mask: real places (True). None for those whose token is not 0, and with
                features for all. A row may have none: its vector is that of an empty sequence.

        Raises:
            ValueError: inputs of the other kind, of other channels, longer than max_length or
                empty, a mask of another shape; and, seen on the CPU only (looking would make other
                devices wait), a token outside the vocabulary or a row that begins with padding.
        """
        inputs, mask = self._checked(inputs, attention_mask)
        first = self.shards is None or self.shards.rank == 0
        if self.config.padding == "published":
            missing = self.max_length - inputs.shape[1]
            inputs = F.pad(inputs, (0, 0) * (inputs.ndim - 2) + (0, missing), value=PADDING)
            mask = None
        x = self.embedding(inputs)
        if self.cls is not None:  # on a later rank without a token, but in its graph of gradients
            x = torch.cat((self.cls.expand(x.shape[0], 1, -1)[:, : int(first)], x), dim=1)
            mask = None if mask is None else F.pad(mask, (int(first), 0), value=True)
        if self.positions is not None:
            x = self.positions(x, self._places(x))
        x = self.dropout(x)
        for block in self.blocks:
            x = block(x, mask=mask)
        x = self.norm(x)
        if mask is not None:
            x = x.masked_fill(~mask.unsqueeze(-1), 0)
        return self._pool(x, mask)

    def set_sequence_parallel(self, mesh: DeviceMesh | ProcessGroup | None) -> None:
        """Take each rank's places as its part of longer sequences, in the order of the ranks.

        Every rank of that dimension of a mesh (or of the group) gets the vectors of whole
        sequences, and the gradient of a loss is the mean of the ranks' gradients, as DDP and FSDP
        take it. That each sequence begins at place 0 is not checked. None ends it.

        Raises:
            NotImplementedError: another mixer than Flow-Attention.
            ValueError: the padding is the published one, which fills each call up.
        """
        if mesh is not None and self.config.padding == "published":
            raise ValueError(
                "sequences that are sharded over ranks need padding='masked', got 'published'"
            )
        set_sequence_parallel(self, mesh)
        self.shards = None if mesh is None else SequenceShards(mesh)

    def _places(self, x: Float[Tensor, "b t dim"]) -> Int[Tensor, "1 t"] | None:
        """Return the places of this rank's part; None for those from 0 on."""
        if self.shards is None:
            return None
        before = sum(self.shards.lengths(x)[: self.shards.rank])
        return torch.arange(before, before + x.shape[1], device=x.device)[None]

    def _pool(
        self, x: Float[Tensor, "b t dim"], mask: Bool[Tensor, "b t"] | None
    ) -> Float[Tensor, "b dim"]:
        """Return the first vector, or the mean of the real ones, over all ranks that share them."""
        if self.config.pooling != "mean":
            return x[:, 0] if self.shards is None else self.shards.first(x)
        total = x.sum(1)
        count = (
            torch.full_like(x[:, :1, 0], x.shape[1]) if mask is None else mask.sum(1, keepdim=True)
        )
        if self.shards is not None:
            total, count = self.shards.sum(total), self.shards.total(count)
        return total / count.clamp(min=1)

    def _checked(
        self, inputs: Tensor, mask: Bool[Tensor, "b t"] | None
    ) -> tuple[Tensor, Bool[Tensor, "b t"] | None]:
        """Return the inputs, with zeros in the padding, and the mask; see `forward`."""
        if self.channels is None:
            check_tokens(inputs, "tokens")
            mask = inputs != PADDING if mask is None else mask
        else:
            _check_features(inputs, channels=self.channels)
        length = inputs.shape[1]
        if self.shards is not None:
            length = sum(self.shards.lengths(inputs))
        if not 1 <= length <= self.max_length:
            raise ValueError(f"expected 1 to {self.max_length} places (max_length), got {length}")
        if mask is None:
            return inputs, None
        check_mask(mask, inputs.shape[:2], of="place")
        # NaN there would reach the gradient of the first layer, any number the table of tokens.
        inputs = inputs.masked_fill(~(mask if inputs.ndim == 2 else mask.unsqueeze(-1)), PADDING)
        if self.vocab_size is not None:
            check_range("token", inputs, self.vocab_size, of="vocabulary")
        self._check_starts(mask)
        return inputs, mask

    def _check_starts(self, mask: Bool[Tensor, "b t"]) -> None:
        if self.shards is not None or mask.device.type != "cpu" or not has_values(mask):
            return
        if bool((mask.any(1) & ~mask[:, 0]).any()):
            raise ValueError(
                "each sequence must begin at place 0, got one with padding before it: pad at the "
                "right"
            )


class _Sizes(TypedDict, total=False):
    vocab_size: int | None
    channels: int | None
    max_length: Required[int]


class _EncodedClassifier(nn.Module, ABC):
    def __init__(
        self,
        config: SequenceModelConfig,
        *,
        vocab_size: int | None = None,
        channels: int | None = None,
        num_classes: int,
        max_length: int,
    ) -> None:
        super().__init__()
        self.encoder = SequenceEncoder(
            config, vocab_size=vocab_size, channels=channels, max_length=max_length
        )
        width = config.classifier_dim or config.feedforward
        self.head = _build_head(*self._hidden(config, width), num_classes)

    @staticmethod
    @abstractmethod
    def _hidden(config: SequenceModelConfig, width: int) -> tuple[int, ...]:
        """Return the widths before the logits: of what the head reads, and of its layers."""

    def set_sequence_parallel(self, mesh: DeviceMesh | ProcessGroup | None) -> None:
        """Do as `SequenceEncoder.set_sequence_parallel`."""
        self.encoder.set_sequence_parallel(mesh)


class SequenceClassifier(_EncodedClassifier):
    """An encoder, a layer with relu, and a linear layer to the classes.

    Args:
        config: the architecture.
        vocab_size: number of tokens, that of padding (0) included; None for continuous input.
        channels: features of a place of continuous input; None for tokens.
        num_classes: number of logits.
        max_length: longest sequence.

    Examples:
        >>> import torch
        >>> from flowformer.models import SequenceClassifier, SequenceModelConfig
        >>> config = SequenceModelConfig(dim=16, num_heads=2, feedforward=32)
        >>> model = SequenceClassifier(config, vocab_size=257, num_classes=2, max_length=100)
        >>> tokens = torch.randint(1, 257, (4, 100))
        >>> logits, loss = model(tokens, labels=torch.tensor([0, 1, 1, 0]))
        >>> logits.shape
        torch.Size([4, 2])
    """

    @staticmethod
    def _hidden(config: SequenceModelConfig, width: int) -> tuple[int, ...]:
        return config.dim, width

    def forward(
        self,
        inputs: Int[Tensor, "b t"] | Float[Tensor, "b t c"],
        attention_mask: Bool[Tensor, "b t"] | None = None,
        labels: Int[Tensor, " b"] | None = None,
    ) -> ClassifierOutput:
        """Classify the sequences.

        Args:
            inputs: see `SequenceEncoder.forward`, also for the errors.
            attention_mask: see there too.
            labels: the classes, for the loss.
        """
        return classified(self.head(self.encoder(inputs, attention_mask)), labels)


class PairClassifier(_EncodedClassifier):
    """Two documents, one encoder for both, and a classifier of the two vectors (Retrieval).

    The classifier reads [x₁, x₂, x₁ · x₂, x₁ - x₂] with `interaction="nli"`, and [x₁, x₂] with
    "concat", as in the published runs, whose scripts leave the interaction out. It has two layers
    with relu, the second half as wide, and a linear one to the classes. Its arguments are those of
    `SequenceClassifier`, max_length being that of the longest document.

    Examples:
        >>> import torch
        >>> from flowformer.models import PairClassifier, SequenceModelConfig
        >>> config = SequenceModelConfig(dim=16, num_heads=2, feedforward=32)
        >>> model = PairClassifier(config, vocab_size=257, max_length=100)
        >>> model(torch.randint(1, 257, (4, 100)), torch.randint(1, 257, (4, 80))).logits.shape
        torch.Size([4, 2])
    """

    def __init__(
        self, config: SequenceModelConfig, *, num_classes: int = 2, **sizes: Unpack[_Sizes]
    ) -> None:
        super().__init__(config, num_classes=num_classes, **sizes)

    @staticmethod
    def _hidden(config: SequenceModelConfig, width: int) -> tuple[int, ...]:
        return config.dim * (4 if config.interaction == "nli" else 2), width, max(width // 2, 1)

    def forward(
        self,
        first: Int[Tensor, "b t1"] | Float[Tensor, "b t1 c"],
        second: Int[Tensor, "b t2"] | Float[Tensor, "b t2 c"],
        first_mask: Bool[Tensor, "b t1"] | None = None,
        second_mask: Bool[Tensor, "b t2"] | None = None,
        labels: Int[Tensor, " b"] | None = None,
    ) -> ClassifierOutput:
        """Classify the pairs.

        Args:
            first: one document of each pair; see `SequenceEncoder.forward`, also for the errors.
            second: the other document.
            first_mask: real places of the first (True).
            second_mask: real places of the second.
            labels: the classes, for the loss.
        """
        one, other = self.encoder(first, first_mask), self.encoder(second, second_mask)
        features = [one, other]
        if self.encoder.config.interaction == "nli":
            features += [one * other, one - other]
        return classified(self.head(torch.cat(features, dim=-1)), labels)


def _build_embedding(
    dim: int, *, vocab_size: int | None, channels: int | None
) -> nn.Embedding | nn.Linear:
    if (vocab_size is None) == (channels is None):
        raise ValueError(
            "expected vocab_size (tokens) or channels (continuous input), one of them, got "
            f"{vocab_size=} and {channels=}"
        )
    require_positive(vocab_size=vocab_size, channels=channels)
    return nn.Linear(channels, dim) if channels else nn.Embedding(vocab_size or 0, dim)


def _build_block(config: SequenceModelConfig, places: int) -> TransformerBlock:
    """Create a block, its linear layers drawn after Xavier and without an offset, as published."""
    options: dict[str, Any] = {"max_length": places, "bias": False}
    if config.qkv_dim is not None:
        options["head_dim"] = config.qkv_dim // config.num_heads
    options |= mixer_options(config, "sequences")
    mixer = build_mixer(config.mixer, config.dim, config.num_heads, **options)
    mixer.attention.require("bidirectional")
    block = TransformerBlock(
        mixer,
        config.dim,
        config.feedforward,
        activation="gelu-tanh",  # the one that JAX has under the name gelu
        norm=config.norm,
        dropout=config.dropout,
    )
    for _, layer in block.linears():
        nn.init.xavier_uniform_(layer.weight)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
    return block


def _build_head(*widths: int) -> nn.Sequential:
    """Create linear layers with relu between them, drawn with variance 1 / inputs as published."""
    head = nn.Sequential()
    for inputs, outputs in pairwise(widths):
        layer = nn.Linear(inputs, outputs)
        nn.init.kaiming_normal_(layer.weight, nonlinearity="linear")
        nn.init.zeros_(layer.bias)
        head.extend([layer, nn.ReLU()])
    return head[:-1]


def _check_features(inputs: Tensor, *, channels: int) -> None:
    if inputs.ndim != 3 or not inputs.is_floating_point() or inputs.shape[2] != channels:
        raise ValueError(
            f"expected features [b, t, {channels}], floating-point, got {tuple(inputs.shape)} of "
            f"{inputs.dtype}"
        )
