import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flowformer.data.language.tokenizers import CharacterTokenizer
from flowformer.generation.generate import generate
from flowformer.generation.text import TextStream, generate_text
from tests.generation.small_language_model import VOCABULARY, build


class Bytes:
    """A token is a byte: most characters beyond ASCII take several."""

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, ids: list[int]) -> str:
        return bytes(ids).decode(errors="replace")


class Words:
    """A token is a word; a space stands between two, so none before the first."""

    def encode(self, text: str) -> list[int]:
        return [int(word) for word in text.split()]

    def decode(self, ids: list[int]) -> str:
        return " ".join(map(str, ids))


def pieces(stream: TextStream, tokens: list[int]) -> list[str]:
    return [*(stream.add(token) for token in tokens), stream.finish()]


@given(st.text())
def test_pieces_are_whole_characters_and_make_the_text(text):
    tokens = Bytes().encode(text)
    given_pieces = pieces(TextStream(Bytes()), tokens)
    assert "".join(given_pieces) == text
    reached = 0
    for character in text:  # it comes with its last byte, or, where it may be half of one, later
        reached += len(character.encode())
        if character != "\N{REPLACEMENT CHARACTER}":
            assert len("".join(given_pieces[:reached])) >= text[:reached].index(character) + 1


@given(st.binary())
def test_pieces_of_bytes_that_are_no_text_make_what_they_decode_to(data):
    assert "".join(pieces(TextStream(Bytes()), list(data))) == Bytes().decode(list(data))


@given(st.lists(st.integers(0, 999)))
def test_pieces_hold_what_stands_between_tokens(tokens):
    assert "".join(pieces(TextStream(Words()), tokens)) == Words().decode(tokens)


@given(st.lists(st.integers(0, 999), min_size=1), st.lists(st.integers(0, 999)))
def test_the_first_piece_holds_what_stands_between_it_and_the_prompt(prompt, tokens):
    given_pieces = pieces(TextStream(Words(), after=prompt), tokens)
    assert Words().decode(prompt) + "".join(given_pieces) == Words().decode(prompt + tokens)


@given(st.text("ab", max_size=12), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3))
def test_text_ends_before_the_first_stop_string(text, stops):
    stream, shown = TextStream(Bytes(), stops), ""
    # The earliest end counts, as when each character is looked at in turn.
    ends = [n for n in range(len(text) + 1) if any(text[:n].endswith(stop) for stop in stops)]
    expected = text
    if ends:
        first = text[: ends[0]]
        expected = first[: min(first.find(stop) for stop in stops if stop in first)]
    for token in Bytes().encode(text):
        shown += stream.add(token)
        assert expected.startswith(shown)
    assert shown + stream.finish() == expected
    assert stream.stopped == bool(ends)


def test_text_that_may_begin_a_stop_string_waits():
    stream = TextStream(Bytes(), ["abc"])
    assert pieces(stream, Bytes().encode("xababd")) == ["x", "", "", "ab", "", "abd", ""]


def test_the_work_of_a_token_does_not_grow():
    longest = 0

    class Counted(Bytes):
        def decode(self, ids: list[int]) -> str:
            nonlocal longest
            longest = max(longest, len(ids))
            return super().decode(ids)

    pieces(TextStream(Counted()), Bytes().encode("añ漢🎉" * 100))
    assert longest == 3 + 4  # bytes of the character before, and of this one


def test_an_empty_stop_string_is_refused():
    with pytest.raises(ValueError, match="must have a character"):
        TextStream(Bytes(), ["a", ""])


class TestGenerateText:
    @pytest.mark.parametrize("num_beams", [1, 2])
    def test_text_is_that_of_the_generated_tokens(self, num_beams):
        model, shown = build(), []
        text = generate_text(
            model, Words(), "1 2 3", max_new_tokens=9, on_text=shown.append, num_beams=num_beams
        )
        tokens = generate(
            model, torch.tensor([[1, 2, 3]]), max_new_tokens=9, num_beams=num_beams
        ).sequences[0, 3:]
        assert text == " " + Words().decode(tokens.tolist())
        assert "".join(shown) == text
        assert len(shown) == 9

    @pytest.mark.parametrize("num_beams", [1, 2])
    def test_a_stop_token_is_no_part_of_the_text(self, num_beams):
        text = generate_text(
            build(),
            Words(),
            "1 2 3",
            max_new_tokens=9,
            stop_ids=range(VOCABULARY),
            num_beams=num_beams,
        )
        assert text == ""

    def test_a_stop_string_ends_the_generation(self):
        model, read = build(), []
        options = {"do_sample": True, "seed": 1}
        free = generate_text(model, Words(), "1 2 3", max_new_tokens=20, **options)
        stop = free.split()[6]
        model.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
        text = generate_text(
            model, Words(), "1 2 3", max_new_tokens=20, stop_strings=[stop], **options
        )
        assert free.startswith(text + stop)
        assert stop not in text
        assert len(read) <= 7

    def test_a_prompt_without_a_token_is_refused(self):
        with pytest.raises(ValueError, match="at least one token, got ' '"):
            generate_text(build(), Words(), " ", max_new_tokens=2)

    def test_what_of_a_prompt_the_vocabulary_lacks_is_named(self):
        tokenizer = CharacterTokenizer(["<unk>", *"123 ", *map(chr, range(200, 195 + VOCABULARY))])
        with pytest.warns(UserWarning, match="vocabulary lacks 'ß', '4': it reads the unknown"):
            generate_text(build(), tokenizer, "1 ßß 4", max_new_tokens=2)
