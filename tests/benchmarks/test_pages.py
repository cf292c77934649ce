"""The tables of the pages are those of the results in the repository."""

from types import ModuleType

import pytest
from matplotlib.figure import Figure

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


def machine(commit: str | None, load: str) -> dict:
    it = {"processor": "P", "vectors": "AVX2", "threads": 1, "cores": 2, "torch": "2.1"}
    return it | ({} if commit is None else {"commit": commit}) | {"load": load}


def test_what_a_result_was_made_on_stands_below_its_first_table() -> None:
    module = ModuleType("made_up")
    result = {"machine": machine("abc+", "1.5"), "rows": [1, 2]}
    module.__dict__.update(TABLES={"a": lambda _: "A", "b": lambda _: "B"}, results=lambda: result)
    place = "P (AVX2), 1 of 2 cores, PyTorch 2.1"
    assert pages.tables_of("made_up", module) == {
        "a": f"A\n\nMade on {place}, commit abc+; load 1.5 at the end.",
        "b": "B",
    }
    module.TABLES["b"] = pages.machine_of  # a table that says it itself
    assert pages.tables_of("made_up", module)["a"] == "A"


def test_parts_say_what_they_were_made_on_in_place_of_the_whole() -> None:
    made = {"x": ("a", "3"), "y": ("b", "0.5"), "z": ("a", "1")}
    parts = {name: {"machine": machine(*each)} for name, each in made.items()}
    others = [{"machine": machine(None, "2") | {"torch": "2.0"}}]
    place = "P (AVX2), 1 of 2 cores, PyTorch 2.1"
    assert pages.made_on({"machine": machine("z", "9"), "parts": parts, "others": others}) == (
        f"Made on {place}, commits a, b; load 0.5 to 3 at the end; and on "
        "P (AVX2), 1 of 2 cores, PyTorch 2.0, a commit that was not kept; load 2 at the end."
    )
    both = [{"machine": machine("a", "1")}, {"machine": machine(None, "1")}]
    assert "commit a and a commit that was not kept" in pages.made_on(both)
    assert pages.made_on({"rows": [1, None]}) == ""


def test_a_picture_is_written_twice_and_one_that_has_too_little_not(
    tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "page.md").write_text("<!-- a:begin -->\n<!-- a:end -->\n")
    monkeypatch.setattr(pages, "pages", lambda: [tmp_path / "page.md"])
    monkeypatch.setattr(pages, "ROOT", tmp_path)
    monkeypatch.setattr(pages, "ASSETS", tmp_path)
    module = ModuleType("made_up")
    drawn = {"drawn.png": lambda _: Figure(figsize=(1, 1)), "not.png": lambda _: None}
    module.__dict__.update(TABLES={"a": str}, PICTURES=drawn, results=lambda: 1)
    written = [str(path) for path in pages.write("made_up", module)]
    assert written == ["page.md", "drawn.png", "drawn.svg"]
    assert (tmp_path / "drawn.png").read_bytes().startswith(b"\x89PNG")
    first = (tmp_path / "drawn.svg").read_bytes()
    assert b"<svg" in first
    list(pages.write("made_up", module))
    assert (tmp_path / "drawn.svg").read_bytes() == first
