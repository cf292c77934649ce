"""What is shown while a run trains: a line an epoch, under a terminal with a bar of its steps."""

import logging
import sys
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar

from flowformer.train.config import Progress

logger = logging.getLogger(__name__)


class EpochBar(TQDMProgressBar):
    """A bar over the steps of an epoch, which counts from 1; the figures are in the lines."""

    def on_train_epoch_start(self, trainer: Trainer, *arguments: Any) -> None:
        """Names the epoch."""
        super().on_train_epoch_start(trainer, *arguments)
        self.train_progress_bar.set_description(
            f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"
        )

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """Returns nothing to show beside the bar: Lightning would show the name of a folder."""
        del trainer, pl_module
        return {}


class EpochLines:
    """Says one line at a time, above the bar if there is one.

    Args:
        progress: what to show.
    """

    def __init__(self, progress: Progress) -> None:
        """Chooses by the terminal where the choice is left to it."""
        on_terminal = progress == "auto" and sys.stdout.isatty()
        self.bar = EpochBar() if progress == "bar" or on_terminal else None
        self._silent = progress == "none"

    def say(self, line: str) -> None:
        """Shows a line."""
        if self.bar is not None:
            self.bar.print(line)
        elif not self._silent:
            logger.info("%s", line)
