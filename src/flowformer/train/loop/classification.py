"""The training of classifiers: cross-entropy, and how much is right."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from flowformer.train.loop.task import RecordedTask, Row

STAGES: tuple[str, ...] = ("train", "validation")


class ClassificationTask(RecordedTask):
    """Cross-entropy training of a classifier, whose model gives `logits` and `loss`.

    Args:
        parts: those of a `RecordedTask`.
        options: likewise.
    """

    def __init__(self, *parts: Any, **options: Any) -> None:
        super().__init__(*parts, **options)
        self._correct = dict.fromkeys(STAGES, 0)
        self._seen = dict.fromkeys(STAGES, 0)

    def accuracy(self, stage: str) -> float:
        """Return the accuracy over what the epoch has seen, the integers divided once.

        A mean of the batches' accuracies would be rounded, and rounding decide between epochs that
        are equally good.

        Args:
            stage: train or validation.
        """
        correct, seen = self.across_processes(self._correct[stage], self._seen[stage])
        return correct / seen

    def figures(self) -> Row:
        """Return the mean losses and the accuracies."""
        row: Row = {}
        for stage in STAGES:
            row[f"{stage}_loss"] = float(self.trainer.callback_metrics[f"{stage}_loss"])
            row[f"{stage}_accuracy"] = self.accuracy(stage)
        return row

    def rank(self, row: Mapping[str, float | int]) -> tuple[float, ...]:
        """Rank by the validation accuracy; on a tie by the lower loss."""
        return row["validation_accuracy"], -row["validation_loss"]

    def describe(self, row: Mapping[str, float | int], held_out: str) -> str:
        """Return the epoch or step, and loss and accuracy of both stages."""
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
        """The module that the validation measures."""
        return self.model

    def step(self, batch: dict[str, Tensor], batch_idx: int, stage: str) -> Tensor:
        """Return the loss of a batch, and count what is right."""
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
