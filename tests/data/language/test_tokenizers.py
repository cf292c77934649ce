"""Characters, bytes, words and subwords: what becomes of a text, and of what is not known."""

import json
from pathlib import Path

import pytest

from flowformer.data.language.tokenizers import (
    KINDS,
    CharacterTokenizer,
    SubwordTokenizer,
    WordTokenizer,
    load_tokenizer,
    train_tokenizer,
)

TEXTS = ["the cat saw the dog .\nthe dog ran .\n", "naïve 東京 dog\n"]
SIZES = {"bpe": 300}


def trained(kind: str):
    return train_tokenizer(kind, TEXTS, vocab_size=SIZES.get(kind))


@pytest.mark.parametrize("kind", KINDS)
def test_decode_undoes_encode(kind: str) -> None:
    tokenizer = trained(kind)
    for text in TEXTS:
        assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("kind", KINDS)
def test_every_token_is_below_the_vocabulary_size(kind: str) -> None:
    tokenizer = trained(kind)
    tokens = tokenizer.encode("an unseen sentence: ß, 文\n\n")
    assert max(tokens) < tokenizer.vocab_size
    assert min(tokens) >= 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_tokenizer_loads_as_it_was(kind: str, tmp_path: Path) -> None:
    tokenizer = trained(kind)
    tokenizer.save(tmp_path / "tokenizer.json")
    for place in (tmp_path, tmp_path / "tokenizer.json"):
        loaded = load_tokenizer(place)
        assert loaded.to_json() == tokenizer.to_json()
        assert loaded.encode("the naïve zebra\n") == tokenizer.encode("the naïve zebra\n")
        for name in ("kind", "vocab_size", "unknown_id", "end_id"):
            assert getattr(loaded, name) == getattr(tokenizer, name)


def test_words_are_numbered_by_frequency_then_spelling_behind_unk_and_eos() -> None:
    tokenizer = trained("word")
    assert isinstance(tokenizer, WordTokenizer)
    expected = ["<unk>", "<eos>", "dog", "the", ".", "cat", "naïve", "ran", "saw", "東京"]
    assert tokenizer.symbols == expected
    assert (tokenizer.unknown_id, tokenizer.end_id) == (0, 1)


def test_a_line_end_is_eos_and_a_prompt_without_one_has_none() -> None:
    tokenizer = trained("word")
    assert tokenizer.encode("the dog\n\nran\n") == [3, 2, 1, 1, 7, 1]
    assert tokenizer.encode("the dog") == [3, 2]
    assert tokenizer.decode([3, 2, 1, 1, 7, 1]) == "the dog\n\nran\n"


def test_unk_written_out_is_the_unknown_token_and_no_word_of_its_own() -> None:
    tokenizer = train_tokenizer("word", ["a <unk> a <unk> <unk>\n"])
    assert tokenizer.vocab_size == 3
    assert tokenizer.encode("a <unk> b") == [2, 0, 0]


def test_rare_words_and_those_beyond_the_vocabulary_size_are_unknown() -> None:
    text = ["a a a b b c\n"]
    assert train_tokenizer("word", text, min_count=2).encode("a b c") == [2, 3, 0]
    assert train_tokenizer("word", text, vocab_size=3).encode("a b c") == [2, 0, 0]


def test_an_unknown_character_is_unk_and_reads_as_a_replacement_character() -> None:
    tokenizer = train_tokenizer("char", ["aab"])
    assert isinstance(tokenizer, CharacterTokenizer)
    assert tokenizer.symbols == ["<unk>", "a", "b"]
    assert tokenizer.encode("abz") == [1, 2, 0]
    assert tokenizer.decode([1, 2, 0]) == "ab\ufffd"


def test_the_bytes_of_a_cut_character_read_as_a_replacement_character() -> None:
    tokenizer = trained("byte")
    assert tokenizer.encode("é") == [0xC3, 0xA9]
    assert tokenizer.decode([0xC3]) == "\ufffd"


