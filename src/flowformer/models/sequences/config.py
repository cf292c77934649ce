"""The configuration of the classifiers of long sequences, without torch."""

from dataclasses import dataclass
from typing import Any, Literal

from flowformer.models.known_mixers import MixerName
from flowformer.names import check_choices, check_sizes


@dataclass(frozen=True, kw_only=True)
class SequenceModelConfig:
    """A classifier of long sequences, or of pairs of them, as the Long Range Arena has it.

    The defaults are the published settings of the Flowformer on Text.

    Attributes:
        mixer: Name of the attention, a key of `flowformer.nn.MIXERS` that has a bidirectional
            form (b in docs/attention/mixers.md).
        mixer_options: Options of that mixer; None means for flow the paper's equations (no clamp of
            the conserved source), for another mixer its own defaults. Projections have no bias, as
            published, unless asked for.
        dim: Width of the hidden states.
        num_heads: Attention heads.
        num_layers: Blocks.
        feedforward: Width inside the feed-forward part.
        qkv_dim: Width of queries, keys and values, all heads together; None for dim.
        dropout: Probability of dropping a value in training: of the embeddings, after each
            attention, and after both layers of each feed-forward part.
        positions: Learned position vectors, sinusoidal ones, or none.
        norm: Layer normalisation before each part (pre, as published) or after each residual sum
            (post).
        pooling: Classify from a vector of its own that is put before the sequence (cls), from the
            mean of the real tokens, or from the first of them, as the published Retrieval model
            does.
        classifier_dim: Width inside the classifier; None for that of the feed-forward part.
        padding: Keep padding out of the attention and of the mean (masked), or fill every sequence
            up to the longest that there may be and let all of it take part (published).
        interaction: What the classifier of two documents reads of their vectors: both, their
            product and their difference (nli), or both alone (concat), as the published Retrieval
            model does.
    """

    mixer: MixerName = "flow"
    mixer_options: dict[str, Any] | None = None
    dim: int = 256
    num_heads: int = 4
    num_layers: int = 1
    feedforward: int = 1024
    qkv_dim: int | None = None
    dropout: float = 0.1
    positions: Literal["learned", "sinusoidal", "none"] = "sinusoidal"
    norm: Literal["pre", "post"] = "pre"
    pooling: Literal["cls", "mean", "first"] = "cls"
    classifier_dim: int | None = None
    padding: Literal["masked", "published"] = "masked"
    interaction: Literal["nli", "concat"] = "nli"

    def __post_init__(self) -> None:
        """Check the sizes and the choices; the mixer is looked up when the model is built.

        Raises:
            ValueError: a size below 1, heads that do not divide qkv_dim, a dropout outside [0, 1),
                or an unknown choice.
        """
        sizes = ("dim", "num_heads", "num_layers", "feedforward", "qkv_dim", "classifier_dim")
        check_sizes(self, *sizes)
        check_choices(self, "positions", "norm", "pooling", "padding", "interaction")
        if self.qkv_dim is not None and self.qkv_dim % self.num_heads:
            raise ValueError(
                f"qkv_dim must be divisible by num_heads, got {self.qkv_dim} and {self.num_heads}"
            )
