"""Published language models by name: the GPT module's table, and WikiText-103's."""

from flowformer.models.language.config import LanguageModelConfig


def _gpt(num_layers: int, num_heads: int, dim: int, max_length: int) -> LanguageModelConfig:
    """A model of the published GPT module, which leaves the context to its user."""
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
