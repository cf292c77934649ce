"""Experiments on sequences that train in a second."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from flowformer.models.sequences.config import SequenceModelConfig
from flowformer.train.config import ScheduledOptimizerConfig
from flowformer.train.sequences.config import (
    SequenceDataConfig,
    SequencesConfig,
    SequencesTrainingConfig,
)

LISTOPS = SequenceDataConfig(
    dataset="listops",
    min_length=4,
    max_length=16,
    max_depth=3,
    sizes=(60, 20, 30),
    batch_size=8,
    workers=1,
)


@pytest.fixture
def tiny_sequences(tmp_path: Path) -> Callable[..., SequencesConfig]:
    """`tiny_sequences(steps=4)`: fields of SequencesTrainingConfig by keyword; or `data`."""

    def build(
        data: SequenceDataConfig = LISTOPS, mixer: str = "flow", **training: object
    ) -> SequencesConfig:
        config = SequencesConfig(
            name="tiny",
            data=replace(data, cache=tmp_path / "prepared"),
            model=SequenceModelConfig(
                mixer=mixer, dim=16, num_heads=2, feedforward=32, dropout=0.0
            ),
            optimizer=ScheduledOptimizerConfig(learning_rate=3e-3),
            training=SequencesTrainingConfig(
                steps=4, evaluate_every=2, accelerator="cpu", threads=1, progress="none"
            ),
            paper_dataset="listops",
            paper_accuracy=0.387,
            paper_source="nowhere",
        )
        return replace(config, training=replace(config.training, **training))

    return build
