"""numpy's files, of which nothing but numbers is read."""

from pathlib import Path

import numpy as np
from jaxtyping import Float, Float64

_KINDS = "biuf"  # of dtypes: booleans and numbers


def map_array(path: Path) -> np.ndarray:
    """Maps an array of a .npy file into memory.

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


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Reads the arrays of a .npz file by their names.

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
    return {name: _numbers(array, path) for name, array in arrays.items()}


def centred_only_where_constant(
    std: Float64[np.ndarray, " n"],
    low: Float[np.ndarray, " n"],
    high: Float[np.ndarray, " n"],
) -> Float64[np.ndarray, " n"]:
    """What standardising divides by: the deviation, and 1 for what does not vary.

    Asked of the values, in whose precision they are alike: the rounding of a mean gives what is
    constant a deviation of 1e-17, and a value that is off by little would be off by 1e15.

    Args:
        std: standard deviations.
        low: least values.
        high: greatest values.
    """
    rounding = 4 * np.finfo(low.dtype).eps * np.maximum(np.abs(low), np.abs(high))
    return np.where(high - low <= rounding, 1.0, std)


def _numbers(array: object, path: Path) -> np.ndarray:
    # In an .npz file, what is no array comes as bytes.
    if not isinstance(array, np.ndarray) or array.dtype.kind not in _KINDS:
        kind = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
        raise ValueError(f"{path}: expected numbers, got {kind}")
    return array
