"""Plain text from Wikipedia: dumps, their markup, and words as WikiText separates them."""

import bz2
import html
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

MAX_PAGE = 2**28  # bytes with all its revisions; MediaWiki's own bound is 2 MiB of text each
# Sections of lists, which are no prose.
_DROPPED_SECTIONS = {
    "bibliography", "citations", "external links", "footnotes", "further reading", "gallery",
    "notes", "notes and references", "references", "see also", "sources", "works cited",
}  # fmt: skip
# Templates that stand for text: their first argument, or their last. Others are left out.
_FIRST = {"nihongo", "nobr", "nowrap", "quote", "cquote", "sc", "small", "smaller", "vanchor"}
_LAST = {"lang", "native name", "transl"}
_FIXED = {"nbsp": " ", "spaces": " ", "·": " · ", "'s": "'s"}
_RANGES = {"to", "-", "–", "and", "or", "by", "x", "×"}

_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
_EMPTY_REFERENCE = re.compile(r"<ref\b[^<>]*/\s*>", re.IGNORECASE)
_NO_PROSE = re.compile(
    r"<(ref|math|gallery|timeline|source|syntaxhighlight|imagemap|score|code|table)\b[^<>]*>"
    r".*?</\1\s*>",
    re.DOTALL | re.IGNORECASE,
)
# Innermost first: what has no other one inside. Repeated until none is left.
_TEMPLATE = re.compile(r"\{\{((?:(?!\{\{|\}\}).)*)\}\}", re.DOTALL)
_TABLE = re.compile(r"\{\|(?:(?!\{\||\|\}).)*\|\}", re.DOTALL)
_PLAIN_LINK = re.compile(r"\[\[([^\[\]{}]*)\]\]")
_LINK = re.compile(r"\[\[((?:(?!\[\[|\]\]).)*)\]\]", re.DOTALL)
_EXTERNAL = re.compile(r"\[(?:https?:|ftp:|mailto:|//)\S*[ \t]*([^\]\n]*)\]", re.IGNORECASE)
_NO_TEXT = re.compile(r"\s*(?:file|image|category|media|[a-z]{2,3}|simple)\s*:", re.IGNORECASE)
_TAG = re.compile(r"</?[a-zA-Z][^<>]*>")
_HEADING = re.compile(r"(={1,6})\s*(.*?)\s*\1\s*$")

_INNER = re.compile(r"(?<=\d)([.,])(?=\d)|(?<=\w)(-)(?=\w)")
_WORD = re.compile(r"@[-.,]@|(?:[^\W\d_]\.){2,}|(?:'(?=\w))?[\w\u0300-\u036f]+|\.{2,}|[^\w\s]")


def read_dump(path: Path) -> Iterator[tuple[str, str]]:
    """Return the articles of a dump: title and plain text, in the dump's order.

    Redirects and pages that are no articles, such as talk, are left out.

    Args:
        path: XML as MediaWiki exports it, compressed with bzip2 or not.

    Raises:
        ValueError: it is damaged, or a page has more than `MAX_PAGE` bytes; the message names it.
    """
    with bz2.open(path) if path.suffix == ".bz2" else path.open("rb") as file:
        bounded = _Bounded(file)
        try:
            for _, element in ET.iterparse(cast(Any, bounded)):
                if element.tag.rpartition("}")[2] != "page":
                    continue
                bounded.taken = 0
                # Releases of the format differ in their namespace only.
                fields = {child.tag.rpartition("}")[2]: child for child in element}
                text = element.findtext("{*}revision/{*}text") or ""
                if fields["ns"].text == "0" and "redirect" not in fields:
                    yield fields["title"].text or "", plain_text(text)
                element.clear()
        except KeyError as error:
            raise ValueError(f"{path}: expected an element {error} in each page") from error
        # ParseError is no ValueError; the others are bzip2's.
        except (ET.ParseError, OSError, EOFError, ValueError) as error:
            raise ValueError(f"{path} is no whole dump: {error}") from error


