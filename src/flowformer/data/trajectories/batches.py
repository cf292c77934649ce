"""From episodes to batches: preprocessing of their numbers, and windows of steps."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, Int64
from torch import Tensor
from torch.utils.data import Dataset

from flowformer.data.arrays import centred_only_where_constant
from flowformer.data.options import ConstantFeatures
from flowformer.data.trajectories.records import Space, Trajectories

_LEAST_STD = 1e-6  # added to every deviation, as published

Actions = Float[np.ndarray, "*batch dims"] | Int64[np.ndarray, " *batch"]


@dataclass(frozen=True, kw_only=True, eq=False)
class DecisionPreprocessing:
    """Standardised observations, scaled returns, and actions in (-1, 1) where they have bounds.

    Attributes:
        state_mean: subtracted from observations.
        state_std: that divides them then.
        return_scale: that divides returns, 1,000 in the published runs.
        action_space: action space of the environment.
    """

    state_mean: Float64[np.ndarray, " _features"]
    state_std: Float64[np.ndarray, " _features"]
    return_scale: float
    action_space: Space

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            ValueError: mean and deviation differ in shape, or are no finite numbers; a deviation or
                the scale is not positive.
        """
        if self.state_mean.shape != self.state_std.shape:
            raise ValueError(
                "expected state_mean and state_std of the same features, got "
                f"{len(self.state_mean)} and {len(self.state_std)}"
            )
        if not (np.isfinite(self.state_mean).all() and np.isfinite(self.state_std).all()):
            raise ValueError("state_mean and state_std must be finite")
        if not (self.state_std > 0).all() or not self.return_scale > 0:
            raise ValueError(
                "state_std and return_scale must be positive, got "
                f"{self.state_std.min(initial=np.inf)} at least and {self.return_scale}"
            )

    @classmethod
    def fit(
        cls,
        trajectories: Trajectories,
        *,
        return_scale: float,
        constant_features: ConstantFeatures = "centred",
    ) -> "DecisionPreprocessing":
        """Take mean and deviation from all steps of a data set.

        Args:
            trajectories: the data set.
            return_scale: that divides returns.
            constant_features: what divides features that do not vary: "centred" by 1, so that no
                more is taken off them than their value; "published" by 1e-6, so that 0.01 more
                than in the data is 10,000.
        """
        observations = trajectories.observations
        std = observations.std(0, dtype=np.float64) + _LEAST_STD
        if constant_features == "centred":
            std = centred_only_where_constant(std, observations.min(0), observations.max(0))
        return cls(
            state_mean=observations.mean(0, dtype=np.float64),
            state_std=std,
            return_scale=return_scale,
            action_space=trajectories.action_space,
        )

    @property
    def features(self) -> int:
        """Of an observation."""
        return len(self.state_mean)

    def states(self, observations: Float[np.ndarray, "*b f"]) -> Float32[np.ndarray, "*b f"]:
        """Return observations as the model reads them: (observation - mean) / deviation."""
        return ((observations - self.state_mean) / self.state_std).astype(np.float32)

    def returns(self, returns: Float[np.ndarray, "*b"]) -> Float32[np.ndarray, "*b"]:
        """Return returns as the model reads them."""
        return (returns / self.return_scale).astype(np.float32)

    def to_model(self, actions: Actions) -> Actions:
        """Return the environment's actions as the model has them.

            2 · (action - low) / (high - low) - 1

        where the space has both bounds; as they are otherwise.
        """
        if not self.action_space.bounded:
            return actions
        low, high = self.action_space.bounds
        return 2 * (actions - low) / (high - low) - 1

    def to_environment(self, actions: Actions) -> Actions:
        """Return the model's actions as the environment takes them, clipped to its bounds.

        The other way of `to_model`.
        """
        if self.action_space.n is not None:
            return actions
        low, high = self.action_space.bounds
        if self.action_space.bounded:
            actions = low + (actions + 1) / 2 * (high - low)
        return np.clip(actions, low, high)

    def record(self) -> dict[str, Any]:
        """Return its values, as JSON can hold them."""
        return {
            "state_mean": self.state_mean.tolist(),
            "state_std": self.state_std.tolist(),
            "return_scale": self.return_scale,
            "action_space": self.action_space.record(),
        }

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> "DecisionPreprocessing":
        """Read what `record` gave, after a way through JSON."""
        return cls(
            state_mean=np.array(record["state_mean"], np.float64),
            state_std=np.array(record["state_std"], np.float64),
            return_scale=record["return_scale"],
            action_space=Space.of(record["action_space"]),
        )


