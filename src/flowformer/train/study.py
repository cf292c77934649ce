"""What a kind of experiment adds to a run: its data, its model, its task and its figures."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn
from torch.utils.data import DataLoader

from flowformer.train.digests import Digests
from flowformer.train.folder import RunFolder
from flowformer.train.kinds import KINDS
from flowformer.train.prediction import choose_device, count_parameters, describe_device
from flowformer.train.run_files import Result

if TYPE_CHECKING:  # it needs Lightning, and a finished run does not
    from flowformer.train.loop.task import EpochRecorder, RecordedTask


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A trained model and what is needed to use it.

    Attributes:
        model: in evaluation mode, on the CPU.
        record: the record of its training.
        preprocessing: what is to be done to everything that it reads; None of texts and sequences.
    """

    model: Any
    record: Any
    preprocessing: Any = None

    @property
    def config(self) -> Any:
        """The configuration of its training."""
        return self.record.config

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes of a classifier."""
        return self.record.classes

    def to_device(self) -> Any:
        """Return the model, moved to the device that it was trained on."""
        return self.model.to(choose_device(self.config.training.accelerator))


class Evaluation(ABC):
    """The figures of a finished run that was tested again, beside those of its training."""

    @property
    @abstractmethod
    def differs(self) -> bool:
        """Whether the same test gives other figures than the training found."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """Return the figures as JSON values."""

    @abstractmethod
    def describe(self) -> str:
        """Return the figures in words."""


class Study(ABC):
    """A kind of experiment: the parts of a run, and what is done with a finished one.

    `flowformer.train.run.train` puts the parts into a run folder, in this order: the study is
    opened and its record compared with that of a run to be resumed; `check`, `loaders`, `build`,
    `write`, `task`, and in the end `test`.

    Args:
        config: the experiment.
        begun: the folder of the run, where it began already.

    Attributes:
        reads: what its method `predict` is given, in a word or two; empty where there is nothing
            to classify, and no such method.
        reads_several: whether that takes any number of files.
        reads_folders: whether it takes a folder in place of a file.
        labelled: what `evaluate` is given in place of the run's own test set, if anything.
        use: of runs that classify nothing, the command that uses them, after {run}.
        config: the experiment, as the run records it.
        data: the data that were read.
        record: what config.json holds.
        weights: how the names of the parameters that are kept begin in a checkpoint.
    """

    reads: ClassVar[str] = ""
    reads_several: ClassVar[bool] = False
    reads_folders: ClassVar[bool] = False
    labelled: ClassVar[str] = ""
    use: ClassVar[str] = ""

    config: Any
    data: Any
    record: Any
    weights: str = "model."

    @abstractmethod
    def __init__(self, config: Any, *, begun: RunFolder | None = None, **data: Any) -> None:
        """Read the data, or take what is given of them; write nothing."""

    def digests(self) -> Digests:
        """Return digests of the data."""
        return KINDS[type(self).__name__.lower()].digest(self.config, self.data)

    @abstractmethod
    def describe(self) -> str:
        """Return what is trained on, in words."""

    def check(self) -> None:
        """Refuse what would end the run only after hours; the first process alone is asked."""
        return

    def count_parameters(self, config: Any) -> int:
        """Return how many parameters a model of another configuration has on the same data."""
        other = copy(self)
        other.config, other.record = config, replace(self.record, config=config)
        with torch.device("meta"):
            return count_parameters(other.build())

    @abstractmethod
    def loaders(self) -> tuple[DataLoader, DataLoader]:
        """Return the batches of one round, and those that it is measured on after each."""

    @abstractmethod
    def build(self) -> nn.Module:
        """Build the model, with new parameters."""

    def write(self, folder: RunFolder) -> None:
        """Write what else a run needs to be used again, before it is trained."""
        del folder

    @abstractmethod
    def task(self, model: nn.Module) -> "RecordedTask":
        """Return what is trained; its module is imported here, as it needs Lightning."""

    @abstractmethod
    def test(self, model: Any, recorder: "EpochRecorder") -> tuple[Result, Mapping[str, str]]:
        """Test the model with the parameters of the best epoch.

        Returns:
            The figures, and the content of further files by their name in the run folder.
        """

    def common_figures(self, model: nn.Module, recorder: "EpochRecorder") -> dict[str, Any]:
        """Return the figures that every result has."""
        return {
            "recipe": self.config.name,
            "protocol_note": self.config.protocol_note,
            "seed": self.config.training.seed,
            "parameters": count_parameters(model),
            "seconds": sum(row["seconds"] for row in recorder.rows),
            "device": describe_device(next(model.parameters()).device),
            "threads": torch.get_num_threads(),
        }

    @classmethod
    @abstractmethod
    def load(cls, run_dir: str | Path) -> Trained:
        """Read back what training left in a folder; no code in it runs.

        Raises:
            FileNotFoundError: there is no run, or it has not ended.
            ValueError: the run is of another kind, or a file is damaged.
        """

    @classmethod
    @abstractmethod
    def evaluate(cls, run_dir: str | Path, file: Path | None = None) -> Evaluation:
        """Test a finished run again; see `flowformer.train.run.evaluate`."""

    @classmethod
    def classifies(cls, run_dir: str | Path) -> bool:
        """Return whether there is something that `predict` reads."""
        del run_dir
        return bool(cls.reads)

    @classmethod
    def require_classifier(cls, run_dir: str | Path, *files: Path) -> None:
        """Refuse a run that classifies nothing, and several files where one is read.

        Raises:
            ValueError: it does not, and the message names the command that uses it; or it reads
                one file.
        """
        if not cls.classifies(run_dir):
            raise ValueError(
                f"{run_dir} holds a run on {cls.__name__.lower()}, not a classifier: flowformer "
                f"{cls.use.format(run=run_dir)} uses it"
            )
        if len(files) != 1 and not cls.reads_several:
            raise ValueError(
                f"expected one file for a run on {cls.__name__.lower()}, got {len(files)}: those "
                "on images take several"
            )

    @classmethod
    @abstractmethod
    def report(cls, run_dir: str | Path) -> Path:
        """Write the page of a finished run; see `flowformer.train.run.write_report`."""

    @classmethod
    @abstractmethod
    def uses(cls, run: str, result: Any) -> str:
        """Return the commands that use a run.

        Args:
            run: the folder of the run, quoted for a shell.
            result: the figures of the run.
        """
