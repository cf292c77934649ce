"""What are a decay, gates and flows worth, in models of equal size?

    python -m benchmarks gating characters recall        # some of the tasks
    python -m benchmarks gating --seeds 5                # all

Each task is one `flowformer compare --equal-parameters`, printed before it starts, in
comparisons/gating-TASK; stopped or killed, it goes on by the same command. The scores of every seed
are kept in results/gating.json. On `ablation`, the characters again, each mixer lacks one part of
`gated` or of `flow-gated`; on `flow-ablation` one part of `flow` is removed or changed.
"""

from argparse import ArgumentParser, Namespace
from collections.abc import Mapping

from benchmarks.mixers.comparisons import SETTINGS, data_of
from benchmarks.mixers.parts import WITHOUT, WITHOUT_FLOWS
from benchmarks.mixers.runs import FOLDER, compare, mark, mean_and_spread, scores_of, tests_of
from benchmarks.pages import Tables
from benchmarks.runner import RESULTS, Result, keep, one_of
from flowformer.compare.significance import PairedTest, Pairing, every_pair
from flowformer.recipes import build_recipe
from flowformer.report.words import to_markdown
from flowformer.scores.measures import Measure

NAME = "gating"
CAUSAL = ["flow", "softmax", "linear", "gla", "deltanet", "gated-deltanet", "mamba2", "retnet"]
GATED = ["gated", "flow-gated"]
ABLATION = "ablation"
FLOW_ABLATION = "flow-ablation"
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
    "retrieval": "Retrieval",
}
# Of each ablation, families of mixers: the whole first, then those that differ in one part. Of
# those of `flow` two are the paper's, two made by ablations.py.
ABLATIONS = {
    ABLATION: [
        ["gated", *(f"gated-no-{part}" for part in WITHOUT)],
        ["flow-gated", *(f"flow-gated-no-{part}" for part in WITHOUT_FLOWS)],
    ],
    FLOW_ABLATION: [
        ["flow", "flow-no-competition", "flow-no-allocation", "flow-relu", "flow-no-clamp"],
    ],
}


def settings_of(task: str) -> list[str]:
    """Return the recipe of a task, and its flags."""
    return SETTINGS["characters" if task in ABLATIONS else task]


def mixers_of(task: str) -> list[str]:
    """Return the mixers that a task compares, the one that others are tested against first."""
    if task in ABLATIONS:
        return [mixer for family in ABLATIONS[task] for mixer in family]
    if build_recipe(settings_of(task)[0]).causal:
        return [*CAUSAL, *GATED]
    return [*CAUSAL[:3], *GATED]


def collect(task: str, seeds: int) -> Result:
    """Compare the mixers of a task, or go on with it; return what is kept.

    Raises:
        SystemExit: it did not end with all of its runs; its code is the comparison's.
    """
    arguments = [*settings_of(task), *data_of(task), "--seeds", str(seeds)]
    arguments += ["--mixers", ",".join(mixers_of(task)), "--equal-parameters"]
    if task in ABLATIONS:
        arguments += ["--import", "benchmarks.mixers.ablations"]
    runs = compare(FOLDER / f"{NAME}-{task}", *arguments)
    sizes = {run["method"]: int(run["parameters"]) for run in runs}
    return {"scores": scores_of(runs), "parameters": sizes}


def options(parser: ArgumentParser) -> None:
    """Add the options."""
    known = [*TASKS, *ABLATIONS]
    name = one_of("task", known)
    parser.add_argument("names", nargs="*", type=name, default=known, metavar="TASK")
    parser.add_argument("--seeds", type=int, default=5, help="runs of each mixer")


def execute(arguments: Namespace) -> None:
    """Compare on the tasks that were asked for, and keep each beside those that are there."""
    for task in arguments.names:
        cell = collect(task, arguments.seeds)
        keep(RESULTS / f"{NAME}.json", ("tasks", task), cell)


def measure_of(task: str) -> Measure:
    """Return what a task is measured by."""
    return build_recipe(settings_of(task)[0]).measure


def tests(task: str, cell: Result) -> dict[Pairing, PairedTest]:
    """Return the tests of a task: of every pair, or of each ablation against the whole."""
    pairs = every_pair(cell["scores"])
    if task in ABLATIONS:
        pairs = [(part, whole) for whole, *parts in ABLATIONS[task] for part in parts]
    return tests_of(cell["scores"], pairs, measure_of(task))


def figures(task: str, cell: Result, baselines: Mapping[str, str]) -> dict[str, str]:
    """Return mean and spread of mixers over the seeds, marked where they differ from a baseline's.

    Args:
        task: what they were compared on.
        cell: what was kept of it.
        baselines: the mixers, each with its baseline.
    """
    tested = tests(task, cell)
    return {
        mixer: mean_and_spread(cell["scores"].get(mixer, []), measure_of(task))
        + mark(tested.get((mixer, baseline)))
        for mixer, baseline in baselines.items()
    }


def gating(result: Result) -> str:
    """Return the scores of every mixer on every task that was compared, marked against flow."""
    tasks = {task: title for task, title in TASKS.items() if task in result["tasks"]}
    baselines = dict.fromkeys([*CAUSAL, *GATED], "flow")
    columns = [figures(task, result["tasks"][task], baselines) for task in tasks]
    rows = [[f"`{mixer}`", *(column[mixer] for column in columns)] for mixer in baselines]
    heads = [f"{title}, {unit(task)}" for task, title in tasks.items()]
    return to_markdown(["mixer", *heads], rows).rstrip()


def ablation(result: Result) -> str:
    """Return bits and parameters without each part, marked against the whole."""
    rows = []
    for task in (task for task in ABLATIONS if task in result["tasks"]):
        cell = result["tasks"][task]
        baselines = {mixer: family[0] for family in ABLATIONS[task] for mixer in family}
        rows += [
            [f"`{mixer}`", shown, f"{cell['parameters'][mixer]:,}"]
            for mixer, shown in figures(task, cell, baselines).items()
        ]
    if not rows:
        return UNMEASURED[ABLATION_TABLE]
    head = ["mixer", f"characters, {unit(ABLATION)}", "parameters"]
    return to_markdown(head, rows).rstrip()


def unit(task: str) -> str:
    """Return the unit of a task's measure, or its name."""
    return measure_of(task).unit or measure_of(task).name


ABLATION_TABLE = "gating_ablation"
TABLES: Tables = {NAME: gating, ABLATION_TABLE: ablation}
UNMEASURED = dict.fromkeys(TABLES, "Not run yet.")