def test_a_document_of_subwords_ends_with_the_end_of_text() -> None:
    tokenizer = trained("bpe")
    assert tokenizer.decode([tokenizer.end_id or 0]) == "<|endoftext|>"
    assert tokenizer.encode_document("dog\n") == [*tokenizer.encode("dog\n"), tokenizer.end_id]
    assert trained("word").encode_document("dog\n") == [2, 1]


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_that_a_text_spells_out_are_text(kind: str) -> None:
    text = "the <|endoftext|> dog<eos> <eos> [SEP] <unk> </s> \n"
    tokenizer = train_tokenizer(kind, [text, *TEXTS], vocab_size=SIZES.get(kind))
    tokens = tokenizer.encode(text)
    assert sum(token == tokenizer.end_id for token in tokens) == (kind == "word")
    if kind == "word":
        assert tokenizer.decode(tokens) == text.replace(" <eos>", " <unk>").replace(" \n", "\n")
    else:
        assert tokenizer.decode(tokens) == text


@pytest.mark.parametrize(
    ("model", "end", "spelled"),
    [
        ({"type": "Unigram", "unk_id": 0}, "</s>", ["<", "/", "s", ">"]),
        (
            {"type": "WordLevel", "unk_token": "<unk>"},
            "[SEP]",
            ["[", "<unk>", "<unk>", "<unk>", "]"],
        ),
    ],
    ids=lambda value: value["type"] if isinstance(value, dict) else "",
)
@pytest.mark.parametrize("special", [True, False])
def test_a_special_token_that_the_model_itself_would_find_is_text(
    model: dict, end: str, spelled: list[str], special: bool
) -> None:
    symbols = ["<unk>", end, "a", *(letter for letter in dict.fromkeys("".join(end)))]
    symbols = [symbol for symbol in symbols if symbol not in "SEP"]
    unigram = model["type"] == "Unigram"
    vocabulary = [[s, 0.0] for s in symbols] if unigram else {s: i for i, s in enumerate(symbols)}
    added = {"id": 1, "content": end, "special": special, "normalized": False}
    added |= {"single_word": False, "lstrip": False, "rstrip": False}
    content = {"version": "1.0", "added_tokens": [added], "model": model | {"vocab": vocabulary}}
    tokenizer = SubwordTokenizer(json.dumps(content))
    ids = tokenizer.encode(f"a{end}a" if unigram else end)
    expected = [symbols.index(symbol) for symbol in spelled]
    assert ids == ([2, *expected, 2] if unigram else expected)
    assert tokenizer.encode_document("a") == [2, 1]
    assert tokenizer.encode("ß") == [tokenizer.unknown_id] == [0]


