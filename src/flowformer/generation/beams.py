"""Beam search: the most probable sequence, among the extensions of the few best at each length."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from flowformer.generation.sampling import Sampling, penalize_repetition
from flowformer.generation.steps import (
    Decoder,
    GenerationOutput,
    Prompt,
    select_rows,
)
from flowformer.progress import counted


class _Beams(NamedTuple):
    """Sequences with their scores; `n` of them for each row of the batch.

    Attributes:
        tokens: the new tokens so far, padding after them.
        log_probs: log-probabilities of these tokens under the model.
        total: the sum of the log-probabilities, penalties included, which ranks them.
        length: the number of tokens.
        stopped: whether the last one is a stop token.
    """

    tokens: Int[Tensor, "b n new"]
    log_probs: Float[Tensor, "b n new"]
    total: Float[Tensor, "b n"]
    length: Int[Tensor, "b n"]
    stopped: Bool[Tensor, "b n"]

    def take(self, index: Int[Tensor, "b m"]) -> "_Beams":
        """Return the sequences with these places, for each row of the batch."""
        row = torch.arange(len(index), device=index.device)[:, None]
        return _Beams(*(field[row, index] for field in self))


def beam_search(
    decoder: Decoder,
    prompt: Prompt,
    sampling: Sampling,
    *,
    num_beams: int,
    max_new_tokens: int,
    length_penalty: float,
    stops: Int[Tensor, " s"],
    pad_id: int,
) -> GenerationOutput:
    """Return the sequence with the largest Σ log p(token) / length^length_penalty that is met.

    At each step the `num_beams` best sequences without a stop token are extended. One that ends
    with a stop token is kept if it is among the `num_beams` best extensions and better than what
    was kept before; at `max_new_tokens` all end. A row is settled, exactly, when no extension can
    be better than what it keeps (transformers' early_stopping="never").

    Args:
        decoder: a decoder that has read nothing.
        prompt: the prompts.
        sampling: whose repetition penalty counts, on the log-probabilities as in transformers.
        num_beams: the number of sequences that are extended.
        max_new_tokens: the length at which all end.
        length_penalty: above 0 favours longer sequences, below 0 shorter ones.
        stops: tokens that end a sequence.
        pad_id: the token that fills a row that has ended.
    """
    b, k = len(prompt.input_ids), num_beams
    logits = decoder.start(prompt)
    v = logits.shape[-1]
    first = torch.arange(b, device=logits.device).repeat_interleave(k)
    decoder.reorder(first)
    logits = logits[first]
    seen = prompt.repeat(k).seen(v) if sampling.repetition_penalty != 1 else None
    running = _start(logits.view(b, k, v), max_new_tokens, pad_id)
    best = running.take(first.new_zeros(b, 1))
    best_score = running.total.new_full((b, 1), -torch.inf)
    for step in counted(range(max_new_tokens), "generating", unit="tokens"):
        log_probs = logits.log_softmax(-1)
        gain = log_probs
        if seen is not None:
            gain = penalize_repetition(log_probs, seen, sampling.repetition_penalty)
        # Each of the k beams has at most one extension by each stop token: k others always remain.
        source, extended = _extend(
            running, log_probs.view(b, k, v), gain.view(b, k, v), stops, k * (1 + len(stops))
        )
        last = step == max_new_tokens - 1
        score = extended.total / (step + 1) ** length_penalty
        ended = torch.ones_like(extended.stopped) if last else extended.stopped
        ended_score, ended_place = score[:, :k].masked_fill(~ended[:, :k], -torch.inf).max(1, True)
        better = ended_score > best_score
        best_score = torch.where(better, ended_score, best_score)
        best = _choose(better, extended.take(ended_place), best)
        if last:
            break
        open_total = extended.total.masked_fill(extended.stopped, -torch.inf)
        place = open_total.topk(k).indices
        running = extended._replace(total=open_total).take(place)
        # Sums only fall: the most that an extension can still reach.
        longest = max_new_tokens if length_penalty > 0 else step + 2
        if (running.total[:, :1] / longest**length_penalty <= best_score).all():
            break
        rows = (source.gather(1, place) + k * torch.arange(b, device=place.device)[:, None]).view(
            -1
        )
        token = running.tokens[:, :, step].reshape(-1)
        decoder.reorder(rows)
        if seen is not None:
            seen = select_rows(seen, rows).scatter_(1, token[:, None], True)
        logits = decoder.step(token)
    width = int(best.length.max())
    return GenerationOutput(
        torch.cat((prompt.input_ids, best.tokens[:, 0, :width]), 1),
        best.log_probs[:, 0, :width],
        best.length[:, 0],
        best.stopped[:, 0],
    )


def _start(logits: Float[Tensor, "b k v"], max_new_tokens: int, pad_id: int) -> _Beams:
    """Nothing yet; all but the first beam are impossible, since they would be its copies."""
    b, k, _ = logits.shape
    total = logits.new_full((b, k), -torch.inf)
    total[:, 0] = 0
    tokens = torch.full((b, k, max_new_tokens), pad_id, device=logits.device)
    length = torch.zeros_like(tokens[:, :, 0])
    return _Beams(tokens, logits.new_zeros(tokens.shape), total, length, length.to(torch.bool))


def _extend(
    running: _Beams,
    log_probs: Float[Tensor, "b k v"],
    gain: Float[Tensor, "b k v"],
    stops: Int[Tensor, " s"],
    count: int,
) -> tuple[Int[Tensor, "b n"], _Beams]:
    """Return the best extensions by one token, best first, and the beam that each extends."""
    v = log_probs.shape[-1]
    totals = (running.total[:, :, None] + gain).flatten(1)
    total, place = totals.topk(min(count, totals.shape[1]))
    source, token = place // v, place % v
    extended = running.take(source)
    step = extended.length[:, :, None]
    added = log_probs.flatten(1).gather(1, place)
    return source, _Beams(
        extended.tokens.scatter(2, step, token[:, :, None]),
        extended.log_probs.scatter(2, step, added[:, :, None]),
        total,
        extended.length + 1,
        torch.isin(token, stops),
    )


def _choose(better: Bool[Tensor, "b 1"], new: _Beams, old: _Beams) -> _Beams:
    """For each row of the batch, the new sequence if it is better."""
    return _Beams(
        *(
            torch.where(better.view(-1, *[1] * (a.ndim - 1)), a, b)
            for a, b in zip(new, old, strict=True)
        )
    )
