"""What the sparse attentions share, and that all of them keep low precision's promise."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from flowformer.nn.mixers.bigbird import bigbird_attention
from flowformer.nn.mixers.blockwise import (
    EMPTY,
    attend,
    band,
    blocks,
    check_positive,
    merge,
    windows,
)
from flowformer.nn.mixers.local import local_attention
from flowformer.nn.mixers.longformer import longformer_attention
from flowformer.nn.mixers.reformer import reformer_attention
from flowformer.nn.mixers.sinkhorn import sinkhorn_attention
from flowformer.nn.mixers.sparse import sparse_attention
from flowformer.ops.features import front_order
from tests.nn.mixers.patterns import draw


class TestParts:
    def test_merged_parts_are_the_softmax_over_their_union(self) -> None:
        scores = 5 * torch.randn(3, 7, 20, dtype=torch.float64)
        value = torch.randn(3, 20, 4, dtype=torch.float64)
        visible = torch.rand(3, 7, 20) > 0.3
        cuts = [slice(0, 5), slice(5, 6), slice(6, 20)]
        parts = [attend(scores[..., c], visible[..., c], value[:, c]) for c in cuts]
        expected = scores.masked_fill(~visible, -torch.inf).softmax(-1) @ value
        torch.testing.assert_close(merge(parts), expected)

    def test_a_part_without_a_visible_key_weighs_nothing(self) -> None:
        scores = torch.randn(2, 3, 4, dtype=torch.float64) - 1e6
        value = torch.randn(2, 4, 5, dtype=torch.float64)
        everything = torch.ones(4, dtype=torch.bool)
        empty, full = attend(scores, ~everything, value), attend(scores, everything, value)
        assert not empty.out.any()
        assert (empty.log_total == EMPTY).all()
        assert merge([empty, full]).equal(full.out)
        assert not merge([empty, empty]).any()

    def test_gradients_are_finite_where_nothing_is_visible(self) -> None:
        scores = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
        value = torch.randn(2, 4, 5, dtype=torch.float64)
        visible = torch.tensor([[True] * 4, [False] * 4, [False] * 3 + [True]])
        part = attend(scores, visible, value)
        merge([part, part]).sum().backward()
        assert scores.grad is not None
        assert scores.grad.isfinite().all()
        assert not scores.grad[:, 1].any()


class TestLayouts:
    @pytest.mark.parametrize(("before", "after"), [(0, 0), (3, 0), (1, 5)])
    @pytest.mark.parametrize("length", [1, 4, 11], ids="t{}".format)
    def test_windows_hold_the_rows_around_each_block(
        self, length: int, before: int, after: int
    ) -> None:
        x = torch.arange(1, length + 1)[None, :, None]
        size = 4
        found = windows(x, size, before=before, after=after)[0, ..., 0].tolist()
        inside = blocks(x, size)[0, ..., 0].tolist()

        def row(place: int) -> int:
            return place + 1 if 0 <= place < length else 0

        starts = range(0, length, size)
        assert inside == [[row(start + n) for n in range(size)] for start in starts]
        reach = range(-before, size + after)
        assert found == [[row(start + n) for n in reach] for start in starts]

    def test_the_band_is_what_is_within_reach(self) -> None:
        near = band(3, before=2, after=1, device=torch.device("cpu"))
        query, key = torch.arange(3)[:, None], torch.arange(-2, 4)
        assert near.equal((key >= query - 2) & (key <= query + 1))

    def test_real_tokens_come_first_and_in_order(self) -> None:
        mask = torch.tensor([[False, True, False, True, True]])
        assert front_order(mask).tolist() == [[1, 3, 4, 0, 2]]


@pytest.mark.parametrize("option", [0, -1, 2.0, True, "8"], ids=repr)
def test_an_option_that_is_no_positive_whole_number_is_refused(option: object) -> None:
    with pytest.raises(ValueError, match="window must be a positive whole number, got"):
        check_positive(window=option)


def reformer(q: Tensor, _: Tensor, v: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    # Rounded first, so that all precisions hash alike.
    rotations = torch.randn(4, 8, 2, 4, generator=generator).bfloat16()
    return reformer_attention(q, v, rotations=rotations, chunk=16)


def longformer(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    same: dict[str, Any] = {"global_query": q, "global_key": k, "global_value": v}
    return longformer_attention(q, k, v, window=8, global_tokens=3, causal=False, **same)


def bigbird(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    none = torch.full((2, 4, -(-q.shape[1] // 8), 1), -1)
    return bigbird_attention(q, k, v, block=8, random_blocks=none)


METHODS: dict[str, Callable[..., Any]] = {
    "local": partial(local_attention, window=8, blocked=False),
    "strided": partial(sparse_attention, pattern="strided", stride=16, summary=1),
    "fixed": partial(sparse_attention, pattern="fixed", stride=16, summary=2),
    "longformer": longformer,
    "bigbird": bigbird,
    "sinkhorn": partial(sinkhorn_attention, block=16, iterations=5, temperature=0.75),
    "reformer": reformer,
}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
@pytest.mark.parametrize("name", METHODS)
class TestLowPrecision:
    def test_error_is_that_of_rounding_the_result(self, name: str, dtype: torch.dtype) -> None:
        inputs = [x.to(dtype) for x in draw(500)]
        exact = METHODS[name](*(x.double() for x in inputs))
        rounding = (exact.to(dtype).double() - exact).abs().max()
        out = METHODS[name](*inputs)
        assert out.dtype == dtype
        assert (out.double() - exact).abs().max() <= 2 * rounding

    def test_autocast_leaves_it_as_it_is(self, name: str, dtype: torch.dtype) -> None:
        inputs = [x.to(dtype) for x in draw(63)]
        inside = METHODS[name](*inputs)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert METHODS[name](*inputs).equal(inside)
