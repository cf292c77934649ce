"""Pairs of papers, one of which may cite the other: Long Range Arena's Retrieval."""

from collections.abc import Iterator
from pathlib import Path

from flowformer.data.sequences.byte_texts import Case, from_texts
from flowformer.data.sequences.records import SequenceData

RETRIEVAL_BYTES = 4_000  # of a document, in LRA's configuration

_FILES = {
    "train": "new_aan_pairs.train.tsv",
    "validation": "new_aan_pairs.eval.tsv",
    "test": "new_aan_pairs.test.tsv",
}
_COLUMNS = ("label", "paper1_id", "paper2_id", "text1", "text2")
_CLASSES = ("unrelated", "cites")


def read_aan(folder: Path, *, max_length: int | None = RETRIEVAL_BYTES) -> SequenceData:
    """Reads the pairs of the ACL Anthology Network from Long Range Arena's release.

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
    return from_texts("aan", source, _CLASSES, parts, max_length=max_length)


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
