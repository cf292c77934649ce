"""The code of the README and of the pages runs, and what they say of the code holds."""

import importlib.util
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from flowformer.nn import MIXERS
from flowformer.nn.mixers import ATTENTIONS
from flowformer.recipes.series import RECIPES
from flowformer.train.kinds import KINDS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
README = (ROOT / "README.md").read_text()
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
PAGES = {
    str(page.relative_to(ROOT)): page
    for page in (ROOT / "README.md", *sorted(DOCS.rglob("*.md")))
    if BLOCK.search(page.read_text())
}
FILE = re.compile(r"# src/(flowformer/[\w/]+\.py)\n")  # the first line of a block
OWN_FILE = re.compile(r"# (\w+\.py)\n")  # of one that a user saves in a folder of their own
SLOW = ("docs/integrations/sklearn.md",)  # it trains, for minutes where every core is busy


@pytest.fixture
def written(tmp_path, monkeypatch):
    """Give a function that writes a module of the package where a page puts one, until the end."""
    tables: tuple[Any, ...] = (MIXERS, ATTENTIONS, KINDS)
    before = [dict(table) for table in tables]

    def write(name: str, text: str) -> None:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        folder = path.parent
        while importlib.util.find_spec(".".join(folder.relative_to(tmp_path).parts)) is None:
            folder = folder.parent
        package = importlib.import_module(".".join(folder.relative_to(tmp_path).parts))
        if str(folder) not in package.__path__:
            monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])

    yield write
    for table, content in zip(tables, before, strict=True):
        table.clear()
        table.update(content)
    for name, module in list(sys.modules.items()):
        if str(tmp_path) in str(getattr(module, "__file__", "")):
            del sys.modules[name]


@pytest.mark.usefixtures("shape_checks_off")  # a page may export, with symbols for integers
@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=pytest.mark.slow if name in SLOW else [], id=name)
        for name, page in PAGES.items()
    ],
)
def test_code_of_a_page_runs_from_top_to_bottom(page, tmp_path, monkeypatch, written):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    namespace: dict[str, object] = {}
    for block in BLOCK.findall(page.read_text()):
        if file := FILE.match(block):
            written(file[1], block)
        elif file := OWN_FILE.match(block):
            (tmp_path / file[1]).write_text(block)
        else:
            exec(block, namespace)


def test_readme_stays_short():
    assert len(README.splitlines()) <= 90
    assert len(README.split()) <= 700


def test_numbers_of_the_readme_are_the_measured_ones():
    results = ROOT / "benchmarks" / "results"
    attention = json.loads((results / "attention_cpu.json").read_text())
    cases = {case["label"]: case["ratio"] for row in attention["rows"] for case in row["cases"]}
    million = json.loads((results / "long_context.json").read_text())
    assert f"**{cases['16,384 tokens']:.3g} times**" in README
    assert f"**{cases['softmax']:.3g} times**" in README
    assert f"**{million['peak_memory_gib']:.2f} GiB** for {million['tokens']:,} tokens" in README
    assert f"an error of {million['worst_relative_error']:.1e}" in README


def test_every_kind_has_the_same_headings():
    # A regression is on series, and of series of one's own a page says how they come in.
    pages = sorted(DOCS / "kinds" / f"{kind}.md" for kind in KINDS if kind != "regression")
    headings = {
        page.stem: re.findall("^## (.*)$", BLOCK.sub("", page.read_text()), re.MULTILINE)
        for page in pages
    }
    assert list(headings) == ["images", "language", "sequences", "series", "trajectories"]
    assert {tuple(names) for names in headings.values()} == {
        ("Data", "Model", "Train", "Use", "Report", "Measured")
    }


def test_pages_that_the_code_names_are_there():
    named = re.compile(r"\bdocs/[\w/-]+\.(?:md|png)")
    files = [
        *(path for part in ("src", "benchmarks", "tests") for path in (ROOT / part).rglob("*.py")),
        ROOT / "Makefile",
        ROOT / "README.md",
    ]
    missing = {
        f"{path.relative_to(ROOT)}: {page}"
        for path in files
        for page in named.findall(path.read_text())
        if not (ROOT / page).exists()
    }
    assert missing == set()


def test_recipes_of_the_paper_stand_in_the_table_with_their_accuracy():
    page = (DOCS / "kinds" / "series.md").read_text()
    published = {name: recipe().paper_accuracy for name, recipe in RECIPES.items()}
    rows = [f"`{name}` | {100 * value:.1f} |" for name, value in published.items() if value]
    assert len(rows) == 10
    assert [row for row in rows if row not in page] == []


def test_table_of_mixers_says_what_each_says_of_itself():
    """Letters: bidirectional, causal, cross-attention (x), independent, state, any length (∞)."""
    page = (DOCS / "attention" / "mixers.md").read_text().replace(r"\|", "")
    rows = re.findall(r"^\| `([\w-]+)` \|[^|]*\|[^|]*\|([^|]*)\|", page, re.MULTILINE)
    said = {name: set(re.sub(r"\(.*?\)", "", letters).split()) for name, letters in rows}
    letters = {
        "b": "bidirectional",
        "c": "causal",
        "x": "cross",
        "i": "independent_sinks",
        "s": "state",
        "∞": "variable_length",
    }
    assert said == {
        name: {letter for letter, what in letters.items() if getattr(mixer.capabilities, what)}
        for name, mixer in MIXERS.items()
    }
