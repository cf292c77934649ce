"""How a part is set aside: by classes, by groups, or the last in time.

No group is in both parts: a model that has seen a subject knows more of it than it will of others.
Where parts are of different times, that is told.
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Int64

from flowformer.data.arrays import stratified_indices
from flowformer.data.series.records import SeriesSplit, TimeSeriesData, warn_of_shared_groups
from flowformer.machine import library

_DRAWS = 100  # of groups, of which the one that has its share of every class best is taken
_TEST_SEED = 0  # runs of any seed are tested on the same part


def part(
    split: SeriesSplit,
    fraction: float,
    seed: int,
    *,
    classes: Sequence[str] = (),
    in_time: bool = False,
) -> tuple[SeriesSplit, SeriesSplit]:
    """Set a part aside: the last in time, or drawn by groups, where there are some, and classes.

    Args:
        split: what to part.
        fraction: how much of it is set aside, in (0, 1).
        seed: the same seed gives the same parts.
        classes: the classes' names; without any, labels are numbers.
        in_time: whether to take the series that begin last; of those without times, the last ones.

    Returns:
        The rest, named "train", and the part set aside, "validation"; both in the order of `split`.

    Warns:
        UserWarning: the last in time are of groups that the rest is of, too; the times overlap; or
            the part set aside has no series of a class.

    Raises:
        ImportError: scikit-learn is missing.
        ValueError: the fraction is outside (0, 1), there are too few series or groups, all series
            begin at one time, or no series of a class would be left for training.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"expected a fraction between 0 and 1, got {fraction}")
    if len(split) < 2:
        raise ValueError(f"{split.name}: expected at least 2 series to part, got {len(split)}")
    if in_time:
        chosen = _last(split, fraction)
    elif split.groups is not None:
        chosen = _of_other_groups(split, fraction, seed, stratify=bool(classes))
    elif classes:
        own = {"name": split.name, "classes": classes}
        chosen = stratified_indices(split.labels, fraction, seed, **own)[1]
    else:
        count = min(len(split) - 1, math.ceil(fraction * len(split)))
        chosen = np.random.default_rng(seed).permutation(len(split))[:count]
    rest = np.setdiff1d(np.arange(len(split)), chosen)
    train, validation = split.select(rest, "train"), split.select(np.sort(chosen), "validation")
    warn_of_shared_groups(train, validation, name=split.name)
    lost = np.setdiff1d(split.labels, split.labels[rest])
    if classes and len(lost):
        raise ValueError(
            f"{split.name}: expected series of every class to train on, got none of "
            f"{', '.join(repr(classes[int(label)]) for label in lost)} beside the part set aside"
        )
    has, of = len(np.unique(validation.labels)), len(np.unique(split.labels))
    if classes and has < of:
        warnings.warn(
            f"{split.name}: the part set aside has series of {has} of {of} classes: what it says "
            "of a model holds for these alone",
            UserWarning,
            stacklevel=2,
        )
    return train, validation


def hold_out(data: TimeSeriesData, fraction: float, *, in_time: bool = False) -> TimeSeriesData:
    """Return the data set with a part of its training split to test on.

    Args:
        data: a data set without a test split.
        fraction: how much of it is to test on.
        in_time: as of `part`.

    Raises:
        ValueError: what `part` raises.
    """
    train, test = part(data.train, fraction, _TEST_SEED, classes=data.classes, in_time=in_time)
    return replace(data, train=train, test=replace(test, name="test"))


def in_time_order(data: TimeSeriesData) -> TimeSeriesData:
    """Return the data set with its training series in the order in which they begin.

    Args:
        data: a data set; without times it is in order as it is.

    Raises:
        ValueError: all series begin at one time.
    """
    train = data.train
    order = np.argsort(_starts(train), kind="stable")
    return replace(data, train=train.select(order, train.name))


def _starts(split: SeriesSplit) -> np.ndarray:
    """Return when series begin; of those without times, their places."""
    if split.spans is None:
        return np.arange(len(split))
    starts = split.spans[:, 0]
    if starts.min() == starts.max():
        raise ValueError(
            f"{split.name}: expected series that begin at different times, to take the last of "
            f"them, got {len(split)} that begin at {starts[0]:g}: the times count within each "
            "series"
        )
    return starts


def _last(split: SeriesSplit, fraction: float) -> Int64[np.ndarray, " m"]:
    starts = _starts(split)
    order = np.argsort(starts, kind="stable")
    count = min(len(split) - 1, math.ceil(fraction * len(split)))
    rest, chosen = order[:-count], order[-count:]
    if split.spans is not None:
        late = int((split.spans[rest, 1] >= starts[chosen].min()).sum())
        if late:
            warnings.warn(
                f"{split.name}: {late} of {len(rest)} series to train on end after the first of "
                "the part set aside begins: what they overlap is no time that is to come",
                UserWarning,
                stacklevel=3,
            )
    return chosen


def _of_other_groups(
    split: SeriesSplit, fraction: float, seed: int, *, stratify: bool
) -> Int64[np.ndarray, " m"]:
    """Draw groups; of some draws take that with its share of every class, or of all series."""
    sklearn = library(
        "sklearn.model_selection", "to part groups", extra="train", package="scikit-learn"
    )
    groups, labels = np.array(split.groups), split.labels
    names = np.unique(groups)
    if len(names) < 2:
        raise ValueError(
            f"{split.name}: expected at least 2 groups, one to train on and one to set aside, got "
            f"{str(names[0])!r} alone (data.group '' parts series whatever their group)"
        )
    count = min(len(names) - 1, max(1, round(fraction * len(names))))
    draws = sklearn.GroupShuffleSplit(n_splits=_DRAWS, test_size=count, random_state=seed)
    kinds = labels if stratify else np.zeros(len(split), np.int64)
    counts = np.bincount(kinds)

    def unevenness(chosen: Int64[np.ndarray, " m"]) -> float:
        own = np.bincount(kinds[chosen], minlength=len(counts))
        # A class that is lost to one side is worse than any share.
        lost = np.count_nonzero((counts > 0) & ((own == 0) | (own == counts)))
        return lost * len(split) + float(np.abs(own - fraction * counts).sum())

    return min((chosen for _, chosen in draws.split(kinds, groups=groups)), key=unevenness)
