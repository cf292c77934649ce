"""Nyströmformer: its equations, its limit, and two other implementations with the same weights."""

import pytest
import torch
from nystrom_attention import NystromAttention
from torch import Tensor
from torch.nn import functional as F
from transformers import NystromformerConfig
from transformers.models.nystromformer.modeling_nystromformer import NystromformerSelfAttention

from flowformer.nn import build_mixer
from flowformer.nn.mixers.nystromformer import (
    NystromformerAttention,
    masked_softmax,
    nystromformer_attention,
    pseudo_inverse,
    segment_means,
)
from flowformer.nn.mixers.softmax import softmax_attention


def draw(
    length: int, sources: int, *, kv_heads: int = 4, scale: float = 1.0
) -> tuple[Tensor, Tensor, Tensor]:
    q = scale * torch.randn(2, length, 4, 8, dtype=torch.float64)
    k = scale * torch.randn(2, sources, kv_heads, 8, dtype=torch.float64)
    v = torch.randn(2, sources, kv_heads, 5, dtype=torch.float64)
    return q, k, v


def softmax_of(q: Tensor, k: Tensor) -> Tensor:
    return (torch.einsum("blhd,bshd->bhls", q, k) / q.shape[-1] ** 0.5).softmax(-1)


@pytest.mark.parametrize("kv_heads", [4, 2, 1], ids="{}-key-heads".format)
@pytest.mark.parametrize(("length", "sources"), [(63, 63), (17, 42), (42, 7)])
def test_is_the_product_of_three_softmax_matrices(length: int, sources: int, kv_heads: int) -> None:
    q, k, v = draw(length, sources, kv_heads=kv_heads, scale=3)
    out = nystromformer_attention(q, k, v, num_landmarks=7, iterations=40, residual_kernel=None)
    k, v = (x.repeat_interleave(4 // kv_heads, 2) for x in (k, v))
    q_mean, k_mean = (
        torch.stack([x[:, [j for j in range(n) if j * 7 // n == i]].mean(1) for i in range(7)], 1)
        for x, n in ((q, length), (k, sources))
    )
    inverse = torch.linalg.pinv(softmax_of(q_mean, k_mean))
    weights = softmax_of(q, k_mean) @ inverse @ softmax_of(q_mean, k)
    torch.testing.assert_close(out, torch.einsum("bhls,bshm->blhm", weights, v))


@pytest.mark.parametrize("length", [1, 63])
def test_as_many_landmarks_as_tokens_are_softmax_attention(length: int) -> None:
    q, k, v = draw(length, length)
    exact = softmax_attention(q, k, v)
    assert isinstance(exact, Tensor)
    errors = []
    for iterations in (3, 9, 24):
        out = nystromformer_attention(
            q, k, v, num_landmarks=length, iterations=iterations, residual_kernel=None
        )
        errors.append((out - exact).abs().max())
    assert errors[-1] < 1e-10
    assert errors == sorted(errors, reverse=True)


def test_more_landmarks_come_nearer_to_softmax_attention() -> None:
    time = torch.linspace(0, 6, 240, dtype=torch.float64)
    phase = torch.arange(8, dtype=torch.float64)
    # Smooth in time, as segment means suppose.
    q = torch.sin(time[:, None] + phase)[None, :, None, :]
    k = torch.cos(time[:, None] * 2 + phase)[None, :, None, :]
    v = torch.randn(1, 240, 1, 5, dtype=torch.float64)
    exact = softmax_attention(q, k, v)
    assert isinstance(exact, Tensor)
    errors = [
        (
            nystromformer_attention(q, k, v, num_landmarks=m, iterations=24, residual_kernel=None)
            - exact
        )
        .abs()
        .max()
        for m in (2, 8, 60)
    ]
    assert errors[0] > 3 * errors[1] > 9 * errors[2]


class TestPseudoInverse:
    @pytest.mark.parametrize(("rows", "columns"), [(9, 9), (9, 4), (4, 9), (1, 1)])
    def test_converges_to_that_of_moore_and_penrose(self, rows: int, columns: int) -> None:
        matrix = (3 * torch.randn(2, 3, rows, columns, dtype=torch.float64)).softmax(-1)
        torch.testing.assert_close(pseudo_inverse(matrix, 30), torch.linalg.pinv(matrix))

    def test_keeps_zero_rows_and_columns_apart(self) -> None:
        small = torch.rand(3, 2, dtype=torch.float64)
        matrix = torch.zeros(5, 4, dtype=torch.float64)
        matrix[1:4, 2:] = small
        inverse = pseudo_inverse(matrix, 6)
        assert inverse.count_nonzero() == small.numel()
        torch.testing.assert_close(inverse[2:, 1:4], pseudo_inverse(small, 6))

    def test_of_zero_is_zero_with_finite_gradients(self) -> None:
        matrix = torch.zeros(3, 3, dtype=torch.float64, requires_grad=True)
        inverse = pseudo_inverse(matrix, 6)
        inverse.sum().backward()
        assert not inverse.any()
        assert matrix.grad is not None
        assert matrix.grad.isfinite().all()


def test_gradients_are_those_of_finite_differences() -> None:
    q, k, v = (x[:1, :7, :2].requires_grad_() for x in draw(7, 7))
    kernel = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[True, True, False, True, True, True, False]])

    def attend(q: Tensor, k: Tensor, v: Tensor, kernel: Tensor) -> Tensor:
        return nystromformer_attention(
            q, k, v, num_landmarks=3, iterations=3, residual_kernel=kernel, mask=mask
        )

    assert torch.autograd.gradcheck(attend, (q, k, v, kernel))


class TestResidual:
    def test_adds_each_heads_values_filtered_in_time(self) -> None:
        q, k, v = draw(20, 20)
        kernel = torch.randn(4, 5, dtype=torch.float64)
        without, with_it = (
            nystromformer_attention(q, k, v, num_landmarks=4, iterations=6, residual_kernel=each)
            for each in (None, kernel)
        )
        padded = F.pad(v, (0, 0, 0, 0, 2, 2))
        expected = sum(
            padded[:, offset : offset + 20] * kernel[:, offset, None] for offset in range(5)
        )
        torch.testing.assert_close(with_it - without, expected)

    @pytest.mark.parametrize("side", ["left", "right"])
    def test_padding_changes_nothing(self, side: str) -> None:
        torch.manual_seed(1)
        mixer = build_mixer("nystromformer", 8, 2, num_landmarks=4, residual_width=5).double()
        alone = torch.randn(1, 11, 8, dtype=torch.float64)
        wild = torch.full((1, 6, 8), torch.nan, dtype=torch.float64)
        parts = [wild, alone] if side == "left" else [alone, wild]
        x = torch.cat(parts, 1).requires_grad_()
        mask = ~x[..., 0].isnan()
        y, _ = mixer(x, mask=mask)
        torch.testing.assert_close(y[mask][None], mixer(alone)[0])
        y.square().sum().backward()
        assert x.grad is not None
        assert not x.grad[~mask].any()
        assert all(each.grad is not None and each.grad.any() for each in mixer.parameters())

    def test_needs_as_many_queries_as_keys(self) -> None:
        mixer = build_mixer("nystromformer", 8, 2, residual_width=5)
        with pytest.raises(ValueError, match="as many queries as keys, got L=3 and S=4"):
            mixer(torch.randn(1, 3, 8), torch.randn(1, 4, 8))

    def test_has_an_odd_width(self) -> None:
        with pytest.raises(ValueError, match="residual_width must be odd, or None, got 4"):
            build_mixer("nystromformer", 8, 2, residual_width=4)


@pytest.mark.parametrize("option", ["num_landmarks", "iterations"])
def test_sizes_must_be_positive(option: str) -> None:
    with pytest.raises(ValueError, match=f"{option}=0"):
        NystromformerAttention(num_heads=2, **{option: 0})


class TestSameWeights:
    """Their iteration starts from norms over the whole batch, ours from each matrix's own: given
    one matrix, or until both have converged, the numbers are the same.
    """

    @pytest.mark.parametrize("residual", [False, True], ids=["plain", "residual"])
    @pytest.mark.parametrize(("batch", "heads", "iterations"), [(1, 1, 6), (3, 4, 30)])
    @torch.no_grad()
    def test_as_nystrom_attention(
        self, batch: int, heads: int, iterations: int, residual: bool
    ) -> None:
        dim, width = 8 * heads, 7 if residual else None
        theirs = NystromAttention(
            dim, 8, heads, 8, iterations, residual=residual, residual_conv_kernel=7
        )
        theirs.to_qkv.weight[: 2 * dim] *= 4  # enough contrast for the inverse to converge
        ours = build_mixer(
            "nystromformer",
            dim,
            heads,
            num_landmarks=8,
            iterations=iterations,
            residual_width=width,
        )
        qkv = theirs.to_qkv.weight.chunk(3)
        names = ("query", "key", "value")
        state = {f"{name}_projection.weight": each for name, each in zip(names, qkv, strict=True)}
        state |= {f"{name}_projection.bias": torch.zeros(dim) for name in names}
        state |= {
            f"out_projection.{name}": each for name, each in theirs.to_out[0].named_parameters()
        }
        if residual:
            state["attention.residual_kernel"] = theirs.res_conv.weight.flatten(1)
        ours.load_state_dict(state)
        x = torch.randn(batch, 64, dim, dtype=torch.float64)
        # Their identity matrix is made in the default dtype.
        torch.set_default_dtype(torch.float64)
        try:
            expected = theirs.double()(x)
        finally:
            torch.set_default_dtype(torch.float32)
        torch.testing.assert_close(ours.double()(x)[0], expected)

    @torch.no_grad()
    def test_as_transformers(self) -> None:
        config = NystromformerConfig(  # it cannot leave the convolution out
            hidden_size=24,
            num_attention_heads=3,
            num_landmarks=8,
            segment_means_seq_len=40,
            conv_kernel_size=5,
            attention_probs_dropout_prob=0.0,
        )
        theirs = NystromformerSelfAttention(config).eval()
        # The option for a starting point of each matrix's own; the configuration cannot set it.
        theirs.init_option = "exact"
        x = torch.randn(2, 40, 24)
        q, k, v = (
            layer(x).unflatten(-1, (3, 8)) for layer in (theirs.query, theirs.key, theirs.value)
        )
        out = nystromformer_attention(
            q,
            k,
            v,
            num_landmarks=8,
            iterations=6,
            residual_kernel=theirs.conv.weight.flatten(1),
        )
        torch.testing.assert_close(out.flatten(2), theirs(x)[0])


def test_segments_of_equal_length_are_means_of_consecutive_tokens() -> None:
    tokens = torch.randn(2, 12, 3, 5, dtype=torch.float64)
    means, used = segment_means(tokens, None, 4)
    expected = tokens.unflatten(1, (4, 3)).mean(2).transpose(1, 2)
    torch.testing.assert_close(means, expected)
    assert used.all()


@pytest.mark.parametrize("length", [5, 63, 500])
def test_segments_of_a_length_that_nothing_divides_differ_by_one_token(length: int) -> None:
    position = torch.arange(length, dtype=torch.float64)
    means, used = segment_means(position[None, :, None, None], None, 4)
    # The mean of a run of consecutive numbers lies at its middle.
    edges = torch.tensor([-(-length * i // 4) for i in range(5)], dtype=torch.float64)
    torch.testing.assert_close(means.flatten(), (edges[1:] + edges[:-1] - 1) / 2)
    assert (edges.diff().max() - edges.diff().min()) <= 1
    assert used.all()


def test_fewer_tokens_than_landmarks_are_their_own_landmarks() -> None:
    tokens = torch.randn(1, 5, 2, 3, dtype=torch.float64)
    means, used = segment_means(tokens, None, 8)
    assert used.shape == (1, 5)
    torch.testing.assert_close(means.transpose(1, 2), tokens)


@pytest.mark.parametrize("places", [[0, 1, 2, 3, 4, 5], [4, 5, 6, 7, 8, 9], [0, 2, 3, 6, 8, 9]])
def test_padding_is_in_no_segment(places: list[int]) -> None:
    alone = torch.randn(1, 6, 2, 3, dtype=torch.float64)
    padded, mask = torch.zeros(1, 10, 2, 3).double(), torch.zeros(1, 10, dtype=torch.bool)
    padded[:, places], mask[:, places] = alone, True
    expected, _ = segment_means(alone, None, 4)
    means, used = segment_means(padded, mask, 4)
    torch.testing.assert_close(means, expected)
    assert used.all()


def test_segments_without_a_token_are_zero_and_not_used() -> None:
    mask = torch.tensor([[True, False, True, False], [False] * 4])
    tokens = torch.randn(2, 4, 1, 3) * mask[:, :, None, None]
    means, used = segment_means(tokens, mask, 4)
    assert used.tolist() == [[True, False, True, False], [False] * 4]
    assert means[:, 0][used].equal(tokens[0, [0, 2], 0])
    assert not means[:, 0][~used].any()


def test_softmax_of_no_column_is_zero_without_gradient() -> None:
    scores = torch.randn(1, 1, 2, 3, requires_grad=True)
    allowed = torch.tensor([[False] * 3, [True, False, True]])[None, None]
    weights = masked_softmax(scores, allowed)
    assert weights[0, 0, 0].tolist() == [0, 0, 0]
    torch.testing.assert_close(weights[0, 0, 1, [0, 2]], scores[0, 0, 1, [0, 2]].softmax(-1))
    weights[..., 0].sum().backward()
    assert scores.grad is not None
    assert scores.grad[0, 0, 0].tolist() == [0, 0, 0]
    assert scores.grad[0, 0, 1, 0] != 0
