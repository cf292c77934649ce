"""Minari's data sets: written ones are read again, by name and by folder; others are refused."""

import json
import re
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import h5py
import minari
import numpy as np
import pytest
from minari.data_collector import EpisodeBuffer

from flowformer.data.trajectories.d4rl import write_d4rl
from flowformer.data.trajectories.environments import REFERENCES, make_environment
from flowformer.data.trajectories.minari import (
    load_minari,
    local_minari,
    minari_folder,
    minari_record,
    open_trajectories,
    write_minari,
)
from flowformer.data.trajectories.records import (
    EnvironmentOptions,
    Space,
    Trajectories,
    WrapperOptions,
)
from tests.data.trajectories.test_records import require_same, some

CLIP_REWARD = "gymnasium.wrappers.transform_reward:ClipReward"
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


def of_minaris_own(
    environment: gymnasium.Env, *, evaluated_in: gymnasium.Env | None = None
) -> Trajectories:
    """What is read of a set that Minari wrote of an environment."""
    episode = EpisodeBuffer(
        id=0,
        observations=list(np.zeros((2, 3), np.float32)),
        actions=list(np.zeros((1, 1), np.float32)),
        rewards=[0.0],
        terminations=[False],
        truncations=[True],
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # whom to write to: nobody has said
        minari.create_dataset_from_buffers(
            "pendulum-any-v0", [episode], env=environment, eval_env=evaluated_in
        )
    return load_minari("pendulum-any-v0")


def test_the_environment_of_a_set_is_made_as_it_was_in_the_collection():
    collected = gymnasium.make("Pendulum-v1", g=3.0, max_episode_steps=55, render_mode="rgb_array")
    collected = gymnasium.wrappers.ClipReward(collected, max_reward=-1.0)
    collected = gymnasium.wrappers.RecordEpisodeStatistics(collected)  # changes nothing
    read = of_minaris_own(collected)
    assert read.env == "Pendulum-v1"
    assert read.env_options.in_words("it") == "it (g=3.0, 55 steps, in ClipReward)"
    made = make_environment("Pendulum-v1", options=read.env_options)
    assert made.spec is not None
    assert (made.spec.max_episode_steps, made.render_mode) == (55, None)
    assert made.unwrapped.g == 3.0  # pyright: ignore[reportAttributeAccessIssue] - Pendulum's
    assert isinstance(made, gymnasium.wrappers.ClipReward)


def test_the_environment_that_a_set_names_for_the_evaluation_is_taken():
    collected = gymnasium.make("Pendulum-v1", g=3.0)
    read = of_minaris_own(collected, evaluated_in=gymnasium.make("Pendulum-v1", g=4.0))
    assert read.env_options == EnvironmentOptions(kwargs={"g": 4.0})


def test_an_environment_as_its_name_says_has_no_options():
    assert of_minaris_own(gymnasium.make("Pendulum-v1")).env_options == EnvironmentOptions()


def test_an_environment_without_the_time_limit_of_its_name_has_none_again():
    read = of_minaris_own(gymnasium.make("Pendulum-v1", max_episode_steps=-1))
    made = make_environment("Pendulum-v1", options=read.env_options)
    assert made.spec is not None
    assert made.spec.max_episode_steps is None


@pytest.mark.parametrize("write", ["minari", "saved", "d4rl"])
def test_the_options_of_an_environment_are_kept_in_every_kind_of_set(write, tmp_path):
    options = EnvironmentOptions(
        kwargs={"sutton_barto_reward": True},
        max_episode_steps=9,
        wrappers=(WrapperOptions(entry_point=CLIP_REWARD, kwargs={"max_reward": 0.5}),),
    )
    one = some(
        name="cart-random-v0",
        env="CartPole-v1",
        observations=np.zeros((6, 4), np.float32),
        space=Space(shape=(), n=2),
        env_options=options,
    )
    path = tmp_path / ("it.hdf5" if write == "d4rl" else "it")
    if write == "minari":
        last = np.zeros((3, 4), np.float32)
        write_minari(one, last_observations=last, algorithm="a test", folder=path)
    elif write == "saved":
        one.save(path)
    else:
        write_d4rl(one, path)
    read = open_trajectories(path)
    assert read.env_options.in_words("it") == options.in_words("it")
    with pytest.raises(ValueError, match=r"environments .* CartPole-v1 \(sutton_barto_reward"):
        read.mixed(replace(one, env_options=EnvironmentOptions()))


def test_what_a_set_names_around_its_environment_is_not_imported_for_it():
    for entry_point in ("os:system", "antigravity:Fly", f"{__name__}:Path"):
        options = EnvironmentOptions(wrappers=(WrapperOptions(entry_point=entry_point, kwargs={}),))
        with pytest.raises(ImportError, match=f"wrapped in {entry_point}, and nothing has"):
            make_environment("Pendulum-v1", options=options)
    assert "antigravity" not in sys.modules


def test_a_set_without_spaces_is_refused_for_minari_would_run_what_it_names():
    folder = written()
    path = folder / "data" / "metadata.json"
    known = json.loads(path.read_text())
    del known["action_space"]
    path.write_text(json.dumps(known))
    with pytest.raises(ValueError, match=r"expected action_space in metadata\.json, found none"):
        load_minari(folder)


def test_arguments_that_an_environment_does_not_take_are_said():
    options = EnvironmentOptions(kwargs={"wind": 3})
    with pytest.raises(ValueError, match=r"Pendulum-v1 \(wind=3\) cannot be made: .*wind"):
        make_environment("Pendulum-v1", options=options)


def test_actions_that_rounding_puts_outside_their_box_are_clipped_and_told():
    folder = written()
    change_file(folder, "actions", np.array([[1.0000002, -1.0]]))
    with pytest.warns(UserWarning, match="1 of 6 actions are outside the box between -1.0 and 1.0"):
        read = load_minari(folder)
    assert read.actions.max() == 1


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
