"""Does a reader crash, hang, or raise a nameless error on a damaged file? `make fuzz`.

    python -m benchmarks fuzz --minutes 30

Every reader of a file is fuzzed, first under hypothesis, then under atheris where it is installed,
which sees by coverage what reaches new code. A process that crashes or hangs is a finding, and the
rest of its time is used all the same. The exit status is 1 if anything was found.
"""

import os
import tempfile
import time
from argparse import ArgumentParser, Namespace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.pages import Tables, machine_of
from benchmarks.runner import Result, save, share
from flowformer.report.words import to_markdown
from tests.fuzz.run import Outcome, fuzz, runnable


def options(parser: ArgumentParser) -> None:
    """Add the options."""
    share(parser, "fuzz")
    parser.add_argument("names", nargs="*", help="readers; by default all")
    parser.add_argument("--minutes", type=float, default=30, help="of all together")
    parser.add_argument("--seed", type=int, default=0)


def execute(arguments: Namespace) -> int:
    """Fuzz, print a line a reader, and save the result."""
    names = arguments.names or runnable()
    engines = ["hypothesis", *(["atheris"] if find_spec("atheris") else [])]
    seconds = arguments.minutes * 60 / len(names) / len(engines)
    outcomes: dict[str, dict[str, Outcome]] = {name: {} for name in names}
    started = time.monotonic()
    for engine in engines:
        with tempfile.TemporaryDirectory(dir=_memory()) as scratch:
            found = fuzz(names, Path(scratch), engine=engine, seconds=seconds, seed=arguments.seed)
        for name, outcome in found.items():
            outcomes[name][engine] = outcome
            print(
                f"{name}, {engine}: {outcome.executions:,} files, {outcome.read:,} read, slowest "
                f"{outcome.slowest:.2f} s, findings: {', '.join(outcome.findings) or 'none'}",
                flush=True,
            )
            for finding in outcome.findings.values():
                print(finding["trace"], flush=True)
        readers = {
            name: {engine: _kept(outcome) for engine, outcome in each.items()}
            for name, each in outcomes.items()
        }
        taken = time.monotonic() - started
        result = {"seconds_each": seconds, "seconds_in_all": taken, "readers": readers}
        save(arguments.output, result)
    return int(any(one.findings for each in outcomes.values() for one in each.values()))


def _memory() -> str | None:
    """Return a file system in memory, where there is one."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def _kept(outcome: Outcome) -> dict[str, Any]:
    """Return what the result holds: not the traces, which name folders of the machine."""
    findings = {
        signature: {key: finding[key] for key in ("message", "content")}
        for signature, finding in outcome.findings.items()
    }
    return vars(outcome) | {"findings": findings}


def circumstances(result: Result) -> str:
    """Return how long it was and on what, in a sentence."""
    each = [one for engines in result["readers"].values() for one in engines.values()]
    files, seconds = (sum(one[name] for one in each) for name in ("executions", "seconds"))
    return (
        f"{files:,} files in {result['seconds_in_all'] / 60:.0f} minutes, {seconds:,.0f} seconds "
        f"of the processor; {sum(one['read'] for one in each):,} of them could be read. "
        f"{machine_of(result, cores=False)}."
    )


def table(result: Result) -> str:
    """Return what each reader was given, and what it did that it may not."""
    readers = result["readers"]
    engines = list(dict.fromkeys(engine for each in readers.values() for engine in each))
    body = []
    for name, each in readers.items():
        findings = sorted({finding for one in each.values() for finding in one["findings"]})
        slowest = max(one["slowest"] for one in each.values())
        counts = (
            f"{each[engine]['executions']:,}" if engine in each else "–" for engine in engines
        )
        body.append([f"`{name}`", *counts, f"{slowest:.2f} s", "; ".join(findings) or "none"])
    totals = [
        sum(each[engine]["executions"] for each in readers.values() if engine in each)
        for engine in engines
    ]
    body.append(["all", *(f"{total:,}" for total in totals), "", ""])
    return to_markdown(["reader", *engines, "slowest", "findings"], body).rstrip()


TABLES: Tables = {"fuzz": table, "fuzz-run": circumstances}
