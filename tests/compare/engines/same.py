"""What must be the same of two comparisons, whatever engine did their runs: all but the costs."""

import csv
from pathlib import Path
from typing import Any

from flowformer.compare.page import write_comparison
from flowformer.compare.plan import Plan, read_comparison

COSTS = {"seconds", "step_seconds", "peak_memory", "train_seconds"}


def written(plan: Plan) -> dict[str, Any]:
    """Write a comparison whose runs have all finished; return its files, without times and memory.

    They are by their names.
    """
    compared = read_comparison(plan)
    assert [run.error for run in compared.outcomes if not run.finished] == []
    write_comparison(plan.root, compared)
    root = plan.root
    runs = sorted((root / "runs").glob("*/*/"))
    assert runs
    return {
        **{name: (root / name).read_bytes() for name in ("table.tex", "tests.csv")},
        **{name: _rows(root / name) for name in ("runs.csv", "table.csv")},
        **{
            f"{run.name}/{name}": (run / name).read_bytes()
            for run in runs
            for name in ("predictions.csv", "weights.safetensors", "preprocessing.json")
        },
        **{run.name: _rows(run / "metrics.csv") for run in runs},
    }


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return [
            {name: value for name, value in row.items() if name not in COSTS}
            for row in csv.DictReader(file)
        ]
