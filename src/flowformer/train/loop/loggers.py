"""Where the figures of a run go beside its folder: Lightning's loggers."""

import os
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from importlib import import_module
from typing import Any, Literal

from lightning.pytorch.loggers import (
    CSVLogger,
    Logger,
    MLFlowLogger,
    TensorBoardLogger,
    WandbLogger,
)

from flowformer.config_json import flatten, to_plain
from flowformer.train.config import LoggerName
from flowformer.train.folder import RunFolder, read_json, write_json
from flowformer.train.processes.group import current
from flowformer.train.run_files import Result

_End = Literal["finished", "failed", "stopped"]
_PROJECT = "flowformer"  # what services file runs under, where the environment names nothing else


@contextmanager
def run_loggers(
    names: Sequence[LoggerName], folder: RunFolder, given: Sequence[Logger]
) -> Iterator[list[Logger]]:
    """Open the loggers of a run, TensorBoard's first; those of services are closed with the block.

    A run that goes on goes on at the services too: its folder keeps what it is called there. They
    are told how it ended: that it failed, or was stopped.

    Args:
        names: those that its configuration names.
        folder: its folder, with config.json in it.
        given: further ones, which are the caller's.
    """
    known = read_json(folder.services) if folder.services.exists() else {}
    named: dict[LoggerName, Logger] = {
        name: _BUILDERS[name](folder, known.get(name)) for name in names
    }
    ended: _End = "failed"
    try:
        if current().is_first:
            _begin(named, given, folder, known)
        board = TensorBoardLogger(folder.root, name="", version="tensorboard")
        yield [board, *named.values(), *given]
        ended = "finished"
    except (KeyboardInterrupt, SystemExit):
        ended = "stopped"
        raise
    finally:
        for name, logger in named.items() if current().is_first else ():
            # What a service has to say then must not hide why the run failed.
            with nullcontext() if ended == "finished" else suppress(Exception):
                _CLOSERS.get(name, _save)(logger, ended)


def log_result(loggers: Sequence[Logger], result: Result, step: int) -> None:
    """Log the figures of a run that has ended: its score, and all of its test.

    Args:
        loggers: those of the run.
        result: the figures.
        step: the last step of the optimizer.
    """
    figures = {
        name: float(value)
        for name, value in to_plain(result).items()
        if name.startswith("test_") and isinstance(value, int | float)
    }
    for logger in loggers:
        logger.log_metrics({**figures, "score": result.score}, step)
        logger.save()


def _begin(
    named: Mapping[LoggerName, Logger],
    given: Sequence[Logger],
    folder: RunFolder,
    known: Mapping[str, str],
) -> None:
    """Tell new loggers the settings, and keep in the folder what a run is called at services."""
    # A service may refuse other settings of the same run, such as how it is shown.
    new = [logger for name, logger in named.items() if name not in known]
    for logger in (*new, *given):
        logger.log_hyperparams(flatten(read_json(folder.config)["config"]))
    found = {name: named[name].version for name in _SERVICES if name in named}
    if any(known.get(name) != version for name, version in found.items()):
        write_json(folder.services, {**known, **found})
    if "mlflow" in named and "mlflow" in known:
        _set_status(named["mlflow"], "RUNNING")


def _csv(folder: RunFolder, _: str | None) -> Logger:
    return CSVLogger(folder.root, name="csv")


def _mlflow(folder: RunFolder, known: str | None) -> Logger:
    # As MLflow has it: Lightning's default is a folder of files, which MLflow refuses today.
    place = import_module("mlflow").get_tracking_uri()
    experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", _PROJECT)
    return MLFlowLogger(experiment, run_name=folder.root.name, run_id=known, tracking_uri=place)


def _wandb(folder: RunFolder, known: str | None) -> Logger:
    return WandbLogger(
        name=folder.root.name,
        save_dir=folder.root,
        id=known or secrets.token_hex(4),
        project=os.environ.get("WANDB_PROJECT", _PROJECT),
    )


def _save(logger: Logger, _: _End) -> None:
    logger.save()


def _end_mlflow(logger: Logger, ended: _End) -> None:
    _set_status(logger, {"finished": "FINISHED", "failed": "FAILED", "stopped": "KILLED"}[ended])


def _set_status(logger: Any, status: str) -> None:
    if status == "RUNNING":
        logger.experiment.update_run(logger.run_id, status=status)
    else:
        logger.experiment.set_terminated(logger.run_id, status)


def _end_wandb(_: Logger, ended: _End) -> None:
    # Not closed, the next run of this process would go on in this one.
    import_module("wandb").finish(exit_code=int(ended != "finished"))


_BUILDERS: dict[LoggerName, Callable[[RunFolder, str | None], Logger]] = {
    "csv": _csv,
    "mlflow": _mlflow,
    "wandb": _wandb,
}
_SERVICES: tuple[LoggerName, ...] = ("mlflow", "wandb")
_CLOSERS: Mapping[LoggerName, Callable[[Logger, _End], None]] = {
    "mlflow": _end_mlflow,
    "wandb": _end_wandb,
}
