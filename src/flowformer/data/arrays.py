"""numpy's files, of which nothing but numbers is read."""

from pathlib import Path

import numpy as np

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


def _numbers(array: object, path: Path) -> np.ndarray:
    # In an .npz file, what is no array comes as bytes.
    if not isinstance(array, np.ndarray) or array.dtype.kind not in _KINDS:
        kind = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
        raise ValueError(f"{path}: expected numbers, got {kind}")
    return array
