"""Runs `tests/fuzz/child.py` and reads what it wrote."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.runner import ROOT
from tests.fuzz.targets import TARGETS


@dataclass(kw_only=True)
class Outcome:
    """What came of one reader.

    Attributes:
        executions: damaged files that it was given.
        read: those that it read without an error.
        slowest: seconds of the processor for the slowest.
        seconds: of the processor for all.
        findings: what it did that it may not, by signature.
    """

    executions: int = 0
    read: int = 0
    slowest: float = 0.0
    seconds: float = 0.0
    findings: dict[str, dict[str, str]] = field(default_factory=dict)

    def add(self, figures: dict[str, Any]) -> None:
        """Adds what a process reported."""
        self.executions += figures["executions"]
        self.read += figures["read"]
        self.slowest = max(self.slowest, figures["slowest"])
        self.seconds += figures["seconds"]
        self.findings |= figures["findings"]


def fuzz(
    names: list[str],
    folder: Path,
    *,
    engine: str,
    seconds: float = 1e9,
    examples: int = 10**9,
    seed: int = 0,
) -> dict[str, Outcome]:
    """Fuzzes readers.

    Args:
        names: of the readers.
        folder: for their files.
        engine: "hypothesis" or "atheris".
        seconds: of each reader.
        examples: of each reader, at most; under hypothesis.
        seed: of the damage.

    Raises:
        RuntimeError: no reader could be started, such as when a valid file is not read.
    """
    command = [sys.executable, "-m", "tests.fuzz.child", str(folder / "report"), *names]
    command += ["--engine", engine, "--seconds", f"{seconds:.1f}"]
    command += ["--seed", str(seed), "--examples", str(examples)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"expected fuzzing to start, got: {done.stderr[-3000:]}")
    outcomes = {name: Outcome() for name in names}
    for name, outcome in outcomes.items():
        for part in folder.glob(f"{name}-[0-9]*.json"):
            outcome.add(json.loads(part.read_text()))
    return outcomes


def runnable() -> list[str]:
    """The readers whose programs are here: Debian's packages need dpkg-deb."""
    return [name for name in TARGETS if name != "deb" or shutil.which("dpkg-deb")]
