"""The configuration, record and result of a run on trajectories; no torch here."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from flowformer.data.options import D4RL_ENVIRONMENTS, NOT_D4RL, ConstantFeatures
from flowformer.models.trajectories.config import DecisionModelConfig
from flowformer.names import ExistingPath
from flowformer.scores.measures import NORMALIZED_SCORE, Measure
from flowformer.train.config import (
    ABOVE_0,
    AT_LEAST_0,
    AT_LEAST_1,
    FRACTION,
    Bounds,
    Checked,
    ExperimentConfig,
    ScheduledOptimizerConfig,
    StepsConfig,
)
from flowformer.train.run_files import Lines, Record, Result

EPISODES = "episodes.csv"  # in the run folder: a row for each that a model was tested by


@dataclass(frozen=True, kw_only=True)
class DecisionDataConfig(Checked):
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

    bounds: ClassVar[Bounds] = {
        **dict.fromkeys(("time_limit", "num_actions", "batch_size"), AT_LEAST_1),
        "action_bounds": (
            "two values, the lower first",
            lambda value: len(value) == 2 and value[0] < value[1],
        ),
        "return_scale": ABOVE_0,
        "validation_fraction": FRACTION,
    }

    dataset: str | None = None
    path: ExistingPath | None = None
    mixed_with: str | None = None
    time_limit: int | None = None
    num_actions: int | None = None
    action_bounds: tuple[float, float] | None = None
    return_scale: float = 1000.0
    constant_features: ConstantFeatures = "centred"
    validation_fraction: float = 0.1
    batch_size: int = 64

    def require_source(self) -> None:
        """Refuse data that name no episodes.

        Raises:
            ValueError: they name none, or both a set and a file.
        """
        if (self.dataset is None) == (self.path is None):
            raise ValueError(
                "no episodes to train on: give data.dataset (a Minari data set) or data.path (a "
                f"file of D4RL or a folder), one of them; got {self.dataset} and {self.path}"
            )


@dataclass(frozen=True, kw_only=True)
class TrajectoriesEvaluationConfig(Checked):
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

    bounds: ClassVar[Bounds] = {
        **dict.fromkeys(("episodes", "validation_episodes", "parallel"), AT_LEAST_1),
        "seed": AT_LEAST_0,
    }

    env: str | None = None
    targets: tuple[float, ...] = ()
    references: tuple[float, float] | None = None
    episodes: int = 100
    validation_episodes: int = 10
    form: Literal["streaming", "windowed"] = "windowed"
    parallel: int = 20
    seed: int = 1000

    def __post_init__(self) -> None:
        """Check the values, and that targets and references are returns to tell apart."""
        super().__post_init__()
        if not all(map(math.isfinite, self.targets)) or len(set(self.targets)) < len(self.targets):
            raise ValueError(f"targets must be finite and differ, got {self.targets}")
        of = self.references
        if of is not None and not (len(of) == 2 and of[0] < of[1]):
            raise ValueError(
                f"references must be a random policy's return and an expert's above it, got {of}"
            )


@dataclass(frozen=True, kw_only=True)
class TrajectoriesConfig(ExperimentConfig):
    """A whole experiment of offline reinforcement learning.

    Attributes:
        data: which episodes to learn from.
        model: of the actions.
        optimizer: how its parameters move.
        training: how long, and where.
        evaluation: the episodes that it is tested by.
    """

    causal: ClassVar[bool] = True

    name: str
    data: DecisionDataConfig = field(default_factory=DecisionDataConfig)
    model: DecisionModelConfig = field(default_factory=DecisionModelConfig)
    optimizer: ScheduledOptimizerConfig = field(default_factory=ScheduledOptimizerConfig)
    training: StepsConfig = field(default_factory=StepsConfig)
    evaluation: TrajectoriesEvaluationConfig = field(default_factory=TrajectoriesEvaluationConfig)

    def __post_init__(self) -> None:
        """Check the values, and that the strategy is one that lets the model act."""
        super().__post_init__()
        if self.training.strategy == "fsdp":
            # It acts between the measurements step by step, which FSDP2's hooks do not see.
            raise ValueError("training.strategy must be ddp for a decision model, got fsdp")

    def check_early(self) -> None:
        """Refuse what can be seen at once, and data that name no episodes."""
        super().check_early()
        self.data.require_source()

    @property
    def dataset_name(self) -> str:
        """The name of the data."""
        first = self.data.dataset if self.data.path is None else self.data.path.stem
        names = [name for name in (first, self.data.mixed_with) if name is not None]
        return "+".join(names).replace("/", "-") or self.name

    @property
    def measure(self) -> Measure:
        """The figure that runs are ranked by."""
        return NORMALIZED_SCORE

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
    """Return what to add to a note: something where a name is of an environment of D4RL's.

    Args:
        names: names of environments and data sets.
    """
    known = any(task in (name or "").lower() for task in D4RL_ENVIRONMENTS for name in names)
    return f". {NOT_D4RL.rstrip('.')}" if known else ""


@dataclass(frozen=True, kw_only=True)
class TrajectoriesRecord(Record):
    """What config.json holds of a run on trajectories.

    Attributes:
        source: of the data, in words.
        env: the environment that it is tested in.
        targets: returns that it is asked for, the score's first.
        references: returns of a random and of an expert policy.
        features: numbers of an observation.
        episodes: number of episodes of each part: train and validation.
        steps: of all of them.
        data_mean: mean return of the data's episodes: the behaviour policy's own.
        data_best: of the best of them.
        data_worst: of the worst.
        env_options: what it is made with, other than its name says; see
            `flowformer.data.trajectories.records.EnvironmentOptions`.
    """

    config: TrajectoriesConfig
    source: str
    env: str
    targets: tuple[float, ...]
    references: tuple[float, float]
    features: int
    episodes: dict[str, int]
    steps: int
    data_mean: float
    data_best: float
    data_worst: float
    env_options: Mapping[str, Any] = field(default_factory=dict)  # folders of old have none
    task: Literal["trajectories"] = "trajectories"

    @property
    def protocol_note(self) -> str:
        """How the figures come about; the configuration need not name environments."""
        note = self.config.protocol_note
        return note if NOT_D4RL.rstrip(".") in note else note + d4rl_note(self.env)


@dataclass(frozen=True, kw_only=True)
class TargetOutcome:
    """What the episodes at one target return came to.

    Attributes:
        target: that the model was asked for.
        mean: return.
        std: over the episodes.
        length: mean steps of an episode.
        terminated: part of the episodes that the environment ended.
        score: 100 · (mean - random) / (expert - random).
    """

    target: float
    mean: float
    std: float
    length: float
    terminated: float
    score: float


@dataclass(frozen=True, kw_only=True)
class TrajectoriesResult(Result):
    """What result.json holds of a decision model.

    Attributes:
        env: the environment.
        form: streaming or windowed.
        episodes: at each target.
        outcomes: at each target, the score's first.
        behaviour_score: of the mean return of the data.
        validation_loss: at the last step.
        steps: of the optimizer.
    """

    width: ClassVar[int] = 16

    env: str
    form: Literal["streaming", "windowed"]
    episodes: int
    outcomes: tuple[TargetOutcome, ...]
    behaviour_score: float
    validation_loss: float
    steps: int

    @property
    def score(self) -> float:
        """The normalised score at the first target, which comparisons rank by."""
        return self.outcomes[0].score

    @property
    def in_words(self) -> str:
        """The score."""
        return f"the normalised score is {self.score:.1f}"

    def lines(self, record: Any, run: str) -> Lines:
        """Return what to say at the end of a run: no figure without its protocol."""
        del record
        taken = f"{self.steps:,}, {self.seconds:.0f} s in all, {self.parameters:,} parameters"
        return [
            ("", ""),
            *((text, "") for text in describe_outcomes(self.outcomes)),
            ("the data's own", f"{self.behaviour_score:.1f}"),
            ("protocol", self.protocol_note),
            ("step", taken),
            ("run", run),
        ]


def describe_outcomes(outcomes: Sequence[TargetOutcome]) -> list[str]:
    """Return a line for each target return."""
    return [
        f"score {each.score:6.1f}    return {each.mean:,.1f} ± {each.std:,.1f} at a target of "
        f"{each.target:,.1f}, {each.length:,.0f} steps"
        for each in outcomes
    ]
