"""`flowformer compare` in Python, on arrays."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from flowformer.compare.choice import Methods, choose_methods, own_modules, share_of_memory
from flowformer.compare.engines.cluster import Cluster
from flowformer.compare.methods import require_tested
from flowformer.config_json import from_plain, to_plain
from flowformer.machine import library
from flowformer.names import choose
from flowformer.train.regression.config import RegressionConfig
from flowformer.train.series.config import OWN, PRESETS, SeriesConfig

if TYPE_CHECKING:
    from flowformer.compare.paper import Frames
    from flowformer.data import TimeSeriesData

PARTS = ("data", "model", "optimizer", "training")
DATA = "data"  # in the folder of a comparison: the files of the series


def compare(
    data: Any,
    methods: str | Sequence[str] | Methods = ("flow", "softmax", "linear"),
    *,
    settings: Mapping[str, Any] = MappingProxyType({}),
    seeds: int = 3,
    output: str | Path | None = None,
    jobs: int | None = None,
    memory_limit: int | None = None,
    cluster: Cluster | None = None,
) -> "Frames":
    """Train a classifier of series with each method and each seed, and compare them.

    This is `flowformer compare time-series` on arrays, or `time-series-regression` where labels are
    numbers to predict: the same runs, table, tests and files. The
    series are written into the folder, so that its runs can be used by every command, and the same
    call goes on where it was stopped. Runs are processes of their own: a script needs no
    `if __name__ == "__main__"`, and a mixer of one's own is a module that it imports. The messages
    go to the logger `flowformer.compare`, and to standard error where nobody listens to it.

    Args:
        data: series and labels `(X, y)`, or with a test set `(X, y, X_test, y_test)`, each X an
            array [n, channels, time] or a sequence of arrays [channels, time_i], with NaN for a
            missing value; a path or data frame that `flowformer.data.read_series` reads, or what a
            reader of `flowformer.data` gives; or several of these by the name of the data set.
            Groups, of which none is in two parts, are those of a table or
            `flowformer.data.from_arrays(X, y, train_groups=...)`; numbers to predict are what
            `from_arrays` and `load_series` give with `regression=True`. Without a test set, methods
            are compared on the part that chose the epoch.
        methods: names of mixers and of other methods (dtw, rocket, xgboost, lstm, dilated-conv),
            "all" for every mixer; or the options of each by its name. The others are tested against
            the first.
        settings: settings of the experiment, by the names that they have on the command line:
            `{"model.dim": 64, "training.epochs": 20}`. The rest stands as in the recipe
            time-series, which is the paper's, or time-series-regression.
        seeds: runs of each.
        output: folder of the comparison; by default comparisons/NAME-PROTOCOL.
        jobs: runs at a time, by default one, and on a cluster as many as it has room for.
        memory_limit: bytes that a run may take; by default its share of what is there.
        cluster: what does the runs in place of this machine.

    Returns:
        The runs, the table, the tests and the learning curves, as `flowformer.compare.read` gives
        them of the folder.

    Raises:
        BlockingIOError: another process is running a comparison in the folder.
        FileExistsError: the folder holds something else, or other series.
        ImportError: a library is missing; the message names the extra to install.
        RuntimeError: no run has finished.
        ValueError: the series or the labels are not as expected, or classes in one data set and
            numbers in another; there is no such method, option or setting; or the folder holds runs
            of another configuration.

    Examples:
        >>> import numpy as np
        >>> from flowformer.compare import compare
        >>> series = np.random.default_rng(0).normal(size=(40, 2, 12))  # [case, channel, time]
        >>> labels = ["up", "down"] * 20
        >>> small = {"model.dim": 16, "model.feedforward": 32, "training.epochs": 2}
        >>> found = compare((series, labels), ["flow", "linear"], settings=small, seeds=1)
        >>> found.table[["method", "finished"]].values.tolist()
        [['flow', 1], ['linear', 1]]
    """
    from flowformer.compare.execution import execute
    from flowformer.compare.page import write_comparison
    from flowformer.compare.paper import read
    from flowformer.compare.plan import RUNS, make_plan, read_comparison, require_own

    library("pandas", "for data frames", extra="timeseries")  # before hours of training
    sets = _data_sets(data)
    config = _with_settings(_recipe(sets), settings)
    root = Path(output or Path("comparisons", f"{'-'.join(sets)}-{config.protocol}"))
    require_own(root)
    chosen = choose_methods(methods, config)
    if any(each.test is None for each in sets.values()):
        require_tested(chosen, config, "X_test and y_test")
    (root / RUNS).mkdir(parents=True, exist_ok=True)  # by which a folder is a comparison
    experiments = [_experiment(config, each, root) for each in sets.values()]
    modules = own_modules(chosen)
    plan = make_plan(experiments, chosen, seeds=seeds, root=root, modules=modules)
    if memory_limit is None and cluster is None:
        memory_limit = share_of_memory(config, jobs or 1)
    with _told():
        execute(plan, jobs=jobs, memory_limit=memory_limit, cluster=cluster)
    compared = read_comparison(plan)
    write_comparison(root, compared)
    if not any(run.finished for run in compared.outcomes):
        first = compared.outcomes[0]
        raise RuntimeError(f"no run has finished: {first.problem}: {first.error} ({root})")
    return read(root)


def _data_sets(data: Any) -> "dict[str, TimeSeriesData]":
    """Return the data sets by name."""
    from flowformer.data import (
        SeriesCollection,
        TimeSeriesData,
        data_set,
        from_arrays,
        load_series,
    )

    if isinstance(data, Mapping):
        return {
            name: replace(one, name=name)
            for name, each in data.items()
            for one in _data_sets(each).values()
        }
    if isinstance(data, TimeSeriesData):
        return {data.name: data}
    if isinstance(data, SeriesCollection):
        data = data_set(data)
        return {data.name: data}
    if isinstance(data, str | Path) or hasattr(data, "iloc"):
        data = load_series(data)
        return {data.name: data}
    if not isinstance(data, tuple) or len(data) not in (2, 4):
        came = f"{len(data)} parts" if isinstance(data, tuple) else type(data).__name__
        raise ValueError(
            f"expected series and labels (X, y), or (X, y, X_test, y_test), got {came}"
        )
    return {"arrays": from_arrays(*data)}


def _recipe(sets: "Mapping[str, TimeSeriesData]") -> SeriesConfig:
    """Return what the command line begins with for such data.

    Raises:
        ValueError: some have classes, and some numbers to predict.
    """
    numbers = [name for name, data in sets.items() if not data.classes]
    if not numbers:
        return SeriesConfig(name="time-series", data=OWN)
    if len(numbers) < len(sets):
        raise ValueError(
            "expected classes in every data set, or numbers to predict in every one, got numbers "
            f"in {', '.join(numbers)} alone"
        )
    return RegressionConfig(name="time-series-regression", **vars(PRESETS["small"]))


def _with_settings(config: SeriesConfig, settings: Mapping[str, Any]) -> SeriesConfig:
    """Return a configuration with settings changed, by their names on the command line.

    Raises:
        ValueError: there is no such setting, or its value is none; the message names it.
    """
    parts: dict[str, dict[str, Any]] = {name: {} for name in PARTS}
    for setting, value in settings.items():
        part, _, name = setting.partition(".")
        choose(part, parts, "part of an experiment")[name] = value
    changed: dict[str, Any] = {
        name: from_plain(type(before), to_plain(before) | values, name)
        for name, values in parts.items()
        for before in [getattr(config, name)]
    }
    return replace(config, **changed)


def _experiment(config: SeriesConfig, data: "TimeSeriesData", root: Path) -> SeriesConfig:
    """Return the experiment on a data set, which is written into the comparison's folder."""
    from flowformer.data.series.parting import in_time_order
    from flowformer.data.series.writing import save_series

    if config.data.split == "time":  # the files hold no times
        data = in_time_order(data)
    train, test = save_series(data, root.resolve() / DATA)
    return replace(config, data=replace(config.data, train_file=train, test_file=test))


@contextmanager
def _told() -> Iterator[None]:
    """Show the messages of the comparison on standard error, where nobody listens to them."""
    logger = logging.getLogger("flowformer.compare")
    if logger.hasHandlers():
        yield
        return
    handler, level = logging.StreamHandler(), logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
