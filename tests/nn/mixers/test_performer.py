"""FAVOR+ against its equations, against exact attention, and against performer-pytorch."""

from typing import Any

import pytest
import torch
from torch import Tensor

from flowformer.nn import build_mixer
from flowformer.nn.mixers.performer import (
    PerformerAttention,
    RandomDirections,
    orthogonal_directions,
    performer_attention,
)
from flowformer.nn.mixers.softmax import softmax_attention

WIDTH = 8


def draw(*shape: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*shape, dtype=torch.float64)


def weights(q: Tensor, k: Tensor, directions: Tensor, *, causal: bool) -> Tensor:
    """φ(q_i) · φ(k_j) over their sum, the features written out and nothing subtracted."""
    q, k = (
        torch.exp(
            torch.einsum("bthd,fd->bhtf", x, directions) / WIDTH**0.25
            - x.square().sum(-1).transpose(1, 2)[..., None] / (2 * WIDTH**0.5)
        )
        for x in (q, k)
    )
    scores = q @ k.mT
    scores = scores.tril() if causal else scores
    return scores / scores.sum(-1, keepdim=True)


def attend(q: Tensor, k: Tensor, v: Tensor, directions: Tensor, **options: Any) -> Tensor:
    out = performer_attention(q, k, v, directions=directions, eps=0.0, **options)
    assert isinstance(out, Tensor)
    return out


@pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])
@pytest.mark.parametrize("length", [1, 63, 500], ids="t{}".format)
def test_is_the_equation(length: int, causal: bool) -> None:
    q, k, v = draw(2, length, 3, WIDTH), draw(2, length, 3, WIDTH), draw(2, length, 3, 5)
    directions = orthogonal_directions(20, WIDTH)
    expected = weights(q, k, directions, causal=causal) @ v.transpose(1, 2)
    torch.testing.assert_close(attend(q, k, v, directions, causal=causal), expected.transpose(1, 2))


@pytest.mark.parametrize(
    "causal",
    # Evidence of the features, which are the same in both forms.
    [False, pytest.param(True, marks=pytest.mark.slow)],
    ids=["bidirectional", "causal"],
)
def test_more_features_approach_softmax_attention(causal: bool) -> None:
    """The mean squared error falls as one over the number of features: 64 times fewer, 8 as far."""
    torch.manual_seed(0)
    q, k, v = (draw(1, 40, 1, WIDTH, scale=0.5) for _ in range(3))
    exact = softmax_attention(q, k, v, causal=causal)
    assert isinstance(exact, Tensor)

    def error(num_features: int) -> float:
        squares = [
            (attend(q, k, v, orthogonal_directions(num_features, WIDTH), causal=causal) - exact)
            .square()
            .mean()
            for _ in range(20)
        ]
        return float(torch.stack(squares).mean().sqrt())

    few, many = error(64), error(4096)
    assert 5 < few / many < 13
    assert many < 0.03


class TestDirections:
    def test_are_orthogonal_in_blocks_as_wide_as_a_head(self) -> None:
        directions = orthogonal_directions(20, WIDTH)
        assert directions.shape == (20, WIDTH)
        for block in directions.split(WIDTH):
            gram = block @ block.mT
            torch.testing.assert_close(gram, gram.diagonal().diag())

    def test_each_is_gaussian(self) -> None:
        """Moments of N(0, 1) within five standard errors of 40,000 draws."""
        numbers = orthogonal_directions(5000, WIDTH)
        standard_error = numbers.numel() ** -0.5
        assert abs(float(numbers.mean())) < 5 * standard_error
        assert abs(float(numbers.square().mean()) - 1) < 5 * 2**0.5 * standard_error
        assert abs(float(numbers.pow(4).mean()) - 3) < 5 * 96**0.5 * standard_error

    def test_stay_in_evaluation_and_are_redrawn_in_training(self) -> None:
        features = RandomDirections(12, WIDTH, redraw_every=3)
        first = features.directions.clone()
        features.eval()
        for _ in range(5):
            assert features().equal(first)
        features.train()
        assert features().equal(first)
        assert features().equal(first)
        assert not features().equal(first)
        assert int(features.calls) == 3

    def test_are_redrawn_on_demand(self) -> None:
        features = RandomDirections(2, 12, WIDTH, redraw_every=None)
        first = features.directions.clone()
        assert features.train()().equal(first)
        features.redraw()
        assert not (features.directions == first).any()
        assert not (features.directions[0] == features.directions[1]).any()

    def test_a_resumed_run_redraws_when_the_first_would_have(self) -> None:
        first = RandomDirections(12, WIDTH, redraw_every=3).train()
        first()
        second = RandomDirections(12, WIDTH, redraw_every=3).train()
        second.load_state_dict(first.state_dict())
        torch.manual_seed(5)
        expected = [first() for _ in range(2)]
        torch.manual_seed(5)
        assert all(second().equal(each) for each in expected)

    def test_gradients_are_those_of_the_directions_of_the_call(self) -> None:
        """The next call redraws before the first's backward pass."""
        attention = PerformerAttention(head_dim=WIDTH, redraw_every=2).double().train()
        x = draw(1, 9, 2, WIDTH).requires_grad_()
        (expected,) = torch.autograd.grad(attention.eval()(x, x, x)[0].sum(), x)
        out, _ = attention.train()(x, x, x)
        attention(x, x, x)
        (gradient,) = torch.autograd.grad(out.sum(), x)
        torch.testing.assert_close(gradient, expected)

    @pytest.mark.usefixtures("shape_checks_off")
    def test_redraw_inside_a_compiled_graph(self) -> None:
        mixer = build_mixer("performer", 16, 2, redraw_every=2).train()
        compiled = torch.compile(mixer, fullgraph=True, backend="aot_eager")
        x, features = torch.randn(2, 9, 16), mixer.attention.features
        assert isinstance(features, RandomDirections)
        first = features.directions.clone()
        compiled(x)
        assert features.directions.equal(first)
        compiled(x)
        assert not features.directions.equal(first)

    def test_wrong_numbers_are_refused(self) -> None:
        with pytest.raises(ValueError, match="redraw_every must be positive or None, got 0"):
            build_mixer("performer", 16, 2, redraw_every=0)
        with pytest.raises(ValueError, match=r"must be positive, got \(0, 8\)"):
            build_mixer("performer", 16, 2, num_features=0)
        with pytest.raises(ValueError, match="eps must not be negative, got -1"):
            build_mixer("performer", 16, 2, eps=-1.0)


@pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])
def test_large_keys_neither_overflow_nor_vanish_in_float32(causal: bool) -> None:
    """Exponents down to -1,000: exp of the least is zero in float32, and of the keys' mean too."""
    q, v = torch.randn(1, 63, 1, WIDTH), torch.randn(1, 63, 1, 5)
    k = 20 * torch.randn(1, 63, 1, WIDTH)
    directions = orthogonal_directions(64, WIDTH)
    out = attend(q, k, v, directions.float(), causal=causal)
    exact = attend(q.double(), k.double(), v.double(), directions, causal=causal)
    # An exponent of 1,000 carries an absolute error of 1,000 · eps, times a few.
    torch.testing.assert_close(out.double(), exact, rtol=0, atol=4 * 1000 * 2**-23)


def test_a_later_key_does_not_bring_the_earlier_ones_below_the_smallest_number() -> None:
    q, v = torch.randn(1, 9, 1, WIDTH), torch.randn(1, 9, 1, 5)
    k = torch.randn(1, 9, 1, WIDTH)
    k[:, :5] *= 30  # far below those of the later ones
    directions = orthogonal_directions(64, WIDTH).float()
    whole = attend(q, k, v, directions, causal=True)
    start = attend(q[:, :5], k[:, :5], v[:, :5], directions, causal=True)
    assert start.abs().amax(-1).min() > 0
    assert whole[:, :5].equal(start)


@pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])
def test_padding_may_hold_nan(causal: bool) -> None:
    q, k, v = (draw(1, 6, 2, WIDTH) for _ in range(3))
    mask = torch.tensor([[True, True, True, True, False, False]])
    for x in (q, k, v):
        x[:, 4:] = torch.nan
        x.requires_grad_()
    directions = orthogonal_directions(20, WIDTH)
    out = attend(q, k, v, directions, causal=causal, mask=mask)
    alone = attend(q[:, :4], k[:, :4], v[:, :4], directions, causal=causal)
    torch.testing.assert_close(out[:, :4], alone)
    assert not out[:, 4:].any()
    for gradient in torch.autograd.grad(out.sum(), (q, k, v)):
        assert gradient.isfinite().all()


def test_a_state_needs_the_causal_form() -> None:
    q = draw(1, 3, 1, WIDTH)
    with pytest.raises(ValueError, match="causal attention only, got causal=False"):
        attend(q, q, q, orthogonal_directions(4, WIDTH), return_state=True)


@pytest.mark.filterwarnings("ignore:distutils Version:DeprecationWarning")
@pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])
def test_performer_pytorch_gives_the_same_for_the_same_directions(causal: bool) -> None:
    """Its features with eps=0: ε is relative to a largest exponent that it takes elsewhere."""
    from performer_pytorch import performer_pytorch as theirs

    q, k, v = (draw(2, 256, 2, WIDTH) for _ in range(3))
    directions = theirs.gaussian_orthogonal_random_matrix(20, WIDTH).double()
    options = {"projection_matrix": directions, "eps": 0.0}
    their_q = theirs.softmax_kernel(q.transpose(1, 2), is_query=True, **options)
    their_k = theirs.softmax_kernel(k.transpose(1, 2), is_query=False, **options)
    their_v = v.transpose(1, 2)
    if causal:
        expected = theirs.causal_linear_attention_noncuda(their_q, their_k, their_v, eps=0.0)
    else:
        expected = theirs.linear_attention(their_q, their_k, their_v)
    ours = attend(q, k, v, directions, causal=causal)
    torch.testing.assert_close(ours.transpose(1, 2), expected)
