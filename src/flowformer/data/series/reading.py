"""Series from wherever they are: tables, folders of them, `.ts` and `.npz` files, arrays."""

import warnings
from collections.abc import Container, Hashable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flowformer.data.arrays import read_arrays
from flowformer.data.files import files_below, warn_of_rest
from flowformer.data.options import TABLES, SeriesColumns
from flowformer.data.series.collection import SeriesCollection, data_set, of_ts_file
from flowformer.data.series.columns import (
    SERIES,
    THOUSANDS,
    candidates,
    check_series_path,
    elsewhere,
    ending_of,
    find_columns,
    is_number,
    read_header,
    with_decimal_point,
    with_point,
)
from flowformer.data.series.records import TimeSeriesData, as_series
from flowformer.data.series.tables import (
    MISSING,
    plain_labels,
    read_frame,
    require_varying,
    trim,
)
from flowformer.data.series.ts_format import read_ts
from flowformer.machine import library

if TYPE_CHECKING:
    from pandas import DataFrame

_INDICES = ("index", "labels")  # the names of a folder's index, without an ending
_FILE_COLUMNS = ("file", "filename", "path", "name", "id")  # of an index, in this order
_CLASS = "class"  # a column that a folder adds


def read_series(
    source: "str | Path | DataFrame | np.ndarray | Sequence",
    columns: SeriesColumns | None = None,
    *,
    optional: Container[str] = (),
    **names: Any,
) -> SeriesCollection:
    """Read series from whatever holds them, and their labels and groups, if it holds those.

    A table (a data frame, `.csv`, `.tsv` or `.parquet`) has a row for each step, with columns id,
    time, channels, label and group; or a row for each series, with values numbered by their step:
    x_0, x_1, …. A folder has a table for each series, in folders by class (FOLDER/CLASS/FILE) or
    named in an index with a row for each file. An `.npz` file has arrays X [n, channels, time], y
    and groups. Series of unequal length end in missing values where the format needs them padded.

    Args:
        source: a path, a data frame, an array [n, channels, time], or a list of arrays
            [channels, time_i].
        columns: which column of a table is what; what is not told is found by its name.
        optional: "label" and "group", where a table may lack these columns, though they are told.
        names: single fields of `SeriesColumns`, in place of `columns`.

    Raises:
        FileNotFoundError: there is no such file or folder, or nothing in it.
        ImportError: pandas or pyarrow is missing; the message names the extra to install.
        ValueError: it is not as described; the message names the file, the place, what was
            expected and what came.

    Examples:
        >>> import pandas
        >>> from flowformer.data import read_series
        >>> frame = pandas.DataFrame(
        ...     {"id": [1, 1, 1, 2, 2], "x": range(5), "gesture": ["up"] * 3 + ["down"] * 2}
        ... )
        >>> data = read_series(frame, label="gesture")
        >>> data.describe()
        '2 series of 1 channel (x), 2 – 3 steps, 2 classes (gesture)'
        >>> data.labels, data.series[1]
        (('up', 'down'), array([[3., 4.]]))
    """
    columns = replace(columns or SeriesColumns(), **names)
    if isinstance(source, str | Path):
        path = Path(source)
        read = _read_path(path, columns, optional)
        return replace(read, title=read.title or (path.name if path.is_dir() else path.stem))
    if hasattr(source, "iloc"):
        return read_frame(source, columns, name="table", optional=optional)  # pyright: ignore[reportArgumentType] - it has rows
    return SeriesCollection(name="series", series=as_series(source))  # pyright: ignore[reportArgumentType] - no path, no frame


