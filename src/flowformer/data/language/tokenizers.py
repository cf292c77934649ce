"""From text to token numbers and back: characters, bytes, words, and subwords.

A tokenizer is one JSON file. Those of this module are a list of symbols; subword tokenizers are
the files of the `tokenizers` library, so that any `tokenizer.json` is one, trained here or not.
"""

import json
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from flowformer.data.options import TokenizerKind
from flowformer.files import parse_json, write_atomically
from flowformer.machine import library

if TYPE_CHECKING:
    import tokenizers

KINDS: tuple[str, ...] = get_args(TokenizerKind)
UNKNOWN = "<unk>"
END_OF_LINE = "<eos>"
# The end of a document, by the names that files in use have; the first is ours and GPT-2's.
END_OF_DOCUMENT = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "[SEP]")
_FORMAT = "flowformer-tokenizer"


class Tokenizer(ABC):
    """What every tokenizer has.

    Attributes:
        kind: "char", "byte", "word", "bpe", or the model of a `tokenizer.json` in lower case.
        vocab_size: how many tokens there are.
        unknown_id: the token of what the vocabulary lacks; None where nothing is lacking.
        end_id: the token at which text ends: of a line for words, of a document for subwords;
            None for characters and bytes.
    """

    kind: str
    vocab_size: int
    unknown_id: int | None = None
    end_id: int | None = None

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text, and of nothing else: no token is added at either end.

        What the text spells like a special token (<|endoftext|>, <eos>) is text as well.
        """

    @abstractmethod
    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of tokens."""

    @abstractmethod
    def to_json(self) -> str:
        """Return all of it as text, for `load_tokenizer`."""

    def encode_document(self, text: str) -> list[int]:
        """Return the tokens of a whole document, which ends with a line end."""
        return self.encode(text)

    def unknown_parts(self, text: str) -> list[str]:
        """Return the characters or words of a text that the vocabulary lacks, each once."""
        del text
        return []

    def save(self, path: str | Path) -> None:
        """Write it to a file, at once."""
        write_atomically(Path(path), self.to_json())


class ByteTokenizer(Tokenizer):
    """The 256 bytes of UTF-8."""

    kind = "byte"
    vocab_size = 256

    def encode(self, text: str) -> list[int]:
        """Return the bytes of a text."""
        return list(text.encode())

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of bytes; those that are no UTF-8 become U+FFFD."""
        return bytes(ids).decode(errors="replace")

    def to_json(self) -> str:
        """Return its kind: there is nothing else."""
        return _to_json(self.kind, [])


class SymbolTokenizer(Tokenizer):
    """A list of symbols, whose place in it is their token; <unk> is token 0."""

    _special = 1  # so many symbols at the start are no text

    def __init__(self, symbols: Sequence[str]) -> None:
        """Number the symbols.

        Args:
            symbols: all of them, <unk> first.

        Raises:
            ValueError: <unk> is not first, or a symbol comes twice.
        """
        if not symbols or symbols[0] != UNKNOWN:
            raise ValueError(f"expected {UNKNOWN} as the first symbol, got {list(symbols[:1])}")
        self.symbols = list(symbols)
        self.ids = {symbol: place for place, symbol in enumerate(self.symbols)}
        if len(self.ids) < len(self.symbols):
            twice = [symbol for symbol, count in Counter(self.symbols).items() if count > 1]
            raise ValueError(f"expected every symbol once, got {twice[0]!r} more than once")
        self.vocab_size = len(self.symbols)
        self.unknown_id = 0
        # A special symbol that a text spells out is text, and no word of the vocabulary.
        self._known = {symbol: self.ids[symbol] for symbol in self.symbols[self._special :]}

    @staticmethod
    @abstractmethod
    def split(text: str) -> Sequence[str]:
        """Return what of a text the symbols stand for."""

    def unknown_parts(self, text: str) -> list[str]:
        """Return the characters or words of a text that the vocabulary lacks, each once.

        WikiText has <unk> in its own text: whoever writes it means it.
        """
        known = self._known.keys() | {UNKNOWN}
        return [part for part in dict.fromkeys(self.split(text)) if part not in known]

    def to_json(self) -> str:
        """Return its kind and symbols."""
        return _to_json(self.kind, self.symbols)


class CharacterTokenizer(SymbolTokenizer):
    """Unicode characters."""

    kind = "char"

    def encode(self, text: str) -> list[int]:
        """Return the characters of a text; one that the vocabulary lacks is <unk>."""
        find = self._known.get
        return [find(character, 0) for character in text]

    @staticmethod
    def split(text: str) -> Sequence[str]:
        """Return the characters of a text."""
        return text

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of characters; <unk> becomes U+FFFD."""
        return "".join(self.symbols[token] if token else "\ufffd" for token in ids)


