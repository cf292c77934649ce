"""The training of language models: the next token, or the answers of a task."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from flowformer.train.loop.task import RecordedTask, Row

# From a mean loss on the validation part, in nats a token, to what the run is measured by.
ScoreOf = Callable[[float], float]
# From logits and targets to whether each of what counts is right: see `Answered.right`.
Right = Callable[[Tensor, Tensor], Tensor]


class LanguageTask(RecordedTask):
    """Next-token cross-entropy. An epoch is what lies between two measurements.

    Args:
        parts: those of a `RecordedTask`.
        column: name of the score in metrics.csv.
        score_of: gives it from the validation loss; None where it is the part that is right.
        right: what is right, there.
        options: further ones of a `RecordedTask`.
    """

    def __init__(
        self,
        *parts: Any,
        column: str,
        score_of: ScoreOf | None,
        right: Right | None,
        **options: Any,
    ) -> None:
        super().__init__(*parts, **options)
        self._column = column
        self._score_of = score_of
        self._right_of = right
        self._right: list[Tensor] = []

    def figures(self) -> Row:
        """Return the mean losses, in nats a token, and the score on the validation part."""
        metrics = self.trainer.callback_metrics
        loss = float(metrics["validation_loss"])
        if self._score_of is not None:
            score = self._score_of(loss)
        else:
            right = torch.cat(self._right) if self._right else torch.zeros(0)
            known, asked = self.across_processes(int(right.sum()), len(right))
            score = known / asked
        return {
            "train_loss": float(metrics["train_loss"]),
            "validation_loss": loss,
            self._column: score,
        }

    def rank(self, row: Mapping[str, float | int]) -> tuple[float, ...]:
        """Rank by the validation loss."""
        return (-row["validation_loss"],)

    def describe(self, row: Mapping[str, float | int], held_out: str) -> str:
        """Return the losses and the score, by the step."""
        score = self._column.removeprefix("validation_").replace("_", " ")
        return (
            f"step {row['step']}/{self._steps}  train: loss {row['train_loss']:.4f}  "
            f"{held_out}: loss {row['validation_loss']:.4f}, {score} {row[self._column]:.4g}"
        )

    def step(self, batch: dict[str, Tensor], batch_idx: int, stage: str) -> Tensor:
        """Return the loss of a batch, and keep what is right where that is counted."""
        if stage == "validation" and batch_idx == 0:
            self._right = []
        right = self._right_of if stage == "validation" else None
        logits, loss, _ = self.model(**batch, return_logits=right is not None)
        targets = batch["targets"]
        loss, count = self.take(loss, int((targets >= 0).sum()), batch, stage, batch_idx)
        if right is not None and count:
            self._right.append(right(logits, targets))
        return loss
