"""The engine of a Ray cluster: each run is a task with processors, GPUs and memory of its own.

When the machine of a run is lost, Ray gives the task to another, and the run goes on from its last
whole epoch. https://docs.ray.io/en/latest/ray-core/fault_tolerance/tasks.html
"""

import logging
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowformer.compare.engines.cluster import Cluster, do, lost, read_state
from flowformer.compare.engines.engine import Engine, Task
from flowformer.compare.plan import RunState
from flowformer.config_json import to_plain
from flowformer.machine import library

logger = logging.getLogger(__name__)

RETRIES = 10  # machines that a run may lose


@dataclass(frozen=True)
class _Given:
    """A run that Ray has been given."""

    task: Task
    result: Any  # an ObjectRef


class RayTasks(Engine):
    """The runs of a comparison as tasks of a Ray cluster.

    Args:
        cluster: the cluster, and what each run gets.
        root: folder of the comparison.
        at_once: runs at a time; None for as many as the cluster has room for.
        memory_limit: bytes of each run.
    """

    def __init__(
        self, cluster: Cluster, root: Path, *, at_once: int | None, memory_limit: int | None
    ) -> None:
        del root
        self.at_once = at_once
        self._ray = library(
            "ray", "to run on a Ray cluster", extra="cluster", package="ray[client]"
        )
        self._connected = not self._ray.is_initialized()
        if self._connected:
            with _signals_kept():
                address = "auto" if cluster.address == "ray" else cluster.address
                self._ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
        needs = {"num_cpus": cluster.cpus, "num_gpus": cluster.gpus, "memory": memory_limit}
        needs |= {"max_retries": RETRIES, **cluster.options}
        self._warn_of_room(needs)
        self._do = self._ray.remote(**needs)(do)
        self._environment = cluster.environment
        self._active: list[_Given] = []

    def submit(self, tasks: Sequence[Task]) -> list[_Given]:
        """Give runs to Ray, which begins each where there is room for it."""
        given = [_Given(task, self._do.remote(to_plain(task), self._environment)) for task in tasks]
        self._active += given
        return given

    def poll(self, handle: _Given) -> RunState | None:
        """Return the state in which a run has ended; None as long as it has not."""
        if not self._ray.wait([handle.result], timeout=0)[0]:
            return None
        self._active.remove(handle)
        try:
            return read_state(self._ray.get(handle.result))
        # Of the task, or of Ray: none ends the other runs.
        except Exception as error:  # noqa: BLE001
            cause = getattr(error, "cause", None) or error
            line = next(iter(str(cause).strip().splitlines()), "no more is known")
            return lost(handle.task, f"{type(cause).__name__}: {line}")

    def close(self) -> None:
        """End what has not ended, and leave the cluster if this has joined it."""
        for given in self._active:
            self._ray.cancel(given.result, force=True)
        if self._connected:
            self._ray.shutdown()

    def _warn_of_room(self, needs: dict[str, Any]) -> None:
        """Say so where no machine of the cluster can take a run: Ray waits for one, in vain."""
        wanted = {
            name: needs[key] or 0
            for name, key in (("CPU", "num_cpus"), ("GPU", "num_gpus"), ("memory", "memory"))
        }
        there = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        if not any(all(n.get(k, 0) >= v for k, v in wanted.items()) for n in there):
            asked = ", ".join(f"{value:g} {name}" for name, value in wanted.items() if value)
            logger.warning("no machine of the cluster has %s now: the runs wait for one", asked)


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Keep what ends this process by SIGTERM: Ray puts its own in the place."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)
