"""How long a comparison will take: the first steps of each method are timed, nothing is left."""

import heapq
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from flowformer.compare.engines.cluster import Cluster
from flowformer.compare.execution import execute
from flowformer.compare.methods import REHEARSE, TRAIN
from flowformer.compare.plan import UNFINISHED, Plan, PlannedRun, RunState, count_epochs
from flowformer.report import words
from flowformer.train.run_files import Rehearsed

_Key = tuple[str, str]  # data set and method, whose seeds take alike


@dataclass(frozen=True, kw_only=True)
class Rehearsal(PlannedRun):
    """The first steps of a run, as a run of their own."""

    @property
    def name(self) -> str:
        """The name in messages: seeds take alike."""
        return f"{self.dataset} {self.request.method}"

    def read_result(self) -> Any:
        """Return what was timed; None where it has not ended."""
        return Rehearsed.read(self.folder) if self.folder.result.exists() else None

    def say_result(self) -> str:
        """Return the time of a step and of a run, in words."""
        found = self.read_result()
        step, whole = words.duration(found.step_seconds), words.duration(found.seconds())
        return f"{step} a step, {whole} a run, timed"


@dataclass(frozen=True, kw_only=True)
class Expected:
    """How long the runs of a method on a data set take.

    Attributes:
        dataset: the data set.
        method: the method.
        runs: those that have not finished.
        seconds: of each of them; None where they have no steps to time, or have failed at once.
        timed: what was timed of the first steps.
        state: the state in which the first steps have ended.
    """

    dataset: str
    method: str
    runs: int
    seconds: Sequence[float] | None
    timed: Rehearsed | None = None
    state: RunState | None = None

    @property
    def problem(self) -> str:
        """Why there is no time; empty where there is one."""
        if self.seconds is not None:
            return ""
        if self.state is None:
            return "no steps to time"
        return f"{UNFINISHED[self.state.status]}: {self.state.error}"


def rehearse(
    plan: Plan,
    *,
    jobs: int | None = None,
    memory_limit: int | None = None,
    cluster: Cluster | None = None,
    show: Callable[[str], None] = lambda _: None,
) -> list[Expected]:
    """Time the first steps of each method on each data set, as many at a time as the runs will be.

    They are done as the runs are, in a folder that is removed again, beside that of the plan.

    Args:
        plan: the runs.
        jobs: the number of runs at a time.
        memory_limit: bytes of each run.
        cluster: what does the runs in place of this machine.
        show: shows a line of status in place of the last.

    Returns:
        What is left of each, in the order of the plan.

    Raises:
        Exception: what `flowformer.compare.execution.execute` raises.
    """
    left: dict[_Key, list[PlannedRun]] = {}
    for run in plan.runs:
        if run.read_result() is None:
            left.setdefault((run.dataset, run.request.method), []).append(run)
    beside = next(folder for folder in plan.root.resolve().parents if folder.is_dir())
    with tempfile.TemporaryDirectory(
        prefix=".flowformer-dry-run-", dir=beside, ignore_cleanup_errors=True
    ) as folder:
        first = {key: _first_steps(runs[0], Path(folder)) for key, runs in left.items()}
        timed = {key: run for key, run in first.items() if run is not None}
        tried = replace(plan, root=Path(folder), runs=tuple(timed.values()))
        execute(tried, jobs=jobs, memory_limit=memory_limit, cluster=cluster, show=show)
        return [_expect(plan, key, runs, timed.get(key)) for key, runs in left.items()]


def _first_steps(run: PlannedRun, root: Path) -> Rehearsal | None:
    """Return the first steps of a run; None of a method that has none."""
    if run.request.function != TRAIN:
        return None
    request = replace(run.request, function=REHEARSE, options={})
    return Rehearsal(request=request, dataset=run.dataset, root=root)


def _expect(plan: Plan, key: _Key, runs: Sequence[PlannedRun], first: Rehearsal | None) -> Expected:
    found: Mapping[str, Any] = {"dataset": key[0], "method": key[1], "runs": len(runs)}
    if first is None:
        taken = _taken(plan, key)
        return Expected(**found, seconds=None if taken is None else [taken] * len(runs))
    timed, state = first.read_result(), first.read_state()
    if timed is None:
        return Expected(**found, seconds=None, state=state)
    seconds = [timed.seconds(count_epochs(run.folder.root)) for run in runs]
    return Expected(**found, seconds=seconds, timed=timed, state=state)


def _taken(plan: Plan, key: _Key) -> float | None:
    """Return what a run has taken that has finished, of the same method on the same data."""
    for run in plan.runs:
        state = run.read_state()
        same = (run.dataset, run.request.method) == key
        if same and state is not None and state.status == "finished":
            return state.seconds
    return None


def in_all(expected: Sequence[Expected], at_once: int | None) -> float:
    """Return the seconds of all runs whose time is known, begun in turn, so many at a time.

    Args:
        expected: how long they take.
        at_once: runs at a time; None for all.
    """
    every = [seconds for each in expected for seconds in each.seconds or ()]
    free = [0.0] * min(at_once or len(every), len(every))
    for seconds in every:
        heapq.heapreplace(free, free[0] + seconds)
    return max(free, default=0.0)


def to_text(expected: Sequence[Expected], at_once: int | None) -> str:
    """Return the times as a table, and that of all runs in words.

    Args:
        expected: how long they take.
        at_once: runs at a time; None for all.
    """
    header = ["method", "data", "a step", "steps", "a run", "peak memory", "runs left"]
    rows = [
        [
            each.method,
            each.dataset,
            words.show(each.timed and each.timed.step_seconds, words.duration),
            words.show(each.timed and each.timed.steps * each.timed.rounds, "{:,}".format),
            each.problem or words.show(max(each.seconds or ()), words.duration),
            words.show(each.state and each.state.peak_memory, words.memory),
            str(each.runs),
        ]
        for each in expected
    ]
    parts = [words.to_markdown(header, rows)] if rows else []
    known = sum(each.runs for each in expected if each.seconds is not None)
    unknown = sum(each.runs for each in expected) - known
    at_a_time = "all" if at_once is None else str(at_once)
    total = (
        f"about {words.duration(max(1, round(in_all(expected, at_once))))}, {at_a_time} at a time"
    )
    if known:
        parts.append(f"in all      {total}, without the tests at the end of runs")
    if unknown:
        parts.append(f"not known   {unknown} runs: their methods have no time in the table")
    return "\n".join(parts) + "\n" if parts else ""
