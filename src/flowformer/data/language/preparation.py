"""From a corpus to a folder of shards: once, resumable, and never half there."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from flowformer.data.files import preparing, require_empty, require_same
from flowformer.data.language.tokenizers import KINDS, Tokenizer, load_tokenizer, train_tokenizer
from flowformer.data.language.tokens import (
    META,
    PARTS,
    TOKENIZER,
    Counts,
    Meta,
    PreparedText,
    Shard,
    open_text,
    read_meta,
)
from flowformer.files import write_atomically
from flowformer.progress import counted, is_shown, working

# Characters encoded at a time: a list of tokens takes some 40 bytes for each.
_PIECE = 2**20


@runtime_checkable
class TextSource(Protocol):
    """What can be prepared; `flowformer.data.language.corpora.Corpus` is one."""

    @property
    def name(self) -> str:
        """What it is called."""
        ...

    def documents(self, part: str) -> Iterator[str]:
        """Return the documents of a part, always in the same order."""
        ...

    def identity(self) -> Mapping[str, Any]:
        """Return what its content follows from, as JSON: files with checksums, seeds, versions."""
        ...


def prepare_text(
    corpus: TextSource,
    folder: str | Path,
    *,
    tokenizer: str | Path | Tokenizer = "word",
    vocab_size: int | None = None,
    min_count: int = 1,
    shard_tokens: int = 2**24,
) -> PreparedText:
    """Tokenise a corpus into a folder, or open the folder where that is done already.

    A preparation that was stopped, by whatever and wherever, goes on after the last whole shard,
    and ends with the same bytes as one that was not.

    Args:
        corpus: its documents; one without a line end gets one.
        folder: an empty folder or a new one, or one prepared with the same settings.
        tokenizer: a kind to train on the training part (see `train_tokenizer`), a file or folder to
            load (see `load_tokenizer`), or a tokenizer.
        vocab_size: size of the vocabulary, of a tokenizer that is trained.
        min_count: least count of a symbol, of a tokenizer that is trained.
        shard_tokens: a shard ends with the document that fills it.

    Raises:
        FileExistsError: the folder holds something else.
        ImportError: tokenizers is missing, and subwords are asked for.
        ValueError: the folder was prepared with other settings, which the message names; a part is
            empty; `vocab_size` or `min_count` beside a tokenizer that is not trained; or what
            `train_tokenizer`, `load_tokenizer` and `open_text` raise.
    """
    folder = Path(folder)
    if shard_tokens < 1:
        raise ValueError(f"shard_tokens must be at least 1, got {shard_tokens}")
    trained = isinstance(tokenizer, str) and tokenizer in KINDS
    if not trained and (vocab_size is not None or min_count != 1):
        raise ValueError(
            f"{vocab_size=} and {min_count=} are for a tokenizer that is trained "
            f"({', '.join(KINDS)}), got {tokenizer}"
        )
    given = None if trained else _given(tokenizer)
    settings = {
        "corpus": corpus.name,
        "text": dict(corpus.identity()),
        "tokenizer": tokenizer if given is None else _digest(given.to_json().encode()),
        "vocab_size": vocab_size,
        "min_count": min_count,
        "shard_tokens": shard_tokens,
    }
    if not (folder / META).is_file() or not read_meta(folder).complete:
        with preparing(folder):
            _prepare(corpus, folder, settings, tokenizer, given)
    _begin(folder, settings)
    return open_text(folder)


def _prepare(
    corpus: TextSource,
    folder: Path,
    settings: dict[str, Any],
    tokenizer: str | Path | Tokenizer,
    given: Tokenizer | None,
) -> None:
    """Tokenise what is not tokenised yet."""
    meta = _begin(folder, settings)
    if meta.complete:
        return
    if given is None and (folder / TOKENIZER).is_file():
        given = load_tokenizer(folder / TOKENIZER)
    if given is None:
        given = train_tokenizer(
            str(tokenizer),
            counted(_documents(corpus, "train"), "reading the vocabulary", unit="documents"),
            vocab_size=settings["vocab_size"],
            min_count=settings["min_count"],
        )
    given.save(folder / TOKENIZER)
    meta.vocab_size = given.vocab_size
    for part in PARTS:
        _write_part(corpus, part, folder, meta, given)
        if not meta.shards[part]:
            raise ValueError(f"the {part} part of {corpus.name} is empty: expected some text in it")
    meta.complete = True
    write_atomically(folder / META, meta.to_json())


def _given(tokenizer: str | Path | Tokenizer) -> Tokenizer:
    if isinstance(tokenizer, Tokenizer):
        return tokenizer
    if not Path(tokenizer).exists():
        raise ValueError(
            f"tokenizer must be one of {', '.join(KINDS)}, or a file or folder to load, "
            f"got {str(tokenizer)!r}"
        )
    return load_tokenizer(tokenizer)


def _begin(folder: Path, settings: dict[str, Any]) -> Meta:
    """Return the journal of a folder: what is there already, or a new one."""
    if not (folder / META).is_file():
        require_empty(folder, instead="a prepared text")
        meta = Meta(settings=settings)
        write_atomically(folder / META, meta.to_json())
        return meta
    meta = read_meta(folder)
    require_same(folder, meta.settings, settings, what="settings")
    return meta


def _write_part(
    corpus: TextSource,
    part: str,
    folder: Path,
    meta: Meta,
    tokenizer: Tokenizer,
) -> None:
    shards, limit = meta.shards[part], meta.settings["shard_tokens"]
    done = meta.counts(part)
    waiting: list[NDArray[np.unsignedinteger]] = []
    counts = Counts()
    # For whoever is shown it only: a pass over the text takes little of what its tokens take.
    size = sum(map(len, _documents(corpus, part))) if is_shown() else None

    def write_shard() -> None:
        name = f"{part}-{len(shards):05}.bin"
        ends = np.cumsum([len(tokens) for tokens in waiting]).astype("<u8")
        content = ends.tobytes() + np.concatenate(waiting).tobytes()
        write_atomically(folder / name, content)
        shards.append(Shard(file=name, sha256=_digest(content), counts=counts))
        write_atomically(folder / META, meta.to_json())

    what = f"tokenising the {part} part"
    with working(what, total=size, unit="characters", done=done.characters) as work:
        for text in islice(_documents(corpus, part), done.documents, None):
            tokens = _encode(tokenizer, text, meta.dtype)
            waiting.append(tokens)
            counts += _count(text, tokens, tokenizer.unknown_id)
            work.advance(len(text))
            if counts.tokens >= limit:
                write_shard()
                counts, waiting = Counts(), []
        if waiting:
            write_shard()


def _documents(corpus: TextSource, part: str) -> Iterator[str]:
    """Return its documents, less those without a character; each ends with a line end."""
    for text in corpus.documents(part):
        if text and not text.isspace():
            yield text if text.endswith("\n") else text + "\n"


def _encode(tokenizer: Tokenizer, text: str, dtype: np.dtype) -> NDArray[np.unsignedinteger]:
    *pieces, last = _pieces(text)
    encoded = [*map(tokenizer.encode, pieces), tokenizer.encode_document(last)]
    return np.concatenate([np.array(tokens, dtype) for tokens in encoded])


def _pieces(text: str) -> Iterable[str]:
    # Cut between a line end and a character that is no white space: no tokenizer here looks across.
    start = 0
    while start < len(text):
        stop = start + _PIECE
        while True:
            stop = text.find("\n", stop) + 1
            if stop == 0 or stop == len(text):
                yield text[start:]
                return
            if not text[stop].isspace():
                break
        yield text[start:stop]
        start = stop


def _count(text: str, tokens: NDArray[np.unsignedinteger], unknown: int | None) -> Counts:
    return Counts(
        documents=1,
        tokens=len(tokens),
        words=len(text.split()) + text.count("\n"),
        characters=len(text),
        unknown=0 if unknown is None else int(np.count_nonzero(tokens == unknown)),
    )


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
