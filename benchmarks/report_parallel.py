"""Write the tables of sequences over many ranks into docs/attention/parallel.md.

    python -m benchmarks.report_parallel

From results/sequence_parallel.json (`python -m benchmarks.sequence_parallel`). A test holds the
page to it.
"""

import json
from collections.abc import Callable
from typing import Any

from benchmarks.pages import write_pages
from benchmarks.runner import RESULTS
from flowformer.compare.table import to_markdown


def _result() -> dict[str, Any]:
    return json.loads((RESULTS / "sequence_parallel.json").read_text())


def parallel_bytes() -> str:
    """Return the bytes that a host sends, by form, ranks and length."""
    rows = _result()["bytes"]
    lengths = sorted({row["length"] for row in rows})
    header = ["form", "ranks", "pass", *(f"{length:,} tokens" for length in lengths)]
    table = []
    for form, ranks in dict.fromkeys((row["form"], row["ranks"]) for row in rows):
        for name in ("forward", "backward"):
            sent = {
                row["length"]: row[name]["sent"]
                for row in rows
                if (row["form"], row["ranks"]) == (form, ranks)
            }
            table.append([form, str(ranks), name, *(f"{sent[length]:,}" for length in lengths)])
    return to_markdown(header, table).rstrip()


def parallel_cost() -> str:
    """Return the processor's time of a rank's part, beside that of an attention alone."""
    rows = []
    for row in _result()["cost"]:
        whole, sharded = row["whole"], row["sharded"]
        for name in ("forward", "backward"):
            cells = [f"{1e3 * side[name]:,.0f} ms" for side in (whole, sharded)]
            rows.append([row["form"], name, *cells, f"{sharded[name] / whole[name]:.1f}"])
    header = ["form", "pass", "`flow_attention`", "the same tokens as a rank's part", "ratio"]
    return to_markdown(header, rows).rstrip()


def parallel_machine() -> str:
    """Return what it was measured on, in a sentence."""
    machine = _result()["machine"]
    return (
        f"{machine['processor']} ({machine['vectors']}), {machine['cores']} cores, load "
        f"{machine['load']} at the end: other work ran beside it, so that seconds of the clock say "
        f"little; PyTorch {machine['torch']}."
    )


def parallel_step() -> str:
    """Return what the step of a million tokens took."""
    ranks = _result()["step"]
    header = ["rank", "tokens", "peak memory above the start", "sent", "seconds"]
    header += ["of a processor", "loss"]
    rows = [
        [
            str(rank),
            f"{step['tokens'] // len(ranks):,} of {step['tokens']:,}",
            f"{step['peak_bytes'] / 2**20:,.0f} MiB",
            f"{step['sent'] / 2**10:,.0f} KiB",
            f"{step['seconds']:.0f}",
            f"{step['processor_seconds']:.0f}",
            f"{step['loss']:.4f}",
        ]
        for rank, step in enumerate(ranks)
    ]
    return to_markdown(header, rows).rstrip()


def parallel_plan() -> str:
    """Return the calculated plan."""
    plan = _result()["plan"]
    layer = plan["bytes_a_layer"]
    rows = [
        ["tokens, GPUs, tokens a GPU", _numbers(plan, "tokens", "gpus", "tokens_a_gpu")],
        ["layers, heads, width of a head", _numbers(plan, "layers", "heads", "width")],
        ["assumed: network", f"{plan['network_bytes_a_second'] / 1e9:.0f} GB/s a GPU"],
        ["assumed: latency of a collective", f"{plan['latency_seconds'] * 1e6:.0f} µs"],
        ["assumed: computing", f"{plan['operations_a_second'] / 1e12:.0f} TFLOP/s a GPU"],
        ["sent by a GPU a layer, forward", f"{layer['forward'] / 1e6:.2f} MB"],
        ["sent by a GPU a layer, backward", f"{layer['backward'] / 1e6:.2f} MB"],
        ["the same by ring attention, both", f"{plan['ring_bytes_a_layer'] / 1e9:,.0f} GB"],
        ["sent by a GPU a step", f"{plan['bytes_a_step'] / 1e6:,.0f} MB"],
        ["collectives a layer", str(plan["collectives_a_layer"])],
        ["time of sending a step", f"{plan['seconds_sending'] * 1e3:,.0f} ms"],
        ["time of computing a step", f"{plan['seconds_computing'] * 1e3:,.0f} ms"],
    ]
    return to_markdown(["", ""], rows).rstrip()


def _numbers(plan: dict[str, Any], *names: str) -> str:
    return ", ".join(f"{plan[name]:,}" for name in names)


TABLES: dict[str, Callable[[], str]] = {
    "parallel_bytes": parallel_bytes,
    "parallel_cost": parallel_cost,
    "parallel_step": parallel_step,
    "parallel_machine": parallel_machine,
    "parallel_plan": parallel_plan,
}
PAGES = {"docs/attention/parallel.md": tuple(TABLES)}


def main() -> None:
    """Write."""
    write_pages(PAGES, TABLES)


if __name__ == "__main__":
    main()
