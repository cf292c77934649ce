"""Running the runs of a comparison: each in a process of its own, some at a time, in any state.

A run that fails, does not fit in memory or is killed by the kernel ends its process and no other.
When this process dies, however it does, its workers do too; the lock on the folder is theirs as
well, so that whoever comes next cannot meet them.
"""

import json
import logging
import os
import signal
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from flowformer.compare.plan import (
    UNFINISHED,
    Plan,
    PlannedRun,
    RunState,
    count_epochs,
    require_data,
    require_same,
)
from flowformer.config_json import to_plain
from flowformer.files import locked
from flowformer.machine import available_processors, is_out_of_memory, python
from flowformer.report.words import duration
from flowformer.train.folder import say_held

if os.name != "posix":
    raise ImportError("comparisons need a POSIX system, such as Linux or macOS")

logger = logging.getLogger(__name__)

WORKER = "flowformer.compare.worker"
POLL_SECONDS = 0.2
LOCK_SECONDS = 10.0  # how long workers of a killed comparison are waited for


@dataclass
class _Active:
    """A run that is running."""

    run: PlannedRun
    process: subprocess.Popen[bytes]
    started: float
    epochs_before: int  # of an earlier process, which this one goes on from

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self.started

    @property
    def projected(self) -> float | None:
        """Seconds of its whole process, as far as its epochs so far can tell."""
        done = count_epochs(self.run.folder.root) - self.epochs_before
        epochs = self.run.request.config.training.rounds - self.epochs_before
        return self.elapsed * epochs / done if done > 0 else None


def execute(
    plan: Plan,
    *,
    jobs: int = 1,
    memory_limit: int | None = None,
    show: Callable[[str], None] = lambda _: None,
) -> None:
    """Do the runs that a plan has not finished yet.

    Killed at any moment and called again, it goes on: finished runs are not repeated, one that was
    stopped goes on where it can, one that failed is tried again.

    Args:
        plan: the runs.
        jobs: the number of runs at a time; they share the processor's threads unless the
            configuration says how many each has.
        memory_limit: bytes that a run may have resident (on a GPU: allocated there); None for all
            that there is.
        show: shows a line of status in place of the last.

    Raises:
        ValueError: the folder holds a run of another configuration, or one that has read other
            data than there are now.
        BlockingIOError: another process is running a comparison in the folder.
    """
    refusal = (
        f"another process is running a comparison in {plan.root}: wait for it, "
        "or choose another folder (--output)"
    )
    # Workers inherit the lock: it is held until the last of them has ended.
    place, patience = plan.root / ".lock", LOCK_SECONDS
    with locked(place, refusal=refusal, patience=patience, on_wait=say_held(plan.root)) as lock:
        require_same(plan)
        require_data(plan)
        waiting = [run for run in plan.runs if run.read_result() is None]
        progress = _Progress(plan, waiting, jobs)
        active: list[_Active] = []
        try:
            while waiting or active:
                while waiting and len(active) < jobs:
                    active.append(_start(waiting.pop(0), jobs, memory_limit, lock))
                show(progress.status(active, waiting))
                time.sleep(POLL_SECONDS)
                for each in [each for each in active if each.process.poll() is not None]:
                    active.remove(each)
                    state = _end(each)
                    progress.note(each, state, active, waiting)
        finally:
            show("")
            for each in active:
                each.process.kill()  # it goes on from its last whole epoch
                each.process.wait()


