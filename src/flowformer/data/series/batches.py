"""From a split to batches of tensors: the data set, its order in an epoch, and padding."""

from collections.abc import Sequence

import torch
from jaxtyping import Float32
from torch import Tensor
from torch.utils.data import Dataset

from flowformer.data.series.preprocessing import Preprocessing
from flowformer.data.series.records import SeriesSplit


class SeriesDataset(Dataset[tuple[Tensor, int]]):
    """The series of a split, preprocessed once and held in memory.

    An item is the series, float32 [time, channels], and its label.
    """

    def __init__(self, split: SeriesSplit, preprocessing: Preprocessing) -> None:
        """Preprocess every series.

        Args:
            split: The split.
            preprocessing: Fitted on the training split.

        Raises:
            ValueError: What `Preprocessing.apply` raises, naming the series as `split.place` does.
        """
        self.series = [
            torch.from_numpy(preprocessing.apply(series, name=split.place(index)))
            for index, series in enumerate(split.series)
        ]
        self.labels = split.labels.tolist()

    def __len__(self) -> int:
        """Number of series."""
        return len(self.series)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """The series at a place, and its label."""
        return self.series[index], self.labels[index]


def collate(
    batch: Sequence[tuple[Float32[Tensor, "_ c"], int]], pad_to: int | None = None
) -> dict[str, Tensor]:
    """Pad series with zeros at their end and stack them.

    Args:
        batch: Series and labels, as `SeriesDataset` gives them.
        pad_to: The length of the result; by default that of the longest series in the batch.

    Returns:
        `inputs` float32 [b, t, c], `attention_mask` bool [b, t] with True at real time steps, and
        `labels` int64 [b].

    Raises:
        ValueError: A series is longer than `pad_to`.
    """
    series, labels = zip(*batch, strict=True)
    lengths = torch.tensor([len(one) for one in series])
    longest = int(lengths.max())
    length = longest if pad_to is None else pad_to
    if longest > length:
        raise ValueError(
            f"expected series of at most {length} time steps, got one of {longest}: pad to a "
            "larger length and build the model with it (max_length), or shorten the series"
        )
    inputs = torch.zeros(len(series), length, series[0].shape[1])
    for row, one in zip(inputs, series, strict=True):
        row[: len(one)] = one
    return {
        "inputs": inputs,
        "attention_mask": torch.arange(length) < lengths[:, None],
        "labels": torch.tensor(labels),
    }
