"""HDF5 files of which no more is read than numbers that are in them.

HDF5 lets a file name others, from which its values are then read, lets a few bytes stand for any
number of values, and keeps values of variable length in a heap, which it may search for ever where
that is damaged: none of it is what a data set of episodes needs.
"""

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import h5py

MAX_BYTES = 16 * 2**30  # of an array; the largest of D4RL's, of pictures, have a sixth of it
_MOST_OF_A_BYTE = 1_032  # values' bytes that deflate makes of one
_KINDS = "biuf"  # of dtypes: booleans and numbers


def read_numbers(file: "h5py.File", name: str) -> np.ndarray:
    """Reads an array of booleans or numbers.

    Raises:
        ValueError: there is none of that name in this file itself, its values are no numbers, or
            they are more than the file can hold.
    """
    import h5py

    data = _own(file, name)
    if not isinstance(data, h5py.Dataset) or data.shape is None:
        raise ValueError(f"expected an array {name}, got {data!r}")
    if data.dtype.kind not in _KINDS:
        raise ValueError(f"expected numbers in {name}, got {data.dtype}")
    _require_held(data)
    return np.asarray(data)


def read_words(file: "h5py.File", name: str) -> bytes:
    """Reads a single text of fixed length.

    Raises:
        ValueError: there is none of that name in this file itself.
    """
    import h5py

    data = _own(file, name)
    if not isinstance(data, h5py.Dataset) or data.shape != () or data.dtype.kind not in "SO":
        raise ValueError(f"expected a text {name}, got {data!r}")
    _require_held(data)
    return bytes(data[()])


def require_own(group: "h5py.Group") -> None:
    """Refuses a file with links, values in others or of variable length, or more than it can hold.

    Raises:
        ValueError: it is one.
    """
    import h5py

    for name in map(str, group):
        item = _own(group, name)
        if isinstance(item, h5py.Group):
            require_own(item)
        elif isinstance(item, h5py.Dataset):
            _require_held(item)


def _require_held(data: "h5py.Dataset") -> None:
    if data.external or data.is_virtual:
        raise ValueError(f"expected the values of {data.name} in this file, got other files' names")
    if data.dtype.kind == "O":
        raise ValueError(
            f"expected values of fixed length in {data.name}, got {data.dtype}: where a file is "
            "damaged, HDF5 may look for others for ever"
        )
    size, stored = data.size * data.dtype.itemsize, data.id.get_storage_size()
    if size > min(MAX_BYTES, _MOST_OF_A_BYTE * stored + 2**20):
        raise ValueError(
            f"expected in {data.name} what the file can hold, got {size:,} bytes from {stored:,}"
        )


def _own(group: "h5py.Group", name: str) -> object:
    import h5py

    place = group
    for part in name.split("/"):
        if not isinstance(place, h5py.Group) or part not in place:
            raise ValueError(f"expected {name} in the file, found none")
        if not isinstance(place.get(part, getlink=True), h5py.HardLink):
            raise ValueError(f"expected {name} in this file, got a link to it")
        place = place[part]
    return place
