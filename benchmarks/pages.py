"""Tables and pictures of the pages, made from results.

A table stands between the comments `<!-- NAME:begin -->` and `<!-- NAME:end -->` of README.md or of
a page of docs/. A benchmark's module has its tables in `TABLES`, by these names, and may have
pictures in `PICTURES`, by their files in docs/assets, each PNG with an SVG beside it: functions of
its result, which is results/NAME.json or what the module's `results` returns; of a picture None
where there is too little to draw. Without a result, a table says so: in the words that the module's
`UNMEASURED` has for it, if any. Below the first table stands the machine that its result was made
on, at which commit and load, unless a table of the module says it itself.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from benchmarks.runner import RESULTS, ROOT, read
from flowformer.report.figures import png_bytes, svg_bytes

ASSETS = ROOT / "docs" / "assets"
MARK = re.compile(r"<!-- ([\w-]+):begin -->\n")

Tables = dict[str, Callable[[Any], str]]
Pictures = dict[str, Callable[[Any], Figure | None]]


def pages() -> list[Path]:
    """Return the pages that tables may stand on."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def with_tables(page: str, tables: Mapping[str, str]) -> str:
    """Return a page with those tables made anew that stand on it, and nothing else changed.

    Args:
        page: its text.
        tables: by the name in the comments, in Markdown.

    Raises:
        ValueError: a table's comments stand there twice, or lack their end.
    """
    for name in MARK.findall(page):
        if name not in tables:
            continue
        between = re.compile(rf"(<!-- {name}:begin -->\n).*?(<!-- {name}:end -->)", re.DOTALL)
        found = len(between.findall(page))
        if found != 1:
            raise ValueError(f"expected <!-- {name}:begin --> and :end once, found them {found}×")
        table = tables[name]
        page = between.sub(lambda match, table=table: f"{match[1]}\n{table}\n\n{match[2]}", page)
    return page


def result_of(name: str, module: ModuleType, folder: Path = RESULTS) -> Any:
    """Return what the tables of a benchmark are made from, or None where it was not measured."""
    return module.results() if hasattr(module, "results") else read(name, folder)


def tables_of(name: str, module: ModuleType, folder: Path = RESULTS) -> dict[str, str]:
    """Return the tables of a benchmark by their names, in Markdown."""
    result = result_of(name, module, folder)
    if result is None:
        missing = f"*Not run yet: `python -m benchmarks {name}`.*"
        return dict.fromkeys(module.TABLES, missing) | getattr(module, "UNMEASURED", {})
    made = {table: make(result) for table, make in module.TABLES.items()}
    if not any("commit" in text for text in made.values()) and (where := made_on(result)):
        first = next(iter(made))
        made[first] += f"\n\n{where}"
    return made


def write(name: str, module: ModuleType) -> Iterator[Path]:
    """Make the tables and pictures of a benchmark anew; yield the files that have them.

    Raises:
        ValueError: a table stands on no page.
    """
    tables = tables_of(name, module)
    missing = set(tables)
    for path in pages():
        text = path.read_text()
        here = tables.keys() & MARK.findall(text)
        if here:
            path.write_text(with_tables(text, tables))
            missing -= here
            yield path.relative_to(ROOT)
    if missing:
        raise ValueError(f"expected a page with <!-- {min(missing)}:begin -->, found none")
    result = result_of(name, module)
    for file, draw in getattr(module, "PICTURES", {}).items():
        figure = None if result is None else draw(result)
        if figure is None:
            continue
        for path, render in (
            (ASSETS / file, png_bytes),
            ((ASSETS / file).with_suffix(".svg"), svg_bytes),
        ):
            path.write_bytes(render(figure))
            yield path.relative_to(ROOT)


def digits(value: float | None) -> str:
    """Return three digits, or all of a large number; a dash for None."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def milliseconds(seconds: float | None) -> str:
    """Return a time in milliseconds; a dash for None."""
    return digits(None if seconds is None else 1e3 * seconds)


def place_of(machine: Mapping[str, Any], *, cores: bool = True) -> str:
    """Return in words a machine, its PyTorch, and the commit that was measured there."""
    return f"{_where(machine, cores=cores)}, {_commits([machine.get('commit')])}"


def _where(machine: Mapping[str, Any], *, cores: bool) -> str:
    processor = f"{machine['processor']} ({machine['vectors']})"
    of_cores = f", {machine['threads']} of {machine['cores']} cores" * cores
    return f"{processor}{of_cores}, PyTorch {machine['torch']}"


def _commits(names: Sequence[str | None]) -> str:
    kept = list(dict.fromkeys(name for name in names if name))
    listed = [f"commit{'s' * (len(kept) > 1)} {', '.join(kept)}"] if kept else []
    return " and ".join([*listed, *["a commit that was not kept"] * (not all(names))])


def machine_of(result: Mapping[str, Any], *, cores: bool = True) -> str:
    """Return in words what a result was measured on, at which commit and beside what load."""
    machine = result["machine"]
    return f"{place_of(machine, cores=cores)}; load {machine['load']} at the end"


def made_on(result: Any, what: str = "Made") -> str:
    """Return in a sentence what the parts of a result were made on; empty where none says it.

    Args:
        result: a result, or some of its parts.
        what: what was made, to begin the sentence.
    """
    found: dict[str, list[Mapping[str, Any]]] = {}
    for machine in _machines(result):
        found.setdefault(_where(machine, cores=True), []).append(machine)
    places = [
        f"{place}, {_commits([each.get('commit') for each in machines])}; "
        f"load {_span([float(each['load']) for each in machines])} at the end"
        for place, machines in found.items()
    ]
    return f"{what} on {'; and on '.join(places)}." if places else ""


def _machines(result: Any) -> Iterator[Mapping[str, Any]]:
    """Yield the machines of the parts of a result, or that of the whole where no part has its own.

    The whole of a result in parts was only written where its last part was made.
    """
    if not isinstance(result, dict | list):
        return
    own = [result["machine"]] if isinstance(result, dict) and "machine" in result else []
    inner = result.items() if isinstance(result, dict) else enumerate(result)
    parts = [each for name, part in inner if name != "machine" for each in _machines(part)]
    yield from parts or own


def _span(loads: list[float]) -> str:
    low, high = min(loads), max(loads)
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"


def style(axes: Axes, title: str) -> None:
    """Style a panel over tokens as the figures of flowformer.report are styled, on two log axes."""
    axes.set_title(title, loc="left", fontsize=9)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.set_xlabel("tokens", fontsize=8)
    axes.grid(color="#dadce0", linewidth=0.5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=7.5)


def legend(figure: Figure, order: tuple[str, ...] = ()) -> None:
    """Explain the lines of all panels above them, each label once."""
    handles = {
        label: handle
        for axes in figure.axes
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    labels = [label for label in order or handles if label in handles]
    figure.legend(
        [handles[label] for label in labels],
        labels,
        loc="outside upper center",
        ncols=4,
        frameon=False,
        fontsize=8,
    )
