"""Tables of series: a row for each step (long), or a row for each series (wide).

Which column is what is told, or found by its name: `flowformer.data.series.columns`. Whether the
table is long or wide follows from it: rows that share an id, or have a time, are steps.
"""

from collections.abc import Container, Hashable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64

from flowformer.data.options import SeriesColumns
from flowformer.data.series.collection import SeriesCollection
from flowformer.data.series.columns import (
    NAMELESS,
    channels_of,
    find_columns,
    steps_of,
    without_absent,
    without_id,
)
from flowformer.machine import library

# pandas is imported where a table is read, and its types do not tell a column from a table.
Frame = Any
Column = Any

# What stands for a missing number; in a column of words, such as labels, each is a word.
MISSING = (
    "",
    "?",
    "NA",
    "N/A",
    "n/a",
    "NaN",
    "nan",
    "-NaN",
    "-nan",
    "NULL",
    "null",
    "None",
    "none",
)
MISSING += ("<NA>", "#N/A", "#NA", "#N/A N/A", "1.#QNAN", "-1.#QNAN", "1.#IND", "-1.#IND")


def read_frame(
    frame: Frame, columns: SeriesColumns, *, name: str, optional: Container[str] = ()
) -> SeriesCollection:
    """Return the series of a data frame, long or wide.

    Args:
        frame: the table.
        columns: which column is what, as far as that is told.
        name: how errors call the table.
        optional: of label and group what the table may lack, though its column is told.

    Raises:
        ValueError: a column is missing, more than one could be it, or holds what is no number; a
            time is doubled or missing; a series has two labels, is of two groups or has no values;
            the channels of a wide table differ in steps. The message names column, series and row.
    """
    frame = _plain_columns(frame, name)
    if frame.empty:
        raise ValueError(f"{name}: expected at least one row of values, got an empty table")
    columns = without_absent(columns, frame.columns, optional)
    found = find_columns(list(frame.columns), columns, name=name)
    names, by_row = list(frame.columns), not found.id or frame[found.id].is_unique
    steps = steps_of(names, found, name=name) if by_row else None
    if steps is not None:
        return _read_wide(frame, found, steps, name)
    if not found.id:
        raise without_id(names, found, name=name)
    if frame[found.id].is_unique and len(frame) > 1:
        raise ValueError(
            f"{name}: expected rows that share an id, as steps of one series, got {len(frame)} "
            f"rows of as many in {found.id!r}: another column is the id (data.id), or values of a "
            "table with a row for each series are to be numbered (x_0, x_1, …)"
        )
    return _read_long(frame, found, name)


def _plain_columns(frame: Frame, name: str) -> Frame:
    """Return the table with names of text; what its index names becomes columns."""
    if any(level is not None for level in frame.index.names):
        frame = frame.reset_index()
    frame = frame.set_axis([str(column).strip() for column in frame.columns], axis=1)
    doubled = frame.columns[frame.columns.duplicated()]
    if len(doubled):
        raise ValueError(f"{name}: expected columns of different names, got {doubled[0]!r} twice")
    # What R, and `to_csv`, leave of rows or an index without a name.
    numbered = [
        column
        for column in frame.columns
        if NAMELESS.fullmatch(column) and frame[column].dtype.kind in "iu"
    ]
    return frame.drop(columns=numbered)


def _read_wide(
    frame: Frame, found: SeriesColumns, steps: dict[str, list[tuple[int, str]]], name: str
) -> SeriesCollection:
    channels = list(steps)
    first = [number for number, _ in steps[channels[0]]]
    for channel in channels[1:]:
        if [number for number, _ in steps[channel]] != first:
            raise ValueError(
                f"{name}: expected the same steps in every channel, got {len(first)} of "
                f"{channels[0]!r} and {len(steps[channel])} of {channel!r}"
            )
    if first != list(range(first[0], first[0] + len(first))):
        gap = next(n for n, m in zip(first, range(first[0], first[-1]), strict=False) if n != m)
        raise ValueError(
            f"{name}: expected steps numbered one after the other, got none before {gap} in "
            f"{channels[0]!r}"
        )
    values = np.stack(
        [
            np.stack([_numbers(frame[column], name) for _, column in steps[channel]], axis=1)
            for channel in channels
        ],
        axis=1,
    )
    ids = frame[found.id].tolist() if found.id else list(range(len(frame)))
    places = tuple(f"{name}, series {each!r}" for each in ids)
    return SeriesCollection(
        name=name,
        series=trim(values, places),
        labels=_labels(frame[found.label]) if found.label else None,
        groups=_groups(frame[found.group], places) if found.group else None,
        places=places,
        ids=tuple(map(str, ids)) if found.id else None,
        columns=replace(found, channels=tuple(channels) if any(channels) else ()),
    )


