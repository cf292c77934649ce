from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

from flowformer.data.trajectories.records import Space
from flowformer.rollouts.rollouts import Rollouts, episode_seed, rollout
from tests.rollouts.rollout_cases import (
    BOX,
    MAX_LENGTH,
    Scripted,
    Walk,
    build,
    numbers,
    settings,
)

EPISODES = 11


def play(model: Any = None, make_env: Any = Walk, **options: Any) -> Rollouts:
    called = {"target_return": 3.0, "episodes": EPISODES, "seed": 1, "settings": settings()}
    return rollout(build() if model is None else model, make_env, **{**called, **options})


def assert_same(first: Rollouts, second: Rollouts) -> None:
    np.testing.assert_allclose(first.returns, second.returns, rtol=0, atol=1e-5)
    assert first.lengths.tolist() == second.lengths.tolist()
    assert first.terminated.tolist() == second.terminated.tolist()


@pytest.mark.parametrize("mixer", ["flow", "softmax", "linear", "deltanet", "flow-gated", "mamba2"])
def test_a_carried_state_acts_as_a_window_of_the_whole_episode_does(mixer):
    model = build(mixer)
    streamed = play(model)
    assert_same(streamed, play(model, settings=settings(form="windowed", context=MAX_LENGTH)))
    short = play(model, settings=settings(form="windowed", context=1))
    assert not np.allclose(streamed.returns, short.returns, atol=1e-3)


def test_a_mixer_without_a_state_acts_in_a_window_only():
    model = build("synthesizer")
    assert play(model, settings=settings(form="windowed", context=5)).lengths.all()
    with pytest.raises(NotImplementedError, match="no state form"):
        play(model)
    with pytest.raises(NotImplementedError, match="Linear has no step that carries a state"):
        play(torch.nn.Linear(1, 1))


@pytest.mark.parametrize("form", ["streaming", "windowed"])
def test_how_many_run_at_a_time_changes_nothing(form):
    model, context = build(), 3 if form == "windowed" else None
    alone, three, all_at_once = (
        play(model, settings=settings(form=form, context=context, parallel=parallel))
        for parallel in (1, 3, 100)
    )
    assert_same(alone, three)
    assert_same(alone, all_at_once)


def test_every_episode_is_played_to_its_own_end_and_counted_once():
    env = Walk()
    lengths = []
    for episode in range(EPISODES):
        env.reset(seed=episode_seed(1, episode))
        lengths.append(env.left)
    assert len(set(lengths)) > 3
    played = play(settings=settings(parallel=4))
    assert played.lengths.tolist() == lengths
    assert played.terminated.tolist() == [length % 2 == 1 for length in lengths]


def test_the_return_is_the_sum_of_the_rewards():
    walk = Walk()
    walk.reset(seed=episode_seed(1, 0))
    total = 0.0
    while walk.left:
        total += walk.step(np.array([1.75], np.float32))[1]
    played = play(Scripted(0.25), episodes=1)
    assert played.returns.tolist() == [pytest.approx(total)]


def test_other_seeds_are_other_episodes_and_the_same_seed_the_same():
    model = build()
    first = play(model)
    assert first.returns.tolist() == play(model).returns.tolist()
    assert not set(first.returns) & set(play(model, seed=2).returns)
    seeds = {episode_seed(seed, episode) for seed in range(20) for episode in range(50)}
    assert len(seeds) == 1000


def test_the_model_reads_what_is_left_of_the_target_and_standardised_observations():
    model, shown = Scripted(0.0), []

    class Seen(Walk):
        def _show(self) -> Any:
            shown.append(super()._show())
            return shown[-1]

        def step(self, action: Any) -> Any:
            result = super().step(action)
            rewards.append(result[1])
            return result

    rewards = []
    played = play(model, Seen, episodes=1, target_return=50.0)
    left = (50.0 - np.cumsum([0.0, *rewards])[:-1]) / 10.0
    returns, states, _, times, _ = zip(*model.given, strict=True)
    np.testing.assert_allclose(torch.cat(returns), left, rtol=1e-6)
    expected = (np.array(shown[:-1]) - [0.0, 1.0]) / 2.0
    np.testing.assert_allclose(torch.cat(states), expected, rtol=1e-5)
    assert torch.cat(times).tolist() == list(range(played.lengths[0]))


