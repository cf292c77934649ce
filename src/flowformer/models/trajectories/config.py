"""Configurations of the decision models, without torch: the command line starts at once."""

from dataclasses import dataclass
from typing import Any, Literal

from flowformer.models.known_mixers import MixerName
from flowformer.names import check_choices, check_sizes


@dataclass(frozen=True, kw_only=True)
class DecisionModelConfig:
    """A model of returns, observations and actions; the defaults are the published settings.

    Attributes:
        encoder: transformer, blocks around an attention; or behaviour-cloning, layers with relu
            from one observation to its action, of these settings only dim, num_layers and dropout.
        mixer: Name of the attention, a key of `flowformer.nn.MIXERS` that has a causal
            form (c in docs/attention/mixers.md).
        mixer_options: Options of that mixer; None means as published: for flow the conserved
            source clamped to ±10, for softmax dropped weights as in GPT-2, for another mixer its
            own defaults.
        dim: Width of the hidden states.
        num_layers: Blocks.
        num_heads: Attention heads.
        feedforward: Width inside the feed-forward part; None for four times dim.
        activation: Of the feed-forward part.
        dropout: Probability of dropping a value in training: of the embeddings, after each
            attention and after each feed-forward part.
        context: Steps of a sample in training, three tokens each; the bound of an attention of a
            fixed length.
        max_timestep: Steps of the longest episode: places in the table of time steps.
    """

    encoder: Literal["transformer", "behaviour-cloning"] = "transformer"
    mixer: MixerName = "flow"
    mixer_options: dict[str, Any] | None = None
    dim: int = 256
    num_layers: int = 3
    num_heads: int = 4
    feedforward: int | None = None
    activation: Literal["gelu", "gelu-tanh", "relu", "swiglu"] = "relu"
    dropout: float = 0.1
    context: int = 20
    max_timestep: int = 1000

    def __post_init__(self) -> None:
        """Check the sizes and the choices; the mixer is looked up when the model is built.

        Raises:
            ValueError: a size below 1, a context longer than the longest episode, a dropout
                outside [0, 1), or an unknown activation.
        """
        names = ["dim", "num_layers", "num_heads", "context", "max_timestep", "feedforward"]
        check_sizes(self, *names)
        if self.context > self.max_timestep:
            raise ValueError(
                f"context must be at most max_timestep, got {self.context} and {self.max_timestep}"
            )
        if self.encoder not in ("transformer", "behaviour-cloning"):
            raise ValueError(
                f"encoder must be 'transformer' or 'behaviour-cloning', got {self.encoder!r}"
            )
        check_choices(self, "activation")

    @property
    def resolved_feedforward(self) -> int:
        """The width inside the feed-forward part."""
        return 4 * self.dim if self.feedforward is None else self.feedforward


@dataclass(frozen=True, kw_only=True)
class BehaviourCloningConfig:
    """Layers with relu from one observation to its action: the baseline without a target return.

    Attributes:
        dim: Width of the hidden layers.
        num_layers: Hidden layers.
        dropout: Probability of dropping a value in training, after each hidden layer.
    """

    dim: int = 256
    num_layers: int = 3
    dropout: float = 0.1

    def __post_init__(self) -> None:
        check_sizes(self, "dim", "num_layers")
