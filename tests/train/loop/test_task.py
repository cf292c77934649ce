"""What every task does with the losses of a step's batches."""

from collections.abc import Mapping
from typing import Any, cast

import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from flowformer.train.loop.task import RecordedTask, Row


class Slope(RecordedTask):
    """The loss of batch i is weight · i; of -1, NaN; without a target, 0. A step has rate 1."""

    def __init__(self) -> None:
        super().__init__(nn.Module(), lambda _: torch.optim.SGD(self.parameters(), lr=1.0), seed=0)
        self.weight = nn.Parameter(torch.zeros(1))
        self.places: list[float] = []

    def step(self, batch: dict[str, Tensor], batch_idx: int, stage: str) -> Tensor:
        number = batch["number"].item()
        factor = torch.nan if number < 0 else number
        loss = (self.weight * factor).sum()
        return self.take(loss, int(number != 0), batch, stage, batch_idx)[0]

    def on_train_batch_end(self, *_arguments: Any, **_options: Any) -> None:
        self.places.append(float(self.weight.detach()))

    def figures(self) -> Row:
        return {}

    def rank(self, row: Mapping[str, float | int]) -> tuple[float, ...]:
        return (row["epoch"],)

    def describe(self, row: Mapping[str, float | int], held_out: str) -> str:
        return f"{row} {held_out}"


def places(batches: list[float], *, accumulate: int, skips: int = 0, clip: float | None = None):
    """Where the weight is after each batch."""
    task = Slope()
    task.skips_left = skips
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=1,
        accumulate_grad_batches=accumulate,
        gradient_clip_val=clip,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(task, DataLoader(cast(Any, [{"number": number} for number in batches])))
    return task.places


pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*is a deprecated.*"),
    pytest.mark.filterwarnings("ignore:`isinstance"),
    # Every task of ours is measured after an epoch; what is looked at here are its steps.
    pytest.mark.filterwarnings("ignore:You defined a `validation_step`"),
]


@pytest.mark.parametrize(
    ("batches", "expected"),
    [
        ([3.0, 6.0, 6.0, 9.0], [0, 0, -5, -14]),
        ([3.0, 6.0, 6.0, 9.0, 4.0], [0, 0, -5, -5, -11.5]),
        ([3.0, 6.0, 6.0], [0, 0, -5]),
        ([2.0], [-2]),
    ],
    ids=["one-of-three", "two-of-three", "whole", "alone"],
)
def test_the_last_step_of_an_epoch_is_the_mean_over_the_batches_that_it_holds(
    batches: list[float], expected: list[float]
) -> None:
    assert places(batches, accumulate=3) == pytest.approx(expected)


def test_a_batch_that_is_left_out_or_without_targets_is_not_in_the_mean() -> None:
    assert places([4.0, -1.0, 0.0, 6.0], accumulate=2, skips=1) == pytest.approx([0, -4, -4, -10])


def test_the_mean_is_what_is_clipped() -> None:
    assert places([1.0, 1.0, 1.0], accumulate=2, clip=0.75) == pytest.approx([0, -0.75, -1.5])
