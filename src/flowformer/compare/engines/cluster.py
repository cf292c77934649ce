"""A cluster in place of this machine: what a run gets there, and what its machine does with it."""

import os
import pkgutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flowformer.compare.engines.engine import Engine, Task
from flowformer.compare.engines.local import POLL_SECONDS, Workers
from flowformer.compare.plan import RunState
from flowformer.config_json import from_plain, to_plain
from flowformer.names import check_sizes

SEEN_SECONDS = 60.0  # NFS shows a file of another machine that late, with its usual settings

# What runs are told of this machine's environment: where data are, and how memory is given back.
_TOLD = (
    *("FLOWFORMER_", "AEON_DATA", "HF_HOME", "HF_HUB_OFFLINE", "MINARI_DATASETS_PATH"),
    *("XDG_CACHE_HOME", "MALLOC_"),
)

ENGINES: Mapping[str, str] = {
    "ray": "flowformer.compare.engines.ray:RayTasks",
    "slurm": "flowformer.compare.engines.slurm:SlurmArray",
    "local": "flowformer.compare.engines.slurm:LocalJobs",
}


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """A cluster that does the runs of a comparison, and what each of them gets there.

    Its machines have flowformer installed and share the folder of the comparison, the data, and the
    module of a mixer of one's own.

    Attributes:
        address: ray://HOST:PORT, the client port of a Ray cluster; ray, for the one that this
            machine belongs to; slurm; or local, submitit's processes on this machine, to try how
            it goes.
        cpus: processors of a run, and its threads unless the configuration has others.
        gpus: GPUs of a run.
        options: what else the cluster is told of each run, by its own names: of Ray those of
            ray.remote, of Slurm those of submitit's update_parameters.

    Raises:
        ValueError: there is no such kind of cluster.
    """

    address: str
    cpus: int = 1
    gpus: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check the values."""
        check_sizes(self, "cpus")
        if self.gpus < 0:
            raise ValueError(f"gpus must be at least 0, got {self.gpus}")
        if self._kind not in ENGINES:
            raise ValueError(
                f"a cluster must be ray://HOST:PORT, ray, slurm or local, got {self.address!r}"
            )

    @property
    def _kind(self) -> str:
        return "ray" if self.address.startswith("ray://") else self.address

    @property
    def environment(self) -> dict[str, str]:
        """What the processes of a run have in their environment."""
        told = {name: value for name, value in os.environ.items() if name.startswith(_TOLD)}
        # As with workers of this machine, a number that stands here is taken.
        return told | {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(self.cpus))}

    def open(self, root: Path, *, at_once: int | None, memory_limit: int | None) -> Engine:
        """Return its engine.

        Args:
            root: folder of the comparison.
            at_once: runs at a time; None for as many as it has room for.
            memory_limit: bytes of each run.

        Raises:
            ImportError: a library is missing; the message names the extra to install.
            ConnectionError: it cannot be reached.
            ValueError: an option is not one of the cluster's.
        """
        engine = pkgutil.resolve_name(ENGINES[self._kind])
        return engine(self, root, at_once=at_once, memory_limit=memory_limit)


def do(task: Mapping[str, Any], environment: Mapping[str, str]) -> dict[str, Any]:
    """Do a run on this machine, as a worker there would; what a cluster is given to call.

    The run dies with this process.

    Args:
        task: the run.
        environment: further variables of its process.

    Returns:
        The state in which it has ended.

    Raises:
        FileNotFoundError: this machine does not see the folder of the comparison.
    """
    run = from_plain(Task, task)
    if not appears(Path(run.state_file)):
        raise FileNotFoundError(
            f"{os.uname().nodename} has no {run.state_file}: the folder of a comparison on a "
            "cluster must be one that all its machines share"
        )
    workers = Workers(environment=environment)
    try:
        (handle,) = workers.submit([run])
        while (state := workers.poll(handle)) is None:
            workers.wait()
    finally:
        workers.close()
    return to_plain(state)


def appears(path: Path) -> bool:
    """Return whether a file is there; of another machine's, once it must have been seen here."""
    until = time.monotonic() + SEEN_SECONDS
    while not path.exists():
        if time.monotonic() > until:
            return False
        time.sleep(POLL_SECONDS)
        if path.parent.is_dir():
            next(path.parent.iterdir(), None)  # what a client of NFS thinks is there, it asks anew
    return True


def read_state(values: Any) -> RunState:
    """Return the state that `do` gave."""
    return from_plain(RunState, values)


def lost(task: Task, reason: str) -> RunState:
    """Return, and write, the state of a run that the cluster did not bring to its end."""
    state = RunState(request=task.request, status="failed", error=reason)
    state.write(Path(task.state_file))
    return state
