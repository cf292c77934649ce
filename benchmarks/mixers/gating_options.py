"""Where `gated` is no better than `flow`, is it with other options, or more dropout?

    python -m benchmarks gating_options                # an hour and a half of a core
    python -m benchmarks gating_options vowels text    # some of the tasks

Each task is two `flowformer compare --equal-parameters`, printed before they start, in
comparisons/gating_options-TASK, the second with more dropout. It explores: nothing is chosen by
it, and its three seeds, none of them one of gating.py's, tell large differences only. Retrieval,
which no mixer has learned, is left out.
"""

from argparse import ArgumentParser, Namespace
from itertools import pairwise

from benchmarks.mixers.comparisons import SETTINGS, data_of
from benchmarks.mixers.gating import TASKS, measure_of, unit
from benchmarks.mixers.parts import TRIED
from benchmarks.mixers.runs import FOLDER, compare, mark, mean_and_spread, scores_of, tests_of
from benchmarks.pages import Tables
from benchmarks.runner import RESULTS, Result, keep, one_of
from flowformer.compare.significance import against
from flowformer.recipes import build_recipe
from flowformer.report.words import MISSING, to_markdown

NAME = "gating_options"
SEED, SEEDS = 10, 3
NO_BETTER = ("vowels", "scp1", "text", "hopper")
PLAIN = ["flow", "gated"]
LESS = ["gated-no-convolution", "gated-no-gain", "gated-no-decay", "gated-no-long-decay"]
ALL_ONE_WAY = "gated-all-one-way"
DROPOUT = 0.2


def mixers_of(task: str) -> list[str]:
    """Return what is tried on a task, but what is `gated` itself there.

    In the causal form no head reads backwards; of two heads one reads each way as it is.
    """
    tried = list(TRIED)
    setting = SETTINGS[task]
    if build_recipe(setting[0]).causal:
        tried = [name for name in tried if "directions" not in TRIED[name]]
    elif ("--model.num-heads", "2") in pairwise(setting):
        tried.remove(ALL_ONE_WAY)
    return [*PLAIN, *LESS, *tried]


def collect(task: str) -> Result:
    """Compare what is tried on a task, or go on with it; return what is kept.

    Raises:
        SystemExit: a comparison did not end with all of its runs; its code is the comparison's.
    """
    setting = [*SETTINGS[task], *data_of(task), "--training.seed", str(SEED)]
    setting += ["--seeds", str(SEEDS), "--equal-parameters"]
    folder = FOLDER / f"{NAME}-{task}"
    asked = ["--mixers", ",".join(mixers_of(task)), "--import", "benchmarks.mixers.ablations"]
    scores = scores_of(compare(folder / "options", *setting, *asked))
    asked = ["--mixers", ",".join(PLAIN), "--model.dropout", str(DROPOUT)]
    dropped = scores_of(compare(folder / "dropout", *setting, *asked))
    return {"scores": scores | {_dropped(name): own for name, own in dropped.items()}}


def _dropped(mixer: str) -> str:
    return f"{mixer}, dropout {DROPOUT}"


def _shown(name: str) -> str:
    mixer, _, rest = name.partition(",")
    return f"`{mixer}`" + (rest and f",{rest}")


def options(parser: ArgumentParser) -> None:
    """Add the options."""
    task = one_of("task", NO_BETTER)
    parser.add_argument("names", nargs="*", type=task, default=list(NO_BETTER), metavar="TASK")


def execute(arguments: Namespace) -> None:
    """Compare on the tasks that were asked for, and keep each beside those that are there."""
    for task in arguments.names:
        keep(RESULTS / f"{NAME}.json", ("tasks", task), collect(task))


def gating_options(result: Result) -> str:
    """Return mean and spread of what was tried, marked against flow with the same dropout."""
    tasks = [task for task in NO_BETTER if task in result["tasks"]]
    columns = [figures(task, result["tasks"][task]["scores"]) for task in tasks]
    names = dict.fromkeys(name for column in columns for name in column)
    rows = [[_shown(name), *(column.get(name, MISSING) for column in columns)] for name in names]
    heads = [f"{TASKS[task]}, {unit(task)}" for task in tasks]
    return to_markdown(["tried", *heads], rows).rstrip()


def figures(task: str, scores: dict[str, list[float]]) -> dict[str, str]:
    """Return mean and spread of what was tried on a task, by its name."""
    baselines = PLAIN[0], _dropped(PLAIN[0])
    plain = [name for name in scores if "dropout" not in name]
    pairs = [*against(plain, baselines[0]), (_dropped(PLAIN[1]), baselines[1])]
    tested = tests_of(scores, pairs, measure_of(task))
    marked = {pair[0]: mark(test) for pair, test in tested.items()}
    return {
        name: mean_and_spread(own, measure_of(task)) + marked.get(name, "")
        for name, own in scores.items()
    }


TABLES: Tables = {NAME: gating_options}
UNMEASURED = dict.fromkeys(TABLES, "Not run yet.")
