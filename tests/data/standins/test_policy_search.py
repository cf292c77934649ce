"""Episodes and the search for policies: the same from the same seed, wherever they are played."""

import importlib.abc
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flowformer.data.parallel import Workers
from flowformer.data.standins.episodes import Episode, LinearPolicy, Rollout, roll_out
from flowformer.data.standins.policy_search import Search, SearchConfig, run_search, search_of
from flowformer.data.trajectories.environments import make_environment, space_of
from flowformer.data.trajectories.records import Space
from tests.data.walks import STEPS, WALK

SMALL = SearchConfig(env=WALK, iterations=7, directions=3, top=2, step_size=0.2, noise=0.3)


def walk(*, env: str = "Walk-v0", gain: float | None = 0.0, **options: Any) -> Episode:
    policy = None
    if gain is not None:
        rows = 3 if env == "Steps-v0" else 1
        policy = LinearPolicy(np.full((rows, 2), gain), np.zeros(rows))
    values = {"env": f"tests.data.walks:{env}", "policy": policy, "seed": 3, **options}
    return roll_out(Rollout(**values))


def search(folder: Path, *, workers: int = 1, **changes: Any) -> Search:
    with Workers(workers) as pool:
        return run_search(replace(SMALL, **changes), folder=folder, workers=pool)


def require_same(one: Search, other: Search) -> None:
    for name, value in vars(one).items():
        if name != "seconds":
            np.testing.assert_array_equal(value, getattr(other, name), err_msg=name)


def test_an_episode_has_one_observation_more_than_actions():
    played = walk(gain=None)
    steps = len(played.rewards)
    assert played.observations.shape == (steps + 1, 2)
    assert played.actions.shape == (steps, 1)
    assert played.score == pytest.approx(played.rewards.sum())


