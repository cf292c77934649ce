"""Records, arrays, file pairs and the stratified split."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowformer.data import (
    Preprocessing,
    SeriesSplit,
    TimeSeriesData,
    as_series,
    encode_labels,
    from_arrays,
    load_ts_files,
    require_classes,
    stratified_split,
)

RNG = np.random.default_rng(0)
CUBE = RNG.normal(size=(4, 3, 5))
RAGGED = [RNG.normal(size=(3, length)) for length in (5, 1, 7, 2)]


def split_with_counts(*counts: int) -> SeriesSplit:
    labels = np.repeat(np.arange(len(counts)), counts)
    RNG.shuffle(labels)
    return SeriesSplit(
        series=tuple(np.full((1, 2), float(index)) for index in range(len(labels))),
        labels=labels,
        name="train",
    )


def test_numpy_lists_and_univariate_arrays_are_taken_alike() -> None:
    labels = ["b", "a", "b", "a"]
    cube = from_arrays(CUBE, labels)
    assert (cube.channels, cube.max_length, cube.test) == (3, 5, None)
    np.testing.assert_array_equal(cube.train.series[2], CUBE[2])
    ragged = from_arrays(RAGGED, np.array(labels), CUBE, labels)
    assert ragged.train.lengths.tolist() == [5, 1, 7, 2]
    assert ragged.max_length == 7
    flat = from_arrays(CUBE[:, 0], labels)
    assert flat.channels == 1
    np.testing.assert_array_equal(flat.train.series[1], CUBE[1, :1])


def test_aeons_object_array_of_series_and_integer_values_are_taken() -> None:
    collection = np.empty(2, dtype=object)
    collection[:] = [np.ones((1, 2), dtype=np.int32), np.zeros((1, 3), dtype=bool)]
    one, other = as_series(collection)
    assert one.dtype == other.dtype == np.float64
    assert (one.shape, other.shape) == ((1, 2), (1, 3))


@pytest.mark.parametrize(
    ("labels", "classes", "indices"),
    [
        (["b", "a", "b", "c"], ("a", "b", "c"), [1, 0, 1, 2]),
        (np.array([10, 9, 10, -1]), ("-1", "9", "10"), [2, 1, 2, 0]),
        ([True, False, True, True], ("False", "True"), [1, 0, 1, 1]),
        ([(1, 2), (0, 5), (1, 2), (0, 5)], ("(0, 5)", "(1, 2)"), [1, 0, 1, 0]),
        ([1, "a", 1, "a"], ("1", "a"), [0, 1, 0, 1]),
    ],
    ids=["text", "integers-by-value", "booleans", "tuples", "mixed"],
)
def test_labels_of_any_hashable_kind(labels: Any, classes: tuple, indices: list[int]) -> None:
    data = from_arrays(CUBE, labels, CUBE, labels)
    assert data.classes == classes
    assert data.train.labels.tolist() == indices
    assert data.test is not None
    assert data.test.labels.tolist() == indices


def spoiled(place: tuple[int, ...], value: float) -> np.ndarray:
    array = CUBE.copy()
    array[place] = value
    return array


FOUR = ["a", "b", "a", "b"]
WRONG_ARRAYS: dict[str, tuple[Callable[[], Any], str]] = {
    "label-count": (lambda: from_arrays(CUBE, FOUR[:3]), r"train: .* got 3 labels for 4 series"),
    "label-shape": (
        lambda: from_arrays(CUBE, np.zeros((4, 1))),
        r"train: expected labels \[n\], got shape \(4, 1\)",
    ),
    "label-missing": (
        lambda: from_arrays(CUBE, ["a", None, "a", "b"]),
        "a label for series 1, got None",
    ),
    "label-nan": (
        lambda: from_arrays(CUBE, [0.0, 1.0, float("nan"), 1.0]),
        "a label for series 2, got nan",
    ),
    "labels-same-text": (
        lambda: from_arrays(CUBE, [1, "1", 1, "2"]),
        r"labels that differ as text, got \[1, '1'\]",
    ),
    "one-dimension": (
        lambda: from_arrays(CUBE[0, 0], FOUR),
        r"\[n, channels, time\] .* got shape \(5,\)",
    ),
    "four-dimensions": (lambda: from_arrays(CUBE[None], FOUR), r"got shape \(1, 4, 3, 5\)"),
    "list-of-one-dimension": (
        lambda: from_arrays([np.zeros(3)] * 4, FOUR),
        r"series 0: expected an array \[channels, time\] .*series\[None, :\].* got shape \(3,\)",
    ),
    "ragged-channel": (
        lambda: from_arrays([[[1, 2], [3]]] * 4, FOUR),
        r"train, series 0: expected an array \[channels, time\], got .*inhomogeneous",
    ),
    "channels-differ": (
        lambda: from_arrays([*RAGGED[:3], np.zeros((2, 4))], FOUR),
        "train, series 3: expected 3 channels, as in series 0, got 2",
    ),
    "no-series": (lambda: from_arrays([], []), "train: expected at least one series, got none"),
    "empty-series": (
        lambda: from_arrays([*RAGGED[:3], np.zeros((3, 0))], FOUR),
        r"train, series 3: .* one time step, got shape \(3, 0\)",
    ),
    "text-values": (lambda: from_arrays([[["x"]]] * 4, FOUR), "series 0: expected real numbers"),
    "complex-values": (lambda: from_arrays(CUBE * 1j, FOUR), "real numbers, got dtype complex128"),
    "infinite": (
        lambda: from_arrays(spoiled((2, 1, 3), -np.inf), FOUR),
        "train, series 2, channel 1, time 3: expected a finite number or NaN, got -inf",
    ),
    "test-infinite": (
        lambda: from_arrays(CUBE, FOUR, spoiled((0, 0, 0), np.inf), FOUR),
        "test, series 0, channel 0, time 0",
    ),
    "test-class": (
        lambda: from_arrays(CUBE, FOUR, CUBE, ["a", "z", "b", "y"]),
        r"test: expected classes of the training data \(a, b\), got z, y",
    ),
    "test-channels": (
        lambda: from_arrays(CUBE, FOUR, CUBE[:, :2], FOUR),
        "arrays: expected 3 channels in test, as in train, got 2",
    ),
    "test-labels-alone": (
        lambda: from_arrays(CUBE, FOUR, None, FOUR),
        "together, got test labels without series",
    ),
    "test-series-alone": (
        lambda: from_arrays(CUBE, FOUR, CUBE),
        "together, got test series without labels",
    ),
}


@pytest.mark.parametrize(("call", "message"), WRONG_ARRAYS.values(), ids=WRONG_ARRAYS.keys())
def test_wrong_arrays_say_what_was_expected_and_what_came(
    call: Callable[[], Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_encode_labels_follows_the_order_of_the_classes() -> None:
    assert encode_labels(["b", "c", "b"], ("c", "b")).tolist() == [1, 0, 1]


TS = "@problemName Pair\n@classLabel true {classes}\n@data\n{lines}\n"


def write_pair(folder: Path, train: str, test: str, classes: str = "c b a") -> TimeSeriesData:
    paths = folder / "one.ts", folder / "other.ts"
    for path, lines in zip(paths, (train, test), strict=True):
        path.write_text(TS.format(classes=classes, lines=lines))
    return load_ts_files(*paths)


def test_a_file_pair_takes_its_classes_from_the_training_file(tmp_path: Path) -> None:
    data = write_pair(tmp_path, train="1,2:a\n3:c\n4:a", test="5:c")
    assert data.name == "Pair"
    assert data.classes == ("c", "a")  # b never occurs; the order is the header's
    assert data.train.labels.tolist() == [1, 0, 1]
    assert data.test is not None
    assert data.test.labels.tolist() == [0]
    assert load_ts_files(tmp_path / "one.ts").test is None


def test_a_class_seen_only_in_the_test_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"other\.ts: expected classes .* \(c, a\), got b"):
        write_pair(tmp_path, train="1:a\n2:c", test="3:c\n4:b")


def test_files_with_different_channels_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Pair: expected 1 channels in test, as in train, got 2"):
        write_pair(tmp_path, train="1:a", test="1:2:a")


def test_a_training_file_without_labels_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "bare.ts"
    path.write_text("@data\n1,2\n")
    with pytest.raises(ValueError, match=r"bare\.ts: expected labels"):
        load_ts_files(path)


@given(
    counts=st.lists(st.integers(4, 20), min_size=2, max_size=5),
    fraction=st.floats(0.25, 0.5),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_stratified_split_parts_the_series_and_keeps_the_shares(
    counts: list[int], fraction: float, seed: int
) -> None:
    split = split_with_counts(*counts)
    rest, chosen = stratified_split(split, fraction, seed)
    order = [[int(series[0, 0]) for series in part.series] for part in (rest, chosen)]
    assert sorted(order[0] + order[1]) == list(range(len(split)))
    assert order == [sorted(order[0]), sorted(order[1])]
    for part, places in zip((rest, chosen), order, strict=True):
        np.testing.assert_array_equal(part.labels, split.labels[places])
    taken = np.bincount(chosen.labels, minlength=len(counts))
    assert np.all(np.abs(taken - fraction * np.array(counts)) <= 1.0 + fraction)


def test_errors_in_a_part_name_the_series_by_its_place_in_the_whole() -> None:
    series = np.arange(40.0).reshape(20, 1, 2)
    series[7, 0, 1] = np.nan
    whole = from_arrays(series, ["a", "b"] * 10).train
    train, validation = stratified_split(whole, 0.5, seed=0)
    part = next(part for part in (train, validation) if np.isnan(part.series).any())
    for split in (part, part.select(np.arange(len(part))[::-1], "again")):
        with pytest.raises(ValueError, match=r"^train, series 7, channel 0, time 1: expected"):
            Preprocessing.fit(split)


def test_a_stratified_split_depends_on_the_seed_alone() -> None:
    split = split_with_counts(10, 12)
    labels = [stratified_split(split, 0.3, seed)[1].series for seed in (1, 1, 2)]
    places = [[series[0, 0] for series in part] for part in labels]
    assert places[0] == places[1]
    assert places[0] != places[2]


def test_labels_of_one_class_are_no_training_data() -> None:
    require_classes(np.array([0, 2]), ("a", "b", "c"), name="mine")
    with pytest.raises(ValueError, match=r"mine: expected images of at least 2 .* got 3 of 'b'"):
        require_classes(np.ones(3, int), ("a", "b"), name="mine", what="images")


def test_a_class_that_cannot_be_parted_is_called_by_its_name() -> None:
    names = ("stand", "walk", "run")
    with pytest.raises(ValueError, match=r"for validation, got 1 of class 'walk'$"):
        stratified_split(split_with_counts(5, 1, 5), 0.5, 0, classes=names)
    with pytest.raises(ValueError, match=r"leaves none of class 'walk'$"):
        stratified_split(split_with_counts(100, 2), 0.9, 0, classes=names)


@pytest.mark.parametrize(
    ("counts", "fraction", "message"),
    [
        ((5, 5), 0.0, "a fraction between 0 and 1, got 0.0"),
        ((5, 5), 1.5, "a fraction between 0 and 1, got 1.5"),
        ((5, 1, 5), 0.5, "one to train on and one for validation, got 1 of class 1 "),
        ((5, 5, 5), 0.1, "3 classes, got 0.1 of 15 series, which leaves 2"),
        ((5, 5, 5), 0.9, "3 classes, got 0.9 of 15 series, which leaves 1"),
        ((100, 2), 0.9, "got 0.9, which leaves none of class 1 "),
    ],
    ids=["zero", "above-one", "single", "too-small", "too-large", "class-lost"],
)
def test_a_split_that_cannot_be_stratified_is_an_error(
    counts: tuple[int, ...], fraction: float, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        stratified_split(split_with_counts(*counts), fraction, 0)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("1:up\n2:?\n", "series 1: expected a label, got an unknown one"),
        ("1:?\n", "expected labels .*, got none"),
    ],
)
def test_series_whose_label_is_not_known_are_no_training_data(
    tmp_path: Path, lines: str, message: str
) -> None:
    (tmp_path / "a.ts").write_text(f"@classLabel true up down\n@data\n{lines}")
    with pytest.raises(ValueError, match=rf"a\.ts.*{message}"):
        load_ts_files(tmp_path / "a.ts")


def test_arrays_that_are_time_first_are_told() -> None:
    series = np.zeros((2, 9, 3))
    with pytest.warns(UserWarning, match="train: series of 9 channels and 3 time steps: if they"):
        from_arrays(series, ["a", "b"])
    with pytest.raises(ValueError, match=r"expected 9 channels, .* got 8: if they are \[time, ch"):
        from_arrays([series[0], series[1, :8]], ["a", "b"])
