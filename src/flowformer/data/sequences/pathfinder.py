"""Pathfinder as a data set: does a dashed path join the two dots of a picture?

The task of the Long Range Arena (Tay et al., 2021), after Linsley et al., 2018, with pictures that
are drawn here: see `flowformer.data.sequences.pathfinder_drawing`. The files of the release are
read by `flowformer.data.sequences.pathfinder_files`.
"""

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np

from flowformer.data.parallel import Workers
from flowformer.data.sequences.pathfinder_drawing import check_kind, draw_case
from flowformer.data.sequences.records import BYTE_VOCAB, SequenceData, SequenceSplit

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
    progress: Callable[[str, int], None] | None = None,
) -> SequenceData:
    """Draws the data set.

    A case follows from the seed, the name of its part and its number alone; half of each part are
    positive. It is not LRA's release: the pictures are drawn by another program, without its single
    dashes, and with less to distract where paths that keep their distance leave no room for it.

    Args:
        sizes: cases of each part.
        size: height and width of a picture: 32, 64, 128 or 256.
        difficulty: "easy", "medium" or "hard": 6, 9 or 14 dashes in a long path.
        seed: of everything.
        workers: processes; see `flowformer.data.parallel.Workers`.
        progress: called with a part and the number of cases that it has so far.

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
            done = 0
            for some, their in pool.map(draw, ranges):
                pictures[done : done + len(some)] = some
                labels[done : done + len(some)] = their
                done += len(some)
                if progress is not None:
                    progress(part, done)
            splits[part] = SequenceSplit.of_pictures(pictures, labels)
    return pathfinder_data(
        f"generated, seed {seed}, {size} × {size}, {difficulty}", splits, size=size
    )


def pathfinder_data(source: str, splits: Mapping[str, SequenceSplit], *, size: int) -> SequenceData:
    """The set of these parts."""
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
