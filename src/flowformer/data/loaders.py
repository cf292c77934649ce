"""Which samples a step sees and in which process, batches made by others, torch's generators."""

import os
import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler

from flowformer.machine import safe_path
from flowformer.names import require_positive

_CAUGHT = re.compile(r"Caught \w+ in DataLoader worker process \d+\.\nOriginal ")
_WHERE = "/dev/shm"


class EpochSampler(Sampler[int]):
    """A shuffled order that depends on the seed and the epoch only.

    A run that goes on at the start of an epoch needs nothing but the number of that epoch.
    """

    def __init__(self, size: int, seed: int, *, passes: int = 1) -> None:
        """Start at the beginning of epoch 0.

        Args:
            size: number of samples.
            seed: seed of the order.
            passes: how often an epoch takes every sample, each time in an order of its own.
        """
        self.size = size
        self.seed = seed
        self.passes = passes
        self.epoch = 0

    def __len__(self) -> int:
        return self.passes * self.size

    def __iter__(self) -> Iterator[int]:
        # numpy mixes the pair into one seed; a sum would give (1, 2) and (2, 1) the same order.
        rng = np.random.default_rng([self.seed, self.epoch])
        return (index for _ in range(self.passes) for index in rng.permutation(self.size).tolist())

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
        require_positive(
            num_items=num_items, batch_size=batch_size, steps_per_round=steps_per_round
        )
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
        return self.steps_per_round

    def __iter__(self) -> Iterator[list[int]]:
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


class WorkerLoader(DataLoader):
    """A DataLoader whose worker processes fail with their own words.

    torch gives an error of a worker its whole traceback as its message. The workers import nothing
    from the current folder.
    """

    def __iter__(self) -> Any:
        """Yield the batches.

        Raises:
            RuntimeError: there is too little shared memory for the workers' batches.
        """
        return self._batches() if self.num_workers else super().__iter__()

    def _batches(self) -> Iterator[Any]:
        try:
            with safe_path():
                batches = super().__iter__()
            yield from batches
        except Exception as error:
            told = in_own_words(error)
            if told is error:
                raise
            raise told from error


def in_own_words(error: Exception) -> Exception:
    """Return what a worker raised, without the traceback that torch has put into its message.

    Args:
        error: raised by a DataLoader; one that is none of a worker's is returned itself.
    """
    text = str(error)
    if _is_of_shared_memory(text.lower()):
        return RuntimeError(
            f"data workers hand over batches in shared memory, and {_space()}: give --data.workers "
            "0 (data.workers=0), a smaller data.batch_size, or the machine more of it (docker run "
            "--shm-size)"
        )
    found = _CAUGHT.match(text)
    if found is None:
        return error
    # Of several tracebacks, each the cause of the next, the last ends in the error itself.
    lines = (
        text[found.end() :].rstrip().split("Traceback (most recent call last):\n")[-1].split("\n")
    )
    while lines and lines[0].startswith(" "):  # frames
        del lines[0]
    kind, _, message = "\n".join(lines).partition(": ")
    kind = kind.rpartition(".")[2]
    if kind == type(error).__name__:
        try:
            return type(error)(message)
        except Exception:  # noqa: BLE001 - whatever its class asks for
            pass
    return RuntimeError(f"{kind}: {message}")


def _is_of_shared_memory(text: str) -> bool:
    if "no space left" in text:
        return "/torch_" in text  # its names of what it shares
    return "unable to allocate shared memory" in text or "bus error" in text


def _space() -> str:
    try:
        usage = shutil.disk_usage(_WHERE)
    except OSError:
        return f"there is no {_WHERE}"
    return f"{_WHERE} has room for {usage.free / 2**20:,.0f} of {usage.total / 2**20:,.0f} MiB"


_turn = threading.RLock()


@contextmanager
def own_randomness() -> Iterator[None]:
    """Have torch's global generator for oneself, and give it back as it was.

    What layers and transforms draw comes from there: two threads that had seeded it would draw each
    other's numbers. Threads take turns, one that trains for the whole of its training.
    """
    with _turn, torch.random.fork_rng(devices=[]):
        yield


def _forget() -> None:
    global _turn
    _turn = threading.RLock()


# A process that was forked while another thread had its turn would wait for it for ever.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
