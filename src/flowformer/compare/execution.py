"""Running the runs of a comparison: some at a time, in any state, by whatever engine.

The lock on the folder is that of this process and, on this machine, of the processes of its runs:
whoever comes next cannot meet them. Those of a cluster hold their own folders.
"""

import logging
import os
from collections.abc import Callable, Sequence
from typing import IO

from flowformer.compare.engines.cluster import Cluster, appears
from flowformer.compare.engines.engine import Engine, Task
from flowformer.compare.engines.local import Workers, imports
from flowformer.compare.plan import (
    Plan,
    PlannedRun,
    RunState,
    require_data,
    require_same,
)
from flowformer.compare.progress import ActiveRun, Progress
from flowformer.files import locked
from flowformer.machine import available_processors
from flowformer.train.folder import say_held

if os.name != "posix":
    raise ImportError("comparisons need a POSIX system, such as Linux or macOS")

logger = logging.getLogger(__name__)

LOCK_SECONDS = 10.0  # how long workers of a killed comparison are waited for


def execute(
    plan: Plan,
    *,
    jobs: int | None = None,
    memory_limit: int | None = None,
    cluster: Cluster | None = None,
    show: Callable[[str], None] = lambda _: None,
) -> None:
    """Do the runs that a plan has not finished yet.

    Killed at any moment and called again, it goes on: finished runs are not repeated, one that was
    stopped goes on where it can, one that failed is tried again.

    Args:
        plan: the runs.
        jobs: the number of runs at a time; on this machine by default one, and they share the
            processor's threads unless the configuration says how many each has; on a cluster by
            default as many as it has room for.
        memory_limit: bytes that a run may have resident (on a GPU: allocated there); None for all
            that there is.
        cluster: what does the runs in place of this machine.
        show: shows a line of status in place of the last.

    Raises:
        ValueError: the folder holds a run of another configuration, or one that has read other
            data than there are now.
        BlockingIOError: another process is running a comparison in the folder.
        ImportError: what the cluster needs is missing; the message names the extra to install.
        ConnectionError: the cluster cannot be reached.
    """
    refusal = (
        f"another process is running a comparison in {plan.root}: wait for it, "
        "or choose another folder (--output)"
    )
    place, patience = plan.root / ".lock", LOCK_SECONDS
    with locked(place, refusal=refusal, patience=patience, on_wait=say_held(plan.root)) as lock:
        require_same(plan)
        require_data(plan)
        waiting = [run for run in plan.runs if run.read_result() is None]
        if not waiting:
            return
        if cluster is None:
            engine = _workers(waiting, jobs or 1, lock)
        else:
            engine = cluster.open(plan.root, at_once=jobs, memory_limit=memory_limit)
        active: list[ActiveRun] = []
        progress = Progress(plan, waiting, engine.at_once)
        try:
            while waiting or active:
                room = len(waiting) if engine.at_once is None else engine.at_once - len(active)
                if waiting and room > 0:
                    active += _submit(engine, waiting[:room], memory_limit)
                    del waiting[:room]
                show(progress.status(active, waiting))
                engine.wait()
                for each in list(active):
                    state = engine.poll(each.handle)
                    if state is not None:
                        active.remove(each)
                        progress.note(each, _seen(each.run, state), active, waiting)
        finally:
            engine.close()
            show("")


def _workers(runs: Sequence[PlannedRun], jobs: int, lock: IO[str]) -> Engine:
    """Return the engine of this machine."""
    environment = {}
    if jobs > 1 and "OMP_NUM_THREADS" not in os.environ:
        environment["OMP_NUM_THREADS"] = str(max(1, available_processors() // jobs))
    names = imports([run.request for run in runs])
    return Workers(names, at_once=jobs, environment=environment, lock=lock)


def _submit(
    engine: Engine, runs: Sequence[PlannedRun], memory_limit: int | None
) -> list[ActiveRun]:
    for run in runs:
        RunState(request=run.request, status="queued").write(run.state_file)
        run.log.touch()  # where its process dies before it says a word
    handles = engine.submit([Task.of(run, memory_limit) for run in runs])
    return [ActiveRun(run, handle) for run, handle in zip(runs, handles, strict=True)]


def _seen(run: PlannedRun, state: RunState) -> RunState:
    """Return the state of a run that has ended, once this machine sees what it has left."""
    if state.status == "finished" and not appears(run.folder.result):
        logger.warning("%s has finished, and %s is not to be seen", run.name, run.folder.result)
    return state
