"""Tables of a page, each between the comments `<!-- NAME:begin -->` and `<!-- NAME:end -->`."""

import re
from collections.abc import Callable, Mapping, Sequence

from benchmarks.runner import ROOT


def with_tables(page: str, tables: Mapping[str, str]) -> str:
    """Return a page with those tables made anew, and nothing else changed.

    Args:
        page: its text.
        tables: by the name in the comments, in Markdown.

    Raises:
        ValueError: the page lacks the comments of a table.
    """
    for name, table in tables.items():
        between = re.compile(rf"(<!-- {name}:begin -->\n).*?(<!-- {name}:end -->)", re.DOTALL)
        found = len(between.findall(page))
        if found != 1:
            raise ValueError(f"expected <!-- {name}:begin --> and :end once, found them {found}×")
        page = between.sub(lambda match, table=table: f"{match[1]}\n{table}\n\n{match[2]}", page)
    return page


def write_pages(
    pages: Mapping[str, Sequence[str]], tables: Mapping[str, Callable[[], str]]
) -> None:
    """Make the tables of some pages anew, and say which pages.

    Args:
        pages: the names of their tables, by path in the repository.
        tables: what makes each.
    """
    for name, names in pages.items():
        path = ROOT / name
        path.write_text(with_tables(path.read_text(), {each: tables[each]() for each in names}))
        print(name)
