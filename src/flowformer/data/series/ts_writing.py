"""Data sets in memory as `.ts` files, from which the same comes back to the last bit."""

import io
from pathlib import Path

import numpy as np

from flowformer.data.series.collection import load_ts_files
from flowformer.data.series.records import SeriesSplit, TimeSeriesData
from flowformer.files import write_atomically


def save_ts(data: TimeSeriesData, folder: str | Path) -> tuple[Path, Path | None]:
    """Write a data set as `NAME.ts` and, where it has a test split, `NAME_TEST.ts`.

    Files that hold the same already are left as they are.

    Args:
        data: the data set; its name is that of the files.
        folder: where they go; made when missing.

    Returns:
        Both files; None in place of a test split that there is not.

    Raises:
        FileExistsError: a file of that name holds something else.
        ValueError: the name is none of a file, or a class has a name that the format cannot hold,
            as it can hold no groups and, here, no numbers to predict.

    Examples:
        >>> import numpy as np
        >>> from flowformer.data import from_arrays, load_ts_files
        >>> from flowformer.data.series.ts_writing import save_ts
        >>> data = from_arrays(np.random.rand(6, 2, 9), ["up", "down"] * 3, name="steps")
        >>> train, _ = save_ts(data, "data")
        >>> np.array_equal(load_ts_files(train).train.series, data.train.series)
        True
    """
    if Path(data.name).name != data.name or data.name[:1] in ("", "."):
        raise ValueError(f"expected a name that a file can have, got {data.name!r}")
    if data.train.groups is not None or not data.classes:
        raise ValueError(
            f"expected classes and no groups, which a .ts file written here can hold, got those of "
            f"{data.name}: flowformer compare takes tables with both (--data.train-file)"
        )
    for name in data.classes:
        if " ".join(name.split()) != name or ":" in name or name.casefold() in ("", "?", "nan"):
            raise ValueError(f"expected names of classes that a .ts file can hold, got {name!r}")
    train, test = Path(folder, f"{data.name}.ts"), None
    _write(train, _to_text(data.train, data))
    if data.test is not None:
        test = Path(folder, f"{data.name}_TEST.ts")
        _write(test, _to_text(data.test, data))
    _check(data, load_ts_files(train, test))
    return train, test


def _write(path: Path, text: str) -> None:
    if path.exists():
        if path.read_bytes() == text.encode():
            return
        raise FileExistsError(f"{path} holds other series: choose another folder")
    write_atomically(path, text)


def _to_text(split: SeriesSplit, data: TimeSeriesData) -> str:
    text = io.StringIO()
    text.write(f"@problemName {data.name}\n@univariate {str(data.channels == 1).lower()}\n")
    text.write(f"@dimensions {data.channels}\n@equalLength {str(_equal(split)).lower()}\n")
    text.write(f"@classLabel true {' '.join(data.classes)}\n@data\n")
    for series, label in zip(split.series, split.labels, strict=True):
        # The shortest digits that give back the very number.
        channels = (",".join(map(repr, channel.tolist())) for channel in series)
        text.write(":".join([*channels, data.classes[label]]) + "\n")
    return text.getvalue()


def _equal(split: SeriesSplit) -> bool:
    return len(set(split.lengths.tolist())) == 1


def _check(data: TimeSeriesData, found: TimeSeriesData) -> None:
    """Refuse what does not come back as it went: the names of classes are words there."""
    for ours, theirs in ((data.train, found.train), (data.test, found.test)):
        same = found.classes == data.classes and (
            ours is None or (theirs is not None and np.array_equal(ours.labels, theirs.labels))
        )
        if not same:
            named = ", ".join(data.classes)
            raise ValueError(f"expected names of classes that a .ts file tells apart, got {named}")
