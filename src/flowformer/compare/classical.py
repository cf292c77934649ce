"""The classical methods of the paper's time-series table, through the libraries that keep them.

dtw      the class of the nearest training series under dynamic time warping, all channels warped as
         one (Sakoe and Chiba, 1978; aeon)
rocket   a ridge classifier on 10,000 random convolutions (Dempster et al., 2020; aeon)
xgboost  boosted trees on the values of a series side by side (Chen and Guestrin, 2016; xgboost)

Where labels are numbers to predict, each is the regressor of the same library. All see what the
models see: series normalised with the statistics of the training split, on which they are fitted as
a whole, since none has an epoch to choose.
"""

import os
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Float, Float64, Int64

from flowformer.data import (
    MissingPolicy,
    Preprocessing,
    SeriesSplit,
    TimeSeriesData,
    require_classes,
)
from flowformer.machine import forget_peak, library

ClassicalMethod = Literal["dtw", "rocket", "xgboost"]

_NUMBA = "NUMBA_CACHE_DIR"


@dataclass(frozen=True, kw_only=True, eq=False)
class ClassicalOutcome:
    """The outcome of a classical method on a data set.

    Attributes:
        predictions: the probabilities of each class for each test series, in the order of the data
            set's classes (for dtw and rocket one of them is 1); or the number predicted for each.
        labels: the true classes, or numbers.
        seconds: time of fitting, and of predicting the test split.
    """

    predictions: Float[np.ndarray, "n classes"] | Float[np.ndarray, " n"]
    labels: Int64[np.ndarray, " n"] | Float64[np.ndarray, " n"]
    seconds: float

    @property
    def probabilities(self) -> Float[np.ndarray, "n classes"]:
        """The probabilities of classes."""
        return self.predictions

    @property
    def accuracy(self) -> float:
        """The part of the test series whose most probable class is the true one."""
        return float(np.mean(self.probabilities.argmax(axis=1) == self.labels))


def run_classical(
    method: ClassicalMethod,
    data: TimeSeriesData,
    *,
    seed: int = 0,
    threads: int = 1,
    missing: MissingPolicy = "error",
    **options: Any,
) -> ClassicalOutcome:
    """Fit a classical method on the training split and predict the test split.

    Args:
        method: "dtw", "rocket" or "xgboost".
        data: a data set with a test split.
        seed: the seed of the random convolutions, or of the trees.
        threads: the number of threads that the library is told to use.
        missing: the handling of missing values, see `Preprocessing`.
        options: further keywords of the library's classifier: `distance_params={"window": 0.1}` for
            dtw, `n_kernels` for rocket, `n_estimators` and `max_depth` for xgboost.

    Raises:
        ImportError: the library is missing; the message names the extra to install.
        ValueError: there is no such method, there is no test split, the training split is of one
            class, or values are missing.
    """
    regression = not data.classes
    if method not in get_args(ClassicalMethod):
        expected = ", ".join(get_args(ClassicalMethod))
        raise ValueError(f"unknown method {method!r}: expected one of {expected}")
    if data.test is None:
        raise ValueError(f"{data.name} has no test split for {method} to predict")
    if not regression:
        require_classes(data.train.labels, data.classes, name=f"{data.name}, {data.train.name}")
    prepare, represent = _METHODS[method]

    def make() -> Any:
        return prepare(seed, threads, options, regression)

    def predict(fitted: Any, series: Any) -> np.ndarray:
        return fitted.predict(series) if regression else fitted.predict_proba(series)

    model = make()
    preprocessing = Preprocessing.fit(data.train, missing=missing)
    # The first call compiles for many seconds, which say nothing about the method.
    first = data.train.select(np.unique(data.train.labels, return_index=True)[1], "warm-up")
    few = represent(first, preprocessing, data)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*unsafe cast from uint64")  # numba, of aeon's code
        predict(make().fit(few, first.labels), few)
    forget_peak()
    train, test = (represent(split, preprocessing, data) for split in (data.train, data.test))
    started = time.perf_counter()
    model.fit(train, data.train.labels)
    return ClassicalOutcome(
        predictions=predict(model, test),
        labels=data.test.labels,
        seconds=time.perf_counter() - started,
    )


