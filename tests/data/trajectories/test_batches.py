"""Numbers of an environment as the model reads them, and windows of episodes."""

import json
from typing import Any

import numpy as np
import pytest
from torch.utils.data import DataLoader

from flowformer.data.order import as_it_is
from flowformer.data.trajectories.batches import (
    DecisionPreprocessing,
    DecisionWindows,
    returns_to_go,
    split_episodes,
)
from flowformer.data.trajectories.records import Space, Trajectories

BOUNDED = Space(shape=(2,), low=(-2.0, 0.0), high=4.0)
SPACES = {
    "bounded": BOUNDED,
    "one-sided": Space(shape=(2,), low=0.0),
    "free": Space(shape=(2,)),
    "discrete": Space(shape=(), n=3),
}


def numbers(**options: Any) -> DecisionPreprocessing:
    given = {
        "state_mean": np.array([1.0, -1.0, 0.0]),
        "state_std": np.array([2.0, 0.5, 1e-6]),
        "return_scale": 1000.0,
        "action_space": BOUNDED,
    }
    return DecisionPreprocessing(**{**given, **options})


def of_observations(observations: np.ndarray) -> Trajectories:
    return Trajectories(
        name="drawn",
        source="a test",
        env=None,
        observations=observations,
        actions=np.random.default_rng(0).uniform(0, 1, (63, 2)).astype(np.float32),
        rewards=np.ones(63, np.float32),
        starts=np.array([0, 1, 40]),
        terminated=np.array([True, False, True]),
        action_space=BOUNDED,
    )


def test_statistics_are_those_of_all_steps():
    rng = np.random.default_rng(0)
    observations = rng.normal(3, 5, (63, 3)).astype(np.float32)
    observations[:, 2] = 7
    fitted = DecisionPreprocessing.fit(of_observations(observations), return_scale=10.0)
    assert fitted.action_space == BOUNDED
    assert fitted.features == 3
    assert fitted.returns(np.array([25.0, -5.0])).tolist() == [2.5, -0.5]
    states = fitted.states(observations.reshape(7, 9, 3))
    assert states.dtype == np.float32
    np.testing.assert_allclose(states.mean((0, 1)), 0, atol=1e-6)
    np.testing.assert_allclose(states.std((0, 1)), [1, 1, 0], atol=1e-6)


@pytest.mark.parametrize("value", [0.0, 7.0, 0.1, -1e6, 1e-12])
def test_a_feature_that_does_not_vary_is_centred_only(value):
    data = of_observations(np.full((63, 1), value, np.float32))
    fitted = DecisionPreprocessing.fit(data, return_scale=10.0)
    assert fitted.state_std == 1
    assert fitted.states(np.array([[value + 0.01]])) == pytest.approx(0.01, rel=1e-4)
    published = DecisionPreprocessing.fit(data, return_scale=10.0, constant_features="published")
    assert published.state_std == pytest.approx(1e-6)


def test_what_differs_by_the_rounding_of_float32_alone_does_not_vary():
    values = np.full((63, 1), 0.3, np.float32)
    values[7] = np.nextafter(np.float32(0.3), np.float32(1))
    assert DecisionPreprocessing.fit(of_observations(values), return_scale=1.0).state_std == 1


def test_a_feature_that_varies_little_is_standardised():
    values = np.random.default_rng(0).normal(5, 1e-3, (63, 1)).astype(np.float32)
    fitted = DecisionPreprocessing.fit(of_observations(values), return_scale=1.0)
    assert fitted.state_std == pytest.approx(values.std(), rel=0.01)


def test_the_ends_of_a_box_are_the_ends_of_the_models_actions():
    low, high = BOUNDED.bounds
    ends = np.stack([low, high, (low + high) / 2])
    as_the_model_has_them = numbers().to_model(ends)
    assert as_the_model_has_them.tolist() == [[-1, -1], [1, 1], [0, 0]]


@pytest.mark.parametrize("name", SPACES)
def test_actions_come_back_as_they_were(name):
    rng = np.random.default_rng(0)
    space = SPACES[name]
    shape = (5, 7, *space.shape)
    actions = rng.integers(3, size=shape) if space.n else rng.uniform(0, 4, shape)
    both = numbers(action_space=space)
    there = both.to_model(actions)
    np.testing.assert_allclose(both.to_environment(there), actions, rtol=0, atol=1e-12)
    assert np.array_equal(there, actions) == (name != "bounded")


def test_actions_outside_are_clipped():
    assert numbers().to_environment(np.array([3.0, -9.0])).tolist() == [4, 0]
    one_sided = numbers(action_space=SPACES["one-sided"])
    assert one_sided.to_environment(np.array([-3.0, 9.0])).tolist() == [0, 9]


