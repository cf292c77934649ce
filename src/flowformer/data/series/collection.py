"""Series as they were read, of whatever they come, and the data sets that are made of them."""

import math
import warnings
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Float64, Int64

from flowformer.data.options import SeriesColumns
from flowformer.data.series.records import (
    SeriesSplit,
    TimeSeriesData,
    distinct_labels,
    encode_labels,
    in_words,
    warn_of_shared_groups,
)
from flowformer.data.series.ts_format import TsFile, read_ts

_MOST = 6  # labels that a warning lists


@dataclass(frozen=True, kw_only=True, eq=False)
class SeriesCollection:
    """Series as a file or a table holds them, before a class has a number.

    `series` and `labels` are what estimators fit, and `groups` what splitters of scikit-learn take.

    Attributes:
        name: what errors call it.
        series: one [channels, time] array a series; NaN is a missing value.
        labels: the class of each, or the number to predict, as it was written; None of one that is
            not known. None where there are none.
        classes: the classes in the order in which a header lists them, if one does.
        groups: the group of each.
        spans: the first and the last time of each, where there are times.
        places: how errors call each; by default "NAME, series INDEX".
        ids: what its own file or table calls each, where it has a column or a file for it.
        columns: the columns that they were read from; all are told.
        title: what a data set of them is called, if it has another name.
    """

    name: str
    series: tuple[Float64[np.ndarray, "channels _"], ...]
    labels: tuple[Hashable | None, ...] | None = None
    classes: tuple[Hashable, ...] | None = None
    groups: tuple[str, ...] | None = None
    spans: Float64[np.ndarray, "n 2"] | None = None
    places: tuple[str, ...] | None = None
    ids: tuple[str, ...] | None = None
    columns: SeriesColumns = field(default_factory=SeriesColumns)
    title: str = ""

    def __len__(self) -> int:
        return len(self.series)

    def place(self, index: int) -> str:
        """Return how errors call one series.

        Args:
            index: index of the series.
        """
        return f"{self.name}, series {index}" if self.places is None else self.places[index]

    def describe(self) -> str:
        """Return what was understood, in a line: series, channels, steps, labels, missing."""
        labels = [each for each in self.labels or () if each is not None]
        what = "no labels"
        if labels and looks_like_numbers(labels):
            numbers = [float(str(label)) for label in labels]
            what = f"labels from {min(numbers):g} to {max(numbers):g}"
        elif labels:
            what = f"{len(set(labels))} classes"
        return in_words(self.series, what, self.groups, self.columns)

    def split(self, name: str, labels: np.ndarray) -> SeriesSplit:
        """Return the series as a part of a data set.

        Args:
            name: what the part is called.
            labels: indices of classes, or the numbers to predict.
        """
        return SeriesSplit(
            series=self.series,
            labels=labels,
            name=name,
            places=self.places,
            groups=self.groups,
            spans=self.spans,
        )


def labels_of(read: SeriesCollection) -> tuple[Hashable, ...]:
    """Return the labels of all series, to train or to test on.

    Args:
        read: what was read.

    Raises:
        ValueError: there are none, or one is not known; the message names the series.
    """
    if read.labels is None:
        raise ValueError(
            f"{read.name}: expected labels (of a table data.label, label=... in Python; in a .ts "
            "file '@classLabel true …'), got none"
        )
    if None in read.labels:
        raise ValueError(
            f"{read.place(read.labels.index(None))}: expected a label, got an unknown one"
        )
    return tuple(label for label in read.labels if label is not None)


def numbers_of(read: SeriesCollection) -> Float64[np.ndarray, " n"]:
    """Return the numbers to predict.

    Args:
        read: what was read.

    Raises:
        ValueError: there are none, one is not known, or is no finite number; the message names the
            series.
    """
    labels = labels_of(read)
    for index, label in enumerate(labels):
        if _number(label) is None:
            raise ValueError(f"{read.place(index)}: expected a finite number, got {label!r}")
    return np.array([_number(label) for label in labels], dtype=np.float64)


def known_numbers_of(read: SeriesCollection) -> list[float | None] | None:
    """Return the numbers of series that are to be predicted, None of one that is not known.

    Args:
        read: what was read.

    Warns:
        UserWarning: a label is no number.
    """
    if read.labels is None:
        return None
    numbers = [None if label is None else _number(label) for label in read.labels]
    odd = [label for label, number in zip(read.labels, numbers, strict=True) if number is None]
    _warn_of_unknown(read.name, odd, "numbers")
    return numbers


