"""What do the paper's own settings reach on two of its sets of series, under both protocols?

    python -m benchmarks series_paper vowels            # JapaneseVowels: 2 hours of a core
    python -m benchmarks series_paper scp1 --seeds 1    # SelfRegulationSCP1: 15 hours a seed
    python -m benchmarks series_paper                   # both, three seeds: 2 days
    python -m benchmarks series_paper --dry-run         # how long each will take

The recipes as they are: two layers of 512 with 8 heads, 100 epochs, batches of 16. Each seed of a
set and a protocol is one `flowformer compare`, printed before it starts, in
comparisons/series_paper; every set has a seed before one has the next. Stopped or killed, it goes
on by the same command, within a run after its last epoch. A seed that has ended stands in
results/series_paper.json.
"""

from argparse import ArgumentParser, Namespace
from functools import partial
from itertools import product
from statistics import fmean

import torch

from benchmarks.mixers.comparisons import data_of
from benchmarks.mixers.runs import FOLDER, collect, rehearse
from benchmarks.pages import Tables
from benchmarks.runner import RESULTS, Result, one_of, share
from flowformer.compare.table import Cell, RunOutcome, summarize
from flowformer.report.words import MISSING, duration, memory, show, to_markdown
from flowformer.scores.measures import ACCURACY

NAME = "series_paper"
MIXERS = ["flow", "softmax", "linear"]
PROTOCOLS = ["clean", "published"]
RECIPES = {"vowels": "japanese-vowels", "scp1": "self-regulation-scp1"}
TITLES = {"vowels": "JapaneseVowels", "scp1": "SelfRegulationSCP1"}
# Flowformer (Wu et al., ICML 2022), the table of UEA results; the best over epochs on the test set.
PAPER = {
    "vowels": {"flow": 0.989, "softmax": 0.987, "linear": 0.992},
    "scp1": {"flow": 0.925, "softmax": 0.922, "linear": 0.925},
}


def setting_of(task: str, protocol: str) -> list[str]:
    """Return the recipe and its flags."""
    setting = [RECIPES[task], "--training.threads", "1", "--training.protocol", protocol]
    return [*setting, "--mixers", ",".join(MIXERS)]


def options(parser: ArgumentParser) -> None:
    """Add the options."""
    name = one_of("set", RECIPES)
    parser.add_argument("names", nargs="*", type=name, default=list(RECIPES), metavar="SET")
    share(parser, seeds=3, again=False, dry_run=False)


def execute(arguments: Namespace) -> None:
    """Compare as asked for, and keep each seed beside what is there."""
    torch.set_num_threads(1)  # as each run has, for the machine's description
    kept = RESULTS / f"{NAME}.json"
    every = [(task, protocol) for task in arguments.names for protocol in PROTOCOLS]
    if arguments.dry_run:
        for task, protocol in every:
            asked = [*setting_of(task, protocol), "--seeds", str(arguments.seeds)]
            rehearse(FOLDER / NAME / f"{task}-{protocol}", asked, data_of(task))
        return
    for seed, (task, protocol) in product(range(arguments.seeds), every):
        asked = [*setting_of(task, protocol), "--training.seed", str(seed), "--seeds", "1"]
        output = FOLDER / NAME / f"{task}-{protocol}"
        place = (task, protocol, f"seed {seed}")
        collect(kept, place, output, asked, again=arguments.again, here=partial(data_of, task))


def table(result: Result) -> str:
    """Return the accuracy under each protocol beside the paper's, and what a run costs."""
    rows = []
    for task, title in TITLES.items():
        for mixer in MIXERS:
            cells = [cell_of(result, task, protocol, mixer) for protocol in PROTOCOLS]
            there = [cell for cell in cells if cell is not None]
            if not there:
                continue
            seconds = fmean(cell.seconds for cell in there if cell.seconds is not None)
            most = max(cell.peak_memory or 0 for cell in there)
            paper = ACCURACY.show(PAPER[task][mixer])
            scores = [MISSING if cell is None else score(cell) for cell in cells]
            rows.append([title, f"`{mixer}`", *scores, paper, duration(seconds), memory(most)])
    header = ["set", "mixer", *(f"{protocol}, %" for protocol in PROTOCOLS)]
    header += ["the paper's, published, %", "training a run", "peak memory"]
    return to_markdown(header, rows).rstrip()


def cell_of(result: Result, task: str, protocol: str, mixer: str) -> Cell | None:
    """Return a mixer's figures over its seeds; None where there are none yet."""
    parts = result.get(task, {}).get(protocol, {}).values()
    runs = [run for part in parts for run in part["runs"] if run["method"] == mixer]
    cells = summarize(RunOutcome(dataset=task, **run) for run in runs)
    return cells[0] if cells else None


def score(cell: Cell) -> str:
    """Return mean, spread and the number of seeds."""
    spread = "" if cell.spread is None else f" ± {ACCURACY.show(cell.spread)}"
    return f"{show(cell.mean, ACCURACY.show)}{spread} ({cell.finished})"


TABLES: Tables = {NAME: table}
