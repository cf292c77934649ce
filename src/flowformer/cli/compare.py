"""`flowformer compare RECIPE … --mixers flow,softmax --seeds 3`."""

import json
import re
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from flowformer.cli.experiment_flags import parse_experiment
from flowformer.machine import read_size
from flowformer.models.known_mixers import (
    KNOWN_MIXERS,
    check_mixer_options,
    require_form,
    require_mixer,
)
from flowformer.names import Early, ExistingFile, check_sizes
from flowformer.progress import working
from flowformer.recipes import RECIPES, build_recipe
from flowformer.train.kinds import Experiment
from flowformer.train.series.config import SeriesConfig

if TYPE_CHECKING:
    from flowformer.compare.engines.cluster import Cluster
    from flowformer.compare.equal import Size
    from flowformer.compare.plan import Plan


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
        jobs: runs at a time; by default one, and on a cluster as many as it has room for.
        memory_limit: what a run may take, for example 8G; by default its share of what is there,
            and on a cluster no limit.
        cluster: what does the runs in place of this machine: ray://HOST:PORT, ray, slurm, or local
            (jobs of submitit on this machine).
        cpus: processors of each run on a cluster.
        gpus: GPUs of each run on a cluster.
        cluster_options: NAME=VALUE, any number of them, the value as JSON or a word, for example
            slurm_partition=gpu timeout_min=240: of Slurm what submitit takes, of Ray what
            ray.remote does.
        datasets: sets of the archive, with commas between, in place of the recipe's.
        output: folder of the comparison; by default comparisons/RECIPE-PROTOCOL.
        equal_parameters: change the width of each model's feed-forward layers until it has as many
            parameters as that of the first mixer, within 2 %.
        cost: result of python -m benchmarks mixer_cost, for the page.
        dry_run: show the plan and how long it will take, by the first steps of each method, and
            leave nothing behind.
    """

    mixers: str = "all"
    methods: str = ""
    mixer_options: tuple[str, ...] = ()
    seeds: int = 3
    jobs: int | None = None
    memory_limit: Annotated[str, Early(read_size)] | None = None
    cluster: str | None = None
    cpus: int = 1
    gpus: int = 0
    cluster_options: tuple[str, ...] = ()
    datasets: str = ""
    output: Path | None = None
    equal_parameters: bool = False
    cost: ExistingFile | None = None
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
    root = options.output or Path("comparisons", f"{'-'.join(recipes)}-{experiments[0].protocol}")
    asked = _check_early(experiments, options, root)
    cluster, cost = _cluster(options), _cost(options)
    from flowformer.compare.choice import own_modules
    from flowformer.compare.execution import execute
    from flowformer.compare.plan import make_plan, require_same
    from flowformer.compare.rehearsal import rehearse, to_text

    methods = _choose_methods(asked, experiments[0])
    experiments, read = _understand(experiments)
    modules = own_modules(methods)
    plan = make_plan(experiments, methods, seeds=options.seeds, root=root, modules=modules)
    sizes: list[Size] = []
    if options.equal_parameters:
        from flowformer.compare.equal import equal_parameters

        plan, sizes = equal_parameters(plan)
    limit = _memory_limit(options, experiments[0], cluster)
    require_same(plan)
    at_once = options.jobs or (1 if cluster is None else None)
    sys.stdout.write(_describe(plan, at_once, limit, cluster, read))
    sys.stdout.writelines(f"size        {size}\n" for size in sizes)
    sys.stdout.flush()
    how: dict[str, Any] = {"jobs": options.jobs, "memory_limit": limit, "cluster": cluster}
    try:
        with _sigterm_exits(), working("comparing") as work:
            if options.dry_run:
                expected = rehearse(plan, **how, show=work.tell)
                sys.stdout.write(to_text(expected, at_once))
                failed = (
                    each.state is not None and each.state.status == "failed" for each in expected
                )
                return 1 if any(failed) else 0
            execute(plan, **how, show=work.tell)
    except (KeyboardInterrupt, SystemExit) as stop:
        goes_on = "" if options.dry_run else "; the same command goes on"
        sys.stderr.write(f"\nstopped{goes_on}\n")
        return 130 if isinstance(stop, KeyboardInterrupt) else int(stop.code or 0)
    return _tell(plan, cost)


def _tell(plan: "Plan", cost: Any) -> int:
    """Print the table, write the files, and return the exit code."""
    from flowformer.compare.findings import find, to_markdown
    from flowformer.compare.page import write_comparison
    from flowformer.compare.plan import read_comparison

    root, compared = plan.root, read_comparison(plan)
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


def _understand(experiments: Sequence[Experiment]) -> tuple[list[Experiment], list[str]]:
    """Read series of a user's own, before hours go into runs that none of them could do.

    Returns:
        The experiments with the columns that were found, and what the data are, in a line each.

    Raises:
        ValueError: the data are not what was expected.
    """
    from flowformer.train.series.data import understand

    found, lines = [], []
    for config in experiments:
        if isinstance(config, SeriesConfig) and config.data.train_file is not None:
            config, line = understand(config)
            lines.append(line)
        found.append(config)
    return found, lines


def _check_early(
    experiments: Sequence[Experiment], options: Options, root: Path
) -> dict[str, dict[str, Any]]:
    """Refuse what can be seen before anything is imported that computes.

    Returns:
        The options that are given, by the names of mixers and methods, in order; all is a name.
    """
    from flowformer.compare.methods import require_tested
    from flowformer.compare.plan import require_alike, require_own

    require_own(root)
    require_alike(experiments)
    asked = {name: {} for name in _read_names(options, experiments[0])}
    for text in options.mixer_options:
        name, option, value = _read_option(text)
        if name not in asked and "all" not in asked:
            raise ValueError(f"{text}: {name} is not compared here, {', '.join(asked)} are")
        check_mixer_options(name, {option: value})
        asked.setdefault(name, {})[option] = value
    for config in experiments:
        if not root.exists():  # where all runs have finished, their table needs no data
            config.check_early()
        if not config.has_test:
            require_tested(asked, config, "data.test_fraction 0.2, or data.test_file")
    return asked


def _read_names(options: Options, experiment: Experiment) -> list[str]:
    """Return the names of mixers and of other methods, each from its own flag.

    Raises:
        ValueError: there is no such mixer or method, not in the form that is needed, or twice.
    """
    from flowformer.compare.choice import form_of, require_each_once
    from flowformer.compare.methods import METHODS, methods_of

    methods = methods_of(experiment)
    mixers, others = _split(options.mixers), _split(options.methods)
    for name in mixers:
        if name in methods:
            raise ValueError(f"{name} is no mixer but another method: give it to --methods")
        if name not in ("all", *chain(*METHODS.values())):  # of other kinds of data, as told later
            require_mixer(name)
            require_form(name, form_of(experiment), experiment.name)
    for name in others:
        if name in KNOWN_MIXERS:
            raise ValueError(f"{name} is a mixer: give it to --mixers")
        if name not in methods:
            known = ", ".join(methods) or f"none, {experiment.name} has only mixers"
            raise ValueError(f"unknown method {name!r}: expected one of {known}")
    names = [*mixers, *others]
    require_each_once(names)
    return names


def _choose_methods(
    asked: Mapping[str, Mapping[str, Any]], experiment: Experiment
) -> Mapping[str, Mapping[str, Any]]:
    """Return the options of each method, in order.

    Raises:
        ValueError: there is no such mixer, method or option.
    """
    from flowformer.compare.choice import choose_methods, mixers_for

    if "all" not in asked:
        return choose_methods(asked, experiment)
    names = dict.fromkeys([*mixers_for(experiment), *(name for name in asked if name != "all")])
    return choose_methods({name: asked.get(name, {}) for name in names}, experiment)


def _read_option(text: str) -> tuple[str, str, Any]:
    match = re.fullmatch(r"([\w-]+)\.(\w+)=(.*)", text)
    if match is None:
        raise ValueError(f"expected NAME.OPTION=VALUE, got {text!r}")
    name, option, value = match.groups()
    return name, option, _value(value)


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text  # a word: exact, relu


def _cluster(options: Options) -> "Cluster | None":
    """Return the cluster that is asked for.

    Raises:
        ValueError: there is no such kind, or an option for one without one.
    """
    if options.cluster is None:
        if (options.cpus, options.gpus, options.cluster_options) != (1, 0, ()):
            raise ValueError("--cpus, --gpus and --cluster-options are for runs on a --cluster")
        return None
    from flowformer.compare.engines.cluster import Cluster

    given: dict[str, Any] = {}
    for text in options.cluster_options:
        name, equals, value = text.partition("=")
        if not (name and equals):
            raise ValueError(f"expected NAME=VALUE, got {text!r}")
        given[name] = _value(value)
    return Cluster(address=options.cluster, cpus=options.cpus, gpus=options.gpus, options=given)


def _cost(options: Options) -> Any:
    if options.cost is None:
        return None
    from flowformer.compare.page import MixerCost

    return MixerCost.read(options.cost)


def _memory_limit(
    options: Options, experiment: Experiment, cluster: "Cluster | None"
) -> int | None:
    """Return bytes: what was asked for, or a run's share of this machine's; None on a GPU."""
    from flowformer.compare.choice import share_of_memory

    if options.memory_limit is not None:
        return read_size(options.memory_limit)
    return None if cluster is not None else share_of_memory(experiment, options.jobs or 1)


def _describe(
    plan: "Plan",
    at_once: int | None,
    limit: int | None,
    cluster: "Cluster | None",
    read: Sequence[str],
) -> str:
    from flowformer.report.words import memory

    finished = sum(run.read_result() is not None for run in plan.runs)
    lines = [
        f"comparison  {plan.root}",
        f"data        {'; '.join(read) or ', '.join(plan.datasets)}",
        f"methods     {', '.join(map(_with_options, *zip(*plan.methods.items(), strict=True)))}",
        f"seeds       {', '.join(map(str, plan.seeds))}",
        f"runs        {len(plan.runs)}, of which {finished} have finished; "
        f"{'all' if at_once is None else at_once} at a time, "
        + ("no memory limit" if limit is None else f"each within {memory(limit)}"),
    ]
    if cluster is not None:
        gpus = f" and {cluster.gpus} GPUs" if cluster.gpus else ""
        lines.append(f"cluster     {cluster.address}, {cluster.cpus} processors{gpus} a run")
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
