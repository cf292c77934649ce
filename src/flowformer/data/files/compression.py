"""Files that may be gzipped."""

import gzip
import zlib
from pathlib import Path

MAX_UNPACKED = 2**31  # bytes; the largest file in use, of EMNIST, has half a gibibyte
_PIECE = 2**20


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
                # Piece by piece: read(n) makes room for n bytes, whatever there is.
                pieces, size = [], 0
                while size <= MAX_UNPACKED and (piece := unpacked.read(_PIECE)):
                    pieces.append(piece)
                    size += len(piece)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{path} is a damaged gzip file: {error}") from error
    if size > MAX_UNPACKED:
        raise ValueError(f"{path}: expected at most {MAX_UNPACKED:,} bytes unpacked: a bomb?")
    return b"".join(pieces)
