"""`flowformer compare RECIPE … --mixers flow,softmax --seeds 3`."""

import json
import re
import signal
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowformer.cli.experiment_flags import options_for, parse_experiment
from flowformer.names import check_sizes
from flowformer.own_modules import OwnModule, own_module
from flowformer.progress import working
from flowformer.recipes import RECIPES, build_recipe
from flowformer.train.kinds import Experiment
from flowformer.train.series.config import SeriesConfig

if TYPE_CHECKING:
    from flowformer.compare.plan import Plan

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_SHARE = 0.9  # of the memory that is there, for all runs together


@dataclass(frozen=True, kw_only=True)
class Options:
    """Compare attention mechanisms and other methods: the same recipe, each with several seeds.

    The same command goes on where it was stopped; finished runs are not repeated. The seeds count
    from that of the recipe.

    Attributes:
        mixers: names with commas between, the one that the others are tested against first; all for
            every one that the recipe can have: bidirectional, or of language models causal.
        methods: other methods to run beside them, with commas between: on time series dtw, rocket,
            xgboost, lstm, dilated-conv; on long sequences bag-of-tokens, chance.
        mixer_options: NAME.OPTION=VALUE, any number of them, the value as JSON or a word, for
            example performer.features=128; of a mixer or another method.
        seeds: runs of each.
        jobs: runs at a time.
        memory_limit: what a run may take, for example 8G; by default its share of what is there.
        datasets: sets of the archive, with commas between, in place of the recipe's.
        output: folder of the comparison; by default comparisons/RECIPE-PROTOCOL.
        cost: result of python -m benchmarks mixer_cost, for the page.
        dry_run: show the plan and do nothing.
    """

    mixers: str = "all"
    methods: str = ""
    mixer_options: tuple[str, ...] = ()
    seeds: int = 3
    jobs: int = 1
    memory_limit: str | None = None
    datasets: str = ""
    output: Path | None = None
    cost: Path | None = None
    dry_run: bool = False

    def __post_init__(self) -> None:
        check_sizes(self, "seeds", "jobs")


def main(arguments: list[str]) -> int:
    """Compare; the code is 1 when a run failed, or none finished."""
    recipes, overrides = _part(arguments)
    if not recipes:
        asked = bool(overrides) and overrides[0] in ("-h", "--help")
        (sys.stdout if asked else sys.stderr).write(_usage())
        return 0 if asked else 2
    prog = f"flowformer compare {' '.join(recipes)}"
    # Each recipe has defaults of its own, which the flags change.
    parsed = [
        _parse(overrides, prog=prog, config=build_recipe(name)) for name in dict.fromkeys(recipes)
    ]
    experiments = [experiment for _, changed in parsed for experiment in changed]
    return _compare(experiments, parsed[0][0], recipes)


def _parse(
    overrides: Sequence[str], *, prog: str, config: Experiment
) -> tuple[Options, list[Experiment]]:
    """Return the options, and the experiments that they make of a recipe: one for each data set.

    Raises:
        ValueError: another mixer than the recipe's, or data sets where there is no archive of them.
    """
    options, experiment = parse_experiment(Options, overrides, prog=prog, config=config)
    before, now = config.model, experiment.model
    if (before.mixer, before.mixer_options) != (now.mixer, now.mixer_options):
        raise ValueError(
            "the mixer is what is compared: give --mixers and --mixer-options, "
            "not --model.mixer and --model.mixer-options"
        )
    names = _split(options.datasets)
    if not names:
        return options, [experiment]
    if not isinstance(experiment, SeriesConfig):
        raise ValueError(f"--datasets names sets of the UEA archive, and {config.name} has no part")
    return options, [
        replace(experiment, data=replace(experiment.data, dataset=name)) for name in names
    ]


