"""The HTML page around a report's parts: no scripts, nothing loaded from elsewhere.

Every function but `save` returns HTML; text from outside is escaped here and nowhere else.
"""

from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

from flowformer.files import write_atomically

CSS = """
:root { color-scheme: light dark; --ink: #202124; --soft: #5f6368; --paper: #ffffff;
  --card: #f6f7f9; --line: #dadce0; --accent: #0072b2; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8eaed; --soft: #9aa0a6; --paper: #17181b; --card: #222428;
    --line: #3c4043; --accent: #56b4e9; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 60rem; padding: 1.5rem 1rem 4rem; background: var(--paper);
  color: var(--ink); font: 16px/1.55 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0; }
h2 { font-size: 1.15rem; margin: 2.5rem 0 .6rem; padding-top: .6rem;
  border-top: 1px solid var(--line); }
p { margin: .4rem 0; max-width: 46rem; }
.soft { color: var(--soft); }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(15rem, 100%), 1fr));
  gap: .75rem; margin: 1.2rem 0 .8rem; }
.figure { background: var(--card); border-radius: .6rem; padding: .8rem 1rem; }
.figure b { display: block; font-size: 2rem; line-height: 1.2; color: var(--accent); }
figure { margin: .8rem 0; overflow-x: auto; }
figure img { display: block; max-width: 100%; height: auto; background: #fff;
  border-radius: .6rem; padding: .4rem; }
figcaption { color: var(--soft); font-size: .9rem; margin-top: .3rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem 1rem .25rem 0; text-align: left; border-bottom: 1px solid var(--line);
  vertical-align: top; }
th { overflow-wrap: normal; }
.number { text-align: right; white-space: nowrap; }
tbody th { font-weight: 400; }
summary { cursor: pointer; }
"""


def save(folder: Path, name: str, parts: Iterable[str], *, of: str = "") -> Path:
    """Write FOLDER/index.html, one file that stands alone, and return its path.

    Args:
        folder: made when missing.
        name: the page's heading, plain text.
        parts: what stands below it, HTML.
        of: what follows the name in the title of the document.
    """
    body = "\n".join([heading(name, level=1), *parts])
    html = (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(name + of)}</title>\n<style>{CSS}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )
    write_atomically(folder / "index.html", html)
    return folder / "index.html"


def save_with_pictures(
    folder: Path, name: str, parts: Iterable[str], pictures: Mapping[str, bytes]
) -> Path:
    """Write the report of a run and its pictures as files; those of an earlier report go.

    Args:
        folder: made when missing.
        name: the page's heading.
        parts: what stands below it, HTML.
        pictures: the PNG files by their names.

    Returns:
        The page.
    """
    for file, content in pictures.items():
        write_atomically(folder / file, content)
    page = save(folder, name, parts, of=": run report")
    for old in folder.glob("*.png"):
        if old.name not in pictures:
            old.unlink()
    return page


def heading(text: str, level: int = 2) -> str:
    """Return a heading."""
    return f"<h{level}>{escape(text)}</h{level}>"


def paragraph(text: str, *, soft: bool = False) -> str:
    """Return a paragraph of plain text."""
    return f'<p class="soft">{escape(text)}</p>' if soft else f"<p>{escape(text)}</p>"


def headline(figures: Iterable[tuple[str, str, str]]) -> str:
    """Return large figures, each as (name, value, explanation)."""
    cards = "".join(
        f'<div class="figure">{escape(name)}<b>{escape(value)}</b>'
        f'<span class="soft">{escape(note)}</span></div>'
        for name, value, note in figures
    )
    return f'<div class="figures">{cards}</div>'


def picture(png: bytes, *, alt: str, caption: str = "", pixels_per_point: int = 2) -> str:
    """Embed a PNG, shown at most at its own size; a narrow screen scrolls it sideways."""
    width, height = (int.from_bytes(png[at : at + 4]) // pixels_per_point for at in (16, 20))
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return (
        f'<figure><img src="data:image/png;base64,{b64encode(png).decode()}" '
        f'width="{width}" height="{height}" style="min-width: min({width}px, 30rem)" '
        f'alt="{escape(alt)}">{below}</figure>'
    )


def table(header: Sequence[str], rows: Iterable[Sequence[str]], *, numbers_from: int = 1) -> str:
    """Return a table whose first column names its rows; `numbers_from` on are numbers."""
    kinds = ["" if at < numbers_from else ' class="number"' for at in range(len(header))]
    head = "".join(
        f'<th scope="col"{kind}>{escape(name)}</th>'
        for kind, name in zip(kinds, header, strict=True)
    )
    body = "".join(
        f'<tr><th scope="row">{escape(row[0])}</th>'
        + "".join(
            f"<td{kind}>{escape(cell)}</td>" for kind, cell in zip(kinds[1:], row[1:], strict=True)
        )
        + "</tr>"
        for row in rows
    )
    inner = f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody>"
    return f'<div class="scroll"><table>{inner}</table></div>'


def settings(values: Mapping[str, object]) -> str:
    """Return a table of settings by name, closed until asked for."""
    rows = [(name, str(value)) for name, value in values.items()]
    return details("Settings", table(("setting", "value"), rows, numbers_from=2))


def details(summary: str, inner: str) -> str:
    """Return a part that is closed until asked for; `inner` is HTML."""
    return f"<details><summary>{escape(summary)}</summary>{inner}</details>"
