"""Checkpoints of a run: written at once, the one before kept, and read without running code.

One of several processes under FSDP2 lies in shards: a folder to which every process has written its
part of every tensor, in safetensors files as torch.distributed.checkpoint writes them (`shard-…`),
all else in `rest.pt`, which is read with `weights_only=True`. `rest.pt` is written last, and the
folder has its name once it is whole.
"""

import logging
import math
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError
from torch import Tensor, distributed
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import (
    HuggingFaceStorageReader,
    HuggingFaceStorageWriter,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.tensor import DTensor

try:
    from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
except ImportError as error:
    raise ImportError("lightning is needed to train: pip install 'flowformer[train]'") from error

from flowformer.files import UNFINISHED, atomic_file, sync_folder
from flowformer.train.folder import RunFolder

logger = logging.getLogger(__name__)

REST = "rest.pt"
_MODEL = "model/"
_OPTIMIZER = "optimizer/"


def place_of_last(folder: RunFolder, path: str | Path, storage_options: Any) -> Path | None:
    """Return where the last checkpoint goes, if that is the one which a new one replaces.

    Raises:
        TypeError: storage options, of which there are none here.
    """
    if storage_options is not None:
        raise TypeError(f"storage_options must be None, got {storage_options!r}")
    return folder.previous if Path(path) == folder.last else None


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints so that a kill, of the machine too, leaves the previous one whole.

    Args:
        folder: the folder of the run; what its last checkpoint was is kept.
    """

    def __init__(self, folder: RunFolder) -> None:
        super().__init__()
        self._folder = folder

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Write a checkpoint in one step."""
        before = place_of_last(self._folder, path, storage_options)
        with atomic_file(Path(path), before=before) as file:
            save_to(file, checkpoint)

    def load_checkpoint(
        self, path: str | Path, *_arguments: Any, **_options: Any
    ) -> dict[str, Any]:
        """Read a checkpoint as `read_checkpoint` does, on the CPU: Lightning moves it from there.

        Raises:
            ValueError: it is none of this run.
        """
        return read_checkpoint(Path(path))


def save_to(file: BinaryIO, checkpoint: dict[str, Any]) -> None:
    """Write a checkpoint as torch does.

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
    """Return where a run goes on from: its last checkpoint, or the one before that.

    Args:
        folder: the folder of the run.
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
    """Read a checkpoint; no code in it runs.

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


def save_shards(checkpoint: dict[str, Any], path: Path, *, before: Path | None = None) -> None:
    """Write a checkpoint, called by all processes; a kill leaves the one before it whole.

    Args:
        checkpoint: Lightning's, with DTensors in its states of the module and the optimizers.
        path: the folder to write.
        before: where what `path` was is kept. A kill may leave it there alone.

    Raises:
        OSError: it cannot be written.
    """
    unfinished = path.with_name(f".{path.name}{UNFINISHED}")
    first = distributed.get_rank() == 0
    if first:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
    distributed.barrier()
    shards, rest = _part(checkpoint)
    writer = HuggingFaceStorageWriter(str(unfinished), save_distributed=True)
    with _named(unfinished):
        save(dict(shards), storage_writer=writer)
    if first:
        with atomic_file(unfinished / REST) as file:
            save_to(file, {**rest, "shards": {name: tuple(t.shape) for name, t in shards.items()}})
        if path.exists():
            _put_away(path, before)
        unfinished.replace(path)
        sync_folder(path.parent)
    distributed.barrier()


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Raise what torch's checkpoints fail by, which is no Exception, as an error of the folder's.

    Raises:
        OSError: the system's, in any of the processes.
        ValueError: anything else.
    """
    try:
        yield
    except CheckpointException as error:
        causes = [cause for cause, _ in error.failures.values()]
        for cause in causes:
            if isinstance(cause, OSError) and cause.errno is not None:
                raise OSError(cause.errno, cause.strerror, str(path)) from error
        raise ValueError(f"{path}: {type(causes[0]).__name__}: {causes[0]}") from error


def _put_away(path: Path, before: Path | None) -> None:
    """Make room for a new folder: a rename cannot replace one."""
    old = before or path.with_name(f".{path.name}.old{UNFINISHED}")
    shutil.rmtree(old, ignore_errors=True)
    path.rename(old)
    if before is None:
        shutil.rmtree(old)


def _part(checkpoint: Mapping[str, Any]) -> tuple[dict[str, DTensor], dict[str, Any]]:
    """Return the tensors that are shared out, by their names in the files, and all else."""
    shards: dict[str, DTensor] = {}
    rest = {**checkpoint, "state_dict": _take(checkpoint["state_dict"], _MODEL, shards)}
    states = checkpoint.get("optimizer_states", [])
    rest["optimizer_states"] = [
        {
            **state,
            "state": {
                name: _take(moments, f"{_OPTIMIZER}{number}/{name}/", shards)
                for name, moments in state["state"].items()
            },
        }
        for number, state in enumerate(states)
    ]
    return shards, rest


def _take(values: Mapping[str, Any], prefix: str, shards: dict[str, DTensor]) -> dict[str, Any]:
    rest = {}
    for name, value in values.items():
        if isinstance(value, DTensor):
            shards[prefix + name] = value
        else:
            rest[name] = value
    return rest


def read_rest(path: Path) -> dict[str, Any]:
    """Read what is no shard in a checkpoint, and look whether all shards are there.

    Raises:
        ValueError: the checkpoint is damaged, or none in shards; it is named.
    """
    if path.is_file():
        raise ValueError(
            f"{path} is a checkpoint in one file, not in shards: its run had another strategy, or "
            "one process (training.devices)"
        )
    rest = read_checkpoint(path / REST)
    try:
        found: Any = HuggingFaceStorageReader(str(path)).read_metadata().state_dict_metadata
        for name, shape in rest["shards"].items():
            there = sum(math.prod(chunk.sizes) for chunk in found[name].chunks)
            if there != math.prod(shape):
                raise KeyError(name)
    except (SafetensorError, OSError, LookupError, ValueError) as error:
        raise ValueError(
            f"{path} is no whole checkpoint: a shard is damaged or missing ({error})"
        ) from error
    return rest


def load_shards(path: Path, checkpoint: Mapping[str, Any], rest: Mapping[str, Any]) -> None:
    """Read the shards of a checkpoint, called by all processes, of whatever number.

    Args:
        path: the folder of the checkpoint.
        checkpoint: as `save_shards` was given one; its DTensors are written over.
        rest: what `read_rest` returned; its states receive the DTensors.

    Raises:
        OSError: a shard cannot be read.
        ValueError: a shard does not fit.
    """
    shards, _ = _part(checkpoint)
    with _named(path):
        load(dict(shards), storage_reader=HuggingFaceStorageReader(str(path)))
    for name, value in shards.items():
        if name.startswith(_MODEL):
            rest["state_dict"][name.removeprefix(_MODEL)] = value
        else:
            number, parameter, moment = name.removeprefix(_OPTIMIZER).split("/")
            rest["optimizer_states"][int(number)]["state"][parameter][moment] = value


def read_whole(path: Path) -> dict[str, Tensor]:
    """Read the parameters of a checkpoint in shards, whole, in this one process.

    With `safetensors.torch.save_file` they are one file, as the end of a run writes it.

    Raises:
        ValueError: the checkpoint is damaged; it is named.
    """
    rest = read_rest(path)
    reader = HuggingFaceStorageReader(str(path))
    found: Any = reader.read_metadata().state_dict_metadata
    whole = {
        name: torch.empty(tuple(rest["shards"][name]), dtype=found[name].properties.dtype)
        for name in rest["shards"]
        if name.startswith(_MODEL)
    }
    with warnings.catch_warnings(), _named(path):
        # It says that it loads in one process, as it is told to.
        warnings.filterwarnings("ignore", ".*load in a single process.*")
        load(dict(whole), storage_reader=reader, no_dist=True)
    return {**rest["state_dict"], **{n.removeprefix(_MODEL): t for n, t in whole.items()}}