def trim(
    values: Float64[np.ndarray, "n channels time"], places: Sequence[str]
) -> tuple[Float64[np.ndarray, "channels _"], ...]:
    """Return series without the steps at their end that no channel has a value at.

    Args:
        values: series that were padded by missing values.
        places: how errors call each.

    Raises:
        ValueError: a series has no value at all.
    """
    there: np.ndarray = np.logical_not(np.isnan(values).all(axis=1))
    empty = np.flatnonzero(np.logical_not(there.any(axis=1)))
    if len(empty):
        raise ValueError(f"{places[empty[0]]}: expected at least one value, got missing ones alone")
    ends = there.shape[1] - there[:, ::-1].argmax(axis=1)
    return tuple(series[:, :end] for series, end in zip(values, ends, strict=True))


def _read_long(frame: Frame, found: SeriesColumns, name: str) -> SeriesCollection:
    pandas: Any = library("pandas", "for tables", extra="timeseries")
    assert found.id
    channels = channels_of(list(frame.columns), found, name=name)
    _require_all(frame[found.id], name)
    codes, ids = pandas.factorize(frame[found.id])
    places = tuple(f"{name}, series {each!r}" for each in pandas.Index(ids).tolist())
    times = _times(frame[found.time], name) if found.time else np.arange(len(frame), dtype=float)
    order = np.lexsort((times, codes))
    starts = np.flatnonzero(np.diff(codes[order], prepend=-1))
    if found.time:
        _require_one_a_time(frame[found.time], codes, times, order, places)
    values = np.stack([_numbers(frame[channel], name) for channel in channels], axis=1)[order]
    parts = np.split(values, starts[1:])
    for place, part in zip(places, parts, strict=True):
        if np.isnan(part).all():
            raise ValueError(f"{place}: expected at least one value, got missing ones alone")
    ends = np.append(starts[1:], len(order)) - 1
    labels = groups = None
    if found.label:
        cut = ": cut a recording into series where it changes" * (len(places) < len(frame))
        labels = _labels(_one_each(frame[found.label], codes, places, "label", cut))
    if found.group:
        groups = _groups(_one_each(frame[found.group], codes, places, "group", ""), places)
    series = tuple(np.ascontiguousarray(part.T) for part in parts)
    if not found.channels:
        require_varying(series, channels, name)
    return SeriesCollection(
        name=name,
        series=series,
        labels=labels,
        groups=groups,
        spans=times[order][np.stack([starts, ends], axis=1)] if found.time else None,
        places=places,
        ids=tuple(map(str, ids)),
        columns=replace(found, channels=tuple(channels)),
    )


def require_varying(
    series: Sequence[Float64[np.ndarray, "channels _"]], channels: Sequence[str], name: str
) -> None:
    """Refuse a channel that nobody named and that tells series apart but not steps: a second label.

    Args:
        series: the series.
        channels: the names of their channels.
        name: how errors call the table.

    Raises:
        ValueError: one is constant in every series, and differs between them.
    """
    low = np.stack([np.fmin.reduce(each, axis=1) for each in series])
    high = np.stack([np.fmax.reduce(each, axis=1) for each in series])
    counts = np.stack([np.count_nonzero(~np.isnan(each), axis=1) for each in series])
    still = (counts > 1).any(axis=0) & ~(high > low).any(axis=0)
    told = np.flatnonzero(still & (np.fmax.reduce(high) > np.fmin.reduce(low)))
    if len(told):
        raise ValueError(
            f"{name}: {channels[told[0]]!r} is constant in every series and differs between them, "
            "as a second label does: name the columns of values (data.channels, channels=... in "
            "Python), and it among them if it is one"
        )


def _require_one_a_time(
    column: Column,
    codes: Int64[np.ndarray, " n"],
    times: Float64[np.ndarray, " n"],
    order: Int64[np.ndarray, " n"],
    places: Sequence[str],
) -> None:
    same = (np.diff(codes[order]) == 0) & (np.diff(times[order]) == 0)
    if same.any():
        at = int(same.argmax())
        one, other = sorted(int(row) for row in order[at : at + 2])
        raise ValueError(
            f"{places[codes[one]]}: expected one row a time, got two at {column.iloc[one]} in "
            f"{column.name!r}, rows {one + 1} and {other + 1}"
        )


