"""Using a trained classifier: reading a run back, probabilities, the predictions' file."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float64, Int64
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import DataLoader

from flowformer.data import Preprocessing, SeriesDataset, collate
from flowformer.models.series.model import SeriesClassifier, build_classifier
from flowformer.serialization import from_plain
from flowformer.train.config import TimeSeriesConfig
from flowformer.train.folder import RunFolder, RunRecord, read_json


@dataclass(frozen=True, kw_only=True)
class Run:
    """A trained classifier and what is needed to use it.

    Attributes:
        model: in evaluation mode, on the CPU.
        preprocessing: to be applied to every series.
        config: of its training.
        classes: names of the classes.
        max_length: longest series that it takes.
    """

    model: SeriesClassifier
    preprocessing: Preprocessing
    config: TimeSeriesConfig
    classes: tuple[str, ...]
    max_length: int


def load_run(run_dir: str | Path) -> Run:
    """Reads back what `train` left in a folder.

    Raises:
        FileNotFoundError: there is no run, or it has not ended.
        ValueError: a file is damaged.
    """
    folder = RunFolder(Path(run_dir))
    record = RunRecord.read(folder)
    model = build_classifier(
        record.config.model,
        channels=record.channels,
        num_classes=len(record.classes),
        max_length=record.max_length,
    )
    load_weights(model, folder)
    return Run(
        model=model.eval(),
        preprocessing=from_plain(
            Preprocessing, read_json(folder.preprocessing), where=str(folder.preprocessing)
        ),
        config=record.config,
        classes=record.classes,
        max_length=record.max_length,
    )


def load_weights(model: nn.Module, folder: RunFolder) -> None:
    """Loads what a finished run left into its model; no code in it runs.

    Raises:
        FileNotFoundError: it has not ended.
        ValueError: the file is damaged, or of another architecture.
    """
    if not folder.weights.exists():
        raise FileNotFoundError(
            f"{folder.root} has no {folder.weights.name}: it has not ended, go on with --resume"
        )
    try:
        model.load_state_dict(load_file(folder.weights))
    # Of an odd header safetensors raises LookupError, TypeError and others, too.
    except (SafetensorError, RuntimeError, ValueError, LookupError, TypeError, OSError) as error:
        raise ValueError(f"{folder.weights} does not hold the run's parameters: {error}") from error


def predict_probabilities(
    model: SeriesClassifier, series: SeriesDataset, *, batch_size: int
) -> Float64[np.ndarray, "n classes"]:
    """Returns the probability of each class for each series, as `classify` does."""
    # A loader draws a number, though nothing here is random: not from the global generator, which
    # belongs to whoever trains in another thread.
    generator = torch.Generator()
    return classify(model, DataLoader(series, batch_size, collate_fn=collate, generator=generator))


@torch.inference_mode()
def classify(
    model: nn.Module, batches: Iterable[Mapping[str, Tensor]]
) -> Float64[np.ndarray, "n classes"]:
    """Returns the probability of each class for each case, computed on the model's device.

    The model is left in the mode that it was in.

    Args:
        model: gives `logits`.
        batches: keyword arguments of its call; labels among them are not looked at.
    """
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    probabilities = []
    for batch in batches:
        inputs = {name: value.to(device) for name, value in batch.items() if name != "labels"}
        probabilities.append(model(**inputs).logits.double().softmax(dim=-1).cpu().numpy())
    model.train(training)
    return np.concatenate(probabilities)


def choose_device(accelerator: str) -> torch.device:
    """Returns the device that an accelerator's name means here: auto takes a GPU when there is one.

    Raises:
        ValueError: the accelerator is not there.
    """
    available = {"gpu": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if accelerator == "auto":
        accelerator = next((name for name, there in available.items() if there), "cpu")
    if not available.get(accelerator, True):
        raise ValueError(f"training.accelerator is {accelerator}, and there is none: use cpu")
    return torch.device("cuda" if accelerator == "gpu" else accelerator)


def format_predictions(
    probabilities: Float64[np.ndarray, "n classes"],
    classes: Sequence[str],
    labels: Int64[np.ndarray, " n"] | None = None,
    *,
    files: Sequence[str] | None = None,
) -> str:
    """Returns CSV: index, label (empty when unknown), predicted, and each class's probability.

    Args:
        probabilities: of each class for each case.
        classes: their names.
        labels: their numbers; -1 of one that is not known.
        files: of the cases, which then stand in place of the index.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    first = "index" if files is None else "file"
    writer.writerow([first, "label", "predicted", *(f"probability_{name}" for name in classes)])
    for index, row in enumerate(probabilities):
        label = "" if labels is None or labels[index] < 0 else classes[labels[index]]
        place = index if files is None else files[index]
        writer.writerow([place, label, classes[row.argmax()], *(f"{value:.9g}" for value in row)])
    return text.getvalue()
