"""Training a classifier with Lightning: the module, and the outcome that it leaves."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch import Tensor, nn

from flowformer.train.config import ComputeConfig
from flowformer.train.folder import RunFolder, RunResult
from flowformer.train.loop.fit import describe_device
from flowformer.train.loop.recording import EpochRecorder, RecordedTask, Row, count_parameters
from flowformer.train.prediction import format_predictions

STAGES: tuple[str, ...] = ("train", "validation")


class ClassificationTask(RecordedTask):
    """Cross-entropy training of a classifier.

    Args:
        model: called with a batch as keyword arguments; gives `logits` and `loss`.
        build_optimizer: gives what `configure_optimizers` returns, from the model.
        seed: of the dropout.
        steps: of the optimizer, all together, where those are counted and not epochs.
    """

    def __init__(
        self,
        model: nn.Module,
        build_optimizer: Callable[[nn.Module], Any],
        *,
        seed: int,
        steps: int | None = None,
    ) -> None:
        """Keeps its parts."""
        super().__init__(seed=seed)
        self.model = model
        self._build_optimizer = build_optimizer
        self._steps = steps
        self._correct = dict.fromkeys(STAGES, 0)
        self._seen = dict.fromkeys(STAGES, 0)

    def accuracy(self, stage: str) -> float:
        """Returns the accuracy over what the epoch has seen, the integers divided once.

        A mean of the batches' accuracies would be rounded, and rounding decide between epochs that
        are equally good.

        Args:
            stage: train or validation.
        """
        correct, seen = self.across_processes(self._correct[stage], self._seen[stage])
        return correct / seen

    def configure_optimizers(self) -> Any:
        """Builds the optimizer, with its schedule if it has one."""
        return self._build_optimizer(self.model)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Returns the mean loss of a batch.

        Raises:
            NonFiniteLossError: it is NaN or infinite.
        """
        return self._step(batch, batch_idx, "train")

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Adds a batch to the epoch's validation figures.

        Raises:
            NonFiniteLossError: the loss is NaN or infinite.
        """
        self._step(batch, batch_idx, "validation")

    def on_train_epoch_end(self) -> None:
        """Logs the accuracies; the last validation of the epoch is over by now."""
        for stage in STAGES:
            self.log(f"{stage}_accuracy", self.accuracy(stage), sync_dist=bool(self.shares))

    def figures(self) -> Row:
        """Returns the mean losses and the accuracies."""
        row: Row = {}
        for stage in STAGES:
            row[f"{stage}_loss"] = float(self.trainer.callback_metrics[f"{stage}_loss"])
            row[f"{stage}_accuracy"] = self.accuracy(stage)
        return row

    def rank(self, row: Mapping[str, float | int]) -> tuple[float, ...]:
        """Ranks by the validation accuracy; on a tie by the lower loss."""
        return row["validation_accuracy"], -row["validation_loss"]

    def describe(self, row: Mapping[str, float | int], held_out: str) -> str:
        """Returns the epoch or step, and loss and accuracy of both stages."""
        train, validation = (
            f"loss {row[f'{stage}_loss']:.4f}, accuracy {row[f'{stage}_accuracy']:.4f}"
            for stage in STAGES
        )
        done = f"epoch {row['epoch']}/{self.trainer.max_epochs}"
        if self._steps is not None:
            done = f"step {row['step']}/{self._steps}"
        return f"{done}  train: {train}  {held_out}: {validation}"

    @property
    def measured(self) -> nn.Module:
        """What the validation measures."""
        return self.model

    def _step(self, batch: dict[str, Tensor], batch_idx: int, stage: str) -> Tensor:
        logits, loss = (self.model if stage == "train" else self.measured)(**batch)
        labels = batch["labels"]
        loss, count = self.take(loss, len(labels), batch, stage, batch_idx)
        if batch_idx == 0:
            self._correct[stage] = self._seen[stage] = 0
        if count:
            if labels.is_floating_point():  # a distribution over the classes
                labels = labels.argmax(dim=-1)
            self._correct[stage] += int((logits.argmax(dim=-1) == labels).sum())
            self._seen[stage] += count
        return loss


@dataclass(frozen=True, kw_only=True)
class Tested:
    """What a classifier made of the test set.

    Attributes:
        probabilities: of each class.
        labels: indices of the classes.
        top5: fraction with the label among the five likeliest classes, where that is looked at.
    """

    probabilities: Float64[np.ndarray, "n classes"]
    labels: Int64[np.ndarray, " n"]
    top5: float | None = None


@runtime_checkable
class Classification(Protocol):
    """A configuration of any classifier."""

    @property
    def name(self) -> str:
        """Of the recipe."""
        ...

    @property
    def protocol(self) -> Any:
        """What chooses the epoch."""
        ...

    @property
    def training(self) -> ComputeConfig:
        """How long, and the seed."""
        ...

    @property
    def paper_accuracy(self) -> float | None:
        """What a paper prints."""
        ...

    @property
    def paper_source(self) -> str | None:
        """Where."""
        ...


def write_outcome(
    config: Classification,
    model: nn.Module,
    folder: RunFolder,
    recorder: EpochRecorder,
    *,
    classes: Sequence[str],
    tested: Tested | None,
    note: str,
) -> RunResult:
    """Writes predictions.csv, if there was a test set, and last result.json.

    Args:
        config: of the run.
        model: with the parameters of the best epoch.
        folder: of the run.
        recorder: of its epochs.
        classes: their names.
        tested: on the test set.
        note: the protocol in words.
    """
    accuracy, files = None, {}
    if tested is not None:
        accuracy = float(np.mean(tested.probabilities.argmax(axis=1) == tested.labels))
        predictions = format_predictions(tested.probabilities, classes, tested.labels)
        files = {folder.predictions: predictions}
    best = recorder.best
    result = RunResult(
        recipe=config.name,
        protocol=config.protocol,
        protocol_note=note,
        seed=config.training.seed,
        test_accuracy=accuracy,
        validation_accuracy=best["validation_accuracy"],
        validation_loss=best["validation_loss"],
        best_epoch=int(best["epoch"]),
        epochs=config.training.rounds,
        paper_accuracy=config.paper_accuracy,
        paper_source=config.paper_source,
        parameters=count_parameters(model),
        seconds=sum(row["seconds"] for row in recorder.rows),
        device=describe_device(next(model.parameters()).device),
        threads=torch.get_num_threads(),
        best_step=int(best["step"]),
        test_top5=None if tested is None else tested.top5,
    )
    part = "validation" if accuracy is None else "test"
    result.keep(folder, files, figure=f"the {part} accuracy is {100 * result.score:.2f}")
    return result