class WordTokenizer(SymbolTokenizer):
    """Words between white space, and <eos> (token 1) for the end of a line, as for WikiText."""

    kind = "word"
    end_id = 1
    _special = 2

    def __init__(self, symbols: Sequence[str]) -> None:
        """Number the symbols.

        Args:
            symbols: all of them, <unk> and <eos> first.

        Raises:
            ValueError: they do not begin so, or a symbol comes twice.
        """
        super().__init__(symbols)
        if self.symbols[1:2] != [END_OF_LINE]:
            raise ValueError(
                f"expected {END_OF_LINE} as the second symbol, got {self.symbols[1:2]}"
            )

    def encode(self, text: str) -> list[int]:
        """Return the words of a text, and <eos> at each line end."""
        find = self._known.get
        *lines, rest = text.split("\n")
        tokens: list[int] = []
        for line in lines:
            tokens.extend(find(word, 0) for word in line.split())
            tokens.append(1)
        tokens.extend(find(word, 0) for word in rest.split())
        return tokens

    @staticmethod
    def split(text: str) -> Sequence[str]:
        """Return the words of a text."""
        return text.split()

    def decode(self, ids: Iterable[int]) -> str:
        """Return the words with a blank between them, and line ends."""
        words = ("\n" if token == 1 else self.symbols[token] for token in ids)
        return " ".join(words).replace(" \n ", "\n").replace("\n ", "\n").replace(" \n", "\n")


class SubwordTokenizer(Tokenizer):
    """A tokenizer of the `tokenizers` library."""

    def __init__(self, text: str) -> None:
        """Read its JSON.

        Args:
            text: the content of a `tokenizer.json`.

        Raises:
            ImportError: tokenizers is missing.
            ValueError: the library does not read it.
        """
        tokenizers = library("tokenizers", "for subwords", extra="language")
        with _named("the tokenizers library cannot read this"):
            self._tokenizer = tokenizers.Tokenizer.from_str(text)
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._tokenizer.encode_special_tokens = True  # those that a text spells out, as text
        model = self._tokenizer.model
        self.kind = type(model).__name__.lower()
        # Numbers may be left out: a model needs a row for each up to the last.
        self.vocab_size = 1 + max(self._tokenizer.get_vocab().values(), default=-1)
        find = self._tokenizer.token_to_id
        self.unknown_id = _unknown_of(json.loads(text)["model"], find)
        self.end_id = next((find(end) for end in END_OF_DOCUMENT if find(end) is not None), None)
        added = self._tokenizer.get_added_tokens_decoder().items()
        special = {number for number, token in added if token.special} | {self.end_id}
        self._special = special - {self.unknown_id, None}

    def encode(self, text: str) -> list[int]:
        """Return the subwords of a text."""
        ids = self._tokenizer.encode(text, add_special_tokens=False).ids
        if self._special.isdisjoint(ids):
            return ids
        # Vocabularies of whole words and of pieces list special tokens among those of text.
        return [number for one in ids for number in self._spelled(one)]

    def _spelled(self, number: int) -> list[int]:
        """Return a token; in place of a special one those of its characters."""
        if number not in self._special:
            return [number]
        model, characters = self._tokenizer.model, self._tokenizer.id_to_token(number)
        return [token.id for character in characters for token in model.tokenize(character)]

    def unknown_parts(self, text: str) -> list[str]:
        """Return what of a text the vocabulary lacks, each once."""
        if self.unknown_id is None:
            return []
        found = self._tokenizer.encode(text, add_special_tokens=False)
        places = zip(found.ids, found.offsets, strict=True)
        return list(dict.fromkeys(text[slice(*at)] for one, at in places if one == self.unknown_id))

    def encode_document(self, text: str) -> list[int]:
        """Return the subwords of a document, and the end of it."""
        return [*self.encode(text), *(() if self.end_id is None else (self.end_id,))]

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of subwords, special tokens included."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=False)

    def to_json(self) -> str:
        """Return the library's JSON."""
        return self._tokenizer.to_str(pretty=False)


