"""The order of the samples over a whole training run, counted in steps."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from torch.utils.data import Sampler


def as_it_is(batch: Any) -> Any:
    """Collates a batch that a data set made at once (`__getitems__`): there is nothing to do."""
    return batch


class StepBatches(Sampler[list[int]]):
    """Which items each step of a training run sees, by the seed and the number of the step only.

    The run is one endless sequence: all items in a shuffled order, then all again in another. Each
    step takes the next `batch_size` of it, so a batch may hold the end of one pass and the start of
    the next. Round r has the `steps_per_round` steps from r · steps_per_round on: a run that goes
    on at a round needs nothing but the round's number.

    For `DataLoader(batch_sampler=...)`.
    """

    def __init__(
        self, num_items: int, *, batch_size: int, steps_per_round: int, seed: int, round: int = 0
    ) -> None:
        """Start at a round.

        Args:
            num_items: Of the data set.
            batch_size: Items of a step.
            steps_per_round: Steps between two pauses, such as a validation and its checkpoint.
            seed: Of the order.
            round: The first one.

        Raises:
            ValueError: A size is below 1, or the round below 0.
        """
        sizes = {
            "num_items": num_items,
            "batch_size": batch_size,
            "steps_per_round": steps_per_round,
        }
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"{name} must be at least 1, got {size}")
        if round < 0:
            raise ValueError(f"round must be at least 0, got {round}")
        self.num_items = num_items
        self.batch_size = batch_size
        self.steps_per_round = steps_per_round
        self.seed = seed
        self.round = round

    @property
    def sampler(self) -> "StepBatches":
        """Itself: Lightning calls `set_epoch` of a batch sampler's sampler."""
        return self

    def __len__(self) -> int:
        """Steps of a round."""
        return self.steps_per_round

    def __iter__(self) -> Iterator[list[int]]:
        """The batches of this round."""
        first = self.round * self.steps_per_round * self.batch_size
        number, place = divmod(first, self.num_items)
        order = self._order(number)
        for _ in range(self.steps_per_round):
            batch: list[int] = []
            while len(batch) < self.batch_size:
                if place == self.num_items:
                    number, place = number + 1, 0
                    order = self._order(number)
                taken = order[place : place + self.batch_size - len(batch)].tolist()
                batch += taken
                place += len(taken)
            yield batch

    def set_epoch(self, epoch: int) -> None:
        """Choose the round. Lightning calls this before each."""
        self.round = epoch

    def _order(self, number: int) -> np.ndarray:
        return np.random.default_rng([self.seed, number]).permutation(self.num_items)
