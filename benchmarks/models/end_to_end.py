"""What do changes of the kernels make of whole models: a training step, a token, an image?

`--before COMMIT` names what the source tree is measured beside: its files are unpacked into a
temporary folder and its library is compiled there. Each tree has a process of its own; the two take
turns, on one thread, and the least processor time of each counts.
"""

import json
import os
import subprocess
import sys
import tarfile
import tempfile
from argparse import ArgumentParser, Namespace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.models.training_step import SETS
from benchmarks.pages import Tables, digits, machine_of
from benchmarks.runner import ROOT, minima, pin, save, share
from flowformer.report.words import to_markdown

NAME = "end_to_end"
SERIES = ("channels", "classes", "longest", "shortest")
SLOWER = 1.02  # from here on a call counts as slower

# what: a function of whole_models.py and its arguments
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    **{
        f"{name}, a training step": ("training_step", dict(zip(SERIES, sizes, strict=False)))
        for name, sizes in SETS.items()
    },
    "`gpt-mini`, a generated token": ("generated_token", {"preset": "gpt-mini", "vocabulary": 65}),
    "`gpt2`, a generated token": ("generated_token", {"preset": "gpt2", "vocabulary": 50_257}),
    "hierarchical, an image of 224 pixels": ("image", {"preset": "hierarchical", "pixels": 224}),
}


class Tree:
    """A process with the package of a source tree, which times calls when it is asked to."""

    def __init__(self, folder: Path) -> None:
        worker = ROOT / "benchmarks" / "models" / "whole_models.py"
        self._process = subprocess.Popen(
            [sys.executable, str(worker)],
            env=os.environ | {"PYTHONPATH": str(folder / "src")},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def seconds(self, case: str, calls: int) -> float:
        """Return the processor seconds of a number of calls.

        Raises:
            RuntimeError: the process has ended; it has said why.
        """
        asked, said = self._process.stdin, self._process.stdout
        assert asked is not None
        assert said is not None
        print(json.dumps([*CASES[case], calls]), file=asked, flush=True)
        answer = said.readline()
        if not answer:
            raise RuntimeError(f"{case}: the process that measures it has ended")
        return float(answer)

    def end(self) -> None:
        """Let the process end."""
        self._process.communicate()


def unpack(commit: str, folder: Path) -> None:
    """Put the files of a commit into a folder, and compile its library there."""
    archive = folder / "files.tar"
    subprocess.run(["git", "archive", "-o", str(archive), commit], cwd=ROOT, check=True)
    with tarfile.open(archive) as files:
        files.extractall(folder, filter="data")
    subprocess.run(
        [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"],
        cwd=folder,
        env=os.environ | {"FLOWFORMER_REQUIRE_LIBRARY": "1"},
        stdout=subprocess.DEVNULL,
        check=True,
    )


def options(parser: ArgumentParser) -> None:
    """Add the options."""
    share(parser, NAME, rounds=10)
    parser.add_argument("--before", default="HEAD", help="the commit to compare with")


def execute(arguments: Namespace) -> None:
    """Measure both, print and save."""
    pin(1)
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        unpack(arguments.before, Path(folder))
        trees = {"before": Tree(Path(folder)), "now": Tree(ROOT)}
        try:
            for case in CASES:
                sides: dict[str, Any] = {
                    name: partial(tree.seconds, case) for name, tree in trees.items()
                }
                found[case] = minima(
                    sides,
                    lambda taken: taken["now"] <= SLOWER * taken["before"],
                    repeats=arguments.rounds,
                    budget=5,
                    shortest=0.05,
                    clock=lambda side, calls: side(calls),
                )
                print(case, {name: digits(1e3 * each) for name, each in found[case].items()})
        finally:
            for tree in trees.values():
                tree.end()
    save(arguments.output, {"before": arguments.before, "cases": found})


def table(result: dict[str, Any]) -> str:
    """Return the milliseconds of both; a ratio is bold where the call has become slower."""
    rows = []
    for case, taken in result["cases"].items():
        ratio = taken["before"] / taken["now"]
        slower = taken["now"] > SLOWER * taken["before"]
        said = f"**{ratio:.2f}**" if slower else f"{ratio:.2f}"
        rows.append([case, *(digits(1e3 * taken[side]) for side in ("before", "now")), said])
    header = ["call", f"ms at {result['before']}", "ms now", "times as fast"]
    return f"{to_markdown(header, rows)}\n{machine_of(result)}."


TABLES: Tables = {NAME: table}
