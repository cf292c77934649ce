"""Cells of a table of costs, each in a process of its own with limits on memory and on time.

A benchmark says in its `Costs` what it calls; `execute` measures it for every mixer, starting the
process of a cell, in which `measure_here` measures. What does not fit says so, and longer sequences
of it are then not tried. The result is written after every mixer; `--resume` goes on from it.

Memory is what the process's resident memory rises by, from a mark to its highest point (on a GPU:
what was allocated). Time is the median of up to ten calls after one that is not counted, or that
one where it takes a second.
"""

import json
import pkgutil
import signal
import statistics
import subprocess
import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.runner import save, separately, share, some_of
from flowformer.machine import (
    available_memory,
    forget_peak,
    is_out_of_memory,
    limit_memory,
    offer_to_the_kernel,
    peak_memory,
    resident_memory,
)
from flowformer.report.words import duration, memory

SHORT = 64  # tokens of the call that loads code and starts threads
LONG_ENOUGH = 1.0  # seconds of a call that is not repeated, and of all repetitions together
MOST_CALLS = 10

ALL_FINISHED = "Every mixer finished every length."

Call = Callable[[], None]
CallOf = Callable[[str, int], Call]  # of a pass over a number of tokens
Cell = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Costs:
    """A table of costs.

    Attributes:
        module: its benchmark, which has it as `COSTS`.
        mixers: the mixers that it may have, and the default.
        passes: likewise the passes.
        lengths: the default.
        time_limit: the default, in seconds.
        maker: returns what makes the calls of a mixer at one length; under the memory limit.
        label: returns what a mixer's cells are named, or None where it has none.
        setting: returns what all cells have in common.
    """

    module: str
    mixers: Sequence[str]
    passes: Sequence[str]
    lengths: Sequence[int]
    time_limit: int
    maker: Callable[[str, int, Namespace], CallOf]
    label: Callable[[str, Namespace], str | None]
    setting: Callable[[Namespace], dict[str, Any]]


def add_options(parser: ArgumentParser, costs: Costs, name: str) -> None:
    """Add the options that every table of cells has; `name` is that of the result."""
    free = available_memory()
    limit = 8 * 2**30 if free is None else int(0.9 * free)
    share(parser, name, threads=0, lengths=list(costs.lengths))
    for what, option, known in (
        ("mixer", "--mixers", list(costs.mixers)),
        ("pass", "--passes", list(costs.passes)),
    ):
        parser.add_argument(option, type=some_of(what, known), default=known)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--memory-limit", type=int, default=limit, help="bytes a process may have")
    about = "seconds of a pass's calls"
    parser.add_argument("--time-limit", type=int, default=costs.time_limit, help=about)
    parser.add_argument("--resume", action="store_true", help="keep the mixers that it has")


def execute(costs: Costs, arguments: Namespace) -> None:
    """Measure, print and save after every mixer.

    Raises:
        SystemExit: the table that it is to go on with has another setting.
    """
    if arguments.threads:
        torch.set_num_threads(arguments.threads)  # for the machine's description
    setting = costs.setting(arguments) | {"memory_limit": limit_of(arguments)}
    try:
        cells = cells_so_far(arguments.output, setting) if arguments.resume else []
    except ValueError as error:
        sys.exit(str(error))
    for name in arguments.mixers:
        label = costs.label(name, arguments)
        if label is None:
            continue
        if set(arguments.lengths) <= {cell["length"] for cell in cells if cell["mixer"] == label}:
            print(f"{label:<22}is there")
            continue
        others = [cell for cell in cells if cell["mixer"] != label]
        cells = others + measure_mixer(costs, name, arguments)
        save(arguments.output, {"setting": setting, "cells": cells})


def cells_so_far(path: Path, setting: dict[str, Any]) -> list[Cell]:
    """Return the cells of an unfinished table; none where there is no file.

    Raises:
        ValueError: it was measured with another setting. The memory limit may be another: it
            follows from what is free, and a cell that does not fit says in what.
    """
    if not path.exists():
        return []
    result = json.loads(path.read_text())
    expected = {**setting, "memory_limit": result["setting"].get("memory_limit")}
    if result["setting"] != expected:
        raise ValueError(f"{path}: expected the setting {expected}, got {result['setting']}")
    return result["cells"]


def measure_mixer(costs: Costs, name: str, arguments: Namespace) -> list[Cell]:
    """Measure one mixer at all lengths, each pass as far as it goes."""
    label = costs.label(name, arguments)
    cells: list[Cell] = []
    ended: dict[str, Cell] = {}
    for length in sorted(arguments.lengths):
        passes = [each for each in arguments.passes if each not in ended]
        measured: dict[str, Cell] = {}
        problem = None
        if passes:
            measured, problem = run_cells(costs, name, length, passes, arguments)
        new: list[Cell] = [
            {
                "mixer": label,
                "length": length,
                "pass_name": pass_name,
                "seconds": None,
                "memory": None,
                "problem": None if pass_name in measured else problem,
                **measured.get(pass_name, {}),
            }
            for pass_name in passes
        ]
        new += [
            {
                **cell,
                "length": length,
                "problem": f"not tried: {cell['length']:,} {cell['problem']}",
            }
            for cell in ended.values()
        ]
        for cell in new:
            print(f"{cell['mixer']:<22}{length:>7,}  {cell['pass_name']:<9}{words_of(cell)}")
            if cell["problem"] is not None:
                ended.setdefault(str(cell["pass_name"]), cell)
        sys.stdout.flush()
        cells += new
    return cells


