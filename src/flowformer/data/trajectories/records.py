"""Episodes that some policy has met: what offline reinforcement learning learns from."""

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64, Shaped

from flowformer.config_json import from_plain, to_plain
from flowformer.data.arrays import map_array
from flowformer.files import atomic_file, parse_json, write_atomically

Bound = float | tuple[float, ...] | None

_DESCRIPTION = "description.json"  # written last: a folder without it is not whole
ROUNDING = 1e-4  # of a box's width: what actions may be outside by
_OF_DAMAGE = (LookupError, AttributeError, ArithmeticError, NotImplementedError)
_ARRAYS = ("observations", "actions", "rewards", "starts", "terminated")


@dataclass(frozen=True, kw_only=True)
class Space:
    """What actions there are.

    Attributes:
        shape: shape of an action: (dims,) of a box, () of a discrete one.
        low: least value of a box; a tuple where dimensions differ, None where there is none.
        high: greatest value, likewise.
        n: number of discrete actions, which are 0 to n - 1; None of a box.
    """

    shape: tuple[int, ...]
    low: Bound = None
    high: Bound = None
    n: int | None = None

    def __post_init__(self) -> None:
        """Check that it is a box of one axis, or discrete.

        Raises:
            NotImplementedError: it has another shape.
            ValueError: bounds or n are out of range.
        """
        if len(self.shape) != (1 if self.n is None else 0):
            raise NotImplementedError(
                "expected actions of a box with one axis, shape (dims,), or discrete ones, shape "
                f"() with n: got shape {self.shape} and n {self.n}"
            )
        if self.n is not None:
            if self.n < 1 or self.low is not None or self.high is not None:
                raise ValueError(
                    f"discrete actions have n of at least 1 and no bounds, got n={self.n}, "
                    f"low={self.low}, high={self.high}"
                )
            return
        for name, bound in (("low", self.low), ("high", self.high)):
            if isinstance(bound, tuple) and len(bound) != self.shape[0]:
                raise ValueError(f"expected {self.shape[0]} values of {name}, got {len(bound)}")
        # Not `bounds`: a damaged shape may be too large to be filled.
        low = np.asarray(-np.inf if self.low is None else self.low, np.float32)
        high = np.asarray(np.inf if self.high is None else self.high, np.float32)
        if not (low < high).all():
            raise ValueError(f"expected low below high, got low={self.low} and high={self.high}")

    @property
    def bounds(self) -> tuple[Float32[np.ndarray, " dims"], Float32[np.ndarray, " dims"]]:
        """Of a box: least and greatest value of each dimension, infinite where there is none."""
        low = -np.inf if self.low is None else self.low
        high = np.inf if self.high is None else self.high
        return (
            np.broadcast_to(np.asarray(low, np.float32), self.shape),
            np.broadcast_to(np.asarray(high, np.float32), self.shape),
        )

    @property
    def bounded(self) -> bool:
        """Whether it is a box with finite bounds on both sides."""
        return self.n is None and all(np.isfinite(bound).all() for bound in self.bounds)

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> "Space":
        """Read what `record` gave, after a way through JSON."""
        return from_plain(cls, record)

    def record(self) -> dict[str, Any]:
        """Return its values, as JSON can hold them."""
        return to_plain(self)


