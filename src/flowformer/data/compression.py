"""Files that may be gzipped."""

import gzip
import zlib
from pathlib import Path

MAX_UNPACKED = 2**31  # bytes; the largest file in use, of EMNIST, has half a gibibyte


def read_bytes(path: Path) -> bytes:
    """Returns the content of a file, unpacked when its name ends in .gz.

    Raises:
        ValueError: it is damaged, or has more than `MAX_UNPACKED` bytes; the message names it.
    """
    if path.suffix != ".gz":
        return path.read_bytes()
    with path.open("rb") as file:
        try:
            with gzip.open(file) as unpacked:
                content = unpacked.read(MAX_UNPACKED + 1)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{path} is a damaged gzip file: {error}") from error
    if len(content) > MAX_UNPACKED:
        raise ValueError(f"{path}: expected at most {MAX_UNPACKED:,} bytes unpacked: a bomb?")
    return content
