"""BigBird against softmax under its mask, and against transformers."""

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import BigBirdConfig
from transformers.models.big_bird.modeling_big_bird import BigBirdBlockSparseAttention, BigBirdModel

from flowformer.nn.mixers.bigbird import bigbird_attention, draw_random_blocks
from flowformer.nn.mixers.softmax import softmax_attention
from tests.nn.mixers.patterns import MASK, LargestTensor, dense, draw, scattered

SEED = torch.tensor(7)


def random_blocks(tokens: int | Tensor, *, block: int, count: int, length: int) -> Tensor:
    tokens = torch.full((2,), tokens) if isinstance(tokens, int) else tokens
    return draw_random_blocks(SEED, tokens, heads=4, count=count, block=block, length=length)


def visible(chosen: Tensor, length: int, block: int) -> Tensor:
    """The mask [b, h, t, t] of the three kinds of blocks, entry by entry."""
    batch, heads, count, _ = chosen.shape
    seen = torch.zeros(batch, heads, count, count, dtype=torch.bool)
    for index in range(count):
        seen[:, :, index, max(index - 1, 0) : index + 2] = True
        for row in range(batch):
            for head in range(heads):
                seen[row, head, index, [n for n in chosen[row, head, index].tolist() if n >= 0]] = 1
    for end in (0, count - 1):
        seen[:, :, end, :] = seen[:, :, :, end] = True
    full = seen.repeat_interleave(block, -1).repeat_interleave(block, -2)
    return full[..., :length, :length]


@pytest.mark.parametrize("count", [0, 1, 3], ids="r{}".format)
@pytest.mark.parametrize("block", [1, 4, 7, 64], ids="block{}".format)
@pytest.mark.parametrize("length", [1, 7, 63, 90], ids="t{}".format)
def test_is_softmax_under_the_mask(length: int, block: int, count: int) -> None:
    q, k, v = draw(length, kv_heads=2)
    chosen = random_blocks(length, block=block, count=count, length=length)
    out = bigbird_attention(q, k, v, block=block, random_blocks=chosen)
    torch.testing.assert_close(out, dense(q, k, v, visible(chosen, length, block)))


class TestRandomBlocks:
    @pytest.mark.parametrize("count", [1, 3, 20], ids="r{}".format)
    @pytest.mark.parametrize("blocks", [1, 2, 3, 4, 5, 12], ids="n{}".format)
    def test_are_distinct_and_none_seen_anyway(self, blocks: int, count: int) -> None:
        chosen = random_blocks(blocks, block=1, count=count, length=blocks)
        for index in range(blocks):
            near = {index - 1, index, index + 1}
            rest = set(range(1, blocks - 1)) - near
            for row in chosen[:, :, index].flatten(0, 1).tolist():
                drawn = [n for n in row if n >= 0]
                assert set(drawn) <= rest
                assert len(set(drawn)) == len(drawn) == min(count, len(rest))

    def test_are_drawn_evenly(self) -> None:
        """Of 97 blocks, 400 draws each: within five standard deviations, of 20."""
        chosen = draw_random_blocks(
            SEED, torch.tensor([102]), heads=400 * 97 // 3, count=3, block=1, length=102
        )
        counts = chosen[0, :, 50].flatten().bincount(minlength=102)
        left = torch.tensor([n for n in range(1, 101) if n not in (49, 50, 51)])
        assert (counts[left] - 400).abs().max() < 5 * 20
        assert counts.sum() == counts[left].sum()

    def test_differ_between_heads_blocks_and_seeds(self) -> None:
        chosen = random_blocks(200, block=1, count=3, length=200)
        other = draw_random_blocks(
            SEED + 1, torch.full((2,), 200), heads=4, count=3, block=1, length=200
        )
        assert (chosen == other).double().mean() < 0.05
        assert (chosen[:, 0] == chosen[:, 1]).double().mean() < 0.05
        assert (chosen[:, :, 100] == chosen[:, :, 110]).double().mean() < 0.2

    def test_do_not_depend_on_padding(self) -> None:
        alone = random_blocks(50, block=4, count=3, length=50)
        padded = random_blocks(50, block=4, count=3, length=90)
        assert padded[:, :, : alone.shape[2]].equal(alone)


