"""Checkpoints of a run: written at once, the one before kept, and read without running code."""

import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch

try:
    from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
except ImportError as error:
    raise ImportError("lightning is needed to train: pip install 'flowformer[train]'") from error

from flowformer.files import atomic_file
from flowformer.train.folder import RunFolder

logger = logging.getLogger(__name__)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints so that a kill, of the machine too, leaves the previous one whole.

    Args:
        folder: of the run; what its last checkpoint was is kept.
    """

    def __init__(self, folder: RunFolder) -> None:
        """Keeps the folder."""
        super().__init__()
        self._folder = folder

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Writes a checkpoint in one step.

        Raises:
            TypeError: storage options, of which there are none here.
        """
        if storage_options is not None:
            raise TypeError(f"storage_options must be None, got {storage_options!r}")
        before = self._folder.previous if Path(path) == self._folder.last else None
        with atomic_file(Path(path), before=before) as file:
            save_to(file, checkpoint)

    def load_checkpoint(
        self, path: str | Path, *_arguments: Any, **_options: Any
    ) -> dict[str, Any]:
        """Reads a checkpoint as `read_checkpoint` does, on the CPU: Lightning moves it from there.

        Raises:
            ValueError: it is none of this run.
        """
        return read_checkpoint(Path(path))


def save_to(file: BinaryIO, checkpoint: dict[str, Any]) -> None:
    """Writes a checkpoint as torch does.

    Raises:
        OSError: it cannot be written.
    """
    try:
        torch.save(checkpoint, file)
    except RuntimeError as error:
        # Of a full disk torch says that a position was unexpected.
        if isinstance(error.__context__, OSError):
            raise error.__context__ from error
        raise


def choose_checkpoint(
    folder: RunFolder, read: Callable[[Path], object] | None = None
) -> Path | None:
    """Returns where a run goes on from: its last checkpoint, or the one before that.

    Args:
        folder: of the run.
        read: raises ValueError on a checkpoint that is none; by default as `read_checkpoint` does.

    Returns:
        Its path, None where the run has not come to its first one.

    Raises:
        ValueError: there are some, and none can be read.
    """
    found = [path for path in (folder.last, folder.previous) if path.exists()]
    for path in found:
        try:
            (read or read_checkpoint)(path)
        except ValueError as error:
            if path == found[-1]:
                raise
            logger.warning("%s", error.args[0].partition(":")[0])
            continue
        if path == folder.previous:
            logger.warning("going on from the checkpoint before it, %s", path)
        return path
    return None


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Reads a checkpoint; no code in it runs.

    Raises:
        ValueError: the file is missing, damaged, or no checkpoint of a run.
    """
    if path.is_dir():
        raise ValueError(
            f"{path} is a checkpoint in shards, of strategy fsdp: it is read by two processes or "
            "more (training.devices)"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, on the way to its error
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        if "state_dict" not in checkpoint:
            raise KeyError("state_dict")
    except Exception as error:  # of other bytes torch raises whatever its parts do: struct.error, …
        # Not torch's own words: they advise to run the code in the file.
        raise ValueError(
            f"{path} is no checkpoint of a run (missing, damaged or made by something else): "
            f"delete {path.parent} and resume, to train from the first epoch"
        ) from error
    return checkpoint
