"""The scores of rollouts: returns at several targets, over episodes and seeds, and scores."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from flowformer.data.trajectories.records import normalized_score
from flowformer.rollouts.policy import DecisionModel, Form
from flowformer.rollouts.rollouts import MakeEnvironment, Rollouts, RolloutSettings, rollout

References = tuple[float, float]  # the returns of a random and of an expert policy

_FAR = 0.5  # of the best return, above it


@dataclass(frozen=True, kw_only=True)
class ReturnSummary:
    """The returns at one target.

    Attributes:
        target_return: the return that the model was asked for.
        form: the form in which it acted; scores of different forms are not the same measurement.
        context: steps that it read in the windowed form.
        seeds: number of seeds, each as many episodes, of one model or of several.
        episodes: number of episodes of all seeds.
        mean: mean return of all episodes.
        episode_std: over all episodes.
        seed_std: sample deviation (n - 1) of the seeds' means; None for one seed.
        length: mean steps of an episode.
        terminated: part of the episodes that the environment ended.
        score: 100 · (mean - random) / (expert - random) (Fu et al. 2020); None without references.
        score_std: `seed_std` on that scale.
    """

    target_return: float
    form: Form
    context: int | None
    seeds: int
    episodes: int
    mean: float
    episode_std: float
    seed_std: float | None
    length: float
    terminated: float
    score: float | None
    score_std: float | None


def evaluate_returns(
    model: DecisionModel,
    make_env: MakeEnvironment,
    *,
    targets: Sequence[float],
    seeds: Sequence[int],
    episodes: int,
    settings: RolloutSettings,
    on_rollouts: Callable[[Rollouts], object] | None = None,
) -> tuple[Rollouts, ...]:
    """Let a model act at each target with each seed, the targets first.

    Every target meets the same episodes. See `rollout` for the arguments and the errors, and
    `check_target` for targets that the data does not support.

    Raises:
        ValueError: there is no target or no seed, or one of them twice.

    Examples:
        >>> import gymnasium
        >>> import numpy as np
        >>> from flowformer.data.trajectories.batches import DecisionPreprocessing
        >>> from flowformer.data.trajectories.records import Space
        >>> from flowformer.models import DecisionModelConfig, DecisionTransformer
        >>> from flowformer.rollouts.rollouts import RolloutSettings
        >>> from flowformer.rollouts.scores import evaluate_returns, summarize_returns
        >>> config = DecisionModelConfig(dim=16, num_layers=1, num_heads=2)
        >>> model = DecisionTransformer(config, observation_dim=3, action_dim=1)
        >>> preprocessing = DecisionPreprocessing(
        ...     state_mean=np.zeros(3),
        ...     state_std=np.ones(3),
        ...     return_scale=1000.0,
        ...     action_space=Space(shape=(1,), low=-2.0, high=2.0),
        ... )
        >>> played = evaluate_returns(
        ...     model,
        ...     lambda: gymnasium.make("Pendulum-v1", max_episode_steps=10),
        ...     targets=[-200.0],
        ...     seeds=[0, 1],
        ...     episodes=2,
        ...     settings=RolloutSettings(preprocessing=preprocessing),
        ... )
        >>> summarize_returns(played).episodes
        4
    """
    for name, given in (("targets", targets), ("seeds", seeds)):
        if not given or len(set(given)) < len(given):
            raise ValueError(f"expected at least one of {name}, none of them twice, got {given}")
    played = []
    for target in targets:
        for seed in seeds:
            rollouts = rollout(
                model,
                make_env,
                target_return=target,
                episodes=episodes,
                seed=seed,
                settings=settings,
            )
            played.append(rollouts)
            if on_rollouts is not None:
                on_rollouts(rollouts)
    return tuple(played)


def summarize_returns(
    rollouts: Sequence[Rollouts], *, references: References | None = None
) -> ReturnSummary:
    """Return mean and spread of rollouts at one target, one for each seed.

    Args:
        rollouts: the rollouts of one model with several seeds, or of models of several seeds.
        references: the returns of a random and of an expert policy.

    Raises:
        ValueError: there are none, or they differ in target, form, context or number of episodes.
    """
    settings = {
        (each.target_return, each.form, each.context, len(each.returns)) for each in rollouts
    }
    if len(settings) != 1:
        raise ValueError(
            "expected rollouts of one target, form, context and number of episodes, got "
            f"{sorted(settings, key=str)}"
        )
    first = rollouts[0]
    returns = np.stack([each.returns for each in rollouts])
    mean = float(returns.mean())
    seed_std = float(returns.mean(1).std(ddof=1)) if len(rollouts) > 1 else None
    score = score_std = None
    if references is not None:
        score = normalized_score(mean, references)
        if seed_std is not None:
            score_std = 100 * seed_std / (references[1] - references[0])
    return ReturnSummary(
        target_return=first.target_return,
        form=first.form,
        context=first.context,
        seeds=len(rollouts),
        episodes=returns.size,
        mean=mean,
        episode_std=float(returns.std()),
        seed_std=seed_std,
        length=float(np.mean([each.lengths for each in rollouts])),
        terminated=float(np.mean([each.terminated for each in rollouts])),
        score=score,
        score_std=score_std,
    )


def check_target(target_return: float, data_returns: Float[np.ndarray, " episodes"]) -> None:
    """Warn of a target far outside the returns that the model has seen.

    Far is above the best of them by more than half of its size (1.5 times a positive one), or below
    the worst.

    Args:
        target_return: the return that the model is asked for.
        data_returns: returns of the episodes that it was trained on.
    """
    worst, best = float(data_returns.min()), float(data_returns.max())
    if worst <= target_return <= best + _FAR * abs(best):
        return
    warnings.warn(
        f"the target return {target_return:,.1f} is far outside the data, whose episodes return "
        f"{worst:,.1f} to {best:,.1f}: what the model does there, no episode has shown",
        stacklevel=2,
    )