def load_series(
    train: "str | Path | DataFrame",
    test: "str | Path | DataFrame | None" = None,
    columns: SeriesColumns | None = None,
    *,
    regression: bool = False,
    **names: Any,
) -> TimeSeriesData:
    """Read a data set from whatever `read_series` reads.

    Args:
        train: what models are fitted on.
        test: what they are tested on, in columns of the same names; it may lack the group.
        columns: which column of a table is what.
        regression: whether labels are numbers to predict, in place of classes.
        names: single fields of `SeriesColumns`, in place of `columns`.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ImportError: a library is missing.
        ValueError: what `read_series` and `data_set` raise.
    """
    first = read_series(train, columns, **names)
    second = None
    if test is not None:
        second = read_series(test, elsewhere(first.columns, test), optional=("group",))
    return data_set(first, second, regression=regression)


def is_series_file(path: Path) -> bool:
    """Return whether a file is one that `read_series` reads, by its ending."""
    return ending_of(path) is not None


def _read_path(path: Path, columns: SeriesColumns, optional: Container[str]) -> SeriesCollection:
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or directory")
    check_series_path(path)
    if path.is_dir():
        return _read_folder(path, columns, optional)
    if (ending := ending_of(path)) in (".ts", ".npz"):
        if columns.group and ending == ".ts" and "group" not in optional:
            raise ValueError(f"{path}: a .ts file has no groups: data.group is a column of tables")
        return of_ts_file(read_ts(path)) if ending == ".ts" else _read_npz(path, columns, optional)
    frame = read_table(path)
    if columns.id == SERIES:  # of a folder, where a file without it is a series
        return _read_file(frame, path, columns, optional, own=path.name)
    return read_frame(frame, columns, name=str(path), optional=optional)


def read_table(path: Path, *, headless: bool = False, texts: Sequence[str] = ()) -> "DataFrame":
    """Read a table from a file.

    Args:
        path: a `.csv` or `.tsv` file, its values separated by what separates most of the first
            line, or a `.parquet` file. Between semicolons numbers may have a decimal comma, and
            then points between their thousands: 1.234,5.
        headless: whether the first line may be values, whose columns are then called 0, 1, ….
        texts: columns of text, though numbers stand in them.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: pandas, or pyarrow for a `.parquet` file, is missing.
        ValueError: it is no table; the message names it.
    """
    pandas: Any = library("pandas", "for tables", extra="timeseries")
    try:
        if ending_of(path) == ".parquet":
            library("pyarrow", "to read .parquet files", extra="language")
            return pandas.read_parquet(path)
        header = read_header(path)
        if not (header.has_names or headless):
            raise ValueError("its first line with the names of the columns, got numbers")
        read = partial(
            pandas.read_csv,
            path,
            sep=header.separator,
            na_values=["", "?"],
            keep_default_na=False,
            header=0 if header.has_names else None,
            low_memory=False,
        )
        frame = read(dtype=dict.fromkeys(texts, str))
        others = frame.columns.difference(texts, sort=False)
        worded = [n for n in others if pandas.api.types.is_string_dtype(frame.dtypes[n])]
        commas = header.separator == ";" and any(
            _has_decimal_commas(frame[name]) for name in worded
        )
        if commas:  # then 987 and 1.234 were read as numbers, the second a thousandth of itself
            floats = [name for name in others if frame.dtypes[name].kind == "f"]
            frame[floats] = read(dtype=str)[floats]
            worded += floats
        for name in worded:
            frame[name] = _in_numbers(frame[name], commas=commas)
        return frame
    except (FileNotFoundError, ImportError, PermissionError):
        raise
    except Exception as error:  # whatever pandas, pyarrow and their parts raise
        raise ValueError(f"{path}: expected a table, {error}") from error


def _has_decimal_commas(column: Any) -> bool:
    """Return whether texts are numbers, or words for a missing one, as 0,5 and 1.234.567 are."""
    texts = column[~column.isin(MISSING)].dropna()
    shown = texts.str.contains(r",|\.\d+\.").any()
    return bool(shown) and all(is_number(with_point(text)) for text in texts)


