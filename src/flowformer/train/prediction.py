"""Using what was trained: its device and its parameters, the predictions of a classifier."""

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float64, Int64
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from flowformer.progress import counted
from flowformer.train.folder import RunFolder, require_ended

M = TypeVar("M", bound=nn.Module)


def load_weights(model: M, folder: RunFolder) -> M:
    """Load what a finished run left into its model, and return it; no code in the file runs.

    Raises:
        FileNotFoundError: it has not ended.
        ValueError: the file is damaged, or of another architecture.
    """
    require_ended(folder)
    try:
        model.load_state_dict(load_file(folder.weights))
    # Of an odd header safetensors raises LookupError, TypeError and others, too.
    except (SafetensorError, RuntimeError, ValueError, LookupError, TypeError, OSError) as error:
        raise ValueError(f"{folder.weights} does not hold the run's parameters: {error}") from error
    return model


def classify(
    model: nn.Module, batches: Iterable[Mapping[str, Tensor]]
) -> Float64[np.ndarray, "n classes"]:
    """Return the probability of each class for each case, computed on the model's device.

    The model is left in the mode that it was in.

    Args:
        model: a module that gives `logits`.
        batches: keyword arguments of its call; labels among them are not looked at.
    """
    return _predict(model, batches, lambda output: output.logits.double().softmax(dim=-1))


def regress(model: nn.Module, batches: Iterable[Mapping[str, Tensor]]) -> Float64[np.ndarray, " n"]:
    """Return the prediction for each case, as `classify` does.

    Args:
        model: a module that gives `predictions`.
        batches: keyword arguments of its call; labels among them are not looked at.
    """
    return _predict(model, batches, lambda output: output.predictions.double())


@torch.inference_mode()
def _predict(
    model: nn.Module, batches: Iterable[Mapping[str, Tensor]], read: Callable[[Any], Tensor]
) -> np.ndarray:
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    predicted = []
    for batch in counted(batches, "predicting", unit="batches"):
        inputs = {name: value.to(device) for name, value in batch.items() if name != "labels"}
        predicted.append(read(model(**inputs)).cpu().numpy())
    model.train(training)
    return np.concatenate(predicted)


def choose_device(accelerator: str) -> torch.device:
    """Return the device that an accelerator's name means here: auto takes a GPU when there is one.

    Raises:
        ValueError: the accelerator is not there.
    """
    available = {"gpu": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if accelerator == "auto":
        accelerator = next((name for name, there in available.items() if there), "cpu")
    if not available.get(accelerator, True):
        raise ValueError(f"training.accelerator is {accelerator}, and there is none: use cpu")
    return torch.device("cuda" if accelerator == "gpu" else accelerator)


def describe_device(device: torch.device) -> str:
    """Return what computed, in a word or two."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def count_parameters(model: nn.Module) -> int:
    """Return the number of trainable parameters."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def format_predictions(
    probabilities: Float64[np.ndarray, "n classes"],
    classes: Sequence[str],
    labels: Int64[np.ndarray, " n"] | None = None,
    *,
    files: Sequence[str] | None = None,
    ids: Sequence[str] | None = None,
) -> str:
    """Return CSV: index, label (empty when unknown), predicted, and each class's probability.

    Args:
        probabilities: the probability of each class for each case.
        classes: the names of the classes.
        labels: the number of each case's class; -1 of one that is not known.
        files: the files of the cases, which then stand in place of the index.
        ids: what the data call the cases, which then stands beside the index.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    head, places = _places(len(probabilities), files, ids)
    writer.writerow([*head, "label", "predicted", *(f"probability_{name}" for name in classes)])
    for index, row in enumerate(probabilities):
        label = "" if labels is None or labels[index] < 0 else classes[labels[index]]
        shown = (f"{value:.9g}" for value in row)
        writer.writerow([*places[index], label, classes[row.argmax()], *shown])
    return text.getvalue()


def _places(
    count: int, files: Sequence[str] | None, ids: Sequence[str] | None
) -> tuple[list[str], Sequence[Sequence[Any]]]:
    """Return what cases are told apart by: the names of these columns, and their values."""
    if files is not None:
        return ["file"], [[file] for file in files]
    if ids is not None:
        return ["index", "id"], list(enumerate(ids))
    return ["index"], [[index] for index in range(count)]


def format_numbers(
    predictions: Float64[np.ndarray, " n"],
    labels: Sequence[float | None] | None = None,
    *,
    ids: Sequence[str] | None = None,
) -> str:
    """Return CSV: index, target (empty when unknown), and the number that is predicted.

    Args:
        predictions: the prediction for each case.
        labels: the number of each case, None of one that is not known.
        ids: what the data call the cases, which then stands beside the index.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    head, places = _places(len(predictions), None, ids)
    writer.writerow([*head, "target", "predicted"])
    for index, value in enumerate(predictions):
        label = None if labels is None else labels[index]
        shown = "" if label is None else f"{label:.17g}"
        writer.writerow([*places[index], shown, f"{value:.17g}"])
    return text.getvalue()
