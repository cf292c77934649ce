"""Offline reinforcement learning: the parts of a run, and the use of a finished one."""

import csv
import io
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.utils.data import DataLoader

from flowformer.config_json import to_plain
from flowformer.data.trajectories.batches import DecisionPreprocessing
from flowformer.data.trajectories.records import EnvironmentOptions, normalized_score
from flowformer.report.trajectories import write_decision_report
from flowformer.rollouts.rollouts import Rollouts, RolloutSettings, rollout
from flowformer.rollouts.scores import check_target, evaluate_returns, summarize_returns
from flowformer.train.folder import RunFolder, write_json
from flowformer.train.prediction import load_weights
from flowformer.train.run_files import read_history
from flowformer.train.study import Evaluation, Study, Trained
from flowformer.train.trajectories.config import (
    EPISODES,
    TargetOutcome,
    TrajectoriesConfig,
    TrajectoriesRecord,
    TrajectoriesResult,
    describe_outcomes,
)
from flowformer.train.trajectories.data import (
    DecisionNetwork,
    build_decision_model,
    decision_loaders,
    decision_record,
    environment_maker,
    load_trajectories,
    read_preprocessing,
    rollout_settings,
)

if TYPE_CHECKING:  # it needs Lightning, and a finished run does not
    from flowformer.train.loop.task import EpochRecorder, RecordedTask

logger = logging.getLogger(__name__)

# The episodes of the curve are others than those of the end.
_CURVE_SEED = 1


