"""The training of regressors: the squared error."""

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from flowformer.scores.measures import RMSE
from flowformer.train.loop.task import RecordedTask, Row

STAGES: tuple[str, ...] = ("train", "validation")


class RegressionTask(RecordedTask):
    """Training by the squared error of a regressor, whose model gives `predictions` and `loss`.

    Args:
        parts: those of a `RecordedTask`.
        scale: standard deviation of the labels, by which they were divided.
        options: further ones of a `RecordedTask`.
    """

    def __init__(self, *parts: Any, scale: float, **options: Any) -> None:
        super().__init__(*parts, **options)
        self._scale = scale

    def figures(self) -> Row:
        """Return the mean losses, and the errors in the unit of the labels."""
        row: Row = {}
        for stage in STAGES:
            loss = float(self.trainer.callback_metrics[f"{stage}_loss"])
            row[f"{stage}_loss"] = loss
            row[f"{stage}_rmse"] = self._scale * math.sqrt(loss)
        return row

    def rank(self, row: Mapping[str, float | int]) -> tuple[float, ...]:
        """Rank by the validation loss."""
        return (-row["validation_loss"],)

    def describe(self, row: Mapping[str, float | int], held_out: str) -> str:
        """Return the epoch, and the error of both stages."""
        train, validation = (RMSE.show(row[f"{stage}_rmse"]) for stage in STAGES)
        done = f"epoch {row['epoch']}/{self.trainer.max_epochs}"
        return f"{done}  train: RMSE {train}  {held_out}: RMSE {validation}"

    def step(self, batch: dict[str, Tensor], batch_idx: int, stage: str) -> Tensor:
        """Return the mean squared error of a batch, in the scale of the labels as learned."""
        _, loss = self.model(**batch)
        return self.take(loss, len(batch["labels"]), batch, stage, batch_idx)[0]
