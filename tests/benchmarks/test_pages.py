"""The tables of the pages are those of the results in the repository."""

from types import ModuleType

import pytest

from benchmarks import pages
from benchmarks.__main__ import BENCHMARKS, load
from benchmarks.pages import MARK, with_tables

MODULES = [(name, load(name)) for name in BENCHMARKS]
SHOWN = [pytest.param(name, it, id=name) for name, it in MODULES if hasattr(it, "TABLES")]


@pytest.mark.parametrize(("name", "module"), SHOWN)
def test_pages_hold_the_tables_of_the_results(name: str, module: ModuleType) -> None:
    tables = pages.tables_of(name, module)
    texts = [path.read_text() for path in pages.pages()]
    assert set(tables) <= {mark for text in texts for mark in MARK.findall(text)}
    for text in texts:
        assert with_tables(text, tables) == text


def test_every_table_of_a_page_is_made_by_a_benchmark() -> None:
    made = [table for _, module in MODULES for table in getattr(module, "TABLES", {})]
    assert len(made) == len(set(made))
    assert {mark for path in pages.pages() for mark in MARK.findall(path.read_text())} <= set(made)


def test_a_table_is_made_anew_and_nothing_else() -> None:
    page = "a\n<!-- t:begin -->\nold\n<!-- t:end -->\nb\n"
    assert with_tables(page, {"t": "new \\1", "elsewhere": ""}) == (
        "a\n<!-- t:begin -->\n\nnew \\1\n\n<!-- t:end -->\nb\n"
    )


def test_a_table_without_its_end_is_an_error() -> None:
    with pytest.raises(ValueError, match="expected <!-- t:begin --> and :end once, found them 0×"):
        with_tables("<!-- t:begin -->\n", {"t": ""})


def test_a_table_that_stands_on_no_page_is_an_error(
    tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- a:begin -->\n<!-- a:end -->\n")
    monkeypatch.setattr(pages, "pages", lambda: [page])
    monkeypatch.setattr(pages, "ROOT", tmp_path)
    module = ModuleType("made_up")
    module.__dict__.update(TABLES={"a": str, "b": str}, results=lambda: 1)
    with pytest.raises(ValueError, match="expected a page with <!-- b:begin -->, found none"):
        list(pages.write("made_up", module))
    assert page.read_text() == "<!-- a:begin -->\n\n1\n\n<!-- a:end -->\n"
