"""Where the figures of a run go beside its folder: Lightning's loggers."""

import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module

from lightning.pytorch.loggers import (
    CSVLogger,
    Logger,
    MLFlowLogger,
    TensorBoardLogger,
    WandbLogger,
)

from flowformer.config_json import flatten
from flowformer.train.config import LoggerName
from flowformer.train.folder import RunFolder, read_json, write_json
from flowformer.train.processes.group import current

_PROJECT = "flowformer"  # what services file runs under, where the environment names nothing else


@contextmanager
def run_loggers(
    names: Sequence[LoggerName], folder: RunFolder, given: Sequence[Logger]
) -> Iterator[list[Logger]]:
    """Open the loggers of a run, TensorBoard's first; those of services are closed with the block.

    A run that goes on goes on at the services too: its folder keeps what it is called there.

    Args:
        names: those that its configuration names.
        folder: its folder, with config.json in it.
        given: further ones, which are the caller's.
    """
    known = read_json(folder.services) if folder.services.exists() else {}
    named = {name: _BUILDERS[name](folder, known.get(name)) for name in names}
    if current().is_first:
        # A service may refuse other settings of the same run, such as how it is shown.
        new = [logger for name, logger in named.items() if name not in known]
        for logger in (*new, *given):
            logger.log_hyperparams(flatten(read_json(folder.config)["config"]))
        found = {name: named[name].version for name in _SERVICES if name in named}
        if found and found != known:
            write_json(folder.services, found)
    try:
        board = TensorBoardLogger(folder.root, name="", version="tensorboard")
        yield [board, *named.values(), *given]
    finally:
        if "wandb" in named:  # or the next run of this process would go on in this one
            import_module("wandb").finish()


def _csv(folder: RunFolder, _: str | None) -> Logger:
    return CSVLogger(folder.root, name="csv")


def _mlflow(folder: RunFolder, known: str | None) -> Logger:
    experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", _PROJECT)
    return MLFlowLogger(experiment, run_name=folder.root.name, run_id=known)


def _wandb(folder: RunFolder, known: str | None) -> Logger:
    return WandbLogger(
        name=folder.root.name,
        save_dir=folder.root,
        id=known or secrets.token_hex(4),
        project=os.environ.get("WANDB_PROJECT", _PROJECT),
    )


_BUILDERS: dict[LoggerName, Callable[[RunFolder, str | None], Logger]] = {
    "csv": _csv,
    "mlflow": _mlflow,
    "wandb": _wandb,
}
_SERVICES: tuple[LoggerName, ...] = ("mlflow", "wandb")
