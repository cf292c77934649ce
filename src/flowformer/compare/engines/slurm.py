"""The engine of a Slurm cluster: the runs are an array job, which submitit writes and follows.

A run whose time is over, or that is preempted, is queued again and goes on from its last whole
epoch. https://github.com/facebookincubator/submitit
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any, ClassVar

from flowformer.compare.engines.cluster import Cluster, do, lost, read_state
from flowformer.compare.engines.engine import Engine, Task
from flowformer.compare.plan import RunState
from flowformer.config_json import to_plain
from flowformer.files import write_atomically
from flowformer.machine import library

JOBS = "jobs"  # in the folder of a comparison: what submitit writes
MINUTES = 24 * 60  # of a run, until it is queued again
TIMES = 100  # that it is


@dataclass(frozen=True)
class _Job:
    """What a job calls: one that submitit can queue again, as it was."""

    task: Mapping[str, Any]
    environment: Mapping[str, str]

    def __call__(self) -> dict[str, Any]:
        return do(self.task, self.environment)

    def checkpoint(self) -> Any:
        """Return what is queued in its place: the same, for the run knows how far it was."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


@dataclass(frozen=True)
class _Given:
    """A run that submitit has been given."""

    task: Task
    job: Any


class SlurmArray(Engine):
    """The runs of a comparison as an array job.

    Args:
        cluster: the cluster, and what each run gets.
        root: folder of the comparison.
        at_once: runs at a time; None for as many as Slurm lets.
        memory_limit: bytes of each run.

    Raises:
        ImportError: submitit is missing.
        ValueError: Slurm is not there, or an option is none of submitit's.
    """

    executor: ClassVar[str] = "slurm"

    def __init__(
        self, cluster: Cluster, root: Path, *, at_once: int | None, memory_limit: int | None
    ) -> None:
        self._submitit = library("submitit", "to run on Slurm", extra="cluster")
        self._jobs = root.resolve() / JOBS
        wanted = {
            "name": root.name,
            "timeout_min": MINUTES,
            "cpus_per_task": cluster.cpus,
            "gpus_per_node": cluster.gpus or None,
            "mem_gb": None if memory_limit is None else ceil(memory_limit / 2**30),
            **self._at_a_time(at_once),
            **cluster.options,
        }
        given = {name: value for name, value in wanted.items() if value is not None}
        try:
            self._submitter = self._submitit.AutoExecutor(
                self._jobs, cluster=self.executor, slurm_max_num_timeout=TIMES
            )
            self._submitter.update_parameters(**given)
        except (RuntimeError, NameError, AssertionError) as error:
            raise ValueError(f"submitit: {' '.join(str(error).split())}") from error
        self._environment = cluster.environment
        self._active: list[_Given] = []
        self._take_back()

    def _at_a_time(self, number: int | None) -> dict[str, Any]:
        """Return what tells it to Slurm: all runs are in the array from the start."""
        return {} if number is None else {"slurm_array_parallelism": number}

    def submit(self, tasks: Sequence[Task]) -> list[_Given]:
        """Put runs into the queue, as one array."""
        with self._submitter.batch():
            jobs = [
                self._submitter.submit(_Job(to_plain(task), self._environment)) for task in tasks
            ]
        given = [_Given(task, job) for task, job in zip(tasks, jobs, strict=True)]
        self._active += given
        self._note()
        return given

    def poll(self, handle: _Given) -> RunState | None:
        """Return the state in which a run has ended; None as long as it has not."""
        if not handle.job.done():
            return None
        self._active.remove(handle)
        self._note()
        error = handle.job.exception()
        return lost(handle.task, _reason(error)) if error else read_state(handle.job.result())

    def close(self) -> None:
        """Take what has not ended out of the queue."""
        for given in self._active:
            given.job.cancel(check=False)
        self._active.clear()
        self._note()

    @property
    def _queued(self) -> Path:
        return self._jobs / "queued.txt"

    def _note(self) -> None:
        """Keep what is in the queue: it stays there when this process is killed."""
        write_atomically(self._queued, "\n".join(given.job.job_id for given in self._active))

    def _take_back(self) -> None:
        """Take out of the queue what a comparison that was killed has left there."""
        if self._queued.exists():
            for job_id in self._queued.read_text().split():
                self._submitit.SlurmJob(self._jobs, job_id).cancel(check=False)


def _reason(error: BaseException) -> str:
    """Return why a job has no result, in a line: submitit tells it in a page."""
    if state := re.search(r"\(state: ([\w ]+)\)", str(error)):
        return f"its job has ended without a result: {state[1]}"
    lines = [line.strip() for line in str(error).splitlines()]
    rules = [at for at, line in enumerate(lines) if line and not line.strip("-")]
    told = [line for line in lines[: rules[-1] if rules else None] if line]  # the traceback
    return told[-1] if told else type(error).__name__


class LocalJobs(SlurmArray):
    """The runs as jobs of submitit on this machine: to try how it goes, without Slurm."""

    executor = "local"
    poll_seconds = 0.5

    def _at_a_time(self, number: int | None) -> dict[str, Any]:
        """Return nothing: there is no queue, so runs wait in the comparison."""
        self.at_once = number or 1
        return {}

    def _take_back(self) -> None:
        """Do nothing: there is no queue."""
