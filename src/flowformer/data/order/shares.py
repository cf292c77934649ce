"""What each of several processes sees of a batch: its share, none twice and none left out."""

from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader, Sampler


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
            batches: The whole ones: a batch sampler, with a length.
            process: Of which the shares are.
            processes: Among which the batches are shared.

        Raises:
            ValueError: There is no such process.
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
        """Number of batches, the same for every process."""
        return len(self.batches)

    def __iter__(self) -> Iterator[list[Any]]:
        """The shares, in the order of the batches."""
        self._repeated.clear()
        for number, batch in enumerate(self.batches):
            share = batch[self.process :: self.processes]
            if not share:
                self._repeated.add(number)
            yield share or batch[:1]

    def is_repeated(self, number: int) -> bool:
        """Whether the share of a batch of this pass is another process's item, once more."""
        return number in self._repeated


def shares_of(loader: DataLoader) -> SharedBatches:
    """Returns the shares that a loader of `share_out` reads."""
    batches = loader.batch_sampler
    assert isinstance(batches, SharedBatches)
    return batches


def share_out(loader: DataLoader, *, process: int, processes: int) -> DataLoader:
    """Returns a loader of the shares of one process in the batches of another loader.

    Args:
        loader: With batches that it makes by a batch sampler.
        process: Of which the shares are.
        processes: Among which the batches are shared.

    Raises:
        ValueError: It has no batch sampler, as one of a stream.
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
