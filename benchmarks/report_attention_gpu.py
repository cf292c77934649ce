"""Write the tables of results/attention_gpu.json into docs/attention/gpu.md.

    python -m benchmarks.report_attention_gpu

Without the result the page says that no timings were taken; the roofline needs none. A test holds
the page to this.
"""

import json
import statistics
from pathlib import Path
from typing import Any

import torch

from benchmarks import gpu_roofline
from benchmarks.attention_gpu import DECODING, NAME
from benchmarks.gpu_cards import COST
from benchmarks.gpu_goals import rows
from benchmarks.gpu_peers import FLA, FLA_SCALED, FLASH, GRAPH
from benchmarks.pages import with_tables
from benchmarks.peers import BOTH, CHUNKED, FORWARD, OURS, PUBLISHED
from benchmarks.report_attention_cpu import goals, milliseconds
from benchmarks.runner import RESULTS, ROOT
from flowformer.compare.table import memory

RESULT = RESULTS / f"{NAME}.json"
PAGES = {
    "docs/attention/gpu.md": ("attention_gpu", "attention_gpu_details", "gpu_roofline"),
}
NOT_TAKEN = (
    "**GPU timings are missing.** `make bench-gpu` on a machine with a card takes them and fills "
    "in this place."
)
NO_DETAILS = "Times, memory and decoding are missing too."
PEERS = (OURS, FLASH, FLA, FLA_SCALED, CHUNKED, PUBLISHED)
DECODERS = (OURS, GRAPH, FLASH, FLA, CHUNKED)

Result = dict[str, Any]
Row = dict[str, Any]


def load(path: Path = RESULT) -> Result | None:
    """Return the result, or None where there is none."""
    return json.loads(path.read_text()) if path.exists() else None


def goals_table(result: Result | None) -> str:
    """Return the table of goals."""
    if result is None:
        return NOT_TAKEN
    same = result["same"]
    machine = {"processor": same["card"], "vectors": f"torch {same['torch']}"}
    table = {"rows": rows(result), "machine": machine, "backend": same["backend"]}
    return goals(table)


def details(result: Result | None) -> str:
    """Return times and memory over length, decoding, the card, and what is missing."""
    if result is None:
        return NO_DETAILS
    found = list(result["rows"].values())
    kinds = sorted({(row["dtype"], row["width"]) for row in found}, key=_by_cost)
    tables = [
        table
        for dtype, width in kinds
        for form in ("causal", "bidirectional")
        for kind in (FORWARD, BOTH)
        for table in [times(result, form, dtype, width, kind)]
        if table
    ]
    tables += [table for dtype, width in kinds if (table := decoding(result, dtype, width))]
    return "\n\n".join([*tables, card(result)])


def _by_cost(kind: tuple[str, int]) -> tuple[int, int]:
    return COST[getattr(torch, kind[0])], -kind[1]


def times(result: Result, form: str, dtype: str, width: int, kind: str) -> str | None:
    """Return the time and peak memory of every peer over length, and our share of the limits."""
    found = [
        row
        for row in result["rows"].values()
        if (row["form"], row["dtype"], row["width"], row["kind"]) == (form, dtype, width, kind)
    ]
    names = [name for name in PEERS if any(row["peer"] == name for row in found)]
    if not names:
        return None
    limits = ["memory, %", "tensor cores, %"]
    head = [f"{form}, {kind}, {dtype}, width {width}: tokens", *names, *limits]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for length in sorted({row["length"] for row in found}):
        by_peer = {row["peer"]: row for row in found if row["length"] == length}
        cells = [cell(by_peer.get(name)) for name in names]
        lines.append(f"| {length:,} | {' | '.join([*cells, *shares(result, by_peer)])} |")
    return "\n".join(lines)


def cell(row: Row | None) -> str:
    """Return a row's time and peak memory, or why there are none."""
    if row is None:
        return "–"
    if not row["seconds"]:
        return str(row["problem"])
    return f"{milliseconds(statistics.median(row['seconds']))} ms, {memory(row['memory'])}"


def shares(result: Result, by_peer: dict[str, Row]) -> list[str]:
    """Return our share of a copy's bandwidth and of the tensor cores' rate, in per cent."""
    row = by_peer.get(OURS)
    if row is None or not row["seconds"]:
        return ["–", "–"]
    taken = statistics.median(row["seconds"])
    moved = row["moved"] / taken / result["limits"]["bandwidth"]
    dtype = getattr(torch, row["dtype"])
    rate = result["datasheet_flop"] or max(result["limits"]["product"].values())
    return [f"{100 * moved:.0f}", f"{100 * COST[dtype] * row['flop'] / taken / rate:.0f}"]


def decoding(result: Result, dtype: str, width: int) -> str | None:
    """Return the microseconds of a decoded token."""
    found = [
        row
        for row in result["rows"].values()
        if (row["dtype"], row["width"], row["kind"]) == (dtype, width, DECODING)
    ]
    names = [name for name in DECODERS if any(row["peer"] == name for row in found)]
    if not names:
        return None
    head = [f"one token, {dtype}, width {width}: batch", "after tokens", *names]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for batch, length in sorted({(row["batch"], row["length"]) for row in found}):
        by_peer = {
            row["peer"]: row for row in found if (row["batch"], row["length"]) == (batch, length)
        }
        cells = [step_cell(by_peer.get(name)) for name in names]
        lines.append(f"| {batch} | {length:,} | {' | '.join(cells)} |")
    return "\n".join(lines)


def step_cell(row: Row | None) -> str:
    """Return the microseconds of a step, or why there are none."""
    if row is None or not row["seconds"]:
        return cell(row)
    return f"{1e6 * statistics.median(row['seconds']):,.0f} µs"


def card(result: Result) -> str:
    """Return the card, its measured rates and the versions, as a list."""
    same, limits, machine = result["same"], result["limits"], result["machine"]
    datasheet = result["datasheet_flop"]
    products = [f"{name} {rate / 1e12:.0f} TFLOP/s" for name, rate in limits["product"].items()]
    versions = [f"{name} {same[name]}" for name in ("torch", "triton", "fla") if name in same]
    rate = "the fastest of these: the card is in no table"
    if datasheet is not None:
        rate = f"the datasheet's {datasheet / 1e12:.0f} TFLOP/s"
    facts = [
        f"{same['card']}; {', '.join(versions)}; backend `{same['backend']}`; host "
        f"{machine['processor']}, {machine['cores']} cores, Python {machine['python']}",
        f"the limit of memory is that of a copy: {limits['bandwidth'] / 1e12:.3g} TB/s, read and "
        "written",
        f"a product of two square matrices: {', '.join(products)}; the limit of the tensor cores: "
        f"{rate}",
    ]
    return "\n".join(f"- {fact}" for fact in facts)


def roofline(_: Result | None) -> str:
    """Return the estimate."""
    return gpu_roofline.table()


TABLES = {
    "attention_gpu": goals_table,
    "attention_gpu_details": details,
    "gpu_roofline": roofline,
}


def main() -> None:
    """Write."""
    result = load()
    for name, names in PAGES.items():
        path: Path = ROOT / name
        tables = {name: TABLES[name](result) for name in names}
        path.write_text(with_tables(path.read_text(), tables))
        print(name)


if __name__ == "__main__":
    main()
