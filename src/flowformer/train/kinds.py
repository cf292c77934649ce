"""The kinds of experiments, by name. No torch here."""

import functools
import operator
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flowformer.train.config import ExperimentConfig
from flowformer.train.digests import Digests
from flowformer.train.folder import DEFAULT_TASK, RunFolder, read_task
from flowformer.train.run_files import Record, Result


@dataclass(frozen=True)
class Kind:
    """A kind of experiment: the folder flowformer.train.NAME, which has the same names in each.

    config.py, without torch, has NameConfig, the configuration; NameRecord, what config.json holds;
    and NameResult, what result.json holds. data.py has digest_data(config, data), the digests of
    the data. study.py has Name, the `Study`: what trains, tests, shows and uses a model. What
    a kind trains in a way of its own is in task.py, which needs Lightning, and which `Study.task`
    alone imports.

    Attributes:
        name: of the folder; what config.json calls the kind, in a phrase: a run on series.
    """

    name: str

    def _find(self, file: str, suffix: str) -> Any:
        name = f"{self.name.capitalize()}{suffix}"
        return pkgutil.resolve_name(f"flowformer.train.{self.name}.{file}:{name}")

    @property
    def config(self) -> type[ExperimentConfig]:
        """The class of its configurations."""
        return self._find("config", "Config")

    @property
    def record(self) -> type[Record]:
        """The class of what config.json holds."""
        return self._find("config", "Record")

    @property
    def result(self) -> type[Result]:
        """The class of what result.json holds."""
        return self._find("config", "Result")

    @property
    def study(self) -> Any:
        """The class of its studies, a `Study`; imports what trains."""
        return self._find("study", "")

    def digest(self, config: ExperimentConfig, data: Any = None) -> Digests:
        """Return digests of the data of an experiment, which are read where they are not given."""
        return pkgutil.resolve_name(f"flowformer.train.{self.name}.data:digest_data")(config, data)


KINDS: Mapping[str, Kind] = {
    name: Kind(name)
    for name in (
        "series",
        "language",
        "sequences",
        "images",
        "trajectories",
        "regression",
    )
}

if TYPE_CHECKING:
    Experiment = ExperimentConfig
else:  # any of them, as values are read back and checked
    Experiment = functools.reduce(operator.or_, (kind.config for kind in KINDS.values()))


def kind_of(config: Experiment) -> Kind:
    """Return the kind of an experiment.

    Raises:
        TypeError: it is the configuration of none.
    """
    for kind in KINDS.values():
        if kind.config is type(config):
            return kind
    names = ", ".join(kind.config.__name__ for kind in KINDS.values())
    raise TypeError(f"an experiment must be one of {names}, got {type(config).__name__}")


def kind_of_run(folder: RunFolder) -> Kind:
    """Return the kind of the run in a folder; of one without a run, that of series.

    Raises:
        ValueError: its config.json is not JSON, or of a kind that there is not.
    """
    task = read_task(folder) if folder.config.exists() else DEFAULT_TASK
    if task not in KINDS:
        raise ValueError(f"{folder.config}: task must be one of {', '.join(KINDS)}, got {task!r}")
    return KINDS[task]
