"""A decision model that acts step by step: with a state carried on, or with a window read again."""

from collections import deque
from collections.abc import Iterator
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor, nn

from flowformer.data.trajectories.batches import Actions, DecisionPreprocessing

Form = Literal["streaming", "windowed"]


@runtime_checkable
class DecisionModel(Protocol):
    """The interface of a decision model: an `nn.Module` with this call and, to stream, this step.

    `model(returns_to_go, observations, actions, timesteps, mask)` returns an output whose `actions`
    are [b, t, dims], or logits [b, t, n] of discrete ones, and `model.step` the same of one step
    with its state, as `flowformer.models.trajectories.model.DecisionTransformer` says.
    """

    training: bool

    def __call__(self, returns_to_go: Tensor, *args: Any, **options: Any) -> Any: ...  # noqa: D102

    def eval(self) -> Any: ...  # noqa: D102

    def train(self, mode: bool = True) -> Any: ...  # noqa: D102

    def parameters(self) -> Iterator[nn.Parameter]: ...  # noqa: D102


class StreamingPolicy:
    """Carries the model's state over the whole episode.

    A step costs the same however long ago the episode began, where the state has a constant size;
    softmax's grows. The actions are those of reading the whole episode again.
    """

    def __init__(self, model: DecisionModel, preprocessing: DecisionPreprocessing) -> None:
        """Take the model, which must be in evaluation mode.

        Raises:
            NotImplementedError: the model has no step.
        """
        step = getattr(model, "step", None)
        if step is None:
            raise NotImplementedError(
                f"{type(model).__name__} has no step that carries a state: ask for the windowed "
                "form"
            )
        self._step, self._numbers = step, _Numbers(model, preprocessing)
        self._states: Any = None
        self._previous: Tensor | None = None
        self._time = 0

    @torch.inference_mode()
    def act(
        self, observations: Float[np.ndarray, "b f"], returns_to_go: Float[np.ndarray, " b"]
    ) -> Actions:
        """Return the next action of each episode, as the environment takes it.

        Args:
            observations: the observations that the action answers.
            returns_to_go: the returns still to be collected, unscaled.

        Raises:
            ValueError: the model gave NaN or inf.
        """
        returns, states, times = self._numbers.read(observations, returns_to_go, self._time)
        output, self._states = self._step(returns, states, self._previous, times, self._states)
        self._previous = self._numbers.choose(output)
        self._time += 1
        return self._numbers.to_environment(self._previous)

    @torch.inference_mode()
    def keep(self, rows: Int64[np.ndarray, " n"]) -> None:
        """Go on with these episodes only, in this order."""
        index = self._numbers.index(rows)
        if self._previous is not None:
            self._previous, self._states = self._previous[index], self._states.reorder(index)


class WindowedPolicy:
    """Reads the last steps of the episode again for every action, as the published code does.

    Steps keep their place in the episode, and there is no padding before the first.
    """

    def __init__(
        self, model: DecisionModel, preprocessing: DecisionPreprocessing, *, context: int
    ) -> None:
        """Take the model, which must be in evaluation mode.

        Raises:
            ValueError: the context is not of at least one step.
        """
        if context < 1:
            raise ValueError(f"context must be at least 1, got {context}")
        self._model, self._numbers = model, _Numbers(model, preprocessing)
        # Of each step: its return-to-go, its observation and its place.
        self._read: deque[tuple[Tensor, ...]] = deque(maxlen=context)
        # The action of the present step is not read: at the observation it is in the future.
        self._chosen: deque[Tensor] = deque(maxlen=context - 1)
        self._time = 0

    @torch.inference_mode()
    def act(
        self, observations: Float[np.ndarray, "b f"], returns_to_go: Float[np.ndarray, " b"]
    ) -> Actions:
        """See `StreamingPolicy.act`."""
        self._read.append(self._numbers.read(observations, returns_to_go, self._time))
        returns, states, times = (torch.stack(each, 1) for each in zip(*self._read, strict=True))
        actions = torch.stack([*self._chosen, self._numbers.no_action(len(returns))], 1)
        output = self._model(returns, states, actions, times, None)
        chosen = self._numbers.choose(output.actions[:, -1])
        self._chosen.append(chosen)
        self._time += 1
        return self._numbers.to_environment(chosen)

    @torch.inference_mode()
    def keep(self, rows: Int64[np.ndarray, " n"]) -> None:
        """See `StreamingPolicy.keep`."""
        index = self._numbers.index(rows)
        read = [tuple(part[index] for part in step) for step in self._read]
        self._read = deque(read, maxlen=self._read.maxlen)
        chosen = [action[index] for action in self._chosen]
        self._chosen = deque(chosen, maxlen=self._chosen.maxlen)


