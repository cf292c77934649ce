"""Offline reinforcement learning: the nine published settings on D4RL, and small ones.

Settings: the published runs (thuml/Flowformer, `Flowformer_RL`), which are the Decision
Transformer's (Chen et al. 2021) but for width, heads and rate: AdamW, 1e-3 after 10,000 steps of
warm-up, weight decay 1e-4 of all parameters, 64 windows of 20 steps, 100,000 steps, gradient norm
at most 0.25; two target returns, of which the paper's table does not say which it reports: the
score here is the first's. The paper prints an average of 73.5 ± 2.9 over all nine.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Literal

from flowformer.data.options import D4RL_ENVIRONMENTS
from flowformer.models.trajectories.config import DecisionModelConfig
from flowformer.train.config import ScheduledOptimizerConfig, StepsConfig
from flowformer.train.trajectories.config import (
    DecisionDataConfig,
    TrajectoriesConfig,
    TrajectoriesEvaluationConfig,
)

SOURCE = "Flowformer (Wu et al., ICML 2022), D4RL table"
PAPER_AVERAGE = 73.5

# Each environment's target returns, as published.
TARGETS = {
    "halfcheetah": (12000.0, 6000.0),
    "hopper": (3600.0, 1800.0),
    "walker2d": (5000.0, 2500.0),
}
QUALITIES = ("medium-expert", "medium", "medium-replay")


def decision() -> TrajectoriesConfig:
    """Episodes of your own: --data.path FILE.hdf5 or --data.dataset NAME (Minari)."""
    return _published("decision", TrajectoriesEvaluationConfig())


def decision_small() -> TrajectoriesConfig:
    """Data of flowformer data collect, windows of 20 steps: minutes on one core."""
    return _small("decision-small", context=20, form="windowed", batch_size=64)


def decision_small_long() -> TrajectoriesConfig:
    """The same trained on 200 steps at once, for a state that is carried over the episode."""
    return _small("decision-small-long", context=200, form="streaming", batch_size=8)


def _published(name: str, evaluation: TrajectoriesEvaluationConfig) -> TrajectoriesConfig:
    return TrajectoriesConfig(
        name=name,
        optimizer=_adamw(warmup=10_000),
        training=StepsConfig(steps=100_000, evaluate_every=10_000),
        evaluation=evaluation,
    )


def _small(
    name: str, *, context: int, form: Literal["streaming", "windowed"], batch_size: int
) -> TrajectoriesConfig:
    return TrajectoriesConfig(
        name=name,
        data=DecisionDataConfig(batch_size=batch_size),
        model=DecisionModelConfig(dim=64, num_layers=2, num_heads=4, context=context),
        optimizer=_adamw(warmup=200),
        training=StepsConfig(steps=3000, evaluate_every=1000),
        evaluation=TrajectoriesEvaluationConfig(episodes=20, validation_episodes=5, form=form),
    )


def _adamw(*, warmup: int) -> ScheduledOptimizerConfig:
    return ScheduledOptimizerConfig(
        name="adamw",
        learning_rate=1e-3,
        schedule="constant",
        warmup=warmup,
        warmup_from=0.0,
        betas=(0.9, 0.999),
        weight_decay=1e-4,
        gradient_clip=0.25,
    )


def _recipe(env: str, quality: str) -> Callable[[], TrajectoriesConfig]:
    evaluation = TrajectoriesEvaluationConfig(env=D4RL_ENVIRONMENTS[env], targets=TARGETS[env])
    build = partial(_published, f"{env}-{quality}", evaluation)
    build.__doc__ = f"D4RL's {env}-{quality}-v2: --data.path FILE.hdf5."
    return build


RECIPES: Mapping[str, Callable[[], TrajectoriesConfig]] = {
    "decision": decision,
    **{f"{env}-{quality}": _recipe(env, quality) for quality in QUALITIES for env in TARGETS},
    "decision-small": decision_small,
    "decision-small-long": decision_small_long,
}
