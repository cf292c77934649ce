"""Image classification: the parts of a run, and the use of a finished one."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
from jaxtyping import Float64
from torch import nn
from torch.utils.data import DataLoader

from flowformer.config_json import to_plain
from flowformer.data.images.records import ImageSplit, load_labelled_images
from flowformer.models.images.model import VisionClassifier
from flowformer.scores.metrics import top5_accuracy
from flowformer.train.classification import Classifier, Tested, sizes_of
from flowformer.train.folder import RunFolder, read_versions, write_json
from flowformer.train.images.config import ImagesConfig, ImagesRecord
from flowformer.train.images.data import (
    build_vision_model,
    load_images,
    load_start,
    parameter_groups,
    part_images,
    read_preprocessing,
    test_loader,
    train_loader,
)
from flowformer.train.prediction import classify, format_predictions, load_weights
from flowformer.train.study import Trained

if TYPE_CHECKING:  # it needs Lightning, and a finished run does not
    from flowformer.train.loop.task import RecordedTask

AVERAGE = "average.module."  # of the averaged parameters' names in a checkpoint


class Images(Classifier):
    """Image classification."""

    reads = "IMAGE"
    reads_several = True
    labelled = "FOLDER"
    unit = "images"

    def __init__(self, config: ImagesConfig, *, begun: RunFolder | None = None) -> None:
        del begun
        self.config, self.data = config, load_images(config.data)
        self.parts = part_images(config, self.data)
        self.classes, self.note = self.data.classes, self.parts.note
        self.weights = "model." if config.training.average is None else AVERAGE
        self.record = ImagesRecord(
            recipe=config.name,
            config=config,
            versions=read_versions(),
            classes=self.data.classes,
            channels=self.data.channels,
            sizes=sizes_of(self.parts.train, self.parts.validation, self.parts.test),
        )

    @property
    def paper(self) -> tuple[float | None, str | None]:
        """The paper's accuracy, where the data have as many classes, and where it prints it."""
        return super().paper if len(self.classes) == self.config.paper_classes else (None, None)

    def describe(self) -> str:
        """Return how many images and classes there are."""
        return f"{super().describe()}, {len(self.classes)} classes"

    def check(self) -> None:
        """Refuse damaged images of the validation and the test part."""
        self.parts.require_readable()

    def loaders(self) -> tuple[DataLoader, DataLoader]:
        """Return the batches of an epoch, and those that choose it."""
        self.batches = train_loader(self.config, self.parts)
        validation = test_loader(self.config, self.parts.validation, self.parts.preprocessing)
        return self.batches, validation

    def build(self) -> VisionClassifier:
        """Build the classifier, with new parameters or those that it starts from."""
        training = self.config.training
        if training.model_from is None:
            model = build_vision_model(self.record)
        else:
            model = load_start(training.model_from, self.record)
        model.checkpointing = training.checkpoint_activations
        return model

    def write(self, folder: RunFolder) -> None:
        """Write the preprocessing."""
        write_json(folder.preprocessing, to_plain(self.parts.preprocessing))

    def task(self, model: nn.Module) -> "RecordedTask":
        """Return the classification of mixed images, at a rate that follows the schedule."""
        from flowformer.data.images.transforms import Mixing
        from flowformer.train.images.task import ImagesTask
        from flowformer.train.loop.optimizers import build_scheduled

        training, chance = self.config.training, self.config.augmentation
        steps = math.ceil(len(self.batches) / training.accumulate)
        images = self.config.data.batch_size * training.accumulate
        optimizer = self.config.optimizer.by_steps(steps, images=images)
        return ImagesTask(
            cast(VisionClassifier, model),
            lambda trained: build_scheduled(
                parameter_groups(cast(VisionClassifier, trained), optimizer.weight_decay),
                optimizer,
                steps=training.epochs * steps,
            ),
            seed=training.seed,
            mixing=Mixing(
                len(self.classes),
                mixup=chance.mixup,
                cutmix=chance.cutmix,
                label_smoothing=chance.label_smoothing,
            ),
            average=training.average,
        )

    def predict_test(self, model: VisionClassifier) -> Tested | None:
        """Return the predictions for the test images, if there are any."""
        test = self.parts.test
        if test is None:
            return None
        return _tested(
            classify(model, test_loader(self.config, test, self.parts.preprocessing)), test
        )

    @classmethod
    def load(cls, run_dir: str | Path) -> Trained:
        """Read back what training left in a folder; no code in it runs."""
        folder = RunFolder(Path(run_dir))
        record = ImagesRecord.read(folder)
        return Trained(
            model=load_weights(build_vision_model(record), folder).eval(),
            record=record,
            preprocessing=read_preprocessing(folder),
        )

    @classmethod
    def retest(cls, run: Trained, run_dir: str | Path, file: Path | None) -> tuple[str, Tested]:
        """Test a finished run again, on its own test images or on a folder of them."""
        if file is not None:
            split, source = load_labelled_images(file, run.classes), str(file)
        else:
            data = load_images(run.record.config.data)
            if data.test is None:
                raise ValueError(
                    f"{run_dir} was trained without test images: give a folder of them (--file)"
                )
            if data.classes != run.classes:
                raise ValueError(
                    f"{run_dir} has the classes {', '.join(run.classes)}, its images now have "
                    f"{', '.join(data.classes)}"
                )
            split, source = data.test, f"the test images of {data.name}"
        return source, _tested(_classify(run, split), split)

    @classmethod
    def predict(cls, run_dir: str | Path, *files: Path) -> str:
        """Classify image files, by name in place of the index."""
        run = cls.load(run_dir)
        unknown = np.zeros(len(files), dtype=np.int64)
        split = ImageSplit(images=tuple(files), labels=unknown, name="images")
        paths = [str(file) for file in files]
        return format_predictions(_classify(run, split), run.classes, files=paths)


def _classify(run: Trained, split: ImageSplit) -> Float64[np.ndarray, "n classes"]:
    return classify(run.to_device(), test_loader(run.config, split, run.preprocessing))


def _tested(probabilities: Float64[np.ndarray, "n classes"], split: ImageSplit) -> Tested:
    top5 = top5_accuracy(probabilities, split.labels)
    return Tested(probabilities=probabilities, labels=split.labels, top5=top5)
