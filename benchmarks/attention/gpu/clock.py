"""Time and memory of a call on a GPU, and what is to be done where a call fails."""

from collections.abc import Callable
from typing import Protocol

import torch

from flowformer.memory import is_out_of_memory


class Clock(Protocol):
    """What is measured of a call, and on which device."""

    device: torch.device
    name: str

    def seconds(self, call: Callable[[], object], calls: int) -> float:
        """Return the seconds of that many calls."""
        ...

    def peak(self, call: Callable[[], object]) -> int:
        """Return the bytes that a call takes beside those that are taken already."""
        ...


class CudaClock:
    """CUDA events of the current device, and the caching allocator's high-water mark."""

    def __init__(self) -> None:
        self.device = torch.device("cuda", torch.cuda.current_device())
        self.name = torch.cuda.get_device_name(self.device)

    def seconds(self, call: Callable[[], object], calls: int) -> float:
        """Return the seconds from the first launch to the end of the last kernel."""
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(calls):
            call()
        end.record()
        waited = problem_of(end.synchronize)
        assert waited is None, waited
        return start.elapsed_time(end) / 1e3

    def peak(self, call: Callable[[], object]) -> int:
        """Return the rise of the memory that is allocated; what is cached is given back first."""
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before


class BrokenContextError(Exception):
    """After an error on the card, this process cannot use it any more: another one goes on."""


class Side:
    """A side in its turns; once it does not fit beside the others, it sits out the rest."""

    def __init__(self, call: Callable[[], object]) -> None:
        self.call = call
        self.problem: str | None = None

    def __call__(self) -> None:
        """Take a turn."""
        if self.problem is None:
            self.problem = problem_of(self.call)


def problem_of(call: Callable[[], object]) -> str | None:
    """Call it; return in words what went wrong, or None.

    Raises:
        BrokenContextError: the card cannot be used by this process any more.
    """
    try:
        call()
    except Exception as error:
        if is_out_of_memory(error):
            return "does not fit in the card's memory"
        said = (str(error).strip().splitlines() or [""])[0]
        text = f"{type(error).__name__}: {said}"
        if "CUDA error" in text:
            raise BrokenContextError(text) from error
        return text
    return None
