"""What are a decay, gates and flows worth, in models of equal size?

    python -m benchmarks gating characters recall        # some of the tasks
    python -m benchmarks gating --seeds 5                # all

Each task is one `flowformer compare --equal-parameters`, printed before it starts, in
comparisons/gating-TASK; stopped or killed, it goes on by the same command. The scores of every seed
and the tests of every pair are kept in results/gating.json. On `ablation`, the characters again,
each mixer lacks one part of `gated` or of `flow-gated`.
"""

import csv
from argparse import ArgumentParser, Namespace
from collections import defaultdict
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from benchmarks.mixers.comparisons import ALLOCATOR, FOLDER, SETTINGS, data_of
from benchmarks.pages import Tables
from benchmarks.runner import RESULTS, Result, flowformer, one_of, read, save
from flowformer.recipes import build_recipe
from flowformer.report.words import MISSING, to_markdown
from flowformer.scores.measures import Measure

NAME = "gating"
CAUSAL = ["flow", "softmax", "linear", "gla", "deltanet", "gated-deltanet", "mamba2", "retnet"]
GATED = ["gated", "flow-gated"]
ABLATION = "ablation"
TASKS = {
    "characters": "characters",
    "recall": "recall",
    "vowels": "JapaneseVowels",
    "scp1": "SelfRegulationSCP1",
    "listops": "ListOps",
    "image": "Image",
    "text": "Text",
    "fashion": "Fashion-MNIST",
    "hopper": "Hopper",
}
LEVEL = 0.05
# The options by which a part is left out of `gated`, and of `flow-gated`; ablations.py makes mixers
# of them where `flowformer compare` imports it.
WITHOUT: dict[str, dict[str, Any]] = {
    "convolution": {"convolution": 0},
    "gain": {"gain": None},
    "decay": {"decay": None},
    "input-gate": {"input_gate": False},
    "norm": {"norm": False},
    "output-gate": {"output_gate": False},
    "skip": {"skip": False},
    "long-decay": {"decay": (1.0, 64.0)},
}
WITHOUT_FLOWS: dict[str, dict[str, Any]] = {
    "competition": {"competition": None},
    "allocation": {"allocation": False},
}


def settings_of(task: str) -> list[str]:
    """Return the recipe of a task, and its flags."""
    return SETTINGS["characters" if task == ABLATION else task]


def mixers_of(task: str) -> list[str]:
    """Return the mixers that a task compares, the one that others are tested against first."""
    if task == ABLATION:
        parts = [f"gated-no-{part}" for part in WITHOUT]
        flows = [f"flow-gated-no-{part}" for part in WITHOUT_FLOWS]
        return ["gated", *parts, "flow-gated", *flows]
    if build_recipe(settings_of(task)[0]).causal:
        return [*CAUSAL, *GATED]
    return [*CAUSAL[:3], *GATED]


def compare(task: str, seeds: int) -> Result:
    """Compare the mixers of a task, or go on with it; return what is kept.

    Raises:
        SystemExit: it did not end with all of its runs; its code is the comparison's.
    """
    output = FOLDER / f"{NAME}-{task}"
    arguments = [*settings_of(task), *data_of(task), "--seeds", str(seeds)]
    arguments += ["--mixers", ",".join(mixers_of(task)), "--output", str(output)]
    arguments += ["--equal-parameters"]
    if task == ABLATION:
        arguments += ["--import", "benchmarks.mixers.ablations"]
    flowformer("compare", *arguments, **ALLOCATOR)
    runs, tests = (rows_of(output / name) for name in ("runs.csv", "tests.csv"))
    scores, parameters = defaultdict(list), {}
    for run in runs:
        scores[run["method"]].append(float(run["score"]))
        parameters[run["method"]] = int(run["parameters"])
    columns = ("method", "baseline", "difference", "p", "corrected", "verdict")
    return {
        "scores": dict(scores),
        "parameters": parameters,
        "tests": [
            {column: row[column] for column in columns} for row in tests if row["over"] == "seeds"
        ],
    }


def rows_of(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def options(parser: ArgumentParser) -> None:
    """Add the options."""
    known = [*TASKS, ABLATION]
    name = one_of("task", known)
    parser.add_argument("names", nargs="*", type=name, default=known, metavar="TASK")
    parser.add_argument("--seeds", type=int, default=5, help="runs of each mixer")


def execute(arguments: Namespace) -> None:
    """Compare on the tasks that were asked for, and keep each beside those that are there."""
    for task in arguments.names:
        cell = compare(task, arguments.seeds)
        kept = read(NAME, RESULTS) or {"tasks": {}}
        save(RESULTS / f"{NAME}.json", {"tasks": kept["tasks"] | {task: cell}})


def measure_of(task: str) -> Measure:
    """Return what a task is measured by."""
    return build_recipe(settings_of(task)[0]).measure


def mark(task: str, cell: Result, method: str, baseline: str) -> str:
    """Return ↑ where a method is better than another at p < 0.05, ↓ where it is worse.

    In brackets where that holds only before the correction over all pairs of methods.
    """
    for test in cell["tests"]:
        if {test["method"], test["baseline"]} == {method, baseline} and float(test["p"]) < LEVEL:
            higher = (float(test["difference"]) > 0) == (test["method"] == method)
            arrow = "↑" if higher == measure_of(task).higher_is_better else "↓"
            return f" {arrow}" if float(test["corrected"]) < LEVEL else f" ({arrow})"
    return ""


def figure(task: str, cell: Result, method: str, baseline: str) -> str:
    """Return mean and spread over the seeds, marked where they differ from a baseline's."""
    scores = cell["scores"].get(method)
    if not scores:
        return MISSING
    shown = [measure_of(task).show(mean(scores))]
    if len(scores) > 1:
        shown.append(measure_of(task).show(stdev(scores)))
    return " ± ".join(shown) + mark(task, cell, method, baseline)


def gating(result: Result) -> str:
    """Return the scores of every mixer on every task that was compared, marked against flow."""
    tasks = {task: title for task, title in TASKS.items() if task in result["tasks"]}
    rows = [
        [f"`{mixer}`", *(figure(task, result["tasks"][task], mixer, "flow") for task in tasks)]
        for mixer in [*CAUSAL, *GATED]
    ]
    heads = [f"{title}, {measure_of(task).unit or 'bits'}" for task, title in tasks.items()]
    return to_markdown(["mixer", *heads], rows).rstrip()


def ablation(result: Result) -> str:
    """Return bits and parameters without each part, marked against the whole."""
    if ABLATION not in result["tasks"]:
        return UNMEASURED[ABLATION_TABLE]
    cell = result["tasks"][ABLATION]
    rows = [
        [
            f"`{mixer}`",
            figure(ABLATION, cell, mixer, "flow-gated" if mixer.startswith("flow") else "gated"),
            f"{cell['parameters'][mixer]:,}",
        ]
        for mixer in mixers_of(ABLATION)
    ]
    return to_markdown(["mixer", "characters, bits", "parameters"], rows).rstrip()


ABLATION_TABLE = "gating_ablation"
TABLES: Tables = {NAME: gating, ABLATION_TABLE: ablation}
UNMEASURED = dict.fromkeys(TABLES, "Not run yet.")
