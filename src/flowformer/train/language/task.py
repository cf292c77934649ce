"""Training a language model with Lightning: the module."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from flowformer.models.language.model import LanguageModel
from flowformer.train.config import ScheduledOptimizerConfig
from flowformer.train.loop.optimizers import build_scheduled
from flowformer.train.loop.recording import RecordedTask, Row

# From a mean loss on the validation part, in nats a token, to what the run is measured by; None
# where that is the part of the samples with every target right.
ScoreOf = Callable[[float], float | None]


class LanguageTask(RecordedTask):
    """Next-token cross-entropy. An epoch is what lies between two measurements.

    Args:
        model: called with a batch as keyword arguments; gives the `loss`.
        optimizer: how its parameters move.
        steps: steps of the optimizer, all together.
        seed: seed of the dropout.
        column: name of the score in metrics.csv.
        score_of: gives it from the validation loss, see ScoreOf.
    """

    def __init__(
        self,
        model: LanguageModel,
        optimizer: ScheduledOptimizerConfig,
        *,
        steps: int,
        seed: int,
        column: str,
        score_of: ScoreOf,
    ) -> None:
        super().__init__(seed=seed)
        self.model = model
        self._optimizer = optimizer
        self._steps = steps
        self._column = column
        self._score_of = score_of
        self._right: list[Tensor] = []

    def configure_optimizers(self) -> Any:
        """Build Adam or AdamW, weight decay on the matrices alone, and the schedule by steps."""
        return build_scheduled(
            self.model.parameter_groups(self._optimizer.weight_decay),
            self._optimizer,
            steps=self._steps,
        )

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Return the mean loss over the targets of a batch.

        Raises:
            NonFiniteLossError: it is NaN or infinite.
        """
        return self._step(batch, batch_idx, "train")

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Add a batch to the validation loss.

        Raises:
            NonFiniteLossError: the loss is NaN or infinite.
        """
        if batch_idx == 0:
            self._right = []
        self._step(batch, batch_idx, "validation")

    def figures(self) -> Row:
        """Return the mean losses, in nats a token, and the score on the validation part."""
        metrics = self.trainer.callback_metrics
        loss = float(metrics["validation_loss"])
        score = self._score_of(loss)
        if score is None:
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

    def _step(self, batch: dict[str, Tensor], batch_idx: int, stage: str) -> Tensor:
        scores = stage == "validation" and self._score_of(0.0) is None
        logits, loss, _ = self.model(**batch, return_logits=scores)
        targets = batch["targets"]
        loss, count = self.take(loss, int((targets >= 0).sum()), batch, stage, batch_idx)
        if scores and count:
            self._right.append(((logits.argmax(-1) == targets) | (targets < 0)).all(-1))
        return loss
