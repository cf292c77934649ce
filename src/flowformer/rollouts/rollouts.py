"""Decision models in gymnasium's environments: whole episodes, many at once, seeded one by one.

The environments of a batch are stepped each on its own, not by gymnasium's vector environment: that
steps all or none, so that those whose episode has ended would go on, in whatever autoreset mode.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64

from flowformer.data.trajectories.batches import Actions, DecisionPreprocessing
from flowformer.names import check_sizes
from flowformer.progress import Work, working
from flowformer.rollouts.policy import DecisionModel, Form, make_policy

try:
    import gymnasium
except ImportError as error:
    raise ImportError("gymnasium is needed for rollouts: pip install 'flowformer[rl]'") from error

MakeEnvironment = Callable[[], gymnasium.Env[Any, Any]]


@dataclass(frozen=True, kw_only=True, eq=False)
class RolloutSettings:
    """How a model acts in an environment.

    Attributes:
        preprocessing: the preprocessing of its training.
        form: "streaming" carries the model's state over the whole episode, at a constant cost a
            step where the state has a constant size; "windowed" reads the last `context` steps
            again at every step, as published.
        context: steps of the windowed form; None for the other.
        parallel: most episodes at a time.
        max_steps: where an episode is cut off that the environment has not ended.
    """

    preprocessing: DecisionPreprocessing
    form: Form = "streaming"
    context: int | None = None
    parallel: int = 16
    max_steps: int = 1000

    def __post_init__(self) -> None:
        check_sizes(self, "parallel", "max_steps")


@dataclass(frozen=True, kw_only=True, eq=False)
class Rollouts:
    """The results of episodes.

    Attributes:
        target_return: the return that the model was asked for.
        form: the form in which it acted.
        context: steps that it read in the windowed form.
        seed: the seed from which the episodes' own are drawn.
        returns: sum of the rewards of each episode.
        lengths: the steps of each episode.
        terminated: whether the environment ended it, and no limit of time.
    """

    target_return: float
    form: Form
    context: int | None
    seed: int
    returns: Float64[np.ndarray, " episodes"]
    lengths: Int64[np.ndarray, " episodes"]
    terminated: Bool[np.ndarray, " episodes"]


def rollout(
    model: DecisionModel,
    make_env: MakeEnvironment,
    *,
    target_return: float,
    episodes: int,
    seed: int,
    settings: RolloutSettings,
) -> Rollouts:
    """Let the model act for whole episodes, each asked for the target return.

    At each step the model reads the return still to be collected: the target less the rewards.
    An episode's seed depends on `seed` and its number alone, so that no other episode changes it;
    how many run at a time changes no more than the rounding of a batch does. An episode that has
    ended leaves the batch.

    Args:
        model: put into evaluation mode meanwhile; it acts on the device where it is.
        make_env: makes an environment, called once for each of `settings.parallel`.
        target_return: unscaled.
        episodes: number of episodes.
        seed: the seed of the episodes.
        settings: the form and its settings.

    Raises:
        ValueError: an argument is out of its range, the environment is another than the one that
            the preprocessing is for, or something is NaN or infinite: an observation, a reward
            (the message says where), or what the model gives.
        NotImplementedError: observations that are no box, or actions that are neither a box nor
            discrete from 0 on; or streaming with a model that carries no state.
    """
    if episodes < 1 or seed < 0:
        raise ValueError(f"expected at least 1 episode and a seed from 0, got {episodes=}, {seed=}")
    if not np.isfinite(target_return):
        raise ValueError(f"target_return must be finite, got {target_return}")
    result = Rollouts(
        target_return=target_return,
        form=settings.form,
        context=settings.context,
        seed=seed,
        returns=np.zeros(episodes),
        lengths=np.zeros(episodes, np.int64),
        terminated=np.zeros(episodes, np.bool_),
    )
    training = model.training
    model.eval()
    try:
        with ExitStack() as stack:
            envs = []
            for _ in range(min(settings.parallel, episodes)):
                envs.append(env := make_env())
                stack.callback(env.close)
                check_spaces(env, settings.preprocessing)
            batch = _Environments(envs)
            what = f"acting for a return of {target_return:,.0f}"
            work = stack.enter_context(working(what, total=episodes, unit="episodes"))
            for first in range(0, episodes, settings.parallel):
                numbers = np.arange(first, min(first + settings.parallel, episodes))
                _play(model, batch, numbers, result, settings, work)
    finally:
        model.train(training)
    return result


def episode_seed(seed: int, episode: int) -> int:
    """Return the seed of an episode: episodes of different seeds have nothing in common."""
    return int(np.random.SeedSequence((seed, episode)).generate_state(1)[0])


class _Environments:
    """Environments side by side, of which any may be stepped; whoever made them closes them."""

    def __init__(self, envs: Sequence[gymnasium.Env[Any, Any]]) -> None:
        self._envs = envs

    def reset(self, seeds: Sequence[int]) -> Float[np.ndarray, "b f"]:
        """Begin an episode in as many as there are seeds; return their observations."""
        envs = zip(self._envs, seeds, strict=False)
        return self._flat([env.reset(seed=seed)[0] for env, seed in envs])

    def step(
        self, rows: Int64[np.ndarray, " b"], actions: Actions
    ) -> tuple[
        Float[np.ndarray, "b f"],
        Float64[np.ndarray, " b"],
        Bool[np.ndarray, " b"],
        Bool[np.ndarray, " b"],
    ]:
        """Return observations, rewards, and which episodes were terminated and which truncated."""
        dtype = self._envs[0].action_space.dtype
        pairs = zip(rows, actions.astype(dtype), strict=True)
        taken = [self._envs[row].step(action) for row, action in pairs]
        observations, rewards, terminated, truncated, _ = zip(*taken, strict=True)
        return (
            self._flat(observations),
            np.array(rewards, np.float64),
            np.array(terminated, np.bool_),
            np.array(truncated, np.bool_),
        )

    def _flat(self, observations: Sequence[Any]) -> Float[np.ndarray, "b f"]:
        return np.stack([np.asarray(each, np.float64).reshape(-1) for each in observations])


def _play(
    model: DecisionModel,
    batch: _Environments,
    numbers: Int64[np.ndarray, " b"],
    result: Rollouts,
    settings: RolloutSettings,
    work: Work,
) -> None:
    """Play the episodes of these numbers, which begin together, and write down how they went."""
    policy = make_policy(
        model, settings.preprocessing, form=settings.form, context=settings.context
    )
    rows, last = np.arange(len(numbers)), int(numbers[-1])
    observations = batch.reset([episode_seed(result.seed, int(number)) for number in numbers])
    _check_finite(observations, "observation", numbers, 0)
    for step in range(settings.max_steps):
        actions = policy.act(observations, result.target_return - result.returns[numbers])
        observations, rewards, terminated, truncated = batch.step(rows, actions)
        _check_finite(observations, "observation", numbers, step + 1)
        _check_finite(rewards[:, None], "reward", numbers, step + 1)
        result.returns[numbers] += rewards
        result.lengths[numbers] += 1
        result.terminated[numbers] = terminated
        cut = step == settings.max_steps - 1
        lasting = np.flatnonzero(~(terminated | truncated | cut))
        if len(lasting) < len(rows):
            numbers, rows, observations = numbers[lasting], rows[lasting], observations[lasting]
            policy.keep(lasting)
        work.reach(last + 1 - len(rows))
        if not len(rows):
            return


def _check_finite(
    values: Float[np.ndarray, "b n"], what: str, numbers: Int64[np.ndarray, " b"], step: int
) -> None:
    finite = np.isfinite(values).all(1)
    if not finite.all():
        number = numbers[finite.argmin()]
        raise ValueError(
            f"the environment gave a NaN or infinite {what}: episode {number}, step {step:,}"
        )


def check_spaces(env: gymnasium.Env[Any, Any], preprocessing: DecisionPreprocessing) -> None:
    """Refuse an environment that the model was not trained for.

    Raises:
        ValueError: it shows other observations, or takes other actions, than the data has.
        NotImplementedError: there is no form for its observations or actions.
    """
    shown = env.observation_space
    if not isinstance(shown, gymnasium.spaces.Box):
        raise NotImplementedError(
            f"expected observations of a box, got {shown} of {env}: wrap the environment, as with "
            "gymnasium.wrappers.FlattenObservation"
        )
    if (features := int(np.prod(shown.shape))) != preprocessing.features:
        raise ValueError(
            f"expected observations of {preprocessing.features} numbers, as in the data, got "
            f"{features} of {env}"
        )
    taken, expected = env.action_space, preprocessing.action_space
    if isinstance(taken, gymnasium.spaces.Discrete) and taken.start == 0:
        same = taken.n == expected.n
    elif isinstance(taken, gymnasium.spaces.Box) and np.issubdtype(taken.dtype, np.floating):
        same = taken.shape == expected.shape and all(
            np.array_equal(given, bound)
            for given, bound in zip((taken.low, taken.high), expected.bounds, strict=True)
        )
    else:
        raise NotImplementedError(
            "expected actions of a box of floating-point numbers, or discrete ones from 0 on, got "
            f"{taken} of {env}"
        )
    if not same:
        raise ValueError(
            f"expected the actions of the data, {expected}, got {taken} of {env}: of a file of "
            "D4RL's, data.action_bounds or data.num_actions says what they are"
        )
