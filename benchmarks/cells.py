"""Cells of a table of costs, each in a process of its own with limits on memory and on time.

A benchmark starts the process of a cell with `measure_lengths`; in there `measure_here` measures
what the benchmark calls. What does not fit says so, and longer sequences of it are then not tried.

Memory is what the process's resident memory rises by, from a mark to its highest point (on a GPU:
what was allocated). Time is the median of up to ten calls after one that is not counted, or that
one where it takes a second.
"""

import argparse
import json
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

import torch

from benchmarks.runner import ROOT
from flowformer.memory import (
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

Call = Callable[[], None]
CallOf = Callable[[str, int], Call]  # of a pass over a number of tokens
Cell = dict[str, object]


def names(text: str) -> list[str]:
    """Return the names in a list with commas."""
    return [name for name in text.split(",") if name]


def parse_cells(
    parser: argparse.ArgumentParser,
    given: Sequence[str] | None,
    *,
    mixers: Sequence[str],
    passes: Sequence[str],
    lengths: Sequence[int],
    time_limit: int,
) -> argparse.Namespace:
    """Read the command line, with the options that every table of cells has.

    Args:
        parser: with the benchmark's own options.
        given: what to read in place of the command line.
        mixers: those that there are, and the default.
        passes: likewise.
        lengths: the default.
        time_limit: the default, in seconds.
    """
    free = available_memory()
    limit = 8 * 2**30 if free is None else int(0.9 * free)
    parser.add_argument("--mixers", type=names, default=list(mixers))
    parser.add_argument(
        "--lengths", type=lambda text: list(map(int, names(text))), default=list(lengths)
    )
    parser.add_argument("--passes", type=names, default=list(passes))
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=0, help="of torch; 0 for its own number")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--memory-limit", type=int, default=limit, help="bytes a process may have")
    parser.add_argument(
        "--time-limit", type=int, default=time_limit, help="seconds of a pass's calls"
    )
    parser.add_argument("--cell", help=argparse.SUPPRESS)
    arguments = parser.parse_args(given)
    for kind, asked, known in (
        ("mixer", arguments.mixers, mixers),
        ("pass", arguments.passes, passes),
    ):
        if unknown := set(asked) - set(known):
            parser.error(f"unknown {kind} {', '.join(unknown)}: choose from {', '.join(known)}")
    return arguments


def cell_command(
    module: str, name: str, arguments: argparse.Namespace, options: Sequence[str]
) -> list[str]:
    """Return the command that measures cells of a mixer, but for the length and the passes.

    Args:
        module: that is run.
        name: of the mixer.
        arguments: of this process.
        options: which of them the other process takes over.
    """
    command = [sys.executable, "-m", module, "--cell", name]
    for option in options:
        command += [f"--{option.replace('_', '-')}", str(getattr(arguments, option))]
    return command


def measure_lengths(
    command: Sequence[str], label: str, arguments: argparse.Namespace
) -> list[Cell]:
    """Measure one mixer at all lengths, each pass as far as it goes.

    Args:
        command: see `cell_command`.
        label: what its cells are named.
        arguments: with the lengths, the passes and the limits.
    """
    cells: list[Cell] = []
    ended: dict[str, Cell] = {}
    for length in sorted(arguments.lengths):
        passes = [each for each in arguments.passes if each not in ended]
        words = [*command, "--lengths", str(length), "--passes", ",".join(passes)]
        measured, problem = run_cells(words, arguments) if passes else ({}, None)
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
    command: Sequence[str], arguments: argparse.Namespace
) -> tuple[dict[str, Cell], str | None]:
    """Run the process of a cell; return the figures by pass, and in words why it ended early."""
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=ROOT)
    measured = {cell["pass_name"]: cell for cell in map(json.loads, done.stdout.splitlines())}
    return measured, problem_of(done, arguments)


def problem_of(
    done: "subprocess.CompletedProcess[str]", arguments: argparse.Namespace
) -> str | None:
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


def does_not_fit(arguments: argparse.Namespace) -> str:
    """Return in words that memory was too little."""
    return f"does not fit in {limit_of(arguments)}"


def limit_of(arguments: argparse.Namespace) -> str:
    """Return in words what memory a cell may have."""
    if torch.device(arguments.device).type == "cpu":
        return memory(arguments.memory_limit)
    return "the GPU's memory"


def words_of(cell: Cell) -> str:
    """Return a cell's figures, or why there are none."""
    seconds, taken = cell["seconds"], cell["memory"]
    if not isinstance(seconds, float) or not isinstance(taken, int):
        return str(cell["problem"])
    return f"{duration(seconds):>10}{memory(taken):>12}"


def measure_here(make: Callable[[], CallOf], arguments: argparse.Namespace) -> None:
    """Measure the passes over one length in this process; print a line of JSON for each.

    Args:
        make: called under the memory limit; returns what makes a call.
        arguments: with the length, the passes and the limits.
    """
    offer_to_the_kernel()
    torch.manual_seed(0)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    (length,) = arguments.lengths
    device = torch.device(arguments.device)
    try:
        if device.type == "cpu":
            limit_memory(arguments.memory_limit)
        call_of = make()
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
            call = call_of(pass_name, length)
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
