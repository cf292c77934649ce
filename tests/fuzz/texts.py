"""Readers of text, and valid files for them."""

from pathlib import Path

from tests.fuzz import seeds


def ts(folder: Path) -> object:
    from flowformer.data.series.ts_format import read_ts

    return read_ts(folder / "x.ts")


def sensors(folder: Path) -> object:
    from flowformer.data import data_set, read_series

    return data_set(read_series(folder / "x.csv"))


def listops(folder: Path) -> object:
    from flowformer.data.sequences.listops import read_listops

    return read_listops(folder)


def make_listops(folder: Path) -> None:
    for part in ("train", "val", "test"):
        (folder / f"basic_{part}.tsv").write_bytes(seeds.LISTOPS)


def aan(folder: Path) -> object:
    from flowformer.data.sequences.texts import read_aan

    return read_aan(folder)


def make_aan(folder: Path) -> None:
    for part in ("train", "eval", "test"):
        (folder / f"new_aan_pairs.{part}.tsv").write_bytes(seeds.AAN)


def reviews(folder: Path) -> object:
    from flowformer.data.sequences.texts import read_reviews

    return read_reviews(folder / "x.csv")


def cases(folder: Path) -> object:
    from flowformer.data.sequences.batches import read_cases

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
    from flowformer.data.language.corpora import WikiText

    corpus = WikiText(name="wikitext-2", description="", folder=folder)
    return list(corpus.documents("train"))


def texts(folder: Path) -> object:
    from flowformer.data.language.corpora import TextFiles

    return [list(TextFiles(folder=folder).documents(part)) for part in ("train", "test")]


def dump(name: str, folder: Path) -> object:
    from flowformer.data.standins.wikipedia import read_dump, separate_words

    return [separate_words(text) for _, text in read_dump(folder / name)]
