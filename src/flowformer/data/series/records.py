"""Labelled sets of time series: their record, and how arrays become one."""

import warnings
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64

from flowformer.data.arrays import stratified_indices
from flowformer.data.options import SeriesColumns

_MOST_NAMES = 6  # of channels, that a line lists


@dataclass(frozen=True, kw_only=True, eq=False)
class SeriesSplit:
    """One part of a data set.

    Attributes:
        series: one [channels, time] array a series, all with the same channels; NaN is a missing
            value.
        labels: the index of each series' class in `TimeSeriesData.classes`, or the number to
            predict.
        name: how errors call this part.
        places: how errors call each series; by default "NAME, series INDEX".
        groups: the group of each, such as a subject: none is in two parts of the data.
        spans: the first and the last time of each.
    """

    series: tuple[Float64[np.ndarray, "channels _"], ...]
    labels: Int64[np.ndarray, " n"] | Float64[np.ndarray, " n"]
    name: str = "series"
    places: tuple[str, ...] | None = None
    groups: tuple[str, ...] | None = None
    spans: Float64[np.ndarray, "n 2"] | None = None

    def __post_init__(self) -> None:
        """Refuse what no later step could use.

        Raises:
            ValueError: there is no series, labels or groups differ from the series in number, or
                the series in channels.
        """
        if not self.series:
            raise ValueError(f"{self.name}: expected at least one series, got none")
        if len(self.series) != len(self.labels):
            raise ValueError(
                f"{self.name}: expected one label a series, got {len(self.labels)} labels for "
                f"{len(self.series)} series"
            )
        if self.groups is not None and len(self.groups) != len(self.series):
            raise ValueError(
                f"{self.name}: expected one group a series, got {len(self.groups)} for "
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
            groups=None if self.groups is None else tuple(self.groups[i] for i in indices),
            spans=None if self.spans is None else self.spans[indices],
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class TimeSeriesData:
    """A data set. The classes are those of the training split, and no others.

    Attributes:
        name: what the data set is called.
        train: what models are fitted on.
        test: what they are judged on; None where there is none.
        classes: the classes' names; labels index them. There are none where labels are numbers to
            predict.
        columns: the columns of the table that it was read from, if it was one.
    """

    name: str
    train: SeriesSplit
    test: SeriesSplit | None
    classes: tuple[str, ...]
    columns: SeriesColumns | None = None

    def __post_init__(self) -> None:
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
        return int(max(split.lengths.max() for split in self.splits))

    @property
    def splits(self) -> tuple[SeriesSplit, ...]:
        """The training split, and the test split where there is one."""
        return (self.train,) if self.test is None else (self.train, self.test)

    def describe(self) -> str:
        """Return what the data are, in a line: series, channels, steps, labels, missing values."""
        labels = np.concatenate([split.labels for split in self.splits])
        what = f"{len(self.classes)} classes"
        if not self.classes:
            what = f"labels from {labels.min():g} to {labels.max():g}"
        series = [one for split in self.splits for one in split.series]
        groups = None
        if self.train.groups is not None:
            groups = tuple(group for split in self.splits for group in split.groups or ())
        return in_words(series, what, groups, self.columns)


def from_arrays(
    train_series: Sequence | np.ndarray,
    train_labels: Sequence[Hashable] | np.ndarray,
    test_series: Sequence | np.ndarray | None = None,
    test_labels: Sequence[Hashable] | np.ndarray | None = None,
    *,
    name: str = "arrays",
    train_groups: Sequence[Hashable] | np.ndarray | None = None,
    regression: bool = False,
) -> TimeSeriesData:
    """Make a data set of arrays.

    Args:
        train_series: what `as_series` takes.
        train_labels: one label a series, of any hashable kind. The classes are the distinct ones,
            sorted.
        test_series: the test split, if any.
        test_labels: its labels.
        name: what the data set is called.
        train_groups: the group of each training series, such as a subject: none is in two parts.
        regression: whether labels are numbers to predict, in place of classes.

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
    classes = [] if regression else distinct_labels(_label_list(train_labels, "train"))

    def split(series: Any, labels: Any, name: str, groups: Any = None) -> SeriesSplit:
        own = _label_list(labels, name)
        return SeriesSplit(
            series=as_series(series, name=name),
            labels=as_numbers(own, name=name)
            if regression
            else encode_labels(own, classes, name=name),
            name=name,
            groups=None if groups is None else tuple(map(str, _label_list(groups, name))),
        )

    train = split(train_series, train_labels, "train", train_groups)
    warn_of_swapped_axes(train.series, name="train")
    test = None
    if test_series is not None:
        test = split(test_series, test_labels, "test")
    return TimeSeriesData(name=name, train=train, test=test, classes=tuple(map(str, classes)))


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


def warn_of_shared_groups(train: SeriesSplit, other: SeriesSplit, *, name: str) -> None:
    """Say so where two parts have groups in common: figures are then not those of new ones.

    Args:
        train: a part.
        other: a part that is judged on.
        name: what the warning calls the data.
    """
    shared = sorted({*(train.groups or ())} & {*(other.groups or ())})
    if shared:
        named = ", ".join(shared[:_MOST_NAMES]) + ", …" * (len(shared) > _MOST_NAMES)
        warnings.warn(
            f"{name}: series of {len(shared)} groups ({named}) are in the {train.name} and in the "
            f"{other.name} part: figures of such a part are not those of groups that are new",
            UserWarning,
            stacklevel=3,
        )


def in_words(
    series: Sequence[Float64[np.ndarray, "channels _"]],
    labels: str,
    groups: tuple[str, ...] | None = None,
    columns: SeriesColumns | None = None,
) -> str:
    """Return what series are, in a line.

    Args:
        series: the series.
        labels: what their labels are, in words.
        groups: the group of each, if they have some.
        columns: the columns that they were read from, if they were.
    """
    columns = columns or SeriesColumns()
    lengths = [one.shape[1] for one in series]
    values = sum(one.size for one in series)
    missing = sum(int(np.isnan(one).sum()) for one in series) / values
    shortest, longest, channels = min(lengths), max(lengths), len(series[0])
    names = columns.channels if len(columns.channels) <= _MOST_NAMES else ()
    parts = [
        f"{len(series):,} series of {channels} channel{'s' * (channels > 1)}" + _bracketed(*names),
        f"{longest if shortest == longest else f'{shortest} – {longest}'} steps",
        labels + _bracketed(columns.label),
    ]
    if groups is not None:
        parts.append(f"{len(set(groups))} groups" + _bracketed(columns.group))
    if missing:
        parts.append(f"{100 * missing:.2g} % missing")
    return ", ".join(parts)


def _bracketed(*names: str | None) -> str:
    text = ", ".join(name for name in names if name)
    return f" ({text})" * bool(text)


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


def as_numbers(labels: Any, *, name: str) -> Float64[np.ndarray, " n"]:
    """Return numbers to predict in float64.

    Args:
        labels: an array, or anything that numpy makes one of.
        name: what errors call them.

    Raises:
        ValueError: there is something else than one finite number a series.
    """
    try:
        numbers = np.array(labels, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: expected numbers to predict, got {error}") from error
    if numbers.ndim != 1:
        raise ValueError(f"{name}: expected labels [n], got shape {numbers.shape}")
    wrong = np.flatnonzero(~np.isfinite(numbers))
    if len(wrong):
        raise ValueError(
            f"{name}: expected a finite number to predict for series {wrong[0]}, got "
            f"{numbers[wrong[0]]}"
        )
    return numbers


def distinct_labels(labels: list[Hashable], *, name: str = "train") -> list[Hashable]:
    """Return the classes that occur, sorted.

    Args:
        labels: the labels.
        name: what errors call them.

    Raises:
        ValueError: a label is missing, or two that differ are the same as text.
    """
    missing = [index for index, label in enumerate(labels) if label is None or label != label]
    if missing:
        raise ValueError(
            f"{name}: expected a label for series {missing[0]}, got {labels[missing[0]]}"
        )
    distinct: list[Any] = list(dict.fromkeys(labels))
    names = Counter(map(str, distinct))
    shared = [label for label in distinct if names[str(label)] > 1]
    if shared:
        raise ValueError(f"{name}: expected labels that differ as text, got {shared}")
    try:
        return sorted(distinct)
    except TypeError:  # kinds without a common order, as 1 and "a"
        return sorted(distinct, key=str)


def _joined(items: Sequence[Hashable]) -> str:
    return ", ".join(map(str, items))
