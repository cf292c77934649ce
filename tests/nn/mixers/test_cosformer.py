"""cosFormer against its equation, written out as a full matrix."""

import math

import pytest
import torch
from torch import Tensor

from flowformer.nn import build_mixer
from flowformer.nn.mixers.cosformer import cosformer_attention


def draw(length: int, sources: int, *, kv_heads: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    q = torch.randn(2, length, 4, 8, dtype=torch.float64)
    k = torch.randn(2, sources, kv_heads, 8, dtype=torch.float64)
    v = torch.randn(2, sources, kv_heads, 5, dtype=torch.float64)
    return q, k, v


def attend(q: Tensor, k: Tensor, v: Tensor, *, max_length: int, causal: bool = False) -> Tensor:
    out = cosformer_attention(q, k, v, max_length=max_length, eps=1e-6, causal=causal)
    assert isinstance(out, Tensor)
    return out


def equation(q: Tensor, k: Tensor, v: Tensor, longest: int, *, causal: bool) -> Tensor:
    k, v = (x.repeat_interleave(4 // x.shape[2], 2) for x in (k, v))
    distance = torch.arange(q.shape[1])[:, None] - torch.arange(k.shape[1])
    scores = torch.einsum("blhd,bshd->bhls", q.relu(), k.relu())
    scores = scores * torch.cos(math.pi / 2 * distance.double() / longest)
    scores = scores.tril() if causal else scores
    weights = scores / scores.sum(-1, keepdim=True).clamp(min=1e-6)
    return torch.einsum("bhls,bshm->blhm", weights, v)


@pytest.mark.parametrize("kv_heads", [4, 2], ids="{}-key-heads".format)
@pytest.mark.parametrize("longest", [63, 500], ids="M{}".format)
@pytest.mark.parametrize(("length", "sources"), [(1, 1), (63, 63), (17, 40), (40, 1)])
def test_is_the_equation(length: int, sources: int, longest: int, kv_heads: int) -> None:
    q, k, v = draw(length, sources, kv_heads=kv_heads)
    expected = equation(q, k, v, longest, causal=False)
    torch.testing.assert_close(attend(q, k, v, max_length=longest), expected)


@pytest.mark.parametrize("length", [1, 63, 500], ids="t{}".format)
def test_is_the_causal_equation(length: int) -> None:
    q, k, v = draw(length, length)
    expected = equation(q, k, v, 500, causal=True)
    torch.testing.assert_close(attend(q, k, v, max_length=500, causal=True), expected)


def test_near_keys_weigh_more() -> None:
    """With equal features the weights are the cosines: at two thirds of M a half, at M zero."""
    q = k = torch.ones(1, 61, 1, 8, dtype=torch.float64)
    v = torch.eye(61, dtype=torch.float64)[None, :, None, :]
    weights = attend(q, k, v, max_length=60 + 1)[0, 0, 0]
    torch.testing.assert_close(
        weights, torch.cos(math.pi / 2 * torch.arange(61) / 61).double() * weights[0]
    )
    assert (weights.diff() < 0).all()


def test_real_tokens_are_numbered_without_the_padded_ones() -> None:
    q, k, v = draw(7, 7)
    mask = torch.tensor([[True, True, False, True, False, True, True]]).expand(2, 7)
    real = mask[0].nonzero()[:, 0]
    for causal in (False, True):
        expected = equation(q[:, real], k[:, real], v[:, real], 9, causal=causal)
        nan = [x.masked_fill(~mask[..., None, None], torch.nan).requires_grad_() for x in (q, k, v)]
        out = cosformer_attention(*nan, max_length=9, eps=1e-6, causal=causal, mask=mask)
        assert isinstance(out, Tensor)
        torch.testing.assert_close(out[:, real], expected)
        for gradient in torch.autograd.grad(out.sum(), nan):
            assert gradient.isfinite().all()


def test_a_query_without_positive_features_gives_zero() -> None:
    q, k, v = draw(3, 3)
    assert not attend(-q.abs(), k, v, max_length=3).any()


def test_a_streamed_sequence_is_bounded_too() -> None:
    mixer, x = build_mixer("cosformer", 8, 2, max_length=10), torch.randn(2, 6, 8)
    _, state = mixer(x, causal=True, return_state=True)
    mixer(x[:, :4], causal=True, state=state)
    with pytest.raises(ValueError, match="max_length of 10 keys, got 12"):
        mixer(x, causal=True, state=state)
    mask = torch.tensor([[True] * 3 + [False] * 3, [True] * 4 + [False] * 2])
    _, state = mixer(x, causal=True, mask=mask, return_state=True)
    assert state.tokens.tolist() == [3, 4]
    mixer(x, causal=True, state=state)


def test_wrong_options_and_calls_are_refused() -> None:
    with pytest.raises(ValueError, match=r"eps=0\.0"):
        build_mixer("cosformer", 8, 2, max_length=10, eps=0.0)
    with pytest.raises(ValueError, match="max_length=0"):
        build_mixer("cosformer", 8, 2, max_length=0)
    with pytest.raises(ValueError, match="causal attention only, got causal=False"):
        cosformer_attention(*draw(3, 3), max_length=3, eps=1e-6, return_state=True)
