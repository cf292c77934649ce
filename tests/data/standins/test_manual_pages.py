"""Pairs of manual pages: links, what gives them away, the parts, and damaged pages."""

import gzip
import random
from collections import Counter
from pathlib import Path

import pytest

from flowformer.data.sequences.records import SequenceData
from flowformer.data.standins import manual_pages as module
from flowformer.data.standins.manual_pages import load_manual_pages, read_manual_pages

PAGES = 90
CLUSTER = 6  # pages that link to one another


def page(name: str, section: str, text: str, links: str = "") -> str:
    see = f".SH SEE ALSO\n{links}\n" if links else ""
    return f".TH {name} {section}\n.SH NAME\n{name} \\- a page\n.SH DESCRIPTION\n{text}\n{see}"


def write(folder: Path, file: str, source: str) -> Path:
    path = folder / f"man{file.rpartition('.')[2][0]}" / f"{file}.gz"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(source.encode()))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Clusters of pages; each says its number in brackets, and refers to the others of its own."""
    for i in range(PAGES):
        others = [j for j in range(PAGES) if j // CLUSTER == i // CLUSTER and j != i]
        references = "\n".join(f".BR page{j:02} (2)," for j in others)
        named = " ".join(f"\\fBpage{j:02}\\fP() and Page{j:02};" for j in others)
        text = f"I am [{i}].\n{named}\n{references}"
        write(tmp_path, f"page{i:02}.2", page(f"page{i:02}", "2", text, references))
    return tmp_path


def number(text: str) -> int:
    return int(text.partition("[")[2].partition("]")[0])


def pairs(data: SequenceData, part: str) -> list[tuple[str, str, int]]:
    split = data.splits[part]
    assert split.others is not None
    return [
        (
            bytes((split.inputs[i] - 1).tolist()).decode(),
            bytes((split.others[i] - 1).tolist()).decode(),
            int(split.labels[i]),
        )
        for i in range(len(split))
    ]


def test_a_pair_is_linked_where_one_page_has_the_other_under_see_also(folder: Path):
    data = load_manual_pages(folder)
    for part in data.splits:
        for first, second, label in pairs(data, part):
            assert label == (number(first) // CLUSTER == number(second) // CLUSTER)


def test_nothing_left_in_the_texts_names_the_other_page(folder: Path):
    data = load_manual_pages(folder)
    some = pairs(data, "train")
    for first, second, _ in [*some, *((b, a, label) for a, b, label in some)]:
        assert f"page{number(second):02}" not in first.lower()
        assert "(2)" not in first
    # but for the page's own name, and names of others that say nothing of this one
    assert all(f"page{number(first):02}" in first for first, _, _ in some)
    assert any("page" in first.partition("]")[2] for first, _, _ in some)


def test_no_page_is_in_two_parts(folder: Path):
    data = load_manual_pages(folder)
    seen = [
        {number(text) for first, second, _ in pairs(data, part) for text in (first, second)}
        for part in data.splits
    ]
    assert list(data.splits) == ["train", "validation", "test"]
    assert all(seen)
    assert len(set.union(*seen)) == sum(map(len, seen)) == PAGES


def test_each_page_is_as_often_in_linked_pairs_as_in_others(folder: Path):
    data = load_manual_pages(folder)
    for part in ("train", "test"):
        for place in (0, 1):
            counts = [
                Counter(number(case[:2][place]) for case in pairs(data, part) if case[2] == label)
                for label in (0, 1)
            ]
            assert counts[0] == counts[1]
    unlinked = [frozenset(map(number, case[:2])) for case in pairs(data, "train") if not case[2]]
    assert len(set(unlinked)) == len(unlinked)


def test_the_seed_decides(folder: Path):
    one, same, other = (load_manual_pages(folder, seed=seed) for seed in (1, 1, 2))
    assert pairs(one, "test") == pairs(same, "test")
    assert pairs(one, "test") != pairs(other, "test")


def test_the_source_says_the_counts(folder: Path):
    links = PAGES * (CLUSTER - 1) // 2
    source = load_manual_pages(folder, max_length=20).source
    assert f"among {PAGES} manual pages ({folder.name}): {links} links of {PAGES} pages" in source
    assert "not Long Range Arena's AAN. Of each text the first 20 bytes; longer were " in source


def test_a_page_of_other_names_is_one_page(tmp_path: Path):
    write(tmp_path, "open.2", page("open, creat", "2", "creat() opens", ".BR fopen (3)"))
    write(tmp_path, "creat.2", ".so man2/open.2\n")
    (tmp_path / "man2" / "openat.2.gz").symlink_to("creat.2.gz")
    text = "like openat(), not reopen or open-by-name; see\n.BR openat (2)"
    write(
        tmp_path, "fopen.3", page("fopen", "3", text, ".BR creat (2),\n.BR fopen (3), nowhere (9)")
    )
    pages = read_manual_pages([tmp_path])
    assert set(pages.texts) == {"open.2", "fopen.3"}
    assert pages.names["open.2"] == {"open", "creat", "openat"}
    assert pages.links == [("fopen.3", "open.2")]
    assert pages.texts["open.2"] == "open, creat - a page creat() opens"
    assert module._without(pages, "fopen.3", "open.2").decode() == (
        "fopen - a page like , not reopen or open-by-name; see"
    )


def test_folders_of_translations_are_not_read(tmp_path: Path):
    write(tmp_path / "usr/share/man", "open.2", page("open", "2", "to open"))
    write(tmp_path / "usr/share/man/de", "open.2", page("open", "2", "öffnen"))
    assert read_manual_pages([tmp_path]).texts == {"open.2": "open - a page to open"}


def test_an_older_encoding_is_read(tmp_path: Path):
    path = write(tmp_path, "open.2", "")
    path.write_bytes(gzip.compress(page("open", "2", "größer").encode("latin-1")))
    assert read_manual_pages([tmp_path]).texts["open.2"].endswith("größer")


def test_where_all_pages_are_linked_there_are_no_pairs():
    linked = [("a", "b"), ("a", "c"), ("b", "c")]
    assert module._unlinked(linked, set(linked), random.Random(0)) == []


def test_what_is_missing_or_damaged_is_named(tmp_path: Path):
    with pytest.raises(
        FileNotFoundError, match=r"expected manual pages such as man2/open\.2\.gz in"
    ):
        load_manual_pages(tmp_path)
    path = write(tmp_path, "open.2", page("open", "2", "to open"))
    with pytest.raises(ValueError, match="expected at least one case in train, got none"):
        load_manual_pages(tmp_path)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"open\.2\.gz is a damaged gzip file"):
        load_manual_pages(tmp_path)


def test_debian_pages_come_from_its_two_packages(folder: Path, monkeypatch: pytest.MonkeyPatch):
    def fetch(package: str, members: list[str], *, cache: Path | None) -> Path:
        assert (members, cache) == (["usr/share/man/*"], folder.parent)
        asked.append(package)
        return folder

    asked: list[str] = []
    monkeypatch.setattr(module, "fetch_debian_data", fetch)
    assert len(load_manual_pages(cache=folder.parent).splits["train"]) > 0
    assert asked == ["manpages", "manpages-dev"]

    def refuse(*_: object, **__: object) -> Path:
        raise FileNotFoundError("there is no apt-get")

    monkeypatch.setattr(module, "fetch_debian_data", refuse)
    with pytest.raises(FileNotFoundError, match="no apt-get -- or give a folder of manual pages"):
        load_manual_pages()
