"""A finished run on images: reading it back, testing it again, and predictions for images."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float64
from torch.utils.data import DataLoader

from flowformer.data.images.records import ImageSplit, load_labelled_images
from flowformer.data.images.transforms import ImagePreprocessing
from flowformer.models.images.model import VisionClassifier
from flowformer.report.classifier import write_report
from flowformer.scores.metrics import classification_metrics, top5_accuracy
from flowformer.train.evaluation import Evaluation
from flowformer.train.folder import RunFolder, RunResult, holds_folder
from flowformer.train.images.config import VisionConfig
from flowformer.train.images.data import (
    build_vision_model,
    load_images,
    read_preprocessing,
    test_loader,
)
from flowformer.train.images.folder import VisionRecord
from flowformer.train.prediction import choose_device, classify, format_predictions, load_weights


@dataclass(frozen=True, kw_only=True)
class VisionRun:
    """A trained classifier of images and what is needed to use it.

    Attributes:
        model: in evaluation mode, on the CPU.
        preprocessing: to be applied to every image.
        config: of its training.
        classes: names of the classes.
    """

    model: VisionClassifier
    preprocessing: ImagePreprocessing
    config: VisionConfig
    classes: tuple[str, ...]

    def probabilities(self, split: ImageSplit) -> Float64[np.ndarray, "n classes"]:
        """Returns the probability of each class for each image.

        Raises:
            ValueError: a file is no image, or damaged; the message names it.
        """
        data = self.config.data
        batches: DataLoader = test_loader(
            split, self.preprocessing, batch_size=data.batch_size, workers=data.workers
        )
        device = choose_device(self.config.training.accelerator)
        return classify(self.model.to(device), batches)


def load_vision_run(run_dir: str | Path) -> VisionRun:
    """Reads back what training left in a folder; no code in it runs.

    Raises:
        FileNotFoundError: there is no run, or it has not ended.
        ValueError: it is one of another kind, or a file is damaged.
    """
    folder = RunFolder(Path(run_dir))
    record = VisionRecord.read(folder)
    model = build_vision_model(record)
    load_weights(model, folder)
    return VisionRun(
        model=model.eval(),
        preprocessing=read_preprocessing(folder),
        config=record.config,
        classes=record.classes,
    )


def evaluate_vision_run(run_dir: str | Path, file: Path | None = None) -> Evaluation:
    """Tests a finished run again.

    Args:
        run_dir: folder of the run.
        file: a folder of images, FOLDER/CLASS/IMAGE, in place of the run's own test images.

    Raises:
        FileNotFoundError: there is no finished run, or no such folder.
        ValueError: there is nothing to test on, or the folder has other classes.
    """
    run = load_vision_run(run_dir)
    if file is not None:
        split, source = load_labelled_images(file, run.classes), str(file)
    else:
        data = load_images(run.config.data)
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
    probabilities = run.probabilities(split)
    return Evaluation(
        source=source,
        metrics=classification_metrics(split.labels, probabilities.argmax(axis=1), run.classes),
        trained=RunResult.read(RunFolder(Path(run_dir))),
        own_test_set=file is None,
        unit="images",
        top5=top5_accuracy(probabilities, split.labels),
    )


def predict_images(run_dir: str | Path, *files: Path) -> str:
    """Returns predictions for image files as CSV: file, predicted, and each class's probability.

    Raises:
        FileNotFoundError: there is no finished run, or no such file.
        ValueError: a file is no image, or damaged; the message names it.
    """
    run = load_vision_run(run_dir)
    unknown = np.zeros(len(files), dtype=np.int64)
    split = ImageSplit(images=tuple(files), labels=unknown, name="images")
    paths = [str(file) for file in files]
    return format_predictions(run.probabilities(split), run.classes, files=paths)


@holds_folder
def write_vision_run_report(run_dir: str | Path) -> Path:
    """Writes the report of a finished run: figures, curves, and what is taken for what.

    Returns:
        The HTML page.

    Raises:
        BlockingIOError: another process writes to the folder.
        FileNotFoundError: there is no finished run.
        ValueError: a file of the run is damaged.
    """
    return write_report(Path(run_dir))
