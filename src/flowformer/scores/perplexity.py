"""Perplexity of a text: with a sliding context, as published, or with all that came before.

Nothing here knows words: a text is token ids, and how many words and characters it has comes from
the data. exp(nll / words) then means the same whatever a token is: a word, a piece, a character.
"""

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from flowformer.generation.steps import CausalModel, device_of, evaluation_mode
from flowformer.names import IGNORED
from flowformer.progress import Work, working
from flowformer.scores.measures import exp_of


@runtime_checkable
class Tokens(Protocol):
    """A text as token ids: a tensor, an array, or a memory map that slices give arrays of."""

    def __len__(self) -> int: ...

    def __getitem__(self, places: slice, /) -> Any: ...


@dataclass(frozen=True, kw_only=True)
class Perplexity:
    """How well a model predicts a text.

    Attributes:
        nll: the negative log-likelihood of all scored tokens, in nats.
        tokens: the number of scored tokens.
        words: the number of words of the scored text, if it was given.
        characters: the number of its characters, if it was given.
    """

    nll: float
    tokens: int
    words: int | None = None
    characters: int | None = None

    @property
    def per_token(self) -> float:
        """exp(nll / tokens): comparable between models with the same tokens only."""
        return exp_of(self.nll / self.tokens)

    @property
    def per_word(self) -> float | None:
        """exp(nll / words), whatever the tokens; None if words were not counted."""
        return None if self.words is None else exp_of(self.nll / self.words)

    @property
    def bits_per_character(self) -> float | None:
        """Nll / (ln 2 · characters); None if characters were not counted."""
        return None if self.characters is None else self.nll / math.log(2) / self.characters


@torch.no_grad()
def evaluate_perplexity(
    model: CausalModel,
    tokens: Tokens,
    *,
    length: int = 512,
    context_window: int = 400,
    batch_size: int = 8,
    start_id: int | None = None,
    words: int | None = None,
    characters: int | None = None,
) -> Perplexity:
    """Score every token once, after at least `context_window` others where the text has them.

    The windows are those of fairseq's `--tokens-per-sample 512 --context-window 400`, by which the
    paper's perplexities were taken: each scores the next `length - context_window` tokens of the
    text, after the `context_window` tokens before them, which are read but not scored.

    Args:
        model: a language model, called as `model(input_ids, targets=, return_logits=False)`, whose
            `loss` is the mean over the targets that are not -100.
        tokens: the text.
        length: the most tokens that a window reads.
        context_window: the number of them that are context.
        batch_size: windows that are read at once.
        start_id: a token that stands before the text, so that its first token is scored too
            (fairseq: the end-of-line token). None: the first token is context only.
        words: the number of words of the scored text.
        characters: the text's number of characters.

    Raises:
        ValueError: there is no token to score, or the sizes contradict each other.

    Examples:
        >>> import torch
        >>> from flowformer.models import LanguageModel, LanguageModelConfig
        >>> from flowformer.scores.perplexity import evaluate_perplexity
        >>> config = LanguageModelConfig(dim=16, num_heads=2, num_layers=1, feedforward=32)
        >>> model = LanguageModel(config, vocab_size=100)
        >>> text = torch.randint(100, (200,))
        >>> evaluate_perplexity(model, text, length=64, context_window=32).tokens
        199
    """
    if not 0 <= context_window < length:
        raise ValueError(
            "a window scores length - context_window tokens, which must be at least 1 and at most "
            f"length, got {length=} and {context_window=}"
        )
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    text = _Text(tokens, start_id)
    nll, scored = 0.0, 0
    with evaluation_mode(model), _scoring(text) as work:
        windows = sliding_windows(text.targets, length, context_window)
        for batch in _batches(windows, batch_size):
            ids, targets = text.read(batch, device_of(model))
            count = sum(window.stop - window.score for window in batch)
            nll += model(ids, targets=targets, return_logits=False).loss.item() * count
            scored += count
            work.reach(scored)
    return Perplexity(nll=nll, tokens=scored, words=words, characters=characters)