class DecisionWindows(Dataset[dict[str, Tensor]]):
    """Windows of at most `context` steps, none across the end of an episode.

    Batches are made at once, by a DataLoader that asks for all items of one (`__getitems__`), with
    `collate_fn=as_it_is`. A batch has `returns_to_go`, `observations`, `actions`, `timesteps`
    and `mask`, [b, t, ...], t being its longest window, padded at the right.

    Attributes:
        places: the first step of each window.
    """

    def __init__(
        self,
        trajectories: Trajectories,
        preprocessing: DecisionPreprocessing,
        *,
        context: int,
        episodes: Int64[np.ndarray, " _n"] | None = None,
        stride: int = 1,
    ) -> None:
        """Count the windows.

        With a stride of 1, one begins at every step: a training that draws them evenly draws
        episodes by their length and a place in them evenly, as published.

        Args:
            trajectories: the data set.
            preprocessing: how its numbers become the model's.
            context: steps of a window.
            episodes: those to take; None for all.
            stride: steps between the beginnings of two windows of an episode.

        Raises:
            ValueError: a size below 1, or no episode.
        """
        if context < 1 or stride < 1:
            raise ValueError(f"context and stride must be at least 1, got {context} and {stride}")
        every = np.arange(len(trajectories)) if episodes is None else episodes
        if not len(every):
            raise ValueError(f"{trajectories.name}: expected at least one episode, got none")
        self._trajectories = trajectories
        self._preprocessing = preprocessing
        self._context = context
        self._returns_to_go = returns_to_go(trajectories)
        starts, ends = trajectories.starts, trajectories.starts + trajectories.lengths
        self.places = np.concatenate(
            [np.arange(starts[each], ends[each], stride) for each in every]
        )
        episode = np.searchsorted(starts, self.places, side="right") - 1
        self._begins, self._ends = starts[episode], ends[episode]

    def __len__(self) -> int:
        """Return the number of windows."""
        return len(self.places)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Return a batch of one."""
        return self.__getitems__([index])

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """Return a batch of these windows."""
        chosen = np.asarray(indices)
        first, last = self.places[chosen], self._ends[chosen]
        length = int(min(self._context, (last - first).max()))
        steps = first[:, None] + np.arange(length)
        mask = steps < last[:, None]
        steps = np.where(mask, steps, first[:, None])  # padding repeats what is there: it is masked
        of, own = self._trajectories, self._preprocessing
        actions = own.to_model(of.actions[steps])
        return {
            "returns_to_go": torch.from_numpy(own.returns(self._returns_to_go[steps])),
            "observations": torch.from_numpy(own.states(of.observations[steps])),
            "actions": torch.from_numpy(np.ascontiguousarray(actions)),
            "timesteps": torch.from_numpy(steps - self._begins[chosen, None]),
            "mask": torch.from_numpy(mask),
        }


def returns_to_go(trajectories: Trajectories) -> Float32[np.ndarray, " steps"]:
    """Return what each episode still collects from each step on, that step's reward included."""
    total = np.cumsum(trajectories.rewards[::-1], dtype=np.float64)[::-1]
    # What lies behind the end of a step's episode: the total at the next one's start.
    behind = np.append(total[trajectories.starts[1:]], 0.0)
    return (total - np.repeat(behind, trajectories.lengths)).astype(np.float32)


def split_episodes(
    trajectories: Trajectories, fraction: float, seed: int
) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " m"]]:
    """Draw the episodes that are not trained on; both parts in the order of the set.

    Args:
        trajectories: the data set.
        fraction: fraction of the episodes; at least one is drawn.
        seed: seed of the drawing.

    Raises:
        ValueError: there is one episode only.
    """
    count = len(trajectories)
    if count < 2:
        raise ValueError(
            f"{trajectories.name}: expected at least two episodes, one to train on and one to "
            "measure the loss on, got one"
        )
    drawn = np.random.default_rng(seed).permutation(count)
    held_out = max(1, min(count - 1, round(fraction * count)))
    return np.sort(drawn[held_out:]), np.sort(drawn[:held_out])