def run_cells(
    costs: Costs, name: str, length: int, passes: list[str], arguments: Namespace
) -> tuple[dict[str, Cell], str | None]:
    """Run the process of a cell; return the figures by pass, and in words why it ended early."""
    options = {key: value for key, value in vars(arguments).items() if key != "output"}
    options |= {"length": length, "passes": passes}
    done = separately(measure_here, module=costs.module, name=name, options=options)
    measured = {cell["pass_name"]: cell for cell in map(json.loads, done.stdout.splitlines())}
    return measured, problem_of(done, arguments)


def problem_of(done: "subprocess.CompletedProcess[str]", arguments: Namespace) -> str | None:
    """Return in words why a process ended before its last pass."""
    if done.returncode == 0:
        return None
    if done.returncode == -signal.SIGALRM:
        return f"over {arguments.time_limit} s"
    said = done.stderr.strip().splitlines() or ["it said nothing"]
    if done.returncode == -signal.SIGKILL or is_out_of_memory(said[-1]):
        return does_not_fit(arguments)
    if done.returncode < 0:
        return f"ended by {signal.Signals(-done.returncode).name}"
    return said[-1]


def does_not_fit(arguments: Namespace) -> str:
    """Return in words that memory was too little."""
    return f"does not fit in {limit_of(arguments)}"


def limit_of(arguments: Namespace) -> str:
    """Return in words what memory a cell may have."""
    if torch.device(arguments.device).type == "cpu":
        return memory(arguments.memory_limit)
    return "the GPU's memory"


def words_of(cell: Cell) -> str:
    """Return a cell's figures, or why there are none."""
    if cell["seconds"] is None:
        return str(cell["problem"])
    return f"{duration(cell['seconds']):>10}{memory(cell['memory']):>12}"


def is_end(cell: Cell) -> bool:
    """Return whether a mixer ended at a cell, which is the first that has a problem."""
    return bool(cell["problem"]) and not cell["problem"].startswith("not tried")


def measure_here(module: str, name: str, options: dict[str, Any]) -> None:
    """Measure the passes over one length in this process; print a line of JSON for each.

    Args:
        module: of the benchmark.
        name: of the mixer.
        options: of the benchmark, with one length.
    """
    costs: Costs = pkgutil.resolve_name(f"{module}:COSTS")
    arguments = Namespace(**options)
    offer_to_the_kernel()
    torch.manual_seed(0)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    try:
        if device.type == "cpu":
            limit_memory(arguments.memory_limit)
        call_of = costs.maker(name, arguments.length, arguments)
        warm: list[Call] = []  # kept: what they hold is not there to be used again
        for pass_name in arguments.passes:
            warm.append(call_of(pass_name, SHORT))
            warm[-1]()
        # One mark for all passes: pages that one leaves with the allocator, the next uses again.
        before = resident(device)
        for pass_name in arguments.passes:
            forget_highest(device)
            # The system ends the process when it comes, whatever code is running then.
            signal.alarm(arguments.time_limit)
            call = call_of(pass_name, arguments.length)
            if device.type == "cuda":
                call()  # it may compile for this length, which can take a second
            seconds = measure(call)
            signal.alarm(0)
            report(pass_name, seconds=seconds, memory=highest(device) - before)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is this cell's
        if is_out_of_memory(error):
            sys.exit(does_not_fit(arguments))
        text = str(error).strip().splitlines()
        sys.exit(f"{type(error).__name__}: {text[0] if text else ''}")


def measure(call: Call) -> float:
    """Return the seconds of a call."""
    seconds: list[float] = []
    while len(seconds) <= MOST_CALLS and sum(seconds) < LONG_ENOUGH:
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:] or seconds)


def resident(device: torch.device) -> int:
    """Return the bytes that are taken now."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated()
    return resident_memory() or peak_memory()


def highest(device: torch.device) -> int:
    """Return the most bytes that were taken since `forget_highest`."""
    return torch.cuda.max_memory_allocated() if device.type == "cuda" else peak_memory()


def forget_highest(device: torch.device) -> None:
    """Set the high-water mark back, where the system can."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        forget_peak()


def report(pass_name: str, **figures: float | int) -> None:
    """Print a measured pass at once: the next may end the process."""
    print(json.dumps({"pass_name": pass_name, **figures}), flush=True)
