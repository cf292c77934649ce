"""Where fetched and prepared data are kept."""

import os
from pathlib import Path


def data_cache() -> Path:
    """The folder of fetched data: `$FLOWFORMER_DATA`, else `flowformer` in the user's cache.

    Raises:
        FileNotFoundError: There is no home directory, or it cannot be written, and no such variable
            names another folder.
    """
    folder = find_cache()
    if folder is None:
        raise FileNotFoundError(
            "there is no home directory to keep data in: set FLOWFORMER_DATA to a folder that can "
            "be written"
        )
    return folder


def find_cache() -> Path | None:
    """The folder of fetched data, to look into; None where there is none and none can be made."""
    if given := os.environ.get("FLOWFORMER_DATA"):
        return find_home(given) if given.startswith("~") else Path(given)
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return find_home(f"{cache}/flowformer")


def find_home(folder: str) -> Path | None:
    """A folder below the user's home, as `~/.cache`; None where there is none and none can be made.

    So it is for a user without an entry, and where the home is `/`, as in containers.

    Args:
        folder: It may begin with `~`.
    """
    try:
        path = Path(folder).expanduser()
    except RuntimeError:
        return None
    # Not Path.exists, which raises where a folder above may not be looked into.
    there = next((one for one in (path, *path.parents) if os.path.exists(one)), path)  # noqa: PTH110
    return path if there == path or os.access(there, os.W_OK) else None
