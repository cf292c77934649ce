"""From the parts of a set of sequences to batches of tensors, padded at the right."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from flowformer.data.sequences.records import PADDING, SequenceSplit

# A sequence, the second one of a pair, and the class.
Case = tuple[Tensor, Tensor | None, int]


class LabelledSequences(Dataset[Case]):
    """The cases of a part: tokens int64 [t], or features float32 [t, c], read when asked for."""

    def __init__(self, split: SequenceSplit) -> None:
        """Hold the part.

        Args:
            split: its sequences may lie on the disk.
        """
        self.split = split

    def __len__(self) -> int:
        """Number of cases."""
        return len(self.split)

    def __getitem__(self, index: int) -> Case:
        """A case."""
        split = self.split
        other = None if split.others is None else _tensor(split.others[index])
        return _tensor(split.inputs[index]), other, int(split.labels[index])


def collate_sequences(batch: Sequence[Case]) -> dict[str, Tensor]:
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
