"""The Sparse Transformer's attention against softmax under its masks."""

from typing import Any

import pytest
import torch
from torch import Tensor

from flowformer.nn.mixers.softmax import softmax_attention
from flowformer.nn.mixers.sparse import Pattern, sparse_attention
from tests.nn.mixers.patterns import (
    MASK,
    LargestTensor,
    dense,
    draw,
    positions,
    scattered,
)


def visible(length: int, pattern: Pattern, stride: int, summary: int, *, causal: bool) -> Tensor:
    i, j = positions(length)
    if pattern == "strided":
        seen = ((i - j).abs() <= stride) | ((i - j) % stride == 0)
    else:
        seen = (i // stride == j // stride) | (j % stride >= stride - summary)
    return seen & (j <= i) if causal else seen


@pytest.mark.parametrize("causal", [False, True], ids=["both-ways", "causal"])
@pytest.mark.parametrize("pattern", ["strided", "fixed"])
class TestEquation:
    @pytest.mark.parametrize(("stride", "summary"), [(1, 1), (4, 1), (7, 3), (8, 8), (100, 2)])
    @pytest.mark.parametrize("length", [1, 7, 63, 130], ids="t{}".format)
    def test_is_softmax_under_the_mask(
        self, length: int, stride: int, summary: int, pattern: Pattern, causal: bool
    ) -> None:
        q, k, v = draw(length, kv_heads=2)
        out = sparse_attention(
            q, k, v, pattern=pattern, stride=stride, summary=summary, causal=causal
        )
        expected = dense(q, k, v, visible(length, pattern, stride, summary, causal=causal))
        torch.testing.assert_close(out, expected)

    def test_a_stride_of_the_length_is_exact_attention(
        self, pattern: Pattern, causal: bool
    ) -> None:
        q, k, v = draw(40)
        out = sparse_attention(q, k, v, pattern=pattern, stride=40, summary=1, causal=causal)
        torch.testing.assert_close(out, softmax_attention(q, k, v, causal=causal))

    def test_padding_changes_nothing(self, pattern: Pattern, causal: bool) -> None:
        q, k, v = draw(10)
        options: dict[str, Any] = {
            "pattern": pattern,
            "stride": 3,
            "summary": 1,
            "causal": causal,
        }
        out = sparse_attention(*(scattered(x, MASK) for x in (q, k, v)), mask=MASK, **options)
        torch.testing.assert_close(out[MASK], sparse_attention(q, k, v, **options).flatten(0, 1))
        assert not out[~MASK].any()

    def test_gradients_are_those_of_finite_differences(
        self, pattern: Pattern, causal: bool
    ) -> None:
        q, k, v = (x[:, :, :1, :3].requires_grad_() for x in draw(6))
        mask = torch.tensor([[True, False, True, True, True, True], [False] * 6])

        def attend(*qkv: Tensor) -> Tensor:
            return sparse_attention(
                *qkv, pattern=pattern, stride=2, summary=1, causal=causal, mask=mask
            )

        assert torch.autograd.gradcheck(attend, (q, k, v))


@pytest.mark.parametrize("pattern", ["strided", "fixed"])
def test_the_largest_tensor_is_of_length_times_root_of_length(pattern: Pattern) -> None:
    """With a stride of √t: 4 times the tokens make it 8 times as large."""
    sizes = []
    for length, stride in ((1024, 32), (4096, 64)):
        q, k, v = draw(length)
        with LargestTensor() as largest:
            sparse_attention(q, k, v, pattern=pattern, stride=stride, summary=1)
        sizes.append(largest.numel)
    assert sizes[1] / sizes[0] == pytest.approx(8, rel=0.02)
