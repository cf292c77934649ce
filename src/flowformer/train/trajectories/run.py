"""A finished run of a decision model: reading it back, letting it act again, and its report."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowformer.compare.plan import read_history
from flowformer.data.trajectories.batches import DecisionPreprocessing
from flowformer.data.trajectories.records import EnvironmentOptions
from flowformer.report.trajectories import write_decision_report
from flowformer.rollouts.scores import evaluate_returns
from flowformer.serialization import to_plain
from flowformer.train.folder import RunFolder, holds_folder
from flowformer.train.prediction import choose_device, load_weights
from flowformer.train.trajectories.data import (
    DecisionNetwork,
    build_decision_model,
    environment_maker,
    read_preprocessing,
    rollout_settings,
)
from flowformer.train.trajectories.folder import DecisionRecord, DecisionResult, TargetOutcome
from flowformer.train.trajectories.study import outcomes_of


@dataclass(frozen=True, kw_only=True)
class DecisionRun:
    """A trained decision model and what is needed to use it.

    Attributes:
        model: in evaluation mode, on the CPU.
        preprocessing: of the numbers of its environment.
        record: of its training.
    """

    model: DecisionNetwork
    preprocessing: DecisionPreprocessing
    record: DecisionRecord


def load_decision_run(run_dir: str | Path) -> DecisionRun:
    """Reads back what training left in a folder; no code in it runs.

    Raises:
        FileNotFoundError: there is no run, or it has not ended.
        ValueError: it is one on other data, or a file is damaged.
    """
    folder = RunFolder(Path(run_dir))
    record = DecisionRecord.read(folder)
    preprocessing = read_preprocessing(folder)
    model = build_decision_model(record, preprocessing.action_space)
    load_weights(model, folder)
    return DecisionRun(model=model.eval(), preprocessing=preprocessing, record=record)


@dataclass(frozen=True, kw_only=True)
class DecisionEvaluation:
    """What a run's model came to when it acted again, beside what its training found.

    Attributes:
        outcomes: at each target return.
        trained: the figures of the training.
    """

    outcomes: Sequence[TargetOutcome]
    trained: DecisionResult

    @property
    def differs(self) -> bool:
        """Whether the same episodes come to other returns."""
        pairs = zip(self.outcomes, self.trained.outcomes, strict=True)
        return any(abs(now.mean - then.mean) > 1e-6 * abs(then.mean) for now, then in pairs)

    def to_dict(self) -> dict[str, Any]:
        """Returns the figures as JSON values."""
        return {
            "env": self.trained.env,
            "outcomes": to_plain(tuple(self.outcomes)),
            "trained_score": self.trained.score,
            "behaviour_score": self.trained.behaviour_score,
            "protocol_note": self.trained.protocol_note,
        }

    def describe(self) -> str:
        """Returns the figures in words."""
        verdict = "differs" if self.differs else "the same"
        lines = [
            *describe_outcomes(self.outcomes),
            f"training found  {self.trained.score:.1f}: {verdict}",
            f"the data's own  {self.trained.behaviour_score:.1f}",
            f"protocol        {self.trained.protocol_note}",
        ]
        return "\n".join(lines) + "\n"


def describe_outcomes(outcomes: Sequence[TargetOutcome]) -> list[str]:
    """Returns a line for each target return."""
    return [
        f"score {each.score:6.1f}    return {each.mean:,.1f} ± {each.std:,.1f} at a target of "
        f"{each.target:,.1f}, {each.length:,.0f} steps"
        for each in outcomes
    ]


def evaluate_decision_run(run_dir: str | Path, file: Path | None = None) -> DecisionEvaluation:
    """Lets the model of a finished run act again in the episodes that it was tested by.

    Raises:
        FileNotFoundError: there is no finished run.
        ImportError: a library is missing; the message names the extra to install.
        ValueError: a file of the run is damaged, or a file is given.
    """
    if file is not None:
        raise ValueError(
            f"{run_dir} is tested in its environment: flowformer rollout has other episodes"
        )
    run, trained = load_decision_run(run_dir), DecisionResult.read(RunFolder(Path(run_dir)))
    record, config = run.record, run.record.config
    played = evaluate_returns(
        run.model.to(choose_device(config.training.accelerator)),
        environment_maker(
            record.env,
            EnvironmentOptions.of(record.env_options),
            preprocessing=run.preprocessing,
        ),
        targets=record.targets,
        seeds=[config.evaluation.seed],
        episodes=config.evaluation.episodes,
        settings=rollout_settings(config, run.preprocessing),
    )
    return DecisionEvaluation(outcomes=outcomes_of(played, record.references), trained=trained)


@holds_folder
def write_decision_run_report(run_dir: str | Path) -> Path:
    """Writes the report of a finished run: its returns and curves.

    Returns:
        The HTML page.

    Raises:
        BlockingIOError: another process writes to the folder.
        FileNotFoundError: there is no finished run.
        ValueError: a file of the run is damaged.
    """
    folder = RunFolder(Path(run_dir))
    history = read_history(folder.metrics)
    result = DecisionResult.read(folder)
    assert history is not None
    return write_decision_report(
        folder.report,
        result=to_plain(result),
        record=to_plain(DecisionRecord.read(folder)),
        history=history,
    )