def _unknown_of(model: dict[str, Any], find: Callable[[str], int | None]) -> int | None:
    """Return the token of what a vocabulary lacks: told by its text, or of pieces by its number."""
    unknown = model.get("unk_token")
    return model.get("unk_id") if unknown is None else find(unknown)


# The smallest vocabularies: one symbol beside the special ones; the bytes and the document end.
_LEAST = {"char": 2, "byte": 256, "word": 3, "bpe": 257}
_SYMBOL_KINDS: dict[str, type[SymbolTokenizer]] = {
    "char": CharacterTokenizer,
    "word": WordTokenizer,
}


def train_tokenizer(
    kind: str, texts: Iterable[str], vocab_size: int | None = None, min_count: int = 1
) -> Tokenizer:
    """Make a tokenizer from a text, which is read once.

    Args:
        kind: "char": the characters of the text. "byte": the 256 bytes; the text is not read.
            "word": the words between white space, the most frequent first (by spelling where
            equally frequent), with <unk> and <eos> before them; WikiText-103 gives 267,735. "bpe":
            byte-level pairs as GPT-2 has them, with <|endoftext|>.
        texts: the training part, in pieces.
        vocab_size: how many tokens there may be, <unk>, <eos> and <|endoftext|> included; by
            default as many as there are characters or words, and 50,257 for "bpe".
        min_count: what is rarer than this is left out; of pairs, not merged.

    Raises:
        ImportError: tokenizers is missing; "bpe" needs it.
        ValueError: no such kind; too small a `vocab_size` or `min_count`; one of them for "byte";
            or the text is empty.
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    if min_count < 1:
        raise ValueError(f"min_count must be at least 1, got {min_count}")
    least = _LEAST[kind]
    if vocab_size is not None and vocab_size < least:
        raise ValueError(f"vocab_size must be at least {least} for {kind!r}, got {vocab_size}")
    if kind == "byte":
        if (vocab_size or least, min_count) != (least, 1):
            raise ValueError(
                f"'byte' has 256 tokens whatever the text, got {vocab_size=} and {min_count=}"
            )
        return ByteTokenizer()
    if kind == "bpe":
        return _train_bpe(texts, vocab_size or 50_257, min_count)
    return _count_symbols(kind, texts, vocab_size, min_count)


def _count_symbols(
    kind: str, texts: Iterable[str], vocab_size: int | None, min_count: int
) -> SymbolTokenizer:
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(_SYMBOL_KINDS[kind].split(text))
    if not counts:
        raise ValueError("expected a text to build the vocabulary from, got an empty one")
    special = [UNKNOWN] if kind == "char" else [UNKNOWN, END_OF_LINE]
    for symbol in special:
        del counts[symbol]  # WikiText has <unk> written out
    kept = [symbol for symbol, count in counts.items() if count >= min_count]
    kept.sort(key=lambda symbol: (-counts[symbol], symbol))
    if vocab_size is not None:
        kept = kept[: vocab_size - len(special)]
    return _SYMBOL_KINDS[kind]([*special, *kept])


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Read a tokenizer.

    Args:
        path: a file of ours or of the `tokenizers` library; or a folder with a `tokenizer.json`, or
            with a vocabulary and its merges: GPT-2's `encoder.json` and `vocab.bpe`, or
            `vocab.json` and `merges.txt`.

    Raises:
        FileNotFoundError: there is no such file, or none of them in the folder.
        ImportError: tokenizers is missing, and the file is one of its kind.
        ValueError: the file is something else; the message names it.
    """
    path = Path(path)
    if path.is_dir():
        pairs = (("encoder.json", "vocab.bpe"), ("vocab.json", "merges.txt"))
        for vocabulary, merges in pairs:
            if (path / vocabulary).is_file() and (path / merges).is_file():
                return _load_pair(path / vocabulary, path / merges)
        if not (path / "tokenizer.json").is_file():
            raise FileNotFoundError(
                f"expected tokenizer.json, encoder.json with vocab.bpe, or vocab.json with "
                f"merges.txt in {path}, got none"
            )
        path /= "tokenizer.json"
    try:
        text = path.read_text(encoding="utf-8")
        content = parse_json(text)
        if isinstance(content, dict) and content.get("format") == _FORMAT:
            return _from_json(content)
        return SubwordTokenizer(text)
    except ValueError as error:  # JSON and UTF-8 errors are ValueErrors too
        raise ValueError(f"{path} is no tokenizer: {error}") from error


