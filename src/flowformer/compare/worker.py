"""The runs of a comparison, each in a process of its own: `python -m flowformer.compare.worker`.

Reads lines of JSON from standard input, as `flowformer.compare.engines.local` writes them: first
what to import, then a run a line. Each run is a fork of this process, which has imported everything
and computed nothing; a line on standard output says which process it is, and another how it ended.
All of them end at once when a pipe closes that the engine alone keeps open: whoever started them
has died. What a run prints is its log; what became of it goes into its state file.
"""

import atexit
import fcntl
import json
import logging
import os
import pkgutil
import re
import select
import signal
import sys
import time
import traceback
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from flowformer.compare.engines.engine import Task
from flowformer.compare.plan import RunRequest, RunState, count_epochs
from flowformer.config_json import from_plain
from flowformer.machine import is_out_of_memory, limit_memory, offer_to_the_kernel, peak_memory
from flowformer.own_modules import load_own
from flowformer.report.words import memory

_POLL_SECONDS = 0.05


def main(lifeline: int) -> int:
    """Start the runs that standard input asks for, until it closes; return the exit code.

    Args:
        lifeline: the pipe that closes when the comparison has ended.
    """
    _end_with(lifeline)
    for told in (signal.SIGUSR1, signal.SIGUSR2):
        # Slurm tells all of a job by them that its time is over: whoever started us sees to it.
        signal.signal(told, signal.SIG_IGN)
    with open(0, "rb", buffering=0) as tasks:  # unbuffered: what is waiting, select must see
        for name in json.loads(tasks.readline()):
            with suppress(Exception):  # the run that needs it says what is wrong
                pkgutil.resolve_name(name)
        running: set[int] = set()
        while True:
            if select.select([tasks], [], [], _POLL_SECONDS if running else None)[0]:
                line = tasks.readline()
                if not line:
                    return 0
                pid = os.fork()
                if pid == 0:
                    _leave(_run_alone(from_plain(Task, json.loads(line))))
                running.add(pid)
                _say(pid=pid)
            for pid in list(running):
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    running.remove(pid)
                    _say(pid=pid, code=os.waitstatus_to_exitcode(status))


def _say(**values: int) -> None:
    sys.stdout.write(json.dumps(values) + "\n")
    sys.stdout.flush()


def _leave(code: int) -> NoReturn:
    """End this process, a fork or the server, as multiprocessing ends its own.

    The interpreter would take apart all that was imported, which takes as long as a short run.
    """
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _run_alone(task: Task) -> int:
    """Do a run in this process, a fork of the server; return the exit code."""
    started = time.monotonic()
    for descriptor, name, flags in (
        (0, os.devnull, os.O_RDONLY),
        (1, task.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT),
    ):
        opened = os.open(name, flags, 0o666)
        os.dup2(opened, descriptor)
        os.close(opened)
    os.dup2(1, 2)
    offer_to_the_kernel()
    logging.basicConfig(format="%(message)s", stream=sys.stderr, force=True)
    logging.getLogger("flowformer.train").setLevel(logging.INFO)
    RunState(request=task.request, status="started").write(Path(task.state_file))
    state = run(task.request, Path(task.run_dir), task.memory_limit)
    replace(state, seconds=time.monotonic() - started).write(Path(task.state_file))
    return 0 if state.status == "finished" else 1


def run(request: RunRequest, run_dir: Path, limit: int | None) -> RunState:
    """Do a run and return its state.

    Args:
        request: the run.
        run_dir: folder of the run; one that was begun there goes on.
        limit: bytes that it may have resident, or allocated on a GPU.
    """
    train = pkgutil.resolve_name(request.function)
    training: Any = replace(request.config.training, progress="lines")
    config = replace(request.config, training=training)
    trains = count_epochs(run_dir) < config.training.rounds
    try:
        if request.mixer_module is not None:
            load_own(request.mixer_module)
        _apply_limit(limit)
        train(config, run_dir, resume=True, **request.options)
    # Whatever ends a run is a line in the table, and the others go on.
    except Exception as error:  # noqa: BLE001
        traceback.print_exc()
        if is_out_of_memory(error):
            return RunState(request=request, status="memory", error=_shortage(error, limit))
        message = f"{type(error).__name__}: {_first_line(error)}"
        return RunState(request=request, status="failed", error=message)
    # A run whose epochs were all done before has not shown this process what they take.
    return RunState(
        request=request, status="finished", peak_memory=_peak_memory() if trains else None
    )


def _end_with(lifeline: int) -> None:
    """End this process and its forks when the pipe closes: the system sends them SIGIO then.

    A thread that waits for it would not do: one that imports a large library lets no other run.
    """
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, -os.getpgrp())
    fcntl.fcntl(lifeline, fcntl.F_SETFL, os.O_ASYNC)
    if select.select([lifeline], [], [], 0)[0]:  # nothing is sent: it has closed
        os._exit(1)


def _apply_limit(limit: int | None) -> None:
    if limit is None:
        return
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, limit / total))
    elif not limit_memory(limit):
        logging.getLogger(__name__).warning("this system does not enforce a memory limit")


def _peak_memory() -> int:
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated()
    return peak_memory()


def _shortage(error: BaseException, limit: int | None) -> str:
    """Say how much was asked for, in few words where torch's own tell it, and of how much."""
    asked = re.search(r"tried to allocate (\d+) bytes", str(error))
    text = _first_line(error) if asked is None else f"asked for {memory(int(asked[1]))} more"
    return text if limit is None else f"{text}, limit {memory(limit)}"


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


if __name__ == "__main__":
    _leave(main(int(sys.argv[1])))
