"""Sets of episodes: what is refused, what they say, and that what was written is read again."""

import json
from typing import Any

import numpy as np
import pytest

from flowformer.data.trajectories.records import EnvironmentOptions, Space, Trajectories

BOX = Space(shape=(2,), low=-1.0, high=1.0)


def some(*, space: Space = BOX, **changes: Any) -> Trajectories:
    """Three episodes of 2, 1 and 3 steps; the first and the last were ended by the environment."""
    random = np.random.default_rng(0)
    actions = (
        random.uniform(-1, 1, (6, 2)).astype(np.float32)
        if space.n is None
        else random.integers(space.n, size=6)
    )
    values: dict[str, Any] = {
        "name": "some-medium",
        "source": "a test",
        "env": "Some-v0",
        "observations": random.normal(size=(6, 3)).astype(np.float32),
        "actions": actions,
        "rewards": np.array([1, 2, 4, 8, 16, 32], np.float32),
        "starts": np.array([0, 2, 3]),
        "terminated": np.array([True, False, True]),
        "action_space": space,
        "references": (-2.0, 18.0),
    }
    return Trajectories(**(values | changes))


def spoiled(array: np.ndarray, place: Any, value: float) -> np.ndarray:
    array = array.copy()
    array[place] = value
    return array


def require_same(one: Trajectories, other: Trajectories) -> None:
    assert one.description() == other.description()
    for name in ("observations", "actions", "rewards", "starts", "terminated"):
        left, right = getattr(one, name), getattr(other, name)
        assert left.dtype == right.dtype, name
        np.testing.assert_array_equal(left, right, err_msg=name)


@pytest.mark.parametrize(
    "record",
    [
        {"max_episode_steps": "many"},
        {"kwargs": [1]},
        {"wrappers": {"entry_point": "a:B"}},
        {"wrappers": [{"kwargs": {}}]},
    ],
)
def test_damaged_options_of_an_environment_are_refused(record):
    with pytest.raises(ValueError, match="environment"):
        EnvironmentOptions.of(record)


def test_a_set_of_old_without_options_of_its_environment_is_read(tmp_path):
    some().save(tmp_path)
    path = tmp_path / "description.json"
    known = json.loads(path.read_text())
    del known["env_options"]
    path.write_text(json.dumps(known))
    require_same(some(), Trajectories.load(tmp_path))


def test_lengths_and_returns_are_of_each_episode():
    assert len(some()) == 3
    assert some().steps == 6
    assert some().lengths.tolist() == [2, 1, 3]
    assert some().returns.tolist() == [3, 4, 56]


def test_returns_are_summed_more_exactly_than_rewards_are_kept():
    steps = 20_000
    rewards = np.full(steps, 0.1, np.float32)
    rewards[0] = 1e8
    one = some(
        observations=np.zeros((steps, 1), np.float32),
        actions=np.zeros((steps, 2), np.float32),
        rewards=rewards,
        starts=np.array([0]),
        terminated=np.array([False]),
    )
    assert one.returns[0] == pytest.approx(1e8 + (steps - 1) * 0.1, abs=1e-3)


@pytest.mark.parametrize(("score", "percent"), [(-2.0, 0), (18.0, 100), (8.0, 50), (-4.0, -10)])
def test_a_score_is_percent_of_the_way_from_random_to_expert(score, percent):
    assert some().normalized(score) == percent


def test_without_reference_returns_nothing_is_normalised():
    with pytest.raises(ValueError, match="some-medium has no reference returns"):
        some(references=None).normalized(1.0)


@pytest.mark.parametrize(
    "space",
    [
        BOX,
        Space(shape=(2,), low=(-1.0, -2.0), high=(1.0, 2.0)),
        Space(shape=(2,)),
        Space(shape=(), n=4),
    ],
    ids=["box", "box-of-several-bounds", "unbounded", "discrete"],
)
@pytest.mark.parametrize("references", [None, (0.5, 7.0)], ids=["no-references", "references"])
def test_what_was_written_is_read_again(tmp_path, space, references):
    one = some(space=space, references=references)
    one.save(tmp_path)
    read = Trajectories.load(tmp_path)
    require_same(one, read)
    assert isinstance(read.observations, np.memmap)


