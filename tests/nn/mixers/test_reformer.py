"""Reformer against softmax under its mask, reformer-pytorch, and transformers."""

from typing import Any

import pytest
import torch
from reformer_pytorch import LSHAttention
from torch import Tensor
from torch.nn import functional as F
from transformers import ReformerConfig
from transformers.models.reformer.modeling_reformer import LSHSelfAttention

from flowformer.nn.mixers.reformer import reformer_attention
from tests.nn.mixers.patterns import MASK, LargestTensor, dense, draw, scattered


def found(q: Tensor, rotations: Tensor, chunk: int, *, causal: bool) -> Tensor:
    """The union of P_i over the rounds, without i but for where it is alone; entry by entry."""
    batch, length, heads, _ = q.shape
    out = torch.zeros(batch, heads, length, length, dtype=torch.bool)
    for row in range(batch):
        for head in range(heads):
            for turn in range(rotations.shape[2]):
                x = q[row, :, head] @ rotations[head, :, turn]
                bucket = torch.cat((x, -x), -1).argmax(-1).tolist()
                order = sorted(range(length), key=lambda i, bucket=bucket: (bucket[i], i))
                for here, i in enumerate(order):
                    first = here - chunk if causal else (here // chunk - 1) * chunk
                    last = here if causal else (here // chunk + 1) * chunk - 1
                    for j in order[max(first, 0) : last + 1]:
                        out[row, head, i, j] |= bucket[i] == bucket[j]
    self = torch.eye(length, dtype=torch.bool)
    alone = out.sum(-1, keepdim=True) == 1
    return out & (~self | alone)


def rotate(rounds: int, buckets: int) -> Tensor:
    return torch.randn(4, 8, rounds, buckets // 2, dtype=torch.float64)


def attend_all(q: Tensor, v: Tensor) -> Tensor:
    """Exact softmax attention with shared queries and keys, to all others."""
    everyone_else = ~torch.eye(q.shape[1], dtype=torch.bool)
    return dense(q, F.normalize(q, dim=-1), v, everyone_else)


@pytest.mark.parametrize("causal", [False, True], ids=["both-ways", "causal"])
class TestEquation:
    @pytest.mark.parametrize(("buckets", "rounds"), [(2, 3), (8, 1)])
    @pytest.mark.parametrize("chunk", [1, 4, 7, 64], ids="chunk{}".format)
    @pytest.mark.parametrize("length", [1, 7, 41], ids="t{}".format)
    def test_is_softmax_over_the_tokens_found(
        self, length: int, chunk: int, buckets: int, rounds: int, causal: bool
    ) -> None:
        q, _, v = draw(length, kv_heads=2)
        rotations = rotate(rounds, buckets)
        out = reformer_attention(q, v, rotations=rotations, chunk=chunk, causal=causal)
        visible = found(q, rotations, chunk, causal=causal)
        torch.testing.assert_close(out, dense(q, F.normalize(q, dim=-1), v, visible))

    def test_padding_changes_nothing(self, causal: bool) -> None:
        q, _, v = draw(10)
        options: dict[str, Any] = {"rotations": rotate(2, 4), "chunk": 2, "causal": causal}
        out = reformer_attention(scattered(q, MASK), scattered(v, MASK), mask=MASK, **options)
        torch.testing.assert_close(out[MASK], reformer_attention(q, v, **options).flatten(0, 1))
        assert not out[~MASK].any()

    def test_gradients_are_those_of_finite_differences(self, causal: bool) -> None:
        q, _, v = (x[:, :, :1, :3].requires_grad_() for x in draw(6))
        mask = torch.tensor([[True, False, True, True, True, True], [False] * 6])
        rotations = rotate(2, 2)[:1, :3]

        def attend(q: Tensor, v: Tensor) -> Tensor:
            return reformer_attention(q, v, rotations=rotations, chunk=2, causal=causal, mask=mask)

        assert torch.autograd.gradcheck(attend, (q, v))

    def test_agrees_with_the_package_reformer_pytorch(self, causal: bool) -> None:
        """Theirs as in the paper: inside of buckets, each key once. Causal: in one chunk and that
        before it, which must be all, for ours sees a fixed number of earlier tokens."""
        chunk, rounds, length = 24 if causal else 6, 3, 48
        q, _, _ = draw(length)
        v = torch.randn(2, length, 4, 8, dtype=torch.float64)
        theirs = LSHAttention(
            bucket_size=chunk,
            n_hashes=rounds,
            causal=causal,
            allow_duplicate_attention=False,
            attend_across_buckets=False,
        )
        torch.manual_seed(5)
        expected = theirs(*(x.transpose(1, 2).flatten(0, 1) for x in (q, v)))[0]
        torch.manual_seed(5)
        rotations = torch.randn(1, 8, rounds, length // chunk // 2, dtype=torch.float64)
        out = reformer_attention(
            q,
            v,
            rotations=rotations.expand(4, -1, -1, -1),
            chunk=length if causal else chunk,
            causal=causal,
        )
        torch.testing.assert_close(out.transpose(1, 2).flatten(0, 1), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("causal", [False, True], ids=["both-ways", "causal"])
def test_one_bucket_agrees_with_transformers(causal: bool) -> None:
    """A sequence that fits in one chunk is exact attention there; their scores are √d times ours.

    With rotations of zero all tokens are in one bucket here.
    """
    config = ReformerConfig(
        hidden_size=32,
        num_attention_heads=4,
        attention_head_size=8,
        lsh_attn_chunk_length=64,
        lsh_attention_probs_dropout_prob=0.0,
        is_decoder=causal,
    )
    theirs = LSHSelfAttention(config).double().eval()
    hidden = torch.randn(2, 40, 32, dtype=torch.float64)
    mask = torch.arange(40).expand(2, 40) < torch.tensor([[40], [30]])
    expected = theirs(hidden, attention_mask=mask, num_hashes=1).hidden_states
    q, v = (each(hidden).unflatten(-1, (4, 8)) for each in (theirs.query_key, theirs.value))
    out = reformer_attention(
        q * 8**0.5,
        v,
        rotations=torch.zeros(4, 8, 1, 1, dtype=torch.float64),
        chunk=64,
        causal=causal,
        mask=mask,
    )
    # Theirs adds 1e-6 to a mean square before the root.
    torch.testing.assert_close(out.flatten(2)[mask], expected[mask], atol=1e-4, rtol=0)


def test_more_rounds_converge_to_exact_attention() -> None:
    q, _, v = draw(24)
    exact = attend_all(q, v)
    rotations = rotate(64, 4)
    errors = []
    for rounds in (1, 4, 16, 64):
        out = reformer_attention(q, v, rotations=rotations[:, :, :rounds], chunk=24)
        errors.append(float((out - exact).square().mean()))
    assert errors[0] > errors[1] > errors[2] > errors[3]
    assert errors[3] < 1e-3 * errors[0]


def test_a_first_causal_token_sees_itself() -> None:
    q, _, v = draw(9)
    out = reformer_attention(q, v, rotations=rotate(2, 4), chunk=4, causal=True)
    assert out[:, 0].equal(v[:, 0])


def test_the_largest_tensor_grows_with_the_length_alone() -> None:
    sizes = []
    for length in (1024, 2048):
        q, _, v = draw(length)
        with LargestTensor() as largest:
            reformer_attention(q, v, rotations=rotate(2, 16), chunk=16)
        sizes.append(largest.numel)
    assert sizes[1] / sizes[0] == pytest.approx(2, rel=0.02)
    assert sizes[0] < 1024 * 1024