@pytest.mark.parametrize(
    ("given", "taken", "remembered"),
    [(0.5, 2.5, 0.5), (-1.0, -2.0, -1.0), (7.0, 4.0, 1.0)],
    ids=["inside", "at the end", "clipped"],
)
def test_actions_are_mapped_to_the_box_and_remembered_as_the_model_has_them(
    given, taken, remembered
):
    model, env = Scripted(given), Walk()
    play(model, lambda: env, episodes=1)
    assert np.array(env.actions).ravel() == pytest.approx(taken)
    previous = [each[2] for each in model.given]
    assert previous[0] is None
    assert torch.cat(previous[1:]).tolist() == [[pytest.approx(remembered)]] * len(previous[1:])


def test_actions_without_bounds_are_taken_as_they_are():
    class Free(Walk):
        def __init__(self) -> None:
            super().__init__()
            self.action_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,))

    env = Free()
    play(
        Scripted(7.0),
        lambda: env,
        episodes=1,
        settings=settings(preprocessing=numbers(Space(shape=(1,)))),
    )
    assert np.array(env.actions).ravel() == pytest.approx(7.0)


def test_a_window_holds_the_last_steps_with_their_places_in_the_episode():
    model = Scripted(0.5)
    window = settings(form="windowed", context=3)
    length = play(model, episodes=1, settings=window, seed=5).lengths[0]
    assert length > 5
    for step, (returns, states, actions, times, mask) in enumerate(model.given):
        first = max(0, step - 2)
        assert times.tolist() == [list(range(first, step + 1))]
        assert returns.shape == times.shape == states.shape[:2]
        assert mask is None
        # The present action is still to be chosen.
        assert actions[0, :, 0].tolist() == [0.5] * (step - first) + [0.0]


@pytest.mark.parametrize("form", ["streaming", "windowed"])
def test_discrete_actions_are_the_most_probable_ones(form):
    model = Scripted(-1.0, 2.0)
    space = Space(shape=(), n=2)
    options = settings(
        preprocessing=numbers(space, features=4),
        form=form,
        context=3 if form == "windowed" else None,
    )
    played = play(model, lambda: gymnasium.make("CartPole-v1"), episodes=3, settings=options)
    assert played.returns.tolist() == played.lengths.tolist()
    assert played.terminated.all()
    assert played.lengths.max() < 15  # pushed to the right until the pole falls
    real = play(
        build(observation_dim=4, action_dim=None, num_actions=2),
        lambda: gymnasium.make("CartPole-v1"),
        episodes=3,
        settings=options,
    )
    assert real.lengths.min() >= 8


def test_an_environment_of_gymnasium_runs_until_its_time_limit():
    space = Space(shape=(1,), low=-2.0, high=2.0)
    played = play(
        build(observation_dim=3),
        lambda: gymnasium.make("Pendulum-v1", max_episode_steps=20),
        episodes=3,
        settings=settings(preprocessing=numbers(space, features=3)),
    )
    assert played.lengths.tolist() == [20] * 3
    assert not played.terminated.any()
    assert (played.returns < 0).all()


def test_an_episode_is_cut_off_after_the_most_steps():
    whole, cut = play(), play(settings=settings(max_steps=4, parallel=5))
    assert cut.lengths.tolist() == np.minimum(whole.lengths, 4).tolist()
    assert cut.terminated.tolist() == (whole.terminated & (whole.lengths <= 4)).tolist()


def test_progress_is_the_episodes_that_have_ended(told):
    play(settings=settings(parallel=4, max_steps=6))
    assert {(what, total) for what, _, total in told} == {("acting for a return of 3", EPISODES)}
    said = [done for _, done, _ in told]
    assert said == sorted(said)
    assert said[-1] == EPISODES
    assert {4, 8} <= set(said)