class _Bounded:
    """A file that gives no more than a page may have, until `taken` is set to 0."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self.taken = 0

    def read(self, size: int) -> bytes:
        content = self._file.read(size)
        self.taken += len(content)
        if self.taken > MAX_PAGE:
            raise ValueError(f"expected pages of at most {MAX_PAGE:,} bytes, got more: a bomb?")
        return content


def plain_text(markup: str) -> str:
    """Return the prose of an article: one line a paragraph, and headings as `= = History = =`.

    References, formulas, tables, pictures and most templates are left out, as are the sections at
    the end that list sources; links and a few templates, such as quantities, become their text.

    Args:
        markup: the article as MediaWiki has it.
    """
    text = _COMMENT.sub("", markup)
    text = _NO_PROSE.sub("", _EMPTY_REFERENCE.sub("", text))
    text = _PLAIN_LINK.sub(_link, text)  # before templates, whose fields "|" would separate too
    text = _repeat(_TEMPLATE, _template, text)
    text = _repeat(_TABLE, lambda _: "", text)
    text = _repeat(_LINK, _link, _EXTERNAL.sub(r"\1", text))
    text = re.sub(r"<br\b[^<>]*>", " ", text, flags=re.IGNORECASE)
    text = re.sub(r"'{2,5}|__[A-Z]+__|\[\[|\]\]", "", _TAG.sub("", text))
    return "".join(f"{line}\n" for line in _prose(html.unescape(text).split("\n")))


def separate_words(text: str) -> str:
    """Separate words and punctuation by blanks, as in WikiText: `1 @,@ 000 well @-@ known`.

    Args:
        text: plain text; line ends stay.
    """
    marked = _INNER.sub(lambda match: f" @{match[0]}@ ", text)
    return "\n".join(" ".join(_WORD.findall(line)) for line in marked.split("\n"))


def _repeat(pattern: re.Pattern[str], replace: Callable[[re.Match[str]], str], text: str) -> str:
    count = 1
    while count:
        text, count = pattern.subn(replace, text)
    return text


def _template(match: re.Match[str]) -> str:
    name, *fields = (field.strip() for field in match[1].split("|"))
    name = name.lower()
    values = [field for field in fields if "=" not in field]
    if name in _FIXED:
        return _FIXED[name]
    if not values:
        return ""
    if name in ("convert", "cvt"):
        return " ".join(values[: 4 if values[1:2] and values[1] in _RANGES else 2])
    if name in _FIRST:
        return values[0]
    if name in _LAST or name.startswith("lang-"):
        return values[-1]
    return f"As of {' '.join(values)}" if name == "as of" else ""


def _link(match: re.Match[str]) -> str:
    target, *labels = match[1].split("|")
    if _NO_TEXT.match(target):
        return ""
    return labels[-1] if labels else target.lstrip(": ")


def _prose(lines: list[str]) -> Iterator[str]:
    waiting: list[tuple[int, str]] = []  # headings under which no text came yet
    dropped = 7  # the level of the section that is left out; 7: none
    for line in lines:
        heading = _HEADING.match(line.strip())
        if heading:
            level, title = len(heading[1]), _tidy(heading[2])
            if level <= dropped:
                dropped = level if title.lower() in _DROPPED_SECTIONS else 7
            waiting = [one for one in waiting if one[0] < level]
            waiting.append((level, title))
            continue
        text = _tidy(line.lstrip("*#:; "))
        # A row or cell that was left of a broken table, a rule, or nothing with a letter in it.
        if dropped < 7 or text.startswith(("|", "!", "{|")) or not any(map(str.isalpha, text)):
            continue
        for level, title in waiting:
            yield f"{'= ' * level}{title}{' =' * level}"
        waiting = []
        yield text


def _tidy(line: str) -> str:
    """Without what removed markup left: `A ( ; born 1809 ) , was` becomes `A (born 1809), was`."""
    line = re.sub(r"\(\s*[,;:]\s*", "(", " ".join(line.split()))
    line = re.sub(r"\s*\(\s*\)", "", line)
    return re.sub(r"(?<=\() | (?=[,;:.)](?:\s|$))", "", line)
