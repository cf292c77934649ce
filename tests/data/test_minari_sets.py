"""Minari's data sets: written ones are read again, by name and by folder; others are refused."""

import json
import re
from pathlib import Path
from typing import Any

import h5py
import minari
import numpy as np
import pytest

from flowformer.data.d4rl_files import write_d4rl
from flowformer.data.environments import REFERENCES
from flowformer.data.minari_sets import (
    load_minari,
    local_minari,
    minari_folder,
    minari_record,
    open_trajectories,
    write_minari,
)
from flowformer.data.trajectories import Space, Trajectories
from tests.data.test_trajectories import require_same, some

LAST = np.arange(9, dtype=np.float32).reshape(3, 3)


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No sets of the person who runs this."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    return tmp_path / "minari"


def written(one: Trajectories | None = None, **options: Any) -> Path:
    if one is None:
        one = some(name="some-medium-v0", env=None)
    return write_minari(one, last_observations=LAST, algorithm="a test", **options)


@pytest.mark.parametrize(
    "space", [Space(shape=(2,), low=-1.0, high=1.0), Space(shape=(), n=4)], ids=["box", "discrete"]
)
@pytest.mark.parametrize("references", [None, (0.5, 7.0)], ids=["no-references", "references"])
def test_what_was_written_is_read_again(space, references, root):
    one = some(name="some-medium-v0", env=None, space=space, references=references)
    folder = written(one)
    assert folder == root / "some-medium-v0"
    require_same(one, load_minari("some-medium-v0"))
    require_same(one, load_minari(folder))


def test_minari_itself_reads_what_was_written():
    written()
    data = minari.load_dataset("some-medium-v0")
    assert data.total_steps == 6
    episodes = list(data.iterate_episodes())
    one = some()
    for episode, start, last in zip(episodes, one.starts, LAST, strict=True):
        steps = len(episode.rewards)
        np.testing.assert_array_equal(
            episode.observations[:-1], one.observations[start : start + steps]
        )
        np.testing.assert_array_equal(episode.observations[-1], last)
    assert [bool(episode.terminations[-1]) for episode in episodes] == [True, False, True]
    assert [bool(episode.truncations[-1]) for episode in episodes] == [False, True, False]
    # Minari's normalised score is a fraction, ours percent.
    scores = minari.get_normalized_score(data, np.array([8.0]))
    assert scores[0] * 100 == pytest.approx(load_minari("some-medium-v0").normalized(8.0))


def test_the_environment_is_kept():
    one = some(
        name="cart-random-v0",
        env="CartPole-v1",
        observations=np.zeros((6, 4), np.float32),
        space=Space(shape=(), n=2),
    )
    write_minari(one, last_observations=np.zeros((3, 4), np.float32), algorithm="a test")
    require_same(one, load_minari("cart-random-v0"))


def test_a_folder_of_ones_own_may_hold_a_set_with_more_to_keep(tmp_path):
    folder = written(folder=tmp_path / "own", record={"seed": 3})
    assert minari_record(folder)["seed"] == 3
    assert load_minari(folder).steps == 6
    assert local_minari() == []


def test_a_set_is_not_written_over(tmp_path):
    written(folder=tmp_path / "own")
    with pytest.raises(FileExistsError, match="expected a new folder"):
        written(folder=tmp_path / "own")


def test_a_failed_write_leaves_nothing(root, monkeypatch):
    monkeypatch.setattr(minari.MinariDataset, "__init__", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        written()
    monkeypatch.undo()
    assert list(root.iterdir()) == []


def test_a_set_that_is_not_here_says_which_are(monkeypatch, root):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(root))
    written()
    with pytest.raises(FileNotFoundError, match=r"other-v0 is neither .* some-medium-v0, which"):
        load_minari("other-v0")


def test_only_where_it_was_asked_for_a_set_is_fetched(monkeypatch):
    fetched = []

    def fetch(name: str) -> None:
        fetched.append(name)
        written()

    monkeypatch.setattr("minari.storage.hosting.download_dataset", fetch)
    with pytest.raises(FileNotFoundError):
        load_minari("some-medium-v0")
    assert fetched == []
    assert open_trajectories("some-medium-v0", download=True).steps == 6
    assert fetched == ["some-medium-v0"]


def test_a_set_without_references_of_its_own_has_d4rls():
    written(some(name="hopper-any-v0", env=None, references=None))
    assert load_minari("hopper-any-v0").references == REFERENCES["hopper"]


def change_file(folder: Path, name: str, value: np.ndarray) -> None:
    with h5py.File(folder / "data" / "main_data.hdf5", "a") as file:
        group = file["episode_1"]
        assert isinstance(group, h5py.Group)
        del group[name]
        group[name] = value


def with_nan(folder: Path) -> None:
    change_file(folder, "observations", np.array([[np.nan, 0, 0], [0, 0, 0]]))


def without_steps(folder: Path) -> None:
    change_file(folder, "rewards", np.zeros(0))


def with_too_few_actions(folder: Path) -> None:
    change_file(folder, "actions", np.zeros((0, 2)))


def truncated(folder: Path) -> None:
    path = folder / "data" / "main_data.hdf5"
    path.write_bytes(path.read_bytes()[:-100])


def without_an_array(folder: Path) -> None:
    with h5py.File(folder / "data" / "main_data.hdf5", "a") as file:
        del file["episode_2/rewards"]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (with_nan, "expected finite observations, got .*nan.* at step 2"),
        (without_steps, "expected at least one step in episode 1, got none"),
        (with_too_few_actions, "expected 1 actions and 2 observations in episode 1, got 0 and 2"),
        (truncated, "expected a whole Minari data set, got a damaged one"),
        (without_an_array, "expected a whole Minari data set, got a damaged one"),
    ],
)
def test_what_is_wrong_is_said_with_the_folder(spoil, message):
    folder = written()
    spoil(folder)
    with pytest.raises(ValueError, match=f"{re.escape(str(folder))}: .*{message}"):
        load_minari(folder)


@pytest.mark.parametrize(
    ("which", "space", "message"),
    [
        (
            "action_space",
            {"type": "MultiDiscrete", "dtype": "int64", "nvec": [2, 3], "start": [0, 0]},
            "expected actions of a Box with one axis or Discrete",
        ),
        (
            "observation_space",
            {"type": "Discrete", "dtype": "int64", "n": 4, "start": 0},
            "expected observations of a Box",
        ),
    ],
    ids=["actions", "observations"],
)
def test_unsupported_spaces_say_which_are_supported(which, space, message):
    folder = written()
    path = folder / "data" / "metadata.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {which: json.dumps(space)}))
    with pytest.raises(NotImplementedError, match=message):
        load_minari(folder)


def test_one_door_opens_every_kind_of_set(tmp_path):
    one = some(name="some-medium-v0", env=None)
    written(one)
    one.save(tmp_path / "saved")
    write_d4rl(one, tmp_path / "some.hdf5")
    for name in ("some-medium-v0", tmp_path / "saved", tmp_path / "some.hdf5"):
        require_same(one, open_trajectories(name))
    assert minari_folder("some.hdf5") is None
