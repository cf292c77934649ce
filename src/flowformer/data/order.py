"""The order of samples: which of them a training step sees, and in which process."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Sampler


class EpochSampler(Sampler[int]):
    """A shuffled order that depends on the seed and the epoch only.

    A run that goes on at the start of an epoch needs nothing but the number of that epoch.
    """

    def __init__(self, size: int, seed: int) -> None:
        """Start at the beginning of epoch 0.

        Args:
            size: number of samples.
            seed: seed of the order.
        """
        self.size = size
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        """Return the number of samples in an epoch."""
        return self.size

    def __iter__(self) -> Iterator[int]:
        """Return the order of this epoch."""
        # numpy mixes the pair into one seed; a sum would give (1, 2) and (2, 1) the same order.
        rng = np.random.default_rng([self.seed, self.epoch])
        return iter(rng.permutation(self.size).tolist())

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch. Lightning calls this before each."""
        self.epoch = epoch


def as_it_is(batch: Any) -> Any:
    """Collate a batch that a data set made at once (`__getitems__`): there is nothing to do."""
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
            num_items: items of the data set.
            batch_size: items of a step.
            steps_per_round: steps between two pauses, such as a validation and its checkpoint.
            seed: seed of the order.
            round: the first one.

        Raises:
            ValueError: a size is below 1, or the round below 0.
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
        """Return the number of steps of a round."""
        return self.steps_per_round

    def __iter__(self) -> Iterator[list[int]]:
        """Return the batches of this round."""
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


class SharedBatches(Sampler[list[Any]]):
    """The share that one process has of every batch.

    Item i of a batch is of process i mod `processes`, so that the shares of all together are the
    batch, whatever its size: a run takes the same steps on any number of processes. A batch with
    fewer items than there are processes leaves some without one; those get the first item once
    more, since all must take every step, and `is_repeated` says that it does not count.

    For `DataLoader(batch_sampler=...)`.
    """

    def __init__(self, batches: Any, *, process: int, processes: int) -> None:
        """Keep the batches.

        Args:
            batches: the whole ones: a batch sampler, with a length.
            process: the one whose shares these are.
            processes: how many share the batches.

        Raises:
            ValueError: there is no such process.
        """
        if not 0 <= process < processes:
            raise ValueError(f"process must be in [0, {processes}), got {process}")
        self.batches = batches
        self.process = process
        self.processes = processes
        self._repeated: set[int] = set()

    @property
    def sampler(self) -> Any:
        """That of the whole batches: Lightning calls its `set_epoch`, if it has one."""
        return getattr(self.batches, "sampler", None)

    def __len__(self) -> int:
        """Return the number of batches, the same for every process."""
        return len(self.batches)

    def __iter__(self) -> Iterator[list[Any]]:
        """Return the shares, in the order of the batches."""
        self._repeated.clear()
        for number, batch in enumerate(self.batches):
            share = batch[self.process :: self.processes]
            if not share:
                self._repeated.add(number)
            yield share or batch[:1]

    def is_repeated(self, number: int) -> bool:
        """Return whether the share of a batch of this pass is another process's item, once more."""
        return number in self._repeated


def shares_of(loader: DataLoader) -> SharedBatches:
    """Return the shares that a loader of `share_out` reads."""
    batches = loader.batch_sampler
    assert isinstance(batches, SharedBatches)
    return batches


def share_out(loader: DataLoader, *, process: int, processes: int) -> DataLoader:
    """Return a loader of the shares of one process in the batches of another loader.

    Args:
        loader: a loader whose batches a batch sampler makes.
        process: the one whose shares these are.
        processes: how many share the batches.

    Raises:
        ValueError: it has no batch sampler, as one of a stream.
    """
    if loader.batch_sampler is None:
        raise ValueError(f"expected a loader with a batch sampler, got one of {loader.dataset}")
    batches = SharedBatches(loader.batch_sampler, process=process, processes=processes)
    return type(loader)(
        loader.dataset,
        batch_sampler=batches,
        collate_fn=loader.collate_fn,
        num_workers=loader.num_workers,
    )