def test_enough_random_blocks_are_exact_attention() -> None:
    q, k, v = draw(50)
    chosen = random_blocks(50, block=4, count=10, length=50)
    out = bigbird_attention(q, k, v, block=4, random_blocks=chosen)
    torch.testing.assert_close(out, softmax_attention(q, k, v))


def test_padding_changes_nothing() -> None:
    q, k, v = draw(10)
    alone = bigbird_attention(
        q, k, v, block=2, random_blocks=random_blocks(10, block=2, count=1, length=10)
    )
    out = bigbird_attention(
        *(scattered(x, MASK) for x in (q, k, v)),
        block=2,
        random_blocks=random_blocks(MASK.sum(1), block=2, count=1, length=16),
        mask=MASK,
    )
    torch.testing.assert_close(out[MASK], alone.flatten(0, 1))
    assert not out[~MASK].any()


def test_gradients_are_those_of_finite_differences() -> None:
    q, k, v = (x[:, :, :1, :3].requires_grad_() for x in draw(8))
    mask = torch.tensor([[True, False, True, True, True, True, True, True], [False] * 8])
    chosen = draw_random_blocks(SEED, mask.sum(1), heads=1, count=1, block=1, length=8)

    def attend(*qkv: Tensor) -> Tensor:
        return bigbird_attention(*qkv, block=1, random_blocks=chosen, mask=mask)

    assert torch.autograd.gradcheck(attend, (q, k, v))


def test_agrees_with_transformers() -> None:
    """In training mode, for in evaluation theirs sees block 0 in place of random blocks."""
    block, count, length = 4, 2, 48
    config = BigBirdConfig(
        hidden_size=32,
        num_attention_heads=4,
        block_size=block,
        num_random_blocks=count,
        attention_probs_dropout_prob=0.0,
        max_position_embeddings=64,
    )
    theirs = BigBirdBlockSparseAttention(config, seed=3).double().train()
    hidden = torch.randn(2, length, 32, dtype=torch.float64)
    mask = torch.ones(2, length, dtype=torch.float64)
    blocked, band, from_mask, to_mask = BigBirdModel.create_masks_for_block_sparse_attn(mask, block)
    expected = theirs(
        hidden,
        band_mask=band,
        from_mask=from_mask,
        to_mask=to_mask,
        from_blocked_mask=blocked,
        to_blocked_mask=blocked,
    )[0]
    np.random.seed(3)  # noqa: NPY002 - their generator
    plan = theirs._get_rand_attn_plan(length, block, count)
    drawn = theirs._bigbird_block_rand_mask_with_head(length, length, block, block, 4, *plan)
    chosen = torch.full((2, 4, length // block, count), -1)
    chosen[:, :, 1:-1] = torch.from_numpy(np.stack(drawn)).long()
    q, k, v = (
        getattr(theirs, name)(hidden).unflatten(-1, (4, 8)) for name in ("query", "key", "value")
    )
    out = bigbird_attention(q, k, v, block=block, random_blocks=chosen)
    torch.testing.assert_close(out.flatten(2), expected)


def test_the_largest_tensor_grows_with_the_length_alone() -> None:
    sizes = []
    for length in (1024, 2048):
        q, k, v = draw(length)
        chosen = random_blocks(length, block=8, count=2, length=length)
        with LargestTensor() as largest:
            bigbird_attention(q, k, v, block=8, random_blocks=chosen)
        sizes.append(largest.numel)
    assert sizes[1] / sizes[0] == pytest.approx(2, rel=0.02)
    assert sizes[0] < 1024 * 1024
