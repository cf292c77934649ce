"""The training of models that act: by the actions of the data."""

from collections.abc import Callable, Mapping
from typing import Any

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from flowformer.models.cross_entropy import class_cross_entropy
from flowformer.train.loop.task import RecordedTask, Row


class TrajectoriesTask(RecordedTask):
    """Actions are learned from those of the data. An epoch lies between two measurements.

    Args:
        parts: those of a `RecordedTask`.
        score: lets the model act in its environment; gives the normalised score.
        options: further ones of a `RecordedTask`.
    """

    def __init__(self, *parts: Any, score: Callable[[nn.Module], float], **options: Any) -> None:
        super().__init__(*parts, **options)
        self._score = score
        self._scored = 0.0

    def on_validation_epoch_end(self) -> None:
        """Let the model act."""
        self._scored = self._score(self.model)

    def figures(self) -> Row:
        """Return the mean losses, and the score of some episodes."""
        metrics = self.trainer.callback_metrics
        losses = {name: float(metrics[name]) for name in ("train_loss", "validation_loss")}
        return {**losses, "validation_score": self._scored}

    def rank(self, row: Mapping[str, float | int]) -> tuple[float, ...]:
        """Rank by the step: a score would choose by the environment that is tested in."""
        return (float(row["step"]),)

    def describe(self, row: Mapping[str, float | int], held_out: str) -> str:
        """Return the losses and the score, by the step."""
        return (
            f"step {row['step']}/{self._steps}  train: loss {row['train_loss']:.4f}  "
            f"{held_out}: loss {row['validation_loss']:.4f}, score {row['validation_score']:.1f}"
        )

    def step(self, batch: dict[str, Tensor], batch_idx: int, stage: str) -> Tensor:
        """Return the mean loss of the actions of a batch."""
        mask = batch["mask"]
        loss = action_loss(self.model(**batch).actions, batch["actions"], mask)
        return self.take(loss, int(mask.sum()), batch, stage, batch_idx)[0]


def action_loss(
    predicted: Float[Tensor, "b t out"],
    actions: Float[Tensor, "b t out"] | Int[Tensor, "b t"],
    mask: Bool[Tensor, "b t"],
) -> Float[Tensor, ""]:
    """Return the mean loss over the real steps.

    It is the squared error of the actions of a box, the cross-entropy of discrete ones, and 0 where
    no step is real.

    Args:
        predicted: actions in the model's scale, or logits.
        actions: those taken.
        mask: real steps (True).
    """
    if actions.is_floating_point():
        wanted = actions[mask]
        return F.mse_loss(predicted[mask], wanted, reduction="sum") / max(1, wanted.numel())
    return class_cross_entropy(predicted[mask], actions[mask])
