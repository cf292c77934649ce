"""The table of docs/runs/reliability.md, from what `benchmarks.faults` found.

python -m benchmarks.report_faults
"""

import json
from pathlib import Path
from typing import Any

from benchmarks.pages import with_tables
from benchmarks.runner import ROOT

PAGE = ROOT / "docs" / "runs" / "reliability.md"
FILE = ROOT / "benchmarks" / "results" / "faults.json"
KILLED = {
    "killed": "one process",
    "killed-ddp": "two processes, DDP",
    "killed-fsdp": "two processes, FSDP2",
}


def main() -> None:
    """Writes the tables."""
    results = json.loads(FILE.read_text())
    tables = {"faults-killed": killed(results), "faults-others": others(results)}
    Path(PAGE).write_text(with_tables(PAGE.read_text(), tables))


def killed(results: dict[str, Any]) -> str:
    """Returns a row for each kind of run that was killed."""
    lines = ["| run | killed | of these ended the same | left half written |", "|---|---|---|---|"]
    for name, what in KILLED.items():
        if name not in results:
            lines.append(f"| {what} | not run | – | – |")
            continue
        rows = [row for row in results[name]["rows"] if row["killed"]]
        same = sum(row["same"] for row in rows)
        left = sum(len(row["left"]) for row in rows)
        lines.append(f"| {what} | {len(rows)} | {same} | {left} |")
    return "\n".join(lines)


def others(results: dict[str, Any]) -> str:
    """Returns a row for each other fault: what the run said and came to."""
    lines = ["| fault | exit code | what it says | gone on with |", "|---|---|---|---|"]
    for name, group in results.items():
        for row in [] if name in KILLED else group["rows"]:
            code = row.get("code", f"{row.get('seconds', 0):.0f} s after its start")
            said = row["said"].replace("error: ", "").replace("|", "\\|")
            after = {True: "the same end", False: "**another end**"}.get(row.get("same"), "–")
            lines.append(f"| {row['fault']} | {code} | {said} | {after} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