def test_a_record_reads_back():
    first = numbers()
    second = DecisionPreprocessing.of(json.loads(json.dumps(first.record())))
    assert second.record() == first.record()
    assert second.action_space == first.action_space
    states = np.random.default_rng(0).normal(size=(4, 3))
    assert np.array_equal(second.states(states), first.states(states))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"state_std": np.ones(2)}, "of the same features, got 3 and 2"),
        ({"state_mean": np.array([0.0, np.nan, 0.0])}, "must be finite"),
        ({"state_std": np.array([1.0, 0.0, 1.0])}, "must be positive, got 0.0 at least"),
        ({"return_scale": 0.0}, "must be positive, got .* and 0.0"),
        ({"return_scale": float("nan")}, "must be positive, got .* and nan"),
    ],
    ids=["features", "mean", "std", "scale", "nan scale"],
)
def test_numbers_that_no_data_gives_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        numbers(**options)


def trajectories(lengths: tuple[int, ...] = (5, 1, 3)) -> Trajectories:
    """Every observation is the number of its step, every reward 1."""
    steps = sum(lengths)
    return Trajectories(
        name="counted",
        source="counted",
        env=None,
        observations=np.arange(steps, dtype=np.float32)[:, None],
        actions=np.linspace(-2, 2, steps, dtype=np.float32)[:, None],
        rewards=np.ones(steps, np.float32),
        starts=np.cumsum((0, *lengths[:-1])),
        terminated=np.ones(len(lengths), bool),
        action_space=Space(shape=(1,), low=-2.0, high=2.0),
    )


def plain(scale: float = 1.0) -> DecisionPreprocessing:
    return DecisionPreprocessing(
        state_mean=np.zeros(1),
        state_std=np.ones(1),
        return_scale=scale,
        action_space=trajectories().action_space,
    )


def test_a_return_to_go_counts_what_its_own_episode_still_collects():
    np.testing.assert_array_equal(returns_to_go(trajectories()), [5, 4, 3, 2, 1, 1, 3, 2, 1])


def test_a_window_begins_at_every_step_and_none_leaves_its_episode():
    data = trajectories()
    windows = DecisionWindows(data, plain(), context=4)
    assert len(windows) == data.steps
    batch = windows.__getitems__(list(range(len(windows))))
    seen = batch["observations"][..., 0].numpy()
    mask = batch["mask"].numpy()
    ends = data.starts + data.lengths
    for first, row, real in zip(windows.places, seen, mask, strict=True):
        end = ends[ends > first].min()
        np.testing.assert_array_equal(row[real], np.arange(first, min(first + 4, end)))
        assert real[: real.sum()].all()  # padding at the right alone
    assert batch["timesteps"][1].tolist() == [1, 2, 3, 4]
    assert batch["actions"][0, 0].item() == pytest.approx(-1)  # the least of the box


def test_returns_are_scaled_and_only_the_chosen_episodes_are_there():
    windows = DecisionWindows(trajectories(), plain(2.0), context=9, episodes=np.array([2]))
    batch = windows[0]
    assert batch["returns_to_go"].tolist() == [[1.5, 1.0, 0.5]]
    assert windows.places.tolist() == [6, 7, 8]


def test_windows_of_a_stride_cover_each_step_once():
    windows = DecisionWindows(trajectories(), plain(), context=2, stride=2)
    batch = windows.__getitems__(list(range(len(windows))))
    seen = batch["observations"][..., 0][batch["mask"]]
    assert sorted(seen.tolist()) == list(range(9))


def test_a_loader_takes_whole_batches():
    whole = DataLoader(
        DecisionWindows(trajectories(), plain(), context=2),
        batch_size=4,
        collate_fn=as_it_is,
    )
    assert [len(batch["mask"]) for batch in whole] == [4, 4, 1]


def test_episodes_are_parted_by_the_seed():
    data = trajectories((2,) * 10)
    train, held_out = split_episodes(data, 0.2, seed=0)
    assert sorted([*train, *held_out]) == list(range(10))
    assert len(held_out) == 2
    assert split_episodes(data, 0.2, seed=1)[1].tolist() != held_out.tolist()
    with pytest.raises(ValueError, match="at least two episodes"):
        split_episodes(trajectories((3,)), 0.2, seed=0)


@pytest.mark.parametrize(("name", "value"), [("context", 0), ("stride", 0)])
def test_sizes_below_one_are_refused(name, value):
    with pytest.raises(ValueError, match="at least 1"):
        DecisionWindows(trajectories(), plain(), **{"context": 2, name: value})
