"""Models of decisions: a Decision Transformer around any causal mixer, and behaviour cloning."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from flowformer.models.inputs import check_mask, check_range
from flowformer.models.published import (
    matched,
    published_mixer_of,
    read_checkpoint,
    rename_trajectories,
)
from flowformer.models.trajectories.config import BehaviourCloningConfig, DecisionModelConfig
from flowformer.names import require_positive
from flowformer.nn import MIXERS, TransformerBlock, build_mixer
from flowformer.nn.mixers.building import mixer_options
from flowformer.nn.mixers.head_attention import State

TOKENS = 3  # of a step: return-to-go, observation, action
INITIAL_STD = 0.02


class DecisionState(NamedTuple):
    """The state that the model carries from one call to the next.

    Attributes:
        layers: the state of each block's mixer; of constant size for flow and its linear kin.
        pending: time steps of the steps whose action is still to be read, shape ``[b]``; None
            where all actions have been read.
    """

    layers: tuple[State, ...]
    pending: Int[Tensor, " b"] | None

    def to(self, device: torch.device | str) -> "DecisionState":
        """Return the state on another device."""
        pending = None if self.pending is None else self.pending.to(device)
        return DecisionState(tuple(layer.to(device) for layer in self.layers), pending)

    def detach(self) -> "DecisionState":
        """Return the state without its history of gradients."""
        return DecisionState(tuple(layer.detach() for layer in self.layers), self.pending)

    def reorder(self, index: Int[Tensor, " n"]) -> "DecisionState":
        """Return the rows `index` of the batch: episodes that have ended are left out."""
        pending = None if self.pending is None else self.pending.index_select(0, index)
        return DecisionState(tuple(layer.reorder(index) for layer in self.layers), pending)


# A state that torch.save wrote is loaded by torch.load, which otherwise takes no classes.
torch.serialization.add_safe_globals([DecisionState])


class DecisionOutput(NamedTuple):
    """The output of a decision model.

    Attributes:
        actions: the action predicted at each step, in (-1, 1) where actions are bounded; for
            discrete actions their logits. Zero at padded steps.
        states: the states that continue the episodes; None if they were not asked for.
    """

    actions: Float[Tensor, "b t a"]
    states: DecisionState | None


class DecisionTransformer(nn.Module):
    """A model of returns-to-go, observations and actions as one sequence that predicts the actions.

    Step i is three tokens (Chen et al. 2021, section 3): return-to-go, observation, action, each a
    linear layer of its own plus the vector of the step's time step, layer-normalised. Pre-norm
    causal blocks and a norm follow, and a linear layer predicts the action at the observation's
    token, with tanh where actions are bounded. Of the published module the heads for the next
    observation and return are left out: no loss ever reached them.

    Padding, left or right, changes nothing.

    Args:
        config: the architecture.
        observation_dim: numbers of an observation.
        action_dim: numbers of an action; None for discrete actions.
        num_actions: discrete actions, from 0; None for actions of numbers.
        bounded: whether actions of numbers lie in [-1, 1]; without, there is no tanh.

    Examples:
        >>> import torch
        >>> from flowformer.models import DecisionModelConfig, DecisionTransformer
        >>> config = DecisionModelConfig(dim=16, num_heads=2, num_layers=1)
        >>> model = DecisionTransformer(config, observation_dim=5, action_dim=2).eval()
        >>> returns, observations = torch.randn(1, 8), torch.randn(1, 8, 5)
        >>> model(returns, observations, torch.zeros(1, 8, 2), torch.arange(8)[None]).actions.shape
        torch.Size([1, 8, 2])
        >>> first = returns[:, 0], observations[:, 0], None, torch.tensor([0]), None
        >>> action, state = model.step(*first)
        >>> action.shape
        torch.Size([1, 2])
    """

    def __init__(
        self,
        config: DecisionModelConfig,
        *,
        observation_dim: int,
        action_dim: int | None = None,
        num_actions: int | None = None,
        bounded: bool = True,
    ) -> None:
        """Create the layers and draw them as the published code does.

        Raises:
            ValueError: neither or both of action_dim and num_actions, a size below 1, or an unknown
                mixer or option.
            NotImplementedError: the mixer has no causal form.
        """
        super().__init__()
        width = _action_width(
            observation_dim=observation_dim, action_dim=action_dim, num_actions=num_actions
        )
        self.config = config
        self.observation_dim = observation_dim
        self.action_dim = action_dim
        self.num_actions = num_actions
        self.bounded = bounded and num_actions is None
        dim = config.dim
        self.timestep_embedding = nn.Embedding(config.max_timestep, dim)
        self.return_embedding = nn.Linear(1, dim)
        self.observation_embedding = nn.Linear(observation_dim, dim)
        discrete = num_actions is not None
        self.action_embedding = nn.Embedding(width, dim) if discrete else nn.Linear(width, dim)
        self.embedding_norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(_build_block(config) for _ in range(config.num_layers))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, width)

    @property
    def has_state(self) -> bool:
        """Whether `step` and `use_cache` can be asked for: the mixer has a state."""
        return MIXERS[self.config.mixer].capabilities.state

    @property
    def state_grows(self) -> bool:
        """Whether that state grows with the episode, and the cost of a step with it."""
        return MIXERS[self.config.mixer].capabilities.growing_state

    def forward(
        self,
        returns_to_go: Float[Tensor, "b t"],
        observations: Float[Tensor, "b t o"],
        actions: Float[Tensor, "b t a"] | Int[Tensor, "b t"],
        timesteps: Int[Tensor, "b t"],
        mask: Bool[Tensor, "b t"] | None = None,
        *,
        past_states: DecisionState | None = None,
        use_cache: bool = False,
    ) -> DecisionOutput:
        """Predict the action of each step from it and the steps before.

        Args:
            returns_to_go: the return still to be reached from each step on, divided by a scale.
            observations: normalised observations.
            actions: the actions taken; each is seen by later steps only.
            timesteps: place of each step in its episode, from 0.
            mask: real steps (True), with padding left or right; None when all are.
            past_states: the `states` of an earlier call, whose episodes these steps continue.
            use_cache: return the states after these steps, their actions included.

        Raises:
            ValueError: tensors of other shapes, past_states that still wait for an action, or (seen
                on the CPU only) a time step or an action outside its table.
            NotImplementedError: past_states or use_cache, and the mixer has no state.
        """
        batch = tuple(timesteps.shape)
        self._check(returns_to_go, observations, actions, batch)
        _check_shape("timesteps", timesteps, batch, floating=False)
        check_mask(mask, batch, of="step")
        if past_states is not None and past_states.pending is not None:
            raise ValueError(
                "past_states wait for the action of their last step: go on with step(), not with "
                "whole steps"
            )
        # NaN there would reach the gradients of the first layers, any number the tables.
        place = self._place(_real_steps(timesteps, mask))
        tokens = torch.stack(
            (
                self.return_embedding(_real_steps(returns_to_go, mask).unsqueeze(-1)) + place,
                self.observation_embedding(_real_steps(observations, mask)) + place,
                self._embed_actions(_real_steps(actions, mask)) + place,
            ),
            dim=2,
        ).flatten(1, 2)
        token_mask = None if mask is None else mask.repeat_interleave(TOKENS, dim=1)
        x, layers = self._mix(tokens, token_mask, past_states, use_cache=use_cache)
        predicted = _real_steps(self._predict(x[:, 1::TOKENS]), mask)
        return DecisionOutput(predicted, DecisionState(layers, None) if use_cache else None)

    def step(
        self,
        returns_to_go: Float[Tensor, " b"],
        observations: Float[Tensor, "b o"],
        previous_actions: Float[Tensor, "b a"] | Int[Tensor, " b"] | None,
        timesteps: Int[Tensor, " b"],
        states: DecisionState | None,
    ) -> tuple[Float[Tensor, "b out"], DecisionState]:
        """Predict the action of one more step, at a cost that only a growing state lets grow.

        Reads the action of the step before, then this step's return-to-go and observation. The
        results are those of `forward` for the whole episode.

        Args:
            returns_to_go: see `forward`, here and for the observations.
            observations: normalised observations.
            previous_actions: the actions taken in the step before; None at the first step, and
                after the states of `forward`, which has read them.
            timesteps: place of this step in each row's episode.
            states: the states that the step before returned; None at the first step.
                `states.reorder` leaves out the rows of episodes that have ended.

        Returns:
            The action (for discrete actions the logits), and the state.

        Raises:
            ValueError: tensors of other shapes, an action without a step that waits for it or the
                other way round, or (on the CPU) a time step or an action outside its table.
            NotImplementedError: the mixer has no state.
        """
        batch = tuple(timesteps.shape)
        self._check(returns_to_go, observations, previous_actions, batch)
        pending = None if states is None else states.pending
        if (pending is None) != (previous_actions is None):
            raise ValueError(
                "previous_actions must be given where states wait for them, and only there, got "
                f"{'none' if previous_actions is None else 'some'}"
            )
        place = self._place(timesteps)
        tokens = [
            self.return_embedding(returns_to_go.unsqueeze(-1)) + place,
            self.observation_embedding(observations) + place,
        ]
        if previous_actions is not None and pending is not None:
            tokens.insert(0, self._embed_actions(previous_actions) + self._place(pending))
        x, layers = self._mix(torch.stack(tokens, dim=1), None, states, use_cache=True)
        return self._predict(x[:, -1]), DecisionState(layers, timesteps)

    def load_published_state_dict(self, state_dict: Mapping[str, Tensor]) -> None:
        """Load the parameters of a published model; see `flowformer.models.published`.

        Raises:
            ValueError: parameters are missing, left over, or of another shape, which are all
                listed; or they are those of another attention.
        """
        if self.config.mixer != (mixer := published_mixer_of(state_dict)):
            raise ValueError(
                f"the parameters are those of a model with mixer={mixer!r}, got one with "
                f"{self.config.mixer!r}"
            )
        what = "a published decision model of this size"
        given = rename_trajectories(state_dict)
        self.load_state_dict(matched(self, given, what=what))

    def _mix(
        self,
        tokens: Float[Tensor, "b n dim"],
        mask: Bool[Tensor, "b n"] | None,
        past: DecisionState | None,
        *,
        use_cache: bool,
    ) -> tuple[Float[Tensor, "b n dim"], tuple[State, ...]]:
        """Return the hidden states after the last norm, and the states of the layers."""
        states = (None,) * len(self.blocks) if past is None else past.layers
        if len(states) != len(self.blocks):
            raise ValueError(
                f"the states must be of {len(self.blocks)} layers, got those of {len(states)}"
            )
        x = _real_steps(self.dropout(self.embedding_norm(tokens)), mask)
        layers = []
        for block, state in zip(self.blocks, states, strict=True):
            x = block(x, causal=True, mask=mask, state=state, return_state=use_cache)
            if use_cache:
                x, layer = x
                layers.append(layer)
        return self.norm(x), tuple(layers)

    def _predict(self, hidden: Float[Tensor, "... dim"]) -> Float[Tensor, "... out"]:
        predicted = self.head(hidden)
        return predicted.tanh() if self.bounded else predicted

    def _embed_actions(self, actions: Tensor) -> Float[Tensor, "... dim"]:
        if self.num_actions is not None:
            check_range("action", actions, self.num_actions)
        return self.action_embedding(actions)

    def _place(self, timesteps: Int[Tensor, "..."]) -> Float[Tensor, "... dim"]:
        check_range("time step", timesteps, self.config.max_timestep)
        return self.timestep_embedding(timesteps)

    def _check(
        self, returns: Tensor, observations: Tensor, actions: Tensor | None, batch: tuple[int, ...]
    ) -> None:
        _check_shape("returns_to_go", returns, batch, floating=True)
        _check_shape("observations", observations, (*batch, self.observation_dim), floating=True)
        if actions is not None:
            width = () if self.action_dim is None else (self.action_dim,)
            _check_shape("actions", actions, (*batch, *width), floating=bool(width))


class BehaviourCloning(nn.Module):
    """Layers with relu that predict the action from the observation alone, and a tanh.

    It is called as a `DecisionTransformer` is, and passes over returns, past actions and time. The
    Decision Transformer's code stacks the last 20 observations; here it is one, which tells all
    of a Markovian environment. Its arguments are those of `DecisionTransformer`.
    """

    has_state = True
    state_grows = False

    def __init__(
        self,
        config: BehaviourCloningConfig,
        *,
        observation_dim: int,
        action_dim: int | None = None,
        num_actions: int | None = None,
        bounded: bool = True,
    ) -> None:
        """Create the layers; raise as `DecisionTransformer` does."""
        super().__init__()
        width = _action_width(
            observation_dim=observation_dim, action_dim=action_dim, num_actions=num_actions
        )
        self.config = config
        self.observation_dim = observation_dim
        self.layers = nn.Sequential()
        for layer in range(config.num_layers):
            inputs = config.dim if layer else observation_dim
            hidden = (nn.Linear(inputs, config.dim), nn.ReLU(), nn.Dropout(config.dropout))
            self.layers.extend(hidden)
        self.layers.append(nn.Linear(config.dim, width))
        if bounded and num_actions is None:
            self.layers.append(nn.Tanh())

    def forward(
        self,
        returns_to_go: Float[Tensor, "b t"],  # noqa: ARG002 - the call of a DecisionTransformer
        observations: Float[Tensor, "b t o"],
        actions: Float[Tensor, "b t a"] | Int[Tensor, "b t"],  # noqa: ARG002 - as above
        timesteps: Int[Tensor, "b t"],
        mask: Bool[Tensor, "b t"] | None = None,
        *,
        past_states: DecisionState | None = None,  # noqa: ARG002 - as above
        use_cache: bool = False,
    ) -> DecisionOutput:
        """Predict the action of each step; see `DecisionTransformer.forward`."""
        batch = tuple(timesteps.shape)
        _check_shape("observations", observations, (*batch, self.observation_dim), floating=True)
        check_mask(mask, batch, of="step")
        predicted = _real_steps(self.layers(_real_steps(observations, mask)), mask)
        return DecisionOutput(predicted, DecisionState((), None) if use_cache else None)

    def step(
        self,
        returns_to_go: Float[Tensor, " b"],  # noqa: ARG002 - the call of a DecisionTransformer
        observations: Float[Tensor, "b o"],
        previous_actions: Float[Tensor, "b a"] | Int[Tensor, " b"] | None,  # noqa: ARG002
        timesteps: Int[Tensor, " b"],
        states: DecisionState | None,  # noqa: ARG002 - as above
    ) -> tuple[Float[Tensor, "b out"], DecisionState]:
        """Predict the action of one more step; see `DecisionTransformer.step`."""
        expected = (*timesteps.shape, self.observation_dim)
        _check_shape("observations", observations, expected, floating=True)
        return self.layers(observations), DecisionState((), timesteps)


def load_published_decision_model(
    path: Path | str, config: DecisionModelConfig | None = None
) -> DecisionTransformer:
    """Load the model in a checkpoint of the published training, with actions within [-1, 1].

    Args:
        path: the checkpoint: the model's parameters and nothing else.
        config: the model's architecture, which the file does not tell; None for the published
            settings.

    Raises:
        ValueError: see `read_checkpoint` and `load_published_state_dict`.
    """
    state = read_checkpoint(path, what="published decision", entry=None)
    if "embed_state.weight" not in state or "embed_action.weight" not in state:
        raise ValueError(
            f"{path} is no published decision model: no embed_state.weight or no "
            "embed_action.weight"
        )
    model = DecisionTransformer(
        config or DecisionModelConfig(),
        observation_dim=state["embed_state.weight"].shape[-1],
        action_dim=state["embed_action.weight"].shape[-1],
    )
    model.load_published_state_dict(state)
    return model


def _action_width(*, observation_dim: int, action_dim: int | None, num_actions: int | None) -> int:
    """Return how many numbers are predicted for an action.

    Raises:
        ValueError: neither or both of action_dim and num_actions, or a size below 1.
    """
    if (action_dim is None) == (num_actions is None):
        raise ValueError(
            "expected action_dim (a box) or num_actions (discrete), one of them, got "
            f"{action_dim=} and {num_actions=}"
        )
    require_positive(
        observation_dim=observation_dim, action_dim=action_dim, num_actions=num_actions
    )
    return action_dim or num_actions or 0


def _check_shape(name: str, given: Tensor, expected: tuple[int, ...], *, floating: bool) -> None:
    """Refuse a tensor of another shape, or integers for numbers and the other way round.

    Raises:
        ValueError: the message names both.
    """
    if tuple(given.shape) != expected or given.is_floating_point() != floating:
        raise ValueError(
            f"expected {name} {list(expected)}, {'floating-point' if floating else 'integers'}, "
            f"got {list(given.shape)} of {given.dtype}"
        )


def _real_steps(given: Tensor, mask: Bool[Tensor, "b t"] | None) -> Tensor:
    """Return the tensor [b, t, ...] with zeros at padded steps."""
    if mask is None:
        return given
    return given.masked_fill(~mask.reshape(*mask.shape, *[1] * (given.ndim - 2)), 0)


def _build_block(config: DecisionModelConfig) -> TransformerBlock:
    """Create a block, its linear layers drawn as GPT-2's, as published."""
    options = {"max_length": 3 * config.context, **mixer_options(config, "trajectories")}
    mixer = build_mixer(config.mixer, config.dim, config.num_heads, **options)
    mixer.attention.require("causal")
    block = TransformerBlock(
        mixer,
        config.dim,
        config.resolved_feedforward,
        activation=config.activation,
        norm="pre",
        dropout=config.dropout,
        inner_dropout=0.0,
    )
    for _, layer in block.linears():
        nn.init.normal_(layer.weight, std=INITIAL_STD)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
    return block
