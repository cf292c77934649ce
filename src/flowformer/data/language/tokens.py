"""Text that is tokenised once and lies on disk: memory-mapped shards, and what was counted.

The folder of a prepared text has `meta.json` (settings, counts, and the shards with their
checksums), `tokenizer.json`, and for each part shards such as `train-00000.bin`: the end of each
document, counted in tokens from the shard's start, as little-endian uint64, then the tokens, as
little-endian uint16, or uint32 where the vocabulary has more than 65,536. A shard holds whole
documents. `flowformer.data.language.preparation` writes such a folder.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args, overload

import numpy as np
from numpy.typing import NDArray

from flowformer.config_json import from_plain
from flowformer.data.language.tokenizers import Tokenizer, load_tokenizer
from flowformer.files import parse_json

Part = Literal["train", "validation", "test"]
PARTS: tuple[Part, ...] = get_args(Part)
FORMAT = 1
META, TOKENIZER = "meta.json", "tokenizer.json"


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What a text holds.

    Attributes:
        documents: such as articles.
        tokens: with the ends of lines (words) or documents (subwords).
        words: between white space, plus one for each line end: what perplexity per word divides by
            under any tokenizer, as is usual for WikiText.
        characters: with line ends.
        unknown: tokens that are <unk>.
    """

    documents: int = 0
    tokens: int = 0
    words: int = 0
    characters: int = 0
    unknown: int = 0

    def __add__(self, other: "Counts") -> "Counts":
        """Return both together."""
        return Counts(
            **{one.name: getattr(self, one.name) + getattr(other, one.name) for one in fields(self)}
        )


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One file of a part.

    Attributes:
        file: its name in the folder.
        sha256: SHA-256 of its content.
        counts: what it holds.
    """

    file: str
    sha256: str
    counts: Counts

    def size(self, dtype: np.dtype) -> int:
        """Return its bytes."""
        return 8 * self.counts.documents + dtype.itemsize * self.counts.tokens


@dataclass(kw_only=True)
class Meta:
    """The content of `meta.json`, which is also the journal of an unfinished preparation.

    Attributes:
        settings: what the preparation was asked for.
        vocab_size: size of the tokenizer's vocabulary; 0 until there is one.
        complete: whether every part is there.
        shards: shards of each part, in order.
    """

    settings: dict[str, Any]
    vocab_size: int = 0
    complete: bool = False
    shards: dict[str, list[Shard]] = field(default_factory=lambda: {part: [] for part in PARTS})

    @property
    def dtype(self) -> np.dtype:
        """Of a token on disk."""
        return np.dtype("<u2" if self.vocab_size <= 2**16 else "<u4")

    def counts(self, part: str) -> Counts:
        """Return what the shards of a part hold together."""
        return sum((shard.counts for shard in self.shards[part]), Counts())

    def to_json(self) -> str:
        """As `read_meta` reads it."""
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=1, ensure_ascii=False) + "\n"


def read_meta(folder: Path) -> Meta:
    """Read `meta.json`.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged, or another release's.
    """
    path = folder / META
    if not path.is_file():
        raise FileNotFoundError(
            f"expected a prepared text, and there is no {path}: "
            "flowformer data prepare makes such a folder"
        )
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
        version = content.pop("format")
        if version == FORMAT:
            return _read_meta(content)
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise ValueError(f"{path} is damaged ({error}): {_REMEDY}") from error
    raise ValueError(f"{path} has format {version}, expected {FORMAT}: {_REMEDY}")


def _read_meta(content: dict[str, Any]) -> Meta:
    listed = content.pop("shards")
    meta = from_plain(Meta, {**content, "shards": {}})
    meta.shards = {part: [from_plain(Shard, one) for one in listed[part]] for part in PARTS}
    for shard in (shard for shards in meta.shards.values() for shard in shards):
        if Path(shard.file).name != shard.file:  # in the folder, and nowhere else
            raise ValueError(f"expected the name of a file, got {shard.file!r}")
        for count in asdict(shard.counts).values():
            if not 0 <= count < _MOST:
                raise ValueError(f"expected a count, got {count!r}")
    return meta


_REMEDY = "delete the folder and prepare the text again"
_MOST = 2**62  # of what is counted: places are 64 bits wide


class TokenArray:
    """The tokens of a part: a sequence whose slices are read from disk.

    `len`, `array[i]` and `array[start:stop]` are those of one long array; documents follow each
    other without a gap. Copies in other processes map the same files.
    """

    def __init__(self, folder: Path, shards: Sequence[Shard], dtype: np.dtype) -> None:
        """Map the shards when they are first read.

        Args:
            folder: folder of the text.
            shards: the shards, in order.
            dtype: dtype of a token.
        """
        self._folder = folder
        self._shards = list(shards)
        self._dtype = dtype
        self._starts = np.cumsum([0, *(shard.counts.tokens for shard in shards)])
        self._maps: list[NDArray[np.unsignedinteger]] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Without the maps: pickled, they would be the whole text."""
        return {**self.__dict__, "_maps": None}

    def __len__(self) -> int:
        return int(self._starts[-1])

    @overload
    def __getitem__(self, place: int) -> int: ...
    @overload
    def __getitem__(self, place: slice) -> NDArray[np.unsignedinteger]: ...
    def __getitem__(self, place: int | slice) -> int | NDArray[np.unsignedinteger]:
        """Return a token, or a slice of them with step 1.

        Raises:
            IndexError: there is no such token.
            ValueError: the slice has another step.
        """
        if isinstance(place, slice):
            start, stop, step = place.indices(len(self))
            if step != 1:
                raise ValueError(f"expected a slice with step 1, got {step}")
            return self._read(start, max(start, stop))
        at = place + len(self) if place < 0 else place
        if not 0 <= at < len(self):
            raise IndexError(f"expected a place in {len(self)} tokens, got {place}")
        return int(self._read(at, at + 1)[0])

    @property
    def documents(self) -> NDArray[np.int64]:
        """Where each document starts, and at last where the last one ends: documents + 1 places."""
        ends = [
            np.fromfile(self._folder / shard.file, "<u8", shard.counts.documents) + start
            for shard, start in zip(self._shards, self._starts, strict=False)
        ]
        return np.concatenate([np.zeros(1, np.int64), *(one.astype(np.int64) for one in ends)])

    def _read(self, start: int, stop: int) -> NDArray[np.unsignedinteger]:
        if self._maps is None:
            self._maps = [self._map(shard) for shard in self._shards]
        first = int(np.searchsorted(self._starts, start, side="right")) - 1
        pieces: list[NDArray[np.unsignedinteger]] = []
        for tokens, begin in zip(self._maps[first:], self._starts[first:-1], strict=False):
            if begin >= stop:
                break
            pieces.append(tokens[max(0, start - begin) : stop - begin])
        if len(pieces) == 1:
            return pieces[0]
        return np.concatenate([np.empty(0, self._dtype), *pieces])

    def _map(self, shard: Shard) -> NDArray[np.unsignedinteger]:
        path, counts = self._folder / shard.file, shard.counts
        return np.memmap(path, self._dtype, "r", 8 * counts.documents, counts.tokens)


