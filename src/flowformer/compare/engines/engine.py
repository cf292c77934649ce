"""The interface of an engine: it is given runs, and says in which state each has ended."""

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from flowformer.compare.plan import PlannedRun, RunRequest, RunState


@dataclass(frozen=True, kw_only=True)
class Task:
    """A run as any process is told it, on whatever machine: plain values and whole paths.

    Attributes:
        request: the run.
        run_dir: its folder.
        state_file: the file of its state, which is there before it is begun.
        log: the file of all that it prints.
        memory_limit: bytes that it may have resident (on a GPU: allocated there); None for all.
    """

    request: RunRequest
    run_dir: str
    state_file: str
    log: str
    memory_limit: int | None = None

    @classmethod
    def of(cls, run: PlannedRun, memory_limit: int | None) -> "Task":
        """Return the task that a run is."""
        return cls(
            request=run.request,
            run_dir=str(run.folder.root.resolve()),
            state_file=str(run.state_file.resolve()),
            log=str(run.log.resolve()),
            memory_limit=memory_limit,
        )


class Engine(ABC):
    """What does runs, each in a process of its own: one that fails ends no other.

    The process of a run writes its state file: when it is begun, and when it has ended.

    Attributes:
        at_once: how many runs it is given at a time, the others wait here; None for all.
        poll_seconds: how long to wait between two looks at the runs.
    """

    at_once: int | None = None
    poll_seconds: float = 2.0

    @abstractmethod
    def submit(self, tasks: Sequence[Task]) -> Sequence[Any]:
        """Begin runs, or put them into the queue; return what each is known by."""

    @abstractmethod
    def poll(self, handle: Any) -> RunState | None:
        """Return the state in which a run has ended; None as long as it has not."""

    def wait(self) -> None:
        """Wait until it is time to look at the runs again."""
        time.sleep(self.poll_seconds)

    @abstractmethod
    def close(self) -> None:
        """End what has not ended; it goes on from its last whole epoch."""
