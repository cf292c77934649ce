"""From the configuration of an image model to its data, and to the model that it starts with."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from flowformer.config_json import from_plain
from flowformer.data.arrays import require_classes
from flowformer.data.images.records import IMAGE_SETS, ImageData, ImageSplit, with_validation
from flowformer.data.images.transforms import (
    EpochKeys,
    GreyDataset,
    ImageDataset,
    ImagePreprocessing,
    light_transform,
    strong_transform,
)
from flowformer.data.loaders import WorkerLoader, as_it_is
from flowformer.models.images.model import VisionClassifier, load_published_vision_model
from flowformer.train.digests import Digests, digest_files, digest_values
from flowformer.train.folder import RunFolder, read_json
from flowformer.train.images.config import ImageDataConfig, ImagesConfig, ImagesRecord
from flowformer.train.prediction import load_weights


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What the loop trains and validates on, what is tested at the end, and how all are read.

    Attributes:
        train: images that the parameters learn from; what the preprocessing was fitted on.
        validation: those that choose the epoch.
        test: those of the result, if there are any.
        preprocessing: of each.
        note: what chose the epoch, where it is another than the protocol's words say.
    """

    train: ImageSplit
    validation: ImageSplit
    test: ImageSplit | None
    preprocessing: ImagePreprocessing
    note: str | None = None

    def require_readable(self) -> None:
        """Read what is not trained on once: one that is damaged would end the run after an epoch.

        Raises:
            ValueError: a file is no image, or damaged; the message names it.
        """
        self.validation.require_readable()
        if self.test is not None and self.test is not self.validation:
            self.test.require_readable()


def load_images(config: ImageDataConfig) -> ImageData:
    """Look up the images that a configuration names.

    Raises:
        ValueError: it names none, or they are not what was expected.
        FileNotFoundError: a folder or file is missing.
        ImportError: a library is missing; the message names the extra to install.
    """
    config.require_source()
    return IMAGE_SETS[config.dataset](config.path)


def digest_data(config: ImagesConfig, data: ImageData | None = None) -> Digests:
    """Return digests of image files, or of folders where they are very many; of arrays by part."""
    if data is None:
        data = load_images(config.data)
    name = config.data.dataset or str(config.data.path)
    splits = {"train": data.train, "validation": data.validation, "test": data.test}
    found: Digests = {}
    files: list[Path] = []
    for part, split in splits.items():
        if split is not None and isinstance(split.images, np.ndarray):
            found[f"{name} ({part})"] = digest_values([data.classes, split.labels, split.images])
        elif split is not None:
            files += [image for image in split.images if isinstance(image, Path)]
    return found | digest_files(files)


def part_images(config: ImagesConfig, data: ImageData) -> Parts:
    """Part the images as the protocol says.

    Under "clean" the validation part is the folder's own, or else cut from the training images.
    Under "published" the test images are the validation part.

    Raises:
        ValueError: images of one class only, "published" without test images, too few images of a
            class to part.
    """
    note = None
    require_classes(data.train.labels, data.classes, name=data.name, what="images")
    if config.training.protocol == "published":
        if data.test is None:
            raise ValueError("the published protocol needs test images (val or test), got none")
        train, validation = data.train, data.test
    else:
        if data.validation is not None and data.test is not None:
            chose, read = (Path(split.name).name for split in (data.validation, data.test))
            note = f"the folder {chose} chose the epoch; the folder {read} was read once"
        parted = with_validation(data, config.data.validation_fraction, config.training.seed)
        assert parted.validation is not None
        train, validation = parted.train, parted.validation
    size = config.data.image_size
    if data.channels == 1:
        preprocessing = ImagePreprocessing.fit(train, size)
    else:
        preprocessing = ImagePreprocessing.for_photographs(size)
    return Parts(
        train=train,
        validation=validation,
        test=data.test,
        preprocessing=preprocessing,
        note=note,
    )


