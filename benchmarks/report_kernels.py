"""Write the tables of compiled GPU kernels into docs/attention/gpu.md.

    python -m benchmarks.report_kernels

From results/gpu_kernels.json (`python -m benchmarks.kernel_table`). A test holds the page to it.
"""

import json
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.gpu_traffic import Call, both_passes
from benchmarks.kernel_table import FILE, SHARED_LIMIT
from benchmarks.pages import write_pages
from flowformer.compare.table import to_markdown

DETAIL = ("sm_90", "bfloat16", "d128")  # of which each kernel stands on the page
CALL = {"batch": 16, "length": 4096, "heads": 16, "width": 128, "dtype": torch.bfloat16}


def _rows() -> dict[tuple[str, str, str, str], dict[str, dict[str, int]]]:
    """Return the kernels of each card, dtype, width and pass."""
    kept: dict[str, Any] = json.loads(FILE.read_text())
    found = {}
    for row, kernels in kept.items():
        card, dtype, width, name = row.split()
        found[card, dtype, width, name] = kernels
    return found


def gpu_kernels() -> str:
    """Return the worst of all kernels, for each card, dtype and width."""
    groups = defaultdict(list)
    for (card, dtype, width, _), kernels in _rows().items():
        groups[card, dtype, width].extend(kernels.values())
    header = ["card", "dtype", "width", "kernels", "registers, at most", "spilled bytes"]
    header += ["shared memory, at most", "limit"]
    order = sorted(groups, key=lambda key: (key[0], key[1], int(key[2][1:])))
    rows = [
        [
            card,
            dtype,
            width[1:],
            str(len(group)),
            str(max(each["registers"] for each in group)),
            str(sum(each["spilled_bytes"] for each in group)),
            f"{max(each['shared_bytes'] for each in group) / 1024:.1f} KiB",
            f"{SHARED_LIMIT[int(card[3:])] // 1024} KiB",
        ]
        for (card, dtype, width), group in ((key, groups[key]) for key in order)
    ]
    return to_markdown(header, rows).rstrip()


def gpu_kernels_detail() -> str:
    """Return each kernel of one card, dtype and width, with its arithmetic intensity."""
    rows = []
    for causal in (False, True):
        name = "causal" if causal else "bidirectional"
        moved, flop = defaultdict(int), defaultdict(int)
        for each in both_passes(Call(causal=causal, **CALL)):
            moved[each.name] += each.moved
            flop[each.name] += each.flop
        for kernel, figures in _rows()[*DETAIL, name].items():
            short, *flags = kernel.split()
            variant = ", ".join(flag.lower() for flag in flags if not flag.startswith("HAS"))
            rows.append(
                [
                    name,
                    f"`{short}`" + (f" ({variant})" if variant else ""),
                    str(figures["registers"]),
                    str(figures["spilled_bytes"]),
                    f"{figures['shared_bytes'] / 1024:.1f} KiB",
                    str(32 * figures["warps"]),
                    f"{flop[short] / moved[short]:.0f}" if flop[short] else "—",
                ]
            )
    header = ["form", "kernel", "registers", "spilled bytes", "shared memory", "threads"]
    return to_markdown([*header, "operations a byte"], rows).rstrip()


TABLES: dict[str, Callable[[], str]] = {
    "gpu_kernels": gpu_kernels,
    "gpu_kernels_detail": gpu_kernels_detail,
}
PAGES = {"docs/attention/gpu.md": tuple(TABLES)}


def main() -> None:
    """Write."""
    write_pages(PAGES, TABLES)


if __name__ == "__main__":
    main()