def _compare(experiments: Sequence[Experiment], options: Options, recipes: Sequence[str]) -> int:
    from flowformer.compare.execution import execute
    from flowformer.compare.findings import find, to_markdown
    from flowformer.compare.page import MixerCost, write_comparison
    from flowformer.compare.plan import make_plan, read_comparison, require_own, require_same

    root = options.output or Path("comparisons", f"{'-'.join(recipes)}-{experiments[0].protocol}")
    require_own(root)
    methods = _choose_methods(options, experiments[0])
    experiments, read = _understand(experiments, methods)
    modules = _own_modules(methods)
    plan = make_plan(experiments, methods, seeds=options.seeds, root=root, modules=modules)
    cost = None if options.cost is None else MixerCost.read(options.cost)
    limit = _memory_limit(options, experiments[0])
    require_same(plan)
    sys.stdout.write(_describe(plan, options.jobs, limit, read))
    sys.stdout.flush()
    if options.dry_run:
        return 0
    try:
        with _sigterm_exits(), working("comparing") as work:
            execute(plan, jobs=options.jobs, memory_limit=limit, show=work.tell)
    except (KeyboardInterrupt, SystemExit) as stop:
        sys.stderr.write("\nstopped; the same command goes on\n")
        return 130 if isinstance(stop, KeyboardInterrupt) else int(stop.code or 0)
    compared = read_comparison(plan)
    # Printed first: for the files there may be no room.
    sys.stdout.write(f"\n{to_markdown(compared, find(compared))}\n")
    sys.stdout.flush()
    page = write_comparison(root, compared, cost=cost)
    sys.stdout.write(f"table  {root / 'table.md'}, {root / 'table.csv'}\n")
    sys.stdout.write(f"paper  {root / 'table.tex'}, {root / 'runs.csv'}, {root / 'tests.csv'}\n")
    sys.stdout.write(f"page   {page}\n")
    failed = any(
        (state := run.read_state()) is not None and state.status == "failed" for run in plan.runs
    )
    return 1 if failed or not any(run.finished for run in compared.outcomes) else 0


def _understand(
    experiments: Sequence[Experiment], methods: Iterable[str]
) -> tuple[list[Experiment], list[str]]:
    """Read series of a user's own, before hours go into runs that none of them could do.

    Returns:
        The experiments with the columns that were found, and what the data are, in a line each.

    Raises:
        ValueError: the data are not what was expected, or a method needs a part to test on.
    """
    from flowformer.compare.methods import TRAIN, function_of
    from flowformer.train.series.data import understand

    found, lines = [], []
    for config in experiments:
        if isinstance(config, SeriesConfig) and config.data.train_file is not None:
            untrained = [name for name in methods if function_of(name, config) != TRAIN]
            if untrained and not config.has_test:
                raise ValueError(
                    f"{untrained[0]} needs series to test on: give data.test_fraction 0.2, or "
                    "data.test_file"
                )
            config, line = understand(config)
            lines.append(line)
        found.append(config)
    return found, lines


def _choose_methods(options: Options, experiment: Experiment) -> dict[str, dict[str, Any]]:
    """Return the options of each method, in order.

    Raises:
        ValueError: there is no such mixer, method or option.
    """
    mixers, others = _read_names(options, experiment)
    names = [*mixers, *others]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"expected names of methods, each once, got {', '.join(names) or 'none'}")
    chosen = {name: options_for(name, experiment.model) for name in names}
    for text in options.mixer_options:
        name, option, value = _read_option(text)
        if name not in chosen:
            raise ValueError(f"{text}: {name} is not compared here, {', '.join(names)} are")
        chosen[name][option] = value
    for name in mixers:
        _check_mixer(name, chosen[name], experiment)
    return chosen


def _read_names(options: Options, experiment: Experiment) -> tuple[list[str], list[str]]:
    """Return the names of mixers, and those of other methods."""
    from flowformer.compare.methods import methods_of
    from flowformer.nn import MIXERS
    from flowformer.nn.mixers.building import load_installed
    from flowformer.nn.mixers.head_attention import able

    load_installed()
    methods = methods_of(experiment)
    mixers, others = _split(options.mixers), _split(options.methods)
    form = "causal" if experiment.causal else "bidirectional"
    fitting = able(form)
    if mixers == ["all"]:
        mixers = fitting
    for name in mixers:
        if name in methods:
            raise ValueError(f"{name} is no mixer but another method: give it to --methods")
        if name in MIXERS and name not in fitting:
            raise ValueError(
                f"{name} has no {form} form, which {experiment.name} needs: choose from "
                f"{', '.join(fitting)}"
            )
    for name in others:
        if name in MIXERS:
            raise ValueError(f"{name} is a mixer: give it to --mixers")
        if name not in methods:
            known = ", ".join(methods) or f"none, {experiment.name} has only mixers"
            raise ValueError(f"unknown method {name!r}: expected one of {known}")
    return mixers, others


