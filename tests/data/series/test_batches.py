"""Series are normalised by the training data, and padded."""

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torch.utils.data import DataLoader

from flowformer.data import (
    MISSING_POLICIES,
    EpochSampler,
    Preprocessing,
    SeriesDataset,
    SeriesSplit,
    TimeSeriesData,
    collate,
    from_arrays,
    load_ts_files,
    stratified_split,
)

NAN = float("nan")


def split_of(*series: Any, name: str = "train") -> SeriesSplit:
    collection = tuple(np.array(one, dtype=np.float64) for one in series)
    return SeriesSplit(
        series=collection, labels=np.zeros(len(collection), dtype=np.int64), name=name
    )


def test_statistics_are_those_of_all_time_steps_of_all_series() -> None:
    fitted = Preprocessing.fit(split_of([[1, 2, 3], [0, 0, 1]], [[6], [1]]))
    np.testing.assert_allclose(fitted.mean, [3, 0.5], rtol=1e-15)
    np.testing.assert_allclose(fitted.std, [np.sqrt(14 / 4), 0.5], rtol=1e-15)


def test_statistics_equal_scikit_learns_standard_scaler() -> None:
    from sklearn.preprocessing import StandardScaler

    rng = np.random.default_rng(0)
    series = [rng.normal(7, 3, size=(4, length)) for length in (1, 63, 500)]
    scaler: Any = StandardScaler().fit(np.concatenate(series, axis=1).T)
    fitted = Preprocessing.fit(split_of(*series))
    np.testing.assert_allclose(fitted.mean, scaler.mean_, rtol=1e-12)
    np.testing.assert_allclose(fitted.std, scaler.scale_, rtol=1e-12)
    expected = scaler.transform(series[1].T)
    np.testing.assert_allclose(fitted.apply(series[1]), expected, rtol=1e-6, atol=1e-6)


def test_a_result_is_time_first_float32_in_one_piece() -> None:
    split = split_of([[1, 2, 3], [4, 5, 7]])
    result = Preprocessing.fit(split).apply(split.series[0])
    assert (result.shape, result.dtype) == ((3, 2), np.float32)
    assert result.flags.c_contiguous


def test_a_constant_channel_becomes_zero_not_noise() -> None:
    # The mean of many 0.1 is not 0.1: dividing by the std that the rounding leaves would give ±1.
    split = split_of(np.full((1, 1000), 0.1), np.full((1, 7), 0.1))
    fitted = Preprocessing.fit(split)
    assert fitted.std == (1.0,)
    assert np.abs(fitted.apply(split.series[0])).max() < 1e-12


def test_a_channel_far_from_zero_keeps_its_spread() -> None:
    fitted = Preprocessing.fit(split_of([[1e9, 1e9 + 1, 1e9 + 2, 1e9 + 3]]))
    np.testing.assert_allclose(fitted.std, [np.sqrt(1.25)], rtol=1e-12)


def test_missing_values_stay_out_of_the_statistics() -> None:
    whole = Preprocessing.fit(split_of([[1, 2, 6]], [[5]]), missing="mean")
    gaps = Preprocessing.fit(split_of([[1, NAN, 2, 6]], [[NAN]], [[NAN, 5]]), missing="mean")
    assert gaps == whole


@pytest.mark.parametrize(
    ("missing", "expected"),
    [
        ("mean", [[20, 0, 20, 20, 6, 20], [30, 30, 30, 30, 30, 30], [1, 2, 3, 4, 5, 6]]),
        ("interpolate", [[0, 0, 2, 4, 6, 6], [30, 30, 30, 30, 30, 30], [1, 2, 3, 4, 5, 6]]),
    ],
)
def test_missing_values_are_filled_as_the_policy_says(missing: Any, expected: list) -> None:
    policy = Preprocessing(mean=(20.0, 30.0, 40.0), std=(1.0, 1.0, 1.0), missing=missing)
    series = np.array([[NAN, 0, NAN, NAN, 6, NAN], [NAN] * 6, [1, 2, 3, 4, 5, 6]])
    before = series.copy()
    result = policy.apply(series)
    np.testing.assert_allclose(result.T + np.array([[20], [30], [40]]), expected, atol=1e-5)
    np.testing.assert_array_equal(series, before)  # the caller's array is left alone


def test_by_default_a_missing_value_is_an_error_naming_its_place() -> None:
    broken = split_of([[1, 2], [3, 4]], [[1, 2], [3, NAN]])
    with pytest.raises(ValueError, match="train, series 1, channel 1, time 1: expected a value"):
        Preprocessing.fit(broken)
    fitted = Preprocessing.fit(split_of([[1, 2], [3, 4]]))
    with pytest.raises(ValueError, match=r"test, series 7, channel 1, time 1: .*'interpolate'"):
        fitted.apply(broken.series[1], name="test, series 7")


@pytest.mark.parametrize("missing", ["mean", "interpolate"])
def test_a_channel_without_any_value_is_an_error(missing: Any) -> None:
    with pytest.raises(ValueError, match="train: expected at least one value in channel 1"):
        Preprocessing.fit(split_of([[1, 2], [NAN, NAN]], [[3], [NAN]]), missing=missing)


