"""Batches by other processes: what goes wrong there is said as it would be here."""

import shutil
from typing import Any

import pytest
from torch.utils.data import DataLoader, Dataset

from flowformer.data.loaders import WorkerLoader, in_own_words
from flowformer.data.order import share_out


class OwnError(Exception):
    """One that takes more than a text."""

    def __init__(self, place: int, what: str) -> None:
        super().__init__(f"{what} at {place}")


def damaged(_: int) -> None:
    try:
        raise OSError("cut off")
    except OSError as error:
        raise ValueError("a.png: damaged image:\n  of 3 bytes") from error


def own(place: int) -> None:
    raise OwnError(place, "something")


def filled(_: int) -> None:
    raise RuntimeError("unable to write to file </torch_12_34_0>: No space left on device (28)")


class Failing(Dataset):
    """Of two items, the second of which fails."""

    def __init__(self, fail: Any) -> None:
        self._fail = fail

    def __len__(self) -> int:
        return 2

    def __getitem__(self, place: int) -> int:
        return self._fail(place) if place else 7


def read(fail: Any, workers: int) -> list[Any]:
    return list(WorkerLoader(Failing(fail), 1, num_workers=workers))


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_of_a_worker_is_that_error(workers):
    with pytest.raises(ValueError, match=r"^a\.png: damaged image:\n  of 3 bytes$"):
        read(damaged, workers)


def test_an_error_that_takes_more_than_a_text_keeps_its_name():
    with pytest.raises(RuntimeError, match=r"^OwnError: something at 1$"):
        read(own, 1)


def test_full_shared_memory_is_the_reason_and_no_workers_the_way_out(monkeypatch):
    usage = shutil._ntuple_diskusage(64 * 2**20, 2**26 - 2**20, 2**20)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(RuntimeError, match=r"1 of 64 MiB: give --data\.workers 0") as told:
        read(filled, 1)
    assert len(str(told.value)) < 300


@pytest.mark.parametrize(
    "text",
    [
        "unable to allocate shared memory(shm) for file </torch_1_2_3>: Success (0)",
        "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that "
        "dataloader's workers are out of shared memory. Please try to raise your shared memory "
        "limit.",
    ],
    ids=["allocation", "bus-error"],
)
def test_every_form_of_full_shared_memory_is_known(text):
    assert "--data.workers 0" in str(in_own_words(RuntimeError(text)))


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("unable to mmap 8 bytes from file </torch_1>: Cannot allocate memory (12)"),
        OSError(28, "No space left on device", "/runs/checkpoint"),
        ValueError("Caught in a trap"),
    ],
    ids=["memory", "disk", "other"],
)
def test_other_errors_are_left_as_they_are(error):
    assert in_own_words(error) is error


def test_whole_batches_come_as_from_any_loader():
    data: Any = list(range(7))
    batches = [each.tolist() for each in WorkerLoader(data, 3, num_workers=2)]
    assert batches == [each.tolist() for each in DataLoader(data, 3)]
    shared = share_out(WorkerLoader(data, 4), process=0, processes=2)
    assert isinstance(shared, WorkerLoader)
