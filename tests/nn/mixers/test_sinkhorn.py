"""Sinkhorn attention against its equations, block by block, and against sinkhorn-transformer."""

from typing import Any

import pytest
import torch
from sinkhorn_transformer.sinkhorn_transformer import SinkhornAttention, sample_gumbel
from torch import Tensor

from flowformer.nn.mixers.sinkhorn import sinkhorn, sinkhorn_attention
from flowformer.nn.mixers.softmax import softmax_attention
from tests.nn.mixers.patterns import MASK, LargestTensor, draw, scattered

OPTIONS: dict[str, Any] = {"iterations": 3, "temperature": 0.7}


def sorting_matrix(q: Tensor, k: Tensor, block: int, *, causal: bool) -> Tensor:
    """R of one head, [n, n], from its queries and keys [t, d]; sums, not logarithms of sums."""
    starts = range(0, len(q), block)
    if causal:
        q_mean = torch.stack([q[: start + 1].mean(0) for start in starts])
    else:
        q_mean = torch.stack([q[start : start + block].mean(0) for start in starts])
    k_mean = torch.stack([k[start : start + block].mean(0) for start in starts])
    scores = (q_mean @ k_mean.T / q.shape[-1] ** 0.5).relu() + 1e-6
    matrix = scores ** (1 / OPTIONS["temperature"])
    matrix = matrix.tril(-1) if causal else matrix
    for _ in range(OPTIONS["iterations"]):
        matrix = matrix / matrix.sum(1, keepdim=True).clamp(min=1e-300)
        columns = matrix.cumsum(0) if causal else matrix.sum(0, keepdim=True)
        matrix = matrix / columns.clamp(min=1e-300)
    return matrix


def one_head(q: Tensor, k: Tensor, v: Tensor, block: int, *, causal: bool) -> Tensor:
    matrix = sorting_matrix(q, k, block, causal=causal)
    k_blocks, v_blocks = (list(x.split(block)) for x in (k, v))
    out = torch.empty(len(q), v.shape[1], dtype=v.dtype)
    for i in range(len(q)):
        own, inside = divmod(i, block)
        keys, values, bias = [], [], []
        for place in range(block):
            having = [n for n, each in enumerate(k_blocks) if place < len(each)]
            share = matrix[own, having].sum() / max(float(matrix[own].sum()), 1e-300)
            if share > 0:
                keys.append(sum(matrix[own, n] * k_blocks[n][place] for n in having))
                values.append(sum(matrix[own, n] * v_blocks[n][place] for n in having))
                bias.append(share.log())
        last = inside + 1 if causal else len(k_blocks[own])
        keys += k_blocks[own][:last]
        values += v_blocks[own][:last]
        scores = torch.stack(keys) @ q[i] / q.shape[-1] ** 0.5
        scores[: len(bias)] += torch.tensor(bias)
        out[i] = scores.softmax(0) @ torch.stack(values)
    return out


@pytest.mark.parametrize("causal", [False, True], ids=["both-ways", "causal"])
class TestEquation:
    @pytest.mark.parametrize("block", [1, 4, 7, 64], ids="block{}".format)
    @pytest.mark.parametrize("length", [1, 7, 40], ids="t{}".format)
    def test_is_softmax_over_the_block_and_the_sorted_block(
        self, length: int, block: int, causal: bool
    ) -> None:
        q, k, v = draw(length)
        out = sinkhorn_attention(q, k, v, block=block, causal=causal, **OPTIONS)
        for row, head in ((0, 0), (1, 3)):
            each = (x[row, :, head] for x in (q, k, v))
            expected = one_head(*each, block=block, causal=causal)
            torch.testing.assert_close(out[row, :, head], expected)

    def test_key_heads_are_repeated(self, causal: bool) -> None:
        q, k, v = draw(17, kv_heads=2)
        full_k, full_v = (x.repeat_interleave(2, 2) for x in (k, v))
        out = sinkhorn_attention(q, k, v, block=4, causal=causal, **OPTIONS)
        expected = sinkhorn_attention(q, full_k, full_v, block=4, causal=causal, **OPTIONS)
        torch.testing.assert_close(out, expected)

    def test_padding_changes_nothing(self, causal: bool) -> None:
        q, k, v = draw(10)
        options: dict[str, Any] = {"block": 4, "causal": causal, **OPTIONS}
        out = sinkhorn_attention(*(scattered(x, MASK) for x in (q, k, v)), mask=MASK, **options)
        torch.testing.assert_close(out[MASK], sinkhorn_attention(q, k, v, **options).flatten(0, 1))
        assert not out[~MASK].any()

    def test_gradients_are_those_of_finite_differences(self, causal: bool) -> None:
        q, k, v = (x[:, :, :1, :3].requires_grad_() for x in draw(6))
        mask = torch.tensor([[True, False, True, True, True, True], [False] * 6])

        def attend(*qkv: Tensor) -> Tensor:
            return sinkhorn_attention(*qkv, block=2, causal=causal, mask=mask, **OPTIONS)

        assert torch.autograd.gradcheck(attend, (q, k, v))


