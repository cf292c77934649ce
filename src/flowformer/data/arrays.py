"""Arrays: read from files as nothing but numbers, scaled, and parted by their classes."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Float64, Int64

from flowformer.machine import library

_KINDS = "biuf"  # of dtypes: booleans and numbers


def map_array(path: Path) -> np.ndarray:
    """Map an array of a .npy file into memory.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or its values are no numbers; the message names it.
    """
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise
    except Exception as error:  # of a damaged header numpy raises whatever its parts do
        raise ValueError(f"{path}: expected an array, got a damaged file ({error})") from error
    return _numbers(array, path)


def read_arrays(path: Path, *, texts: bool = False) -> dict[str, np.ndarray]:
    """Read the arrays of a .npz file by their names.

    Args:
        path: the file.
        texts: whether values may be texts.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or values are no numbers; the message names it.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except FileNotFoundError:
        raise
    except Exception as error:  # zipfile's, numpy's, and whatever their parts raise
        raise ValueError(f"{path}: expected arrays, got a damaged file ({error})") from error
    return {
        name: array if texts and _is_text(array) else _numbers(array, path)
        for name, array in arrays.items()
    }


def centred_only_where_constant(
    std: Float64[np.ndarray, " n"],
    low: Float[np.ndarray, " n"],
    high: Float[np.ndarray, " n"],
) -> Float64[np.ndarray, " n"]:
    """Return what standardising divides by: the deviation, and 1 for what does not vary.

    Asked of the values, in whose precision they are alike: the rounding of a mean gives what is
    constant a deviation of 1e-17, and a value that is off by little would be off by 1e15.

    Args:
        std: standard deviations.
        low: least values.
        high: greatest values.
    """
    rounding = 4 * np.finfo(low.dtype).eps * np.maximum(np.abs(low), np.abs(high))
    return np.where(high - low <= rounding, 1.0, std)


def _is_text(array: object) -> bool:
    return isinstance(array, np.ndarray) and array.dtype.kind == "U"


def _numbers(array: object, path: Path) -> np.ndarray:
    # In an .npz file, what is no array comes as bytes.
    if not isinstance(array, np.ndarray) or array.dtype.kind not in _KINDS:
        kind = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
        raise ValueError(f"{path}: expected numbers, got {kind}")
    return array


def stratified_indices(
    labels: Int64[np.ndarray, " n"],
    fraction: float,
    seed: int,
    *,
    name: str,
    what: str = "series",
    classes: Sequence[str] | None = None,
) -> tuple[Int64[np.ndarray, " rest"], Int64[np.ndarray, " chosen"]]:
    """Choose a part with each class in about its share of the whole.

    Args:
        labels: the class of each sample.
        fraction: how many of them are chosen, in (0, 1).
        seed: the same seed gives the same parts.
        name: name of the samples together, for messages.
        what: a noun for them, in the plural.
        classes: the classes' names, for messages; without them they are told by their indices.

    Returns:
        The indices of the rest and of the part chosen, both rising.

    Raises:
        ImportError: scikit-learn is missing.
        ValueError: the fraction is outside (0, 1); a class has one sample only; a part would have
            fewer samples than there are classes; or none of a class would be left for training.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"expected a fraction between 0 and 1, got {fraction}")
    sklearn = library(
        "sklearn.model_selection",
        "for a stratified split",
        extra="train",
        package="scikit-learn",
    )
    occurring, counts = np.unique(labels, return_counts=True)
    if counts.min() < 2:
        raise ValueError(
            f"{name}: expected at least 2 {what} of each class, one to train on and one for "
            f"validation, got 1 of class {_named(occurring[counts < 2], classes)}"
        )
    chosen_size = math.ceil(fraction * len(labels))
    smaller = min(chosen_size, len(labels) - chosen_size)
    if smaller < len(occurring):
        raise ValueError(
            f"{name}: expected a fraction that leaves either side one of the {what} for each of "
            f"the {len(occurring)} classes, got {fraction} of {len(labels)} {what}, which leaves "
            f"{smaller}"
        )
    rest, chosen = sklearn.train_test_split(
        np.arange(len(labels)), test_size=chosen_size, random_state=seed, stratify=labels
    )
    lost = np.setdiff1d(occurring, labels[rest])
    if len(lost):
        raise ValueError(
            f"{name}: expected a fraction that leaves some of each class for training, got "
            f"{fraction}, which leaves none of class {_named(lost, classes)}"
        )
    return np.sort(rest), np.sort(chosen)


def _named(labels: Int64[np.ndarray, " n"], classes: Sequence[str] | None) -> str:
    if classes is None:
        return f"{', '.join(map(str, labels.tolist()))} (an index into the classes)"
    return ", ".join(repr(classes[label]) for label in labels)


def require_classes(
    labels: Int64[np.ndarray, " n"],
    classes: Sequence[str],
    *,
    name: str,
    what: str = "series",
) -> None:
    """Refuse training data of one class, of which every classifier is right, whatever it learns.

    Args:
        labels: the class of each sample that is trained on.
        classes: their names.
        name: name of the samples together, for messages.
        what: a noun for them, in the plural.

    Raises:
        ValueError: the samples are all of one class; the message names it.
    """
    occurring = np.unique(labels)
    if len(occurring) < 2:
        of = ", ".join(repr(classes[label]) for label in occurring) or "none"
        raise ValueError(
            f"{name}: expected {what} of at least 2 classes to train on, got {len(labels)} of {of}"
        )
