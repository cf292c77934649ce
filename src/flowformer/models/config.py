"""Configurations of the models, without torch: recipes and the command line start at once."""

from dataclasses import dataclass
from typing import Any, Literal, get_args


@dataclass(frozen=True, kw_only=True)
class TimeSeriesModelConfig:
    """A classifier of series; the defaults are the published settings of the Flowformer.

    The encoders lstm and dilated-conv, which the paper compares with, read dim, num_layers and
    dropout alone.

    Attributes:
        encoder: What reads the series: blocks around an attention (transformer), an LSTM, or
            dilated convolutions.
        mixer: Name of the attention: flow, flow-no-competition, flow-no-allocation, flow-heads,
            softmax, linear, performer, cosformer, rfa, linformer, nystromformer, yoso, soft,
            synthesizer, synthesizer-mixture, local, sparse, longformer, bigbird, sinkhorn, reformer
            or mobile.
        mixer_options: Options of that mixer; None means as published: for flow no clamp of the
            conserved source, for another mixer its own defaults.
        dim: Width of the hidden states.
        num_heads: Attention heads.
        num_layers: Encoder layers.
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
    mixer: str = "flow"
    mixer_options: dict[str, Any] | None = None
    dim: int = 512
    num_heads: int = 8
    num_layers: int = 2
    feedforward: int = 2048
    dropout: float = 0.1
    positions: Literal["learned", "sinusoidal"] = "learned"
    norm: Literal["post", "pre"] = "post"
    pooling: Literal["flatten", "mean"] = "flatten"
    padding: Literal["masked", "published"] = "masked"

    def __post_init__(self) -> None:
        """Check the sizes; the names are checked where they are looked up.

        Raises:
            ValueError: A size below 1, or a dropout outside [0, 1).
        """
        _check_sizes(self, "dim", "num_heads", "num_layers", "feedforward")

    @property
    def resolved_mixer_options(self) -> dict[str, Any]:
        """The options that the mixer is built with; published time-series code does not clamp."""
        return _options_or_no_clamp(self)


@dataclass(frozen=True, kw_only=True)
class LanguageModelConfig:
    """A language model: causal pre-norm blocks around an attention.

    The defaults are a model of the size of the paper's on WikiText-103; the published models stand
    in `flowformer.models.presets`.

    Attributes:
        mixer: Name of the attention: flow, flow-no-competition, flow-no-allocation, softmax,
            linear, performer, cosformer, rfa, rfa-gated, gla, deltanet, synthesizer,
            synthesizer-mixture, local, sparse, longformer, sinkhorn or reformer.
        mixer_options: Options of that mixer; None means its own defaults, which for flow are those
            of the published GPT module (the conserved source clamped to ±1).
        dim: Width of the hidden states.
        num_heads: Attention heads.
        num_layers: Blocks.
        feedforward: Width inside the feed-forward part.
        max_length: Places of a table of positions, and the bound of an attention of a fixed length.
            Sinusoidal, rotary and no positions go on past it where the attention does.
        dropout: Probability of dropping a value in training: of the embeddings, after each
            attention and after each feed-forward part.
        positions: Learned position vectors, sinusoidal ones (in the layout of Vaswani et al. or in
            that of fairseq), rotary ones, or none: a causal attention can tell the order itself.
        normalization: Layer normalisation or RMS normalisation, before each part.
        activation: Of the feed-forward part; gelu-tanh is the approximation that GPT-2 has, swiglu
            adds a gate (a third matrix).
        bias: Whether linear layers and layer normalisations have one.
        tie_embeddings: Whether the output layer is the embedding of the tokens, transposed.
        scale_embeddings: Multiply the embeddings of the tokens by √dim, as fairseq does: beside
            sinusoidal positions, of size 1, small ones would not be seen for thousands of steps.
        initialization: Of the parameters: as GPT-2 (normal, 0.02), or as fairseq (embeddings of
            1/√dim, Xavier projections).
    """

    mixer: str = "flow"
    mixer_options: dict[str, Any] | None = None
    dim: int = 512
    num_heads: int = 8
    num_layers: int = 6
    feedforward: int = 2048
    max_length: int = 512
    dropout: float = 0.1
    positions: Literal["learned", "sinusoidal", "sinusoidal-fairseq", "rotary", "none"] = (
        "sinusoidal"
    )
    normalization: Literal["layer", "rms"] = "layer"
    activation: Literal["gelu", "gelu-tanh", "relu", "swiglu"] = "gelu"
    bias: bool = True
    tie_embeddings: bool = True
    scale_embeddings: bool = True
    initialization: Literal["gpt2", "fairseq"] = "fairseq"

    def __post_init__(self) -> None:
        """Check the sizes and the choices; the mixer is looked up when the model is built.

        Raises:
            ValueError: A size below 1, a dropout outside [0, 1), or an unknown choice.
        """
        _check_sizes(self, "dim", "num_heads", "num_layers", "feedforward", "max_length")
        _check_choices(self, "positions", "normalization", "activation", "initialization")


@dataclass(frozen=True, kw_only=True)
class SequenceModelConfig:
    """A classifier of long sequences, or of pairs of them, as the Long Range Arena has it.

    The defaults are the published settings of the Flowformer on Text.

    Attributes:
        mixer: Name of the attention: flow, flow-no-competition, flow-no-allocation, flow-heads,
            softmax, linear, performer, cosformer, rfa, linformer, nystromformer, yoso, soft,
            synthesizer, synthesizer-mixture, local, sparse, longformer, bigbird, sinkhorn, reformer
            or mobile.
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

    mixer: str = "flow"
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
            ValueError: A size below 1, heads that do not divide qkv_dim, a dropout outside [0, 1),
                or an unknown choice.
        """
        optional = [
            name for name in ("qkv_dim", "classifier_dim") if getattr(self, name) is not None
        ]
        _check_sizes(self, "dim", "num_heads", "num_layers", "feedforward", *optional)
        _check_choices(self, "positions", "norm", "pooling", "padding", "interaction")
        if self.qkv_dim is not None and self.qkv_dim % self.num_heads:
            raise ValueError(
                f"qkv_dim must be divisible by num_heads, got {self.qkv_dim} and {self.num_heads}"
            )

    @property
    def resolved_mixer_options(self) -> dict[str, Any]:
        """The options that the mixer is built with, those that follow from the sizes included."""
        sizes = {} if self.qkv_dim is None else {"head_dim": self.qkv_dim // self.num_heads}
        return {"bias": False, **sizes, **_options_or_no_clamp(self)}


def _options_or_no_clamp(config: TimeSeriesModelConfig | SequenceModelConfig) -> dict[str, Any]:
    """The options of the mixer; None stands for the paper's equations, which have no clamp."""
    if config.mixer_options is None:
        return {"clamp": None} if config.mixer in ("flow", "flow-no-allocation") else {}
    return dict(config.mixer_options)


_ModelConfig = TimeSeriesModelConfig | LanguageModelConfig | SequenceModelConfig


def _check_choices(config: _ModelConfig, *names: str) -> None:
    for name in names:
        choices = get_args(type(config).__annotations__[name])
        if getattr(config, name) not in choices:
            raise ValueError(
                f"{name} must be one of {', '.join(choices)}, got {getattr(config, name)!r}"
            )


def _check_sizes(config: _ModelConfig, *names: str) -> None:
    for name in names:
        if getattr(config, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(config, name)}")
    if not 0 <= config.dropout < 1:
        raise ValueError(f"dropout must be in [0, 1), got {config.dropout}")
