"""Random-feature attention against its equations, and against the softmax that it estimates."""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from flowformer.nn import build_mixer
from flowformer.nn.mixers.performer import RandomDirections
from flowformer.nn.mixers.rfa import GatedRFAAttention, gated_rfa_attention, rfa_attention
from flowformer.nn.mixers.softmax import softmax_attention
from flowformer.ops import LinearState

HEADS, WIDTH, FEATURES = 4, 8, 16


def draw(length: int, sources: int, *, kv_heads: int = HEADS) -> tuple[Tensor, Tensor, Tensor]:
    q = torch.randn(2, length, HEADS, WIDTH, dtype=torch.float64)
    k = torch.randn(2, sources, kv_heads, WIDTH, dtype=torch.float64)
    v = torch.randn(2, sources, kv_heads, 5, dtype=torch.float64)
    return q, k, v


class Parts(NamedTuple):
    directions: Tensor
    scale: Tensor


def parts(num_features: int = FEATURES) -> Parts:
    directions = torch.randn(HEADS, num_features, WIDTH, dtype=torch.float64)
    return Parts(directions, torch.rand(HEADS, WIDTH, dtype=torch.float64) + 0.5)


def kernel(q: Tensor, k: Tensor, directions: Tensor, scale: Tensor) -> Tensor:
    """The mean of cos ω·(q' - k'), which the products of sines and cosines are; [b, h, l, s]."""
    q, k = (F.normalize(x, dim=-1) * scale for x in (q, k.repeat_interleave(4 // k.shape[2], 2)))
    difference = q[:, :, None] - k[:, None]
    return torch.einsum("blshd,hfd->bhlsf", difference, directions).cos().mean(-1)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    random: Parts,
    *,
    eps: float = 0.1,
    causal: bool = False,
    mask: Tensor | None = None,
) -> Tensor:
    directions, scale = random
    out = rfa_attention(
        q, k, v, directions=directions, scale=scale, eps=eps, causal=causal, mask=mask
    )
    assert isinstance(out, Tensor)
    return out


def attend_gated(
    q: Tensor, k: Tensor, v: Tensor, random: Parts, gate: Tensor, mask: Tensor | None = None
) -> tuple[Tensor, LinearState]:
    directions, scale = random
    return gated_rfa_attention(
        q, k, v, gate=gate, directions=directions, scale=scale, eps=1e-3, mask=mask
    )


@pytest.mark.parametrize("kv_heads", [4, 2], ids="{}-key-heads".format)
@pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])
@pytest.mark.parametrize(("length", "sources"), [(1, 1), (63, 63), (17, 40), (40, 1)])
def test_is_the_equation(length: int, sources: int, causal: bool, kv_heads: int) -> None:
    sources = length if causal else sources
    (q, k, v), random = draw(length, sources, kv_heads=kv_heads), parts()
    scores = kernel(q, k, *random)
    scores = scores.tril() if causal else scores
    weights = scores / scores.sum(-1, keepdim=True).clamp(min=0.1)
    expected = torch.einsum("bhls,bshm->blhm", weights, v.repeat_interleave(4 // kv_heads, 2))
    torch.testing.assert_close(attend(q, k, v, random, causal=causal), expected)


@pytest.mark.parametrize(
    "causal",
    # Evidence of the features, which are the same in both forms.
    [False, pytest.param(True, marks=pytest.mark.slow)],
    ids=["bidirectional", "causal"],
)
def test_more_features_approach_softmax_attention_of_unit_vectors(causal: bool) -> None:
    """The mean squared error falls as one over the number of features: 64 times fewer, 8 as far."""
    torch.manual_seed(0)
    q, k, v = draw(40, 40)
    scale = torch.full((HEADS, WIDTH), 0.7, dtype=torch.float64)
    unit_q, unit_k = F.normalize(q, dim=-1) * 0.7, F.normalize(k, dim=-1) * 0.7
    exact = softmax_attention(unit_q * WIDTH**0.5, unit_k, v, causal=causal)
    assert isinstance(exact, Tensor)

    def error(num_features: int) -> float:
        squares = []
        for _ in range(10):
            random = parts(num_features)._replace(scale=scale)
            estimate = attend(q, k, v, random, eps=1e-3, causal=causal)
            squares.append((estimate - exact).square().mean())
        return float(torch.stack(squares).mean().sqrt())

    few, many = error(64), error(4096)
    assert 5 < few / many < 13
    assert many < 0.03


@pytest.mark.parametrize("length", [1, 63, 130], ids="t{}".format)
def test_with_a_gate_it_is_the_recurrence(length: int) -> None:
    (q, k, v), random = draw(length, length), parts()
    gate = torch.randn(2, length, HEADS, dtype=torch.float64)
    out, state = attend_gated(q, k, v, random, gate)
    share = torch.zeros(2, HEADS, length, dtype=torch.float64)  # of each key so far
    scores, outputs = kernel(q, k, *random), []
    for t in range(length):
        g = torch.sigmoid(gate[:, t])
        share = share * g[..., None]
        share[:, :, t] = 1 - g
        weights = share * scores[:, :, t]
        total = weights.sum(-1, keepdim=True).clamp(min=1e-3)
        outputs.append(torch.einsum("bhs,bshm->bhm", weights / total, v))
    torch.testing.assert_close(out, torch.stack(outputs, 1))
    assert state.key_value.shape == (2, HEADS, 2 * FEATURES, 6)


def test_the_gate_of_the_layer_is_a_function_of_the_hidden_state() -> None:
    mixer, x = build_mixer("rfa-gated", 12, 3).eval(), torch.randn(2, 20, 12)
    attention = mixer.attention
    assert isinstance(attention, GatedRFAAttention)
    q, k, v = (
        projection(x).view(2, 20, 3, 4)
        for projection in (mixer.query_projection, mixer.key_projection, mixer.value_projection)
    )
    out, _ = gated_rfa_attention(
        q,
        k,
        v,
        gate=x @ attention.gate.weight.T + attention.gate.bias,
        directions=attention.features.directions,
        scale=attention.scale,
        eps=1e-3,
    )
    torch.testing.assert_close(mixer(x, causal=True)[0], mixer.out_projection(out.flatten(2)))


@pytest.mark.parametrize("name", ["rfa", "rfa-gated"])
def test_each_head_has_directions_of_its_own(name: str) -> None:
    features = build_mixer(name, 12, 3).attention.features
    assert isinstance(features, RandomDirections)
    directions = features.directions
    assert directions.shape == (3, 64, 4)
    assert not (directions[0] == directions[1]).any()


@pytest.mark.parametrize("name", ["rfa", "rfa-gated"])
def test_a_bound_of_zero_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="eps must be positive, got 0"):
        build_mixer(name, 12, 3, eps=0.0)


def test_padding_may_hold_nan() -> None:
    (q, k, v), random = draw(7, 7), parts()
    gate = torch.randn(2, 7, HEADS, dtype=torch.float64)
    mask = torch.tensor([[True, True, False, True, False, True, True]]).expand(2, 7)
    real = mask[0].nonzero()[:, 0]
    alone = q[:, real], k[:, real], v[:, real]
    for x in (q, k, v):
        x[:, ~mask[0]] = torch.nan
        x.requires_grad_()
    for causal in (False, True):
        out = attend(q, k, v, random, causal=causal, mask=mask)
        torch.testing.assert_close(out[:, real], attend(*alone, random, causal=causal))
        for gradient in torch.autograd.grad(out.sum(), (q, k, v)):
            assert gradient.isfinite().all()
    out, _ = attend_gated(q, k, v, random, gate, mask)
    torch.testing.assert_close(out[:, real], attend_gated(*alone, random, gate[:, real])[0])
    for gradient in torch.autograd.grad(out.sum(), (q, k, v)):
        assert gradient.isfinite().all()
