"""What was tried to make `gated` better, and what was it worth?

    python -m benchmarks gating_trials characters       # an hour on a core
    python -m benchmarks gating_trials recall

Each task is one `flowformer compare --equal-parameters`, as of benchmarks/mixers/gating.py, with a
seed that is none of those reported there: what is chosen here is tested there. The mixers are those
of trials.py, for most of what they try is no option of `gated`.
"""

import json
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from math import log
from typing import Any

from benchmarks.mixers import runs
from benchmarks.mixers.comparisons import SETTINGS
from benchmarks.pages import Tables
from benchmarks.runner import RESULTS, Result, one_of, read, save
from flowformer.report.words import MISSING, to_markdown

NAME = "gating_trials"
SEED = 10
TASKS = ("characters", "recall")
ANCHOR = "mamba2"
SHORT, SHORTER, LONG = (1.0, 64.0), (1.0, 16.0), (1.0, 4096.0)
MIDDLE = (8.0, 512.0)  # the middles of the two halves of LONG
# What each trial has, in place of the `gated` that was there before: decays from 1 to 4096 tokens.
TRIALS: dict[str, dict[str, Any]] = {
    "gated before": {},
    "silu of q, k, v": {"activated": (0, 1, 2)},
    "silu of v": {"activated": (2,)},
    "decays to 64": {"decay": SHORT},
    "decays to 64, silu of v": {"decay": SHORT, "activated": (2,)},
    "decays to 64, silu of v, relu": {"decay": SHORT, "activated": (2,), "feature_map": "relu"},
    "decays to 64, two heads share q, k": {"decay": SHORT, "shared": 2},
    "decays to 64, silu of q, k, v, no φ": {
        "decay": SHORT,
        "activated": (0, 1, 2),
        "feature_map": None,
    },
    "decays to 64, skip from 1, silu of v, step writes, gated norm, biases": {
        "decay": SHORT,
        "skip": 1.0,
        "activated": (2,),
        "write": "step",
        "norm": "gated",
        "biases": True,
    },
    "decays to 64, skip from 1": {"decay": SHORT, "skip": 1.0},
    "decays to 64, skip from 1 behind the norm": {
        "decay": SHORT,
        "skip": 1.0,
        "skips_norm": True,
    },
    "decays to 64, skip from 0": {"decay": SHORT, "skip": 0.0},
    "decays to 64, skip from 0, gain 4": {"decay": SHORT, "skip": 0.0, "gain": 4.0},
    "decays to 16": {"decay": SHORTER},
    "decays to 16, silu of v": {"decay": SHORTER, "activated": (2,)},
    "decays to 16, step writes": {"decay": SHORTER, "write": "step"},
    "decays to 16, skip from 1": {"decay": SHORTER, "skip": 1.0},
    "decays to 16, skip from 1, gated norm": {"decay": SHORTER, "skip": 1.0, "norm": "gated"},
    "decays to 16, skip from 0": {"decay": SHORTER, "skip": 0.0},
    "decays 8 and 512, skip from 0": {"decay": MIDDLE, "skip": 0.0},
    "skip from 1": {"skip": 1.0},
    "skip from 0": {"skip": 0.0},
}


def mixer_of(trial: str) -> str:
    """Return the name of a trial's mixer."""
    letters = (letter if letter.isalnum() else "-" for letter in trial.replace("φ", "map"))
    return "trial-" + "-".join(filter(None, "".join(letters).split("-")))


def compare(task: str, trials: Sequence[str]) -> Result:
    """Compare trials on a task, or go on with it; return what is kept of each.

    Raises:
        SystemExit: it did not end with all of its runs; its code is the comparison's.
    """
    output = runs.FOLDER / f"{NAME}-{task}"
    methods = {ANCHOR: ANCHOR, **{trial: mixer_of(trial) for trial in trials}}
    arguments = [*SETTINGS[task], "--training.seed", str(SEED), "--seeds", "1"]
    arguments += ["--mixers", ",".join(["flow", *methods.values()]), "--equal-parameters"]
    runs.compare(output, *arguments, "--import", "benchmarks.mixers.trials")
    kept = {}
    for name, method in methods.items():
        (file,) = output.glob(f"runs/*/{method}-seed{SEED}/result.json")
        result = json.loads(file.read_text())
        kept[name] = {at: result[at] for at in ("test_score", "validation_loss", "parameters")}
    return kept


def options(parser: ArgumentParser) -> None:
    """Add the options."""
    task = one_of("task", TASKS)
    parser.add_argument("names", nargs="*", type=task, default=list(TASKS), metavar="TASK")
    parser.add_argument("--trials", nargs="+", choices=TRIALS, default=list(TRIALS))


def execute(arguments: Namespace) -> None:
    """Compare on the tasks that were asked for, and keep each beside what is there."""
    for task in arguments.names:
        found = compare(task, arguments.trials)
        kept = (read(NAME, RESULTS) or {"tasks": {}})["tasks"]
        save(RESULTS / f"{NAME}.json", {"tasks": kept | {task: kept.get(task, {}) | found}})


def gating_trials(result: Result) -> str:
    """Return what was tried, the best on the validation part first."""
    characters, recall = (result["tasks"].get(task, {}) for task in TASKS)

    def row(trial: str) -> list[str]:
        bits, pairs = characters.get(trial), recall.get(trial)
        return [
            f"`{trial}`" if trial == ANCHOR else trial,
            MISSING if bits is None else f"{bits['validation_loss'] / log(2):.3f}",
            MISSING if bits is None else f"{bits['test_score']:.3f}",
            MISSING if bits is None else f"{bits['parameters']:,}",
            MISSING if pairs is None else f"{100 * pairs['test_score']:.1f}",
        ]

    def validation(trial: str) -> tuple[float, str]:
        bits = characters.get(trial, {"validation_loss": float("inf")})
        return bits["validation_loss"], trial

    rows = [row(each) for each in sorted(characters.keys() | recall.keys(), key=validation)]
    head = ["tried", "characters, validation, bits", "characters, test, bits", "parameters"]
    return to_markdown([*head, "recall, %"], rows).rstrip()


TABLES: Tables = {NAME: gating_trials}
