"""YOSO-E: its equation, its gradient, what it stands for; transformers with the same weights."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import YosoConfig
from transformers.models.yoso.modeling_yoso import YosoSelfAttention

from flowformer.nn import MultiheadAttention, build_mixer
from flowformer.nn.mixers.yoso import YosoAttention, collision_probability, yoso_attention


def draw(length: int, sources: int, *, kv_heads: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    q = torch.randn(2, length, 4, 8, dtype=torch.float64)
    k = torch.randn(2, sources, kv_heads, 8, dtype=torch.float64)
    v = torch.randn(2, sources, kv_heads, 5, dtype=torch.float64)
    return q, k, v


@pytest.mark.parametrize("kv_heads", [4, 2, 1], ids="{}-key-heads".format)
@pytest.mark.parametrize(("length", "sources"), [(1, 1), (63, 63), (17, 40), (40, 1)])
def test_is_a_normalized_sum_weighted_by_angles(length: int, sources: int, kv_heads: int) -> None:
    q, k, v = draw(length, sources, kv_heads=kv_heads)
    out = yoso_attention(q, k, v, hash_bits=9)
    k, v = (x.repeat_interleave(4 // kv_heads, 2) for x in (k, v))
    cosine = F.cosine_similarity(q[:, :, None], k[:, None], dim=-1).clamp(-1, 1)
    weights = (1 - cosine.arccos() / math.pi) ** 9
    total = torch.einsum("blsh,bshm->blhm", weights, v)
    torch.testing.assert_close(out, total / total.norm(dim=-1, keepdim=True))


def test_a_weight_is_the_probability_that_hashes_agree() -> None:
    x, y = torch.randn(2, 6, dtype=torch.float64)
    trials, bits = 200_000, 3
    planes = torch.randn(trials, bits, 6, dtype=torch.float64)
    agree = ((planes @ x > 0) == (planes @ y > 0)).all(-1).double()
    probability = collision_probability(F.cosine_similarity(x, y, dim=0), bits)
    # Four standard deviations of the estimate.
    assert (agree.mean() - probability).abs() < 4 * agree.std() / trials**0.5


def test_the_gradient_is_the_published_lower_bound() -> None:
    cosine = torch.tensor([-1.0, -0.5, 0.0, 0.7, 1.0], dtype=torch.float64, requires_grad=True)
    weight = collision_probability(cosine, 9)
    (gradient,) = torch.autograd.grad(weight.sum(), cosine)
    torch.testing.assert_close(gradient, 9 / 2 * weight)
    inside = cosine.detach()[1:-1].requires_grad_()
    (exact,) = torch.autograd.grad(((1 - inside.arccos() / math.pi) ** 9).sum(), inside)
    assert (gradient[1:-1] <= exact).all()


def test_parallel_vectors_have_a_finite_gradient() -> None:
    x = torch.randn(1, 5, 2, 8)  # in float32, cosines of equal vectors pass 1
    q = x.clone().requires_grad_()
    out = yoso_attention(q, x, torch.randn(1, 5, 2, 8), hash_bits=9)
    out[..., 0].sum().backward()
    assert out.isfinite().all()
    assert q.grad is not None
    assert q.grad.isfinite().all()


@pytest.mark.parametrize("fill", [torch.nan, 1e4], ids=["nan", "wild"])
def test_padding_changes_nothing(fill: float) -> None:
    q, k, v = draw(11, 11)
    mask = torch.rand(2, 11) > 0.4
    qkv = [x.masked_fill(~mask[:, :, None, None], fill).requires_grad_() for x in (q, k, v)]
    out = yoso_attention(*qkv, hash_bits=9, mask=mask)
    out[..., 0].sum().backward()
    assert not out[~mask].any()
    assert all(x.grad is not None and not x.grad[~mask].any() for x in qkv)
    for row in range(2):
        alone = (x[row : row + 1, mask[row]] for x in (q, k, v))
        torch.testing.assert_close(out[row, mask[row]], yoso_attention(*alone, hash_bits=9)[0])


def test_there_is_no_matrix_of_weights() -> None:
    attention = MultiheadAttention(8, 2, mixer="yoso", batch_first=True)
    x = torch.randn(1, 5, 8)
    assert attention(x, x, x, need_weights=False)[0].shape == x.shape
    with pytest.raises(NotImplementedError, match="YosoAttention is not linear in the values"):
        attention(x, x, x)


def test_a_hash_has_at_least_one_bit() -> None:
    with pytest.raises(ValueError, match="hash_bits must be positive, got 0"):
        YosoAttention(hash_bits=0)


@pytest.mark.parametrize("with_mask", [False, True], ids=["full", "masked"])
def test_transformers_gives_the_same_output_and_gradients(with_mask: bool) -> None:
    config = YosoConfig(
        hidden_size=24,
        num_attention_heads=3,
        use_expectation=True,
        hash_code_len=9,
        attention_probs_dropout_prob=0.0,
    )
    theirs = YosoSelfAttention(config).eval()
    ours = build_mixer("yoso", 24, 3, hash_bits=9)
    for name in ("query", "key", "value"):
        ours.get_submodule(f"{name}_projection").load_state_dict(
            theirs.get_submodule(name).state_dict()
        )
    # The rest of the mixer is left out: the output projection is not part of theirs.
    torch.nn.init.eye_(ours.out_projection.weight)
    torch.nn.init.zeros_(ours.out_projection.bias)
    x = torch.randn(2, 40, 24)
    mask = torch.ones(2, 40, dtype=torch.bool)
    if with_mask:
        mask[1, 25:] = False
    # Its mask as the model around it makes it: 0 at real tokens, -10,000 at padding.
    expected = theirs(x, (~mask).float() * -10_000.0)[0]
    y, _ = ours(x, mask=mask)
    torch.testing.assert_close(y[mask], expected[mask])
    weight = torch.randn(2, 40, 24) * mask[..., None]
    (y * weight).sum().backward()
    (expected * weight).sum().backward()
    for name in ("query", "key", "value"):
        torch.testing.assert_close(
            ours.get_parameter(f"{name}_projection.weight").grad,
            theirs.get_parameter(f"{name}.weight").grad,
            rtol=1e-4,
            atol=1e-5,
        )
