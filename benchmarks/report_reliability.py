"""Write the tables of docs/runs/reliability.md from the results of `make numerics` and `make fuzz`.

    python -m benchmarks.report_reliability

A test holds the page to it.
"""

import json
from collections.abc import Callable
from typing import Any

from benchmarks.numerics import KINDS
from benchmarks.pages import with_tables
from benchmarks.runner import RESULTS, ROOT
from flowformer.compare.table import to_markdown

Group = dict[str, Any]


def _result(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / f"{name}.json").read_text())


def _backends(groups: list[Group]) -> list[str]:
    return list(dict.fromkeys(group["backend"] for group in groups))


def _cell(group: Group | None, *, gradient: bool = False) -> str:
    if group is None:
        return "–"
    error, times = f"{group['error']:.1e}", f"{group['times_rounding']:.1f}×"
    cell = f"{error}, {group['gradient_error']:.1e}" if gradient else f"{error} ({times})"
    return cell + f", **{group['not_finite']} not finite**" * bool(group["not_finite"])


def _by_backend(groups: list[Group], rows: tuple[str, ...], head: list[str]) -> str:
    """Return a table with a column a backend."""
    found = {(tuple(one[row] for row in rows), one["backend"]): one for one in groups}
    keys = list(dict.fromkeys(key for key, _ in found))
    backends = _backends(groups)
    body = [
        [
            *(f"{part:,}" if isinstance(part, int) else str(part) for part in key),
            *(_cell(found.get((key, backend))) for backend in backends),
        ]
        for key in keys
    ]
    return to_markdown([*head, *backends], body).rstrip()


def numerics_dtypes() -> str:
    """Return the worst over all kinds, scales and options, by form and dtype."""
    groups = _result("numerics")["by_dtype"]
    return _by_backend(groups, ("form", "dtype"), ["form", "dtype"])


def numerics_kinds() -> str:
    """Return the worst over backends, forms and options of two dtypes, by kind and scale."""
    groups = _result("numerics")["by_kind"]
    found = {(one["dtype"], one["kind"], one["scale"]): one for one in groups}
    scales = sorted({one["scale"] for one in groups})
    body = [
        [kind, dtype, *(_cell(found.get((dtype, kind, scale)), gradient=True) for scale in scales)]
        for kind in KINDS
        for dtype in ("float32", "float16")
    ]
    header = ["inputs", "dtype", *(f"scale {scale:g}" for scale in scales)]
    return to_markdown(header, body).rstrip()


def numerics_lengths() -> str:
    """Return the worst over a few kinds and options, by form, dtype and length."""
    groups = _result("numerics")["by_length"]
    return _by_backend(groups, ("form", "dtype", "tokens"), ["form", "dtype", "tokens"])


def numerics_run() -> str:
    """Return what was computed, and how far the stand-in is from the reference, in a sentence."""
    result = _result("numerics")
    missing = "; ".join(f"no `{name}`: {why}" for name, why in result["backends"].items() if why)
    return (
        f"{result['cells']:,} cells, {len(result['not_finite'])} of them not finite where the "
        f"exact result is. Where both are computed, `chunked` in float64 is "
        f"{result['stand_in_apart']:.0e} from `reference`. {_machine(result)}"
        f"{f' ({missing})' if missing else ''}."
    )


def fuzz_run() -> str:
    """Return how long it was and on what, in a sentence."""
    result = _result("fuzz")
    each = [one for engines in result["readers"].values() for one in engines.values()]
    files, seconds = (sum(one[name] for one in each) for name in ("executions", "seconds"))
    return (
        f"{files:,} files in {result['seconds_in_all'] / 60:.0f} minutes, {seconds:,.0f} seconds "
        f"of the processor; {sum(one['read'] for one in each):,} of them could be read. "
        f"{_machine(result)}."
    )


def _machine(result: dict[str, Any]) -> str:
    machine = result["machine"]
    return (
        f"{machine['processor']} ({machine['vectors']}), load {machine['load']} at the end; "
        f"PyTorch {machine['torch']}"
    )


def fuzz() -> str:
    """Return what each reader was given, and what it did that it may not."""
    readers = _result("fuzz")["readers"]
    engines = list(dict.fromkeys(engine for each in readers.values() for engine in each))
    body = []
    for name, each in readers.items():
        findings = sorted({finding for one in each.values() for finding in one["findings"]})
        slowest = max(one["slowest"] for one in each.values())
        counts = (
            f"{each[engine]['executions']:,}" if engine in each else "–" for engine in engines
        )
        body.append([f"`{name}`", *counts, f"{slowest:.2f} s", "; ".join(findings) or "none"])
    totals = [
        sum(each[engine]["executions"] for each in readers.values() if engine in each)
        for engine in engines
    ]
    body.append(["all", *(f"{total:,}" for total in totals), "", ""])
    return to_markdown(["reader", *engines, "slowest", "findings"], body).rstrip()


TABLES: dict[str, Callable[[], str]] = {
    "numerics-dtypes": numerics_dtypes,
    "numerics-kinds": numerics_kinds,
    "numerics-lengths": numerics_lengths,
    "numerics-run": numerics_run,
    "fuzz": fuzz,
    "fuzz-run": fuzz_run,
}
PAGES = {"docs/runs/reliability.md": tuple(TABLES)}


def table(name: str) -> str:
    """Return a table, or that there is none yet."""
    source = name.partition("-")[0]
    if not (RESULTS / f"{source}.json").is_file():
        return f"*Not run yet: `make {source}`.*"
    return TABLES[name]()


def main() -> None:
    """Write the tables."""
    for page, names in PAGES.items():
        path = ROOT / page
        text = with_tables(path.read_text(), {name: table(name) for name in names})
        path.write_text(text)
        print(path)


if __name__ == "__main__":
    main()
