"""Cases of one's own to classify: lines of text, expressions, pairs, or a picture."""

from pathlib import Path

import numpy as np

from flowformer.data.sequences.listops_files import parse_listops
from flowformer.data.sequences.pathfinder_files import read_grey
from flowformer.data.sequences.records import BYTE_VOCAB, Sequences, SequenceSplit, byte_tokens


def read_cases(
    path: Path,
    *,
    vocab_size: int | None,
    paired: bool,
    picture: tuple[int, ...] | None,
    max_length: int,
) -> SequenceSplit:
    """Reads unlabelled cases; their labels are 0.

    Args:
        path: text with a case on each line, or an image.
        vocab_size: of the tokens: bytes, or those of ListOps.
        paired: whether a line is two documents with a tab between them.
        picture: height and width of a picture, where cases are pictures.
        max_length: of the longest sequence.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: nothing is in it, a line is malformed or longer than `max_length`, or a picture
            is damaged or of another size; the message names file and line.
    """
    if picture is not None:
        pixels = read_grey(path)
        if pixels.shape != tuple(picture):
            raise ValueError(
                f"{path}: expected {picture[1]} × {picture[0]} pixels, got "
                f"{pixels.shape[1]} × {pixels.shape[0]}"
            )
        return SequenceSplit.of_pictures(pixels[None], np.zeros(1, np.int64))
    columns: tuple[list[np.ndarray], ...] = ([], []) if paired else ([],)
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        where = f"{path}, line {number}"
        texts = line.split(b"\t") if paired else [line]
        if len(texts) != len(columns):
            raise ValueError(f"{where}: expected two texts with a tab between, got {len(texts)}")
        for column, text in zip(columns, texts, strict=True):
            tokens = _tokens(text, vocab_size, where)
            if not 1 <= len(tokens) <= max_length:
                raise ValueError(
                    f"{where}: expected 1 to {max_length} tokens, for which the run has room, got "
                    f"{len(tokens)}"
                )
            column.append(tokens)
    if not columns[0]:
        raise ValueError(f"{path}: expected at least one line, got none")
    first, *others = map(Sequences.of, columns)
    labels = np.zeros(len(first), np.int64)
    return SequenceSplit(first, labels, others[0] if others else None)


def _tokens(text: bytes, vocab_size: int | None, where: str) -> np.ndarray:
    if vocab_size == BYTE_VOCAB:
        return byte_tokens(np.frombuffer(text, np.uint8))
    try:
        return parse_listops(text)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
