"""Texts as tokens, and sequences of them."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

PIECE = 1_000_000  # characters that are tokenised at once


class Text(NamedTuple):
    """A text.

    Attributes:
        tokens: its tokens, in few bytes: int32.
        characters: the number of its characters.
        first: the token that stands before each piece of it that is read by itself; None for none.
    """

    tokens: Int[Tensor, " n"]
    characters: int
    first: int | None = None


def split(texts: Sequence[str], share: float) -> tuple[list[str], list[str]]:
    """Return the texts up to the last characters, of that share, and the texts from there on."""
    first = round(sum(map(len, texts)) * (1 - share))
    before, after = [], []
    for text in texts:
        cut = min(max(first, 0), len(text))
        first -= len(text)
        before += [text[:cut]] if cut else []
        after += [text[cut:]] if cut < len(text) else []
    return before, after


def tokenise(tokenizer: Any, texts: Sequence[str], *, most: int | None = None) -> Text:
    """Return texts as one, with the token that ends a text between them, where there is one.

    Args:
        tokenizer: a tokenizer of transformers.
        texts: the texts. They are read in pieces, cut at the ends of lines.
        most: tokens that are enough: no piece is read after that with which there are so many; None
            reads all.
    """
    ends = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    parts: list[Int[Tensor, " n"]] = []
    count = characters = 0
    for begins, piece in _pieces(texts):
        ids = tokenizer(piece, add_special_tokens=False, verbose=False)["input_ids"]
        ids = [*ends, *ids] if begins and parts else ids
        parts.append(torch.tensor(ids, dtype=torch.int32))
        count += len(ids)
        characters += len(piece)
        if most is not None and count >= most:
            break
    tokens = torch.cat(parts) if parts else torch.empty(0, dtype=torch.int32)
    return Text(tokens, characters, first_token(tokenizer))


def _pieces(texts: Sequence[str]) -> Iterator[tuple[bool, str]]:
    """Yield the texts in pieces of about PIECE characters, and whether a text begins with it."""
    for text in texts:
        at = 0
        while at < len(text):
            end = at + PIECE
            if end < len(text):
                end = text.rfind("\n", at, end) + 1 or end
            yield at == 0, text[at:end]
            at = end


def first_token(tokenizer: Any) -> int | None:
    """Return the token with which a tokenizer begins each text, where it does."""
    begin = tokenizer.bos_token_id
    bare, whole = (tokenizer("a", add_special_tokens=each)["input_ids"] for each in (False, True))
    return begin if len(whole) > len(bare) and whole[0] == begin else None


def begun(rows: Int[Tensor, "b t"], first: int | None) -> Int[Tensor, "b t1"]:
    """Return rows with that token before each, as the model was trained to read."""
    return rows if first is None else torch.cat([rows.new_full((len(rows), 1), first), rows], 1)


def sequences(
    tokens: Int[Tensor, " n"],
    length: int,
    batch_size: int,
    total: int,
    generator: torch.Generator,
) -> Iterator[Int[Tensor, "b t"]]:
    """Yield batches of sequences of the text, of about so many tokens in all.

    The text is cut into sequences, which are taken in an order that is drawn anew each time that
    all have been taken.
    """
    rows = tokens[: tokens.numel() // length * length].view(-1, length)
    left, order = total, []
    while left > 0:
        count = max(1, min(batch_size, left // length))
        while len(order) < count:
            order += torch.randperm(len(rows), generator=generator).tolist()
        chosen, order = order[:count], order[count:]
        left -= count * length
        yield rows[chosen].long()


def check_length(train: Text, held_out: Text, length: int) -> None:
    """Refuse a text that is shorter than a sequence.

    Raises:
        ValueError: there is no sequence to train on, or no token to predict.
    """
    if train.tokens.numel() < length or held_out.tokens.numel() < 2:
        raise ValueError(
            f"expected a text of at least {length} tokens to train on (length) and 2 held out, got "
            f"{train.tokens.numel()} and {held_out.tokens.numel()}"
        )
