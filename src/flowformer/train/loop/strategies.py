"""Lightning's strategies for several processes: DDP, and FSDP2 with checkpoints in shards."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.distributed.checkpoint.state_dict import (
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import fully_shard

try:
    from lightning.fabric.plugins.environments.lightning import LightningEnvironment
    from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
    from lightning.fabric.utilities.rank_zero import rank_zero_only
    from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy
except ImportError as error:
    raise ImportError("lightning is needed to train: pip install 'flowformer[train]'") from error

from flowformer.train.config import ComputeConfig
from flowformer.train.folder import RunFolder
from flowformer.train.loop.checkpoints import load_shards, place_of_last, read_rest, save_shards

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


@contextmanager
def counted_as(number: int) -> Iterator[None]:
    """Let Lightning take this process for that number, whatever the environment says.

    What it writes, it writes in the first one; it reads the number from Slurm's variables, MPI's
    and torchrun's, which may be of the job around this process or left over.
    """
    known: Any = rank_zero_only  # a function, with the number as an attribute
    before, known.rank = known.rank, number
    try:
        yield
    finally:
        known.rank = before


def options_for_one_process(settings: ComputeConfig) -> dict[str, Any]:
    """Return the Trainer's arguments for a run of one process, whatever the environment says.

    Without them Lightning looks for Slurm, LSF, MPI and torchrun, and waits for their processes.

    Raises:
        ValueError: the settings ask for several, and none have been joined.
    """
    if settings.processes > 1:
        raise ValueError(
            f"training.devices and training.nodes ask for {settings.processes} processes, and this "
            "is one: flowformer train starts them, or join them by "
            "flowformer.train.processes.group.joined"
        )
    return {"plugins": [LightningEnvironment()]}


def options_for_processes(settings: ComputeConfig, folder: RunFolder) -> dict[str, Any]:
    """Return the Trainer's arguments for a run of several processes, which have been joined.

    Args:
        settings: the settings of the training.
        folder: the folder of the run.
    """
    wait = timedelta(seconds=settings.timeout)
    strategy: Strategy = DDPStrategy(timeout=wait)
    if settings.strategy == "fsdp":
        strategy = ShardedStrategy(folder, processes=settings.processes, timeout=wait)
    # Whoever started them: `joined` has put it into torchrun's words.
    return {"strategy": strategy, "plugins": [TorchElasticEnvironment()]}


def shard(model: nn.Module, mesh: "DeviceMesh") -> None:
    """Share out the parameters of a model (FSDP2): each block's by itself, then what is left.

    Args:
        model: called as a whole, and calls each of its blocks as a whole.
        mesh: of the processes, one dimension.
    """
    for block in list(_blocks(model)):
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    """Yield what stands in the outermost lists."""
    for child in module.children():
        if isinstance(module, nn.ModuleList) and not isinstance(child, nn.ModuleList):
            yield child
        else:
            yield from _blocks(child)


class ShardedStrategy(ModelParallelStrategy):
    """FSDP2 over all processes, whose checkpoints are folders of shards.

    See `flowformer.train.loop.checkpoints`; Lightning's own are read with pickle.

    Args:
        folder: the folder of the run.
        processes: how many share the parameters.
        timeout: how long one waits for another.
    """

    def __init__(self, folder: RunFolder, *, processes: int, timeout: timedelta) -> None:
        super().__init__(data_parallel_size=processes, tensor_parallel_size=1, timeout=timeout)
        self._folder = folder

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None
    ) -> None:
        """Write a checkpoint, each process its shards."""
        before = place_of_last(self._folder, filepath, storage_options)
        save_shards(checkpoint, Path(filepath), before=before)

    def load_checkpoint(
        self, checkpoint_path: str | Path, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint into the model and the optimizer; return the rest.

        Raises:
            ValueError: it is none of this run.
        """
        del weights_only
        path = Path(checkpoint_path)
        assert self.model is not None
        rest, model = read_rest(path), self.model
        (optimizer,) = self.optimizers
        states = [get_optimizer_state_dict(model, optimizer)]
        own = {"state_dict": self.lightning_module_state_dict(), "optimizer_states": states}
        load_shards(path, own, rest)
        set_model_state_dict(model, rest["state_dict"])
        set_optimizer_state_dict(model, optimizer, rest["optimizer_states"][0])
        return rest