def _own_modules(names: Iterable[str]) -> dict[str, OwnModule]:
    """Return the modules that gave mixers their names, of those that are a user's own."""
    from flowformer.nn import MIXERS

    found = {name: own_module(MIXERS[name].origin) for name in names if name in MIXERS}
    return {name: module for name, module in found.items() if module is not None}


def _check_mixer(name: str, options: dict[str, Any], experiment: Experiment) -> None:
    """Build a mixer that has options, before hours go into others; on no device, so in no memory.

    Raises:
        ValueError: there is no such mixer, or no such option or value.
    """
    import torch

    from flowformer.nn import MIXERS, build_mixer

    if name in MIXERS and not options:
        return
    model: Any = experiment.model
    sizes = (experiment.data, model)
    # Of no matter, but for mixers that need one.
    length = next((n for part in sizes if (n := getattr(part, "max_length", None))), 1024)
    with torch.device("meta"):
        build_mixer(name, model.dim, model.num_heads, **{"max_length": length, **options})


def _read_option(text: str) -> tuple[str, str, Any]:
    match = re.fullmatch(r"([\w-]+)\.(\w+)=(.*)", text)
    if match is None:
        raise ValueError(f"expected NAME.OPTION=VALUE, got {text!r}")
    name, option, value = match.groups()
    try:
        return name, option, json.loads(value)
    except json.JSONDecodeError:
        return name, option, value  # a word: exact, relu


def _memory_limit(options: Options, experiment: Experiment) -> int | None:
    """Return bytes: what was asked for, or a run's share of what is there; None on a GPU."""
    if options.memory_limit is not None:
        match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMGT]?)(?:i?B)?", options.memory_limit)
        if match is None or not float(match[1]):
            raise ValueError(
                f"memory_limit must be a size such as 512M or 8G, got {options.memory_limit!r}"
            )
        return int(float(match[1]) * _UNITS[match[2]])
    from flowformer.machine import available_memory
    from flowformer.train.prediction import choose_device

    available = available_memory()
    if available is None or choose_device(experiment.training.accelerator).type != "cpu":
        return None
    return int(_SHARE * available / options.jobs)


def _describe(plan: "Plan", jobs: int, limit: int | None, read: Sequence[str]) -> str:
    from flowformer.report.words import memory

    finished = sum(run.read_result() is not None for run in plan.runs)
    lines = [
        f"comparison  {plan.root}",
        f"data        {'; '.join(read) or ', '.join(plan.datasets)}",
        f"methods     {', '.join(map(_with_options, *zip(*plan.methods.items(), strict=True)))}",
        f"seeds       {', '.join(map(str, plan.seeds))}",
        f"runs        {len(plan.runs)}, of which {finished} have finished; {jobs} at a time, "
        + ("no memory limit" if limit is None else f"each within {memory(limit)}"),
    ]
    return "\n".join(lines) + "\n"


def _with_options(name: str, options: Mapping[str, Any]) -> str:
    if not options:
        return name
    return f"{name} ({', '.join(f'{key}={value}' for key, value in options.items())})"


@contextmanager
def _sigterm_exits() -> Iterator[None]:
    """Make SIGTERM end the block as an exception does, so that what it started is ended too."""

    def leave(number: int, _frame: object) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _part(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Part the recipes, which come first, from the flags; a comma is as good as a space."""
    flags = next((at for at, each in enumerate(arguments) if each.startswith("-")), len(arguments))
    return [name for each in arguments[:flags] for name in _split(each)], list(arguments[flags:])


def _split(names: str) -> list[str]:
    return [name.strip() for name in names.split(",") if name.strip()]


def _usage() -> str:
    return "\n".join(
        [
            "usage: flowformer compare RECIPE [RECIPE ...] [flags]",
            "",
            "Compare mixers and other methods on a recipe or several. Where it was stopped, the",
            "same command goes on. flowformer compare RECIPE --help lists the flags.",
            "",
            *(f"  {name:<29}{(build.__doc__ or '').strip()}" for name, build in RECIPES.items()),
            "",
            "Examples:",
            "  flowformer compare japanese-vowels --mixers flow,softmax,linear --seeds 3",
            "  flowformer compare japanese-vowels heartbeat --mixers all --training.epochs 30",
            "  flowformer compare time-series --datasets BasicMotions,JapaneseVowels --jobs 2",
            "  flowformer compare self-regulation-scp1 --mixer-options linformer.rank=64",
            "  flowformer compare char-shakespeare --mixers mine,flow --import my_mixer",
            "",
        ]
    )
