"""What the run folder of a decision model holds beside what every run folder does."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from flowformer.data.options import NOT_D4RL
from flowformer.train.folder import KeptRecord, KeptResult
from flowformer.train.trajectories.config import DecisionConfig, d4rl_note

EPISODES = "episodes.csv"  # in the run folder: a row for each that the model was tested by


@dataclass(frozen=True, kw_only=True)
class DecisionRecord(KeptRecord):
    """What config.json holds.

    Attributes:
        recipe: name of the recipe.
        config: the configuration, overrides included.
        versions: of Python and of the packages that compute and simulate.
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
        task: what kind of run it is.
    """

    recipe: str
    config: DecisionConfig
    versions: dict[str, str]
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
        """How the figures of the run come about; the configuration need not name environments."""
        note = self.config.protocol_note
        return note if NOT_D4RL.rstrip(".") in note else note + d4rl_note(self.env)


@dataclass(frozen=True, kw_only=True)
class TargetOutcome:
    """What episodes at one target return came to.

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
class DecisionResult(KeptResult):
    """What result.json holds.

    Attributes:
        recipe: name of the recipe.
        protocol_note: how the figures came about, to stand beside them.
        seed: of the run.
        env: the environment.
        form: streaming or windowed.
        episodes: at each target.
        outcomes: at each target, the score's first.
        behaviour_score: of the mean return of the data.
        validation_loss: at the last step.
        steps: of the optimizer.
        parameters: trainable parameters.
        seconds: of training, the measurements included.
        device: what computed.
        threads: CPU threads.
    """

    recipe: str
    protocol_note: str
    seed: int
    env: str
    form: Literal["streaming", "windowed"]
    episodes: int
    outcomes: tuple[TargetOutcome, ...]
    behaviour_score: float
    validation_loss: float
    steps: int
    parameters: int
    seconds: float
    device: str
    threads: int

    @property
    def score(self) -> float:
        """What comparisons rank by: the normalised score at the first target."""
        return self.outcomes[0].score
