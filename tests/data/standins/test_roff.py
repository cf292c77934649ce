"""Manual pages as text: what of the source is read, and what is not."""

import pytest

from flowformer.data.standins.roff import read_roff


def body(*lines: str) -> str:
    return read_roff("\n".join([".TH x 1", ".SH A", *lines]))["A"]


def test_sections_are_in_their_order_without_the_title():
    source = (
        '.\\" by some\n.TH open 2\nlost\n.SH NAME\nopen\n.SH "SEE ALSO"\n.BR a (2)\n.SH\nB C\nx\n'
    )
    assert read_roff(source) == {"NAME": "open\n", "SEE ALSO": "a(2)\n", "B C": "x\n"}


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("plain  text", "plain text"),
        (".B bold words", "bold words"),
        ('.BR open "(2), " close (2),', "open(2), close(2),"),
        ('.I "in ""quotes"""', 'in "quotes"'),
        (".BR a\\ b c", "a bc"),
        (".IP (1) 4", "(1) 4"),
        ("\\fBbold\\fP and \\f[I]slanted\\fR, \\s-1small\\s0", "bold and slanted, small"),
        ("a\\-b \\(aqc\\(aq \\[em] d\\e0 \\(xxe", "a-b 'c' - d\\0 e"),
        ("x\\h'2n'y\\c \\&.z\\|\\~w \\*(lqs", "xy .z w s"),
        ('seen \\" a comment', "seen"),
        (".in +4n", ""),
        ("'\\\" t", ""),
        (".", ""),
    ],
)
def test_a_line_is_its_text(line, expected):
    assert body(line) == (f"{expected}\n" if expected else "")


def test_tables_lose_their_format_and_definitions_are_skipped():
    table = [".TS", "allbox;", "lb lb", "l l.", "one\ttwo", "T{", "long", "T}\tthree", ".TE", "end"]
    assert body(*table) == "one two\nlong\nthree\nend\n"
    assert body(".de X", ".B hidden", "..", "seen") == "seen\n"


def test_a_line_that_goes_on_is_one():
    assert body('.BI "f(int " a \\', '", int " b );') == "f(int a, int b);\n"