def train_loader(config: ImagesConfig, parts: Parts) -> DataLoader:
    """Return the batches of an epoch; where images are mixed by pairs, whole ones alone.

    Raises:
        ValueError: there is no whole one.
    """
    data, chance, seed = config.data, config.augmentation, config.training.seed
    whole = chance.mixes
    if whole and len(parts.train) < data.batch_size:
        raise ValueError(
            f"data.batch_size must be at most {len(parts.train)}, the images to train on, where "
            f"they are mixed, got {data.batch_size}"
        )
    own, split = parts.preprocessing, parts.train
    shift = chance.shift if chance.crop == "shift" else None
    if not isinstance(split.images, tuple):
        images: Dataset = GreyDataset(split, own, shift=shift, seed=seed)
    elif chance.crop == "resized":
        strong = strong_transform(
            own,
            rand_augment=chance.rand_augment,
            color_jitter=chance.color_jitter,
            random_erasing=chance.random_erasing,
        )
        images = ImageDataset(split, strong, seed=seed)
    else:
        transform = own.apply if shift is None else light_transform(own, shift=shift)
        images = ImageDataset(split, transform, seed=seed)
    return WorkerLoader(
        images,
        data.batch_size,
        sampler=EpochKeys(len(split), seed),
        drop_last=whole,
        num_workers=data.workers,
        collate_fn=_collate(images),
    )


def test_loader(
    config: ImagesConfig, split: ImageSplit, preprocessing: ImagePreprocessing
) -> DataLoader:
    """Return batches of all images of a part, in their order, without chance."""
    size, workers = config.data.batch_size, config.data.workers
    if isinstance(split.images, tuple):
        images: Dataset = ImageDataset(split, preprocessing.apply)
    else:
        images = GreyDataset(split, preprocessing, shift=None)
    return WorkerLoader(images, size, num_workers=workers, collate_fn=_collate(images))


def parameter_groups(model: VisionClassifier, weight_decay: float) -> list[dict[str, object]]:
    """Return the parameters with weight decay, the matrices, and those without.

    Biases, norms and factors are vectors; the positions and the class token are no layer's.
    """
    no_decay = {"positions", "cls"}
    groups: dict[bool, list[Tensor]] = {True: [], False: []}
    for name, parameter in model.named_parameters():
        groups[parameter.ndim > 1 and name not in no_decay].append(parameter)
    return [
        {"params": groups[True], "weight_decay": weight_decay},
        {"params": groups[False], "weight_decay": 0.0},
    ]


def build_vision_model(record: ImagesRecord) -> VisionClassifier:
    """Build the classifier of a run, with new parameters."""
    return VisionClassifier(
        record.config.model,
        image_size=record.config.data.image_size,
        channels=record.channels,
        num_classes=len(record.classes),
    )


def load_start(path: Path, record: ImagesRecord) -> VisionClassifier:
    """Build the classifier of a run with the parameters that another left.

    Args:
        path: the folder of a run on images, or a published checkpoint.
        record: the record of the run that begins.

    Raises:
        FileNotFoundError: there is no such file, or the run has not ended.
        ValueError: they are not parameters of this architecture, or for images of other channels.
    """
    config = record.config
    if path.is_dir():
        before = ImagesRecord.read(RunFolder(path))
        model = VisionClassifier(
            config.model,
            image_size=before.config.data.image_size,
            channels=before.channels,
            num_classes=len(before.classes),
        )
        load_weights(model, RunFolder(path))
        same_classes = before.classes == record.classes
    else:
        model = load_published_vision_model(path, config.model)
        assert isinstance(model.head, nn.Linear)
        same_classes = model.head.out_features == len(record.classes)
    if model.channels != record.channels:
        raise ValueError(
            f"{path} is of a model for {model.channels} channels, the images have {record.channels}"
        )
    if not same_classes:
        model.reset_head(len(record.classes))
    size = config.data.image_size
    if any(side * config.model.patch_size != size for side in model.grid):
        model.resize(size)
    return model


def read_preprocessing(folder: RunFolder) -> ImagePreprocessing:
    """Read what a run does to every image.

    Raises:
        FileNotFoundError: there is no such run.
        ValueError: its file is damaged.
    """
    path = folder.preprocessing
    return from_plain(ImagePreprocessing, read_json(path), where=str(path))


def _collate(images: Dataset) -> Any:
    return as_it_is if isinstance(images, GreyDataset) else None
