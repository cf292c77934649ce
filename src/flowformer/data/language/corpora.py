"""The texts that language models can be trained on, by name: WikiText, packages', one's own."""

import codecs
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from flowformer.data.files import (
    PARTS,
    digest_files,
    files_below,
    find_parts,
    read_text,
    split_names,
    subfolders,
    warn_of_rest,
)
from flowformer.data.standins import Shakespeare, WikiSmall
from flowformer.machine import library
from flowformer.names import choose

_SUFFIXES = {".txt", ".text", ".md", ".markdown", ".rst"}
_EXPECTED = "text, in files ending in .txt, .md or .rst or without a suffix"
_LOOKED_AT = 4096  # bytes of a file without a suffix, to tell text by
# With fewer files a part would be one or two of them: each file is cut instead.
_FEWEST_FILES = 20
_HELD_OUT = 0.05


@dataclass(frozen=True, kw_only=True)
class TextFiles:
    """A text file, or a folder of them (.txt, .md, .rst, or without a suffix), in UTF-8.

    The parts are, by what there is:

    - a folder with `train.txt`: that one, `validation.txt` (or valid, val, dev) and `test.txt`;
    - a folder with folders of these names: a file in one of them, or below, is a document;
    - a folder of 20 files and more, below it included: 5 % of the files for validation and 5 % for
      test, drawn by a digest of their paths. A file is a document;
    - fewer files, or one: 90 % of each to train on, then 5 % and 5 %, cut at line ends; between
      words where no line ends there, or between characters where no word does.

    Hidden files and folders are no data; how many others were passed over is said.

    Attributes:
        name: in the table of corpora.
        description: one line.
        source: where it is from.
        folder: the file or the folder.
    """

    name: str = "text"
    description: str = "any text file, or a folder of .txt and .md files"
    source: str = "--folder FILE-OR-FOLDER"
    folder: Path | None = None

    def documents(self, part: str) -> Iterator[str]:
        """Return the documents of a part."""
        root, files = self._files()
        parts = {} if root.is_file() else _parts(root)
        names = [file.relative_to(root).as_posix() for file in files]
        if parts:
            yield from (read_text(file) for file in files if parts[part] in (file, *file.parents))
        elif len(files) >= _FEWEST_FILES:
            yield from (read_text(root / name) for name in split_names(names)[part])
        else:
            yield from (_cut(read_text(file), part) for file in files)

    def identity(self) -> dict[str, Any]:
        """Number, names and content of the files."""
        root, files = self._files()
        base = root.parent if root.is_file() else root
        names = [file.relative_to(base) for file in files]
        return {"files": len(files), "sha256": digest_files(files, names)}

    def require_there(self) -> None:
        """Refuse a file or folder that is not there, and a folder without a text.

        Raises:
            ValueError: there is no path.
            FileNotFoundError: there is no such file or folder, or no text in it.
        """
        root = self._root()
        if root.is_dir() and not any(map(_is_text, files_below(root))):
            raise FileNotFoundError(f"expected {_EXPECTED}, in {root}")

    def _root(self) -> Path:
        if self.folder is None:
            raise ValueError(
                "the corpus text is files of your own: give one, or a folder (--folder)"
            )
        root = Path(self.folder)
        if not (root.is_file() or root.is_dir()):
            raise FileNotFoundError(f"expected a text file or a folder of them, got {root}")
        return root

    def _files(self) -> tuple[Path, list[Path]]:
        root = self._root()
        if root.is_file():
            return root, [root]
        every = sorted(files_below(root))
        files, expected = [file for file in every if _is_text(file)], _EXPECTED
        if parts := list(_parts(root).values()):
            files = [file for part in parts for file in files if part in (file, *file.parents)]
            expected = f"{expected}, in {', '.join(part.name for part in parts)}"
        if not files:
            raise FileNotFoundError(f"expected {expected}, in {root}")
        warn_of_rest(root, set(every).difference(files), expected=expected)
        return root, files


def _parts(root: Path) -> dict[str, Path]:
    """Return the file `train.txt` or the folder `train`, and those beside it."""
    found = find_parts(path for path in root.glob("*.txt") if path.is_file())
    if "train" not in found:
        found = find_parts(subfolders(root))
        # One folder of that name is no sign: it may hold texts about trains.
        if "train" not in found or len(found) == 1:
            return {}
    train = found["train"]
    for part, names in PARTS.items():
        if part not in found:
            raise FileNotFoundError(f"expected {names[0]}{train.suffix} beside {train}")
    return {part: found[part] for part in PARTS}


def _is_text(file: Path) -> bool:
    if file.suffix:
        return file.suffix.lower() in _SUFFIXES
    if not file.is_file():  # a pipe, which nobody may write to, or a link that leads nowhere
        return False
    with file.open("rb") as opened:
        start = opened.read(_LOOKED_AT)
    try:
        # A character may be cut at the end of what was looked at.
        codecs.getincrementaldecoder("utf-8")().decode(start)
    except UnicodeDecodeError:
        return False
    return b"\0" not in start


