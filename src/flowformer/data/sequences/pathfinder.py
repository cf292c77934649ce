"""Pathfinder as a data set: does a dashed path join the two dots of a picture?

The task of the Long Range Arena (Tay et al., 2021), after Linsley et al., 2018, with pictures that
are drawn here: see `flowformer.data.sequences.pathfinder_drawing`.

The release's folder `pathfinder32/curv_contour_length_14/` has the pictures `imgs/0/sample_0.png` …
and, despite their names, text files `metadata/0.npy` … with a line a picture: its folder, its file,
its number, its label, and settings of the program that drew it, of which none is needed here.
"""

import warnings
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from flowformer.data.options import SequenceOptions
from flowformer.data.parallel import Workers
from flowformer.data.sequences.pathfinder_drawing import check_kind, draw_case
from flowformer.data.sequences.records import (
    BYTE_VOCAB,
    GENERATED_PARTS,
    SequenceData,
    SequenceSet,
    SequenceSplit,
    folder_of,
    sizes_of,
)
from flowformer.machine import library
from flowformer.progress import working

PATHFINDER_CLASSES = ("not connected", "connected")
PATHFINDER_SIZES = {"train": 160_000, "validation": 20_000, "test": 20_000}  # LRA's

_BLOCK = 100  # pictures that one job draws


def generate_pathfinder(
    *,
    sizes: Mapping[str, int] = PATHFINDER_SIZES,
    size: int = 32,
    difficulty: str = "easy",
    seed: int = 0,
    workers: int = 1,
) -> SequenceData:
    """Draw the data set.

    A case follows from the seed, the name of its part and its number alone; half of each part are
    positive. It is not LRA's release: the pictures are drawn by another program, without its single
    dashes, and with less to distract where paths that keep their distance leave no room for it.

    Args:
        sizes: cases of each part.
        size: height and width of a picture: 32, 64, 128 or 256.
        difficulty: "easy", "medium" or "hard": 6, 9 or 14 dashes in a long path.
        seed: seed of everything.
        workers: processes; see `flowformer.data.parallel.Workers`.

    Returns:
        The grey values of each picture row by row, as token ids int16 [size²] of value + 1, below
        257; labels 0, not connected, and 1, connected.

    Raises:
        ValueError: another size or difficulty, or a part without cases.
    """
    check_kind(size, difficulty)
    for part, cases in sizes.items():
        if cases < 1:
            raise ValueError(f"expected at least 1 case of {part}, got {cases}")
    splits: dict[str, SequenceSplit] = {}
    with Workers(workers) as pool:
        for part, cases in sizes.items():
            draw = partial(_block, part=part, seed=seed, size=size, difficulty=difficulty)
            ranges = ((begin, min(begin + _BLOCK, cases)) for begin in range(0, cases, _BLOCK))
            pictures = np.empty((cases, size, size), np.uint8)
            labels = np.empty(cases, int)
            with working(f"drawing the {part} part", total=cases, unit="cases") as work:
                for some, their in pool.map(draw, ranges):
                    done = work.done + len(some)
                    pictures[work.done : done], labels[work.done : done] = some, their
                    work.reach(done)
            splits[part] = SequenceSplit.of_pictures(pictures, labels)
    return pathfinder_data(
        f"generated, seed {seed}, {size} × {size}, {difficulty}", splits, size=size
    )


def pathfinder_data(source: str, splits: Mapping[str, SequenceSplit], *, size: int) -> SequenceData:
    """Return the set of these parts."""
    return SequenceData(
        name=f"pathfinder{size}",
        source=source,
        classes=PATHFINDER_CLASSES,
        vocab_size=BYTE_VOCAB,
        splits=splits,
        picture=(size, size),
    )


def _block(
    numbers: tuple[int, int], *, part: str, seed: int, size: int, difficulty: str
) -> tuple[np.ndarray, np.ndarray]:
    cases = [
        draw_case(number, part=part, seed=seed, size=size, difficulty=difficulty)
        for number in range(*numbers)
    ]
    return np.stack([case.picture for case in cases]), np.array([case.label for case in cases])


_TENTHS = (8, 1, 1)  # LRA's parts