@torch.no_grad()
def streaming_perplexity(
    model: CausalModel,
    tokens: Tokens,
    *,
    chunk: int = 2048,
    start_id: int | None = None,
    words: int | None = None,
    characters: int | None = None,
) -> Perplexity:
    """Score every token once, after **all** that come before it, in one pass over the text.

    Only a model that carries a state can: each token is read once, and the cost does not depend on
    how much came before. The size of the chunks changes nothing but speed and memory.

    Args:
        model: a language model, called as `model(input_ids, targets=, past_states=,
            use_cache=True, return_logits=False)`.
        tokens: the text.
        chunk: tokens that are read at once.
        start_id: see `evaluate_perplexity`, here and for the following.
        words: the number of words of the scored text.
        characters: the text's number of characters.

    Raises:
        ValueError: there is no token to score, chunk is not positive, or the text is longer than
            the positions of the model allow.
        NotImplementedError: the model's mixer has no state.
    """
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1, got {chunk}")
    text = _Text(tokens, start_id)
    nll, states = 0.0, None
    with evaluation_mode(model), _scoring(text) as work:
        for window in sliding_windows(text.targets, chunk, 0):
            ids, targets = text.read([window], device_of(model))
            output = model(
                ids, targets=targets, past_states=states, use_cache=True, return_logits=False
            )
            nll += output.loss.item() * (window.stop - window.score)
            states = output.states
            work.reach(window.stop)
    return Perplexity(nll=nll, tokens=text.targets, words=words, characters=characters)


def _scoring(text: "_Text") -> AbstractContextManager[Work]:
    return working("scoring the text", total=text.targets, unit="tokens")


class Window(NamedTuple):
    """A window of a text: it reads [start, stop) and scores the successors of [score, stop)."""

    start: int
    score: int
    stop: int


def sliding_windows(targets: int, length: int, context_window: int) -> Iterator[Window]:
    """Yield windows of at most `length` tokens that together score each target once."""
    scored = length - context_window
    for score in range(0, targets, scored):
        yield Window(max(0, score - context_window), score, min(score + scored, targets))


def _batches(windows: Iterator[Window], size: int) -> Iterator[list[Window]]:
    """Yield successive windows of one length: none is padded, so that nothing rests on a mask."""
    for _, equal in groupby(windows, key=lambda window: window.stop - window.start):
        group = list(equal)
        yield from (group[start : start + size] for start in range(0, len(group), size))


class _Text:
    """The tokens after the start token, if there is one; `targets` of them are scored."""

    def __init__(self, tokens: Tokens, start_id: int | None) -> None:
        self._tokens, self._start = tokens, [] if start_id is None else [start_id]
        self.targets = len(tokens) + len(self._start) - 1
        if self.targets < 1:
            raise ValueError(
                f"expected a text with a token to score, got {len(tokens)} tokens and {start_id=}"
            )

    def read(
        self, windows: list[Window], device: torch.device
    ) -> tuple[Int[Tensor, "b t"], Int[Tensor, "b t"]]:
        """Return the tokens that the windows read, and their targets, -100 where they only read."""
        rows = torch.stack([self._slice(window.start, window.stop + 1) for window in windows])
        ids, targets = rows[:, :-1], rows[:, 1:].clone()
        for row, window in enumerate(windows):
            targets[row, : window.score - window.start] = IGNORED
        return ids.to(device), targets.to(device)

    def _slice(self, start: int, stop: int) -> Int[Tensor, " n"]:
        shift = len(self._start)
        part = self._tokens[max(0, start - shift) : stop - shift]
        if isinstance(part, Tensor):
            part = part.cpu().numpy()
        return torch.from_numpy(np.array([*self._start[start:], *part], dtype=np.int64))