@pytest.mark.parametrize("fails", [False, True])
def test_the_training_mode_is_put_back_and_environments_are_closed(fails):
    envs = []

    def make() -> Walk:
        envs.append(Walk(bad=lambda step: (np.nan if fails and step == 2 else 0.0, 0.0)))
        return envs[-1]

    model = build().train()
    if fails:
        with pytest.raises(ValueError, match="NaN"):
            play(model, make)
    else:
        first = play(model, make)
        assert first.returns.tolist() == play(model).returns.tolist()  # no dropout
    assert model.training
    assert len(envs) == EPISODES
    assert all(env.closed for env in envs)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (lambda step: (np.nan if step == 0 else 0.0, 0.0), "infinite observation: .* 0, step 0"),
        (lambda step: (np.inf if step == 1 else 0.0, 0.0), "infinite observation: .* 0, step 1"),
        (lambda step: (0.0, np.nan if step == 2 else 0.0), "infinite reward: episode 0, step 2"),
    ],
    ids=["first", "observation", "reward"],
)
def test_what_is_nan_in_an_environment_is_said_with_its_place(bad, message):
    with pytest.raises(ValueError, match=message):
        play(make_env=lambda: Walk(bad=bad))


def test_a_model_that_gives_nan_does_not_act():
    with pytest.raises(ValueError, match="the model gave NaN or inf for an action"):
        play(Scripted(float("nan")))


class Shown(Walk):
    """With a space of its own."""

    def __init__(self, **spaces: Any) -> None:
        super().__init__()
        self.__dict__.update(spaces)


SPACES = gymnasium.spaces


@pytest.mark.parametrize(
    ("spaces", "error", "message"),
    [
        ({"observation_space": SPACES.Discrete(3)}, NotImplementedError, "FlattenObservation"),
        ({"observation_space": SPACES.Box(-1, 1, (3,))}, ValueError, "of 2 numbers.* got 3"),
        ({"action_space": SPACES.MultiDiscrete([2, 2])}, NotImplementedError, "MultiDiscrete"),
        ({"action_space": SPACES.Discrete(2, start=1)}, NotImplementedError, "from 0 on"),
        ({"action_space": SPACES.Box(0, 3, (1,), np.int64)}, NotImplementedError, "floating"),
        ({"action_space": SPACES.Discrete(2)}, ValueError, "expected the actions of the data"),
        ({"action_space": SPACES.Box(-2, 4, (2,))}, ValueError, "expected the actions of the"),
        ({"action_space": SPACES.Box(-2, 3, (1,))}, ValueError, "expected the actions of the"),
    ],
    ids=str,
)
def test_an_environment_that_is_not_the_datas_is_refused(spaces, error, message):
    with pytest.raises(error, match=message):
        play(make_env=lambda: Shown(**spaces))


def test_observations_of_several_axes_are_flattened():
    class Square(Walk):
        def __init__(self) -> None:
            super().__init__()
            self.observation_space = SPACES.Box(-np.inf, np.inf, (1, 2))

        def _show(self) -> Any:
            return super()._show()[None]

    model = build()
    assert_same(play(model, Square), play(model))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"episodes": 0}, "at least 1 episode .* got episodes=0"),
        ({"seed": -1}, "a seed from 0, got .*seed=-1"),
        ({"target_return": float("inf")}, "target_return must be finite, got inf"),
        ({"settings": settings(form="windowed")}, "'windowed' with one, got .*context=None"),
        ({"settings": settings(context=5)}, "'streaming' without a context, .*context=5"),
        ({"settings": settings(form="windowed", context=0)}, "context must be at least 1, got 0"),
    ],
    ids=str,
)
def test_a_wrong_argument_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        play(**options)


@pytest.mark.parametrize("name", ["parallel", "max_steps"])
def test_sizes_of_the_settings_are_positive(name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        settings(**{name: 0})


def test_the_space_of_the_case_is_the_environments():
    low, high = BOX.bounds
    space = Walk().action_space
    assert isinstance(space, gymnasium.spaces.Box)
    assert (low, high) == (space.low, space.high)
