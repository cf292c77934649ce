"""Parts share no group, or come one after the other; each class is left to train on."""

from typing import Any

import numpy as np
import pytest

from flowformer.data import SeriesSplit, from_arrays, hold_out, part

CLASSES = ("a", "b", "c")


def split_of(labels: list[int], groups: list[str] | None = None, **more: Any) -> SeriesSplit:
    series = tuple(np.full((1, 3), float(at)) for at in range(len(labels)))
    own = None if groups is None else tuple(groups)
    return SeriesSplit(series=series, labels=np.array(labels), groups=own, name="x", **more)


def values(split: SeriesSplit) -> list[int]:
    return [int(one[0, 0]) for one in split.series]


SUBJECTS = [f"s{at % 10}" for at in range(60)]


@pytest.mark.parametrize("seed", range(5))
def test_no_group_is_in_two_parts_and_each_has_its_share_of_every_class(seed):
    labels = [at % 3 for at in range(60)]
    train, chosen = part(split_of(labels, SUBJECTS), 0.2, seed, classes=CLASSES)
    assert set(train.groups or ()) & set(chosen.groups or ()) == set()
    assert sorted(values(train) + values(chosen)) == list(range(60))
    assert (len(train), len(chosen)) == (48, 12)
    assert np.bincount(chosen.labels).tolist() == [4, 4, 4]
    again = part(split_of(labels, SUBJECTS), 0.2, seed, classes=CLASSES)
    assert values(again[1]) == values(chosen)


def test_groups_of_one_class_each_are_parted_by_class():
    labels = [at // 20 for at in range(60)]
    groups = [f"g{at // 4}" for at in range(60)]
    for seed in range(5):
        train, chosen = part(split_of(labels, groups), 0.3, seed, classes=CLASSES)
        assert set(train.labels) == set(chosen.labels) == {0, 1, 2}


def test_a_class_of_one_group_alone_stays_to_train_on():
    labels = [2 if at % 10 == 7 else at % 2 for at in range(60)]
    with pytest.warns(UserWarning, match="the part set aside has series of 2 of 3 classes"):
        train, _ = part(split_of(labels, SUBJECTS), 0.2, 0, classes=CLASSES)
    assert set(train.labels) == {0, 1, 2}


def test_too_few_groups_are_refused():
    with pytest.raises(ValueError, match=r"x: expected at least 2 groups, .* got 's' alone"):
        part(split_of([0, 1] * 5, ["s"] * 10), 0.2, 0, classes=CLASSES)
    labels = [0, 0, 1, 1]
    with pytest.raises(ValueError, match=r"of every class to train on, got none of '[ab]'"):
        part(split_of(labels, ["p", "p", "q", "q"]), 0.5, 0, classes=CLASSES)


def test_the_last_in_time_are_set_aside_whatever_their_order_in_the_file():
    starts = np.random.default_rng(0).permutation(20)
    spans = np.stack([10.0 * starts, 10.0 * starts + 9], axis=1)
    train, chosen = part(split_of([0, 1] * 10, spans=spans), 0.25, 0, classes=CLASSES, in_time=True)
    assert set(starts[values(chosen)]) == {15, 16, 17, 18, 19}
    assert train.spans is not None
    assert chosen.spans is not None
    assert train.spans.max() < chosen.spans.min()


def test_groups_that_are_in_both_parts_in_time_are_told():
    spans = np.stack([np.arange(10.0), np.arange(10.0) + 0.5], axis=1)
    split = split_of([0, 1] * 5, spans=spans, groups=list("abababccbd"))
    with pytest.warns(UserWarning, match=r"1 groups? \(b\) are in the train and in the validation"):
        part(split, 0.2, 0, classes=CLASSES, in_time=True)


def test_without_times_the_last_series_are_set_aside():
    _, chosen = part(split_of([0, 1] * 5), 0.2, 0, classes=CLASSES, in_time=True)
    assert values(chosen) == [8, 9]


def test_times_that_count_within_each_series_are_told_and_overlaps_too():
    spans = np.tile([0.0, 9.0], (10, 1))
    with pytest.raises(ValueError, match=r"begin at different times, .* got 10 that begin at 0"):
        part(split_of([0, 1] * 5, spans=spans), 0.2, 0, classes=CLASSES, in_time=True)
    spans = np.stack([np.arange(10.0), np.arange(10.0) + 1.5], axis=1)
    with pytest.warns(UserWarning, match="1 of 8 series to train on end after the first of"):
        part(split_of([0, 1] * 5, spans=spans), 0.2, 0, classes=CLASSES, in_time=True)


def test_numbers_are_parted_at_random_and_a_test_part_is_the_same_for_every_seed():
    series = np.zeros((10, 1, 4)) + np.arange(10)[:, None, None]
    data = from_arrays(series, np.linspace(0, 1, 10), regression=True)
    first, second = (part(data.train, 0.3, seed)[1] for seed in (0, 1))
    assert (len(first), len(second)) == (3, 3)
    assert values(first) != values(second)
    held = hold_out(data, 0.2)
    assert held.test is not None
    assert (len(held.train), len(held.test), held.test.name) == (8, 2, "test")
    assert held.test.place(0).startswith("train, series")


def test_groups_of_arrays_are_kept():
    data = from_arrays(np.zeros((4, 1, 3)), list("abab"), train_groups=[1, 1, 2, 2])
    assert data.train.groups == ("1", "1", "2", "2")
    with pytest.raises(ValueError, match="expected one group a series, got 3 for 4 series"):
        from_arrays(np.zeros((4, 1, 3)), list("abab"), train_groups=[1, 1, 2])
