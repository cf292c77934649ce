"""The texts that language models can be trained on, by name."""

import difflib
from dataclasses import replace
from pathlib import Path

from flowformer.data.language.files import TextFiles
from flowformer.data.language.wikitext import WikiText
from flowformer.data.standins.corpora import Shakespeare, WikiSmall

# Each is a frozen dataclass with name, description, source and folder, and is a `TextSource`:
# what `prepare_text` takes.
Corpus = WikiText | WikiSmall | Shakespeare | TextFiles

_ARTICLES = "good and featured articles of Wikipedia"

CORPORA: dict[str, Corpus] = {
    corpus.name: corpus
    for corpus in (
        WikiText(
            name="wikitext-103",
            description=f"{_ARTICLES}, 103 million words, rare ones <unk>: the paper's",
        ),
        WikiText(name="wikitext-103-raw", description=f"{_ARTICLES}, as they were"),
        WikiText(name="wikitext-2", description=f"{_ARTICLES}, 2 million words, rare ones <unk>"),
        WikiText(name="wikitext-2-raw", description=f"{_ARTICLES}, 2 million words, as they were"),
        WikiSmall(
            name="wiki-small",
            description="106 articles of Wikipedia and 9,987 leads, words separated as in WikiText",
        ),
        WikiSmall(
            name="wiki-small-raw",
            description="106 articles of Wikipedia and 9,987 leads, as they were",
        ),
        Shakespeare(name="shakespeare", description="38 plays of Shakespeare"),
        TextFiles(),
    )
}


def load_corpus(name: str, *, folder: str | Path | None = None) -> Corpus:
    """Find a corpus by its name; nothing is read or downloaded yet.

    Args:
        name: In `CORPORA`.
        folder: Where its files are (WikiText, text), or are to be kept (those of packages).

    Raises:
        ValueError: No such corpus; the message lists the names.
    """
    if name not in CORPORA:
        near = difflib.get_close_matches(name, CORPORA, n=1)
        hint = f"do you mean {near[0]}? " if near else ""
        raise ValueError(f"unknown corpus {name!r}: {hint}choose from {', '.join(CORPORA)}")
    corpus = CORPORA[name]
    return corpus if folder is None else replace(corpus, folder=Path(folder))
