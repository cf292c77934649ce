"""The engine of this machine: a server that has imported all that runs need forks their processes.

So a run starts at once. A run that fails, does not fit in memory or is killed by the kernel ends
its process and no other. When this process dies, however it does, server and runs do too.
"""

import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any

from flowformer.compare.engines.engine import Engine, Task
from flowformer.compare.methods import REHEARSE, TRAIN
from flowformer.compare.plan import RunRequest, RunState
from flowformer.config_json import to_plain
from flowformer.machine import is_out_of_memory, python
from flowformer.train.kinds import kind_of

WORKER = "flowformer.compare.worker"
TRAINING = (TRAIN, REHEARSE)
POLL_SECONDS = 0.2
_DRIVERS = ("/dev/nvidiactl", "/dev/kfd")  # of GPUs: what asks for them must not be forked after


@dataclass(frozen=True)
class _Process:
    """The process of a run."""

    task: Task
    pid: int
    started: float


class Workers(Engine):
    """The processes of runs on this machine, forks of one: `flowformer.compare.worker`.

    Args:
        names: what that one imports before the first run, as "module:name".
        at_once: runs at a time.
        environment: further variables of the processes.
        lock: the open file of a lock, which they inherit: it is held until the last has ended.
    """

    poll_seconds = POLL_SECONDS

    def __init__(
        self,
        names: Sequence[str] = (),
        *,
        at_once: int = 1,
        environment: Mapping[str, str] = MappingProxyType({}),
        lock: IO[str] | None = None,
    ) -> None:
        self.at_once = at_once
        lifeline, self._life = os.pipe()
        self._popen = subprocess.Popen(
            python("-m", WORKER, str(lifeline)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,  # what has come, select must see
            env=os.environ | environment,
            pass_fds=[lifeline, *(() if lock is None else (lock.fileno(),))],
            start_new_session=True,  # Ctrl-C on the terminal reaches this process alone
        )
        os.close(lifeline)
        self._codes: dict[int, int] = {}
        self._active: dict[int, _Process] = {}
        self._write(names)

    def submit(self, tasks: Sequence[Task]) -> list[_Process]:
        """Begin runs, all at once."""
        return [self._start(task) for task in tasks]

    def _start(self, task: Task) -> _Process:
        self._write(to_plain(task))
        while "code" in (said := self._read()):
            pass  # of runs that ended before
        process = _Process(task, said["pid"], time.monotonic())
        self._active[process.pid] = process
        return process

    def poll(self, handle: _Process) -> RunState | None:
        """Return the state in which a run has ended, in words where its process had none."""
        assert self._popen.stdout is not None
        while handle.pid not in self._codes and select.select([self._popen.stdout], [], [], 0)[0]:
            self._read()
        code = self._codes.pop(handle.pid, None)
        if code is None:
            return None
        del self._active[handle.pid]
        return _conclude(handle, code)

    def wait(self) -> None:
        """Wait until the server says something, or it is time to look at how far the runs are."""
        assert self._popen.stdout is not None
        select.select([self._popen.stdout], [], [], self.poll_seconds)

    def close(self) -> None:
        """End what still runs, and the server."""
        for pid in self._active:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        os.close(self._life)
        self._popen.communicate()

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


def imports(requests: Sequence[RunRequest]) -> list[str]:
    """Return what is imported once for runs: nothing where a fork might meet a half-made driver."""
    if any(Path(driver).exists() for driver in _DRIVERS):
        return []
    trained = {kind_of(each.config).name for each in requests if each.function in TRAINING}
    studies = [f"flowformer.train.{name}.study" for name in sorted(trained)]
    return [*dict.fromkeys(each.function for each in requests), *studies]


def _conclude(process: _Process, code: int) -> RunState:
    """Return the state of a run whose process has ended."""
    task = process.task
    state = RunState.read(Path(task.state_file))
    if state.has_ended:
        return state
    status, error = "failed", _last_words(Path(task.log))
    if code == -signal.SIGKILL:
        status, error = "memory", "killed by signal 9, as the kernel does when memory runs out"
    elif is_out_of_memory(error):
        status = "memory"
    elif code < 0:
        error = f"ended by {signal.Signals(-code).name}: {error}"
    seconds = time.monotonic() - process.started
    state = RunState(request=task.request, status=status, error=error, seconds=seconds)
    state.write(Path(task.state_file))
    return state


def _last_words(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines()]
    return next((line for line in reversed(lines) if line), "it said nothing")
