"""A folder of small images, and an experiment on it that trains in a second."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from flowformer.models.images.config import VisionModelConfig
from flowformer.train.images.config import (
    AugmentationConfig,
    ImageDataConfig,
    ImagesConfig,
    ImagesOptimizerConfig,
    ImagesTrainingConfig,
)

COLOURS = {"blue": (60, 60, 200), "green": (60, 200, 60), "red": (200, 60, 60)}


def write_images(
    folder: Path, parts: dict[str, int], *, classes: tuple[str, ...] = ("green", "red")
) -> Path:
    """Writes noise around a colour for each class: so many images of each in each part."""
    rng = np.random.default_rng(0)
    for part, count in parts.items():
        for name in classes:
            (folder / part / name).mkdir(parents=True)
            for number in range(count):
                pixels = COLOURS[name] + rng.normal(0, 40, (20, 24, 3))
                image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
                image.save(folder / part / name / f"{number}.png")
    return folder


def tiny_vision(path: Path, **training: Any) -> ImagesConfig:
    """`tiny_vision(folder, epochs=3)`: fields of ImagesTrainingConfig by keyword."""
    settings: dict[str, Any] = {"epochs": 2, "average": 0.9, **training}
    return ImagesConfig(
        name="tiny",
        data=ImageDataConfig(path=path, image_size=16, batch_size=4, validation_fraction=0.25),
        augmentation=AugmentationConfig(
            rand_augment="rand-m9-mstd0.5-inc1", mixup=0.8, cutmix=1.0, label_smoothing=0.1
        ),
        model=VisionModelConfig(
            dims=(8, 16), depths=(1, 1), num_heads=(2, 2), layer_scale=None, drop_path=0.1
        ),
        optimizer=ImagesOptimizerConfig(
            learning_rate=3e-3, reference_batch=None, warmup_epochs=0.5
        ),
        training=ImagesTrainingConfig(
            **{"accelerator": "cpu", "threads": 1, "progress": "none", **settings}
        ),
    )


def plain(config: ImagesConfig) -> ImagesConfig:
    """Without mixing and random parts, which make two colours hard to learn in few steps."""
    return replace(config, augmentation=AugmentationConfig(crop="shift"))
