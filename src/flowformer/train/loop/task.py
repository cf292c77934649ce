"""What is trained: its record of each epoch, and a loss that is not finite."""

import copy
import csv
import io
import logging
import math
import time
from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
except ImportError as error:
    raise ImportError("lightning is needed to train: pip install 'flowformer[train]'") from error

from flowformer.data.loaders import SharedBatches
from flowformer.files import write_atomically
from flowformer.train.folder import RunFolder

logger = logging.getLogger(__name__)

Row = dict[str, float | int]
_LOGGED = ("epoch", "step", "train_loss", "validation_loss")  # without our doing


class NonFiniteLossError(RuntimeError):
    """The loss became NaN or infinite.

    Args:
        stage: train or validation.
        loss: its value; that of a process whose own share of the batch is sound is finite.
        step: optimizer steps taken before it.
        learning_rate: at that step.
        batch: the keyword arguments of the model's call.
    """

    def __init__(
        self,
        stage: str,
        loss: float,
        *,
        step: int,
        learning_rate: float,
        batch: dict[str, Tensor],
    ) -> None:
        happened = f"the {stage} loss became {loss}"
        if math.isfinite(loss):
            happened = f"the {stage} loss of another process is not finite"
        super().__init__(f"{happened} at step {step} (learning rate {learning_rate:g})")
        self.batch = batch if not math.isfinite(loss) else None