def test_a_file_with_gaps_in_its_numbers_has_room_for_the_last_of_them() -> None:
    vocabulary = {"a": 0, "b": 7, "<unk>": 2}
    model = {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>"}
    tokenizer = SubwordTokenizer(json.dumps({"version": "1.0", "model": model}))
    assert tokenizer.vocab_size == 8
    assert tokenizer.encode("b") == [7]
    assert tokenizer.decode([0, 3, 7]) == "a b"


@pytest.mark.parametrize(
    ("kind", "parts"), [("char", ["ß", "§"]), ("word", ["ß§", "§"]), ("byte", []), ("bpe", [])]
)
def test_what_of_a_text_the_vocabulary_lacks_is_named(kind: str, parts: list[str]) -> None:
    assert trained(kind).unknown_parts("the ß§ dog §\n") == parts


def test_an_unknown_word_that_is_written_as_in_wikitext_is_not_said_to_be_lacking() -> None:
    assert trained("word").unknown_parts("the <unk> ß <eos>") == ["ß", "<eos>"]


def test_what_of_a_text_a_file_of_words_lacks_is_named() -> None:
    model = {"type": "WordLevel", "vocab": {"a": 0, "<unk>": 1}, "unk_token": "<unk>"}
    content = {"version": "1.0", "model": model, "pre_tokenizer": {"type": "WhitespaceSplit"}}
    assert SubwordTokenizer(json.dumps(content)).unknown_parts("a ß a §§") == ["ß", "§§"]


def test_training_subwords_twice_gives_the_same_file() -> None:
    assert trained("bpe").to_json() == trained("bpe").to_json()


def test_gpt2s_pair_of_files_is_a_tokenizer(tmp_path: Path) -> None:
    vocabulary = {chr(code): code - 33 for code in range(33, 127)}
    for token in ("Ġ", "he", "Ġt", "Ġthe", "<|endoftext|>"):
        vocabulary[token] = len(vocabulary)
    (tmp_path / "encoder.json").write_text(json.dumps(vocabulary))
    (tmp_path / "vocab.bpe").write_text("#version: 0.2\nh e\nĠ t\nĠt he\n")
    tokenizer = load_tokenizer(tmp_path)
    the, end = vocabulary["Ġthe"], vocabulary["<|endoftext|>"]
    assert tokenizer.encode_document("he the") == [vocabulary["he"], the, end]
    assert tokenizer.decode([vocabulary["he"], the]) == "he the"
    assert (tokenizer.kind, tokenizer.vocab_size, tokenizer.end_id) == ("bpe", 99, end)
    tokenizer.save(tmp_path / "saved.json")
    assert load_tokenizer(tmp_path / "saved.json").encode("he the") == [vocabulary["he"], the]


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("letters", {}, "kind must be one of char, byte, word, bpe, got 'letters'"),
        ("word", {"min_count": 0}, "min_count must be at least 1, got 0"),
        ("word", {"vocab_size": 2}, "vocab_size must be at least 3 for 'word', got 2"),
        ("bpe", {"vocab_size": 256}, "vocab_size must be at least 257 for 'bpe', got 256"),
        ("byte", {"vocab_size": 300}, "'byte' has 256 tokens whatever the text"),
        ("byte", {"min_count": 2}, "'byte' has 256 tokens whatever the text"),
    ],
)
def test_what_cannot_be_trained_is_said(kind: str, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        train_tokenizer(kind, TEXTS, **options)


@pytest.mark.parametrize("kind", ["char", "word"])
def test_an_empty_text_has_no_vocabulary(kind: str) -> None:
    with pytest.raises(ValueError, match="expected a text to build the vocabulary from"):
        train_tokenizer(kind, ["", "\n" if kind == "word" else ""])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is no tokenizer"),
        ("[1]", "the tokenizers library cannot read this"),
        ('{"format": "flowformer-tokenizer", "kind": "syllable"}', "kind must be byte, char or"),
        ('{"format": "flowformer-tokenizer", "kind": ["char"]}', "kind must be byte, char or"),
        ('{"format": "flowformer-tokenizer", "kind": "char", "symbols": 3}', "a list of strings"),
        ('{"format": "flowformer-tokenizer", "kind": "char", "symbols": ["a"]}', "expected <unk>"),
        (
            '{"format": "flowformer-tokenizer", "kind": "word", "symbols": ["<unk>", "a"]}',
            "expected <eos> as the second symbol",
        ),
        (
            '{"format": "flowformer-tokenizer", "kind": "char", "symbols": ["<unk>", "a", "a"]}',
            "every symbol once, got 'a' more than once",
        ),
    ],
)
def test_a_file_that_is_no_tokenizer_is_named(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "mine.json").write_text(content)
    with pytest.raises(ValueError, match=rf"mine\.json is no tokenizer: .*{message}|{message}"):
        load_tokenizer(tmp_path / "mine.json")


def test_a_folder_without_a_tokenizer_says_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"expected tokenizer\.json, encoder\.json with"):
        load_tokenizer(tmp_path)


def test_a_damaged_pair_is_named(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text('{"a": 0}')
    (tmp_path / "merges.txt").write_text("#version: 0.2\nx y\n")
    with pytest.raises(ValueError, match=r"vocab\.json and merges\.txt are no tokenizer"):
        load_tokenizer(tmp_path)


def test_a_vocabulary_with_a_number_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text('{"a": 0, "b": 1, "ab": 2, "<|endoftext|>": 1}')
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\n")
    with pytest.raises(ValueError, match=r"vocab\.json and .*each symbol, got 1 more than once"):
        load_tokenizer(tmp_path)


def test_a_panic_of_the_library_is_an_error_that_names_the_files(tmp_path: Path) -> None:
    """Found by fuzzing."""
    (tmp_path / "vocab.json").write_text('{"a": 0, "b": 1, "a": 3}')
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\n")
    with pytest.raises(ValueError, match=r"vocab\.json and merges\.txt are no tokenizer: "):
        load_tokenizer(tmp_path)