def _to_json(kind: str, symbols: list[str]) -> str:
    content = {"format": _FORMAT, "kind": kind, "symbols": symbols}
    return json.dumps(content, ensure_ascii=False) + "\n"


def _from_json(content: dict[str, Any]) -> Tokenizer:
    kind, symbols = content.get("kind"), content.get("symbols")
    if kind == "byte":
        return ByteTokenizer()
    if not isinstance(kind, str) or kind not in _SYMBOL_KINDS:
        raise ValueError(f"kind must be byte, {' or '.join(_SYMBOL_KINDS)}, got {kind!r}")
    if not isinstance(symbols, list) or not all(isinstance(symbol, str) for symbol in symbols):
        raise ValueError("symbols must be a list of strings")
    return _SYMBOL_KINDS[kind](symbols)


def _train_bpe(texts: Iterable[str], vocab_size: int, min_count: int) -> SubwordTokenizer:
    tokenizers = library("tokenizers", "for subwords", extra="language")
    tokenizer = _byte_level(tokenizers.models.BPE())
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_count,
        special_tokens=[END_OF_DOCUMENT[0]],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return SubwordTokenizer(tokenizer.to_str())


def _load_pair(vocabulary: Path, merges: Path) -> SubwordTokenizer:
    tokenizers = library("tokenizers", "for subwords", extra="language")
    with _named(f"{vocabulary} and {merges.name} are no tokenizer"):
        _require_own_numbers(vocabulary)
        tokenizer = _byte_level(tokenizers.models.BPE.from_file(str(vocabulary), str(merges)))
        ends = [end for end in END_OF_DOCUMENT if tokenizer.token_to_id(end) is not None]
        tokenizer.add_special_tokens(ends[:1])
        return SubwordTokenizer(tokenizer.to_str())


@contextmanager
def _named(what: str) -> Iterator[None]:
    """Turn what the library raises, which is nothing exact, into a ValueError."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"{what}: {error}") from error
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # Rust's, which is no Exception
            raise
        raise ValueError(f"{what}: {error}") from error


def _require_own_numbers(vocabulary: Path) -> None:
    """Refuse two symbols of one number, which the library reads."""
    numbers = parse_json(vocabulary.read_bytes())
    if not isinstance(numbers, dict):
        raise ValueError(f"expected an object of symbols, got {type(numbers).__name__}")
    counts = Counter(map(repr, numbers.values()))
    if twice := [number for number, count in counts.items() if count > 1]:
        raise ValueError(f"expected a number for each symbol, got {twice[0]} more than once")


def _byte_level(model: "tokenizers.models.BPE") -> "tokenizers.Tokenizer":
    tokenizers = library("tokenizers", "for subwords", extra="language")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    return tokenizer
