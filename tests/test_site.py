"""The check of the site notices what a reader would, and docstrings' references become links."""

import zlib

import griffe
import pytest

from scripts import check_site
from scripts.site_references import Roles


@pytest.fixture
def site(tmp_path, monkeypatch):
    """Make a site of two pages that is as it has to be; give it, and the folder of its sources."""
    built, docs = tmp_path / "site", tmp_path / "docs"
    monkeypatch.setattr(check_site, "DOCS", docs)
    monkeypatch.setattr(check_site, "INSIDE", docs / "contributing.md")
    for folder in (built / "search", built / "assets", docs):
        folder.mkdir(parents=True)
    (built / "index.html").write_text(
        '<script src="assets/iframe-worker.js"></script><nav><a href="hidden.html">x</a></nav>'
        '<article><a href="page.html#part">x</a></article><a href="hidden.html">x</a>'
    )
    (built / "page.html").write_text('<a href="https://example.org">elsewhere</a>')
    (built / "search" / "search_index.js").write_text("")
    (built / "assets" / "iframe-worker.js").write_text("")
    names = zlib.compress(b"flowformer.flow_attention py:function 1 api.html#$ -\n")
    (built / "objects.inv").write_bytes(b"# 1\n# 2\n# 3\n# 4\n" + names)
    (docs / "page.md").write_text("```python\nfrom flowformer import flow_attention\n```\n")
    return built, docs


def test_a_whole_site_has_no_faults(site):
    assert list(check_site.faults(site[0])) == []


def test_a_page_that_only_the_menu_links_is_told(site):
    (site[0] / "hidden.html").write_text("")
    assert list(check_site.faults(site[0])) == ["the front page does not link hidden.html"]


@pytest.mark.parametrize(
    "tag",
    [
        '<script src="https://example.org/x.js"></script>',
        '<link rel="stylesheet" href="//example.org/x.css">',
        '<img src="https://example.org/x.png">',
    ],
)
def test_what_a_page_loads_from_elsewhere_is_told(site, tag):
    (site[0] / "page.html").write_text(tag)
    (fault,) = check_site.faults(site[0])
    assert fault.startswith("page.html loads ")


def test_a_reference_that_is_left_is_told(site):
    (site[0] / "page.html").write_text("as in :func:<code>flow_attention</code>")
    (fault,) = check_site.faults(site[0])
    assert fault.startswith("page.html shows the reference ':func:")


def test_a_name_that_pages_use_and_the_api_does_not_document_is_told(site):
    built, docs = site
    code = "```python\nfrom flowformer.nn import Missing\n```\n"
    (docs / "page.md").write_text(code)
    (docs / "contributing.md").write_text(code)  # of the package's own modules
    assert list(check_site.faults(built)) == [
        "page.md imports flowformer.nn.Missing, which no API page documents"
    ]


def test_a_search_that_does_not_work_from_disk_is_told(site):
    (site[0] / "search" / "search_index.js").unlink()
    assert list(check_site.faults(site[0])) == ["the search from disk needs search/search_index.js"]


FLOW = '''
from package.state import State

def f():
    """As :func:`f`, :meth:`State.step`, :class:`~package.state.State` and :class:`Lost`."""
'''


def test_a_role_becomes_a_link_to_what_it_names_where_it_is_written():
    code = {
        "__init__.py": "",
        "state.py": "class State:\n    def step(self): ...\n",
        "flow.py": FLOW,
    }
    with griffe.temporary_pypackage("package", code) as package:
        loader = griffe.GriffeLoader(
            search_paths=[package.tmpdir], extensions=griffe.load_extensions(Roles)
        )
        docstring = loader.load("package")["flow.f"].docstring
    assert docstring is not None
    assert docstring.value == (
        "As [`f`][package.flow.f], [`State.step`][package.state.State.step], "
        "[`State`][package.state.State] and [`Lost`][Lost]."
    )
