"""Windows of episodes: what is to come, no step of another episode, padding that is masked."""

import numpy as np
import pytest
from torch.utils.data import DataLoader

from flowformer.data.order.steps import as_it_is
from flowformer.data.trajectories.batches import (
    DecisionWindows,
    returns_to_go,
    split_episodes,
)
from flowformer.data.trajectories.preprocessing import DecisionPreprocessing
from flowformer.data.trajectories.records import Space, Trajectories


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
