"""SOFT: its equations, its limit, its inverse, its precision, padding."""

import pytest
import torch
from torch import Tensor

from flowformer.nn import build_mixer
from flowformer.nn.mixers.soft import SoftAttention, gaussian, newton_inverse, soft_attention


def draw(length: int, *, value_heads: int = 4) -> tuple[Tensor, Tensor]:
    q = torch.randn(2, length, 4, 8, dtype=torch.float64)
    v = torch.randn(2, length, value_heads, 5, dtype=torch.float64)
    return q, v


def kernel(x: Tensor, y: Tensor) -> Tensor:
    """exp(−‖x − y‖² / (2 √d)) for each pair, [b, h, l, s]."""
    squares = (x[:, :, None] - y[:, None]).square().sum(-1)
    return torch.exp(-squares / (2 * x.shape[-1] ** 0.5)).permute(0, 3, 1, 2)


@pytest.mark.parametrize("value_heads", [4, 2, 1], ids="{}-value-heads".format)
@pytest.mark.parametrize("length", [7, 63])
def test_is_the_nystrom_product_of_gaussian_kernels(length: int, value_heads: int) -> None:
    q, v = draw(length, value_heads=value_heads)
    out = soft_attention(q, v, num_landmarks=7, iterations=30, ridge=0.01)
    segments = [[j for j in range(length) if j * 7 // length == i] for i in range(7)]
    means = torch.stack([q[:, each].mean(1) for each in segments], 1)
    between = kernel(means, means) + 0.01 * torch.eye(7, dtype=torch.float64)
    weights = kernel(q, means) @ torch.linalg.inv(between) @ kernel(means, q)
    expected = torch.einsum("bhls,bshm->blhm", weights, v.repeat_interleave(4 // value_heads, 2))
    torch.testing.assert_close(out, expected)


def test_as_many_landmarks_as_tokens_are_the_full_kernel() -> None:
    q, v = draw(40)
    exact = torch.einsum("bhls,bshm->blhm", kernel(q, q), v)
    errors = [
        (soft_attention(q, v, num_landmarks=40, iterations=60, ridge=ridge) - exact).abs().max()
        for ridge in (1e-2, 1e-4, 1e-6)
    ]
    # In proportion to the ridge, for K (K + λ)⁻¹ K = K − λ I + O(λ²).
    assert errors[2] < 1e-5
    assert errors[0] > 50 * errors[1] > 2500 * errors[2]


class TestInverse:
    @pytest.mark.parametrize("size", [1, 49])
    def test_converges(self, size: int) -> None:
        x = torch.randn(2, 3, size, 8, dtype=torch.float64)
        matrix = gaussian(x, x)
        exact = torch.linalg.inv(matrix + 0.01 * torch.eye(size, dtype=torch.float64))
        inverse = newton_inverse(matrix, iterations=40, ridge=0.01)
        torch.testing.assert_close(inverse, exact)

    def test_of_equal_landmarks_converges(self) -> None:
        """The worst case: all eigenvalues are zero but one."""
        matrix = torch.ones(49, 49, dtype=torch.float64)
        regular = matrix + 0.01 * torch.eye(49, dtype=torch.float64)
        inverse = newton_inverse(matrix, iterations=60, ridge=0.01)
        # On what the kernel spans; off it the start is zero, and so is the limit.
        torch.testing.assert_close(regular @ inverse @ matrix, matrix)

    def test_has_the_gradient_of_an_inverse(self) -> None:
        x = torch.randn(9, 8, dtype=torch.float64)
        matrix = gaussian(x, x).requires_grad_()
        weight = torch.randn(9, 9, dtype=torch.float64)
        exact = torch.linalg.inv(matrix + 0.01 * torch.eye(9, dtype=torch.float64))
        (expected,) = torch.autograd.grad((exact * weight).sum(), matrix)
        inverse = newton_inverse(matrix, iterations=40, ridge=0.01)
        (gradient,) = torch.autograd.grad((inverse * weight).sum(), matrix)
        torch.testing.assert_close(gradient, expected)

    def test_keeps_zero_rows_and_columns_apart(self) -> None:
        x = torch.randn(3, 8, dtype=torch.float64)
        matrix = torch.zeros(5, 5, dtype=torch.float64)
        matrix[1:4, 1:4] = gaussian(x, x)
        inverse = newton_inverse(matrix, iterations=20, ridge=0.01)
        assert inverse.count_nonzero() == 9
        alone = newton_inverse(gaussian(x, x), iterations=20, ridge=0.01)
        torch.testing.assert_close(inverse[1:4, 1:4], alone)


@pytest.mark.parametrize("fill", [torch.nan, 1e4], ids=["nan", "wild"])
def test_padding_changes_nothing(fill: float) -> None:
    q, v = draw(30)
    mask = torch.rand(2, 30) > 0.4
    given = [x.masked_fill(~mask[:, :, None, None], fill).requires_grad_() for x in (q, v)]
    options = {"num_landmarks": 7, "iterations": 20, "ridge": 0.01}
    out = soft_attention(*given, mask=mask, **options)
    out[..., 0].sum().backward()
    assert not out[~mask].any()
    assert all(x.grad is not None and not x.grad[~mask].any() for x in given)
    for row in range(2):
        alone = (x[row : row + 1, mask[row]] for x in (q, v))
        torch.testing.assert_close(out[row, mask[row]], soft_attention(*alone, **options)[0])


def test_half_precision_is_as_exact_as_its_rounding() -> None:
    """The conformance suite allows float32 much; that is no leave for bfloat16."""
    q, v = (x.bfloat16() for x in draw(200))
    options = {"num_landmarks": 49, "iterations": 20, "ridge": 0.01}
    exact = soft_attention(q.double(), v.double(), **options)
    rounding = (exact.bfloat16().double() - exact).abs().max()
    out = soft_attention(q, v, **options)
    assert (out.double() - exact).abs().max() <= 2 * rounding


def test_queries_are_keys() -> None:
    mixer = build_mixer("soft", 8, 2)
    assert {"query_projection", "value_projection"} <= dict(mixer.named_children()).keys()
    assert not hasattr(mixer, "key_projection")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_landmarks": 0}, "num_landmarks=0"),
        ({"iterations": 0}, "iterations=0"),
        ({"ridge": 0.0}, r"ridge must be in \(0, 0.1\], got 0.0"),
        ({"ridge": 0.2}, r"ridge must be in \(0, 0.1\], got 0.2"),
    ],
)
def test_options_out_of_range_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SoftAttention(**options)
