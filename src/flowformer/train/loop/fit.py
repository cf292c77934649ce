"""The loop that every task is trained in: Lightning's Trainer, set up for a run folder."""

import logging
import math
import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from safetensors.torch import save
from torch import nn
from torch.utils.data import DataLoader

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
    from lightning.pytorch.loggers import Logger
    from lightning.pytorch.utilities.exceptions import SIGTERMException
except ImportError as error:
    raise ImportError("lightning is needed to train: pip install 'flowformer[train]'") from error

from flowformer.data.loaders import own_randomness, share_out, shares_of
from flowformer.files import write_atomically
from flowformer.progress import Work, is_shown, say, working
from flowformer.train.config import ComputeConfig
from flowformer.train.folder import RunFolder
from flowformer.train.loop.checkpoints import (
    AtomicCheckpointIO,
    choose_checkpoint,
    read_checkpoint,
    read_rest,
    read_whole,
)
from flowformer.train.loop.strategies import (
    counted_as,
    options_for_one_process,
    options_for_processes,
)
from flowformer.train.loop.task import EpochRecorder, NonFiniteLossError, RecordedTask
from flowformer.train.processes.group import ShareDoneError, current, leave_group

logger = logging.getLogger(__name__)

_IRRELEVANT_WARNINGS = (
    ".*does not have many workers.*",  # the series are in memory: workers would only copy them
    ".*smaller than the logging interval.*",  # nothing is logged by the step
    r"`isinstance\(treespec, LeafSpec\)` is deprecated.*",  # Lightning 2.6 with torch 2.14
    ".*GPU available but not used.*",  # training.accelerator says so
)


def fit(
    task: RecordedTask,
    folder: RunFolder,
    settings: ComputeConfig,
    *,
    train: DataLoader,
    validation: DataLoader,
    held_out: str,
    gradient_clip: float | None,
    loggers: Sequence[Logger] = (),
) -> EpochRecorder:
    """Train from the last whole epoch in the folder on; return what was recorded of all.

    Args:
        task: the task to train.
        folder: the folder of the run.
        settings: how long to train, where, and what is shown.
        train: the batches of an epoch.
        validation: the batches that it is measured on after each.
        held_out: the name of the validation data.
        gradient_clip: largest norm of the whole gradient.
        loggers: where the figures of each epoch go.

    Raises:
        NonFiniteLossError: the loss became NaN or infinite; the batch is saved in the folder.
        KeyboardInterrupt: Ctrl-C.
        SystemExit: SIGTERM came; its code is 143.
        ShareDoneError: all is done that this process had to do; the first one returns.
        ValueError: no checkpoint of the run can be read, its strategy cannot train this, or there
            are not as many processes as the settings say.
    """
    group = current()
    recorder = EpochRecorder(
        task, folder, held_out=held_out, say=line_sayer(settings), skip_nan=settings.skip_nan
    )
    interrupt = InterruptBetweenBatches(several=group.count > 1)
    if group.count == 1:
        options = options_for_one_process(settings)
    else:
        options = options_for_processes(settings, folder)
        train, validation = (
            share_out(loader, process=group.number, processes=group.count)
            for loader in (train, validation)
        )
        task.shares = {"train": shares_of(train), "validation": shares_of(validation)}
        items = getattr(task.shares["train"].batches, "batch_size", group.count)
        if group.is_first and items < group.count:
            logger.warning(
                "%d of %d processes have an item of a batch, the others wait: raise "
                "data.batch_size; training.accumulate may be lowered as much",
                *(items, group.count),
            )
    start = group.agree(lambda: _start(folder, settings))
    with (
        _quiet_lightning(),
        interrupt.listening(),
        counted_as(group.number),
        ExitStack() as until,
    ):
        trainer = Trainer(
            accelerator=settings.accelerator,
            devices=settings.devices,
            num_nodes=settings.nodes,
            use_distributed_sampler=False,
            precision=settings.precision,
            max_epochs=settings.rounds,
            gradient_clip_val=gradient_clip,
            accumulate_grad_batches=getattr(settings, "accumulate", 1),
            deterministic=True,
            num_sanity_val_steps=0,
            default_root_dir=folder.root,
            logger=list(loggers),
            callbacks=[interrupt, recorder, WorkTeller(settings.round_name, until)],
            plugins=[AtomicCheckpointIO(folder), *options.pop("plugins")],
            enable_progress_bar=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            **options,
        )
        try:
            trainer.fit(
                task,
                train,
                validation,
                ckpt_path=start,
                weights_only=True,
            )
        except NonFiniteLossError as error:
            _keep_batch(error, folder)
            raise
        except RuntimeError:
            if interrupt.came is not None:  # to another process earlier, which then was gone
                interrupt.end()
            raise
        except SIGTERMException:
            raise SystemExit(128 + signal.SIGTERM) from None
        except SystemExit:
            # Lightning turns Ctrl-C into an exit with code 1.
            raise KeyboardInterrupt from None
    if group.count > 1:
        leave_group()
        if not group.is_first:
            raise ShareDoneError
    return recorder


def _keep_batch(error: NonFiniteLossError, folder: RunFolder) -> None:
    if error.batch is None:
        return
    path, number = folder.nan_batch, current().number
    if number:
        path = path.with_stem(f"{path.stem}-{number}")
    batch = {name: tensor.contiguous().cpu() for name, tensor in error.batch.items()}
    write_atomically(path, save(batch))
    logger.warning("the batch at fault is in %s", path)