def _in_numbers(column: Any, *, commas: bool) -> Any:
    """Return a column of texts as numbers, if all are numbers or words for a missing one.

    Args:
        column: the texts.
        commas: whether numbers of the table have decimal commas.
    """
    pandas: Any = library("pandas", "for tables", extra="timeseries")
    texts = column.mask(column.isin(MISSING))
    if commas:
        pointed = texts[texts.str.contains(".", regex=False, na=False)]
        thousands = pointed.map(lambda text: THOUSANDS.fullmatch(text) is not None).all()
        # 0.5 beside 1.234: points that are no thousands' are decimal ones in all of a column.
        texts = texts.map(with_point if thousands else with_decimal_point, na_action="ignore")
    numbers = pandas.to_numeric(texts, errors="coerce")
    numeric = numbers.notna().any() and (numbers.isna() == texts.isna()).all()
    return numbers if numeric else column


def _read_npz(path: Path, columns: SeriesColumns, optional: Container[str]) -> SeriesCollection:
    arrays = read_arrays(path, texts=True)
    found = {name.casefold(): array for name, array in arrays.items()}
    if "x" not in found:
        raise ValueError(
            f"{path}: expected an array X [n, channels, time], got {', '.join(arrays) or 'none'}"
        )
    values = np.stack(as_series(found["x"], name=str(path)))
    places = [f"{path}, series {index}" for index in range(len(values))]

    def one_each(role: str, usual: str) -> tuple[str, tuple[Hashable | None, ...] | None]:
        """Return the name and the values of what stands beside the series: as told, or as usual."""
        told = getattr(columns, role)
        name = usual if told is None or (told not in arrays and role in optional) else told
        if told and told not in arrays and role not in optional:
            raise ValueError(
                f"{path}: expected an array {told!r} (data.{role}), got {', '.join(arrays)}"
            )
        array = arrays.get(name, found.get(name))
        if told == "" or array is None:
            return "", None
        if array.shape != (len(values),):
            raise ValueError(
                f"{path}: expected {name} [{len(values)}], one for each series, got shape "
                f"{list(array.shape)}"
            )
        return name, plain_labels(array.tolist())

    _, labels = one_each("label", "y")
    group, groups = one_each("group", "groups")
    return SeriesCollection(
        name=str(path),
        series=trim(values, places),
        labels=labels,
        groups=None if groups is None else tuple(map(str, groups)),
        columns=SeriesColumns(label=columns.label, group=group),
    )


def _read_folder(
    folder: Path, columns: SeriesColumns, optional: Container[str]
) -> SeriesCollection:
    """Read the tables of a folder, each with what the index or its own folder tells of it."""
    index = _find_index(folder, columns.index)
    told = None if index is None else _read_index(index, columns)
    every = [path for path in files_below(folder) if path != index]
    files = [path for path in every if ending_of(path) in TABLES]
    if not files:
        raise FileNotFoundError(f"{folder}: expected the files that {index} names, found none")
    warn_of_rest(folder, set(every) - set(files), expected=f"{', '.join(TABLES)} files")
    labelled = columns.label in (None, _CLASS)  # else a column of the files is the label
    about = {path: _about(path.relative_to(folder), told, labelled) for path in files}
    unknown = [path for path, more in about.items() if more is None]
    if len(unknown) == len(files):
        raise ValueError(f"{index}: expected the files of {folder}, such as {files[0]}, got others")
    if unknown:
        warnings.warn(
            f"{folder}: passed over {len(unknown)} file{'s' * (len(unknown) > 1)} that {index} "
            f"does not name, the first is {unknown[0]}",
            UserWarning,
            stacklevel=2,
        )
    read: list[SeriesCollection] = []
    first: list[str] = []
    for path, more in about.items():
        if more is None:
            continue
        frame = read_table(path, headless=True)
        names = [str(name) for name in frame.columns]
        first = first or names
        if set(names) != set(first):
            raise ValueError(
                f"{path}: expected the columns {', '.join(first)}, as in the files before, got "
                f"{', '.join(names)}"
            )
        known = read[0].columns if read else columns
        own = path.relative_to(folder).as_posix()
        read.append(_read_file(frame.assign(**more), path, known, optional, own=own))
    merged = _merged(read, folder)
    if merged.columns.channels and not columns.channels:
        require_varying(merged.series, merged.columns.channels, str(folder))
    return merged


