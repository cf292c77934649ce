"""The files of ListOps as the Long Range Arena releases them, read strictly and written.

`basic_train.tsv`, `basic_val.tsv` and `basic_test.tsv` have a line `Source`, `Target` and then one
case a line: the expression in binary brackets, `( ( ( [MAX 4 ) 3 ) ] )`, a tab, and its value. The
round brackets say nothing that the others do not; LRA's own input pipeline drops them, too.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from flowformer.data.sequences.listops import LISTOPS_TOKENS, listops_data
from flowformer.data.sequences.records import PADDING, SequenceData, Sequences, SequenceSplit
from flowformer.files import atomic_file

_FILES = {
    "train": "basic_train.tsv",
    "validation": "basic_val.tsv",
    "test": "basic_test.tsv",
}
_HEADER = b"Source\tTarget"
_IDS = {token.encode(): PADDING + 1 + i for i, token in enumerate(LISTOPS_TOKENS)}
_END = _IDS[b"]"]


def read_listops(folder: str | Path) -> SequenceData:
    """Reads the three files of the release.

    Args:
        folder: where they are.

    Returns:
        Token ids uint8 [t] below 16, see `LISTOPS_TOKENS`; labels 0 to 9. Whether the labels are
        the values is another question: see `flowformer.data.sequences.listops.verify_listops`.

    Raises:
        FileNotFoundError: one of them is missing.
        ValueError: a file is not as the format has it; the message names it and the line.
    """
    folder = Path(folder)
    for name in _FILES.values():
        if not (folder / name).is_file():
            raise FileNotFoundError(f"expected {', '.join(_FILES.values())} in {folder}: no {name}")
    return listops_data(
        f"Long Range Arena's files in {folder}",
        {part: _read(folder / name) for part, name in _FILES.items()},
    )


def write_listops(data: SequenceData, folder: str | Path) -> None:
    """Writes the files that `read_listops` reads; each appears when it is whole.

    Raises:
        ValueError: the parts are not train, validation and test.
    """
    if set(data.splits) != set(_FILES):
        raise ValueError(f"expected the parts {', '.join(_FILES)}, got {', '.join(data.splits)}")
    for part, split in data.splits.items():
        with atomic_file(Path(folder) / _FILES[part]) as file:
            file.write(_HEADER + b"\r\n")
            for number, label in enumerate(split.labels.tolist()):
                source = _bracketed(split.inputs[number].tolist())
                file.write(f"{source}\t{label}\r\n".encode())


def _read(path: Path) -> SequenceSplit:
    tokens = bytearray()
    offsets, labels = [0], []
    for line, row in _rows(path):
        try:
            expression, label = _case(row)
        except ValueError as error:
            raise ValueError(f"{path}, line {line}: {error}") from error
        tokens += expression
        offsets.append(len(tokens))
        labels.append(label)
    if not labels:
        raise ValueError(f"{path}: expected cases after the first line, got the end: truncated?")
    inputs = Sequences(np.frombuffer(bytes(tokens), np.uint8), np.array(offsets))
    return SequenceSplit(inputs, np.array(labels))


def _rows(path: Path) -> Iterator[tuple[int, bytes]]:
    with path.open("rb") as file:
        for line, text in enumerate(file, start=1):
            row = text.rstrip(b"\r\n")
            if line > 1:
                yield line, row
            elif row != _HEADER:
                raise ValueError(
                    f"{path}, line 1: expected {_HEADER.decode()!r}, got {_excerpt(row)!r}"
                )


def _case(row: bytes) -> tuple[bytes, int]:
    source, tab, target = row.partition(b"\t")
    if not tab:
        raise ValueError(f"expected a tab and a target after {_excerpt(source)!r}: truncated?")
    if target not in _IDS or not target.isdigit():
        raise ValueError(f"expected a target from 0 to 9, got {_excerpt(target)!r}")
    return parse_listops(source).tobytes(), int(target)


def parse_listops(source: bytes) -> UInt8[np.ndarray, " t"]:
    """Reads an expression as the release writes it: its tokens, brackets that only group left out.

    Raises:
        ValueError: an unknown token, or not one whole expression.
    """
    words = source.translate(None, b"()").split()
    try:
        tokens = np.array([_IDS[word] for word in words], np.uint8)
    except KeyError as error:
        known = " ".join(LISTOPS_TOKENS)
        raise ValueError(f"expected one of {known}, got {_excerpt(error.args[0])!r}") from None
    _require_whole(tokens)
    return tokens


def _require_whole(tokens: np.ndarray) -> None:
    """Refuses what is not one operation with all its ends."""
    opens, ends = tokens < _END, tokens == _END
    depth = np.cumsum(opens.astype(int) - ends)
    if not len(tokens) or not opens[0]:
        raise ValueError("expected an expression that begins with an operator")
    if (depth[:-1] < 1).any():
        raise ValueError(f"expected one expression, got more after token {np.argmin(depth > 0)}")
    if depth[-1]:
        raise ValueError(f"expected the end of the expression, {depth[-1]} more ]: truncated?")
    if (opens[:-1] & ends[1:]).any():
        raise ValueError("expected an operator with arguments, got one without")


def _excerpt(text: bytes) -> str:
    shown = text.decode(errors="replace")
    return shown if len(shown) <= 40 else f"{shown[:40]}…"


def _bracketed(tokens: list[int]) -> str:
    """The expression in LRA's binary brackets: `( ( ( [MAX 4 ) 3 ) ] )` for `[MAX 4 3 ]`."""
    words: list[str] = []
    open_at: list[int] = []  # where the operators stand that have no end yet
    counts: list[int] = []  # how many brackets open before each of them
    for token in tokens:
        word = LISTOPS_TOKENS[token - PADDING - 1]
        if word.startswith("["):
            open_at.append(len(words))
            counts.append(1)
            words.append(word)
            continue
        words.append(word)
        if word == "]":
            start = open_at.pop()
            words[start] = "( " * counts.pop() + words[start]
            words.append(")")
        if counts:
            counts[-1] += 1
            words.append(")")
    return " ".join(words)
