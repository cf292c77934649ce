"""Readers of text, and valid files for them."""

from pathlib import Path

from tests.fuzz import seeds
from tests.fuzz.target import put


def ts(folder: Path) -> object:
    from flowformer.data.series.ts_format import read_ts

    return read_ts(folder / "x.ts")


def listops(folder: Path) -> object:
    from flowformer.data.sequences.listops_files import read_listops

    return read_listops(folder)


def make_listops(folder: Path) -> None:
    for part in ("train", "val", "test"):
        (folder / f"basic_{part}.tsv").write_bytes(seeds.LISTOPS)


def aan(folder: Path) -> object:
    from flowformer.data.sequences.retrieval import read_aan

    return read_aan(folder)


def make_aan(folder: Path) -> None:
    for part in ("train", "eval", "test"):
        (folder / f"new_aan_pairs.{part}.tsv").write_bytes(seeds.AAN)


def reviews(folder: Path) -> object:
    from flowformer.data.sequences.reviews import read_reviews

    return read_reviews(folder / "x.csv")


def cases(folder: Path) -> object:
    from flowformer.data.sequences.cases import read_cases

    for vocabulary, paired in ((16, False), (257, True)):
        try:
            read_cases(
                folder / "x.txt",
                vocab_size=vocabulary,
                paired=paired,
                picture=None,
                max_length=1000,
            )
        except ValueError as error:
            if str(folder) not in str(error):
                raise
    return None


def wikitext(folder: Path) -> object:
    from flowformer.data.language.wikitext import WikiText

    corpus = WikiText(name="wikitext-2", description="", folder=folder)
    return list(corpus.documents("train"))


def texts(folder: Path) -> object:
    from flowformer.data.language.files import TextFiles

    return [list(TextFiles(folder=folder).documents(part)) for part in ("train", "test")]


def dump(name: str, folder: Path) -> object:
    from flowformer.data.standins.wikipedia import read_dump, separate_words

    return [separate_words(text) for _, text in read_dump(folder / name)]


def pages(folder: Path) -> object:
    from flowformer.data.standins.manual_pages import read_manual_pages

    return read_manual_pages([folder])


def make_pages(name: str, content: bytes, folder: Path) -> None:
    put("man2/close.2", seeds.ROFF)(folder)
    put(name, content)(folder)
