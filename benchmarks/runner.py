"""Time the sides of a comparison in one run, alternating; keep the machine's description."""

import json
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
FEWEST = 3  # rounds that every side takes part in, whatever it costs
CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []

Seconds = dict[str, list[float]]


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


def medians(seconds: Seconds) -> dict[str, float]:
    """Return the median of every side, in seconds."""
    return {name: statistics.median(times) for name, times in seconds.items()}


def ratios(over: list[float], under: list[float]) -> list[float]:
    """Return the ratio of two sides in each round that both took part in."""
    return [a / b for a, b in zip(over, under, strict=False)]


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
        "python": platform.python_version(),
        "torch": str(torch.__version__),
    }


def save(name: str, result: dict[str, object], folder: Path = RESULTS) -> Path:
    """Write a result beside its machine and return where."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps({"machine": machine(), **result}, indent=1) + "\n")
    return path
