"""Pairs of manual pages, one of which may refer to the other: a Retrieval of Debian's packages."""

import random
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from flowformer.data.files.compression import read_bytes
from flowformer.data.sequences.byte_texts import Case, from_texts
from flowformer.data.sequences.records import SequenceData
from flowformer.data.sequences.retrieval import RETRIEVAL_BYTES
from flowformer.data.standins.debian import fetch_debian_data
from flowformer.data.standins.roff import read_roff

PACKAGES = ("manpages", "manpages-dev")
SHARES = {"test": 0.2, "validation": 0.1}  # of the pages; the others are to train on

_CLASSES = ("unrelated", "linked")
_LINKS = "SEE ALSO"
_REFERENCE = re.compile(r"([\w.+:@-]+)\((\d\w*)\)")  # open(2)
_REDIRECT = re.compile(r"\.so +(\S+)", re.MULTILINE)
_GROUP_PAGES = 20
_REPAIRS = 100  # rounds; five times what Debian's pages take

Pair = tuple[str, str]


class ManualPages(NamedTuple):
    """Pages and the links between them.

    Attributes:
        texts: of each page, such as open.2, without its links and references.
        names: what each is called, in lower case, without a section: open, openat, creat.
        links: pairs of pages, in the order of their names, one of which has the other under SEE
            ALSO.
    """

    texts: dict[str, str]
    names: dict[str, set[str]]
    links: list[Pair]


def fetch_debian_pages(cache: Path | None = None) -> list[Path]:
    """Finds or downloads the pages of Debian's packages manpages and manpages-dev.

    Raises:
        FileNotFoundError: they are not to be had; the message says how to give a folder.
    """
    try:
        return [fetch_debian_data(name, ["usr/share/man/*"], cache=cache) for name in PACKAGES]
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{error} -- or give a folder of manual pages, such as /usr/share/man or an unpacked "
            f"package: dpkg-deb --extract {PACKAGES[0]}_VERSION_all.deb FOLDER"
        ) from error


def load_manual_pages(
    folder: Path | None = None,
    *,
    max_length: int | None = RETRIEVAL_BYTES,
    seed: int = 0,
    cache: Path | None = None,
) -> SequenceData:
    """Pairs of manual pages; the label says whether one has the other under SEE ALSO.

    What gives a link away is removed: the section SEE ALSO, every reference such as open(2), and
    from each page of a pair the names of the other. Pages that are linked are kept together and
    dealt out to train, validation and test: no page is in two of them, and links between two parts
    are left out. A part has as many unlinked pairs as linked ones, and each page as often in the
    ones as in the others, as first and as second: a page alone says nothing of the label.

    Args:
        folder: of pages, `man1/NAME.1` or `man1/NAME.1.gz` and so on, in it or in a folder `man`
            below; None for those of Debian.
        max_length: bytes kept of a page; None for all of them.
        seed: of the parts and the pairs.
        cache: where Debian's packages are kept; by default `data_cache()`.

    Raises:
        FileNotFoundError: there are no pages.
        ValueError: a page is damaged, or a part has no pairs.
    """
    folders = fetch_debian_pages(cache) if folder is None else [folder]
    pages = read_manual_pages(folders)
    rng = random.Random(seed)
    part_of = _deal(_group(pages.links, rng), rng)
    linked = set(pages.links)
    parts: dict[str, list[Case]] = {}
    for part in ("train", *reversed(SHARES)):
        inside = [pair for pair in pages.links if part_of[pair[0]] == part_of[pair[1]] == part]
        parts[part] = list(_balanced(inside, linked, pages, rng))
    pairs = sum(len(cases) for cases in parts.values())
    names = ", ".join(folder.resolve().name for folder in folders)
    source = (
        f"SEE ALSO among {len(pages.texts):,} manual pages ({names}): "
        f"{len(linked):,} links of {len(part_of):,} pages, {pairs // 2:,} of them between pages of "
        "one part, and as many pairs without one; not Long Range Arena's AAN"
    )
    return from_texts("manual-pages", source, _CLASSES, parts, max_length=max_length)


def read_manual_pages(folders: list[Path]) -> ManualPages:
    """Reads pages and their links. A page of another name is the same: a link or `.so`.

    Raises:
        FileNotFoundError: there are none.
        ValueError: a file is damaged; the message names it.
    """
    sources, redirects = _read_files(folders)
    known = {name: name for name in sources}
    for name in redirects:
        if (target := _follow(name, redirects)) in sources:
            known[name] = target
    sections = {name: read_roff(source) for name, source in sources.items()}
    links = set()
    for name, of in sections.items():
        for title, section in _REFERENCE.findall(of.pop(_LINKS, "")):
            target = known.get(f"{title}.{section}", name)
            if target != name:
                links.add((min(name, target), max(name, target)))
    names: dict[str, set[str]] = defaultdict(set)
    for name, target in known.items():
        names[target].add(name.rpartition(".")[0].lower())
    for name, of in sections.items():
        titles = of.get("NAME", "").partition(" - ")[0].lower().split(",")
        names[name].update(title for title in map(str.strip, titles) if title and " " not in title)
    texts = {name: " ".join(" ".join(of.values()).split()) for name, of in sections.items()}
    texts = {name: _REFERENCE.sub("", text) for name, text in texts.items()}
    return ManualPages(texts, dict(names), sorted(links))


