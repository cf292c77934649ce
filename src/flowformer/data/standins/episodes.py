"""Episodes in an environment, played by a linear policy or by chance."""

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float32, Float64, Int64

from flowformer.data.parallel import generator_of
from flowformer.data.trajectories.environments import make_environment, space_of
from flowformer.data.trajectories.records import Space

if TYPE_CHECKING:
    import gymnasium


@dataclass(frozen=True, eq=False)
class LinearPolicy:
    """Scores of actions, gain · observation + offset.

    Of a box they are cut to [-1, 1], and spread over it where it has bounds; of discrete actions
    the highest is taken.

    Attributes:
        gain: [a, o].
        offset: [a].
    """

    gain: Float64[np.ndarray, "a o"]
    offset: Float64[np.ndarray, " a"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Rollout:
    """An episode to be played.

    Attributes:
        env: gymnasium's name of the environment.
        policy: that acts; None for actions drawn uniformly.
        seed: seed of the environment and of the noise.
        noise: noise of the actions: a standard deviation in units of half a box, or the part of
            discrete actions that are drawn uniformly.
    """

    env: str
    policy: LinearPolicy | None
    seed: int
    noise: float = 0.0


@dataclass(frozen=True, kw_only=True, eq=False)
class Episode:
    """An episode that was played.

    Attributes:
        observations: the last one, after the last action, too.
        actions: as they were done.
        rewards: rewards of each action.
        terminated: whether the environment ended it, and not its time limit.
    """

    observations: Float32[np.ndarray, "steps_plus_1 o"]
    actions: Float32[np.ndarray, "steps a"] | Int64[np.ndarray, " steps"]
    rewards: Float32[np.ndarray, " steps"]
    terminated: bool

    @property
    def score(self) -> float:
        """Sum of the rewards."""
        return float(self.rewards.sum(dtype=np.float64))


def roll_out(rollout: Rollout) -> Episode:
    """Play an episode; the same one for the same rollout, in whatever process.

    Raises:
        NotImplementedError: observations or actions are of an unsupported kind.
        ValueError: the environment has no time limit, or gives what is not finite.
    """
    environment, space = environment_of(rollout.env)
    random = generator_of(rollout.seed, "actions")
    act = _actor(rollout, space)
    observation, _ = environment.reset(seed=rollout.seed)
    observations, actions, rewards = [np.ravel(observation)], [], []
    terminated = truncated = False
    while not (terminated or truncated):
        action = act(observations[-1], random)
        observation, reward, terminated, truncated, _ = environment.step(action)
        observations.append(np.ravel(observation))
        actions.append(action)
        rewards.append(reward)
    kind = np.float32 if space.n is None else np.int64
    return Episode(
        observations=np.asarray(observations, np.float32),
        actions=np.asarray(actions, kind),
        rewards=np.asarray(rewards, np.float32),
        terminated=bool(terminated),
    )


def mean_score(episodes: Iterable[Episode]) -> float:
    """Return the mean return."""
    return float(np.mean([episode.score for episode in episodes]))


@functools.cache  # making one takes longer than an episode; each process has its own
def environment_of(env: str) -> tuple["gymnasium.Env", Space]:
    """Return an environment, made once in each process, and the space of its actions.

    Raises:
        ValueError: it has no time limit; and what `make_environment` raises.
    """
    environment = make_environment(env)
    if environment.spec is None or environment.spec.max_episode_steps is None:
        raise ValueError(f"expected an environment with a time limit, and {env} has none")
    return environment, space_of(environment.action_space)


def _actor(
    rollout: Rollout, space: Space
) -> Callable[[np.ndarray, np.random.Generator], np.ndarray | np.int64]:
    if space.n is not None:
        return functools.partial(_act_discretely, rollout.policy, space.n, rollout.noise)
    low, high = space.bounds
    if rollout.policy is None:
        if not space.bounded:
            raise NotImplementedError(
                f"actions without bounds cannot be drawn uniformly: {rollout.env} has {space}"
            )
        return functools.partial(_draw, low, high)
    return functools.partial(_act_in_box, rollout.policy, low, high, rollout.noise)


def _draw(
    low: np.ndarray, high: np.ndarray, _observation: np.ndarray, random: np.random.Generator
) -> np.ndarray:
    return random.uniform(low, high).astype(np.float32)


def _act_in_box(
    policy: LinearPolicy,
    low: np.ndarray,
    high: np.ndarray,
    noise: float,
    observation: np.ndarray,
    random: np.random.Generator,
) -> np.ndarray:
    scores = np.minimum(np.maximum(policy.gain @ observation + policy.offset, -1), 1)
    if noise:
        scores = scores + noise * random.standard_normal(len(scores))
    finite = np.isfinite(low) & np.isfinite(high)
    half = np.where(finite, high - np.where(finite, low, 0), 2) / 2
    action = (np.where(finite, low, -1) + half * (1 + scores)).astype(np.float32)
    return np.minimum(np.maximum(action, low), high)  # in the precision that is recorded


def _act_discretely(
    policy: LinearPolicy | None,
    number: int,
    noise: float,
    observation: np.ndarray,
    random: np.random.Generator,
) -> np.int64:
    if policy is None or (noise and random.random() < noise):
        return np.int64(random.integers(number))
    return np.argmax(policy.gain @ observation + policy.offset)
