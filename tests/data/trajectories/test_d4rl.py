"""D4RL's files are read and written; what is damaged or leads elsewhere is refused."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from flowformer.data.trajectories.d4rl import (
    read_d4rl,
    read_numbers,
    read_words,
    require_own,
    write_d4rl,
)
from flowformer.data.trajectories.environments import references_of
from flowformer.data.trajectories.minari import open_trajectories
from flowformer.data.trajectories.records import EnvironmentOptions, Space
from flowformer.train.trajectories.config import DecisionDataConfig
from flowformer.train.trajectories.data import load_trajectories
from tests.data.trajectories.test_records import require_same, some

STEPS = 7
WIDE = Space(shape=(2,), low=-1.0, high=4.0)


def d4rl_file(path: Path, **changes: Any) -> Path:
    """Episodes of 2, 3 and 2 steps: a terminal, a timeout, and a last one without an end."""
    random = np.random.default_rng(0)
    arrays: dict[str, Any] = {
        "observations": random.normal(size=(STEPS, 3)).astype(np.float32),
        "actions": random.uniform(-1, 1, (STEPS, 2)).astype(np.float32),
        "rewards": np.arange(STEPS, dtype=np.float32),
        "terminals": np.arange(STEPS) == 1,
        "timeouts": np.arange(STEPS) == 4,
    }
    with h5py.File(path, "w") as file:
        for name, array in (arrays | changes).items():
            if array is not None:
                file[name] = array
    return path


def test_an_episode_ends_at_a_terminal_or_a_timeout_and_the_last_is_cut_off(tmp_path):
    read = read_d4rl(d4rl_file(tmp_path / "some-medium.hdf5"))
    assert read.lengths.tolist() == [2, 3, 2]
    assert read.terminated.tolist() == [True, False, False]
    assert read.returns.tolist() == [1, 9, 11]
    assert read.action_space == Space(shape=(2,), low=-1.0, high=1.0)
    assert (read.name, read.env, read.references) == ("some-medium", None, None)


def test_the_larger_layout_is_read_alike(tmp_path):
    flat = read_d4rl(d4rl_file(tmp_path / "some.hdf5"))
    larger = {
        "next_observations": np.zeros((STEPS, 3), np.float32),
        "infos/qpos": np.zeros((STEPS, 4)),
        "infos/action_log_probs": np.zeros(STEPS),
        "metadata/policy/fc0/weight": np.zeros((8, 3)),
        "metadata/algorithm": "SAC",
    }
    require_same(flat, read_d4rl(d4rl_file(tmp_path / "some.hdf5", **larger)))


def test_columns_of_old_files_are_read_alike(tmp_path):
    flat = read_d4rl(d4rl_file(tmp_path / "some.hdf5"))
    old = {
        "rewards": np.arange(STEPS, dtype=np.float64)[:, None],
        "terminals": (np.arange(STEPS) == 1)[:, None],
        "timeouts": (np.arange(STEPS) == 4)[:, None],
        "observations": flat.observations.astype(np.float64),
    }
    require_same(flat, read_d4rl(d4rl_file(tmp_path / "some.hdf5", **old)))


@pytest.mark.parametrize(
    ("time_limit", "lengths"),
    [(1, [1] * 7), (2, [2, 2, 2, 1]), (3, [2, 3, 2]), (5, [2, 5]), (100, [2, 5])],
)
def test_without_timeouts_episodes_end_at_a_time_limit(tmp_path, time_limit, lengths):
    path = d4rl_file(tmp_path / "some.hdf5", timeouts=None)
    read = read_d4rl(path, time_limit=time_limit)
    assert read.lengths.tolist() == lengths
    assert read.terminated.sum() == 1


@pytest.mark.parametrize(
    ("name", "env"),
    [
        ("hopper_medium-v2", "Hopper-v5"),
        ("halfcheetah_random-v2", "HalfCheetah-v5"),
        ("walker2d_medium_replay-v2", "Walker2d-v5"),
    ],
)
def test_a_file_of_a_known_environment_has_its_reference_returns(tmp_path, name, env):
    read = read_d4rl(d4rl_file(tmp_path / f"{name}.hdf5"))
    assert read.env == env
    assert read.references == references_of(env, "any") is not None
    assert "not D4RL's v2" in read.source


@pytest.mark.parametrize(
    "space", [Space(shape=(2,), low=-1.0, high=1.0), Space(shape=(), n=4)], ids=["box", "discrete"]
)
@pytest.mark.parametrize("references", [None, (0.5, 7.0)], ids=["no-references", "references"])
def test_what_was_written_is_read_again(tmp_path, space, references):
    one = some(space=space, references=references)
    write_d4rl(one, tmp_path / "other name.hdf5")
    require_same(one, read_d4rl(tmp_path / "other name.hdf5"))


def test_a_written_file_has_the_arrays_of_d4rl(tmp_path):
    one = some()
    write_d4rl(one, tmp_path / "some.hdf5")
    with h5py.File(tmp_path / "some.hdf5") as file:
        read = {name: np.asarray(file[name]).tolist() for name in ("terminals", "timeouts")}
        np.testing.assert_array_equal(np.asarray(file["observations"]), one.observations)
    assert read["terminals"] == [False, True, False, False, False, True]
    assert read["timeouts"] == [False, False, True, False, False, False]


def nan_observation(path: Path) -> Path:
    observations = np.zeros((STEPS, 3), np.float32)
    observations[4, 1] = np.nan
    return d4rl_file(path, observations=observations)


def truncated(path: Path) -> Path:
    d4rl_file(path)
    path.write_bytes(path.read_bytes()[:-200])
    return path


def no_hdf5(path: Path) -> Path:
    path.write_bytes(b"<html>not found</html>")
    return path


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (truncated, "expected a whole HDF5 file, got a damaged or truncated one"),
        (no_hdf5, "expected a whole HDF5 file"),
        (nan_observation, r"expected finite observations, got .*nan.* at step 4"),
        (
            lambda path: d4rl_file(path, rewards=None),
            "and rewards is not among actions, observations, terminals, timeouts",
        ),
        (lambda path: d4rl_file(path, timeouts=None), "expected an array timeouts.*time_limit"),
        (
            lambda path: d4rl_file(path, rewards=np.zeros(5)),
            "arrays of one length, got 7 observations and 5 rewards",
        ),
        (lambda path: d4rl_file(path, actions=np.full((STEPS, 2), 3.0)), "actions between"),
        (
            lambda path: d4rl_file(path, actions=np.full((STEPS, 2), 3.0)),
            r"got some from 0 to 3: give their bounds by --data\.action-bounds LOW HIGH",
        ),
        (
            lambda path: d4rl_file(path, timeouts=None),
            r"an array timeouts.*--data\.time-limit STEPS",
        ),
        (lambda path: d4rl_file(path, terminals=None), "and terminals is not among"),
        (
            lambda path: d4rl_file(path, terminals=np.full(STEPS, np.nan)),
            "expected 0 and 1 in terminals, got other values",
        ),
        (
            lambda path: d4rl_file(path, rewards=np.zeros((STEPS, 2))),
            "arrays of one length, got 7 observations and 14 rewards",
        ),
        (
            lambda path: d4rl_file(path, actions=np.zeros((STEPS, 2), np.int64)),
            r"whole numbers \[steps\], got shape \(7, 2\) of int64",
        ),
        (
            lambda path: d4rl_file(path, actions=np.zeros(STEPS, np.float32)),
            r"got shape \(7,\) of float32: .* --data\.num-actions N",
        ),
        (
            lambda path: d4rl_file(path, actions=-np.arange(STEPS)),
            "expected discrete actions from 0 on, got -6",
        ),
        (
            lambda path: d4rl_file(
                path,
                observations=np.zeros((0, 3)),
                actions=np.zeros((0, 2)),
                **dict.fromkeys(("rewards", "terminals", "timeouts"), np.zeros(0)),
            ),
            "at least one step, got none",
        ),
    ],
    ids=[
        "truncated",
        "no-hdf5",
        "nan",
        "missing-array",
        "no-timeouts",
        "several-lengths",
        "outside-the-box",
        "other-bounds",
        "no-timeouts-on-the-command-line",
        "no-terminals",
        "nan-terminals",
        "several-rewards",
        "several-discrete",
        "a-number-each",
        "below-0",
        "no-steps",
    ],
)
def test_what_is_wrong_is_said_with_the_name_of_the_file(
    tmp_path, make: Callable[[Path], Path], message
):
    path = make(tmp_path / "some.hdf5")
    with pytest.raises(ValueError, match=rf"some\.hdf5: .*{message}"):
        read_d4rl(path)


@pytest.mark.parametrize(
    ("actions", "options", "space"),
    [
        (np.array([0, 1, 2, 0, 1, 2, 1]), {}, Space(shape=(), n=3)),
        (np.array([0, 1, 2, 0, 1, 2, 1], np.uint8)[:, None], {}, Space(shape=(), n=3)),
        (np.array([0, 1, 0, 0, 1, 0, 1], bool), {}, Space(shape=(), n=2)),
        (np.array([0, 1, 0, 0, 1, 0, 1]), {"num_actions": 4}, Space(shape=(), n=4)),
        (np.array([0.0, 1, 0, 0, 1, 0, 1]), {"num_actions": 2}, Space(shape=(), n=2)),
        (np.full((STEPS, 2), 3.0), {"action_bounds": (-1.0, 4.0)}, WIDE),
        (np.full(STEPS, 3.0), {"action_bounds": (0.0, np.inf)}, Space(shape=(1,), low=0.0)),
    ],
    ids=["discrete", "column-of-bytes", "booleans", "more", "as-floats", "bounds", "half-bounded"],
)
def test_the_space_of_actions_is_read_from_the_values_or_given(tmp_path, actions, options, space):
    read = read_d4rl(d4rl_file(tmp_path / "some.hdf5", actions=actions), **options)
    assert read.action_space == space
    assert read.actions.reshape(-1).tolist() == actions.reshape(-1).tolist()


def test_whole_numbers_are_asked_for_where_actions_are_discrete(tmp_path):
    path = d4rl_file(tmp_path / "some.hdf5", actions=np.full(STEPS, 0.5))
    with pytest.raises(ValueError, match="expected whole numbers as discrete actions"):
        read_d4rl(path, num_actions=3)


@pytest.mark.parametrize("value", [1.0000001, 1.0001, -1.0001])
def test_actions_that_rounding_puts_outside_are_clipped_and_told(tmp_path, value):
    actions = np.zeros((STEPS, 2))
    actions[3, 1] = value
    path = d4rl_file(tmp_path / "some.hdf5", actions=actions)
    with pytest.warns(UserWarning, match="1 of 7 actions are outside the box between -1.0 and 1.0"):
        read = read_d4rl(path)
    assert read.actions[3, 1] == np.sign(value)


@pytest.mark.parametrize("kind", [np.uint8, np.float32])
def test_pictures_are_refused_by_name(tmp_path, kind):
    path = d4rl_file(tmp_path / "some.hdf5", observations=np.zeros((STEPS, 8, 8, 3), kind))
    with pytest.raises(NotImplementedError, match=r"some\.hdf5: .*pictures of shape \(8, 8, 3\)"):
        read_d4rl(path)


def test_numbers_of_states_are_refused_by_name(tmp_path):
    path = d4rl_file(tmp_path / "some.hdf5", observations=np.arange(STEPS))
    with pytest.raises(NotImplementedError, match="discrete ones are not supported"):
        read_d4rl(path)


def test_other_kinds_of_numbers_are_read_alike(tmp_path):
    flat = read_d4rl(d4rl_file(tmp_path / "some.hdf5"))
    kinds = {"rewards": np.arange(STEPS), "observations": flat.observations.astype(np.float64)}
    require_same(flat, read_d4rl(d4rl_file(tmp_path / "some.hdf5", **kinds)))


def test_a_time_limit_is_that_of_the_environment_too(tmp_path):
    path = d4rl_file(tmp_path / "hopper_any-v2.hdf5", timeouts=None)
    assert read_d4rl(path, time_limit=3).env_options == EnvironmentOptions(max_episode_steps=3)
    assert read_d4rl(path, time_limit=1000).env_options == EnvironmentOptions()  # as its name says


def test_what_a_file_says_itself_is_not_given(tmp_path):
    path = d4rl_file(tmp_path / "some.hdf5")
    with pytest.raises(ValueError, match="timeouts says where episodes end"):
        read_d4rl(path, time_limit=3)
    with pytest.raises(ValueError, match="expected one of an action space"):
        read_d4rl(path, num_actions=3, action_bounds=(0.0, 1.0))
    some().save(tmp_path / "saved")
    with pytest.raises(ValueError, match=r"for files of D4RL's alone, and .*saved is none"):
        open_trajectories(tmp_path / "saved", time_limit=3)


def test_the_configuration_says_what_a_file_does_not(tmp_path):
    actions = np.arange(STEPS) % 2
    path = d4rl_file(tmp_path / "some.hdf5", timeouts=None, actions=actions)
    config = DecisionDataConfig(path=path, time_limit=3, num_actions=4)
    read = load_trajectories(config)
    assert read.lengths.tolist() == [2, 3, 2]
    assert read.action_space.n == 4
    mixed = load_trajectories(replace(config, mixed_with=str(path)))
    assert len(mixed) == 6
    with pytest.raises(ValueError, match="action_bounds must be two values, the lower first"):
        DecisionDataConfig(path=path, action_bounds=(1.0, -1.0))


def test_a_file_that_is_missing_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"found none: .*some\.hdf5"):
        read_d4rl(tmp_path / "some.hdf5")


def test_without_h5py_the_extra_is_named(tmp_path, monkeypatch):
    path = d4rl_file(tmp_path / "some.hdf5")
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ImportError, match=r"h5py is needed .*'flowformer\[rl\]'"):
        read_d4rl(path)


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A file that is none of the data set's."""
    path = tmp_path / "elsewhere.hdf5"
    with h5py.File(path, "w") as file:
        file["secret"] = np.arange(4.0)
    return path