def _start(run: PlannedRun, jobs: int, memory_limit: int | None, lock: IO[str]) -> _Active:
    RunState(request=run.request, status="started").write(run.state_file)
    environment = dict(os.environ)
    threads = max(1, available_processors() // jobs)
    if jobs > 1:
        environment.setdefault("OMP_NUM_THREADS", str(threads))
    with run.log.open("ab") as log:
        process = subprocess.Popen(
            python("-m", WORKER),
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            pass_fds=[lock.fileno()],
            start_new_session=True,  # Ctrl-C on the terminal reaches this process alone
        )
    task = {
        "request": to_plain(run.request),
        "run_dir": str(run.folder.root),
        "state_file": str(run.state_file),
        "memory_limit": memory_limit,
    }
    assert process.stdin is not None
    # The pipe stays open: that it closes is how the worker learns of the end of this process.
    process.stdin.write(json.dumps(task).encode() + b"\n")
    process.stdin.flush()
    return _Active(run, process, time.monotonic(), count_epochs(run.folder.root))


def _end(active: _Active) -> RunState:
    """Return the state of a run whose process has ended, in words where the process had none."""
    run, code = active.run, active.process.wait()
    assert active.process.stdin is not None
    active.process.stdin.close()
    state = RunState.read(run.state_file)
    if state.status != "started":
        return state
    status, error = "failed", _last_words(run.log)
    if code == -signal.SIGKILL:
        status, error = "memory", "killed by signal 9, as the kernel does when memory runs out"
    elif is_out_of_memory(error):
        status = "memory"
    elif code < 0:
        error = f"ended by {signal.Signals(-code).name}: {error}"
    state = RunState(request=run.request, status=status, error=error, seconds=active.elapsed)
    state.write(run.state_file)
    return state


def _last_words(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines()]
    return next((line for line in reversed(lines) if line), "it said nothing")


class _Progress:
    """The messages of a comparison while it runs."""

    def __init__(self, plan: Plan, waiting: Sequence[PlannedRun], jobs: int) -> None:
        self._total, self._jobs = len(plan.runs), jobs
        self._done = self._total - len(waiting)
        # Seconds of whole runs, by data set and method; of earlier calls too.
        self._seconds: dict[tuple[str, str], list[float]] = {}
        for run in plan.runs:
            state = run.read_state()
            if state is not None and state.status == "finished":
                self._remember(run, state)

    def status(self, active: Sequence[_Active], waiting: Sequence[PlannedRun]) -> str:
        """Return a line on the runs of this moment."""
        running = ", ".join(
            f"{each.run.name} ({training.round_name} {count_epochs(each.run.folder.root)} of "
            f"{training.rounds})"
            for each in active
            for training in [each.run.request.config.training]
        )
        return f"{self._done} of {self._total} done; running {running}{self._left(active, waiting)}"

    def note(
        self,
        ended: _Active,
        state: RunState,
        active: Sequence[_Active],
        waiting: Sequence[PlannedRun],
    ) -> None:
        """Say how a run ended."""
        self._done += 1
        run, text = ended.run, f"{UNFINISHED[state.status]}: {state.error}"
        if state.status == "finished":
            self._remember(run, state)
            result = run.read_result()
            assert result is not None
            measure = run.request.config.measure
            text = f"{measure.show(result.score)}{measure.unit or f' {measure.name}'}"
        logger.info(
            "[%d/%d] %s: %s in %s%s",
            *(self._done, self._total, run.name, text, duration(ended.elapsed)),
            self._left(active, waiting),
        )

    def _remember(self, run: PlannedRun, state: RunState) -> None:
        if state.seconds is not None:
            self._seconds.setdefault((run.dataset, run.request.method), []).append(state.seconds)

    def _left(self, active: Sequence[_Active], waiting: Sequence[PlannedRun]) -> str:
        seconds = self._seconds_left(active, waiting)
        return "" if seconds is None else f", about {duration(max(1, round(seconds)))} left"

    def _seconds_left(
        self, active: Sequence[_Active], waiting: Sequence[PlannedRun]
    ) -> float | None:
        """Estimate from runs of the same method and data, else of the same data, else of all."""
        if not active and not waiting:
            return None
        projected = [p for each in active if (p := each.projected) is not None]
        total = 0.0
        for run in waiting:
            expected = self._expected(run) or (statistics.fmean(projected) if projected else None)
            if expected is None:
                return None
            total += expected
        for each in active:
            expected = each.projected or self._expected(each.run)
            if expected is None:
                return None
            total += max(0.0, expected - each.elapsed)
        return total / min(self._jobs, len(active) + len(waiting))

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