@dataclass(frozen=True, kw_only=True)
class TrajectoriesEvaluation(Evaluation):
    """What a run's model came to when it acted again, beside what its training found.

    Attributes:
        outcomes: at each target return.
        trained: the figures of the training.
    """

    outcomes: Sequence[TargetOutcome]
    trained: TrajectoriesResult

    @property
    def differs(self) -> bool:
        """Whether the same episodes come to other returns."""
        pairs = zip(self.outcomes, self.trained.outcomes, strict=True)
        return any(abs(now.mean - then.mean) > 1e-6 * abs(then.mean) for now, then in pairs)

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as JSON values."""
        return {
            "env": self.trained.env,
            "outcomes": to_plain(tuple(self.outcomes)),
            "trained_score": self.trained.score,
            "behaviour_score": self.trained.behaviour_score,
            "protocol_note": self.trained.protocol_note,
        }

    def describe(self) -> str:
        """Return the figures in words."""
        verdict = "differs" if self.differs else "the same"
        lines = [
            *describe_outcomes(self.outcomes),
            f"training found  {self.trained.score:.1f}: {verdict}",
            f"the data's own  {self.trained.behaviour_score:.1f}",
            f"protocol        {self.trained.protocol_note}",
        ]
        return "\n".join(lines) + "\n"


class Trajectories(Study):
    """Offline reinforcement learning: the actions of the data are learned, and then acted on."""

    use = "rollout {run}"

    def __init__(self, config: TrajectoriesConfig, *, begun: RunFolder | None = None) -> None:
        self.config, self.begun = config, begun
        self.data = load_trajectories(config.data)
        self.record = decision_record(config, self.data)
        # An earlier version chose other targets of the data.
        if begun is not None and not config.evaluation.targets:
            self.record = replace(self.record, targets=TrajectoriesRecord.read(begun).targets)
        self.env_options = EnvironmentOptions.of(self.record.env_options)

    @cached_property
    def preprocessing(self) -> DecisionPreprocessing:
        """That of a run which has begun, whatever version of ours began it; else a new one."""
        if self.begun is not None and self.begun.preprocessing.exists():
            return read_preprocessing(self.begun)
        return DecisionPreprocessing.fit(
            self.data,
            return_scale=self.config.data.return_scale,
            constant_features=self.config.data.constant_features,
        )

    @cached_property
    def make_env(self) -> Callable[[], Any]:
        """The maker of the environment that the model acts in."""
        return environment_maker(
            self.record.env, self.env_options, preprocessing=self.preprocessing
        )

    @property
    def settings(self) -> RolloutSettings:
        """How the model acts."""
        return rollout_settings(self.config, self.preprocessing)

    def describe(self) -> str:
        """Return what the data are, where the model acts, and how many episodes there are."""
        record = self.record
        return (
            f"{self.data.name}: {self.data.source}\n"
            f"tested in {self.env_options.in_words(record.env)}\n"
            f"{self.config.name}: {record.episodes['train']:,} episodes to train on, "
            f"{record.episodes['validation']:,} for validation, returns "
            f"{record.data_worst:,.1f} to {record.data_best:,.1f}"
        )

    def check(self) -> None:
        """Warn of targets far outside the data, and refuse an environment that does not fit."""
        for target in self.record.targets:
            check_target(target, self.data.returns)
        self.make_env  # noqa: B018 - it is tried once

    def loaders(self) -> tuple[DataLoader, DataLoader]:
        """Return the batches between two measurements, and those of the validation loss."""
        return decision_loaders(self.config, self.data, self.preprocessing)

    def build(self) -> DecisionNetwork:
        """Build the model, with new parameters.

        Raises:
            NotImplementedError: streaming with a mixer that carries no state.
        """
        model = build_decision_model(self.record, self.data.action_space)
        if self.config.evaluation.form == "streaming" and not model.has_state:
            raise NotImplementedError(
                f"{self.config.model.mixer} carries no state: give evaluation.form windowed"
            )
        return model

    def write(self, folder: RunFolder) -> None:
        """Write the preprocessing."""
        write_json(folder.preprocessing, self.preprocessing.record())

    def task(self, model: nn.Module) -> "RecordedTask":
        """Return the learning of actions, with a score of some episodes."""
        from flowformer.train.loop.optimizers import build_scheduled
        from flowformer.train.trajectories.task import TrajectoriesTask

        own = self.config.evaluation

        def score(acting: nn.Module) -> float:
            played = rollout(
                acting,
                self.make_env,
                target_return=self.record.targets[0],
                episodes=own.validation_episodes,
                seed=own.seed + _CURVE_SEED,
                settings=self.settings,
            )
            return normalized_score(float(played.returns.mean()), self.record.references)

        training, optimizer = self.config.training, self.config.optimizer
        return TrajectoriesTask(
            model,
            # Weight decay is of all parameters, as published.
            lambda model: build_scheduled(model.parameters(), optimizer, steps=training.steps),
            seed=training.seed,
            steps=training.steps,
            score=score,
        )

    def test(
        self, model: DecisionNetwork, recorder: "EpochRecorder"
    ) -> tuple[TrajectoriesResult, Mapping[str, str]]:
        """Let the model act at each target return."""
        own, record = self.config.evaluation, self.record
        played = evaluate_returns(
            model,
            self.make_env,
            targets=record.targets,
            seeds=[own.seed],
            episodes=own.episodes,
            settings=self.settings,
            on_rollouts=say_rollouts,
        )
        figures = self.common_figures(model, recorder) | {"protocol_note": record.protocol_note}
        result = TrajectoriesResult(
            **figures,
            env=self.env_options.in_words(record.env),
            form=own.form,
            episodes=own.episodes,
            outcomes=outcomes_of(played, record.references),
            behaviour_score=normalized_score(record.data_mean, record.references),
            validation_loss=recorder.best["validation_loss"],
            steps=self.config.training.steps,
        )
        return result, {EPISODES: format_episodes(played)}

    @classmethod
    def load(cls, run_dir: str | Path) -> Trained:
        """Read back what training left in a folder; no code in it runs."""
        folder = RunFolder(Path(run_dir))
        record = TrajectoriesRecord.read(folder)
        preprocessing = read_preprocessing(folder)
        model = build_decision_model(record, preprocessing.action_space)
        model = load_weights(model, folder).eval()
        return Trained(model=model, record=record, preprocessing=preprocessing)

    @classmethod
    def evaluate(cls, run_dir: str | Path, file: Path | None = None) -> TrajectoriesEvaluation:
        """Let the model of a finished run act again in the episodes that it was tested by."""
        if file is not None:
            raise ValueError(
                f"{run_dir} is tested in its environment: flowformer rollout has other episodes"
            )
        run, trained = cls.load(run_dir), TrajectoriesResult.read(RunFolder(Path(run_dir)))
        record, config = run.record, run.record.config
        options = EnvironmentOptions.of(record.env_options)
        played = evaluate_returns(
            run.to_device(),
            environment_maker(record.env, options, preprocessing=run.preprocessing),
            targets=record.targets,
            seeds=[config.evaluation.seed],
            episodes=config.evaluation.episodes,
            settings=rollout_settings(config, run.preprocessing),
        )
        outcomes = outcomes_of(played, record.references)
        return TrajectoriesEvaluation(outcomes=outcomes, trained=trained)

    @classmethod
    def report(cls, run_dir: str | Path) -> Path:
        """Write the page of a finished run: its returns and curves."""
        folder = RunFolder(Path(run_dir))
        return write_decision_report(
            folder.report,
            result=to_plain(TrajectoriesResult.read(folder)),
            record=to_plain(TrajectoriesRecord.read(folder)),
            history=read_history(folder),
        )

    @classmethod
    def uses(cls, run: str, result: TrajectoriesResult) -> str:
        """Return the commands that use a run."""
        del result
        return f"flowformer rollout {run} --video episode.gif, flowformer evaluate {run}"


def say_rollouts(played: Rollouts) -> None:
    """Log what came of a target return."""
    logger.info(
        "target return %s: %s of %d episodes",
        *(f"{played.target_return:,.1f}", f"{played.returns.mean():,.1f}", len(played.returns)),
    )


def outcomes_of(
    played: Sequence[Rollouts], references: tuple[float, float]
) -> tuple[TargetOutcome, ...]:
    """Return what rollouts came to, one outcome for each."""
    found = []
    for each in played:
        summary = summarize_returns([each], references=references)
        assert summary.score is not None
        found.append(
            TargetOutcome(
                target=summary.target_return,
                mean=summary.mean,
                std=summary.episode_std,
                length=summary.length,
                terminated=summary.terminated,
                score=summary.score,
            )
        )
    return tuple(found)


def format_episodes(played: Sequence[Rollouts]) -> str:
    """Return a row for each episode, as CSV."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("target", "episode", "return", "length", "terminated"))
    for each in played:
        rows = zip(each.returns, each.lengths, each.terminated, strict=True)
        for number, (value, length, ended) in enumerate(rows):
            writer.writerow((each.target_return, number, float(value), int(length), bool(ended)))
    return text.getvalue()
