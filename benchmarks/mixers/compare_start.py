"""What does a comparison of ten short runs take beside their training?

Ten runs of about two seconds, each a process of its own, on JapaneseVowels, which aeon carries: the
whole `flowformer compare`, what its runs say that they trained, and one `flowformer train` of the
same, which imports everything for itself.
"""

import json
import sys
import tempfile
import time
from argparse import ArgumentParser, Namespace
from pathlib import Path

from benchmarks.pages import Tables
from benchmarks.runner import Result, flowformer, save, share
from flowformer.report.words import to_markdown

MODEL = ["--model.dim", "64", "--model.num-heads", "4", "--model.num-layers", "1"]
MODEL += ["--model.feedforward", "64", "--training.threads", "1", "--training.accelerator", "cpu"]


def options(parser: ArgumentParser) -> None:
    """Add the options."""
    share(parser, "compare_start")
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--epochs", type=int, default=12)


def execute(arguments: Namespace) -> None:
    """Measure, print and save."""
    settings = [*MODEL, "--training.epochs", str(arguments.epochs)]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder, "comparison")
        runs = ["--mixers", "flow", "--seeds", str(arguments.runs), "--output", str(root)]
        whole = seconds("compare", "japanese-vowels", *runs, *settings)
        results = [json.loads(path.read_text()) for path in root.glob("runs/*/*/result.json")]
        alone = seconds("train", "japanese-vowels", "--run-dir", f"{folder}/alone", *settings)
    training = [result["seconds"] for result in results]
    if len(training) < arguments.runs:
        sys.exit("a run has not finished")
    result: Result = {
        "runs": arguments.runs,
        "epochs": arguments.epochs,
        "training_seconds": sum(training),
        "compare_seconds": whole,
        "train_seconds": alone,
    }
    print(table(result))
    save(arguments.output, result)


def seconds(*command: str) -> float:
    """Return what a command takes."""
    start = time.perf_counter()
    flowformer(*command)
    return time.perf_counter() - start


def table(result: Result) -> str:
    """Return the seconds of the comparison, of its trainings, and of the runs each by itself."""
    runs = result["runs"]
    rows = [
        [f"the training of {runs} runs, by their `result.json`", result["training_seconds"]],
        [f"`flowformer compare`, all {runs}, table and figures", result["compare_seconds"]],
        [f"{runs} times the one `flowformer train`", runs * result["train_seconds"]],
    ]
    return to_markdown(["", "seconds"], [[name, f"{value:.1f}"] for name, value in rows]).rstrip()


TABLES: Tables = {"compare_start": table}
