"""Manual pages as plain text: their words, without a typesetter."""

import re
from collections.abc import Iterator

# Macros whose arguments are text: joined by a space, or by none where two fonts take turns.
_SPACED = {"B", "I", "SB", "SM", "IP", "SY", "OP"}
_JOINED = {"BR", "RB", "BI", "IB", "IR", "RI"}
# Macros that begin what is no text, and what its last line looks like: definitions, the format of
# a table.
_SKIPPED = {
    "de": re.compile(r"\.\."),
    "ig": re.compile(r"\.\."),
    "TS": re.compile(r".*\.\s*$"),
}
_TABLE_CELL = re.compile(r"T[{}]\t?")
_MACRO = re.compile(r"[.'][ \t]*(\w*)[ \t]*(.*)")
_ARGUMENT = re.compile(r'"((?:[^"]|"")*)"?|(\S+)')
_ESCAPE = re.compile(
    r"""\\(?:
      ["\#].*                                 # a comment
    | [fFmMnkgVY*](?:\[[^]]*\]|\(..|.)        # fonts, colours, registers, strings
    | s[+-]?(?:\[[^]]*\]|\(..|'[^']*'|\d)     # sizes
    | [bCDhHlLNoRSvwxXZ]'[^']*'               # motions, drawings
    | (?:\((?P<two>..)|\[(?P<long>[^]]*)\])   # characters by name
    | (?P<one>.)
    )""",
    re.VERBOSE,
)
_CHARACTERS = {
    **{"aq": "'", "oq": "'", "cq": "'", "dq": '"', "lq": '"', "rq": '"', "ga": "`", "ha": "^"},
    **{"ti": "~", "rs": "\\", "hy": "-", "en": "-", "em": "-", "mi": "-", "pl": "+", "eq": "="},
    **{"bu": "*", "co": "(c)", "mu": "x", "->": "->", "<-": "<-", "<=": "<=", ">=": ">="},
    **{"-": "-", "e": "\\", "\\": "\\", ".": ".", "'": "'", "`": "`", " ": " ", "~": " ", "0": " "},
}


def read_roff(source: str) -> dict[str, str]:
    """Takes a manual page apart: the text of each section by its heading, in their order.

    Macros, fonts and comments leave the text, tables lose their layout; words, code and line ends
    stay. What stands before the first heading is left out: the title, which repeats the name.

    Args:
        source: of the page, with the macros of man(7).
    """
    sections: dict[str, str] = {}
    heading = None
    for macro, text in _read_lines(source):
        if macro == "SH":
            heading = text
            sections.setdefault(heading, "")
        elif heading is not None and text:
            sections[heading] += f"{text}\n"
    return sections


def _read_lines(source: str) -> Iterator[tuple[str, str]]:
    """The macro of each line, if any, and its text."""
    last: re.Pattern[str] | None = None  # of the lines to skip
    awaited = ""  # a macro whose text stands in the next line
    for line in source.replace("\\\n", "").split("\n"):
        if last is not None:
            last = None if last.match(line) else last
            continue
        macro, text = _read_line(line)
        last = _SKIPPED.get(macro)
        if macro in ("SH", "SS") and not text:
            awaited = macro
        elif text:
            yield awaited or macro, text
            awaited = ""


def _read_line(line: str) -> tuple[str, str]:
    request = _MACRO.match(line)
    if request is None:
        return "", _plain(_TABLE_CELL.sub("", line))
    macro, rest = request.groups()
    if macro in ("SH", "SS"):
        return macro, _plain(" ".join(_arguments(rest)))
    if macro in _SPACED | _JOINED:
        return macro, _plain(("" if macro in _JOINED else " ").join(_arguments(rest)))
    return macro, ""


def _arguments(text: str) -> list[str]:
    # A blank that is escaped ends no argument.
    found = _ARGUMENT.findall(text.replace("\\ ", "\\~"))
    return [bare or quoted.replace('""', '"') for quoted, bare in found]


def _plain(text: str) -> str:
    def character(match: re.Match[str]) -> str:
        name = match["two"] or match["long"] or match["one"] or ""
        return _CHARACTERS.get(name, "")

    return " ".join(_ESCAPE.sub(character, text).split())
