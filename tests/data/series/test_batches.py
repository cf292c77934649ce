"""Data set, padding and the order of an epoch."""

import functools

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from flowformer.data import EpochSampler, Preprocessing, SeriesDataset, SeriesSplit, collate


def split_of_lengths(*lengths: int) -> SeriesSplit:
    rng = np.random.default_rng(0)
    return SeriesSplit(
        series=tuple(rng.normal(size=(2, length)) for length in lengths),
        labels=np.arange(len(lengths)),
        name="validation",
    )


def dataset_of_lengths(*lengths: int) -> SeriesDataset:
    split = split_of_lengths(*lengths)
    return SeriesDataset(split, Preprocessing.fit(split))


def test_an_item_is_the_preprocessed_series_and_its_label() -> None:
    split = split_of_lengths(4, 1, 6)
    fitted = Preprocessing.fit(split)
    dataset = SeriesDataset(split, fitted)
    assert len(dataset) == 3
    series, label = dataset[2]
    assert label == 2
    torch.testing.assert_close(series, torch.from_numpy(fitted.apply(split.series[2])))


def test_an_error_names_the_split_and_the_series() -> None:
    split = split_of_lengths(4, 1, 6)
    fitted = Preprocessing.fit(split)
    split.series[1][1, 0] = np.nan
    with pytest.raises(ValueError, match="validation, series 1, channel 1, time 0: expected"):
        SeriesDataset(split, fitted)


@pytest.mark.parametrize(("pad_to", "length"), [(None, 6), (6, 6), (9, 9)])
def test_collate_pads_with_zeros_at_the_end(pad_to: int | None, length: int) -> None:
    dataset = dataset_of_lengths(4, 1, 6)
    batch = collate([dataset[index] for index in range(3)], pad_to)
    assert batch["inputs"].shape == (3, length, 2)
    assert batch["inputs"].dtype == torch.float32
    assert batch["attention_mask"].dtype == torch.bool
    assert batch["attention_mask"].sum(1).tolist() == [4, 1, 6]
    assert batch["labels"].tolist() == [0, 1, 2]
    assert batch["labels"].dtype == torch.int64
    for row, mask, (series, _) in zip(
        batch["inputs"], batch["attention_mask"], (dataset[i] for i in range(3)), strict=True
    ):
        torch.testing.assert_close(row[mask], series, rtol=0, atol=0)
        assert not mask[len(series) :].any()
        assert not row[~mask].any()


def test_a_series_longer_than_pad_to_is_an_error_that_says_what_to_do() -> None:
    dataset = dataset_of_lengths(4, 7)
    with pytest.raises(ValueError, match=r"at most 6 time steps, got one of 7: .*max_length"):
        collate([dataset[0], dataset[1]], pad_to=6)


def test_a_loader_gives_every_series_once_an_epoch() -> None:
    dataset = dataset_of_lengths(4, 1, 6, 2, 3)
    loader = DataLoader(
        dataset,
        batch_size=2,
        sampler=EpochSampler(len(dataset), seed=0),
        collate_fn=functools.partial(collate, pad_to=8),
    )
    batches = list(loader)
    assert [batch["inputs"].shape for batch in batches] == [(2, 8, 2), (2, 8, 2), (1, 8, 2)]
    assert sorted(torch.cat([batch["labels"] for batch in batches]).tolist()) == [0, 1, 2, 3, 4]


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    orders = {}
    for seed, epoch in [(1, 2), (2, 1), (1, 3), (0, 3)]:
        sampler = EpochSampler(50, seed)
        list(sampler)  # an epoch given before leaves no trace
        sampler.set_epoch(epoch)
        orders[seed, epoch] = tuple(sampler)
        torch.manual_seed(0)
        assert tuple(sampler) == orders[seed, epoch]
    assert len(set(orders.values())) == 4
    assert all(sorted(order) == list(range(50)) for order in orders.values())
