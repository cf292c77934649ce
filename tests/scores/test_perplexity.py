import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from flowformer.scores.perplexity import (
    Perplexity,
    evaluate_perplexity,
    sliding_windows,
    streaming_perplexity,
)
from tests.generation.small_language_model import STATEFUL, build, draw_ids


@torch.no_grad()
def naive(model: nn.Module, tokens: Tensor, length: int, context_window: int) -> float:
    """One token at a time, each after what fairseq's window gives it to read."""
    model.eval()
    nll, step = 0.0, length - context_window
    for place in range(1, len(tokens)):
        block = (place - 1) // step * step
        read = tokens[max(0, block - context_window) : place]
        nll -= float(model(read[None]).logits[0, -1].log_softmax(-1)[tokens[place]])
    return nll


@pytest.mark.parametrize("targets", [1, 111, 112, 113, 511, 512, 513, 2000])
@pytest.mark.parametrize(("length", "context_window"), [(512, 400), (512, 0), (7, 6)])
def test_windows_score_every_token_once(targets, length, context_window):
    scored, reached = [], 0
    for start, score, stop in sliding_windows(targets, length, context_window):
        assert start <= score < stop
        assert stop - start <= length
        assert score - start == min(score, context_window)
        assert score == reached
        scored += range(score, stop)
        reached = stop
    assert scored == list(range(targets))


@pytest.mark.parametrize(
    ("mixer", "length", "context_window", "batch_size"),
    [
        *(("flow", 12, 8, 1), ("flow", 12, 0, 4), ("flow", 5, 4, 4), ("flow", 64, 40, 1)),
        *(("softmax", 12, 8, 4), ("softmax", 12, 0, 1)),
    ],
)
def test_sliding_evaluation_is_that_of_a_plain_loop(mixer, length, context_window, batch_size):
    model, tokens = build(mixer), draw_ids(50)
    result = evaluate_perplexity(
        model, tokens, length=length, context_window=context_window, batch_size=batch_size
    )
    assert result.tokens == 49
    assert result.nll == pytest.approx(naive(model, tokens, length, context_window), rel=1e-12)


def test_logits_are_computed_of_scored_tokens_only(monkeypatch):
    rows, of_logits = [], functional.cross_entropy

    def counted(logits: Tensor, targets: Tensor, **options: Any) -> Tensor:
        rows.append(len(logits))
        return of_logits(logits, targets, **options)

    monkeypatch.setattr(functional, "cross_entropy", counted)
    evaluate_perplexity(build(), draw_ids(50), length=12, context_window=8)
    assert sum(rows) == 49


def test_a_start_token_lets_the_first_token_be_scored():
    model, tokens = build(), draw_ids(50)
    joined_tokens = torch.cat((torch.tensor([3]), tokens))
    started = evaluate_perplexity(model, tokens, start_id=3, length=12, context_window=8)
    joined = evaluate_perplexity(model, joined_tokens, length=12, context_window=8)
    assert started.tokens == 50
    assert started.nll == joined.nll
    assert streaming_perplexity(model, tokens, start_id=3).nll == pytest.approx(
        naive(model, joined_tokens, 64, 0), rel=1e-12
    )


@pytest.mark.parametrize("mixer", STATEFUL)
def test_streaming_is_one_pass_over_the_whole_text(mixer):
    model, tokens = build(mixer), draw_ids(50)
    whole = evaluate_perplexity(model, tokens, length=64, context_window=0)
    # Of other mixers single tokens are carried by generation.
    for chunk in (1, 7, 49, 100) if mixer == STATEFUL[0] else (7, 100):
        result = streaming_perplexity(model, tokens, chunk=chunk)
        assert result.tokens == 49
        assert result.nll == pytest.approx(whole.nll, rel=1e-10)


def test_a_text_may_be_an_array_of_small_integers(tmp_path):
    tokens = draw_ids(50)
    file = tmp_path / "tokens"
    tokens.numpy().astype(np.uint16).tofile(file)
    mapped = np.memmap(file, dtype=np.uint16, mode="r")
    model = build()
    for evaluate in (evaluate_perplexity, streaming_perplexity):
        assert evaluate(model, mapped) == evaluate(model, tokens)


def test_progress_counts_up_to_the_end(told):
    model, tokens = build(), draw_ids(50)
    calls: list[tuple[Any, dict[str, Any]]] = [
        (evaluate_perplexity, {"length": 12, "context_window": 8, "batch_size": 3}),
        (streaming_perplexity, {"chunk": 10}),
    ]
    for evaluate, sizes in calls:
        told.clear()
        evaluate(model, tokens, **sizes)
        assert told == sorted(set(told))
        assert told[-1] == ("scoring the text", 49, 49)
        assert len(told) > 3


def test_the_training_mode_is_put_back_and_dropout_left_out():
    model = build().train()
    first, second = (evaluate_perplexity(model, draw_ids(50)) for _ in range(2))
    assert first == second
    assert model.training


def test_figures_come_from_the_log_likelihood():
    result = Perplexity(nll=300.0, tokens=100, words=60, characters=400)
    assert result.per_token == pytest.approx(math.exp(3))
    assert result.per_word == pytest.approx(math.exp(5))
    assert result.bits_per_character == pytest.approx(0.75 / math.log(2))
    uncounted = Perplexity(nll=300.0, tokens=100)
    assert (uncounted.per_word, uncounted.bits_per_character) == (None, None)
    assert Perplexity(nll=1e6, tokens=1).per_token == math.inf


@pytest.mark.parametrize("evaluate", [evaluate_perplexity, streaming_perplexity])
def test_a_text_without_a_token_to_score_is_refused(evaluate):
    for count in (0, 1):
        with pytest.raises(ValueError, match=f"a token to score, got {count} tokens"):
            evaluate(build(), draw_ids(count))


@pytest.mark.parametrize(
    "sizes",
    [
        {"length": 4, "context_window": 4},
        {"length": 4, "context_window": -1},
        {"length": 0, "context_window": 0},
    ],
    ids=str,
)
def test_windows_that_score_nothing_are_refused(sizes):
    with pytest.raises(ValueError, match="which must be at least 1"):
        evaluate_perplexity(build(), draw_ids(9), **sizes)


def test_sizes_below_one_are_refused():
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        evaluate_perplexity(build(), draw_ids(9), batch_size=0)
    with pytest.raises(ValueError, match="chunk must be at least 1, got 0"):
        streaming_perplexity(build(), draw_ids(9), chunk=0)


def test_streaming_asks_for_a_state():
    with pytest.raises(NotImplementedError, match="no state form"):
        streaming_perplexity(build("reformer"), draw_ids(9))