def test_one_block_is_exact_causal_attention() -> None:
    """No earlier block is there to be sorted to it."""
    q, k, v = draw(40)
    out = sinkhorn_attention(q, k, v, block=40, causal=True, **OPTIONS)
    torch.testing.assert_close(out, softmax_attention(q, k, v, causal=True))


def test_one_block_is_exact_attention_both_ways() -> None:
    """R is 1: each key stands there twice, which leaves a softmax as it is."""
    q, k, v = draw(40)
    out = sinkhorn_attention(q, k, v, block=40, **OPTIONS)
    torch.testing.assert_close(out, softmax_attention(q, k, v))


class TestSinkhorn:
    def test_rows_and_columns_sum_to_one_after_many_iterations(self) -> None:
        logits = torch.randn(1, 2, 6, 6, dtype=torch.float64)
        everything = torch.ones(1, 1, 6, 6, dtype=torch.bool)
        matrix = sinkhorn(logits, everything, iterations=100, causal=False)
        ones = torch.ones(1, 2, 6, dtype=torch.float64)
        torch.testing.assert_close(matrix.sum(-1), ones)
        torch.testing.assert_close(matrix.sum(-2), ones)

    def test_a_low_temperature_finds_the_best_permutation(self) -> None:
        logits = torch.tensor([[[[1.0, 3.0, 2.0], [2.5, 2.9, 0.0], [0.0, 1.0, 0.5]]]])
        everything = torch.ones(1, 1, 3, 3, dtype=torch.bool)
        matrix = sinkhorn(logits.double() / 0.01, everything, iterations=2000, causal=False)
        # 2 + 2.5 + 1, against 3 + 2.5 + 0.5 = 6: the best sum.
        best = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
        torch.testing.assert_close(matrix[0, 0], best.double(), atol=1e-3, rtol=0)

    def test_the_causal_form_knows_no_later_row(self) -> None:
        logits = torch.randn(1, 1, 6, 6, dtype=torch.float64)
        earlier = torch.ones(1, 1, 6, 6, dtype=torch.bool).tril(-1)
        changed = logits.clone()
        changed[:, :, 4:] += 1
        changed[:, :, 5, 0] += 1
        matrix, other = (
            sinkhorn(each, earlier, iterations=3, causal=True) for each in (logits, changed)
        )
        assert matrix[:, :, :4].equal(other[:, :, :4])
        assert not matrix[:, :, 5].equal(other[:, :, 5])


def test_agrees_with_the_package_sinkhorn_transformer() -> None:
    """Theirs sorts the keys in place of the values (0.11.4), so both are one tensor here."""
    q, k, _ = draw(48)
    theirs = SinkhornAttention(
        8, 32, 8, 4, max_seq_len=48, temperature=0.75, non_permutative=False, sinkhorn_iter=7
    )
    torch.manual_seed(5)
    expected = theirs(*(x.transpose(1, 2) for x in (q, k, k))).transpose(1, 2)
    torch.manual_seed(5)
    noise = sample_gumbel((8, 6, 6), device="cpu", dtype=torch.float64).unflatten(0, (2, 4))
    out = sinkhorn_attention(q, k, k, block=8, iterations=7, temperature=0.75, noise=noise)
    torch.testing.assert_close(out, expected)


def test_the_largest_tensor_grows_with_the_length_alone() -> None:
    sizes = []
    for length in (1024, 2048):
        q, k, v = draw(length)
        with LargestTensor() as largest:
            sinkhorn_attention(q, k, v, block=32, **OPTIONS)
        sizes.append(largest.numel)
    assert sizes[1] / sizes[0] == pytest.approx(2, rel=0.02)
    assert sizes[0] < 1024 * 1024
