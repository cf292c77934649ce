"""What benchmarks share: options, sides that take turns, fresh processes, results and machine."""

import argparse
import json
import math
import os
import pkgutil
import platform
import shlex
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from flowformer.machine import forget_peak, peak_memory, resident_memory
from flowformer.nn import MIXERS

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
FEWEST = 3  # rounds that every side takes part in, whatever it costs
CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []

Seconds = dict[str, list[float]]
Result = dict[str, Any]


def names(text: str) -> list[str]:
    """Return the names in a list with commas."""
    return [name for name in text.split(",") if name]


def numbers(text: str) -> list[int]:
    """Return the numbers in a list with commas."""
    return [int(number) for number in names(text)]


def one_of(what: str, known: Collection[str]) -> Callable[[str], str]:
    """Return the type of an option that is one of some names.

    Unlike argparse's choices, it leaves the default of a list alone.
    """

    def checked(name: str) -> str:
        if name not in known:
            said = f"unknown {what} {name}: choose from {', '.join(known)}"
            raise argparse.ArgumentTypeError(said)
        return name

    return checked


def some_of(what: str, known: Collection[str]) -> Callable[[str], list[str]]:
    """Return the type of an option that is a list, with commas, of some of the names."""
    check = one_of(what, known)
    return lambda text: [check(name) for name in names(text)]


# The options of several benchmarks, one name and one meaning for each.
OPTIONS: dict[str, dict[str, Any]] = {
    "rounds": {"type": int, "help": "in each of which all sides take a turn"},
    "threads": {"type": int, "help": "of torch"},
    "mixers": {"type": some_of("mixer", MIXERS), "help": "names, with commas between them"},
    "lengths": {"type": numbers, "help": "tokens, with commas between them"},
    "quick": {"action": "store_true", "help": "a few seconds: does it run?"},
    "stop_after": {"type": float, "help": "seconds; the same command goes on"},
    "anew": {"action": "store_true", "help": "forget what was measured before"},
    "again": {"action": "store_true", "help": "do what is kept too, unless its folder has it"},
    "seeds": {"type": int, "help": "how many, from 0 on"},
    "dry_run": {"action": "store_true", "help": "only time the first steps of what is left"},
}


def share(parser: argparse.ArgumentParser, result: str | None = None, **defaults: Any) -> None:
    """Add options that benchmarks share.

    Args:
        parser: the parser of a benchmark.
        result: the name of its result, for `--output`.
        defaults: the options to add, by their names in `OPTIONS`, with their defaults.
    """
    for name, default in defaults.items():
        parser.add_argument(f"--{name.replace('_', '-')}", default=default, **OPTIONS[name])
    if result is not None:
        about = "the file of the result"
        parser.add_argument("--output", type=Path, default=RESULTS / f"{result}.json", help=about)


def pin(threads: int) -> None:
    """Use that many threads of torch and, where the system lets one say so, as many cores.

    The last cores: the first one serves most interrupts.
    """
    torch.set_num_threads(threads)
    if CORES:
        os.sched_setaffinity(0, CORES[-threads:])


def seconds_of(side: Callable[[], object], calls: int = 1) -> float:
    """Return the seconds of that many calls."""
    start = time.perf_counter()
    for _ in range(calls):
        side()
    return time.perf_counter() - start


def processor_seconds(side: Callable[[], object], calls: int = 1) -> float:
    """Return the seconds of this thread, which the work of others does not enter."""
    start = time.thread_time()
    for _ in range(calls):
        side()
    return time.thread_time() - start


def alternate(
    sides: Mapping[str, Callable[[], object]],
    *,
    repeats: int,
    budget: float = math.inf,
    shortest: float = 0.0,
    clock: Callable[[Callable[[], object], int], float] = seconds_of,
) -> Seconds:
    """Call every side in turn, after one call unmeasured; return the seconds of a call.

    Args:
        sides: what to call.
        repeats: rounds.
        budget: a side that has taken this many seconds sits out the rounds after the third. What
            the others then take has no counterpart in a ratio of rounds.
        shortest: seconds of a turn; a side calls as often as fills them, so that a short call
            is neither lost in the clock nor always met with the caches of another side.
        clock: returns the seconds of a number of calls.
    """
    calls = {}
    for name, side in sides.items():
        taken = clock(side, 1)
        if taken < 10 * shortest:  # the first call may have been slow by loading code
            taken = clock(side, 1)
        calls[name] = max(1, math.ceil(shortest / taken))
    seconds: Seconds = {name: [] for name in sides}
    for turn in range(repeats):
        for name, side in sides.items():
            if turn < FEWEST or calls[name] * sum(seconds[name]) < budget:
                seconds[name].append(clock(side, calls[name]) / calls[name])
    return seconds


def minima(
    sides: Mapping[str, Callable[[], object]],
    holds: Callable[[dict[str, float]], bool],
    *,
    repeats: int,
    **how: Any,
) -> dict[str, float]:
    """Return the least of every side: of what a disturbance can only add to.

    Args:
        sides: what to call.
        holds: whether these are as they should be; if not, they take three times as many turns
            more before it counts.
        repeats: rounds.
        how: see `alternate`.
    """
    found = {side: min(each) for side, each in alternate(sides, repeats=repeats, **how).items()}
    if not holds(found):
        more = alternate(sides, repeats=3 * repeats, **how)
        found = {side: min(found[side], *each) for side, each in more.items()}
    return found