Policy = StreamingPolicy | WindowedPolicy


def make_policy(
    model: DecisionModel,
    preprocessing: DecisionPreprocessing,
    *,
    form: Form,
    context: int | None,
) -> Policy:
    """Return the policy of that form.

    Args:
        model: the model, in evaluation mode.
        preprocessing: the preprocessing of its training.
        form: "streaming", or "windowed" as published.
        context: steps that the windowed form reads; None for the other.

    Raises:
        ValueError: the form is unknown, or the context does not go with it.
        NotImplementedError: the model carries no state, and is to stream.
    """
    if form == "streaming" and context is None:
        return StreamingPolicy(model, preprocessing)
    if form == "windowed" and context is not None:
        return WindowedPolicy(model, preprocessing, context=context)
    raise ValueError(
        "expected form 'streaming' without a context, or 'windowed' with one, got "
        f"{form=} and {context=}"
    )


class _Numbers:
    """Arrays of the environment to tensors of the model, and its outputs to actions."""

    def __init__(self, model: DecisionModel, preprocessing: DecisionPreprocessing) -> None:
        parameter = next(model.parameters())
        self._device, self._dtype = parameter.device, parameter.dtype
        self._preprocessing = preprocessing
        self.discrete = preprocessing.action_space.n is not None

    def read(
        self,
        observations: Float[np.ndarray, "b f"],
        returns_to_go: Float[np.ndarray, " b"],
        time: int,
    ) -> tuple[Float[Tensor, " b"], Float[Tensor, "b f"], Int[Tensor, " b"]]:
        """Return-to-go, observation and place, as the model reads them."""
        times = torch.full((len(observations),), time, device=self._device)
        return (
            self._tensor(self._preprocessing.returns(returns_to_go)),
            self._tensor(self._preprocessing.states(observations)),
            times,
        )

    def choose(self, output: Float[Tensor, "b n"]) -> Float[Tensor, "b n"] | Int[Tensor, " b"]:
        """Return the most probable action, or that given, inside its bounds."""
        if not output.isfinite().all():
            raise ValueError(
                "the model gave NaN or inf for an action: its parameters, or its state, hold some"
            )
        if self.discrete:
            return output.argmax(-1)
        return output.clamp(-1, 1) if self._preprocessing.action_space.bounded else output

    def no_action(self, episodes: int) -> Float[Tensor, "b dims"] | Int[Tensor, " b"]:
        """Return the placeholder of actions that have not been taken."""
        shape = (episodes, *self._preprocessing.action_space.shape)
        dtype = torch.int64 if self.discrete else self._dtype
        return torch.zeros(shape, dtype=dtype, device=self._device)

    def to_environment(self, actions: Float[Tensor, "b dims"] | Int[Tensor, " b"]) -> Actions:
        """Return the actions as the environment takes them."""
        return self._preprocessing.to_environment(actions.cpu().numpy())

    def index(self, rows: Int64[np.ndarray, " n"]) -> Int[Tensor, " n"]:
        """Return the rows as an index."""
        return torch.from_numpy(rows).to(self._device)

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self._device, self._dtype)