def _cut(text: str, part: str) -> str:
    end = len(text.rstrip())
    places = [int((1 - share) * len(text)) for share in (2 * _HELD_OUT, _HELD_OUT)]
    first = _boundary(text, places[0], places[1])
    second = _boundary(text, max(places[1], first), end)
    return {"train": text[:first], "validation": text[first:second], "test": text[second:]}[part]


def _boundary(text: str, start: int, end: int) -> int:
    """Return where to cut: behind a line end, else white space, else at the first character."""
    line = text.find("\n", start, end) + 1
    if line:
        return line
    space = re.search(r"\s", text[start:end])
    return start + space.end() if space else start


_HUB = "Salesforce/wikitext"
_FILE_PARTS = {"train": "train", "validation": "valid", "test": "test"}
_TITLE = re.compile(r" = [^=].* = \n")


@dataclass(frozen=True, kw_only=True)
class WikiText:
    """Good and featured articles of Wikipedia (Merity et al. 2017, arXiv:1609.07843).

    The raw form has the text as it was; the other has words and punctuation separated and rare
    words written as <unk>, with which the paper's vocabulary of WikiText-103 has 267,735 words and
    its perplexity is counted.

    Documents are articles. Together they are the file, line for line.

    Attributes:
        name: in the table of corpora: wikitext-2 or wikitext-103, with -raw or without.
        description: one line.
        source: where it is from.
        folder: with `wiki.train.tokens`, `wiki.valid.tokens` and `wiki.test.tokens` (or `.raw`),
            or with a folder of the corpus's name that has them; None to use `datasets`.
    """

    name: str
    description: str
    source: str = f"{_HUB} through datasets, or --folder with wiki.train.tokens (.raw)"
    folder: Path | None = None

    @property
    def raw(self) -> bool:
        """Whether it is the raw form."""
        return self.name.endswith("-raw")

    def documents(self, part: str) -> Iterator[str]:
        """Return the articles of a part."""
        if self.folder is None:
            yield from _articles(self._hub_lines(part))
            return
        # Lines end with "\n" and nothing else: the text has other characters that Python splits at.
        path = self._file(part)
        with path.open(encoding="utf-8", newline="\n") as lines:
            try:
                yield from _articles(lines)
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"expected UTF-8 in {path}: {error}; of a text in Latin-1, "
                    "iconv -f latin1 -t utf-8 writes one"
                ) from error

    def identity(self) -> dict[str, Any]:
        """Return the files, or the name that `datasets` knows it by."""
        if self.folder is None:
            return {"hub": _HUB, "configuration": f"{self.name}-v1"}
        files = [self._file(part) for part in _FILE_PARTS]
        return {"sha256": digest_files(files, [Path(file.name) for file in files])}

    def require_there(self) -> None:
        """Look for the files in the folder, where one is given; FileNotFoundError names one."""
        if self.folder is not None:
            for part in _FILE_PARTS:
                self._file(part)

    def _file(self, part: str) -> Path:
        root = Path(self.folder or ".")
        name = f"wiki.{_FILE_PARTS[part]}.{'raw' if self.raw else 'tokens'}"
        for place in (root, root / self.name):
            if (place / name).is_file():
                return place / name
        raise FileNotFoundError(
            f"expected {name} in {root} or {root / self.name}, as {self.name} is distributed"
        )

    def _hub_lines(self, part: str) -> Iterator[str]:
        need, instead = f"to download {self.name}", ", or give a folder with its files"
        datasets = library("datasets", need, extra="language", instead=instead)
        try:
            rows: Any = datasets.load_dataset(_HUB, f"{self.name}-v1", split=part)
        except (OSError, ValueError) as error:
            raise FileNotFoundError(
                f"cannot load {self.name} through datasets: {error} -- Without a network, give a "
                "folder with wiki.train.tokens, wiki.valid.tokens and wiki.test.tokens (.raw for "
                "the raw form)"
            ) from error
        for row in rows:
            # An empty line of the files is an empty text there, without its line end.
            text = row["text"]
            yield text if text.endswith("\n") else text + "\n"


def _articles(lines: Iterable[str]) -> Iterator[str]:
    """Cut before each title, which stands between empty lines; the one before it is its own."""
    article: list[str] = []
    for line in lines:
        # The title is known by the empty line behind it, so article[-2] is looked at one late.
        if not line.strip() and len(article) > 2 and _starts_article(article[-2:]):
            yield "".join(article[:-2])
            article = article[-2:]
        article.append(line)
    if article:
        yield "".join(article)


def _starts_article(lines: list[str]) -> bool:
    return not lines[0].strip() and _TITLE.fullmatch(lines[1]) is not None


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
        name: in `CORPORA`.
        folder: where its files are (WikiText, text), or are to be kept (those of packages).

    Raises:
        ValueError: no such corpus; the message lists the names.
    """
    corpus = choose(name, CORPORA, "corpus")
    return corpus if folder is None else replace(corpus, folder=Path(folder))
