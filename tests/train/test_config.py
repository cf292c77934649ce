"""What the configurations refuse, and in which words."""

from pathlib import Path
from typing import Any

import pytest

from flowformer.models.series.config import TimeSeriesModelConfig
from flowformer.train.config import EpochsConfig, OptimizerConfig
from flowformer.train.kinds import KINDS, kind_of
from flowformer.train.series.config import SeriesConfig, SeriesDataConfig


@pytest.mark.usefixtures("shape_checks_off")  # the checks of types would speak first
@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: EpochsConfig(epochs=0), "epochs must be at least 1, got 0"),
        (lambda: EpochsConfig(seed=-1), r"seed must be in \[0, 2\*\*32\), got -1"),
        (lambda: EpochsConfig(seed=2**32), r"seed must be in \[0, 2\*\*32\), got 4294967296"),
        (
            lambda: EpochsConfig(epochs=2.5),  # pyright: ignore[reportArgumentType]
            r"epochs must be of type int, got 2\.5",
        ),
        (
            lambda: OptimizerConfig(learning_rate="1"),  # pyright: ignore[reportArgumentType]
            "learning_rate must be of type float, got '1'",
        ),
        (
            lambda: SeriesDataConfig(batch_size=True),
            "batch_size must be of type int, got True",
        ),
        (
            lambda: SeriesConfig(
                name="own",
                data=SeriesDataConfig(),
                model=TimeSeriesModelConfig(dim=2.5),  # pyright: ignore[reportArgumentType]
            ),
            r"model\.dim must be of type int, got 2\.5",
        ),
        (lambda: EpochsConfig(threads=0), "threads must be at least 1, got 0"),
        (
            lambda: EpochsConfig(protocol="fair"),  # pyright: ignore[reportArgumentType]
            "protocol must be one of 'clean', 'published', got 'fair'",
        ),
        (
            lambda: OptimizerConfig(name="sgd"),  # pyright: ignore[reportArgumentType]
            "name must be one of 'radam', 'adam', 'adamw', got 'sgd'",
        ),
        (lambda: OptimizerConfig(learning_rate=0.0), r"learning_rate must be above 0, got 0\.0"),
        (lambda: OptimizerConfig(weight_decay=-1.0), "weight_decay must be at least 0"),
        (lambda: OptimizerConfig(gradient_clip=0.0), r"gradient_clip must be above 0, got 0\.0"),
        (lambda: SeriesDataConfig(batch_size=0), "batch_size must be at least 1, got 0"),
        (lambda: SeriesDataConfig(max_length=0), "max_length must be at least 1, got 0"),
        (lambda: SeriesDataConfig(validation_fraction=1.0), r"must be in \(0, 1\), got 1\.0"),
        (
            lambda: SeriesDataConfig(dataset="A", train_file=Path("b.ts")),
            r"give dataset or train_file, not both: got A and b\.ts",
        ),
        (
            lambda: SeriesDataConfig(test_file=Path("b.ts")),
            r"test_file needs train_file beside it, got only b\.ts",
        ),
        (
            lambda: SeriesDataConfig(folder=Path("b")),
            "folder needs the name of a dataset in it, got only b",
        ),
    ],
)
def test_a_wrong_value_is_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.usefixtures("shape_checks_off")
def test_what_is_no_experiment_is_refused():
    model: Any = TimeSeriesModelConfig()
    with pytest.raises(TypeError, match=r"one of SeriesConfig, .*got TimeSeriesModelConfig"):
        kind_of(model)


def test_one_file_is_predicted_but_for_images():
    with pytest.raises(ValueError, match="expected one file for a run on series, got 2"):
        KINDS["series"].study.require_classifier("run", Path("a.ts"), Path("b.ts"))
    KINDS["images"].study.require_classifier("run", Path("a.png"), Path("b.png"))