@pytest.mark.parametrize("env", ["Walk-v0", "Steps-v0"])
@pytest.mark.parametrize("gain", [None, 0.0], ids=["uniform", "policy"])
def test_the_same_seed_plays_the_same_episode_and_another_another(env, gain):
    one, again, other = (walk(env=env, gain=gain, noise=0.5, seed=seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(one.observations, again.observations)
    np.testing.assert_array_equal(one.actions, again.actions)
    assert one.observations[0].tolist() != other.observations[0].tolist()


def test_without_noise_a_policy_spreads_its_scores_over_the_box():
    # Scores of 0 are the middle of [-1, 3], large ones its edge.
    assert set(walk(gain=0.0).actions.ravel().tolist()) == {1.0}
    assert set(walk(gain=100.0).actions.ravel().tolist()) == {3.0}


def test_noisy_actions_differ_and_stay_in_the_box():
    actions = np.concatenate([walk(gain=100.0, noise=1.0, seed=seed).actions for seed in range(20)])
    assert actions.max() == 3.0
    assert -1 <= actions.min() < 3.0


def test_noise_draws_some_of_the_discrete_actions():
    drawn = [walk(env="Steps-v0", noise=noise).actions for noise in (0.0, 1.0)]
    assert [len(set(actions.tolist())) > 1 for actions in drawn] == [False, True]


def test_the_time_limit_does_not_terminate_an_episode():
    push = walk(gain=100.0)
    assert (push.terminated, len(push.rewards) < STEPS) == (True, True)
    for seed in range(20):
        stay = walk(env="Steps-v0", noise=1.0, seed=seed)
        if len(stay.rewards) == STEPS:
            assert not stay.terminated
            return
    pytest.fail("expected one of 20 random walks to last")


@pytest.mark.parametrize("env", ["Even-v0", "Steps-v0", "Free-v0"])
def test_the_search_finds_a_better_policy(tmp_path, env):
    found = search(tmp_path, env=f"tests.data.walks:{env}", iterations=21, directions=6)
    assert found.scores[found.best] > found.scores[0] + 5


@pytest.mark.parametrize(
    ("score", "nearest"), [(0.0, 0), (4.0, 0), (6.0, 2), (11.0, 2), (16.0, 4), (30.0, 4), (99.0, 6)]
)
def test_the_policy_nearest_to_a_score_is_sought_on_the_way_to_it(tmp_path, score, nearest):
    found = search(tmp_path, iterations=1)
    found.scores = [1.0, np.nan, 8.0, np.nan, 20.0, 9.0, 45.0]
    assert found.nearest(score) == nearest
    assert found.ranked(2) == [6, 4]


def test_only_every_few_iterations_a_policy_is_tried(tmp_path):
    assert np.isfinite(search(tmp_path).scores).tolist() == [True, *[False] * 4, True, False]


def test_observations_are_normalised_by_all_that_was_seen(tmp_path, monkeypatch):
    played: list[np.ndarray] = []

    def keep(rollout: Rollout) -> Episode:
        episode = roll_out(rollout)
        played.append(episode.observations[:-1])
        return episode

    monkeypatch.setattr("flowformer.data.standins.policy_search.roll_out", keep)
    found = search(tmp_path, iterations=1, evaluations=1)
    observations = np.concatenate(played[:-1]).astype(np.float64)  # the last is a trial's
    np.testing.assert_allclose(found.mean, observations.mean(axis=0))
    np.testing.assert_allclose(found.squares / found.seen, observations.var(axis=0), atol=1e-9)
    spread = np.array([observations[:, 0].std(), 1.0])  # the second feature never changes
    np.testing.assert_allclose(found.gains[0], found.weights / spread)
    np.testing.assert_allclose(found.gains[0] @ found.mean + found.offsets[0], 0, atol=1e-12)


def test_a_search_that_was_stopped_ends_the_same(tmp_path):
    straight = search(tmp_path / "straight")
    for iterations in (1, 4, 7):
        stopped = search(tmp_path / "stopped", iterations=iterations)
        assert stopped.iterations == iterations
    require_same(straight, stopped)
    require_same(straight, search(tmp_path / "stopped", iterations=2))  # it is further already


def test_a_search_that_was_killed_ends_the_same(tmp_path, monkeypatch):
    straight = search(tmp_path / "straight")
    played = 0

    def die(rollout: Rollout) -> Episode:
        nonlocal played
        played += 1
        if played == 50:
            raise KeyboardInterrupt
        return roll_out(rollout)

    monkeypatch.setattr("flowformer.data.standins.policy_search.roll_out", die)
    with pytest.raises(KeyboardInterrupt):
        search(tmp_path / "killed")
    monkeypatch.undo()
    require_same(straight, search(tmp_path / "killed"))


def test_a_search_stops_after_its_seconds(tmp_path):
    with Workers(1) as pool:
        assert run_search(SMALL, folder=tmp_path, workers=pool, seconds=0.0).iterations == 1
        assert run_search(SMALL, folder=tmp_path, workers=pool, seconds=0.0).iterations == 1


def test_a_folder_of_another_search_is_refused(tmp_path):
    search(tmp_path, iterations=1)
    with pytest.raises(ValueError, match="other settings of a search: seed is 0"):
        search(tmp_path, seed=1)


@pytest.mark.parametrize("keep", [0, 100, -30])
def test_a_damaged_search_is_refused(tmp_path, keep):
    search(tmp_path, iterations=1)
    path = tmp_path / "state.npz"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match="holds a damaged search: delete it"):
        search(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"iterations": 0}, "iterations must be at least 1, got 0"),
        ({"top": 9}, "top must be at most directions, got top=9 and directions=8"),
        ({"noise": 0.0}, "noise must be above 0"),
        ({"step_size": -1.0}, "step_size must be above 0"),
    ],
)
def test_settings_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SearchConfig(env=WALK, **options)


