"""Labelled collections of time series: their record, and how arrays and files become one."""

import warnings
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64

from flowformer.data.arrays import stratified_indices
from flowformer.data.series.ts_format import TsFile, read_ts


@dataclass(frozen=True, kw_only=True, eq=False)
class SeriesSplit:
    """One part of a data set.

    Attributes:
        series: one [channels, time] array a series, all with the same channels; NaN is a missing
            value.
        labels: the index of each series' class in `TimeSeriesData.classes`.
        name: how errors call this part.
        places: how errors call each series; by default "NAME, series INDEX".
    """

    series: tuple[Float64[np.ndarray, "channels _"], ...]
    labels: Int64[np.ndarray, " n"]
    name: str = "series"
    places: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        """Refuse what no later step could use.

        Raises:
            ValueError: there is no series, labels and series differ in number, or the series in
                channels.
        """
        if not self.series:
            raise ValueError(f"{self.name}: expected at least one series, got none")
        if len(self.series) != len(self.labels):
            raise ValueError(
                f"{self.name}: expected one label a series, got {len(self.labels)} labels for "
                f"{len(self.series)} series"
            )
        for index, series in enumerate(self.series):
            if len(series) != self.channels:
                swapped = len({one.shape[1] for one in self.series}) == 1 < len(self)
                hint = ": if they are [time, channels], give [one.T for one in series]" * swapped
                raise ValueError(
                    f"{self.place(index)}: expected {self.channels} channels, as in "
                    f"series 0, got {len(series)}{hint}"
                )

    def __len__(self) -> int:
        """Return the number of series."""
        return len(self.series)

    @property
    def channels(self) -> int:
        """Channels of each series."""
        return len(self.series[0])

    @property
    def lengths(self) -> Int64[np.ndarray, " n"]:
        """Time steps of each series."""
        return np.array([series.shape[1] for series in self.series], dtype=np.int64)

    def place(self, index: int) -> str:
        """Return how errors call one series.

        Args:
            index: index of the series in this split.
        """
        return f"{self.name}, series {index}" if self.places is None else self.places[index]

    def select(self, indices: Int64[np.ndarray, " m"], name: str) -> "SeriesSplit":
        """Return some of the series, as a split of its own; errors call each as they do here.

        Args:
            indices: which series.
            name: how errors call the new split.
        """
        return SeriesSplit(
            series=tuple(self.series[index] for index in indices),
            labels=self.labels[indices],
            name=name,
            # A part's own count would lead to another series of the file that it came from.
            places=tuple(self.place(int(index)) for index in indices),
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class TimeSeriesData:
    """A data set for classification. The classes are those of the training split, and no others.

    Attributes:
        name: what the data set is called.
        train: what models are fitted on.
        test: what they are judged on; None where there is none.
        classes: the classes' names; labels index them.
    """

    name: str
    train: SeriesSplit
    test: SeriesSplit | None
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        """Refuse a test split with other channels than the training split.

        Raises:
            ValueError: the splits differ in channels.
        """
        if self.test is not None and self.test.channels != self.train.channels:
            raise ValueError(
                f"{self.name}: expected {self.train.channels} channels in {self.test.name}, as in "
                f"{self.train.name}, got {self.test.channels}"
            )

    @property
    def channels(self) -> int:
        """Channels of every series."""
        return self.train.channels

    @property
    def max_length(self) -> int:
        """Time steps of the longest series in both splits, as the published code has it."""
        splits = [self.train] if self.test is None else [self.train, self.test]
        return int(max(split.lengths.max() for split in splits))


def from_arrays(
    train_series: Sequence | np.ndarray,
    train_labels: Sequence[Hashable] | np.ndarray,
    test_series: Sequence | np.ndarray | None = None,
    test_labels: Sequence[Hashable] | np.ndarray | None = None,
    *,
    name: str = "arrays",
) -> TimeSeriesData:
    """Make a data set of arrays.

    Args:
        train_series: what `as_series` takes.
        train_labels: one label a series, of any hashable kind. The classes are the distinct ones,
            sorted.
        test_series: the test split, if any.
        test_labels: its labels.
        name: what the data set is called.

    Warns:
        UserWarning: the training series have more channels than time steps.

    Raises:
        ValueError: the arrays are not as `as_series` wants them; the splits, or series in a split,
            differ in channels; labels and series differ in number; a label is missing (None, NaN),
            or two are the same as text; a test label is not among the training labels; one of test
            series and test labels is given without the other.
    """
    if (test_series is None) != (test_labels is None):
        given, absent = ("labels", "series") if test_series is None else ("series", "labels")
        raise ValueError(
            f"expected test series and test labels together, got test {given} without {absent}"
        )
    train_labels = _label_list(train_labels, "train")
    classes = _distinct(train_labels)
    train = SeriesSplit(
        series=as_series(train_series, name="train"),
        labels=encode_labels(train_labels, classes, name="train"),
        name="train",
    )
    warn_of_swapped_axes(train.series, name="train")
    test = None
    if test_series is not None and test_labels is not None:
        test = SeriesSplit(
            series=as_series(test_series, name="test"),
            labels=encode_labels(_label_list(test_labels, "test"), classes, name="test"),
            name="test",
        )
    return TimeSeriesData(name=name, train=train, test=test, classes=tuple(map(str, classes)))


def load_ts_files(
    train_path: str | Path, test_path: str | Path | None = None, *, name: str | None = None
) -> TimeSeriesData:
    """Read a data set from one `.ts` file, or a training and a test file.

    The classes are the labels that occur in the training file, in the order of its `@classLabel`.

    Args:
        train_path: the training file.
        test_path: the test file, if any.
        name: what the data set is called; by default as `@problemName` has it.

    Raises:
        FileNotFoundError: there is no such file.
        TsFormatError: a file is malformed; the message names the line.
        ValueError: a file has no labels, or the test file has a class or a number of channels that
            the training file has not.
    """
    file = read_ts(train_path)
    labels = labels_of(file)
    occurring = set(labels)
    classes = tuple(label for label in file.classes if label in occurring)
    train = SeriesSplit(series=file.series, labels=encode_labels(labels, classes), name="train")
    test = None
    if test_path is not None:
        test_file = read_ts(test_path)
        test_labels = encode_labels(labels_of(test_file), classes, name=str(test_path))
        test = SeriesSplit(series=test_file.series, labels=test_labels, name="test")
    name = name or file.problem_name or file.path.stem
    return TimeSeriesData(name=name, train=train, test=test, classes=classes)


def labels_of(file: TsFile) -> tuple[str, ...]:
    """Return the labels of a file, to train or to test on.

    Args:
        file: what was read.

    Raises:
        ValueError: it has none, or one is not known; the message names the series.
    """
    if file.labels is None:
        raise ValueError(f"{file.path}: expected labels ('@classLabel true …'), got a file without")
    known = tuple(label for label in file.labels if label is not None)
    if len(known) < len(file.labels):
        raise ValueError(
            f"{file.path}, series {file.labels.index(None)}: expected a label, got an unknown one "
            "('?' or NaN)"
        )
    return known


def as_series(
    collection: Sequence | np.ndarray, *, name: str = "series"
) -> tuple[Float64[np.ndarray, "channels _"], ...]:
    """Return any of aeon's array collections as a tuple of [channels, time] arrays in float64.

    Args:
        collection: an array [n, channels, time], an array [n, time] of univariate series, or a
            sequence of arrays [channels, time_i] of any lengths. NaN is a missing value.
        name: what errors call the collection.

    Raises:
        ValueError: something else came: other dimensions, values that are no real numbers, an
            infinite value, or a series without channels or time steps.
    """
    if isinstance(collection, np.ndarray) and collection.dtype != object:
        if collection.ndim not in (2, 3):
            raise ValueError(
                f"{name}: expected an array [n, channels, time] or, univariate, [n, time], "
                f"got shape {collection.shape}"
            )
        collection = collection[:, None] if collection.ndim == 2 else collection
    return tuple(
        _one_series(series, f"{name}, series {index}") for index, series in enumerate(collection)
    )


def warn_of_swapped_axes(series: Sequence[Float64[np.ndarray, "channels _"]], *, name: str) -> None:
    """Say so where series have more channels than time steps, as those of [time, channels] have.

    Args:
        series: what `as_series` gave.
        name: what the warning calls them.
    """
    shapes = [one.shape for one in series]
    if shapes and all(channels > time for channels, time in shapes):
        channels, time = shapes[0]
        warnings.warn(
            f"{name}: series of {channels} channels and {time} time steps: if they are "
            f"{time} channels over {channels} time steps, turn them "
            "(array.transpose(0, 2, 1), or [one.T for one in series])",
            UserWarning,
            stacklevel=3,
        )


def encode_labels(
    labels: Iterable[Hashable], classes: Sequence[Hashable], *, name: str = "labels"
) -> Int64[np.ndarray, " n"]:
    """Return the index of each label in `classes`.

    Args:
        labels: the labels.
        classes: the classes, of the training data.
        name: what errors call the labels.

    Raises:
        ValueError: a label is not among the classes.
    """
    index = {label: position for position, label in enumerate(classes)}
    labels = list(labels)
    unknown = {str(label): None for label in labels if label not in index}
    if unknown:
        raise ValueError(
            f"{name}: expected classes of the training data ({_joined(classes)}), "
            f"got {_joined(list(unknown))}"
        )
    return np.array([index[label] for label in labels], dtype=np.int64)


def stratified_split(
    split: SeriesSplit, fraction: float, seed: int, *, classes: Sequence[str] | None = None
) -> tuple[SeriesSplit, SeriesSplit]:
    """Set a part aside for validation, with each class in about its share of the whole.

    Args:
        split: what to part, as a rule the training split.
        fraction: how much of it goes to validation, in (0, 1).
        seed: the same seed gives the same parts.
        classes: the classes' names, for messages.

    Returns:
        The rest, named "train", and the part set aside, "validation"; both in the order of `split`.

    Raises:
        ImportError: scikit-learn is missing.
        ValueError: what `stratified_indices` raises.
    """
    rest, chosen = stratified_indices(
        split.labels, fraction, seed, name=split.name, classes=classes
    )
    return split.select(rest, "train"), split.select(chosen, "validation")


def _one_series(series: Any, where: str) -> Float64[np.ndarray, "channels _"]:
    try:
        array = np.asarray(series)
    except ValueError as error:
        raise ValueError(f"{where}: expected an array [channels, time], got {error}") from error
    if array.dtype.kind not in "fiub":
        raise ValueError(f"{where}: expected real numbers, got dtype {array.dtype}")
    if array.ndim != 2:
        raise ValueError(
            f"{where}: expected an array [channels, time] (for one channel: series[None, :]), "
            f"got shape {array.shape}"
        )
    if array.size == 0:
        raise ValueError(
            f"{where}: expected at least one channel and one time step, got shape {array.shape}"
        )
    array = array.astype(np.float64, copy=False)
    infinite = np.argwhere(np.isinf(array))
    if len(infinite):
        channel, time = infinite[0]
        raise ValueError(
            f"{where}, channel {channel}, time {time}: expected a finite number or NaN, "
            f"got {array[channel, time]}"
        )
    return array


def _label_list(labels: Sequence[Hashable] | np.ndarray, name: str) -> list[Hashable]:
    if isinstance(labels, np.ndarray):
        if labels.ndim != 1:
            raise ValueError(f"{name}: expected labels [n], got shape {labels.shape}")
        return labels.tolist()
    return list(labels)


def _distinct(labels: list[Hashable]) -> list[Hashable]:
    missing = [index for index, label in enumerate(labels) if label is None or label != label]
    if missing:
        raise ValueError(
            f"train: expected a label for series {missing[0]}, got {labels[missing[0]]}"
        )
    distinct: list[Any] = list(dict.fromkeys(labels))
    names = Counter(map(str, distinct))
    shared = [label for label in distinct if names[str(label)] > 1]
    if shared:
        raise ValueError(f"train: expected labels that differ as text, got {shared}")
    try:
        return sorted(distinct)
    except TypeError:  # kinds without a common order, as 1 and "a"
        return sorted(distinct, key=str)


def _joined(items: Sequence[Hashable]) -> str:
    return ", ".join(map(str, items))
