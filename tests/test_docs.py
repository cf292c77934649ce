"""The code of the README and on the pages of the guide runs."""

import re
from pathlib import Path

import pytest

from flowformer.nn import MIXERS
from flowformer.recipes.series import RECIPES

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
PAGES = [
    page for page in (ROOT / "README.md", *DOCS.glob("*.md")) if BLOCK.search(page.read_text())
]
SLOW = ("estimator.md",)  # it trains, for minutes where every core is busy


@pytest.mark.usefixtures("shape_checks_off")  # a page may export, with symbols for integers
@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=pytest.mark.slow if page.name in SLOW else [], id=page.name)
        for page in sorted(PAGES)
    ],
)
def test_code_of_a_page_runs_from_top_to_bottom(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {}
    for block in BLOCK.findall(page.read_text()):
        if EXPORT not in block:
            exec(block, namespace)


# Of a model of twelve blocks, in seconds; tests/models/images/test_export.py exports small ones.
EXPORT = "torch.onnx.export("


@pytest.mark.slow
@pytest.mark.usefixtures("shape_checks_off")
def test_code_of_a_page_that_exports_runs_with_the_export(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pages = [page.read_text() for page in DOCS.rglob("*.md")]
    (exporting,) = [text for text in pages if any(EXPORT in code for code in BLOCK.findall(text))]
    exec("\n".join(BLOCK.findall(exporting)), {})


def test_recipes_of_the_paper_stand_in_the_table_with_their_accuracy():
    page = (DOCS / "training.md").read_text()
    published = {name: recipe().paper_accuracy for name, recipe in RECIPES.items()}
    rows = [f"`{name}` | {100 * value:.1f} |" for name, value in published.items() if value]
    assert len(rows) == 10
    assert [row for row in rows if row not in page] == []


def test_table_of_mixers_says_what_each_says_of_itself():
    """Letters: bidirectional, causal, cross-attention (x), independent, state, any length (∞)."""
    page = (DOCS / "mixers.md").read_text().replace(r"\|", "")
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


def test_the_shorter_table_agrees():
    page = (DOCS / "layers.md").read_text()
    cell = r"\| ([^|]+) "
    rows = re.findall(rf"^\| `(\w+)` \|[^|]*{5 * cell}\|", page, re.MULTILINE)
    assert rows
    for name, *words in rows:
        can = MIXERS[name].capabilities
        expected = (can.causal, can.cross, can.independent_sinks, can.state, can.variable_length)
        assert tuple(word == "yes" for word in words) == expected