def test_a_folder_that_is_not_whole_is_refused(tmp_path):
    some().save(tmp_path)
    (tmp_path / "description.json").unlink()
    with pytest.raises(FileNotFoundError, match="expected a set of trajectories"):
        Trajectories.load(tmp_path)


@pytest.mark.parametrize("keep", [0, 100, -8])
def test_a_truncated_file_is_named(tmp_path, keep):
    some().save(tmp_path)
    path = tmp_path / "rewards.npy"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match="damaged set of trajectories: delete it"):
        Trajectories.load(tmp_path)


def test_a_mixed_set_has_the_episodes_of_both():
    expert = some(name="some-expert", rewards=np.full(6, 10, np.float32))
    both = some().mixed(expert, name="some-medium-expert")
    assert both.name == "some-medium-expert"
    assert both.lengths.tolist() == [2, 1, 3, 2, 1, 3]
    assert both.returns.tolist() == [3, 4, 56, 20, 10, 30]
    assert both.terminated.tolist() == [True, False, True] * 2
    np.testing.assert_array_equal(both.observations[6:], expert.observations)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"env": "Other-v0"}, "same environments .* got Some-v0 and Other-v0"),
        ({"space": Space(shape=(2,), low=-2.0, high=2.0)}, "same action spaces"),
        ({"observations": np.zeros((6, 4), np.float32)}, "same features .* got 3 and 4"),
        ({"references": (0.0, 1.0)}, "same reference returns"),
    ],
    ids=["environment", "action-space", "observations", "references"],
)
def test_sets_that_do_not_belong_together_are_not_mixed(changes, message):
    with pytest.raises(ValueError, match=message):
        some().mixed(some(**changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"starts": np.array([0, 2, 2])}, "at least one step an episode, got 0 in episode 1"),
        ({"starts": np.array([0, 2, 6])}, "at least one step an episode, got 0 in episode 2"),
        ({"starts": np.array([1, 2, 3])}, "begins at step 0"),
        (
            {"starts": np.array([], np.int64), "terminated": np.array([], bool)},
            "at least one episode",
        ),
        ({"terminated": np.array([True])}, "3 values of terminated, one an episode, got 1"),
        ({"rewards": np.zeros(5, np.float32)}, r"2 axes and 5 steps, got shape \(6, 3\)"),
        ({"actions": np.zeros((6, 3), np.float32)}, "actions with 2 dimensions, got 3"),
        ({"references": (1.0, 1.0)}, "random policy's return below an expert's"),
        (
            {"observations": spoiled(some().observations, (4, 1), np.nan)},
            "expected finite observations, got .*nan.* at step 4",
        ),
        ({"rewards": spoiled(some().rewards, 3, np.inf)}, "finite rewards, got inf at step 3"),
        (
            {"actions": spoiled(some().actions, (5, 0), np.nan)},
            "expected finite actions, got .*nan.* at step 5",
        ),
        (
            {"actions": spoiled(some().actions, (2, 1), 1.001)},
            r"expected actions between -1.0 and 1.0, got .*1.001.* at step 2",
        ),
        (
            {"space": Space(shape=(), n=2), "actions": np.array([0, 1, 0, 2, 1, 1])},
            r"expected actions in \[0, 2\), got 2 at step 3",
        ),
    ],
)
def test_what_does_not_fit_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        some(**changes)


@pytest.mark.parametrize(
    ("shape", "n"), [((), None), ((2, 3), None), ((2,), 3)], ids=["no-box", "two-axes", "several"]
)
def test_an_unsupported_action_space_says_which_are_supported(shape, n):
    with pytest.raises(NotImplementedError, match=r"a box with one axis.*or discrete ones"):
        Space(shape=shape, n=n)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shape": (), "n": 0}, "n of at least 1"),
        ({"shape": (), "n": 2, "low": 0.0}, "no bounds"),
        ({"shape": (2,), "low": (0.0, 1.0, 2.0)}, "expected 2 values of low, got 3"),
        ({"shape": (2,), "low": 1.0, "high": 1.0}, "expected low below high"),
    ],
)
def test_a_space_that_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Space(**options)


def test_a_box_without_a_bound_in_one_dimension_is_not_bounded():
    assert Space(shape=(2,), low=-1.0, high=(1.0, 3.0)).bounded
    assert not Space(shape=(2,), low=-1.0, high=(1.0, np.inf)).bounded
    assert not Space(shape=(2,)).bounded
    assert not Space(shape=(), n=2).bounded
