"""How far does Flow-Attention come on ListOps and on Pathfinder in a longer training?

    python -m benchmarks arena_long listops
    python -m benchmarks arena_long pathfinder

Each is one `flowformer train` on one thread, printed before it starts, in runs/arena-NAME; stopped
or killed, it goes on by the same command. Keeps result and measurements in results/arena_long.json,
with what a step of the full recipe takes here (forward, backward and update on random tokens of its
lengths and batch, the median of three after one).
"""

import csv
import json
import shlex
import statistics
from argparse import ArgumentParser, Namespace
from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from benchmarks.mixers.cost.arena_cost import make_step
from benchmarks.pages import Pictures, Tables
from benchmarks.runner import (
    ROOT,
    Result,
    flowformer,
    machine,
    one_of,
    read,
    save,
    seconds_of,
    share,
)
from flowformer.recipes.sequences import RECIPES
from flowformer.report.figures import BLUE, GREY, ORANGE
from flowformer.report.words import duration, to_markdown
from flowformer.scores.measures import ACCURACY
from flowformer.train.sequences.config import SequencesConfig

NAME = "arena_long"
STEPS = 3
TRAINED = {
    "listops": "listops-small --training.steps 18000 --training.evaluate-every 1200",
    "pathfinder": "pathfinder-small --training.steps 3600 --training.evaluate-every 300",
}
# The recipe that each stands for, its vocabulary and its classes.
FULL = {"listops": ("listops", 16, 10), "pathfinder": ("pathfinder32", 257, 2)}


def train(name: str) -> dict[str, Any]:
    """Train, or go on; return result, measurements and command.

    Raises:
        SystemExit: it did not end; its code is the training's.
    """
    folder = ROOT / "runs" / f"arena-{name}"
    arguments = [
        *shlex.split(f"train {TRAINED[name]} --training.threads 1 --run-dir"),
        *(str(folder.relative_to(ROOT)), "--resume"),
    ]
    flowformer(*arguments)
    with (folder / "metrics.csv").open(newline="") as file:
        rows = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
    return {
        "command": f"flowformer {shlex.join(arguments[:-3])}",
        "result": json.loads((folder / "result.json").read_text()),
        "rows": rows,
    }


def seconds_of_a_step(config: SequencesConfig, vocab_size: int, classes: int) -> float:
    """Return the median time of a training step at the recipe's sizes, on one thread."""
    assert config.data.max_length is not None
    torch.set_num_threads(1)
    step = make_step(
        config.model,
        config.data.max_length,
        batch=config.data.batch_size,
        device=torch.device("cpu"),
        vocabulary=vocab_size,
        classes=classes,
    )
    step()
    return statistics.median(seconds_of(step) for _ in range(STEPS))


def draw(result: Result) -> Figure:
    """Draw the accuracy on both parts over the steps, and the chance."""
    runs = result["runs"]
    figure = Figure(figsize=(7.6, 2.9), layout="constrained")
    panels = figure.subplots(1, len(runs), squeeze=False)[0]
    for axes, (name, run) in zip(panels, runs.items(), strict=True):
        steps = [row["step"] for row in run["rows"]]
        for part, colour, label in (
            ("train", BLUE, "training"),
            ("validation", ORANGE, "validation"),
        ):
            values = [row[f"{part}_accuracy"] for row in run["rows"]]
            axes.plot(steps, values, "o-", markersize=3, color=colour, label=label)
        axes.axhline(1 / FULL[name][2], color=GREY, linestyle=":", label="chance")
        axes.set_title(f"{name}, accuracy", fontsize=9, loc="left")
        axes.set_xlabel("step", fontsize=8)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8)
    return figure


def options(parser: ArgumentParser) -> None:
    """Add the options."""
    share(parser, NAME)
    task = one_of("task", TRAINED)
    parser.add_argument("tasks", nargs="*", type=task, default=list(TRAINED), metavar="TASK")


def execute(arguments: Namespace) -> None:
    """Train what was asked for, and keep it beside what is there."""
    for name in arguments.tasks:
        run = train(name)
        recipe, vocab_size, classes = FULL[name]
        config = RECIPES[recipe]()
        seconds = seconds_of_a_step(config, vocab_size, classes)
        run["full"] = {
            "recipe": recipe,
            "steps": config.training.steps,
            "seconds_of_a_step": seconds,
            "days": seconds * config.training.steps / 86_400,
            "machine": machine(),
        }
        # Read when all is done: the other one may have ended in the meantime.
        kept = read(arguments.output.stem, arguments.output.parent) or {"runs": {}}
        runs = kept["runs"] | {name: run}
        save(arguments.output, {"runs": {each: runs[each] for each in TRAINED if each in runs}})


def table(result: Result) -> str:
    """Return what the longer runs came to, and what the full recipes would need."""
    header = ["command", "test accuracy, %", "best step", "time", "full recipe", "a step here"]
    header += ["all its steps"]
    rows = []
    for run in result["runs"].values():
        result, full = run["result"], run["full"]
        rows.append(
            [
                f"`{run['command']}`",
                f"{ACCURACY.show(result['test_accuracy'])}",
                f"{result['best_step']:,}",
                duration(result["seconds"]),
                f"`{full['recipe']}`, {full['steps']:,} steps",
                duration(full["seconds_of_a_step"]),
                f"{full['days']:.1f} days",
            ]
        )
    return to_markdown(header, rows).rstrip()


TABLES: Tables = {"arena_long": table}
PICTURES: Pictures = {"arena-long.png": draw}
