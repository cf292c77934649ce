"""The configuration of the language model as transformers has it."""

from dataclasses import fields
from typing import Any, ClassVar, Literal, no_type_check

from huggingface_hub.dataclasses import strict
from transformers.configuration_utils import PreTrainedConfig

from flowformer.models.language.config import LanguageModelConfig
from flowformer.nn import MIXERS
from flowformer.nn.mixers.building import mixer_class
from flowformer.nn.replace.transformers_owner import CACHE_NAMES

# The names of transformers for settings, where it has one.
_NAMES = {
    "dim": "hidden_size",
    "num_heads": "num_attention_heads",
    "num_layers": "num_hidden_layers",
    "feedforward": "intermediate_size",
    "max_length": "max_position_embeddings",
    "tie_embeddings": "tie_word_embeddings",
}


# jaxtyping's hook takes the fields for all that the constructor takes; transformers' takes more.
@no_type_check
@strict
class FlowformerConfig(PreTrainedConfig):
    """A Flowformer language model, for transformers.

    The settings are those of `flowformer.models.language.config.LanguageModelConfig`, where they
    are explained, six of them under the names that transformers has for them. Those names of ours
    that mean nothing else there (dim, num_heads, num_layers, feedforward, tie_embeddings) work as
    well.

    Attributes:
        vocab_size: Number of tokens in the vocabulary.
        hidden_size: Width of the hidden states (dim).
        num_hidden_layers: Blocks (num_layers).
        num_attention_heads: Attention heads (num_heads).
        intermediate_size: Width inside the feed-forward part (feedforward).
        max_position_embeddings: Places of a table of positions, and the bound of an attention of a
            fixed length (max_length).
        mixer: Name of the attention.
        mixer_options: Options of that mixer; None means its own defaults.
        dropout: Probability of dropping a value in training.
        positions: Position vectors, or rotary positions, or none.
        normalization: Layer normalisation or RMS normalisation.
        activation: Of the feed-forward part.
        bias: Whether linear layers and layer normalisations have one.
        tie_word_embeddings: Whether the output layer is the embedding, transposed (tie_embeddings).
        scale_embeddings: Multiply the embeddings of the tokens by √hidden_size.
        initialization: Of the parameters.
        use_cache: Carry the state of the mixers from call to call; None means where they have one.
        logits_in_training: Return logits beside the loss in training. Without them the loss is
            computed by chunks of tokens, and long contexts with a large vocabulary fit in memory.
        classifier_dropout: Before the output layer of a classifier of sequences.
        pad_token_id: Padding, where it cannot be read off an attention mask.
        bos_token_id: What text begins with.
        eos_token_id: What text ends with.

    Raises:
        ValueError: A setting is out of its range or none of its choices, there is no such mixer, or
            use_cache is asked for and the mixer has no state.
    """

    model_type: ClassVar[str] = "flowformer"
    keys_to_ignore_at_inference: ClassVar[list[str]] = [*CACHE_NAMES]
    attribute_map: ClassVar[dict[str, str]] = {
        # Not max_length: to transformers that is a setting of generation.
        ours: theirs
        for ours, theirs in _NAMES.items()
        if ours != "max_length"
    }

    vocab_size: int = 50257
    hidden_size: int = 512
    num_hidden_layers: int = 6
    num_attention_heads: int = 8
    intermediate_size: int = 2048
    max_position_embeddings: int = 512
    mixer: str = "flow"
    mixer_options: dict[str, Any] | None = None
    dropout: float | int = 0.1
    positions: Literal["learned", "sinusoidal", "sinusoidal-fairseq", "rotary", "none"] = (
        "sinusoidal"
    )
    normalization: Literal["layer", "rms"] = "layer"
    activation: Literal["gelu", "gelu-tanh", "relu", "swiglu"] = "gelu"
    bias: bool = True
    tie_word_embeddings: bool = True
    scale_embeddings: bool = True
    initialization: Literal["gpt2", "fairseq"] = "fairseq"
    use_cache: bool | None = None
    logits_in_training: bool = True
    classifier_dropout: float | int = 0.0
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        """Check the settings together, and choose use_cache where nobody did."""
        has_state = mixer_class(self.mixer).capabilities.state
        if self.use_cache and not has_state:
            able = [name for name, kind in MIXERS.items() if kind.capabilities.state]
            raise ValueError(
                f"mixer {self.mixer!r} has no state to carry: set use_cache=False, or take one of "
                f"{', '.join(able)}"
            )
        self.use_cache = has_state if self.use_cache is None else self.use_cache
        self.dropout = float(self.dropout)  # JSON has 0 for 0.0
        super().__post_init__(**kwargs)
        self.language_model_config()

    def language_model_config(self) -> LanguageModelConfig:
        """Return the same settings as our own models are built from."""
        return LanguageModelConfig(
            **{
                field.name: getattr(self, _NAMES.get(field.name, field.name))
                for field in fields(LanguageModelConfig)
            }
        )

    @classmethod
    def from_language_model_config(
        cls, config: LanguageModelConfig, *, vocab_size: int, **others: Any
    ) -> "FlowformerConfig":
        """Return the configuration of transformers with the settings of one of ours.

        Args:
            config: ours.
            vocab_size: number of tokens.
            others: settings that ours has not: the special tokens, num_labels, …
        """
        settings = {
            _NAMES.get(field.name, field.name): getattr(config, field.name)
            for field in fields(LanguageModelConfig)
        }
        return cls(vocab_size=vocab_size, **settings, **others)
