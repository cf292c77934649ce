"""Train Flow-Attention longer on ListOps and on Pathfinder; draw what it learned.

    python -m benchmarks.arena_long listops
    python -m benchmarks.arena_long pathfinder

Each is one `flowformer train` on one thread, printed before it starts, in runs/arena-NAME; stopped
or killed, it goes on by the same command. Keeps result and measurements in results/arena_long.json,
with what a step of the full recipe takes here (forward, backward and update on random tokens of its
lengths and batch, the median of three after one), and draws docs/assets/arena-long.png.
"""

import argparse
import csv
import json
import shlex
import statistics
import subprocess
import sys
import time
from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from benchmarks.runner import RESULTS, ROOT, machine, save
from flowformer.models.sequences.model import SequenceClassifier
from flowformer.recipes.sequences import RECIPES
from flowformer.report.figures import BLUE, GREY, ORANGE, png_bytes
from flowformer.train.sequences.config import SequencesConfig

NAME = "arena_long"
PICTURE = ROOT / "docs" / "assets" / "arena-long.png"
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
    print(f"==> flowformer {shlex.join(arguments)}", flush=True)
    command = [sys.executable, "-c", "from flowformer.cli import main; main()", *arguments]
    done = subprocess.run(command, check=False, cwd=ROOT)
    if done.returncode:
        sys.exit(done.returncode)
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
    model = SequenceClassifier(
        config.model,
        vocab_size=vocab_size,
        num_classes=classes,
        max_length=config.data.max_length,
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    batch = config.data.batch_size
    tokens = torch.randint(1, vocab_size, (batch, config.data.max_length))
    labels = torch.randint(classes, (batch,))
    seconds = []
    for _ in range(1 + STEPS):
        started = time.perf_counter()
        optimizer.zero_grad()
        loss = model(tokens, labels=labels).loss
        assert loss is not None
        loss.backward()
        optimizer.step()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[1:])


def draw(runs: dict[str, Any]) -> Figure:
    """Draw the accuracy on both parts over the steps, and the chance."""
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


def main() -> None:
    """Train what was asked for, and keep it beside what is there."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=list(TRAINED), metavar="NAME")
    names = parser.parse_args().names
    if unknown := set(names) - TRAINED.keys():  # argparse's choices would refuse the default
        parser.error(f"expected some of {', '.join(TRAINED)}, got {', '.join(sorted(unknown))}")
    for name in names:
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
        path = RESULTS / f"{NAME}.json"
        runs = json.loads(path.read_text())["runs"] if path.exists() else {}
        runs = {each: {**runs, name: run}[each] for each in TRAINED if each in {*runs, name}}
        print(save(NAME, {"runs": runs}))
        PICTURE.write_bytes(png_bytes(draw(runs)))
        print(PICTURE)


if __name__ == "__main__":
    main()