def another(folder: Path, kind: str, elsewhere: Path) -> Path:
    """A file whose array `observations` is of a kind."""
    path = folder / "hopper-x-v0.hdf5"
    raw = folder / "raw"
    raw.write_bytes(bytes(32))
    layout = h5py.VirtualLayout((4,), float)
    layout[:] = h5py.VirtualSource(elsewhere, "secret", (4,))
    with h5py.File(path, "w") as file:
        for name in ("actions", "rewards", "terminals", "timeouts"):
            file[name] = np.zeros((4, 1), np.float32)
        file["real"] = np.arange(4.0)
        match kind:
            case "external-link":
                file["observations"] = h5py.ExternalLink(elsewhere, "secret")
            case "soft-link":
                file["observations"] = h5py.SoftLink("/real")
            case "external-values":
                raw_part = [(str(raw), 0, 32)]
                file.create_dataset("observations", (4,), float, external=raw_part)
            case "virtual":
                file.create_virtual_dataset("observations", layout)
            case "bomb":
                file.create_dataset("observations", (2**40,), "f4", chunks=(2**16,))
            case "text":
                file["observations"] = [b"one", b"two"]
            case "group":
                file.create_group("observations")
            case "empty":
                file["observations"] = h5py.Empty(float)
    return path


KINDS = {
    "external-link": "expected observations in this file, got a link",
    "soft-link": "expected observations in this file, got a link",
    "external-values": "expected the values of /observations in this file",
    "virtual": "expected the values of /observations in this file",
    "bomb": r"expected in /observations what the file can hold, got 4,398,046,511,104 bytes from 0",
    "text": "expected numbers in observations",
    "group": "expected an array observations",
    "empty": "expected an array observations",
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_array_of_the_file_itself_is_refused(kind, tmp_path, elsewhere):
    path = another(tmp_path, kind, elsewhere)
    with h5py.File(path) as file, pytest.raises(ValueError, match=KINDS[kind]):
        read_numbers(file, "observations")
    with pytest.raises(ValueError, match=f"^{path}: {KINDS[kind]}"):
        read_d4rl(path)


@pytest.mark.parametrize("kind", ["external-link", "external-values", "virtual", "bomb"])
def test_it_is_refused_in_a_group_too(kind, tmp_path, elsewhere):
    with h5py.File(another(tmp_path, kind, elsewhere), "a") as file:
        file.create_group("episode_0")
        file.move("observations", "episode_0/observations")
        with pytest.raises(ValueError, match="expected"):
            require_own(file)
        del file["episode_0"]
        require_own(file)
        file["a/heap"] = "of variable length: found by fuzzing to be looked for for ever"
        with pytest.raises(ValueError, match="expected values of fixed length in /a/heap"):
            require_own(file)


def test_what_deflate_makes_small_is_read(tmp_path):
    zeros = np.zeros(10**7, np.float32)
    with h5py.File(tmp_path / "x", "w") as file:
        file.create_dataset("zeros", data=zeros, compression="gzip", chunks=True)
        assert file["zeros"].id.get_storage_size() < zeros.nbytes / 200
        np.testing.assert_array_equal(read_numbers(file, "zeros"), zeros)


def test_a_text_is_read_and_numbers_are_none(tmp_path):
    with h5py.File(tmp_path / "x", "w") as file:
        file["a/words"] = np.bytes_("some words")
        file["a/number"] = 3
        file["a/heap"] = "of variable length"
        assert read_words(file, "a/words") == b"some words"
        for name in ("a/number", "a", "a/nothing", "a/heap"):
            with pytest.raises(ValueError, match=f"expected .*{name}"):
                read_words(file, name)
