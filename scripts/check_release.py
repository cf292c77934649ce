"""Check that this version can be published: one number everywhere, a date, the tag if there is one.

usage: python scripts/check_release.py [TAG]
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]


def read(file: str, pattern: str) -> str:
    """Return the first group of a pattern in a file of the project, or "nothing"."""
    found = re.search(pattern, (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE)
    return found[1] if found else "nothing"


def faults(tag: str = "") -> Iterator[str]:
    """Yield what does not agree, a line each."""
    version = read("src/flowformer/__init__.py", r'^__version__ = "(.+)"')
    if (cited := read("CITATION.cff", r"^version: (.+)$")) != version:
        yield f"CITATION.cff has version {cited}, the package {version}"
    title = read("CHANGELOG.md", r"^## (.+)$")
    date = read("CITATION.cff", r"^date-released: (\d{4}-\d\d-\d\d)$")
    if title != f"{version} ({date})":
        yield f"CHANGELOG.md opens with {title!r}, and CITATION.cff has {date} as date-released"
    if tag and tag != f"v{version}":
        yield f"the tag is {tag}, not v{version}"


if __name__ == "__main__":
    found = list(faults(*sys.argv[1:]))
    sys.exit("\n".join(f"    {fault}" for fault in found) or None)
