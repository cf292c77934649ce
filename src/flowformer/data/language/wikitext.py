"""WikiText, from files of its official layout or through the `datasets` library."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowformer.data.language.files import digest_files

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
        """The articles of a part."""
        if self.folder is None:
            yield from _articles(self._hub_lines(part))
            return
        # Lines end with "\n" and nothing else: the text has other characters that Python splits at.
        path = self._file(part)
        with path.open(encoding="utf-8", newline="\n") as lines:
            try:
                yield from _articles(lines)
            except UnicodeDecodeError as error:
                raise ValueError(f"expected UTF-8 in {path}: {error}") from error

    def identity(self) -> dict[str, Any]:
        """The files, or the name that `datasets` knows it by."""
        if self.folder is None:
            return {"hub": _HUB, "configuration": f"{self.name}-v1"}
        files = [self._file(part) for part in _FILE_PARTS]
        return {"sha256": digest_files(files, [Path(file.name) for file in files])}

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
        try:
            import datasets
        except ImportError as error:
            raise ImportError(
                f"datasets is needed to download {self.name}: pip install 'flowformer[language]', "
                "or give a folder with its files"
            ) from error
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
