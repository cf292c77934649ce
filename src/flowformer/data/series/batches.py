"""From series to batches: normalisation and missing values, fitted on training data; padding."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, get_args

import numpy as np
import torch
from jaxtyping import Float32, Float64
from torch import Tensor
from torch.utils.data import Dataset

from flowformer.data.arrays import centred_only_where_constant
from flowformer.data.options import MissingPolicy
from flowformer.data.series.records import SeriesSplit

MISSING_POLICIES: tuple[MissingPolicy, ...] = get_args(MissingPolicy)


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """Fill missing values, then z = (x - mean) / std in each channel.

    Attributes:
        mean: mean of each channel over all time steps of all training series, missing values left
            out.
        std: standard deviation likewise, of the population (divided by the count); 1 for a channel
            that is constant.
        missing: what becomes of a missing value. "error" raises. "mean" puts the training mean, so
            z = 0. "interpolate" is linear in time between the neighbours in the same series, holds
            the first and the last value at the ends, and puts the training mean where a series has
            no value in a channel.
        target: mean and standard deviation of the numbers to predict, which are scaled likewise;
            None where labels are classes.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    missing: MissingPolicy = "error"
    target: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        """Refuse statistics that no data gives, as from a damaged file.

        Raises:
            ValueError: an unknown policy, no channel, different numbers of means and stds, a number
                that is not finite, or a std that is not positive.
        """
        if self.missing not in MISSING_POLICIES:
            raise ValueError(
                f"expected missing to be one of {', '.join(MISSING_POLICIES)}, got {self.missing!r}"
            )
        if not self.mean or len(self.mean) != len(self.std):
            raise ValueError(
                f"expected a mean and a std for each channel, got {len(self.mean)} means and "
                f"{len(self.std)} stds"
            )
        if not (np.isfinite(self.mean + self.std).all() and min(self.std) > 0):
            raise ValueError(
                f"expected finite means and positive stds, got mean={self.mean} and std={self.std}"
            )
        target = (0.0, 1.0) if self.target is None else self.target
        if not (len(target) == 2 and np.isfinite(target).all() and target[1] > 0):
            raise ValueError(
                f"expected a finite mean and a positive std of the numbers, got {target}"
            )

    @classmethod
    def fit(
        cls, split: SeriesSplit, *, missing: MissingPolicy = "error", regression: bool = False
    ) -> "Preprocessing":
        """Take the statistics from a split: the training split, and no other.

        Args:
            split: the training split.
            missing: the policy for missing values, here and in `apply`.
            regression: whether labels are numbers to predict.

        Raises:
            ValueError: a value is missing and the policy is "error", a channel has no value in the
                whole split, or the values are too large for float64 statistics.
        """
        if missing == "error":
            require_complete(split)
        count = np.sum([np.sum(~np.isnan(series), axis=1) for series in split.series], axis=0)
        if not count.all():
            raise ValueError(
                f"{split.name}: expected at least one value in channel {count.argmin()}, "
                "got only missing ones"
            )
        mean = np.sum([np.nansum(series, axis=1) for series in split.series], axis=0) / count
        # Two passes: a sum of squares loses the variance of channels far from zero.
        squares = [np.nansum((series - mean[:, None]) ** 2, axis=1) for series in split.series]
        std = np.sqrt(np.sum(squares, axis=0) / count)
        low = np.fmin.reduce([np.fmin.reduce(series, axis=1) for series in split.series])
        high = np.fmax.reduce([np.fmax.reduce(series, axis=1) for series in split.series])
        std = centred_only_where_constant(std, low, high)
        target = None
        if regression:
            labels = split.labels.astype(np.float64)[None]
            spread = centred_only_where_constant(labels.std(1), labels.min(1), labels.max(1))
            target = (float(labels.mean()), float(spread[0]))
        return cls(
            mean=tuple(mean.tolist()), std=tuple(std.tolist()), missing=missing, target=target
        )

    def apply(
        self, series: Float64[np.ndarray, "channels time"], *, name: str = "series"
    ) -> Float32[np.ndarray, "time channels"]:
        """Fill and normalise one series, and turn it to time first, as models read it.

        Args:
            series: the series.
            name: what errors call it.

        Raises:
            ValueError: the series has other channels than the training data, misses a value and the
                policy is "error", or lies too far from the training data for float32.
        """
        if len(series) != len(self.mean):
            raise ValueError(
                f"{name}: expected {len(self.mean)} channels, as in the training data, "
                f"got {len(series)}"
            )
        mean, std = np.array(self.mean)[:, None], np.array(self.std)[:, None]
        # An infinite z would make every probability NaN, and NaN has an argmax.
        with np.errstate(over="ignore"):
            scores = ((self._fill(series, name) - mean) / std).T.astype(np.float32, order="C")
        infinite = np.argwhere(np.isinf(scores))
        if len(infinite):
            time, channel = infinite[0]
            raise ValueError(
                f"{name}, channel {channel}, time {time}: expected a value whose z-score float32 "
                f"holds, got {series[channel, time]} (the training data has mean "
                f"{self.mean[channel]:g} and std {self.std[channel]:g})"
            )
        return scores

    def scale(self, numbers: Float64[np.ndarray, " n"]) -> Float64[np.ndarray, " n"]:
        """Return numbers to predict as a model learns them."""
        mean, std = self.target or (0.0, 1.0)
        return (numbers - mean) / std

    def unscale(self, predictions: Float64[np.ndarray, " n"]) -> Float64[np.ndarray, " n"]:
        """Return what a model predicts as numbers like those it was given."""
        mean, std = self.target or (0.0, 1.0)
        return mean + std * predictions

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON can hold them; `from_dict` gives an equal object back."""
        plain = {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(self).items()}
        if self.target is None:
            del plain["target"]
        return plain

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "Preprocessing":
        """Return the inverse of `to_dict`.

        Args:
            fields: what `to_dict` gave, as a rule through a JSON file.

        Raises:
            ValueError: a field is missing or too many, or the statistics are not valid.
        """
        expected = {"mean", "std", "missing"}
        if set(fields) - {"target"} != expected:
            raise ValueError(f"expected the fields {sorted(expected)}, got {sorted(fields)}")
        numbers = {
            name: tuple(map(float, values)) for name, values in fields.items() if name != "missing"
        }
        return cls(missing=fields["missing"], **numbers)

    def _fill(
        self, series: Float64[np.ndarray, "channels time"], name: str
    ) -> Float64[np.ndarray, "channels time"]:
        gaps = np.isnan(series)
        if not gaps.any():
            return series
        if self.missing == "error":
            _refuse_missing(series, name)
        filled = np.where(gaps, np.array(self.mean)[:, None], series)
        if self.missing == "interpolate":
            time = np.arange(series.shape[1])
            for row, gap in zip(filled, gaps, strict=True):
                if not gap.all():
                    row[gap] = np.interp(time[gap], time[~gap], row[~gap])
        return filled


def require_complete(split: SeriesSplit) -> None:
    """Refuse a split with missing values; nothing else of it is looked at.

    Args:
        split: the split.

    Raises:
        ValueError: a value is missing; the message says where.
    """
    for index, series in enumerate(split.series):
        _refuse_missing(series, split.place(index))


def _refuse_missing(series: Float64[np.ndarray, "channels time"], name: str) -> None:
    gaps = np.argwhere(np.isnan(series))
    if len(gaps):
        channel, time = gaps[0]
        raise ValueError(
            f"{name}, channel {channel}, time {time}: expected a value, got a missing one: "
            "data.missing (missing=... in Python) is 'error', train with 'interpolate' or 'mean' "
            "to fill it"
        )


class SeriesDataset(Dataset[tuple[Tensor, int | float]]):
    """The series of a split, preprocessed once and held in memory.

    An item is the series, float32 [time, channels], and its label: the index of a class, or the
    number to predict, scaled.
    """

    def __init__(self, split: SeriesSplit, preprocessing: Preprocessing) -> None:
        """Preprocess every series.

        Args:
            split: the split.
            preprocessing: fitted on the training split.

        Raises:
            ValueError: what `Preprocessing.apply` raises, naming the series as `split.place` does.
        """
        self.series = [
            torch.from_numpy(preprocessing.apply(series, name=split.place(index)))
            for index, series in enumerate(split.series)
        ]
        labels = split.labels
        if preprocessing.target is not None:
            labels = preprocessing.scale(labels.astype(np.float64))
        self.labels = labels.tolist()

    def __len__(self) -> int:
        return len(self.series)

    def __getitem__(self, index: int) -> tuple[Tensor, int | float]:
        return self.series[index], self.labels[index]


def collate(
    batch: Sequence[tuple[Float32[Tensor, "_ c"], int | float]], pad_to: int | None = None
) -> dict[str, Tensor]:
    """Pad series with zeros at their end and stack them.

    Args:
        batch: series and labels, as `SeriesDataset` gives them.
        pad_to: the length of the result; by default that of the longest series in the batch.

    Returns:
        `inputs` float32 [b, t, c], `attention_mask` bool [b, t] with True at real time steps, and
        `labels` [b], int64 of classes and float32 of numbers to predict.

    Raises:
        ValueError: a series is longer than `pad_to`.
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
