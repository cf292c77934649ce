"""The configuration of the classifiers of series, without torch."""

from dataclasses import dataclass
from typing import Any, Literal

from flowformer.models.known_mixers import MixerName
from flowformer.names import check_choices, check_sizes


@dataclass(frozen=True, kw_only=True)
class TimeSeriesModelConfig:
    """A classifier of series; the defaults are the published settings of the Flowformer.

    The encoders lstm and dilated-conv, which the paper compares with, read dim, num_layers and
    dropout alone.

    Attributes:
        encoder: What reads the series: blocks around an attention (transformer), an LSTM, or
            dilated convolutions.
        mixer: Name of the attention, a key of `flowformer.nn.MIXERS` that has a bidirectional
            form (b in docs/attention/mixers.md).
        mixer_options: Options of that mixer; None means as published: for flow no clamp of the
            conserved source, for another mixer its own defaults.
        dim: Width of the hidden states.
        num_heads: Attention heads.
        num_layers: Encoder layers.
        kernel: Time steps around its own that a token is made of, an odd number; 1 as published.
            What is in the shape of a signal and not in its values (a frequency, a turn) is in no
            single step: with 1, it is left to the attention alone.
        feedforward: Width inside the feed-forward part.
        dropout: Probability of dropping a value in training.
        positions: Learned position vectors, or sinusoidal ones.
        norm: Layer normalisation after each residual sum (post, as published) or before each part
            (pre).
        pooling: Classify from all positions side by side (flatten, as published) or from their
            mean.
        padding: Keep padding out of the attention (masked), or let it take part (published).
    """

    encoder: Literal["transformer", "lstm", "dilated-conv"] = "transformer"
    mixer: MixerName = "flow"
    mixer_options: dict[str, Any] | None = None
    dim: int = 512
    num_heads: int = 8
    num_layers: int = 2
    kernel: int = 1
    feedforward: int = 2048
    dropout: float = 0.1
    positions: Literal["learned", "sinusoidal"] = "learned"
    norm: Literal["post", "pre"] = "post"
    pooling: Literal["flatten", "mean"] = "flatten"
    padding: Literal["masked", "published"] = "masked"

    def __post_init__(self) -> None:
        """Check the sizes and the choices; the model looks up all other names.

        Raises:
            ValueError: a size below 1, an even kernel, a dropout outside [0, 1), or an unknown
                choice.
        """
        check_sizes(self, "dim", "num_heads", "num_layers", "feedforward", "kernel")
        if self.kernel % 2 == 0:
            raise ValueError(
                f"kernel must be odd, as many steps before a step as after it, got {self.kernel}"
            )
        check_choices(self, "pooling", "padding")
