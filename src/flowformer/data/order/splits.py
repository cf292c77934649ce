"""Splits that keep the share of each class."""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64


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
        labels: The class of each sample.
        fraction: How many of them are chosen, in (0, 1).
        seed: The same seed gives the same parts.
        name: Of the samples together, for messages.
        what: They are, in the plural.
        classes: The classes' names, for messages; without them they are told by their indices.

    Returns:
        The indices of the rest and of the part chosen, both rising.

    Raises:
        ImportError: scikit-learn is missing.
        ValueError: The fraction is outside (0, 1); a class has one sample only; a part would have
            fewer samples than there are classes; or none of a class would be left for training.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"expected a fraction between 0 and 1, got {fraction}")
    try:
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise ImportError(
            "scikit-learn is needed for a stratified split: pip install 'flowformer[train]'"
        ) from error
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
    rest, chosen = train_test_split(
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
