"""The messages of a comparison while it runs: what is running, how runs ended, what is left."""

import logging
import statistics
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from flowformer.compare.plan import (
    UNFINISHED,
    Plan,
    PlannedRun,
    RunState,
    count_epochs,
)
from flowformer.report.words import duration

logger = logging.getLogger(__name__)


@dataclass
class ActiveRun:
    """A run that its engine has been given.

    Attributes:
        run: the run.
        handle: what the engine knows it by.
        started: when it was given or, in a queue, begun.
        epochs_before: of an earlier process, which this one goes on from.
    """

    run: PlannedRun
    handle: Any
    started: float = field(init=False, default_factory=time.monotonic)
    epochs_before: int = field(init=False)
    _begun: bool = field(init=False, default=False)
    _epochs: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self.epochs_before = self.epochs

    @property
    def has_begun(self) -> bool:
        """Whether a process does it, and it does not wait in a queue."""
        if not self._begun:
            with suppress(OSError):  # another machine puts a new file there (NFS)
                state = self.run.read_state()
                self._begun = state is not None and state.status != "queued"
            self.started = time.monotonic()
        return self._begun

    @property
    def epochs(self) -> int:
        """How many epochs are done, as far as can be seen from here."""
        with suppress(OSError):
            self._epochs = count_epochs(self.run.folder.root)
        return self._epochs

    @property
    def elapsed(self) -> float:
        """Seconds since it began."""
        return time.monotonic() - self.started

    @property
    def projected(self) -> float | None:
        """Seconds of its whole process, as far as its epochs so far can tell."""
        done = self.epochs - self.epochs_before
        rounds = self.run.request.config.training.rounds - self.epochs_before
        return self.elapsed * rounds / done if done > 0 and self.has_begun else None


class Progress:
    """The messages of a comparison.

    Args:
        plan: the runs.
        waiting: those that have not finished.
        at_once: runs at a time; None for as many as a cluster has room for.
    """

    def __init__(self, plan: Plan, waiting: Sequence[PlannedRun], at_once: int | None) -> None:
        self._total, self._at_once = len(plan.runs), at_once
        self._done = self._total - len(waiting)
        # Seconds of whole runs, by data set and method; of earlier calls too.
        self._seconds: dict[tuple[str, str], list[float]] = {}
        for run in plan.runs:
            state = run.read_state()
            if state is not None and state.status == "finished":
                self._remember(run, state)

    def status(self, active: Sequence[ActiveRun], waiting: Sequence[PlannedRun]) -> str:
        """Return a line on the runs of this moment."""
        running = ", ".join(
            f"{each.run.name} ({training.round_name} {each.epochs} of {training.rounds})"
            for each in active
            if each.has_begun
            for training in [each.run.request.config.training]
        )
        left = self._left(active, waiting)
        return f"{self._done} of {self._total} done; running {running or 'nothing yet'}{left}"

    def note(
        self,
        ended: ActiveRun,
        state: RunState,
        active: Sequence[ActiveRun],
        waiting: Sequence[PlannedRun],
    ) -> None:
        """Say how a run ended."""
        self._done += 1
        run, text = ended.run, f"{UNFINISHED[state.status]}: {state.error}"
        if state.status == "finished":
            self._remember(run, state)
            text = run.say_result()
        logger.info(
            "[%d/%d] %s: %s in %s%s",
            *(self._done, self._total, run.name, text, duration(state.seconds or ended.elapsed)),
            self._left(active, waiting),
        )

    def _remember(self, run: PlannedRun, state: RunState) -> None:
        if state.seconds is not None:
            self._seconds.setdefault((run.dataset, run.request.method), []).append(state.seconds)

    def _left(self, active: Sequence[ActiveRun], waiting: Sequence[PlannedRun]) -> str:
        seconds = self._seconds_left(active, waiting)
        return "" if seconds is None else f", about {duration(max(1, round(seconds)))} left"

    def _seconds_left(
        self, active: Sequence[ActiveRun], waiting: Sequence[PlannedRun]
    ) -> float | None:
        """Estimate from runs of the same method and data, else of the same data, else of all."""
        begun = [each for each in active if each.has_begun]
        queued = [*(each.run for each in active if not each.has_begun), *waiting]
        if not active and not waiting:
            return None
        projected = [p for each in begun if (p := each.projected) is not None]
        total = 0.0
        for run in queued:
            expected = self._expected(run) or (statistics.fmean(projected) if projected else None)
            if expected is None:
                return None
            total += expected
        for each in begun:
            expected = each.projected or self._expected(each.run)
            if expected is None:
                return None
            total += max(0.0, expected - each.elapsed)
        slots = min(self._at_once or max(1, len(begun)), len(active) + len(waiting))
        return total / slots

    def _expected(self, run: PlannedRun) -> float | None:
        key = (run.dataset, run.request.method)
        for alike in (
            lambda other: other == key,
            lambda other: other[0] == key[0],
            lambda _: True,
        ):
            values = [
                v for other, seconds in self._seconds.items() if alike(other) for v in seconds
            ]
            if values:
                return statistics.fmean(values)
        return None
