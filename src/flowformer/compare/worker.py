"""One run of a comparison, in a process of its own: `python -m flowformer.compare.worker`.

Reads one line of JSON from standard input, as `flowformer.compare.execution` writes it, and ends at
once when standard input closes: whoever started it has died. What it prints is the run's log; what
became of it goes into the run's state file.
"""

import json
import logging
import os
import pkgutil
import re
import sys
import threading
import time
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any

from flowformer.compare.plan import RunRequest, RunState, count_epochs
from flowformer.config_json import from_plain
from flowformer.machine import is_out_of_memory, limit_memory, offer_to_the_kernel, peak_memory
from flowformer.report.words import memory


def main() -> int:
    """Do the run that standard input asks for; return the exit code."""
    started = time.monotonic()
    task = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_end_with_standard_input, daemon=True).start()
    offer_to_the_kernel()
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    logging.getLogger("flowformer.train").setLevel(logging.INFO)
    request = from_plain(RunRequest, task["request"])
    path, limit = Path(task["state_file"]), task["memory_limit"]
    state = run(request, Path(task["run_dir"]), limit)
    replace(state, seconds=time.monotonic() - started).write(path)
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


def _end_with_standard_input() -> None:
    os.read(0, 1)  # nothing more is sent: it returns when the other end closes
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
    sys.exit(main())