def test_known_environments_have_settings_of_their_own():
    hopper = search_of("Hopper-v5", seed=2, iterations=9)
    assert (hopper.alive_bonus, hopper.seed, hopper.iterations) == (1.0, 2, 9)
    assert search_of("Other-v0") == SearchConfig(env="Other-v0")


@pytest.mark.parametrize("env", ["Several-v0", "Square-v0", "Later-v0"])
def test_unsupported_actions_say_which_are_supported(env):
    with pytest.raises(NotImplementedError, match="a Box with one axis or Discrete"):
        walk(env=env)


def test_unsupported_observations_say_which_are_supported():
    with pytest.raises(NotImplementedError, match="expected observations of a Box"):
        walk(env="Numbered-v0")


def test_without_bounds_no_action_is_drawn():
    with pytest.raises(NotImplementedError, match="without bounds cannot be drawn"):
        walk(env="Free-v0", gain=None)


def test_an_environment_without_a_time_limit_is_refused():
    with pytest.raises(ValueError, match="expected an environment with a time limit"):
        walk(env="Endless-v0")


@pytest.mark.parametrize("env", ["NoSuch-v0", "Hopper-v99", "no name"])
def test_an_unknown_environment_is_refused(env):
    with pytest.raises(ValueError, match="gymnasium has no environment"):
        make_environment(env)


def test_without_gymnasium_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    with pytest.raises(ImportError, match=r"pip install 'flowformer\[rl\]'"):
        make_environment(WALK)


def test_a_library_that_mujoco_is_to_draw_with_is_named_when_missing(monkeypatch):
    class Missing(importlib.abc.MetaPathFinder):
        def find_spec(self, fullname: str, *_: object) -> None:
            if fullname == "mujoco":  # what its import of PyOpenGL comes to
                raise AttributeError("'NoneType' object has no attribute 'glGetError'")

    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    monkeypatch.delitem(sys.modules, "mujoco", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Missing(), *sys.meta_path])
    with pytest.raises(ImportError, match=r"no library for MUJOCO_GL=osmesa .* libosmesa6"):
        make_environment("Hopper-v5")


def test_a_box_with_one_pair_of_bounds_says_so_once():
    environment = make_environment(WALK)
    assert space_of(environment.action_space) == Space(shape=(1,), low=-1.0, high=3.0)


@pytest.mark.parametrize(
    ("scores", "threshold", "perfect"),
    [
        ([9, 500, 500, 500], 475.0, True),
        ([9, 500, np.nan, 500, np.nan, np.nan, 500], 475.0, True),
        ([9, 500, 500, 500], None, True),
        ([9, 500, 500], 475.0, False),
        ([9, 500, 499, 500, 500], 475.0, False),
        ([9, 500, 400, 400, 400], 300.0, False),
        ([-200, -200, -200, -200], -110.0, False),  # it has never come to the goal
        ([0, 0, 0, 0], None, False),
    ],
)
def test_a_search_has_nothing_left_to_find_once_all_trials_return_the_best(
    scores, threshold, perfect
):
    search = Search(
        weights=np.zeros((1, 1)),
        seen=0,
        mean=np.zeros(1),
        squares=np.zeros(1),
        gains=[],
        offsets=[],
        scores=[float(score) for score in scores],
    )
    assert search.is_perfect(threshold) is perfect


def test_a_perfect_search_ends_and_stays_ended(tmp_path, monkeypatch):
    def improve(_config: SearchConfig, search: Search, _workers: Workers) -> None:
        search.gains.append(search.weights)
        search.offsets.append(np.zeros(2))
        search.scores.append(min(500.0, 200.0 * len(search.gains)))

    monkeypatch.setattr("flowformer.data.standins.policy_search._iterate", improve)
    for iterations in (50, 60):
        config = SearchConfig(env="CartPole-v1", iterations=iterations)
        search = run_search(config, folder=tmp_path, workers=Workers(1))
        assert search.scores == [200, 400, 500, 500, 500]
