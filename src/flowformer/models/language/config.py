"""The configuration of the language models, and the published ones by name; without torch."""

from dataclasses import dataclass
from typing import Any, Literal

from flowformer.models.known_mixers import MixerName
from flowformer.names import check_choices, check_sizes


@dataclass(frozen=True, kw_only=True)
class LanguageModelConfig:
    """A language model: causal pre-norm blocks around an attention.

    The defaults are a model of the size of the paper's on WikiText-103; the published models stand
    in `LANGUAGE_PRESETS`: the GPT module's table, and WikiText-103's.

    Attributes:
        mixer: Name of the attention, a key of `flowformer.nn.MIXERS` that has a causal
            form (c in docs/attention/mixers.md).
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

    mixer: MixerName = "flow"
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
        check_sizes(self, "dim", "num_heads", "num_layers", "feedforward", "max_length")
        check_choices(self, "positions", "normalization", "activation", "initialization")


def _gpt(num_layers: int, num_heads: int, dim: int, max_length: int) -> LanguageModelConfig:
    """Return a model of the published GPT module, which leaves the context to its user."""
    return LanguageModelConfig(
        dim=dim,
        num_heads=num_heads,
        num_layers=num_layers,
        feedforward=4 * dim,
        max_length=max_length,
        positions="learned",
        activation="gelu-tanh",
        tie_embeddings=False,
        scale_embeddings=False,
        initialization="gpt2",
    )


LANGUAGE_PRESETS: dict[str, LanguageModelConfig] = {
    "openai-gpt": _gpt(12, 12, 768, 512),
    "gpt2": _gpt(12, 12, 768, 1024),
    "gpt2-medium": _gpt(24, 16, 1024, 1024),
    "gpt2-large": _gpt(36, 20, 1280, 1024),
    "gpt2-xl": _gpt(48, 25, 1600, 1024),
    "gopher-44m": _gpt(8, 16, 512, 2048),
    "gpt-mini": _gpt(6, 6, 192, 1024),
    "gpt-micro": _gpt(4, 4, 128, 1024),
    "gpt-nano": _gpt(3, 3, 48, 1024),
    # fairseq's transformer_lm, whose published attention clamps the conserved source to ±5.
    "wikitext-103": LanguageModelConfig(
        mixer_options={"clamp": 5.0},
        positions="sinusoidal-fairseq",
        activation="relu",
    ),
}
"""The language models by name: the sizes of GPT and Gopher, and WikiText-103's."""
