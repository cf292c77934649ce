"""Fuzz every reader of a file for half an hour in all, and keep what came of it.

    python -m benchmarks.reliability.fuzz --minutes 30

First under hypothesis, then under atheris where it is installed, which sees by coverage what
reaches new code. A process that crashes or hangs is a finding, and the rest of its time is used all
the same. The exit status is 1 if anything was found.
"""

import argparse
import os
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.runner import RESULTS, save
from tests.fuzz.run import Outcome, fuzz, runnable


def main() -> int:
    """Fuzz, print a line a reader, and save the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="readers; by default all")
    parser.add_argument("--minutes", type=float, default=30, help="of all together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=RESULTS, help="where the result goes")
    arguments = parser.parse_args()
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
        _save(outcomes, seconds, time.monotonic() - started, arguments.folder)
    return int(any(one.findings for each in outcomes.values() for one in each.values()))


def _memory() -> str | None:
    """Return a file system in memory, where there is one."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def _kept(outcome: Outcome) -> dict[str, Any]:
    """What the result holds: not the traces, which name folders of the machine."""
    findings = {
        signature: {key: finding[key] for key in ("message", "content")}
        for signature, finding in outcome.findings.items()
    }
    return vars(outcome) | {"findings": findings}


def _save(
    outcomes: dict[str, dict[str, Outcome]], seconds: float, taken: float, folder: Path
) -> None:
    readers = {
        name: {engine: _kept(outcome) for engine, outcome in each.items()}
        for name, each in outcomes.items()
    }
    result = {"seconds_each": seconds, "seconds_in_all": taken, "readers": readers}
    save("fuzz", result, folder)


if __name__ == "__main__":
    sys.exit(main())
