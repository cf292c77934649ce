"""Wikipedia's markup becomes prose, and prose words with blanks between them."""

from pathlib import Path

import pytest

from flowformer.data.standins.wikipedia import plain_text, read_dump, separate_words


@pytest.mark.parametrize(
    ("markup", "expected"),
    [
        ("'''Bold''' and ''italic''", "Bold and italic"),
        ("a [[link]] to [[Some page|a page]]", "a link to a page"),
        ("[[File:A.jpg|thumb|A [[link]] here]]text", "text"),
        ("[[Category:Letters]]text[[fr:A]]", "text"),
        ("see [http://example.org the site] now", "see the site now"),
        ("fact<ref>{{cite|a}} [[b]]</ref>, more<ref name=x />.", "fact, more."),
        ("<!-- hidden -->seen<br />twice", "seen twice"),
        ("<math>a^{b}</math>x<sub>2</sub>", "x2"),
        ("{{Infobox|a={{b|{{c}}}}\n|d=e}}text", "text"),
        ("{{quote|said [[Person|a person]]}}", "said a person"),
        ("{{convert|5|to|10|km|mi}} of {{nowrap|two words}}", "5 to 10 km of two words"),
        ("{{convert|5|km|mi|abbr=on}} away", "5 km away"),
        (
            "{{lang|fr|chaise}} and {{lang-de|Stuhl}}, {{as of|2011}}",
            "chaise and Stuhl, As of 2011",
        ),
        ("{| class=x\n|-\n| cell {{t}}\n{| inner\n|}\n|}\ntext", "text"),
        ("A ({{IPA|eɪ}}) and ({{x}}; plural ''As'') , here", "A and (plural As), here"),
        ("* one\n** two\n: three", "one\ntwo\nthree"),
        ("a &amp; b &mdash; c&nbsp;d", "a & b — c d"),
        ("__NOTOC__text\n----", "text"),
    ],
)
def test_markup_becomes_prose(markup: str, expected: str) -> None:
    assert plain_text(markup) == f"{expected}\n"


def test_headings_stand_above_their_text_and_lists_of_sources_are_left_out() -> None:
    markup = (
        "Start.\n\n== History ==\n=== Early ===\nOld.\n== Empty ==\n{{chart}}\n"
        "== See also ==\n* [[That]]\n=== More ===\nlinks\n== Use ==\nNew.\n"
        "== References ==\n{{reflist}}"
    )
    assert plain_text(markup) == (
        "Start.\n= = History = =\n= = = Early = = =\nOld.\n= = Use = =\nNew.\n"
    )


def test_broken_markup_leaves_no_brackets() -> None:
    text = plain_text("a [[b c\n{{d|e\n| f\n[[g|h]] i]]")
    assert "[[" not in text
    assert "]]" not in text
    assert "h i" in text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It cost 1,000.50 dollars.", "It cost 1 @,@ 000 @.@ 50 dollars ."),
        ("a well-known (old) fact", "a well @-@ known ( old ) fact"),
        ("The U.S. and J. Smith's dog", "The U.S. and J . Smith 's dog"),
        ('He said "no"...', 'He said " no " ...'),
        ("café, naïve — 東京!", "café , naïve — 東京 !"),
        ("= = History = =\n two  lines\n", "= = History = =\ntwo lines\n"),
    ],
)
def test_words_are_separated_as_in_wikitext(text: str, expected: str) -> None:
    assert separate_words(text) == expected


def test_separating_words_twice_changes_nothing() -> None:
    once = separate_words("The 1,000 well-known U.S. towns' (and 2.5 more)...\n")
    assert separate_words(once) == once


def test_a_plain_dump_reads_as_a_compressed_one(tmp_path: Path) -> None:
    page = "<title>A</title><ns>0</ns><revision><text>b</text></revision>"
    (tmp_path / "dump.xml").write_text(f"<mediawiki><page>{page}</page></mediawiki>")
    assert list(read_dump(tmp_path / "dump.xml")) == [("A", "b\n")]
