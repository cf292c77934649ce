"""Data sets in memory as files, from which the same comes back to the last bit."""

import io
from pathlib import Path
from typing import Any

import numpy as np

from flowformer.data.series.reading import load_series
from flowformer.data.series.records import SeriesSplit, TimeSeriesData
from flowformer.files import write_atomically


def save_series(data: TimeSeriesData, folder: str | Path) -> tuple[Path, Path | None]:
    """Write a data set as `NAME.ts` and, where it has a test split, `NAME_TEST.ts`.

    That format has no groups: series that have some are arrays in `NAME.npz` and `NAME_TEST.npz`.
    Files that hold the same already are left as they are.

    Args:
        data: the data set; its name is that of the files.
        folder: where they go; made when missing.

    Returns:
        Both files; None in place of a test split that there is not.

    Raises:
        FileExistsError: a file of that name holds something else.
        ValueError: the name is none of a file, or a class has a name that the format cannot hold;
            or a series with a group ends in missing values, which fill up arrays.

    Examples:
        >>> import numpy as np
        >>> from flowformer.data import from_arrays, load_ts_files
        >>> from flowformer.data.series.writing import save_series
        >>> data = from_arrays(np.random.rand(6, 2, 9), ["up", "down"] * 3, name="steps")
        >>> train, _ = save_series(data, "data")
        >>> np.array_equal(load_ts_files(train).train.series, data.train.series)
        True
    """
    if Path(data.name).name != data.name or data.name[:1] in ("", "."):
        raise ValueError(f"expected a name that a file can have, got {data.name!r}")
    grouped = data.train.groups is not None
    if not grouped:
        _require_words(data.classes)
    ending, form = (".npz", _to_arrays) if grouped else (".ts", _to_text)
    train, test = Path(folder, f"{data.name}{ending}"), None
    _write(train, form(data.train, data))
    if data.test is not None:
        test = Path(folder, f"{data.name}_TEST{ending}")
        _write(test, form(data.test, data))
    _check(data, load_series(train, test, regression=not data.classes))
    return train, test


def _write(path: Path, content: bytes) -> None:
    if path.exists():
        if path.read_bytes() == content:
            return
        raise FileExistsError(f"{path} holds other series: choose another folder")
    write_atomically(path, content)


def _require_words(classes: tuple[str, ...]) -> None:
    for name in classes:
        if " ".join(name.split()) != name or ":" in name or name.casefold() in ("", "?", "nan"):
            raise ValueError(f"expected names of classes that a .ts file can hold, got {name!r}")


def _to_text(split: SeriesSplit, data: TimeSeriesData) -> bytes:
    text = io.StringIO()
    text.write(f"@problemName {data.name}\n@univariate {str(data.channels == 1).lower()}\n")
    text.write(f"@dimensions {data.channels}\n@equalLength {str(_equal(split)).lower()}\n")
    kind = f"@classLabel true {' '.join(data.classes)}" if data.classes else "@targetLabel true"
    text.write(f"{kind}\n@data\n")
    for series, label in zip(split.series, _labels(split, data), strict=True):
        # The shortest digits that give back the very number.
        channels = (",".join(map(repr, channel.tolist())) for channel in series)
        text.write(":".join([*channels, str(label)]) + "\n")
    return text.getvalue().encode()


def _to_arrays(split: SeriesSplit, data: TimeSeriesData) -> bytes:
    padded = np.full((len(split), split.channels, split.lengths.max()), np.nan)
    for row, series in zip(padded, split.series, strict=True):
        row[:, : series.shape[1]] = series
    groups: dict[str, Any] = {}
    if split.groups is not None:
        groups = {"groups": np.array(split.groups)}
    file = io.BytesIO()
    np.savez(file, X=padded, y=np.array(_labels(split, data)), **groups)
    return file.getvalue()


def _labels(split: SeriesSplit, data: TimeSeriesData) -> list[Any]:
    """Return the names of the classes, or the numbers."""
    labels = split.labels.tolist()
    return [data.classes[label] for label in labels] if data.classes else labels


def _equal(split: SeriesSplit) -> bool:
    return len(set(split.lengths.tolist())) == 1


def _check(data: TimeSeriesData, found: TimeSeriesData) -> None:
    """Refuse what does not come back as it went: the names of classes are words there."""
    for ours, theirs in ((data.train, found.train), (data.test, found.test)):
        if ours is None or theirs is None:
            continue
        if _labels(ours, data) != _labels(theirs, found):
            named = ", ".join(data.classes)
            raise ValueError(f"expected names of classes that a file tells apart, got {named}")
        for index in np.flatnonzero(ours.lengths != theirs.lengths)[:1].tolist():
            raise ValueError(
                f"{data.name}, {ours.place(index)}: expected a value in the last time step, as "
                "series with groups are written with missing values after their end, got none"
            )
