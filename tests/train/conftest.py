"""A data set and a model that train in a second."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from flowformer.data import TimeSeriesData, from_arrays
from flowformer.models.language.config import LanguageModelConfig
from flowformer.models.series.config import TimeSeriesModelConfig
from flowformer.train.config import EpochsConfig, ScheduledOptimizerConfig
from flowformer.train.language.config import (
    LanguageConfig,
    LanguageTrainingConfig,
    TextDataConfig,
)
from flowformer.train.series.config import SeriesConfig, SeriesDataConfig

TINY_MODEL = TimeSeriesModelConfig(dim=16, num_heads=2, num_layers=1, feedforward=32)


@pytest.fixture
def tiny_config() -> Callable[..., SeriesConfig]:
    """`tiny_config(epochs=3)`: fields of EpochsConfig by keyword, on data given to train()."""

    def build(model: TimeSeriesModelConfig = TINY_MODEL, **training: object) -> SeriesConfig:
        config = SeriesConfig(
            name="tiny",
            data=SeriesDataConfig(batch_size=8),
            model=model,
            training=EpochsConfig(epochs=2, accelerator="cpu", threads=1, progress="none"),
            paper_accuracy=0.9,
            paper_source="nowhere",
        )
        return replace(config, training=replace(config.training, **training))

    return build


@pytest.fixture
def waves() -> TimeSeriesData:
    """Sines of two frequencies, in two channels, of 5 to 9 steps."""
    return make_waves()


@pytest.fixture
def tiny_language(tmp_path: Path) -> Callable[..., LanguageConfig]:
    """`tiny_language(steps=4)`: fields of LanguageTrainingConfig by keyword, on a small text."""
    text = tmp_path / "rhyme.txt"
    text.write_text("".join(f"{n} and {n + 1} make {2 * n + 1}.\n" for n in range(400)))

    def build(**training: object) -> LanguageConfig:
        config = LanguageConfig(
            name="tiny",
            data=TextDataConfig(
                folder=text, tokenizer="char", length=24, batch_size=4, cache=tmp_path / "tokens"
            ),
            model=LanguageModelConfig(
                dim=16, num_heads=2, num_layers=1, feedforward=32, max_length=24
            ),
            optimizer=ScheduledOptimizerConfig(learning_rate=3e-3),
            training=LanguageTrainingConfig(
                steps=4, evaluate_every=2, accelerator="cpu", threads=1, progress="none"
            ),
        )
        return replace(config, training=replace(config.training, **training))

    return build


def make_waves(test_scale: float = 1.0) -> TimeSeriesData:
    rng = np.random.default_rng(0)

    def series(count: int, scale: float = 1.0) -> tuple[list[np.ndarray], list[str]]:
        labels = [("slow", "fast")[i % 2] for i in range(count)]
        lengths = rng.integers(5, 10, count)
        waves = [
            np.sin(np.arange(t) * (0.4 if label == "slow" else 1.3)) + rng.normal(0, 0.2, (2, t))
            for t, label in zip(lengths, labels, strict=True)
        ]
        return [scale * wave for wave in waves], labels

    return from_arrays(*series(24), *series(13, test_scale), name="waves")


@pytest.fixture
def write_ts(tmp_path: Path) -> Callable[..., Path]:
    """Writes one split of a data set as a `.ts` file; without labels when asked."""

    def write(data: TimeSeriesData, part: str, *, labelled: bool = True) -> Path:
        split = data.train if part == "TRAIN" else data.test
        assert split is not None
        header = f"@problemName waves\n@univariate false\n@dimensions {data.channels}\n"
        header += (
            f"@classLabel true {' '.join(data.classes)}\n" if labelled else "@classLabel false\n"
        )
        lines = []
        for series, label in zip(split.series, split.labels, strict=True):
            channels = [",".join(map(str, channel.tolist())) for channel in series]
            lines.append(":".join([*channels, data.classes[label]] if labelled else channels))
        path = tmp_path / f"waves_{part}{'' if labelled else '_unlabelled'}.ts"
        path.write_text(header + "@data\n" + "\n".join(lines) + "\n")
        return path

    return write
