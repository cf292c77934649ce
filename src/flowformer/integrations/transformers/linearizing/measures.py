"""What a linearization came to: bits on held-out text, and the cost of a token over the context."""

import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn import functional as F

from flowformer.integrations.transformers.cache import CACHE, cache_keyword
from flowformer.integrations.transformers.linearizing.texts import Text, begun
from flowformer.progress import working

STEPS = 10  # tokens over which the time of one is taken


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A model on held-out text.

    Attributes:
        name: "before", "exchanged", "transfer" or "tuning".
        tokens: tokens that it was trained on since the start.
        nats: cross-entropy of a token.
        bits_per_character: the same for each character of the text.
        seconds: what the training took since the stage before.
    """

    name: str
    tokens: int
    nats: float
    bits_per_character: float
    seconds: float

    @property
    def perplexity(self) -> float:
        """exp(nats): comparable between models with the same tokens only; inf beyond a float."""
        try:
            return math.exp(self.nats)
        except OverflowError:
            return math.inf


@dataclass(frozen=True, kw_only=True)
class Cost:
    """The cost of the token after a context.

    Attributes:
        context: tokens of the context.
        milliseconds: the median time of a token.
        bytes: what the cache holds.
    """

    context: int
    milliseconds: float
    bytes: int


@torch.no_grad()
def cross_entropy(model: Any, text: Text, *, length: int, batch_size: int, most: int) -> float:
    """Return the mean cross-entropy of a token, in nats, each after at most `length` others.

    Args:
        model: the model.
        text: the text, in pieces of `length` tokens, each by itself, after the token that begins a
            text.
        length: tokens of a piece.
        batch_size: pieces that are read at once.
        most: tokens of the text that are read at most.
    """
    model.eval()
    device = next(model.parameters()).device
    tokens = text.tokens[: most + 1].to(device, torch.int64)
    whole = (tokens.numel() - 1) // length * length
    pieces = [*range(0, whole, length * batch_size)]
    total = 0.0
    with working("held-out text", total=tokens.numel() - 1, unit="tokens") as work:
        for at in pieces:
            end = min(at + length * batch_size, whole)
            ids, targets = (tokens[at + n : end + n].view(-1, length) for n in (0, 1))
            total += _sum_of_nats(model, ids, targets, text.first)
            work.reach(end)
        if whole < tokens.numel() - 1:
            ids, targets = tokens[None, whole:-1], tokens[None, whole + 1 :]
            total += _sum_of_nats(model, ids, targets, text.first)
    return total / (tokens.numel() - 1)


def _sum_of_nats(
    model: Any, ids: Int[Tensor, "b t"], targets: Int[Tensor, "b t"], first: int | None
) -> float:
    logits = model(input_ids=begun(ids, first), use_cache=False).logits.float()
    logits = logits[:, -ids.shape[1] :]  # what the first token alone predicts is left out
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum").item()


def bits_per_character(nats: float, text: Text) -> float:
    """Return the bits of a character where a token has so many nats."""
    return nats / math.log(2) * text.tokens.numel() / text.characters


@torch.no_grad()
def costs(model: Any, tokens: Int[Tensor, " n"], contexts: Sequence[int]) -> list[Cost]:
    """Return the cost of a token after each of some contexts, of the text, over and over."""
    model.eval()
    device = next(model.parameters()).device
    most = getattr(model.config, "max_position_embeddings", None) or math.inf
    found = []
    with working("cost of a token", total=len(contexts), unit="contexts") as work:
        for context in contexts:
            if context + STEPS <= most:
                ids = tokens.repeat(-(-(context + STEPS) // tokens.numel())).to(device, torch.int64)
                found.append(_cost(model, ids, context))
            work.advance()
    return found


def _cost(model: Any, ids: Int[Tensor, " n"], context: int) -> Cost:
    out = model(input_ids=ids[None, :context], use_cache=True, logits_to_keep=1)
    cache, seconds = getattr(out, CACHE), []
    for at in range(context, context + STEPS):
        start = time.perf_counter()
        logits = model(input_ids=ids[None, at : at + 1], use_cache=True, **cache_keyword(cache))
        logits.logits.argmax().item()  # waits for an accelerator
        seconds.append(time.perf_counter() - start)
    return Cost(
        context=context,
        milliseconds=1e3 * statistics.median(seconds),
        bytes=cache_bytes(cache),
    )


def cache_bytes(cache: Any) -> int:
    """Return the bytes that a cache holds: keys and values, and states."""
    tensors: list[Tensor | None] = []
    for layer in cache.layers:
        tensors += [layer.keys, layer.values, *(getattr(layer, "state", None) or ())]
    return sum(each.numel() * each.element_size() for each in tensors if each is not None)
