from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from flowformer.generation.sampling import Sampling, keep_top_k, keep_top_p, penalize_repetition


def warped(processor: Any, logits: Tensor, ids: Tensor | None = None) -> Tensor:
    """Untyped: transformers wants a LongTensor, which no call of torch is said to return."""
    return processor(ids, logits)


def logits_of(vocabulary: int = 50, rows: int = 7) -> Tensor:
    return 4 * torch.randn(rows, vocabulary, dtype=torch.float64)


@pytest.mark.parametrize("k", [1, 2, 49, 50, 51])
def test_top_k_is_that_of_transformers(k):
    logits = logits_of()
    assert keep_top_k(logits, k).equal(warped(TopKLogitsWarper(k), logits))


def test_top_k_keeps_what_ties_with_the_last():
    kept = keep_top_k(torch.tensor([[1.0, 3.0, 2.0, 2.0, 0.0]]), 2)
    assert kept.isfinite().tolist() == [[False, True, True, True, False]]


@pytest.mark.parametrize("p", [1e-6, 0.1, 0.5, 0.9, 0.999])
def test_top_p_is_that_of_transformers(p):
    logits = logits_of()
    assert keep_top_p(logits, p).equal(warped(TopPLogitsWarper(p), logits))


def test_top_p_keeps_the_token_that_reaches_it():
    logits = torch.tensor([[0.15, 0.5, 0.05, 0.3]], dtype=torch.float64).log()
    for p, kept in ((0.49, 1), (0.51, 2), (0.79, 2), (0.81, 3), (1.0, 4)):
        assert int(keep_top_p(logits, p).isfinite().sum()) == kept


@pytest.mark.parametrize("penalty", [0.7, 1.3])
def test_repetition_penalty_is_that_of_transformers(penalty):
    logits, ids = logits_of(), torch.randint(50, (7, 9))
    seen = torch.zeros(7, 50, dtype=torch.bool).scatter_(1, ids, True)
    expected = warped(RepetitionPenaltyLogitsProcessor(penalty), logits, ids)
    assert penalize_repetition(logits, seen, penalty).equal(expected)


def test_the_steps_have_the_order_of_transformers():
    logits, ids = logits_of(), torch.randint(50, (7, 9))
    seen = torch.zeros(7, 50, dtype=torch.bool).scatter_(1, ids, True)
    expected = logits
    for step in (
        RepetitionPenaltyLogitsProcessor(1.5),
        TemperatureLogitsWarper(0.6),
        TopKLogitsWarper(10),
        TopPLogitsWarper(0.8),
    ):
        expected = warped(step, expected, ids)
    sampling = Sampling(
        do_sample=True, temperature=0.6, top_k=10, top_p=0.8, repetition_penalty=1.5
    )
    assert sampling.process(logits, seen).equal(expected)


def test_draws_follow_the_distribution():
    logits = torch.tensor([0.6, 0.3, 0.1, 0.0]).log().expand(20_000, 4)
    draws = Sampling(do_sample=True).choose(logits, None, torch.Generator().manual_seed(0))
    share = draws.bincount(minlength=4) / len(draws)
    # Five standard deviations of a share of 0.6 in 20,000 draws are 0.017.
    torch.testing.assert_close(share, torch.tensor([0.6, 0.3, 0.1, 0.0]), rtol=0, atol=0.017)
    assert share[3] == 0


def test_without_sampling_the_most_probable_token_is_taken():
    logits = logits_of()
    assert Sampling().choose(logits, None, None).equal(logits.argmax(-1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0, "do_sample": True}, "temperature must be positive, got 0"),
        ({"temperature": -1.0, "do_sample": True}, "temperature must be positive, got -1"),
        ({"temperature": float("nan"), "do_sample": True}, "temperature must be positive"),
        ({"top_k": 0, "do_sample": True}, "top_k must be at least 1, got 0"),
        ({"top_p": 0.0, "do_sample": True}, r"top_p must lie in \(0, 1\], got 0"),
        ({"top_p": 1.1, "do_sample": True}, r"top_p must lie in \(0, 1\], got 1.1"),
        ({"repetition_penalty": 0.0}, "repetition_penalty must be positive, got 0"),
        ({"top_k": 5}, "give do_sample=True"),
        ({"temperature": 0.7}, "give do_sample=True"),
    ],
    ids=str,
)
def test_a_value_out_of_its_range_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Sampling(**options)
