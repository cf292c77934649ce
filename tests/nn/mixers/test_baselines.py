"""The baselines against their papers' equations, written out as full matrices."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from flowformer.nn.mixers.linear import elu_attention
from flowformer.nn.mixers.linformer import linformer_attention
from flowformer.nn.mixers.softmax import KVState, _allowed, softmax_attention


def draw(length: int, sources: int, *, kv_heads: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    q = torch.randn(2, length, 4, 8, dtype=torch.float64)
    k = torch.randn(2, sources, kv_heads, 8, dtype=torch.float64)
    v = torch.randn(2, sources, kv_heads, 5, dtype=torch.float64)
    return q, k, v


def matrix(q: Tensor, k: Tensor) -> Tensor:
    """The inner products [b, h, l, s], key heads repeated."""
    return torch.einsum("blhd,bshd->bhls", q, k.repeat_interleave(q.shape[2] // k.shape[2], 2))


def mixed(weights: Tensor, v: Tensor) -> Tensor:
    return torch.einsum(
        "bhls,bshm->blhm", weights, v.repeat_interleave(weights.shape[1] // v.shape[2], 2)
    )


LENGTHS = [(1, 1), (63, 63), (17, 40), (40, 1)]


@pytest.mark.parametrize("kv_heads", [4, 2, 1], ids="{}-key-heads".format)
@pytest.mark.parametrize(("length", "sources"), LENGTHS)
class TestEquations:
    def test_softmax(self, length: int, sources: int, kv_heads: int) -> None:
        q, k, v = draw(length, sources, kv_heads=kv_heads)
        weights = (matrix(q, k) / 8**0.5).softmax(-1)
        torch.testing.assert_close(softmax_attention(q, k, v), mixed(weights, v))

    def test_linear(self, length: int, sources: int, kv_heads: int) -> None:
        q, k, v = draw(length, sources, kv_heads=kv_heads)
        weights = matrix(F.elu(q) + 1, F.elu(k) + 1)
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-6)
        torch.testing.assert_close(elu_attention(q, k, v), mixed(weights, v))

    def test_linformer(self, length: int, sources: int, kv_heads: int) -> None:
        q, k, v = draw(length, sources, kv_heads=kv_heads)
        e, f = torch.randn(2, 63, 7, dtype=torch.float64)
        short_k = torch.einsum("bshd,sr->brhd", k, e[:sources])
        short_v = torch.einsum("bshd,sr->brhd", v, f[:sources])
        weights = (matrix(q, short_k) / 8**0.5).softmax(-1)
        out = linformer_attention(q, k, v, key_mixing=e, value_mixing=f)
        torch.testing.assert_close(out, mixed(weights, short_v))


@pytest.mark.parametrize("length", [1, 63, 500], ids="t{}".format)
class TestCausalEquations:
    def test_softmax(self, length: int) -> None:
        q, k, v = draw(length, length)
        future = torch.ones(length, length, dtype=torch.bool).triu(1)
        weights = (matrix(q, k) / 8**0.5).masked_fill(future, -torch.inf).softmax(-1)
        torch.testing.assert_close(softmax_attention(q, k, v, causal=True), mixed(weights, v))

    def test_linear(self, length: int) -> None:
        q, k, v = draw(length, length)
        weights = matrix(F.elu(q) + 1, F.elu(k) + 1).tril()
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-6)
        torch.testing.assert_close(elu_attention(q, k, v, causal=True), mixed(weights, v))


def test_linear_attention_of_many_tokens_stays_exact_in_half_precision() -> None:
    """The denominator passes 65,504, half precision's largest number, after about 1,000 tokens."""
    q, k, v = (x.half() for x in draw(4, 20_000))
    out = elu_attention(q, k, v)
    assert isinstance(out, Tensor)
    assert out.dtype == torch.float16
    exact = elu_attention(q.double(), k.double(), v.double())
    assert isinstance(exact, Tensor)
    rounding = (exact.half().double() - exact).abs().max()
    assert (out.double() - exact).abs().max() <= 2 * rounding


@pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])
def test_softmax_gradients_are_those_of_finite_differences(causal: bool) -> None:
    q, k, v = (x[:1, :5, :2].requires_grad_() for x in draw(5, 5))
    mask = torch.tensor([[True, False, True, True, False]])

    def attend(*qkv: Tensor) -> Tensor:
        out = softmax_attention(*qkv, causal=causal, mask=mask)
        assert isinstance(out, Tensor)
        return out

    assert torch.autograd.gradcheck(attend, (q, k, v))


def test_padded_numbers_of_linformer_follow_the_real_tokens() -> None:
    q, k, v = draw(6, 6)
    e, f = torch.randn(2, 6, 3, dtype=torch.float64)
    mask = torch.tensor([[False, True, True, False, True, False]]).expand(2, 6)
    out = linformer_attention(q, k, v, key_mixing=e, value_mixing=f, mask=mask)
    real = [1, 2, 4]
    alone = linformer_attention(q[:, real], k[:, real], v[:, real], key_mixing=e, value_mixing=f)
    torch.testing.assert_close(out[:, real], alone)
    assert not out[:, [0, 3, 5]].any()


@pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])
def test_no_query_is_left_without_a_key(causal: bool) -> None:
    """The CPU kernel forgives it; others give NaN."""
    q, k, _ = draw(3, 5)
    mask = torch.tensor([[False] * 5, [False] * 4 + [True]])
    allowed = _allowed(q, k, mask, causal=causal)
    assert allowed is not None
    assert allowed.any(-1).all()


class TestKVState:
    def test_holds_every_key_with_its_mask(self) -> None:
        q, k, v = draw(7, 7)
        mask = torch.tensor([[True] * 3, [False, True, True]])
        state = None
        for part, part_mask in ((slice(0, 3), mask), (slice(3, 7), None)):
            result = softmax_attention(
                q[:, part],
                k[:, part],
                v[:, part],
                causal=True,
                mask=part_mask,
                initial_state=state,
                return_state=True,
            )
            assert isinstance(result, tuple)
            state = result[1]
        assert state is not None
        assert state.key.equal(k)
        assert state.value.equal(v)
        assert state.mask is not None
        assert state.mask.tolist() == [[True] * 7, [False] + [True] * 6]

    def test_needs_the_causal_form(self) -> None:
        q, k, v = draw(3, 3)
        with pytest.raises(ValueError, match="causal attention only, got causal=False"):
            softmax_attention(q, k, v, initial_state=KVState(k, v))

    def test_causal_attention_to_another_length_is_refused(self) -> None:
        with pytest.raises(ValueError, match="as many queries as keys"):
            softmax_attention(*draw(3, 4), causal=True)
