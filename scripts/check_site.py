"""Check the built site as a reader has it, from disk and without a network.

The front page links every page; what a page's code imports of flowformer stands in the API; no
reference is left as it was written; nothing is loaded from elsewhere, and the search is there.

usage: python scripts/check_site.py SITE
"""

import ast
import re
import sys
import zlib
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
ROLE = re.compile(r":(?:attr|class|data|func|meth|mod):")
# Its code is that of the package's own modules, for those who change them.
INSIDE = DOCS / "contributing.md"


class Page(HTMLParser):
    """What a page loads, and to what its own text links, apart from the menu around it."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.text = file.read_text(encoding="utf-8")
        self.loads: set[str] = set()
        self.links: set[str] = set()
        self._in_article = False
        self.feed(self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Take note of a tag."""
        given = {name: value or "" for name, value in attrs}
        self._in_article |= tag == "article"
        if source := given.get("src"):
            self.loads.add(source)
        if tag == "link" and given.get("rel") != "canonical":
            self.loads.add(given.get("href", ""))
        if tag == "a" and self._in_article:
            self.links.add(given.get("href", "").partition("#")[0])

    def handle_endtag(self, tag: str) -> None:
        """Take note of the end of the page's own text."""
        if tag == "article":
            self._in_article = False


def documented(site: Path) -> set[str]:
    """Return the names that the API pages document, from the inventory that they write."""
    _, _, _, _, packed = (site / "objects.inv").read_bytes().split(b"\n", 4)
    return {line.split()[0] for line in zlib.decompress(packed).decode().splitlines() if line}


def imported(page: Path) -> Iterator[str]:
    """Yield the names of flowformer that the code of a page imports."""
    for block in BLOCK.findall(page.read_text(encoding="utf-8")):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("flowformer"):
                yield from (f"{node.module}.{name.name}" for name in node.names)


def faults(site: Path) -> Iterator[str]:
    """Yield what is wrong with the site, a line each."""
    pages = {file.relative_to(site).as_posix(): Page(file) for file in site.rglob("*.html")}
    for name in sorted(pages.keys() - pages["index.html"].links - {"index.html", "404.html"}):
        yield f"the front page does not link {name}"
    for name, page in sorted(pages.items()):
        for source in sorted(page.loads):
            if re.match(r"(?:https?:)?//", source):
                yield f"{name} loads {source}"
        if left := ROLE.search(page.text):
            yield f"{name} shows the reference {page.text[left.start() : left.end() + 40]!r}"
    known = documented(site)
    for source in sorted(set(DOCS.rglob("*.md")) - {INSIDE}):
        for path in sorted(set(imported(source)) - known):
            yield f"{source.relative_to(DOCS)} imports {path}, which no API page documents"
    for needed in ("search/search_index.js", "assets/iframe-worker.js"):
        if not (site / needed).exists():
            yield f"the search from disk needs {needed}"


if __name__ == "__main__":
    found = list(faults(Path(sys.argv[1])))
    sys.exit("\n".join(f"    {fault}" for fault in found) or None)
