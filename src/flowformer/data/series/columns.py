"""The columns of a table of series: which is what, as told or by its name; no torch, no numpy.

What a table's first line shows to be wrong is told by `check_table`, before anything is imported
that reads tables.
"""

import csv
import gzip
import re
from collections.abc import Container, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from flowformer.data.files import files_below
from flowformer.data.options import SERIES_ENDINGS, TABLES, SeriesColumns

ROLES = ("id", "time", "label", "group")
# The names that columns have in data sets in use, in lower case and with "_" for what parts words.
_NAMES = {
    "id": "id series series_id case case_id sample_id instance instance_id recording recording_id "
    "sequence_id trial trial_id uid",
    "time": "time t timestamp time_stamp datetime date step time_step timestep frame seconds ds",
    "label": "label labels class target activity category",  # y is a channel beside x and z
    "group": "group groups subject subject_id participant participant_id patient patient_id person "
    "user user_id",
}
_STEP = re.compile(r"(.*?)[\s_.\-\[(]*(\d+)[\])]?")  # of a wide table: a channel's name and a step
NAMELESS = re.compile(r"(Unnamed: 0(\.\d+)*)?")  # as pandas calls a first column without a name
THOUSANDS = re.compile(r"\s*[+-]?[1-9]\d{0,2}(\.\d{3})+(,\d*)?\s*")  # 1.234,5
_SEPARATORS = ",;\t"
SERIES = "series"  # the id that a folder adds, where a file is a series
_MOST = 10  # columns that a message lists


def find_columns(names: Sequence[str], columns: SeriesColumns, *, name: str) -> SeriesColumns:
    """Return which column is what: as told, else by its name, "" where there is none.

    Args:
        names: the columns that there are.
        columns: which of them is what, as far as that is told.
        name: how errors call the table.

    Raises:
        ValueError: a column that is told is not there, or several could be one that is not told;
            the message has all that is unknown.
    """
    told = {role: getattr(columns, role) for role in ROLES if getattr(columns, role) is not None}
    found, problems = dict(told), []
    for role in (each for each in ROLES if each not in told):
        taken = {*found.values(), *columns.channels}
        could = [each for each in candidates(names, role) if each not in taken]
        if len(could) > 1:
            problems.append(
                f"{' and '.join(map(repr, could))} could be the {role}: say which "
                f"(data.{role}, {role}=... in Python)"
            )
        found[role] = could[0] if could else ""
    absent = [role for role, given in told.items() if given and given not in names]
    if absent:
        words = [f"{told[role]!r} (data.{role})" for role in absent]
        what = f"a column {words[0]}" if len(words) == 1 else f"columns {_and(words)}"
        rest = taken_for(
            replace(columns, **{**found, **dict.fromkeys(absent, "")}), found.keys() - told.keys()
        )
        problems.insert(0, f"expected {what}, got {listed(names)}{rest}")
    if problems:
        raise ValueError(f"{name}: {'; '.join(problems)}")
    return replace(columns, **found)


def taken_for(found: SeriesColumns, open_roles: Container[str] = ROLES) -> str:
    """Return in words which columns were taken for what, and for which roles there are none.

    Args:
        found: the columns that were found.
        open_roles: what may be lacking.
    """
    known = [f"{each!r} for the {role}" for role in ROLES if (each := getattr(found, role))]
    lacking = [role for role in ROLES if role in open_roles and not getattr(found, role)]
    parts = [f"took {_and(known)}"] if known else []
    if lacking:
        parts += [f"found none for {_and(lacking)} ({', '.join(f'data.{x}' for x in lacking)})"]
    return f" ({'; '.join(parts)})" if parts else ""


def without_id(names: Sequence[str], found: SeriesColumns, *, name: str) -> ValueError:
    """Return the error of a table that is not wide, and has no column that tells series apart."""
    return ValueError(
        f"{name}: expected a column that says which series a row belongs to (data.id, id=... "
        "in Python), or, with a row for each series, values numbered by their step (x_0, x_1, "
        "…) and no other column but label and group (data.label, data.group), got "
        f"{listed(names)}{taken_for(found)}"
    )


def candidates(names: Sequence[str], role: str) -> list[str]:
    """Return the columns that a role would be found as by their names.

    Args:
        names: the columns that there are.
        role: id, time, label or group.
    """
    return [each for each in names if _folded(each) in _NAMES[role].split()]


def steps_of(
    names: Sequence[str], found: SeriesColumns, *, name: str
) -> dict[str, list[tuple[int, str]]] | None:
    """Return number and column of each step, by channel; None of a table that is not wide."""
    if found.time:
        return None
    steps: dict[str, list[tuple[int, str]]] = {}
    for column in value_columns(names, found, name=name):
        match = _STEP.fullmatch(column)
        if found.channels and (match is None or match[1] not in found.channels):
            continue
        if match is None:
            return None
        steps.setdefault(match[1], []).append((int(match[2]), column))
    if steps:
        _require_channels([each for each in found.channels if each not in steps], names, name)
    return {channel: sorted(of) for channel, of in steps.items()} or None


def value_columns(names: Sequence[str], found: SeriesColumns, *, name: str) -> list[str]:
    """Return the columns of values where none is told: those that by their names are no role.

    Raises:
        ValueError: a column could be a role that another has: a second label is no channel.
    """
    roles = {getattr(found, role) for role in ROLES}
    rest = [column for column in names if column not in roles]
    if found.channels:
        return rest
    for role in ROLES:
        could = candidates(rest, role)
        if could and getattr(found, role):
            raise ValueError(
                f"{name}: {could[0]!r} could be the {role}, which is {getattr(found, role)!r}: "
                "name the columns of values (data.channels, channels=... in Python)"
            )
        rest = [column for column in rest if column not in could]
    return rest


