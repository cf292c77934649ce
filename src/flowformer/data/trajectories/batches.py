"""Windows of episodes as batches, as a decision model reads them."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch import Tensor
from torch.utils.data import Dataset

from flowformer.data.trajectories.preprocessing import DecisionPreprocessing
from flowformer.data.trajectories.records import Trajectories


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
            preprocessing: of its numbers.
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
        """Number of windows."""
        return len(self.places)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """A batch of one."""
        return self.__getitems__([index])

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """A batch of these windows."""
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
    """What each episode still collects from each step on, that step's reward included."""
    total = np.cumsum(trajectories.rewards[::-1], dtype=np.float64)[::-1]
    # What lies behind the end of a step's episode: the total at the next one's start.
    behind = np.append(total[trajectories.starts[1:]], 0.0)
    return (total - np.repeat(behind, trajectories.lengths)).astype(np.float32)


def split_episodes(
    trajectories: Trajectories, fraction: float, seed: int
) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " m"]]:
    """Draws the episodes that are not trained on; both parts in the order of the set.

    Args:
        trajectories: the data set.
        fraction: of the episodes; at least one is drawn.
        seed: of the drawing.

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