@dataclass(frozen=True, kw_only=True)
class WrapperOptions:
    """What is put around an environment.

    Attributes:
        entry_point: where its class is, such as "gymnasium.wrappers.transform_reward:ClipReward".
        kwargs: keyword arguments of its constructor; None where they were not kept.
    """

    entry_point: str
    kwargs: Mapping[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class EnvironmentOptions:
    """What an environment is made with, other than its name says.

    Attributes:
        kwargs: keyword arguments of its constructor.
        max_episode_steps: its time limit; -1 for none, None for that of its name.
        wrappers: around it, the innermost first.
    """

    kwargs: Mapping[str, Any] = field(default_factory=dict)
    max_episode_steps: int | None = None
    wrappers: tuple[WrapperOptions, ...] = ()

    def in_words(self, env: str) -> str:
        """Return the environment's name with these: "Hopper-v5 (healthy_reward=5, 55 steps)"."""
        said = [f"{name}={value!r}" for name, value in self.kwargs.items()]
        if self.max_episode_steps is not None:
            limited = self.max_episode_steps >= 0
            said.append(f"{self.max_episode_steps:,} steps" if limited else "no time limit")
        said += [f"in {each.entry_point.rpartition(':')[2]}" for each in self.wrappers]
        return f"{env} ({', '.join(said)})" if said else env

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> "EnvironmentOptions":
        """Read what `record` gave, after a way through JSON; what is missing is as by default.

        Raises:
            ValueError: a value is of another kind.
        """
        return from_plain(cls, record, where="environment")

    def record(self) -> dict[str, Any]:
        """Return its values, as JSON can hold them; empty where all is as its name says."""
        return {
            name: value for name, value in to_plain(self).items() if value not in (None, {}, [])
        }


@dataclass(frozen=True, kw_only=True, eq=False)
class Trajectories:
    """A data set of episodes, one after the other.

    Attributes:
        name: such as "hopper-medium-v2".
        source: where it is from, in words.
        env: gymnasium's name of the environment, such as "Hopper-v5"; None where unknown.
        observations: that each action answered.
        actions: actions of a box, or discrete ones.
        rewards: rewards of each action.
        starts: the first step of each episode; it ends where the next begins.
        terminated: whether the environment ended the episode; False where a time limit did, or
            where the record stops.
        action_space: that the actions are from.
        references: the returns of a random and of an expert policy, which scores are relative to.
        env_options: what the environment was made with, other than its name says.
    """

    name: str
    source: str
    env: str | None
    # Lengths are checked below, with messages: the underscore leaves them out of the shape checks.
    observations: Float32[np.ndarray, "_steps features"]
    actions: Float32[np.ndarray, "_steps dims"] | Int64[np.ndarray, " _steps"]
    rewards: Float32[np.ndarray, " _steps"]
    starts: Int64[np.ndarray, " _episodes"]
    terminated: Bool[np.ndarray, " _episodes"]
    action_space: Space
    references: tuple[float, float] | None = None
    env_options: EnvironmentOptions = EnvironmentOptions()

    def __post_init__(self) -> None:
        """Check arrays against one another and against what they are said to be.

        Raises:
            ValueError: they do not fit; an episode is empty; a value is not finite; an action is
                outside its space. The message says where.
        """
        self._require_lengths()
        self._require_episodes()
        for name in ("observations", "rewards"):
            self._require_all(np.isfinite(getattr(self, name)), f"finite {name}", name)
        self._require_actions()
        if self.references is not None and not self.references[0] < self.references[1]:
            raise ValueError(
                f"{self.name}: expected a random policy's return below an expert's, got "
                f"{self.references}"
            )

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def steps(self) -> int:
        """Of all episodes together."""
        return len(self.rewards)

    @cached_property
    def lengths(self) -> Int64[np.ndarray, " episodes"]:
        """Steps of each episode."""
        return np.diff(self.starts, append=self.steps)

    @cached_property
    def returns(self) -> Float64[np.ndarray, " episodes"]:
        """Sum of the rewards of each episode."""
        return np.add.reduceat(self.rewards.astype(np.float64), self.starts)

    def normalized(self, score: float) -> float:
        """Scale a return to percent of the way from the random policy's to the expert's.

        See `normalized_score`.

        Raises:
            ValueError: the set has no reference returns.
        """
        if self.references is None:
            raise ValueError(f"{self.name} has no reference returns: a score cannot be normalised")
        return normalized_score(score, self.references)

    def mixed(self, other: "Trajectories", *, name: str | None = None) -> "Trajectories":
        """Return the episodes of both, these first, as D4RL's medium-expert sets are made.

        Args:
            other: a set of the same environment.
            name: name of the new set; both names joined by default.

        Raises:
            ValueError: environments, spaces or reference returns differ.
        """
        features = [of.observations.shape[1] for of in (self, other)]
        pairs = {
            "environments": (self._environment, other._environment),
            "action spaces": (self.action_space, other.action_space),
            "features of an observation": features,
            "reference returns": (self.references, other.references),
        }
        for what, (mine, others) in pairs.items():
            if mine != others:
                raise ValueError(
                    f"expected the same {what} in {self.name} and {other.name}, got {mine} and "
                    f"{others}"
                )
        joined = {
            part: np.concatenate([getattr(self, part), getattr(other, part)]) for part in _ARRAYS
        }
        joined["starts"] = np.concatenate([self.starts, other.starts + self.steps])
        return Trajectories(
            name=f"{self.name}+{other.name}" if name is None else name,
            source=f"{self.source}; and {other.source}",
            env=self.env,
            action_space=self.action_space,
            references=self.references,
            env_options=self.env_options,
            **joined,
        )

    @property
    def _environment(self) -> str:
        return self.env_options.in_words("unknown" if self.env is None else self.env)

    def save(self, folder: Path) -> None:
        """Write it; a kill leaves a folder that `load` refuses, never half a set."""
        (folder / _DESCRIPTION).unlink(missing_ok=True)
        for name in _ARRAYS:
            with atomic_file(folder / f"{name}.npy") as file:
                np.save(file, getattr(self, name))
        write_atomically(folder / _DESCRIPTION, json.dumps(self.description(), indent=1) + "\n")

    def description(self) -> dict[str, Any]:
        """Return all but the arrays, as JSON has it."""
        return {
            "name": self.name,
            "source": self.source,
            "env": self.env,
            "env_options": self.env_options.record(),
            "action_space": self.action_space.record(),
            "references": self.references,
        }

    @classmethod
    def load(cls, folder: Path) -> "Trajectories":
        """Read what `save` wrote: look through the arrays once, and leave them on the disk.

        Raises:
            FileNotFoundError: there is no such set there, or not a whole one.
            ValueError: a file is damaged.
        """
        path = folder / _DESCRIPTION
        if not path.is_file():
            raise FileNotFoundError(f"expected a set of trajectories in {folder}, found none")
        try:
            known = parse_json(path.read_text())
            arrays: dict[str, Any] = {name: map_array(folder / f"{name}.npy") for name in _ARRAYS}
            return cls(**described(known), **arrays)
        except (*_OF_DAMAGE, OSError, ValueError, TypeError) as error:
            raise ValueError(
                f"{folder} holds a damaged set of trajectories: delete it, to make it anew "
                f"({error})"
            ) from error

    def _require_lengths(self) -> None:
        axes = {"observations": 2, "actions": len(self.action_space.shape) + 1, "rewards": 1}
        for name, count in axes.items():
            array = getattr(self, name)
            if array.ndim != count or len(array) != len(self.rewards):
                raise ValueError(
                    f"{self.name}: expected {name} with {count} {'axis' if count == 1 else 'axes'} "
                    f"and {len(self.rewards):,} steps, got shape {array.shape}"
                )
        if len(self.terminated) != len(self.starts):
            raise ValueError(
                f"{self.name}: expected {len(self.starts):,} values of terminated, one an episode, "
                f"got {len(self.terminated):,}"
            )

    def _require_episodes(self) -> None:
        if not len(self.starts) or self.starts[0] != 0:
            raise ValueError(f"{self.name}: expected at least one episode that begins at step 0")
        empty = np.flatnonzero(self.lengths < 1)
        if len(empty):
            raise ValueError(
                f"{self.name}: expected at least one step an episode, got {self.lengths[empty[0]]} "
                f"in episode {empty[0]}"
            )

    def _require_actions(self) -> None:
        space = self.action_space
        if space.n is not None:
            inside = (self.actions >= 0) & (self.actions < space.n)
            self._require_all(inside, f"actions in [0, {space.n})", "actions")
            return
        if self.actions.shape[1:] != space.shape:
            raise ValueError(
                f"{self.name}: expected actions with {space.shape[0]} dimensions, got "
                f"{self.actions.shape[1]}"
            )
        self._require_all(np.isfinite(self.actions), "finite actions", "actions")
        low, high = space.bounds
        inside = (self.actions >= low) & (self.actions <= high)
        self._require_all(inside, f"actions between {space.low} and {space.high}", "actions")

    def _require_all(self, right: Shaped[np.ndarray, "..."], expected: str, name: str) -> None:
        if right.all():
            return
        step = int(np.argwhere(~right)[0, 0])
        raise ValueError(
            f"{self.name}: expected {expected}, got {getattr(self, name)[step]} at step {step:,}"
        )


def refuse_pictures(shape: tuple[int, ...], dtype: Any) -> None:
    """Refuse an observation that is a picture: models read features.

    Args:
        shape: shape of an observation.
        dtype: dtype of its values.

    Raises:
        NotImplementedError: it has three axes or more, or two of bytes.
    """
    if len(shape) >= 3 or (len(shape) == 2 and np.dtype(dtype) == np.uint8):
        raise NotImplementedError(
            f"expected observations of features, got pictures of shape {tuple(shape)}: these are "
            "not supported"
        )


def put_inside(
    actions: Float32[np.ndarray, "_steps dims"], space: Space, name: str
) -> Float32[np.ndarray, "_steps dims"]:
    """Clip actions that rounding has put outside their box, and warn of it; leave the others.

    Args:
        actions: actions of a box.
        space: their box.
        name: name of the set, for the warning.
    """
    if actions.shape[1:] != space.shape:
        return actions  # refused where the set is made
    low, high = space.bounds
    outside = np.maximum(low - actions, actions - high).max(initial=0.0)
    width = np.where(np.isfinite(high - low), high - low, 1.0)
    slight = (actions >= low - ROUNDING * width) & (actions <= high + ROUNDING * width)
    if not outside > 0 or not slight.all():
        return actions
    inside = ((actions >= low) & (actions <= high)).all(1)
    warnings.warn(
        f"{name}: {np.count_nonzero(~inside):,} of {len(actions):,} actions are outside the box "
        f"between {space.low} and {space.high}, by {outside:.1g} at most: they were clipped",
        stacklevel=3,
    )
    return np.clip(actions, low, high)


def normalized_score(mean_return: float, references: tuple[float, float]) -> float:
    """Scale a mean return so that a random policy's is 0 and an expert's 100.

        100 · (return - random) / (expert - random)

    D4RL (Fu et al., 2020), section 5.

    Raises:
        ValueError: the expert's is not above the random policy's.
    """
    random, expert = references
    if not random < expert:
        raise ValueError(f"expected a random policy's return below an expert's, got {references}")
    return 100 * (mean_return - random) / (expert - random)


def described(record: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `Trajectories` from its `description` after a way through JSON."""
    references = record["references"]
    return {
        "name": record["name"],
        "source": record["source"],
        "env": record["env"],
        "env_options": EnvironmentOptions.of(record.get("env_options", {})),
        "action_space": Space.of(record["action_space"]),
        "references": None if references is None else (references[0], references[1]),
    }