def _one_each(
    column: Column, codes: Int64[np.ndarray, " n"], places: Sequence[str], what: str, remedy: str
) -> Column:
    """Return the one value that the rows of each series have; a missing one where none has any."""
    groups = column.groupby(codes)
    several = np.flatnonzero(groups.nunique().to_numpy() > 1)
    if len(several):
        rows = np.flatnonzero((codes == several[0]) & column.notna().to_numpy())
        first = column.iloc[rows[0]]
        other = next(row for row in rows if column.iloc[row] != first)
        raise ValueError(
            f"{places[several[0]]}: expected one {what} ({column.name!r}), got {first} in row "
            f"{rows[0] + 1} and {column.iloc[other]} in row {other + 1}{remedy}"
        )
    return groups.first()


def _labels(column: Column) -> tuple[Hashable | None, ...]:
    missing = column.isna()
    return plain_labels(
        [None if gone else each for each, gone in zip(column.tolist(), missing, strict=True)]
    )


def plain_labels(labels: Sequence[Any]) -> tuple[Hashable | None, ...]:
    """Return labels, None where they miss; whole numbers that a gap has made floats are whole.

    Args:
        labels: as they were read.
    """
    known = [None if each != each else each for each in labels]
    floats = [each for each in known if isinstance(each, float)]
    if floats and all(each.is_integer() for each in floats):
        known = [int(each) if isinstance(each, float) else each for each in known]
    return tuple(known)


def _groups(column: Column, places: Sequence[str]) -> tuple[str, ...]:
    missing = np.flatnonzero(column.isna().to_numpy())
    if len(missing):
        raise ValueError(f"{places[missing[0]]}: expected a group, got none")
    return tuple(map(str, _labels(column)))


def _require_all(column: Column, name: str) -> None:
    missing = np.flatnonzero(column.isna().to_numpy())
    if len(missing):
        raise ValueError(
            f"{name}, row {missing[0] + 1}: expected a value of {column.name!r}, got none"
        )


def _times(column: Column, name: str) -> Float64[np.ndarray, " n"]:
    """Return numbers as they are, and dates as seconds since 1970."""
    pandas: Any = library("pandas", "for tables", extra="timeseries")
    kinds = pandas.api.types
    _require_all(column, name)
    if kinds.is_timedelta64_dtype(column):
        return column.dt.total_seconds().to_numpy(dtype=np.float64)
    if kinds.is_datetime64_any_dtype(column):
        dates = pandas.to_datetime(column, utc=True)
    else:
        numbers = pandas.to_numeric(column, errors="coerce")
        if numbers.notna().all():
            return numbers.to_numpy(dtype=np.float64)
        # Any other form would be guessed: 03/04 is a day of March or of April.
        dates = pandas.to_datetime(column, errors="coerce", utc=True, format="ISO8601")
        wrong = np.flatnonzero(dates.isna().to_numpy())
        if len(wrong):
            # Between numbers and dates, what is neither.
            row = next((each for each in wrong if np.isnan(numbers.iloc[each])), wrong[0])
            raise ValueError(
                f"{name}, row {row + 1}: expected a time or number in {column.name!r}, got "
                f"{column.iloc[row]!r}: times are written as 2026-11-30 17:05:00 (ISO 8601)"
            )
    nanoseconds: Any = dates.to_numpy(dtype="datetime64[ns]").astype(np.int64)
    return nanoseconds / 1e9


def _numbers(column: Column, name: str) -> Float64[np.ndarray, " n"]:
    """Return the values of a column, NaN where one is missing."""
    pandas: Any = library("pandas", "for tables", extra="timeseries")
    kinds = pandas.api.types
    if kinds.is_datetime64_any_dtype(column) or kinds.is_timedelta64_dtype(column):
        numbers = pandas.Series(np.nan, index=column.index)
    else:
        if not kinds.is_numeric_dtype(column):
            column = column.mask(column.isin(MISSING))
        numbers = pandas.to_numeric(column, errors="coerce")
    values = numbers.to_numpy(dtype=np.float64, na_value=np.nan)
    wrong = np.flatnonzero(np.isinf(values) | (np.isnan(values) & column.notna().to_numpy()))
    if len(wrong):
        raise ValueError(
            f"{name}, row {wrong[0] + 1}: expected a number in {column.name!r}, got "
            f"{column.iloc[wrong[0]]!r}: if it is no channel, name those that are (data.channels)"
        )
    return values