@pytest.mark.parametrize("value", [1e60, -1.7e308])
def test_a_value_beyond_float32_is_an_error_naming_its_place(value: float) -> None:
    fitted = Preprocessing.fit(split_of([[1, 2], [3, 5]]))
    with pytest.raises(ValueError, match=r"test, series 4, channel 1, time 2: .*mean 4 and std 1"):
        fitted.apply(np.array([[1, 2, 3], [3, 4, value]]), name="test, series 4")


def test_another_number_of_channels_is_an_error() -> None:
    fitted = Preprocessing.fit(split_of([[1, 2], [3, 4]]))
    with pytest.raises(ValueError, match=r"test, series 3: expected 2 channels, .* got 1"):
        fitted.apply(np.zeros((1, 5)), name="test, series 3")


@given(
    values=arrays.arrays(np.float64, (2, 9), elements=st.floats(-1e6, 1e6, width=32)),
    gaps=arrays.arrays(np.bool_, (2, 9)),
    cut=st.integers(1, 8),
    missing=st.sampled_from(MISSING_POLICIES[1:]),
)
def test_training_values_come_out_with_mean_0_and_std_1_and_nothing_missing(
    values: np.ndarray, gaps: np.ndarray, cut: int, missing: Any
) -> None:
    gaps[:, 0] = False
    values = np.where(gaps, NAN, values)
    split = split_of(values[:, :cut], values[:, cut:])
    fitted = Preprocessing.fit(split, missing=missing)
    result = np.concatenate([fitted.apply(series) for series in split.series]).T
    assert np.isfinite(result).all()
    for channel, gap, row in zip(result.astype(np.float64), gaps, values, strict=True):
        observed = channel[~gap]
        assert abs(observed.mean()) < 1e-5
        constant = np.nanmax(row) == np.nanmin(row)
        assert abs(observed.std() - (0 if constant else 1)) < 1e-5


@pytest.mark.parametrize("missing", MISSING_POLICIES)
def test_json_gives_an_equal_object_back(missing: Any) -> None:
    fitted = Preprocessing.fit(split_of(np.random.default_rng(0).normal(size=(5, 9))))
    fitted = Preprocessing(mean=fitted.mean, std=fitted.std, missing=missing)
    assert Preprocessing.from_dict(json.loads(json.dumps(fitted.to_dict()))) == fitted


GOOD = {"mean": [0.0], "std": [1.0], "missing": "error"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mean": [0.0], "std": [1.0]}, r"the fields \['mean', 'missing', 'std'\], got"),
        (GOOD | {"extra": 1}, r"got \['extra', 'mean', 'missing', 'std'\]"),
        (GOOD | {"missing": "drop"}, "one of error, interpolate, mean, got 'drop'"),
        (GOOD | {"std": [1.0, 1.0]}, "got 1 means and 2 stds"),
        (GOOD | {"mean": [], "std": []}, "got 0 means and 0 stds"),
        (GOOD | {"std": [0.0]}, r"positive stds, got .*std=\(0.0,\)"),
        (GOOD | {"mean": [NAN]}, "finite means"),
    ],
    ids=["too-few", "too-many", "policy", "lengths", "empty", "zero-std", "nan"],
)
@pytest.mark.usefixtures("shape_checks_off")  # in tests the type checks would come first
def test_a_damaged_record_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Preprocessing.from_dict(fields)


def data_with_test(scale: float) -> TimeSeriesData:
    rng = np.random.default_rng(0)
    train, test = rng.normal(size=(20, 3, 8)), scale * rng.normal(size=(6, 3, 8))
    return from_arrays(train, ["a", "b"] * 10, test, ["a", "b"] * 3)


def test_test_data_leaves_the_preprocessing_alone() -> None:
    fitted = [Preprocessing.fit(data_with_test(scale).train) for scale in (1.0, 1e6)]
    assert fitted[0] == fitted[1]


def test_a_test_file_leaves_the_preprocessing_alone(tmp_path: Path) -> None:
    train, test = tmp_path / "train.ts", tmp_path / "test.ts"
    train.write_text("@classLabel true a b\n@data\n1,2,4:a\n3,5:b\n")
    fitted = []
    for values in ("1,1", "1e6,-1e6,7"):
        test.write_text(f"@classLabel true a b\n@data\n{values}:a\n")
        fitted.append(Preprocessing.fit(load_ts_files(train, test).train))
    assert fitted[0] == fitted[1]


def test_validation_data_leaves_the_preprocessing_alone() -> None:
    data = data_with_test(1.0)
    rest, chosen = stratified_split(data.train, 0.3, 0)
    fitted = Preprocessing.fit(rest)
    for series in chosen.series:
        series += 1e6
    assert Preprocessing.fit(stratified_split(data.train, 0.3, 0)[0]) == fitted
    assert Preprocessing.fit(data.train) != fitted


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


def test_an_epoch_of_several_passes_takes_every_sample_in_a_new_order_each_time():
    sampler = EpochSampler(50, seed=3, passes=3)
    order = list(sampler)
    assert len(sampler) == len(order) == 150
    passes = [order[at : at + 50] for at in (0, 50, 100)]
    assert passes[0] == list(EpochSampler(50, seed=3))
    assert all(sorted(one) == list(range(50)) for one in passes)
    assert passes[0] != passes[1] != passes[2]
