"""Running the runs of a comparison: each in a process of its own, some at a time, in any state.

A run that fails, does not fit in memory or is killed by the kernel ends its process and no other.
A server that has imported all that runs need forks these processes, so that a run starts at once.
When this process dies, however it does, server and runs do too; the lock on the folder is theirs as
well, so that whoever comes next cannot meet them.
"""

import json
import logging
import os
import select
import signal
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from flowformer.compare.methods import TRAIN
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
from flowformer.train.kinds import kind_of

if os.name != "posix":
    raise ImportError("comparisons need a POSIX system, such as Linux or macOS")

logger = logging.getLogger(__name__)

WORKER = "flowformer.compare.worker"
POLL_SECONDS = 0.2
_DRIVERS = ("/dev/nvidiactl", "/dev/kfd")  # of GPUs: what asks for them must not be forked after
LOCK_SECONDS = 10.0  # how long workers of a killed comparison are waited for


class _Server:
    """The process that forks those of the runs: `flowformer.compare.worker`.

    Args:
        names: what it imports before the first run, as "module:name".
        threads: threads of each run, where the environment does not say; None for all.
        lock: the open file of the lock, which it inherits.
    """

    def __init__(self, names: Sequence[str], threads: int | None, lock: IO[str]) -> None:
        environment = dict(os.environ)
        if threads is not None:
            environment.setdefault("OMP_NUM_THREADS", str(threads))
        lifeline, self._life = os.pipe()
        self._popen = subprocess.Popen(
            python("-m", WORKER, str(lifeline)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,  # what has come, select must see
            env=environment,
            pass_fds=[lock.fileno(), lifeline],
            start_new_session=True,  # Ctrl-C on the terminal reaches this process alone
        )
        os.close(lifeline)
        self._codes: dict[int, int] = {}
        self._write(names)

    def _write(self, line: Any) -> None:
        assert self._popen.stdin is not None
        self._popen.stdin.write(json.dumps(line).encode() + b"\n")
        self._popen.stdin.flush()

    def _read(self) -> dict[str, int]:
        assert self._popen.stdout is not None
        line = self._popen.stdout.readline()
        if not line:
            raise RuntimeError(f"the process that starts runs has ended: {self._popen.wait()}")
        said = json.loads(line)
        if "code" in said:
            self._codes[said["pid"]] = said["code"]
        return said

    def start(self, task: Mapping[str, Any]) -> int:
        """Start a run; return its process."""
        self._write(task)
        while "code" in (said := self._read()):
            pass  # of runs that ended before
        return said["pid"]

    def poll(self, pid: int, /) -> int | None:
        """Return the exit code of a run's process, as `subprocess` has it; None while it runs."""
        assert self._popen.stdout is not None
        while pid not in self._codes and select.select([self._popen.stdout], [], [], 0)[0]:
            self._read()
        return self._codes.pop(pid, None)

    def kill(self, pid: int, /) -> None:
        """End a run's process at once, if it has not ended."""
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)

    def close(self) -> None:
        """End it, and what still runs."""
        os.close(self._life)
        self._popen.communicate()


@dataclass
class _Active:
    """A run that is running."""

    run: PlannedRun
    pid: int
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
        if not waiting:
            return
        active: list[_Active] = []
        threads = max(1, available_processors() // jobs) if jobs > 1 else None
        server = _Server(_imports(waiting), threads, lock)
        try:
            while waiting or active:
                while waiting and len(active) < jobs:
                    active.append(_start(waiting.pop(0), server, memory_limit))
                show(progress.status(active, waiting))
                time.sleep(POLL_SECONDS)
                for each in list(active):
                    code = server.poll(each.pid)
                    if code is not None:
                        active.remove(each)
                        progress.note(each, _end(each, code), active, waiting)
        finally:
            show("")
            for each in active:
                server.kill(each.pid)  # it goes on from its last whole epoch
            server.close()


def _imports(runs: Sequence[PlannedRun]) -> list[str]:
    """Return what the server imports: nothing where a fork of it might meet a half-made driver."""
    if any(Path(driver).exists() for driver in _DRIVERS):
        return []
    requests = [run.request for run in runs]
    trained = {kind_of(each.config).name for each in requests if each.function == TRAIN}
    studies = [f"flowformer.train.{name}.study" for name in sorted(trained)]
    return [*dict.fromkeys(each.function for each in requests), *studies]


def _start(run: PlannedRun, server: _Server, memory_limit: int | None) -> _Active:
    RunState(request=run.request, status="started").write(run.state_file)
    run.log.touch()  # where its process dies before it says a word
    pid = server.start(
        {
            "request": to_plain(run.request),
            "run_dir": str(run.folder.root),
            "state_file": str(run.state_file),
            "log": str(run.log),
            "memory_limit": memory_limit,
        }
    )
    return _Active(run, pid, time.monotonic(), count_epochs(run.folder.root))


def _end(active: _Active, code: int) -> RunState:
    """Return the state of a run whose process has ended, in words where the process had none."""
    run = active.run
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
