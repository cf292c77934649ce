"""Generation from text to text, shown while it is made."""

import warnings
from collections.abc import Callable, Collection, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Int
from torch import Tensor

from flowformer.generation.generate import generate
from flowformer.generation.steps import CausalModel

_NAMED = 10  # parts of a prompt that a message lists
UNFINISHED = "\N{REPLACEMENT CHARACTER}"  # decoders put it for bytes that are no character (yet)


@runtime_checkable
class Tokenizer(Protocol):
    """The interface of a tokenizer that generation needs."""

    def encode(self, text: str, /) -> Sequence[int]: ...  # noqa: D102

    def decode(self, ids: list[int], /) -> str: ...  # noqa: D102


def generate_text(
    model: CausalModel,
    tokenizer: Tokenizer,
    prompt: str,
    *,
    max_new_tokens: int,
    stop_ids: Collection[int] = (),
    stop_strings: Sequence[str] = (),
    on_text: Callable[[str], object] | None = None,
    **options: Any,
) -> str:
    """Return the text that continues the prompt, up to a stop token or a stop string.

    Args:
        model: a language model, see `generate`.
        tokenizer: encodes the prompt and decodes its continuation.
        prompt: the text to continue, which the result does not repeat.
        max_new_tokens: the most tokens that are generated.
        stop_ids: tokens that end the text; they are no part of it.
        stop_strings: texts that end it too.
        on_text: called with each piece of text as soon as it is certain: whole characters, and
            nothing that may be the beginning of a stop string.
        options: further keywords of `generate`.

    Warns:
        UserWarning: the vocabulary lacks a part of the prompt; the message lists them.

    Raises:
        ValueError: the prompt has no token, a stop string is empty, or see `generate`.
    """
    ids = list(tokenizer.encode(prompt))
    if not ids:
        raise ValueError(f"the prompt must have at least one token, got {prompt!r}")
    _warn_of_unknown_parts(tokenizer, prompt)
    stream = TextStream(tokenizer, stop_strings, after=ids)
    pieces: list[str] = []

    def give(piece: str) -> None:
        if piece:
            pieces.append(piece)
            if on_text is not None:
                on_text(piece)

    def read(token: Int[Tensor, " b"]) -> bool:
        if int(token) not in stop_ids:
            give(stream.add(int(token)))
        return stream.stopped

    one_by_one = options.get("num_beams", 1) == 1
    output = generate(
        model,
        torch.tensor([ids]),
        max_new_tokens=max_new_tokens,
        stop_ids=stop_ids,
        on_token=read if one_by_one else None,
        **options,
    )
    if not one_by_one:
        for token in output.sequences[0, len(ids) :].split(1):
            if read(token):
                break
    give(stream.finish())
    return "".join(pieces)


def _warn_of_unknown_parts(tokenizer: Tokenizer, prompt: str) -> None:
    unknown = getattr(tokenizer, "unknown_parts", lambda _: [])(prompt)  # those of ours have it
    if unknown:
        more = f" and {len(unknown) - _NAMED} more" if len(unknown) > _NAMED else ""
        warnings.warn(
            f"the model's vocabulary lacks {', '.join(map(repr, unknown[:_NAMED]))}{more}: it "
            "reads the unknown token there. Write the prompt as the training text was written",
            UserWarning,
            stacklevel=3,
        )


class TextStream:
    """Turns tokens into text piece by piece; the pieces together are the text of all tokens.

    A token may end in the middle of a character, and what it decodes to may depend on the token
    before (a blank between words). So each piece is what the text of a few tokens gains by the last
    one: they reach back to where the piece before began, which bounds the cost of a token.
    """

    def __init__(
        self, tokenizer: Tokenizer, stop_strings: Sequence[str] = (), *, after: Sequence[int] = ()
    ) -> None:
        """Begin after the tokens of a prompt; an empty stop string raises ValueError."""
        if "" in stop_strings:
            raise ValueError(f"a stop string must have a character, got {list(stop_strings)}")
        self.stopped = False
        self._tokenizer = tokenizer
        self._stop_strings = stop_strings
        self._tokens = list(after)
        self._context = len(after)  # how many of the tokens have been given as text
        self._given = len(tokenizer.decode(self._tokens))  # and how many characters of their text
        self._held = ""  # may be the beginning of a stop string

    def add(self, token: int) -> str:
        """Return the text that has become certain; nothing once a stop string came."""
        self._tokens.append(token)
        text = self._tokenizer.decode(self._tokens)
        certain = text.removesuffix(UNFINISHED)
        piece = certain[self._given :]
        self._given = max(self._given, len(certain))
        if certain == text:
            del self._tokens[: self._context]
            self._context = len(self._tokens)
            self._given = len(self._tokenizer.decode(self._tokens))
        return self._until_stop(piece)

    def finish(self) -> str:
        """Return the text that was held back, now that it has ended."""
        rest = self._until_stop(self._tokenizer.decode(self._tokens)[self._given :])
        held, self._held = self._held, ""
        return rest + held

    def _until_stop(self, piece: str) -> str:
        if self.stopped:
            return ""
        text = self._held + piece
        found = [place for stop in self._stop_strings if (place := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        held = max(
            (n for stop in self._stop_strings for n in range(len(stop)) if text.endswith(stop[:n])),
            default=0,
        )
        self._held = text[len(text) - held :]
        return text[: len(text) - held]
