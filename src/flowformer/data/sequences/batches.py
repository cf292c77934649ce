"""From labelled sequences, or cases of one's own, to batches of tensors, padded at the right."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from flowformer.data.sequences.listops import parse_listops
from flowformer.data.sequences.pathfinder import read_grey
from flowformer.data.sequences.records import (
    BYTE_VOCAB,
    PADDING,
    Sequences,
    SequenceSplit,
    byte_tokens,
)

# A sequence, the second one of a pair, and the class.
TensorCase = tuple[Tensor, Tensor | None, int]


class LabelledSequences(Dataset[TensorCase]):
    """The cases of a part: tokens int64 [t], or features float32 [t, c], read when asked for."""

    def __init__(self, split: SequenceSplit) -> None:
        """Hold the part.

        Args:
            split: its sequences may lie on the disk.
        """
        self.split = split

    def __len__(self) -> int:
        """Return the number of cases."""
        return len(self.split)

    def __getitem__(self, index: int) -> TensorCase:
        """Return a case."""
        split = self.split
        other = None if split.others is None else _tensor(split.others[index])
        return _tensor(split.inputs[index]), other, int(split.labels[index])


def collate_sequences(batch: Sequence[TensorCase]) -> dict[str, Tensor]:
    """Pad sequences at their end, to the longest of the batch, and stack them.

    Args:
        batch: cases of `LabelledSequences`.

    Returns:
        `inputs` [b, t] or [b, t, c]; of pairs `first` [b, t1] and `second` [b, t2]; and `labels`
        int64 [b]. Tokens are filled up with 0, which is none of them; features come with a mask
        that is True at the real places: `attention_mask`, of pairs `first_mask` and `second_mask`.
    """
    ones, others, labels = zip(*batch, strict=True)
    if others[0] is None:
        padded = _padded(ones, "inputs", "attention_mask")
    else:
        padded = _padded(ones, "first", "first_mask") | _padded(others, "second", "second_mask")
    return {**padded, "labels": torch.tensor(labels)}


def _padded(sequences: Sequence[Tensor], name: str, mask_name: str) -> dict[str, Tensor]:
    padded = {name: pad_sequence(list(sequences), batch_first=True, padding_value=PADDING)}
    if sequences[0].ndim > 1:
        lengths = torch.tensor([len(one) for one in sequences])
        padded[mask_name] = torch.arange(padded[name].shape[1]) < lengths[:, None]
    return padded


def _tensor(values: Shaped[np.ndarray, "..."]) -> Tensor:
    return torch.from_numpy(values.astype(np.int64 if values.ndim == 1 else np.float32))


def read_cases(
    path: Path,
    *,
    vocab_size: int | None,
    paired: bool,
    picture: tuple[int, ...] | None,
    max_length: int,
) -> SequenceSplit:
    """Read unlabelled cases; their labels are 0.

    Args:
        path: text with a case on each line, or an image.
        vocab_size: size of the vocabulary: bytes, or those of ListOps.
        paired: whether a line is two documents with a tab between them.
        picture: height and width of a picture, where cases are pictures.
        max_length: length of the longest sequence.

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
