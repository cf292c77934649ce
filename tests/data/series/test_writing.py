"""Data sets as files: what comes back is the same, to the last bit."""

from dataclasses import replace

import numpy as np
import pytest

from flowformer.data import TimeSeriesData, from_arrays, load_series, load_ts_files
from flowformer.data.series.writing import save_series

RNG = np.random.default_rng(0)


def unequal(count: int, channels: int = 2) -> list[np.ndarray]:
    return [RNG.normal(size=(channels, 3 + n % 4)) * 10.0 ** (n - 8) for n in range(count)]


def same(ours: TimeSeriesData, theirs: TimeSeriesData) -> None:
    assert theirs.classes == ours.classes
    for a, b in ((ours.train, theirs.train), (ours.test, theirs.test)):
        assert (a is None) == (b is None)
        if a is not None and b is not None:
            assert a.labels.tolist() == b.labels.tolist()
            for one, other in zip(a.series, b.series, strict=True):
                np.testing.assert_array_equal(one, other, strict=True)


@pytest.mark.parametrize(
    "labels",
    [["up", "down"], [1, 0], ["left hand", "right hand"], ["a", "A"], [True, False]],
    ids=["words", "numbers", "several words", "cases", "booleans"],
)
def test_series_of_unequal_lengths_and_their_labels_come_back(tmp_path, labels):
    data = from_arrays(unequal(9), [labels[n % 2] for n in range(9)], name="mine")
    train, test = save_series(data, tmp_path / "new" / "folder")
    assert test is None
    same(data, load_ts_files(train))


def test_missing_values_one_channel_and_a_test_set_come_back(tmp_path):
    series = RNG.normal(size=(6, 1, 5))
    series[2, 0, 1] = np.nan
    series[3, 0, :] = [0.1 + 0.2, 5e-324, -0.0, 1.7976931348623157e308, 1 / 3]
    data = from_arrays(series, list("aabbab"), series[:4], list("abab"), name="one")
    train, test = save_series(data, tmp_path)
    assert (train.name, test and test.name) == ("one.ts", "one_TEST.ts")
    same(data, load_ts_files(train, test))


def test_files_that_hold_the_same_stay_and_others_are_not_written_over(tmp_path):
    data = from_arrays(RNG.normal(size=(4, 1, 5)), list("abab"), name="mine")
    train, _ = save_series(data, tmp_path)
    before = train.stat().st_mtime_ns
    save_series(data, tmp_path)
    assert train.stat().st_mtime_ns == before
    other = from_arrays(RNG.normal(size=(4, 1, 5)), list("abab"), name="mine")
    with pytest.raises(FileExistsError, match=r"mine\.ts holds other series"):
        save_series(other, tmp_path)
    same(data, load_ts_files(train))


@pytest.mark.parametrize("regression", [False, True], ids=["classes", "numbers"])
def test_groups_and_numbers_come_back(tmp_path, regression):
    labels = [0.1 + 0.2, -3.0, 5e-324, 7.0, 2.5, 1 / 3, 0.0, 1e300, -0.5]
    own = labels if regression else ["up", "down", "left"] * 3
    groups = [f"person {n // 3}" for n in range(9)]
    series = unequal(9)
    series[4][0, 2] = np.nan
    plain = from_arrays(series, own, series[:5], own[:5], name="own", regression=regression)
    grouped = replace(plain, train=replace(plain.train, groups=tuple(groups)))
    for data, ending in ((plain, ".ts"), (grouped, ".npz")):
        files = save_series(data, tmp_path)
        assert [file and file.suffix for file in files] == [ending] * 2
        found = load_series(*files, regression=regression)
        same(data, found)
        assert found.train.groups == data.train.groups
        before = files[0].stat().st_mtime_ns
        assert save_series(data, tmp_path) == files
        assert files[0].stat().st_mtime_ns == before


def test_a_series_of_a_group_that_ends_in_missing_values_is_refused(tmp_path):
    series = RNG.normal(size=(4, 1, 5))
    series[2, 0, 4] = np.nan
    data = from_arrays(series, list("abab"), name="mine", train_groups=list("xxyy"))
    with pytest.raises(ValueError, match="mine, train, series 2: expected a value in the last"):
        save_series(data, tmp_path)


@pytest.mark.parametrize("name", ["?", "a:b", "two  spaces", "line\nbreak", "NaN", ""])
def test_a_class_that_the_format_cannot_name_is_refused_before_anything_is_written(tmp_path, name):
    data = from_arrays(RNG.normal(size=(4, 1, 5)), [name, "b", name, "b"], name="mine")
    with pytest.raises(ValueError, match=r"names of classes that a \.ts file can hold"):
        save_series(data, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["../mine", "a/b", ".hidden", ""])
def test_a_name_that_no_file_has_is_refused(tmp_path, name):
    data = from_arrays(RNG.normal(size=(4, 1, 5)), list("abab"), name=name)
    with pytest.raises(ValueError, match="a name that a file can have"):
        save_series(data, tmp_path)
