"""Comparisons as benchmarks keep them: asked for, kept part by part, tested and shown."""

import csv
import os
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from benchmarks.runner import ROOT, flowformer, keep, read
from flowformer.compare.significance import LEVEL, PairedTest, Pairing, compare_over_seeds
from flowformer.compare.table import RunOutcome
from flowformer.report.words import MISSING
from flowformer.scores.measures import Measure

# Where they stand: of a checkout that may go before they end, elsewhere.
FOLDER = Path(os.environ.get("FLOWFORMER_COMPARISONS") or ROOT / "comparisons")
# glibc gives freed memory back to the system and takes it anew, page by page: docs/runs/compare.md.
ALLOCATOR = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**34)}

Row = dict[str, str]
Scores = Mapping[str, Sequence[float]]  # of each method, seed after seed


def compare(output: Path, *arguments: str) -> list[Row]:
    """Run a comparison, or go on with it; return a row a run, as runs.csv has it.

    Raises:
        SystemExit: it did not end with all of its runs; its code is the comparison's.
    """
    flowformer("compare", *arguments, "--output", str(output), **ALLOCATOR)
    with (output / "runs.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def figures(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """Return what is kept of the runs of a comparison: a score and its cost each."""
    kept: dict[str, Callable[[str], Any]] = {
        "method": str,
        "seed": int,
        "score": float,
        "parameters": int,
        "seconds": float,
        "peak_memory": int,
    }
    return [{name: kind(row[name]) for name, kind in kept.items() if row[name]} for row in rows]


def collect(
    result: Path,
    place: Sequence[str],
    output: Path,
    asked: Sequence[str],
    *,
    again: bool,
    here: Callable[[], Sequence[str]] = tuple,
    more: Callable[[Path, Row], dict[str, Any]] = lambda *_: {},
) -> None:
    """Run a comparison, or go on with it, and keep its runs in a result.

    Args:
        result: the file of the result.
        place: the keys from the whole result to the runs, see `keep`.
        output: the folder of the comparison.
        asked: what to compare, without what is of this machine alone.
        again: whether to run what is kept already, unless its folder has it.
        here: returns the flags that are of this machine alone, such as where data lie.
        more: returns what is kept of a run beside its `figures`, from the comparison's folder and
            the run's row.

    Raises:
        SystemExit: see `compare`.
    """
    said, kept = shlex.join(asked), read(result.stem, result.parent)
    for key in place:
        kept = (kept or {}).get(key)
    if kept is not None and kept["asked"] == said and not again:
        print(f"{', '.join(place)}: is there", flush=True)
        return
    rows = compare(output, *asked, *here())
    runs = [one | more(output, row) for one, row in zip(figures(rows), rows, strict=True)]
    keep(result, place, {"asked": said, "runs": runs})


def rehearse(output: Path, asked: Sequence[str], here: Sequence[str] = ()) -> None:
    """Print how long a comparison will take."""
    flowformer("compare", *asked, *here, "--output", str(output), "--dry-run", **ALLOCATOR)


def scores_of(runs: Iterable[Mapping[str, Any]]) -> dict[str, list[float]]:
    """Return the scores of each method, in the order of the runs."""
    found: dict[str, list[float]] = {}
    for run in runs:
        found.setdefault(run["method"], []).append(float(run["score"]))
    return found


def tests_of(
    scores: Scores, pairings: Iterable[Pairing], measure: Measure
) -> dict[Pairing, PairedTest]:
    """Return the paired t-tests over the seeds, corrected after Holm for all that are asked for."""
    outcomes = [
        RunOutcome(dataset="", method=method, seed=seed, score=score)
        for method, own in scores.items()
        for seed, score in enumerate(own)
    ]
    tests = compare_over_seeds(outcomes, "", pairings, measure)
    return {(test.method, test.baseline): test for test in tests}


def mark(test: PairedTest | None) -> str:
    """Return ↑ where a method is better than its baseline at p < 0.05, ↓ where it is worse.

    In brackets where that holds only before the correction for the other comparisons.
    """
    if test is None or test.p >= LEVEL:
        return ""
    arrow = "↑" if (test.difference > 0) == test.measure.higher_is_better else "↓"
    return f" {arrow}" if test.corrected < LEVEL else f" ({arrow})"


def mean_and_spread(scores: Sequence[float], measure: Measure) -> str:
    """Return mean and sample standard deviation; a dash without a score."""
    if not scores:
        return MISSING
    spread = f" ± {measure.show(stdev(scores))}" if len(scores) > 1 else ""
    return measure.show(mean(scores)) + spread