def read_pathfinder(folder: str | Path) -> SequenceData:
    """Read the pictures of one size and difficulty.

    The parts are LRA's: the first 80 % for training, and 10 % each for validation and test, in the
    order of the metadata by number. (LRA's own order is that of a shuffle by TensorFlow.) The
    release has a picture or two without a byte, which LRA leaves out, and so do we.

    Args:
        folder: with `imgs` and `metadata`.

    Returns:
        Token ids int16 [size²] of grey value + 1; labels 0, not connected, and 1, connected. How
        many pictures were empty is said in `source`.

    Raises:
        FileNotFoundError: there are no metadata, or a picture that they name is missing.
        ValueError: a line or a picture is damaged, or has another size than the first; the message
            names it.
        ImportError: Pillow is missing.
    """
    folder = Path(folder)
    rows = list(_rows(folder))
    full = [row for row in rows if row.path.stat().st_size]
    if not full:
        raise ValueError(f"expected pictures in {folder}, got {len(rows)} empty ones")
    size = len(_read_picture(full[0]))
    pictures = np.empty((len(full), size, size), np.uint8)
    for place, row in zip(pictures, full, strict=True):
        picture = _read_picture(row)
        if picture.shape != place.shape:
            raise ValueError(
                f"{row.path}: expected {size} × {size} pixels, as the first picture has, "
                f"got {picture.shape[1]} × {picture.shape[0]}"
            )
        place[:] = picture
    labels = np.array([row.label for row in full])
    bounds = _bounds(len(full))
    return pathfinder_data(
        f"Long Range Arena's files in {folder}, {len(rows) - len(full)} empty pictures left out",
        {
            part: SequenceSplit.of_pictures(pictures[begin:end], labels[begin:end])
            for part, begin, end in zip(GENERATED_PARTS, bounds, bounds[1:], strict=False)
        },
        size=size,
    )


class _Row(NamedTuple):
    path: Path
    label: int
    where: str


def _rows(folder: Path) -> Iterator[_Row]:
    files = sorted(
        (path for path in (folder / "metadata").glob("*.npy") if path.stem.isdecimal()),
        key=lambda path: int(path.stem),
    )
    if not files:
        raise FileNotFoundError(f"expected metadata/0.npy and so on in {folder}, found none")
    for file in files:
        for line, text in enumerate(_text(file).splitlines(), start=1):
            where = f"{file}, line {line}"
            columns = text.split()
            if len(columns) < 4 or columns[3] not in ("0", "1"):
                raise ValueError(
                    f"{where}: expected a folder, a file, a number, a label 0 or 1, and more, "
                    f"got {text[:60]!r}"
                )
            path = folder / columns[0] / columns[1]
            if not path.is_file():
                raise FileNotFoundError(f"{where}: expected the picture {path}, found none")
            yield _Row(path, int(columns[3]), where)


def _text(file: Path) -> str:
    try:
        return file.read_text()
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: expected lines of text, got other bytes") from error


def read_grey(path: Path) -> UInt8[np.ndarray, "h w"]:
    """Read the grey values of a picture.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or no picture.
        ImportError: Pillow is missing.
    """
    pillow = library("PIL.Image", "for Pathfinder's pictures", extra="arena", package="pillow")
    try:
        with warnings.catch_warnings():
            # Of a size between Pillow's bound and twice that; above, it refuses.
            warnings.simplefilter("ignore", pillow.DecompressionBombWarning)
            with pillow.open(path) as image:
                return np.asarray(image.convert("L"))
    except FileNotFoundError:
        raise
    except Exception as error:  # Pillow's plugins raise whatever their parts do
        raise ValueError(f"{path}: expected a picture, got a damaged file ({error})") from error


def _read_picture(row: _Row) -> np.ndarray:
    picture = read_grey(row.path)
    if picture.shape[0] != picture.shape[1]:
        raise ValueError(
            f"{row.path}: expected as many rows as columns, "
            f"got {picture.shape[1]} × {picture.shape[0]} pixels"
        )
    return picture


def _bounds(count: int) -> list[int]:
    """Return where the parts begin and end."""
    return [count * tenths // 10 for tenths in np.cumsum([0, *_TENTHS]).tolist()]


def _read_of_size(options: SequenceOptions, *, size: int) -> SequenceData:
    folder = folder_of(options)
    data = read_pathfinder(folder)
    if data.picture != (size, size):
        raise ValueError(
            f"{folder}: expected pictures of {size} × {size} pixels, got {data.picture}"
        )
    return data


def _generate(options: SequenceOptions, workers: int, *, size: int) -> SequenceData:
    return generate_pathfinder(
        sizes=sizes_of(options),
        size=size,
        difficulty=options.difficulty or "easy",
        seed=options.seed,
        workers=workers,
    )


PATHFINDERS = tuple(
    SequenceSet(
        name=f"pathfinder{size}",
        description=f"{size} × {size} pictures: does a dashed path join the two dots?",
        source="drawn; with a folder, the release's, with imgs and metadata",
        defaults={
            "folder": None,
            "difficulty": "easy",
            "sizes": tuple(PATHFINDER_SIZES.values()),
            "seed": 0,
        },
        read=partial(_read_of_size, size=size),
        generate=partial(_generate, size=size),
        files=("metadata/*", "imgs/*/*"),
    )
    for size in (32, 128)
)
