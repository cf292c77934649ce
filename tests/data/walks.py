"""Small environments whose good policies are linear, and some that are not supported.

Workers find them by the name of this module: "tests.data.walks:Walk-v0".
"""

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

WALK = "tests.data.walks:Walk-v0"
STEPS = 20  # time limit


# By name: what an environment was made with is kept as JSON.
_SPACES: dict[str, spaces.Space] = {
    "box": spaces.Box(-1, 3, (1,), np.float32),
    "even": spaces.Box(-2, 2, (1,), np.float32),
    "steps": spaces.Discrete(3),
    "free": spaces.Box(-np.inf, np.inf, (1,), np.float32),
    "several": spaces.MultiDiscrete([2, 3]),
    "square": spaces.Box(-1, 1, (2, 2), np.float32),
    "later": spaces.Discrete(3, start=1),
    "picture": spaces.Box(-np.inf, np.inf, (1, 2), np.float64),
    "numbers": spaces.Discrete(3),
}


class Walk(gymnasium.Env):
    """A point that is pushed, and is to stay near 0: left of -4 and right of 4 is the end."""

    def __init__(self, actions: str, observations: str = "picture") -> None:
        self.action_space = _SPACES[actions]
        self.observation_space = _SPACES[observations]
        self._place = 0.0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed, options=options)
        self._place = self.np_random.uniform(-2, 2)
        return self._observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        push = float(action[0]) if isinstance(self.action_space, spaces.Box) else action - 1.0
        self._place += push + self.np_random.uniform(-0.2, 0.2)
        return self._observe(), 1 - abs(self._place), abs(self._place) > 4, False, {}

    def _observe(self) -> np.ndarray:
        return np.array([[10 + 3 * self._place, 1.0]])  # of another scale, and one that is constant


def _register(name: str, *, limit: int | None = STEPS, **options: str) -> None:
    gymnasium.register(
        name, entry_point="tests.data.walks:Walk", max_episode_steps=limit, kwargs=options
    )


_register("Walk-v0", actions="box")
_register("Even-v0", actions="even")
_register("Steps-v0", actions="steps")
_register("Free-v0", actions="free")
_register("Endless-v0", actions="box", limit=None)
_register("Several-v0", actions="several")
_register("Square-v0", actions="square")
_register("Later-v0", actions="later")
_register("Numbered-v0", actions="box", observations="numbers")
