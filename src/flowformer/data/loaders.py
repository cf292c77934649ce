"""Batches made by other processes, and torch's generators, which threads share."""

import os
import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.data import DataLoader

from flowformer.machine import safe_path

_CAUGHT = re.compile(r"Caught \w+ in DataLoader worker process \d+\.\nOriginal ")
_WHERE = "/dev/shm"


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