def _read_files(folders: list[Path]) -> tuple[dict[str, str], dict[str, str]]:
    """The sources of pages by name, and the names that stand for others."""
    sources, redirects = {}, {}
    for folder in folders:
        for path in sorted(folder.rglob("man[1-9]*/*.*")):
            # man/de/man1 and the like are translations.
            if path.parent.parent != folder and path.parent.parent.name != "man":
                continue
            name = _page_name(path.name)
            if path.is_symlink():
                redirects[name] = _page_name(path.readlink().name)
                continue
            source = _read_source(path)
            redirect = _REDIRECT.search(source)
            if redirect and ".SH" not in source:
                redirects[name] = _page_name(redirect[1].rpartition("/")[2])
            else:
                sources[name] = source
    if not sources:
        where = " or ".join(map(str, folders))
        raise FileNotFoundError(f"expected manual pages such as man2/open.2.gz in {where}")
    return sources, redirects


def _page_name(file: str) -> str:
    return file.removesuffix(".gz")


def _read_source(path: Path) -> str:
    content = read_bytes(path)
    try:
        return content.decode()
    except UnicodeDecodeError:  # the encoding of older pages
        return content.decode("latin-1")


def _follow(name: str, redirects: Mapping[str, str]) -> str:
    seen: set[str] = set()
    while name in redirects and name not in seen:
        seen.add(name)
        name = redirects[name]
    return name


def _group(links: list[Pair], rng: random.Random) -> list[list[str]]:
    """Joins linked pages to groups of a few, those first that have most of their links in common.

    So most links lie inside a group: of Debian's about 80 % stay inside a part, and with pages
    dealt out one by one 53 %.
    """
    near: dict[str, set[str]] = defaultdict(set)
    for first, second in links:
        near[first].add(second)
        near[second].add(first)

    def in_common(pair: Pair) -> float:
        first, second = (near[name] for name in pair)
        return len(first & second) / len(first | second)

    order = list(links)
    rng.shuffle(order)
    group_of = {name: [name] for name in sorted(near)}
    for first, second in sorted(order, key=in_common, reverse=True):
        one, other = group_of[first], group_of[second]
        if one is not other and len(one) + len(other) <= _GROUP_PAGES:
            one += other
            group_of.update(dict.fromkeys(other, one))
    return [group for name, group in group_of.items() if group[0] == name]


def _deal(groups: list[list[str]], rng: random.Random) -> dict[str, str]:
    """The part of each page: whole groups, until a part has its share."""
    total = sum(len(group) for group in groups)
    part_of: dict[str, str] = {}
    rng.shuffle(groups)
    waiting = iter(groups)
    end = 0.0
    for part, share in SHARES.items():
        end += share * total
        while len(part_of) < end:
            part_of.update(dict.fromkeys(next(waiting), part))
    for group in waiting:
        part_of.update(dict.fromkeys(group, "train"))
    return part_of


def _balanced(
    links: list[Pair], linked: set[Pair], pages: ManualPages, rng: random.Random
) -> Iterator[Case]:
    """Linked and unlinked pairs, shuffled."""
    pairs = [(one, other) if rng.random() < 0.5 else (other, one) for one, other in links]
    unlinked = _unlinked(pairs, linked, rng)
    # Where too few pages leave too few pairs without a link, some with one go too.
    linked_too = rng.sample(pairs, len(unlinked))
    cases = [(1, *pair) for pair in linked_too] + [(0, *pair) for pair in unlinked]
    rng.shuffle(cases)
    for label, first, second in cases:
        yield label, _without(pages, first, second), _without(pages, second, first)


def _unlinked(pairs: list[Pair], linked: set[Pair], rng: random.Random) -> list[Pair]:
    """Deals the second pages of the pairs out anew, until no two are linked, one, or a repetition.

    Each page stays as often first and as often second as it was.
    """
    firsts, seconds = [first for first, _ in pairs], [second for _, second in pairs]
    rng.shuffle(seconds)
    for _ in range(_REPAIRS):
        unfit = _unfit(list(zip(firsts, seconds, strict=True)), linked)
        if not unfit:
            break
        for index in unfit:
            other = rng.randrange(len(seconds))
            seconds[index], seconds[other] = seconds[other], seconds[index]
    dealt = list(zip(firsts, seconds, strict=True))
    left = set(_unfit(dealt, linked))
    return [pair for index, pair in enumerate(dealt) if index not in left]


def _unfit(pairs: list[Pair], linked: set[Pair]) -> list[int]:
    seen: set[Pair] = set()
    unfit = []
    for index, pair in enumerate(pairs):
        ordered = (min(pair), max(pair))
        if pair[0] == pair[1] or ordered in linked or ordered in seen:
            unfit.append(index)
        seen.add(ordered)
    return unfit


def _without(pages: ManualPages, page: str, other: str) -> bytes:
    """The text of a page without the names of another, also where they are called: open()."""
    text = pages.texts[page]
    lowered = text.lower()
    # The longest first: open would leave the rest of open-by-handle. Most pages have none of them.
    names = sorted((name for name in pages.names[other] if name in lowered), key=len, reverse=True)
    if names:
        pattern = rf"(?<![\w-])(?:{'|'.join(map(re.escape, names))})(?![\w-])(?:\(\))?"
        text = re.sub(pattern, "", text, flags=re.IGNORECASE)
    return " ".join(text.split()).encode()
