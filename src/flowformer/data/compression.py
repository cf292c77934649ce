"""Files that may be gzipped."""

import gzip
import zlib
from pathlib import Path


def read_bytes(path: Path) -> bytes:
    """Returns the content of a file, unpacked when its name ends in .gz.

    Raises:
        ValueError: it is damaged; the message names it.
    """
    content = path.read_bytes()
    if path.suffix != ".gz":
        return content
    try:
        return gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is a damaged gzip file: {error}") from error
