"""Does attention cost what it may at every size: masks, widths, short rows, packs, threads, steps?

One thread, float32, unless a row says otherwise. The two sides of a case take turns in one process;
the least processor time of each counts, which the work of others does not enter. What falls short
takes three times as many turns more before it counts. `size_goals.py` has the rows.
"""

import time
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping
from itertools import groupby
from typing import Any

from benchmarks.attention.cpu import goals
from benchmarks.attention.cpu.rows import ALONE, Case, Row
from benchmarks.attention.cpu.size_goals import SECTIONS
from benchmarks.pages import Tables
from benchmarks.runner import machine, minima, pin, read, save, share, some_of
from flowformer.ops.backends.cpu.library import instruction_set
from flowformer.report.words import to_markdown

NAME = "attention_sizes"
THOROUGH = {"repeats": 15, "budget": 1.5, "shortest": 0.01}
QUICK = {"repeats": 1, "budget": 0.0, "shortest": 0.0}


def measure(label: str, case: Case, row: Row, how: Mapping[str, Any]) -> dict[str, Any]:
    """Return a case's ratio beside its goal, and the least that its sides took."""
    goal = {"least": row.least, "most": row.most}
    ours, other = case[0](), case[1]
    sides = {"ours": ours} | ({"other": other()} if callable(other) else {})

    def judged(least: Mapping[str, float]) -> dict[str, Any]:
        ratio = least["ours"] / (least["other"] if callable(other) else other)
        return goals.case(label, [1 / ratio if row.least else ratio], **goal)

    pin(row.threads)
    taken = minima(sides, lambda least: judged(least)["holds"], clock=row.clock, **how)
    return judged(taken) | {"taken": taken}


def cases_of(row: Row, *, quick: bool) -> list[dict[str, Any]]:
    """Return the cases of a row, measured; of a missing one why it is."""
    if row.missing:
        missing = goals.case(ALONE, [], least=row.least, most=row.most)
        return [missing | {"said": row.missing}]
    cases, how = list(row.cases.items()), QUICK if quick else THOROUGH
    return [measure(label, case, row, how) for label, case in cases[: 1 if quick else None]]


def section(name: str, *, quick: bool) -> dict[str, Any]:
    """Measure the rows of a section, of which a quick run takes the first case alone."""
    started, before, rows = time.perf_counter(), machine(), []
    for row in SECTIONS[name]():
        cases = cases_of(row, quick=quick)
        print(f"{row.what}, against {row.against}")
        for case in cases:
            print(f"    {case['label']}: {case['said']}", flush=True)
        rows.append(goals.row(row.what, row.against, *cases))
    return {
        "isa": instruction_set(),
        "machine": before,
        "seconds": time.perf_counter() - started,
        "rows": rows,
    }


def options(parser: ArgumentParser) -> None:
    """Add the options."""
    share(parser, NAME, quick=False)
    known = some_of("section", SECTIONS)
    about = f"sections, with commas; the others stay as they are: {', '.join(SECTIONS)}"
    parser.add_argument("--only", type=known, default=list(SECTIONS), help=about)


def execute(arguments: Namespace) -> None:
    """Measure, print what was asked for, and keep it."""
    kept = read(arguments.output.stem, arguments.output.parent) or {"sections": {}}
    sections = kept["sections"]
    for name in arguments.only:
        sections[name] = section(name, quick=arguments.quick)
    found = {name: sections[name] for name in SECTIONS if name in sections}
    print(table({"sections": {name: found[name] for name in arguments.only}}))
    save(arguments.output, {"sections": found})


def table(result: dict[str, Any]) -> str:
    """Return the rows of all sections, those with the same cases as one table; and the machine."""
    sections = list(result["sections"].values())
    rows = (row for each in sections for row in each["rows"])
    tables = []
    for labels, alike in groupby(rows, lambda row: [case["label"] for case in row["cases"]]):
        header = ["what", "against", "wanted", *labels]
        lines = [
            [row["what"], row["against"], row["cases"][0]["goal"], *map(goals.figure, row["cases"])]
            for row in alike
        ]
        tables.append(to_markdown(header, lines))
    return "\n".join([*tables, f"On {'; and '.join(circumstances(sections))}."])


def circumstances(sections: list[dict[str, Any]]) -> list[str]:
    """Return the machine and the commit, and the loads of the sections that were measured there."""
    runs: dict[str, list[float]] = {}
    for each in sections:
        machine = each["machine"]
        where = f"{machine['processor']} ({each['isa']})"
        run = f"{where}, PyTorch {machine['torch']}, commit {machine['commit']}"
        runs.setdefault(run, []).append(float(machine["load"]))
    return [f"{run}; load {min(loads):g} to {max(loads):g}" for run, loads in runs.items()]


TABLES: Tables = {NAME: table}
