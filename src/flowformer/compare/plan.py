"""A comparison is a folder of runs: which there are, what became of each, and their figures.

How they are run is in `flowformer.compare.execution`. No torch here: the process that waits for the
runs needs none of their memory.
"""

import csv
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float

from flowformer.compare.findings import Comparison
from flowformer.compare.methods import TRAIN, MethodResult, function_of, methods_of
from flowformer.compare.table import RunOutcome
from flowformer.config_json import flatten, from_plain, to_plain
from flowformer.own_modules import OwnModule
from flowformer.train.digests import require_same_data
from flowformer.train.folder import RunFolder, read_digests, read_json, write_json
from flowformer.train.kinds import Experiment, kind_of
from flowformer.train.run_files import Result, read_history

# The methods that are the Flowformer, whose score a recipe's paper_score is: the paper's equations,
# and the form of the published Long Range Arena code.
PUBLISHED_METHODS = ("flow", "flow-heads")

RUNS = "runs"  # in the folder of a comparison: the folders of its runs
Status = Literal["queued", "started", "finished", "failed", "memory"]
# The tables' words for a run without a result.
UNFINISHED: Mapping[Status | None, str] = {
    None: "not run",
    "queued": "not begun",
    "started": "stopped before its end",
    "finished": "its result is gone",
    "failed": "failed",
    "memory": "does not fit in memory",
}


@dataclass(frozen=True, kw_only=True)
class RunRequest:
    """The request of a run: two requests that are equal ask for the same run.

    Attributes:
        method: a mixer or one of `methods_of` its config.
        function: the function that trains it, as "module:function".
        options: the function's further keywords.
        config: the experiment, the seed included.
        mixer_module: the module that gave its mixer the name, where that is one of a user's own:
            whoever runs it imports that first.
    """

    method: str
    function: str
    options: dict[str, Any]
    config: Experiment
    mixer_module: OwnModule | None = None


@dataclass(frozen=True, kw_only=True)
class RunState:
    """The state of a run: the file beside its folder.

    Attributes:
        request: the run's request.
        status: queued, started (and perhaps killed since), finished, failed, or memory: it did not
            fit.
        error: the error that ended it, in a line.
        seconds: time of its last process, with imports and the reading of the data.
        peak_memory: the most bytes that its process had resident, or had allocated on a GPU; None
            where no process did a whole epoch and the end.
    """

    request: RunRequest
    status: Status
    error: str | None = None
    seconds: float | None = None
    peak_memory: int | None = None

    @property
    def has_ended(self) -> bool:
        """Whether its process has said what became of it."""
        return self.status not in ("queued", "started")

    def write(self, path: Path) -> None:
        """Write it at once."""
        write_json(path, to_plain(self))

    @classmethod
    def read(cls, path: Path) -> "RunState":
        """Read it.

        Raises:
            FileNotFoundError: there is none.
            ValueError: the file is not one of `write`.
        """
        return from_plain(cls, read_json(path), where=str(path))


@dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """A run of a comparison, and where it lies.

    Attributes:
        request: the run's request.
        dataset: the name of its data in the tables.
        root: folder of the comparison.
    """

    request: RunRequest
    dataset: str
    root: Path

    @property
    def seed(self) -> int:
        """Of the run."""
        return self.request.config.training.seed

    @property
    def name(self) -> str:
        """The run's name in messages."""
        return f"{self.dataset} {self.request.method} seed {self.seed}"

    @property
    def folder(self) -> RunFolder:
        """The run folder, as `flowformer train` leaves one."""
        return RunFolder(self._place)

    @property
    def state_file(self) -> Path:
        """Its RunState."""
        return self._place.with_name(self._place.name + ".json")

    @property
    def log(self) -> Path:
        """The log of all that its processes printed."""
        return self._place.with_name(self._place.name + ".log")

    @property
    def _place(self) -> Path:
        return self.root / RUNS / self.dataset / f"{self.request.method}-seed{self.seed}"

    def read_state(self) -> RunState | None:
        """Return the run's state; None when it was never started.

        Raises:
            ValueError: its state file is damaged.
        """
        return RunState.read(self.state_file) if self.state_file.exists() else None

    def read_digests(self) -> dict[str, str] | None:
        """Return digests of the data that it has read; None for a run that does not tell.

        Raises:
            ValueError: the file is damaged.
        """
        return read_digests(self.folder)

    def read_result(self) -> Result | MethodResult | None:
        """Return its figures; None when it has not ended.

        Raises:
            ValueError: its result.json is damaged.
        """
        if not self.folder.result.exists():
            return None
        own = kind_of(self.request.config).result
        return (own if self.request.function == TRAIN else MethodResult).read(self.folder)

    def say_result(self) -> str:
        """Return the figure of a run that has finished, in words."""
        result = self.read_result()
        if result is None:
            return UNFINISHED["finished"]
        measure = self.request.config.measure
        return f"{measure.show(result.score)}{measure.unit or f' {measure.name}'}"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All runs of a comparison, in the order in which they are run.

    Attributes:
        root: folder of the comparison.
        datasets: names of the data sets.
        methods: options of each method.
        seeds: seeds of the runs.
        runs: one for each of them.
    """

    root: Path
    datasets: tuple[str, ...]
    methods: Mapping[str, Mapping[str, Any]]
    seeds: tuple[int, ...]
    runs: tuple[PlannedRun, ...] = field(repr=False)

    @property
    def baseline(self) -> str:
        """The method that the others are tested against: the first."""
        return next(iter(self.methods))


def make_plan(
    experiments: Sequence[Experiment],
    methods: Mapping[str, Mapping[str, Any]],
    *,
    seeds: int,
    root: Path,
    modules: Mapping[str, OwnModule] = MappingProxyType({}),
) -> Plan:
    """Plan a run of every method on every data set with every seed.

    The seeds count from that of the experiment. One seed comes after the other, so that every
    method has a figure as early as it can.

    Args:
        experiments: one a data set; their mixer and its options are those of the methods.
        methods: options of each; the name is one of `methods_of`, or else that of a mixer.
        seeds: number of seeds.
        root: folder of the comparison.
        modules: the modules of a user's own that gave mixers their names, by these.

    Raises:
        ValueError: nothing to compare, experiments of two kinds, two on one data set, or a method
            that is not for experiments of that kind.
    """
    if not experiments or not methods or seeds < 1:
        raise ValueError(
            "expected at least one data set, method and seed, "
            f"got {len(experiments)}, {len(methods)} and {seeds}"
        )
    require_alike(experiments)
    names = [config.dataset_name for config in experiments]
    first = experiments[0].training.seed
    every_seed = tuple(range(first, first + seeds))
    runs = tuple(
        PlannedRun(
            request=replace(
                _request(replace_seed(config, seed), method, options),
                mixer_module=modules.get(method),
            ),
            dataset=name,
            root=root,
        )
        for name, config in zip(names, experiments, strict=True)
        for seed in every_seed
        for method, options in methods.items()
    )
    return Plan(root=root, datasets=tuple(names), methods=methods, seeds=every_seed, runs=runs)


def require_alike(experiments: Sequence[Experiment]) -> None:
    """Refuse experiments that cannot stand in one table.

    Raises:
        ValueError: they are not measured alike, or two are on the same data.
    """
    if len({config.measure for config in experiments}) > 1:
        measured = ", ".join(f"{config.name} ({config.measure.name})" for config in experiments)
        raise ValueError(f"expected experiments that are measured alike, got {measured}")
    names = [config.dataset_name for config in experiments]
    if len(set(names)) < len(names):
        raise ValueError(f"each data set can be given once, got {', '.join(names)}")


def _request(config: Experiment, method: str, options: Mapping[str, Any]) -> RunRequest:
    function = function_of(method, config)
    if function != TRAIN:
        return RunRequest(method=method, function=function, options=dict(options), config=config)
    if method in methods_of(config):
        if options:
            raise ValueError(f"{method} has no options of its own: --model.dim and others are its")
        changes: dict[str, Any] = {"encoder": method}
    else:
        # No options are those that the model gives the mixer: as published.
        changes = {"mixer": method, "mixer_options": dict(options) or None}
    # replace() of a union is not typed: the parts of either kind have these fields.
    model: Any = replace(config.model, **changes)
    return RunRequest(
        method=method, function=TRAIN, options={}, config=replace(config, model=model)
    )


def replace_seed(config: Experiment, seed: int) -> Experiment:
    """Return the experiment with another seed."""
    training: Any = replace(config.training, seed=seed)
    return replace(config, training=training)


def require_own(root: Path) -> None:
    """Refuse a folder that holds something else than a comparison.

    Raises:
        FileExistsError: it does.
        NotADirectoryError: it is a file.
    """
    if root.exists() and not (root / RUNS).is_dir():
        others = [path.name for path in root.iterdir() if not path.name.startswith(".")]
        if others:
            raise FileExistsError(
                f"expected an empty folder or a comparison, and {root} has {others[0]}: choose "
                "another folder (--output)"
            )


def require_same(plan: Plan) -> None:
    """Refuse a plan whose folder holds runs of another configuration.

    Where a run shows its progress and its figures may differ; anything else would put runs into one
    table that do not compare.

    Raises:
        ValueError: the message names what differs, and in which run.
    """
    for run in plan.runs:
        state = run.read_state()
        if state is None or (state.status == "queued" and not run.folder.config.exists()):
            continue  # nothing was run
        before, now = _identity(state.request), _identity(run.request)
        changed = [
            f"{key.removeprefix('config.')} was {before.get(key)}, got {now.get(key)}"
            for key in sorted(before | now)
            if before.get(key) != now.get(key)
        ]
        if changed:
            raise ValueError(
                f"{run.folder.root} was run otherwise: {'; '.join(changed)}. "
                "Choose another folder (--output), or remove that run"
            )


def require_data(plan: Plan) -> None:
    """Refuse to go on where runs have read other data than those there are now.

    Raises:
        FileNotFoundError: the data are gone, and a run has not finished.
        ValueError: the message names a run, and the data.
    """
    for dataset in plan.datasets:
        runs = [run for run in plan.runs if run.dataset == dataset]
        read = _digests(runs)
        if not read:
            continue
        config = runs[0].request.config
        try:
            now = kind_of(config).digest(config)
        except FileNotFoundError:
            if any(run.read_result() is None for run in runs):
                raise
            continue  # where all have finished, their table needs no data
        require_same_data(read, now)


def _digests(runs: Sequence[PlannedRun]) -> dict[str, dict[str, str]]:
    return {run.name: digests for run in runs if (digests := run.read_digests()) is not None}


def _identity(request: RunRequest) -> dict[str, Any]:
    flat = flatten(to_plain(request))
    for name in ("config.training.progress", "config.training.logger", "function"):
        del flat[name]  # the last one the method says
    flat.pop("mixer_module.file", None)  # its digest says whether it is the same
    if request.mixer_module is None:
        del flat["mixer_module"]
    return {key: value for key, value in flat.items() if value != {}}  # no options, so no names


def read_comparison(plan: Plan) -> Comparison:
    """Read the outcomes of all runs of a plan.

    Raises:
        ValueError: a file of a run is damaged, or runs on one data set have read different data.
    """
    for dataset in plan.datasets:
        finished = [
            run for run in plan.runs if run.dataset == dataset and run.folder.result.exists()
        ]
        require_same_data(_digests(finished))
    configs = [run.request.config for run in plan.runs]
    flat = [_identity(run.request) for run in plan.runs]
    settings = {
        key.removeprefix("config."): ", ".join(dict.fromkeys(str(each.get(key)) for each in flat))
        for key in dict.fromkeys(key for each in flat for key in each)
    }
    return Comparison(
        title=f"{', '.join(plan.datasets)}: {len(plan.methods)} methods",
        protocol=configs[0].protocol,
        # Of data without a test set, where there are any: what is said must hold of all.
        protocol_note=next((c.protocol_note for c in configs if not c.has_test), None)
        or configs[0].protocol_note,
        measure=configs[0].measure,
        has_test=all(config.has_test for config in configs),
        baseline=plan.baseline,
        outcomes=[_outcome(run) for run in plan.runs],
        paper_source=next((c.paper_source for c in configs if c.paper_source), None),
        settings=settings,
    )


def count_epochs(run_dir: Path) -> int:
    """Return how many epochs a run has recorded so far."""
    metrics = RunFolder(run_dir).metrics
    return max(0, metrics.read_bytes().count(b"\n") - 1) if metrics.exists() else 0


def _outcome(run: PlannedRun) -> RunOutcome:
    result, state = run.read_result(), run.read_state()
    if result is None:
        return RunOutcome(
            dataset=run.dataset,
            method=run.request.method,
            seed=run.seed,
            problem=UNFINISHED[None if state is None else state.status],
            error=None if state is None else state.error,
            log=str(run.log.relative_to(run.root)) if run.log.exists() else None,
        )
    # A method that is not trained by epochs has none.
    history = read_history(run.folder) if run.folder.metrics.exists() else None
    return RunOutcome(
        dataset=run.dataset,
        method=run.request.method,
        seed=run.seed,
        score=result.score,
        # The recipe's figure is that of one method: beside another it would be wrong.
        paper_score=run.request.config.paper_score
        if run.request.method in PUBLISHED_METHODS
        else None,
        parameters=result.parameters,
        seconds=result.seconds,
        step_seconds=None if history is None else _step_seconds(history),
        peak_memory=None if state is None else state.peak_memory,
        correct=_read_correct(run.folder.predictions),
        history=history,
    )


def _read_correct(predictions: Path) -> Bool[np.ndarray, " n"] | None:
    """Return which test cases were right; None for a run without any, or of numbers."""
    if not predictions.exists():
        return None
    with predictions.open(encoding="utf-8", newline="") as file:
        if "label" not in next(csv.reader(file), ()):
            return None
        file.seek(0)
        return np.array([row["label"] == row["predicted"] for row in csv.DictReader(file)])


def _step_seconds(history: Mapping[str, Float[np.ndarray, " epochs"]]) -> float | None:
    """Median over epochs of an epoch's mean: the first pays for what is done once."""
    if "train_seconds" not in history:
        return None
    steps = np.diff(history["step"], prepend=0)
    return float(statistics.median(history["train_seconds"] / steps))
