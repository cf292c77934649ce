"""Write the tables of all mixers, long sequences, language and image models into their pages.

    python -m benchmarks.report_mixers

From results/compare_*.csv (`python -m benchmarks.comparisons`), mixer_cost.json, arena_long.json,
language_step.json and generation.json. A test holds the pages to them.
"""

import csv
import json
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from benchmarks.pages import write_pages
from benchmarks.runner import RESULTS
from flowformer.compare.table import MISSING, duration, memory, to_markdown
from flowformer.nn import MIXERS
from flowformer.scores.measures import (
    ACCURACY,
    BITS_PER_CHARACTER,
    NORMALIZED_SCORE,
    PERPLEXITY,
    Measure,
)

LENGTHS = (1024, 16384, 65536)  # of the table of all mixers
ARENA = ("listops", "text", "retrieval", "image", "pathfinder")
CAUSAL = " (causal)"  # what mixer_cost adds to the name of a mixer that is nothing else

Row = dict[str, str]


def read_csv(name: str) -> list[Row]:
    """Return the rows of a comparison's table."""
    with (RESULTS / f"compare_{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def read_json(name: str) -> dict[str, Any]:
    """Return a result."""
    return json.loads((RESULTS / f"{name}.json").read_text())


def score(row: Row | None, measure: Measure) -> str:
    """Return mean and spread, or why there is none."""
    if row is None or not row["mean"]:
        return MISSING if row is None else row["problems"]
    spread = f" ± {measure.show(float(row['spread']))}" if row["spread"] else ""
    return measure.show(float(row["mean"])) + spread


def mixers() -> str:
    """Return the table of every mixer: quality on two tasks, time and memory."""
    accuracy = {row["method"]: row for row in read_csv("scp1")}
    characters = {row["method"]: row for row in read_csv("characters")}
    cells = cost_cells("training")
    header = ["mixer", "series, accuracy %", "characters, bits"]
    header += [f"{length:,} tokens" for length in LENGTHS]
    rows = []
    for name in (*MIXERS, *(name for name in accuracy if name not in MIXERS)):
        costs = [cells.get((name, length)) for length in LENGTHS]
        scores = (
            score(accuracy.get(name), ACCURACY),
            score(characters.get(name), BITS_PER_CHARACTER),
        )
        rows.append([f"`{name}`", *scores, *(time_and_memory(cell) for cell in costs)])
    return to_markdown(header, rows).rstrip()


def cost_cells(pass_name: str) -> dict[tuple[str, int], dict[str, Any]]:
    """Return the measured cells of a pass by mixer and length."""
    return {
        (cell["mixer"].removesuffix(CAUSAL), cell["length"]): cell
        for cell in read_json("mixer_cost")["cells"]
        if cell["pass_name"] == pass_name
    }


def time_and_memory(cell: dict[str, Any] | None) -> str:
    """Return a cell in words."""
    if cell is None:
        return MISSING
    if cell["problem"]:
        return (
            cell["problem"].partition(": ")[0]
            if "not tried" in cell["problem"]
            else cell["problem"]
        )
    return f"{duration(cell['seconds'])}, {memory(cell['memory'])}"


def cost_over_length(pass_name: str, column: str, form: Callable[[float], str]) -> str:
    """Return a table of one figure of every mixer at every length."""
    cells = cost_cells(pass_name)
    lengths = sorted({length for _, length in cells})
    names = dict.fromkeys(name for name, _ in cells)

    def figure(cell: dict[str, Any]) -> str:
        return form(cell[column]) if cell["problem"] is None else MISSING

    rows = [[f"`{name}`", *(figure(cells[name, length]) for length in lengths)] for name in names]
    return to_markdown(["tokens", *(f"{length:,}" for length in lengths)], rows).rstrip()


def unfinished_costs() -> str:
    """Return a line for each pass and mixer that ended before the longest sequence."""
    lines = [
        f"- `{name}`, {pass_name}, {cell['length']:,} tokens: {cell['problem']}"
        for pass_name in ("forward", "training")
        for (name, _), cell in cost_cells(pass_name).items()
        if cell["problem"] and not cell["problem"].startswith("not tried")
    ]
    return "\n".join(lines or ["Every mixer finished every length."])


def comparison(name: str, measure: Measure) -> str:
    """Return the table of a comparison."""
    header = ["method", measure.heading, "runs", "parameters", "training a run", "peak memory"]
    if paper := any(row["paper_score"] for row in read_csv(name)):
        header.insert(3, f"the paper's, {measure.unit}")

    def cells(row: Row) -> Iterable[str]:
        yield f"`{row['method']}`"
        yield score(row, measure)
        yield (
            row["finished"]
            if row["finished"] == row["planned"]
            else (f"{row['finished']} of {row['planned']}")
        )
        if paper:
            yield measure.show(float(row["paper_score"])) if row["paper_score"] else MISSING
        yield f"{int(row['parameters']):,}" if row["parameters"] else MISSING
        yield duration(float(row["seconds"])) if row["seconds"] else MISSING
        yield memory(int(row["peak_memory"])) if row["peak_memory"] else MISSING

    return to_markdown(header, [list(cells(row)) for row in read_csv(name)]).rstrip()


def arena() -> str:
    """Return accuracy and time of the arena's small runs, of every method on every task."""
    tables = {task: {row["method"]: row for row in read_csv(task)} for task in ARENA}

    def figure(row: Row) -> str:
        time = f", {duration(float(row['seconds']))}" if row["seconds"] else ""
        return score(row, ACCURACY) + time

    methods = tables[ARENA[0]]
    rows = [[f"`{name}`", *(figure(tables[task][name]) for task in ARENA)] for name in methods]
    return to_markdown(["accuracy %, training a run", *ARENA], rows).rstrip()


def arena_long() -> str:
    """Return what the longer runs came to, and what the full recipes would need."""
    header = ["command", "test accuracy, %", "best step", "time", "full recipe", "a step here"]
    header += ["all its steps"]
    rows = []
    for run in read_json("arena_long")["runs"].values():
        result, full = run["result"], run["full"]
        rows.append(
            [
                f"`{run['command']}`",
                f"{ACCURACY.show(result['test_accuracy'])}",
                f"{result['best_step']:,}",
                duration(result["seconds"]),
                f"`{full['recipe']}`, {full['steps']:,} steps",
                duration(full["seconds_of_a_step"]),
                f"{full['days']:.1f} days",
            ]
        )
    return to_markdown(header, rows).rstrip()


def language_step() -> str:
    """Return tokens per second and peak memory of a training step over the context."""
    contexts = read_json("language_step")["contexts"]
    header = ["tokens/s (× softmax's), peak memory", *(f"context {int(c):,}" for c in contexts)]
    names = next(iter(contexts.values()))["tokens_per_second"]

    def figure(name: str, cell: dict[str, Any]) -> str:
        rate, times = cell["tokens_per_second"][name], cell["over_softmax"][name]
        return f"{rate:,.0f} ({times:.2f}), {memory(cell['peak_memory'][name])}"

    rows = [[f"`{name}`", *(figure(name, cell) for cell in contexts.values())] for name in names]
    return to_markdown(header, rows).rstrip()


def generation() -> str:
    """Return the time of a generated token at either end."""
    result = read_json("generation")
    names = {
        "ours": f"`{result['preset']}` with `{result['mixer']}`",
        "gpt2": "transformers' GPT-2",
    }
    ends = result["tokens_at_each_end"]
    header = ["model", "parameters", f"ms a token, first {ends}", f"last {ends}", "last / first"]
    rows = [
        [
            names[key],
            f"{result['parameters'][key]:,}",
            *(f"{of[figure]:.1f}" for figure in ("first_ms", "last_ms")),
            f"{of['last_over_first']:.2f}",
        ]
        for key, of in result["medians"].items()
    ]
    return to_markdown(header, rows).rstrip()


TABLES: dict[str, Callable[[], str]] = {
    "mixers": mixers,
    "compare_scp1": lambda: comparison("scp1", ACCURACY),
    "compare_characters": lambda: comparison("characters", BITS_PER_CHARACTER),
    "compare_wiki": lambda: comparison("wiki", PERPLEXITY),
    "compare_fashion": lambda: comparison("fashion", ACCURACY),
    **{
        f"compare_{name}": partial(comparison, name, NORMALIZED_SCORE)
        for name in ("hopper", "hopper-replay", "cheetah")
    },
    "mixer_cost_training": lambda: cost_over_length("training", "seconds", duration),
    "mixer_cost_memory": lambda: cost_over_length("training", "memory", memory),
    "mixer_cost_forward": lambda: cost_over_length("forward", "seconds", duration),
    "mixer_cost_unfinished": unfinished_costs,
    "arena": arena,
    "arena_long": arena_long,
    "language_step": language_step,
    "generation": generation,
}
PAGES = {
    "docs/kinds/images.md": ("compare_fashion",),
    "docs/kinds/trajectories.md": ("compare_hopper", "compare_hopper-replay", "compare_cheetah"),
}
_ELSEWHERE = {name for names in PAGES.values() for name in names}
PAGES["docs/results.md"] = tuple(name for name in TABLES if name not in _ELSEWHERE)


def main() -> None:
    """Write."""
    write_pages(PAGES, TABLES)


if __name__ == "__main__":
    main()