def channels_of(names: Sequence[str], found: SeriesColumns, *, name: str) -> list[str]:
    """Return the columns of values of a table with a row for each step.

    Raises:
        ValueError: one that is told is not there, or there are none.
    """
    channels = list(found.channels) or value_columns(names, found, name=name)
    _require_channels([each for each in channels if each not in names], names, name)
    if not channels:
        raise ValueError(f"{name}: expected columns of values, got {listed(names)}")
    return channels


def _require_channels(absent: Sequence[str], names: Sequence[str], name: str) -> None:
    if absent:
        what = "a column" if len(absent) == 1 else "columns"
        raise ValueError(
            f"{name}: expected {what} {_and([repr(each) for each in absent])} (data.channels), got "
            f"{listed(names)}"
        )


def without_absent(
    columns: SeriesColumns, names: Container[str], optional: Container[str]
) -> SeriesColumns:
    """Return the columns that are told, but for those that a table has not and may lack.

    Args:
        columns: which column is what, as far as that is told.
        names: the columns that there are.
        optional: the roles that may be lacking, label and group.
    """
    absent = (role for role in ROLES if role in optional and getattr(columns, role) not in names)
    return replace(columns, **dict.fromkeys(absent, ""))


def elsewhere(columns: SeriesColumns, source: object) -> SeriesColumns:
    """Return the columns of one source for another: its index is that of its own folder.

    Args:
        columns: columns that were told or found.
        source: what is to be read; of a folder, an index of the same name is its own.
    """
    if not isinstance(source, str | Path):
        return columns
    if columns.channels and ending_of(Path(source)) == ".npz":  # a table's are not its arrays
        columns = replace(columns, label=None, group=None)
    if columns.index is None:
        return columns
    own = Path(source, columns.index.name)
    return replace(columns, index=own if own.is_file() else None)


def ending_of(path: Path) -> str | None:
    """Return how the name of a file of series ends; None of any other."""
    return next((each for each in SERIES_ENDINGS if path.name.lower().endswith(each)), None)


def check_series_path(path: Path) -> None:
    """Refuse a file whose name is not that of a file of series, and a folder without a table.

    Raises:
        ValueError: the name ends otherwise; the message lists the endings.
        FileNotFoundError: the folder has none.
    """
    if path.is_dir():
        if not any(ending_of(each) in TABLES for each in files_below(path)):
            raise FileNotFoundError(f"{path}: expected files that end in {', '.join(TABLES)}")
    elif ending_of(path) is None:
        raise ValueError(
            f"{path}: expected a folder or a file that ends in {', '.join(SERIES_ENDINGS)}, got "
            f"{path.suffix or 'no ending'!r}"
        )


class Header(NamedTuple):
    """The first line of a table of text.

    Attributes:
        names: of the columns, or the first values.
        separator: what separates them.
        has_names: whether they are names.
    """

    names: list[str]
    separator: str
    has_names: bool


def read_header(path: Path) -> Header:
    """Return the first line of a `.csv` or `.tsv` file, or one packed by gzip."""
    with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8-sig") as file:
        first = file.readline()
    separator = max(_SEPARATORS, key=first.count)
    decimals = [with_point(name.strip()) for name in first.split(";")]
    if len(decimals) > 1 and all(map(is_number, decimals)):  # 0,5;1,5
        separator, first = ";", ";".join(decimals)
    names = [name.strip() for name in first.split(separator)]
    is_headless = all(is_number(name) for name in names if name) and not _counts(names)
    quoted = next(csv.reader([first], delimiter=separator), [])
    return Header([name.strip() for name in quoted], separator, not is_headless)


def check_table(path: Path, columns: SeriesColumns, optional: Container[str] = ()) -> None:
    """Refuse columns that a table has not by its first line: to read it takes seconds.

    Args:
        path: anything that holds series; only tables of text are looked at.
        columns: which column is what, as far as that is told.
        optional: of label and group what the table may lack, though its column is told.

    Raises:
        ValueError: a column that is told is not there, several could be one, or none tells series
            apart.
    """
    if not (path.is_file() and path.name.lower().endswith(TABLES) and path.suffix != ".parquet"):
        return
    try:
        header = read_header(path)
    except (OSError, EOFError, ValueError, csv.Error):  # who reads it says what is wrong with it
        return
    names = [name for name in header.names if not NAMELESS.fullmatch(name)]
    if not header.has_names or columns.id == SERIES:
        return
    found = find_columns(names, without_absent(columns, names, optional), name=str(path))
    if steps_of(names, found, name=str(path)) is not None:
        return
    if not found.id:
        raise without_id(names, found, name=str(path))
    channels_of(names, found, name=str(path))


def with_point(text: str) -> str:
    """Return 1.234,5 as 1234.5."""
    return with_decimal_point(text.replace(".", "") if THOUSANDS.fullmatch(text) else text)


def with_decimal_point(text: str) -> str:
    """Return 0,5 as 0.5."""
    return text.replace(",", ".")


def is_number(text: str) -> bool:
    """Return whether a text is a number with a decimal point, or without one."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def _counts(names: Sequence[str]) -> bool:
    """Return whether names are the numbers of steps, one after the other."""
    return list(names) in ([str(n + at) for n in range(len(names))] for at in (0, 1))


def _and(words: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def _folded(name: str) -> str:
    return re.sub(r"[\s\-.]+", "_", name.strip().casefold())


def listed(names: Sequence[str]) -> str:
    """Return names of columns in words, the first of many."""
    shown = ", ".join(map(repr, names[:_MOST]))
    return shown if len(names) <= _MOST else f"{shown}, … {len(names)} in all"
