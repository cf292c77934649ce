"""Texts as their bytes: the tokens of Long Range Arena's Text and Retrieval."""

from collections.abc import Iterable, Mapping

import numpy as np

from flowformer.data.sequences.records import (
    BYTE_VOCAB,
    SequenceData,
    Sequences,
    SequenceSplit,
    byte_tokens,
)

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
    """Makes a data set of texts: a token is a byte, id = byte + 1, as in Long Range Arena.

    Args:
        name: of the set.
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