def _read_file(
    frame: "DataFrame", path: Path, columns: SeriesColumns, optional: Container[str], *, own: str
) -> SeriesCollection:
    """Read a table that is one series, of the id that is its own, if it has no other."""
    names = [str(name) for name in frame.columns]
    one = (
        columns.id == SERIES
        or not find_columns(names, replace(columns, label="", group=""), name=str(path)).id
    )
    if not one or SERIES in names:
        return read_frame(frame, columns, name=str(path), optional=optional)
    if columns.id == "":
        frame = frame.drop(columns=candidates(names, "id"))
    columns = replace(columns, id=SERIES)
    read = read_frame(frame.assign(**{SERIES: own}), columns, name=str(path), optional=optional)
    return replace(read, places=(str(path),))


def _merged(read: Sequence[SeriesCollection], folder: Path) -> SeriesCollection:
    """Return the series of all files as one collection; what one has, all have."""
    first = read[0]

    def joined(name: str) -> Any:
        if getattr(first, name) is None:
            return None
        return tuple(value for each in read for value in getattr(each, name))

    return SeriesCollection(
        name=str(folder),
        series=joined("series"),
        labels=joined("labels"),
        groups=joined("groups"),
        spans=None if first.spans is None else np.array(joined("spans")),
        places=joined("places"),
        ids=joined("ids"),
        columns=first.columns,
    )


def _about(
    inside: Path, told: Mapping[str, Mapping[str, Any]] | None, labelled: bool
) -> Mapping[str, Any] | None:
    """Return what is known of a file by the index, if there is one, or by the folder it is in."""
    if told is None:
        parent = inside.parent.as_posix()
        return {_CLASS: parent} if labelled and parent != "." else {}
    keys = (inside.as_posix(), inside.name, inside.with_suffix("").as_posix(), inside.stem)
    return next((told[key] for key in keys if key in told), None)


def _find_index(folder: Path, told: Path | None) -> Path | None:
    if told is not None:
        inside = folder / told
        if not told.exists() and not inside.exists():
            raise FileNotFoundError(f"{told}: no such index of {folder}")
        return told if told.exists() else inside
    found = [
        path
        for path in sorted(folder.iterdir())
        if ending_of(path) in TABLES and path.name.partition(".")[0].lower() in _INDICES
    ]
    return found[0] if found else None


def _read_index(path: Path, columns: SeriesColumns) -> dict[str, dict[str, Any]]:
    frame: Any = read_table(path)
    names = {str(name).casefold(): name for name in frame.columns}
    given = columns.id if columns.id in frame.columns else None
    key = given or next((names[each] for each in _FILE_COLUMNS if each in names), None)
    if key is None:
        raise ValueError(
            f"{path}: expected a column with the files ({', '.join(_FILE_COLUMNS)}, or data.id), "
            f"got {', '.join(map(str, frame.columns))}"
        )
    texts: Any = read_table(path, texts=[key])
    files = texts[key].astype(str)  # 001 is no 1
    doubled = files[files.duplicated()]
    if len(doubled):
        raise ValueError(f"{path}: expected a row for each file, got two of {doubled.iloc[0]!r}")
    rest = [str(name) for name in frame.columns if name != key]
    own = SeriesColumns(id="", time="", label=columns.label, group=columns.group)
    found = find_columns(rest, own, name=str(path))
    kept = [name for name in (found.label, found.group) if name]
    return dict(zip(files, frame[kept].to_dict(orient="records"), strict=True))