def medians(seconds: Seconds) -> dict[str, float]:
    """Return the median of every side, in seconds."""
    return {name: statistics.median(times) for name, times in seconds.items()}


def times_softmax(seconds: Seconds) -> dict[str, float]:
    """Return how many times as fast as softmax each side is, the median of the rounds."""
    softmax = seconds["softmax"]
    return {name: statistics.median(ratios(softmax, each)) for name, each in seconds.items()}


def ratios(over: list[float], under: list[float]) -> list[float]:
    """Return the ratio of two sides in each round that both took part in."""
    return [a / b for a, b in zip(over, under, strict=False)]


def rise(call: Callable[[], object]) -> int:
    """Return the bytes that this process's resident memory rises by in a call, its result held.

    By the system's own high-water mark, set back before: sampling would miss what lives for a
    moment.
    """
    before = resident_memory()
    assert before is not None, "resident memory is read from /proc, which this system does not have"
    forget_peak()
    held = call()
    taken = peak_memory() - before
    del held
    return taken


def ends(seconds: list[float], at_ends: int) -> dict[str, float]:
    """Return the medians of the first and of the last times in milliseconds, and their ratio."""
    first, last = statistics.median(seconds[:at_ends]), statistics.median(seconds[-at_ends:])
    return {"first_ms": 1e3 * first, "last_ms": 1e3 * last, "last_over_first": last / first}


def over_rounds(summaries: Mapping[str, list[dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Return the median of each figure of each side over the rounds."""
    return {
        name: {figure: statistics.median(each[figure] for each in of) for figure in of[0]}
        for name, of in summaries.items()
    }


def commit() -> str:
    """Return the commit that is measured, with a + where the sources differ from it.

    Empty where there is no repository.
    """
    if shutil.which("git") is None:
        return ""
    asked = partial(subprocess.run, cwd=ROOT, check=False, capture_output=True, text=True)
    name = asked(["git", "rev-parse", "HEAD"]).stdout[:7]  # --short takes more as a clone grows
    changed = asked(["git", "status", "--porcelain", "--untracked-files=no", "src"]).stdout
    return name + "+" * bool(changed)


def machine() -> dict[str, str | int]:
    """Return what a reader needs to judge a time."""
    model = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.exists():
        lines = information.read_text().splitlines()
        model = next(
            (line.split(": ")[1] for line in lines if line.startswith("model name")), model
        )
    return {
        "processor": model,
        "vectors": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count() or 0,
        "threads": torch.get_num_threads(),
        "load": f"{os.getloadavg()[0]:.2f}",
        "commit": commit(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
    }


def save(path: Path, result: Mapping[str, Any]) -> None:
    """Write a result beside its machine, and say where."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": machine(), **result}, indent=1) + "\n")
    print(f"kept in {path}", flush=True)


def keep(path: Path, place: Sequence[str], part: Mapping[str, Any]) -> None:
    """Write a part of a result beside those that are there, each with what it was made on.

    Args:
        path: the file of the result.
        place: the keys from the whole result to the part.
        part: its figures.
    """
    whole = json.loads(path.read_text()) if path.exists() else {}
    whole.pop("machine", None)
    at = whole
    for key in place[:-1]:
        at = at.setdefault(key, {})
    at[place[-1]] = {"machine": machine(), **part}
    save(path, whole)


def read(name: str, folder: Path = RESULTS) -> Any:
    """Return a result, or None where it has not been measured."""
    path = folder / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def flowformer(*arguments: str, **environment: str) -> None:
    """Print a command line of flowformer and run it.

    Args:
        arguments: of the command.
        environment: variables beside those of this process.

    Raises:
        SystemExit: it failed; its code is the command's.
    """
    print(f"==> flowformer {shlex.join(arguments)}", flush=True)
    command = [sys.executable, "-c", "from flowformer.cli import main; main()", *arguments]
    done = subprocess.run(command, check=False, env=os.environ | environment, cwd=ROOT)
    if done.returncode:
        sys.exit(done.returncode)


def separately(
    function: Callable[..., None], *, environment: Mapping[str, str] | None = None, **arguments: Any
) -> subprocess.CompletedProcess[str]:
    """Call a function in a process of its own, in which nothing else has taken memory.

    Args:
        function: a function of a module; it prints its result.
        environment: variables beside those of this process.
        arguments: what it is called with; they go through JSON.
    """
    called = "from benchmarks.runner import answer; answer()"
    target = f"{function.__module__}:{function.__qualname__}"
    command = [sys.executable, "-c", called, target, json.dumps(arguments)]
    given = os.environ | (environment or {})
    return subprocess.run(command, check=False, capture_output=True, text=True, cwd=ROOT, env=given)


def said_separately(function: Callable[..., None], **arguments: Any) -> str:
    """Return what a function printed in a process of its own.

    Raises:
        RuntimeError: the process failed; the message is its last line.
    """
    done = separately(function, **arguments)
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["nothing"]
        raise RuntimeError(f"exit status {done.returncode}: {said[-1]}")
    return done.stdout


def answer() -> None:
    """Call what `separately` asks for."""
    target, arguments = sys.argv[1:]
    pkgutil.resolve_name(target)(**json.loads(arguments))