def _start(folder: RunFolder, settings: ComputeConfig) -> str | None:
    sharded = settings.processes > 1 and settings.strategy == "fsdp"
    path = choose_checkpoint(folder, read_rest if sharded else read_checkpoint)
    return None if path is None else str(path)


class WorkTeller(Callback):
    """Says how far the whole training is, by its batches, for whoever shows that.

    Args:
        round_name: what the loop repeats: an epoch, or a measurement.
        until: the work ends with it.
    """

    def __init__(self, round_name: str, until: ExitStack) -> None:
        self._round_name, self._until = round_name, until
        self._work = Work("training")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin where a training that is resumed stopped."""
        del pl_module
        batches, rounds = trainer.num_training_batches, trainer.max_epochs or 0
        known = {}
        if math.isfinite(batches):  # a loader may not know its length
            batches = int(batches)
            known = {"total": batches * rounds, "done": batches * trainer.current_epoch}
        self._work = self._until.enter_context(working("training", unit="batches", **known))

    def on_train_batch_end(self, trainer: Trainer, *_arguments: Any, **_options: Any) -> None:
        """Count a batch, in its round."""
        rounds = f"{self._round_name} {trainer.current_epoch + 1} of {trainer.max_epochs}"
        self._work.reach(self._work.done + 1, note=rounds)

    def on_validation_batch_end(self, *_arguments: Any, **_options: Any) -> None:
        """Let the clock go on."""
        self._work.advance(0)


def line_sayer(settings: ComputeConfig) -> Callable[[str], None]:
    """Return what shows the line of an epoch: above a bar where there is one, else as a message."""
    if settings.progress == "none" or not current().is_first:
        return lambda _: None
    return say if is_shown() else lambda line: logger.info("%s", line)


class InterruptBetweenBatches(Callback):
    """Makes Ctrl-C end the training between two batches; pressed once more, it ends it at once.

    In the middle of anything it reaches what cannot bear it: torch's writer of checkpoints turns
    it into an error, and TensorBoard's may miss it and wait two minutes for its own thread. In one
    of several processes SIGTERM is heard here too: Lightning's handler waits for the others in it.

    Args:
        several: whether this is one of several processes.

    Attributes:
        came: the signal that came.
    """

    def __init__(self, *, several: bool = False) -> None:
        self.came: int | None = None
        self._several = several

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take Ctrl-C for the time of the block, if it is Python's own handler that has it.

        Raises:
            KeyboardInterrupt: at the end of the block, where no batch came after Ctrl-C.
        """
        before = signal.getsignal(signal.SIGINT)
        in_main_thread = threading.current_thread() is threading.main_thread()
        if before is not signal.default_int_handler or not in_main_thread:
            yield
            return

        def press(_number: int, _frame: object) -> None:
            if self.came is not None:
                raise KeyboardInterrupt
            self.came = signal.SIGINT

        signal.signal(signal.SIGINT, press)
        try:
            yield
        finally:
            # Lightning, too, changes it: it stops listening once it was interrupted.
            signal.signal(signal.SIGINT, before)
        self.end()

    def on_fit_start(self, *_arguments: Any, **_options: Any) -> None:
        """Take SIGTERM from Lightning, which gives it back at the end."""
        if self._several and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._terminate)

    def _terminate(self, number: int, _frame: object) -> None:
        self.came = number

    def on_train_batch_start(self, *_arguments: Any, **_options: Any) -> None:
        """End the training, if that is wanted."""
        self.end()

    def on_validation_batch_start(self, *_arguments: Any, **_options: Any) -> None:
        """End the training, if that is wanted."""
        self.end()

    def end(self) -> None:
        """End the training, if that is wanted.

        Raises:
            KeyboardInterrupt: Ctrl-C was pressed.
            SIGTERMException: SIGTERM came.
        """
        if self.came == signal.SIGTERM:
            raise SIGTERMException(128 + signal.SIGTERM)
        if self.came is not None:
            raise KeyboardInterrupt


def keep_best(model: nn.Module, folder: RunFolder, *, prefix: str = "model.") -> None:
    """Load the parameters of the best epoch into the task's model, and write them alone.

    Args:
        model: the task's model.
        folder: the folder of the run.
        prefix: how their names begin in the checkpoint.
    """
    path = folder.best
    state = read_whole(path) if path.is_dir() else read_checkpoint(path)["state_dict"]
    weights = {
        name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)
    }
    write_atomically(folder.weights, save(weights))
    model.load_state_dict(weights)


@contextmanager
def torch_settings(threads: int | None) -> Iterator[None]:
    """Set the run's threads; restore the process's threads, randomness and strictness.

    All these are the process's: runs in threads of it take turns.
    """
    with own_randomness():
        before = torch.get_num_threads()
        strict = torch.are_deterministic_algorithms_enabled()
        if threads is not None:
            torch.set_num_threads(threads)
        try:
            yield
        finally:
            torch.set_num_threads(before)
            torch.use_deterministic_algorithms(strict)


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Keep Lightning's advertisements and advice out of the user's way; errors pass."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [each.level for each in loggers]
    for each in loggers:
        each.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        for message in _IRRELEVANT_WARNINGS:
            warnings.filterwarnings("ignore", message)
        try:
            yield
        finally:
            for each, level in zip(loggers, levels, strict=True):
                each.setLevel(level)