@dataclass(frozen=True, kw_only=True)
class PreparedText:
    """A prepared text.

    Attributes:
        folder: where it lies.
        tokenizer: tokenizer of its tokens.
        settings: what it was prepared with.
        train: tokens to train on.
        validation: tokens to choose by.
        test: tokens to report.
        counts: counts of each part.
    """

    folder: Path
    tokenizer: Tokenizer
    settings: dict[str, Any]
    train: TokenArray
    validation: TokenArray
    test: TokenArray
    counts: dict[str, Counts]

    def part(self, name: str) -> TokenArray:
        """Return the tokens of a part.

        Raises:
            ValueError: no such part.
        """
        if name not in PARTS:
            raise ValueError(f"part must be one of {', '.join(PARTS)}, got {name!r}")
        return getattr(self, name)


def open_text(folder: str | Path, *, verify: bool = True) -> PreparedText:
    """Open a prepared text.

    Args:
        folder: folder of the text.
        verify: whether to compare checksums, which reads each shard once; sizes are compared in any
            case.

    Raises:
        FileNotFoundError: there is no prepared text, or a shard is missing.
        ImportError: tokenizers is missing, and the text is one of subwords.
        ValueError: the preparation did not end; or a file is damaged. The message names the file.
    """
    folder = Path(folder)
    meta = read_meta(folder)
    if not meta.complete:
        raise ValueError(
            f"the preparation of {folder} did not end: the same command again goes on with it"
        )
    for shard in (shard for listed in meta.shards.values() for shard in listed):
        _check(folder, shard, meta.dtype, verify=verify)
    tokenizer = load_tokenizer(folder / TOKENIZER)
    if tokenizer.vocab_size != meta.vocab_size:
        raise ValueError(
            f"{folder / TOKENIZER} has {tokenizer.vocab_size} tokens, {META} says "
            f"{meta.vocab_size}: {_REMEDY}"
        )
    arrays = {part: TokenArray(folder, meta.shards[part], meta.dtype) for part in PARTS}
    return PreparedText(
        folder=folder,
        tokenizer=tokenizer,
        settings=meta.settings,
        counts={part: meta.counts(part) for part in PARTS},
        **arrays,
    )


def _check(folder: Path, shard: Shard, dtype: np.dtype, *, verify: bool) -> None:
    path = folder / shard.file
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: {_REMEDY}")
    size, expected = path.stat().st_size, shard.size(dtype)
    if size != expected:
        raise ValueError(
            f"{path} has {size} bytes, expected {expected} for {shard.counts.tokens} tokens in "
            f"{shard.counts.documents} documents: {_REMEDY}"
        )
    if verify:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != shard.sha256:
            raise ValueError(
                f"{path} was altered: its SHA-256 begins with {found[:12]}, expected "
                f"{shard.sha256[:12]}: {_REMEDY}"
            )