def known_classes_of(
    read: SeriesCollection, classes: Sequence[str]
) -> Int64[np.ndarray, " n"] | None:
    """Return the classes of series that are to be predicted, -1 of one that is not known.

    Args:
        read: what was read.
        classes: the classes of the training data.

    Warns:
        UserWarning: a label is none of the classes: the word of a folder may be anything.
    """
    if read.labels is None:
        return None
    place = {name: at for at, name in enumerate(classes)}
    known = [-1 if label is None else place.get(str(label), -1) for label in read.labels]
    odd = [label for label, at in zip(read.labels, known, strict=True) if at < 0]
    _warn_of_unknown(read.name, odd, f"classes of the training data ({', '.join(classes)})")
    return np.array(known, dtype=np.int64)


def _warn_of_unknown(name: str, labels: Sequence[Hashable], expected: str) -> None:
    unknown = [str(label) for label in dict.fromkeys(labels) if label is not None]
    if unknown:
        named = ", ".join(unknown[:_MOST]) + ", …" * (len(unknown) > _MOST)
        warnings.warn(
            f"{name}: labels that are no {expected} count as unknown: {named}",
            UserWarning,
            stacklevel=4,
        )


def _number(label: Hashable) -> float | None:
    try:
        value = float(str(label))
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def looks_like_numbers(labels: Sequence[Hashable]) -> bool:
    """Return whether labels are numbers to predict rather than classes: one is no whole number."""
    return all(isinstance(label, int | float) for label in labels) and any(
        isinstance(label, float) and not label.is_integer() for label in labels
    )


def data_set(
    train: SeriesCollection,
    test: SeriesCollection | None = None,
    *,
    regression: bool = False,
    name: str | None = None,
) -> TimeSeriesData:
    """Make a data set of what was read.

    Args:
        train: what models are fitted on; its classes are those of the data set.
        test: what they are tested on, if there is such a part.
        regression: whether labels are numbers to predict, in place of classes.
        name: what the data set is called; by default as the training part is.

    Warns:
        UserWarning: both parts have series of one group.

    Raises:
        ValueError: a label is missing; is no number, where these are predicted, or is one, where
            classes are; or the test part has a class or channels that the training part has not.
    """
    name, classes = name or train.title or train.name, ()
    if regression:
        labels = [numbers_of(each) for each in (train, test) if each is not None]
    else:
        classes = _classes_of(train)
        # As text: an integer column with a gap in one file is a column of floats.
        labels = [
            encode_labels(map(str, labels_of(each)), classes, name=each.name)
            for each in (train, test)
            if each is not None
        ]
    data = TimeSeriesData(
        name=name,
        train=train.split("train", labels[0]),
        test=None if test is None else test.split("test", labels[1]),
        classes=classes,
        columns=train.columns,
    )
    if data.test is not None:
        warn_of_shared_groups(data.train, data.test, name=name)
    return data


def _classes_of(train: SeriesCollection) -> tuple[str, ...]:
    labels = labels_of(train)
    if train.classes is not None:
        occurring = set(labels)
        return tuple(str(label) for label in train.classes if label in occurring)
    if looks_like_numbers(labels):
        raise ValueError(
            f"{train.name}: expected classes as labels, got numbers ({labels[0]}, …): flowformer "
            "train time-series-regression (FlowformerRegressor in Python) learns to predict them"
        )
    return tuple(map(str, distinct_labels(list(labels), name=train.name)))


def of_ts_file(file: TsFile) -> SeriesCollection:
    """Return what a `.ts` file holds.

    Args:
        file: what was read.
    """
    labels, classes = file.labels, file.classes
    return SeriesCollection(
        name=str(file.path),
        series=file.series,
        labels=labels if file.targets is None else file.targets,
        classes=classes if labels is not None else None,
        title=file.problem_name or file.path.stem,
    )


def load_ts_files(
    train_path: str | Path,
    test_path: str | Path | None = None,
    *,
    name: str | None = None,
    regression: bool = False,
) -> TimeSeriesData:
    """Read a data set from one `.ts` file, or a training and a test file.

    The classes are the labels that occur in the training file, in the order of its `@classLabel`.

    Args:
        train_path: the training file.
        test_path: the test file, if any.
        name: what the data set is called; by default as `@problemName` has it.
        regression: whether the files have numbers to predict (`@targetLabel true`), and no classes.

    Raises:
        FileNotFoundError: there is no such file.
        TsFormatError: a file is malformed; the message names the line.
        ValueError: a file has no labels, or the test file has a class or a number of channels that
            the training file has not.
    """
    train = of_ts_file(read_ts(train_path))
    test = None if test_path is None else of_ts_file(read_ts(test_path))
    return data_set(train, test, regression=regression, name=name)
