"""A small environment whose episodes end in both ways, and models that say what they were given."""

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import torch
from torch import Tensor, nn

from flowformer.data.trajectories.batches import DecisionPreprocessing
from flowformer.data.trajectories.records import Space
from flowformer.models.trajectories.config import DecisionModelConfig
from flowformer.models.trajectories.model import DecisionTransformer
from flowformer.models.trajectories.state import DecisionOutput
from flowformer.rollouts.rollouts import RolloutSettings

BOX = Space(shape=(1,), low=-2.0, high=4.0)
MAX_LENGTH = 9


class Walk(gymnasium.Env[Any, Any]):
    """A walk of a drawn length; the odd ones are terminated, the even ones truncated."""

    def __init__(self, **options: Any) -> None:
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,))
        self.action_space = gymnasium.spaces.Box(-2.0, 4.0, (1,))
        self.render_mode = options.pop("render_mode", None)
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": 100}
        self.bad: Callable[[int], tuple[float, float]] = options.pop("bad", lambda _: (0.0, 0.0))
        self.closed, self.left, self.actions, self.lengths = False, 0, [], []
        assert not options

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed, options=options)
        self.left = int(self.np_random.integers(2, MAX_LENGTH + 1))
        self.lengths.append(self.left)
        self.odd, self.taken = self.left % 2 == 1, 0
        self.place = self.np_random.normal(size=2)
        return self._show(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.left, "stepped after the end"
        assert self.action_space.contains(action)
        self.actions.append(action)
        self.left, self.taken = self.left - 1, self.taken + 1
        self.place = self.place * 0.9 + action + self.np_random.normal(size=2)
        reward = float(self.place[0]) + self.bad(self.taken)[1]
        ended = not self.left
        return self._show(), reward, ended and self.odd, ended and not self.odd, {}

    def render(self) -> Any:
        return np.full((16, 24, 3), min(255, 20 * self.taken), np.uint8)

    def close(self) -> None:
        self.closed = True

    def _show(self) -> Any:
        return (self.place + self.bad(self.taken)[0]).astype(np.float32)


class Scripted(nn.Module):
    """Gives the same action always and keeps what it was given."""

    def __init__(self, *action: float) -> None:
        super().__init__()
        self.action = nn.Parameter(torch.tensor(action))
        self.given: list[tuple[Any, ...]] = []

    def forward(self, *given: Any) -> DecisionOutput:
        self.given.append(given)
        return DecisionOutput(self.action.expand(*given[0].shape, -1), None)

    def step(self, *given: Any) -> tuple[Tensor, "State"]:
        self.given.append(given)
        return self.action.expand(len(given[0]), -1), State()


class State:
    """One that holds nothing."""

    def reorder(self, _index: Tensor) -> "State":
        return self


def numbers(space: Space = BOX, features: int = 2, scale: float = 10.0) -> DecisionPreprocessing:
    return DecisionPreprocessing(
        state_mean=np.arange(features, dtype=np.float64),
        state_std=np.full(features, 2.0),
        return_scale=scale,
        action_space=space,
    )


def settings(**options: Any) -> RolloutSettings:
    return RolloutSettings(**{"preprocessing": numbers(), **options})


def build(mixer: str = "flow", **sizes: Any) -> DecisionTransformer:
    torch.manual_seed(0)
    config = DecisionModelConfig(
        mixer=mixer, dim=16, num_layers=2, num_heads=2, context=5, max_timestep=500
    )
    model = DecisionTransformer(config, **{"observation_dim": 2, "action_dim": 1, **sizes})
    for parameter in model.parameters():  # larger than at first, so that what is read matters
        parameter.data += 0.3 * torch.randn_like(parameter)
    return model.double()