class RecordedTask(LightningModule):
    """A task whose epochs are recorded.

    All randomness of an epoch is a function of the seed, the epoch and the process alone (the order
    of the data is the sampler's): a run resumed at the start of an epoch goes on as if it had never
    stopped.

    Args:
        model: called with a batch as keyword arguments.
        build_optimizer: gives what `configure_optimizers` returns, from the model.
        seed: seed of the dropout.
        steps: steps of the optimizer, all together, where those are counted and not epochs.

    Attributes:
        shares: of the batches of each stage among several processes; empty for one process.
        skips_left: training batches that may still be left out for their loss.
        skipped: training batches of this epoch that were.
    """

    def __init__(
        self,
        model: nn.Module,
        build_optimizer: Callable[[nn.Module], Any],
        *,
        seed: int,
        steps: int | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self._build_optimizer = build_optimizer
        self._seed = seed
        self._steps = steps
        self.shares: Mapping[str, SharedBatches] = {}
        self.skips_left = self.skipped = 0
        self._taken = 0  # of the batches whose gradients make one step
        self._is_sharded = False

    def configure_optimizers(self) -> Any:
        """Build the optimizer, with its schedule if it has one."""
        return self._build_optimizer(self.model)

    def configure_model(self) -> None:
        """Share the parameters out among processes, under FSDP2.

        Those of a copy: the caller's model is whole, and has the best ones in the end.
        """
        from flowformer.train.loop.strategies import ShardedStrategy, shard

        if isinstance(self.trainer.strategy, ShardedStrategy) and not self._is_sharded:
            self._is_sharded = True
            self.model = copy.deepcopy(self.model)
            mesh = self.device_mesh
            assert mesh is not None
            shard(self.model, mesh["data_parallel"])

    @abstractmethod
    def step(self, batch: dict[str, Tensor], batch_idx: int, stage: str) -> Tensor:
        """Return what `take` makes of the loss of a batch, and count what figures are made of.

        Args:
            batch: the keyword arguments of the model's call.
            batch_idx: number of the batch in its epoch.
            stage: train or validation.

        Raises:
            NonFiniteLossError: the loss is NaN or infinite.
        """

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Return the loss of a batch to train on."""
        return self.step(batch, batch_idx, "train")

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Add a batch to the figures of the validation."""
        self.step(batch, batch_idx, "validation")

    @abstractmethod
    def figures(self) -> Row:
        """Return the columns of the epoch's row that are this task's own."""

    @abstractmethod
    def rank(self, row: Mapping[str, float | int]) -> tuple[float, ...]:
        """Return what is larger the better a row's epoch is."""

    @abstractmethod
    def describe(self, row: Mapping[str, float | int], held_out: str) -> str:
        """Return how far the training is, and the figures of a row, in words.

        Args:
            row: a row of metrics.csv.
            held_out: what the validation columns are measured on.
        """

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Start the epoch's randomness anew."""
        del batch
        # Not in on_train_epoch_start, which a resumed Trainer may leave out.
        if batch_idx == 0:
            self.skipped = 0
            torch.manual_seed(epoch_seed(self._seed, self.current_epoch, self.global_rank))
        if batch_idx % self.trainer.accumulate_grad_batches == 0:
            self._taken = 0

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Make the gradient of a step the mean over the batches that it holds.

        Lightning divides by the number that a whole step has: too much in the last step of an
        epoch, which may have fewer, and where batches were left out. Where all were, no parameter
        moves, by momentum neither.
        """
        if not self._taken:
            optimizer.zero_grad(set_to_none=True)
        elif self._taken != self.trainer.accumulate_grad_batches:
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        parameter.grad.mul_(self.trainer.accumulate_grad_batches / self._taken)

    def take(
        self, loss: Tensor, count: int, batch: dict[str, Tensor], stage: str, batch_idx: int
    ) -> tuple[Tensor, int]:
        """Log the loss of a batch, and weigh that of a share by its part of the whole batch.

        Args:
            loss: the mean over what is counted; 0 where nothing is.
            count: its targets, labels or steps.
            batch: the keyword arguments of the model's call.
            stage: train or validation.
            batch_idx: number of the batch in its epoch.

        Returns:
            What to go back from, whose mean over the processes is the loss of the whole batch; and
            what is counted, 0 where a batch is left out or too small for all to have a share of it.

        Raises:
            NonFiniteLossError: the loss is NaN or infinite, in any process, and may not be skipped.
        """
        if stage in self.shares and self.shares[stage].is_repeated(batch_idx):
            count = 0
        # Waits for an accelerator's forward pass, once a step: the batch at fault and the
        # parameters that met it are still at hand here, and after the update they are not.
        finite = bool(torch.isfinite(loss))
        whole, lost = self.across_processes(count, int(not finite))
        if lost:
            return self._leave_out(loss, batch, stage), 0
        if not whole:  # there is nothing in it to learn from
            return loss, 0
        self._taken += stage == "train"
        several, world_size = bool(self.shares), self.trainer.world_size
        self.log(
            f"{stage}_loss",
            loss.detach(),
            on_step=False,
            on_epoch=True,
            # Lightning rounds the mean over the processes of this whole number.
            batch_size=count * world_size,
            sync_dist=several,
        )
        return (loss * (count * world_size / whole) if several else loss), count

    def across_processes(self, *values: int) -> list[int]:
        """Return the sums of numbers over all processes."""
        if not self.shares:
            return list(values)
        totals = torch.tensor(values, dtype=torch.int64, device=self.device)
        torch.distributed.all_reduce(totals)
        return totals.tolist()

    def _leave_out(self, loss: Tensor, batch: dict[str, Tensor], stage: str) -> Tensor:
        """Return a loss whose gradient is zero: whoever waits for one of every parameter has it.

        Raises:
            NonFiniteLossError: it may not be left out.
        """
        error = NonFiniteLossError(
            stage,
            loss.item(),
            step=self.global_step,
            learning_rate=self.trainer.optimizers[0].param_groups[0]["lr"],
            batch=batch,
        )
        if stage != "train" or not self.skips_left:
            raise error
        self.skips_left -= 1
        self.skipped += 1
        logger.warning("%s: the batch is left out (%d more may be)", error, self.skips_left)
        parts = [0 * p.flatten()[0] for p in self.parameters() if p.requires_grad]
        return torch.stack(parts).sum()


class EpochRecorder(Callback):
    """Writes, at the end of each epoch, metrics.csv, best.ckpt if it is the best, and last.ckpt.

    The rows travel inside the checkpoint and the file is written whole each time, so a resumed run
    neither loses nor doubles one. best.ckpt is written before last.ckpt: a kill between them
    repeats the epoch and writes the same best.ckpt again, whereas the other order would lose it.

    Args:
        task: whose epochs they are.
        folder: where the run is kept.
        held_out: what the validation columns are measured on, in words.
        say: shows the line of an epoch.
        skip_nan: training batches of all epochs that may be left out for their loss; where it is
            not 0, metrics.csv has a column for them.
    """

    def __init__(
        self,
        task: RecordedTask,
        folder: RunFolder,
        *,
        held_out: str,
        say: Callable[[str], None],
        skip_nan: int = 0,
    ) -> None:
        self.rows: list[Row] = []
        self._skip_nan = task.skips_left = skip_nan
        self._task = task
        self._folder = folder
        self._held_out = held_out
        self._say = say
        self._started = self._train_seconds = self._learning_rate = 0.0

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint must hold of this."""
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the rows up to the checkpoint, in place of what metrics.csv may hold beyond it."""
        self.rows = list(state_dict["rows"])
        self._task.skips_left = self._skip_nan - sum(int(r.get("skipped", 0)) for r in self.rows)
        if self._task.trainer.is_global_zero:
            self.write_metrics()

    @property
    def best(self) -> Row:
        """The row of the best epoch, as the task ranks them; on a tie the earlier one."""
        return max(self.rows, key=lambda row: (*self._task.rank(row), -row["epoch"]))

    def write_metrics(self) -> None:
        """Write metrics.csv."""
        text = io.StringIO()
        writer = csv.DictWriter(text, list(self.rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        write_atomically(self._folder.metrics, text.getvalue())

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Take the learning rate of the step, and start the clock of the epoch."""
        del pl_module, batch
        # Here, since a schedule moves on after the step.
        self._learning_rate = trainer.optimizers[0].param_groups[0]["lr"]
        if batch_idx == 0:
            self._started = time.perf_counter()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the time of the epoch's training steps; validation follows the last one."""
        del trainer, pl_module
        self._train_seconds = time.perf_counter() - self._started

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record the epoch, and log its figures; validation has run by now."""
        if self._task.skipped == trainer.num_training_batches:
            raise RuntimeError("every batch of the epoch was left out: no loss of it was finite")
        row: Row = {
            "epoch": trainer.current_epoch + 1,
            "step": trainer.global_step,
            **self._task.figures(),
            "learning_rate": self._learning_rate,
            "train_seconds": self._train_seconds,
            "seconds": time.perf_counter() - self._started,
        }
        if self._skip_nan:
            row["skipped"] = self._task.skipped
        # The clocks of several processes differ: the rows are those of the first.
        row = trainer.strategy.broadcast(row)
        self.rows.append(row)
        figures = {name: float(row[name]) for name in row if name not in _LOGGED}
        pl_module.log_dict(figures, sync_dist=trainer.world_size > 1)
        if self.best is row:
            trainer.save_checkpoint(self._folder.best, weights_only=True)
        trainer.save_checkpoint(self._folder.last)
        if trainer.is_global_zero:
            self.write_metrics()
            self._say(f"{self._task.describe(row, self._held_out)}  {row['seconds']:.1f} s")


def epoch_seed(seed: int, epoch: int, process: int = 0) -> int:
    """Mix a seed and an epoch into the seed of that epoch's randomness in a process."""
    # The first process has what one alone has.
    mixed = [seed, epoch, *([process] if process else [])]
    return int(np.random.SeedSequence(mixed).generate_state(1, np.uint64)[0])