def _dtw(_seed: int, threads: int, options: dict[str, Any], regression: bool) -> Any:
    place, kind = _place(regression)
    library = _require(f"aeon.{place}.distance_based", "dtw", "timeseries")
    model = getattr(library, f"KNeighborsTimeSeries{kind}")
    return model(distance="dtw", n_jobs=threads, **options)


def _rocket(seed: int, threads: int, options: dict[str, Any], regression: bool) -> Any:
    place, kind = _place(regression)
    library = _require(f"aeon.{place}.convolution_based", "rocket", "timeseries")
    return getattr(library, f"Rocket{kind}")(random_state=seed, n_jobs=threads, **options)


def _xgboost(seed: int, threads: int, options: dict[str, Any], regression: bool) -> Any:
    library = _require("xgboost", "xgboost", "baselines")
    model = library.XGBRegressor if regression else library.XGBClassifier
    return model(random_state=seed, n_jobs=threads, **options)


def _place(regression: bool) -> tuple[str, str]:
    """Return aeon's package, and how the names of its classes end."""
    return ("regression", "Regressor") if regression else ("classification", "Classifier")


def _require(module: str, method: str, extra: str) -> ModuleType:
    _keep_compiled()
    return library(module, f"for {method}", extra=extra)


def _keep_compiled() -> None:
    """Give numba a folder for what it compiles, where it would find none and aeon's code fail.

    It looks beside the library, which another user may have installed, and in the user's cache: a
    container's user may have none.
    """
    spec = find_spec("aeon")
    if _NUMBA in os.environ or spec is None or spec.origin is None:
        return
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")  # noqa: PTH111 - raises without a home
    if not any(_is_writable(place) for place in (Path(spec.origin).parent, Path(cache))):
        os.environ[_NUMBA] = tempfile.mkdtemp(prefix="flowformer-numba-")


def _is_writable(folder: Path) -> bool:
    """Return whether files can be made in a folder, or in one that has yet to be made."""
    there = next((each for each in (folder, *folder.parents) if each.exists()), folder)
    return folder.is_absolute() and os.access(there, os.W_OK | os.X_OK)


def _unequal(
    split: SeriesSplit, preprocessing: Preprocessing, _data: TimeSeriesData
) -> list[Float64[np.ndarray, "channels _"]]:
    """Return each series of its own length."""
    return [
        # The library's compiled distances want float64, one channel after the other.
        np.ascontiguousarray(preprocessing.apply(each, name=split.place(index)).T, dtype=np.float64)
        for index, each in enumerate(split.series)
    ]


def _padded(
    split: SeriesSplit, preprocessing: Preprocessing, data: TimeSeriesData
) -> Float64[np.ndarray, "n channels time"]:
    """Return all series as long as the longest: zeros, the training mean, follow the others."""
    return np.nan_to_num(_with_gaps(split, preprocessing, data))


def _flattened(
    split: SeriesSplit, preprocessing: Preprocessing, data: TimeSeriesData
) -> Float64[np.ndarray, "n features"]:
    """Return all values side by side, missing after a series' end, which trees can ask about."""
    return _with_gaps(split, preprocessing, data).reshape(len(split), -1)


def _with_gaps(
    split: SeriesSplit, preprocessing: Preprocessing, data: TimeSeriesData
) -> Float64[np.ndarray, "n channels time"]:
    collection = np.full((len(split), split.channels, data.max_length), np.nan)
    for row, series in zip(collection, _unequal(split, preprocessing, data), strict=True):
        row[:, : series.shape[1]] = series
    return collection


# How each method is made, and its input.
_METHODS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "dtw": (_dtw, _unequal),
    "rocket": (_rocket, _padded),
    "xgboost": (_xgboost, _flattened),
}
