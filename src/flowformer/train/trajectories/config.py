"""What a run on trajectories is told: one frozen dataclass per part; no torch."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from flowformer.data.options import D4RL_ENVIRONMENTS, NOT_D4RL, ConstantFeatures
from flowformer.models.trajectories.config import DecisionModelConfig
from flowformer.scores.measures import NORMALIZED_SCORE, Measure
from flowformer.serialization import check_types
from flowformer.train.config import require
from flowformer.train.schedule import ScheduledOptimizerConfig, StepsConfig


@dataclass(frozen=True, kw_only=True)
class DecisionDataConfig:
    """Which episodes to learn from.

    Attributes:
        dataset: name of a Minari data set that is here, such as hopper-medium-v0.
        path: in place of it a file of D4RL (HDF5), or a folder in Minari's format.
        mixed_with: name of a further Minari data set, whose episodes join: medium with expert.
        time_limit: of a file of D4RL's without timeouts: steps after which an episode ends.
        num_actions: of a file of D4RL's with discrete actions: how many there are; by default as
            many as its highest needs.
        action_bounds: of a file of D4RL's with others: least and greatest value; by default -1 and
            1, as of all of D4RL's own.
        return_scale: that divides returns before the model reads them.
        constant_features: what divides features of an observation that do not vary in the data:
            centred by 1, published by 1e-6, which makes 10,000 of 0.01 more.
        validation_fraction: part of the episodes that the loss is measured on and not trained on.
        batch_size: windows of `model.context` steps in one training step.
    """

    dataset: str | None = None
    path: Path | None = None
    mixed_with: str | None = None
    time_limit: int | None = None
    num_actions: int | None = None
    action_bounds: tuple[float, float] | None = None
    return_scale: float = 1000.0
    constant_features: ConstantFeatures = "centred"
    validation_fraction: float = 0.1
    batch_size: int = 64

    def __post_init__(self) -> None:
        """Checks the values.

        Raises:
            ValueError: a value is of the wrong type or out of range.
        """
        check_types(self)
        for name in ("time_limit", "num_actions"):
            require(name, getattr(self, name), "at least 1", lambda v: v is None or v >= 1)
        require(
            "action_bounds",
            self.action_bounds,
            "two values, the lower first",
            lambda v: v is None or (len(v) == 2 and v[0] < v[1]),
        )
        require("return_scale", self.return_scale, "above 0", lambda v: v > 0)
        require("validation_fraction", self.validation_fraction, "in (0, 1)", lambda v: 0 < v < 1)
        require("batch_size", self.batch_size, "at least 1", lambda v: v >= 1)


@dataclass(frozen=True, kw_only=True)
class DecisionEvaluationConfig:
    """The episodes that a model is tested by.

    Attributes:
        env: gymnasium's name of the environment; by default that of the data.
        targets: returns that the model is asked for, the first of which its score is of; by default
            the best return of the data, and what is half the way to it from their mean.
        references: returns of a random and of an expert policy, which scores are relative to; by
            default those of the data.
        episodes: at each target, at the end.
        validation_episodes: at the first target, after each measurement: a curve, which chooses
            nothing.
        form: streaming carries the model's state over the whole episode; windowed reads the last
            `model.context` steps again at every step, as published.
        parallel: episodes at a time.
        seed: of the episodes, the same for every run.
    """

    env: str | None = None
    targets: tuple[float, ...] = ()
    references: tuple[float, float] | None = None
    episodes: int = 100
    validation_episodes: int = 10
    form: Literal["streaming", "windowed"] = "windowed"
    parallel: int = 20
    seed: int = 1000

    def __post_init__(self) -> None:
        """Checks the values.

        Raises:
            ValueError: a value is of the wrong type or out of range.
        """
        check_types(self)
        for name in ("episodes", "validation_episodes", "parallel"):
            require(name, getattr(self, name), "at least 1", lambda v: v >= 1)
        require("seed", self.seed, "at least 0", lambda v: v >= 0)
        if not all(map(math.isfinite, self.targets)) or len(set(self.targets)) < len(self.targets):
            raise ValueError(f"targets must be finite and differ, got {self.targets}")
        of = self.references
        if of is not None and not (len(of) == 2 and of[0] < of[1]):
            raise ValueError(
                f"references must be a random policy's return and an expert's above it, got {of}"
            )


@dataclass(frozen=True, kw_only=True)
class DecisionConfig:
    """A whole experiment of offline reinforcement learning.

    Attributes:
        name: of the recipe it came from.
        data: which episodes to learn from.
        model: of the actions.
        optimizer: how its parameters move.
        training: how long, and where.
        evaluation: the episodes that it is tested by.
    """

    name: str
    data: DecisionDataConfig = field(default_factory=DecisionDataConfig)
    model: DecisionModelConfig = field(default_factory=DecisionModelConfig)
    optimizer: ScheduledOptimizerConfig = field(default_factory=ScheduledOptimizerConfig)
    training: StepsConfig = field(default_factory=StepsConfig)
    evaluation: DecisionEvaluationConfig = field(default_factory=DecisionEvaluationConfig)

    def __post_init__(self) -> None:
        """Checks the values.

        Raises:
            ValueError: a value is of the wrong type or out of range.
        """
        check_types(self.model, "model")
        if self.training.strategy == "fsdp":
            # It acts between the measurements step by step, which FSDP2's hooks do not see.
            raise ValueError("training.strategy must be ddp for a decision model, got fsdp")

    @property
    def dataset_name(self) -> str:
        """What its data are called."""
        first = self.data.dataset if self.data.path is None else self.data.path.stem
        names = [name for name in (first, self.data.mixed_with) if name is not None]
        return "+".join(names).replace("/", "-") or self.name

    @property
    def measure(self) -> Measure:
        """What its runs are ranked by."""
        return NORMALIZED_SCORE

    @property
    def causal(self) -> bool:
        """Whether its mixers are asked for their causal form."""
        return True

    @property
    def paper_score(self) -> float | None:
        """The paper's figure: it is of other environments."""
        return None

    @property
    def paper_source(self) -> str | None:
        """Where it prints it."""
        return None

    @property
    def protocol(self) -> str:
        """What chooses the step: nothing, it is the last."""
        return "clean"

    @property
    def has_test(self) -> bool:
        """Whether there is something to test on: the environment."""
        return True

    @property
    def protocol_note(self) -> str:
        """The protocol in words, to stand beside every figure."""
        of = self.evaluation
        form = of.form if of.form == "streaming" else f"windowed, {self.model.context} steps"
        return (
            f"the last step's parameters, none chosen; {of.episodes} episodes at each target "
            f"return, {form}{d4rl_note(of.env, self.dataset_name)}"
        )


def d4rl_note(*names: str | None) -> str:
    """What is added to a note where one of the names is of an environment of D4RL's, else nothing.

    Args:
        names: of environments and data sets.
    """
    known = any(task in (name or "").lower() for task in D4RL_ENVIRONMENTS for name in names)
    return f". {NOT_D4RL.rstrip('.')}" if known else ""
