"""BigBird (Zaheer et al. 2020): softmax attention to global, neighbouring and random blocks."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from flowformer.nn.mixers.blockwise import (
    Part,
    Sequences,
    attend,
    blocks,
    check_positive,
    gather_sequences,
    in_order,
    merge,
    restore,
    windows,
)
from flowformer.nn.mixers.head_attention import Capabilities, HeadAttention
from flowformer.nn.mixers.mixer import ProjectedMixer
from flowformer.ops.inputs import exact_arithmetic
from flowformer.ops.layout import Layout, takes_layouts


@takes_layouts("query", "key", "value")
def bigbird_attention(
    query: Float[Tensor, "b t h d"],
    key: Float[Tensor, "b t g d"],
    value: Float[Tensor, "b t g m"],
    *,
    block: int,
    random_blocks: Int[Tensor, "b h n r"],
    mask: Bool[Tensor, "b t"] | None = None,
    layout: Layout = "bthd",  # noqa: ARG001 - the decorator reads it
) -> Float[Tensor, "b t h m"]:
    """out_i = Σ_j softmax_j(q_i · k_j / √d) v_j over the keys of the blocks that block I sees.

        I ∈ {0, N}    all blocks                                      (global: they see all)
        otherwise     {0, N} ∪ {I - 1, I, I + 1} ∪ random_blocks[I]   (global, window, random)

    with N the last block that holds a real token: the "internal transformer construction" of
    section 2, with the published code's two global and three window blocks. O(t · block · (5 + r)).
    It has no causal form: the paper's decoders use full attention. Positions count real tokens.

    Args:
        query: the queries.
        key: the keys; g divides h, and each key head serves h / g query heads.
        value: the values, with as many heads as the keys.
        block: tokens in a block.
        random_blocks: r blocks for each of n = ⌈t / block⌉, as `draw_random_blocks` gives them:
            no two the same, none seen anyway; -1 for none.
        mask: real tokens (True); the output at the others is zero.
        layout: `"bhtd"` for heads first, `[b, h, t, …]`; see `flow_attention`.
    """
    tokens = gather_sequences(query, key, value, mask)
    last = last_block(tokens.real.sum(dim=1), block)
    with exact_arithmetic(query):
        length = query.shape[1]
        ends = torch.stack((torch.zeros_like(last), last), dim=1)  # [b, 2]
        index = torch.arange(-(-length // block), device=last.device)
        is_end = (index == ends[:, :, None]).any(dim=1)  # [b, n]
        parts = [_to_window(tokens, block, is_end), _to_ends(tokens, block, ends)]
        if random_blocks.shape[-1]:
            parts.append(_to_random(tokens, block, random_blocks))
        first_out, last_out = _from_ends(tokens, block, ends).unbind(dim=2)
        out = blocks(merge(parts), block)
        at_first, at_last = (
            (index == end[:, None])[:, None, :, None, None] for end in ends.unbind(dim=1)
        )
        out = torch.where(at_last, last_out.unsqueeze(2), out)
        out = torch.where(at_first, first_out.unsqueeze(2), out)
        return restore(tokens, out.flatten(2, 3)[:, :, :length])


def last_block(tokens: Int[Tensor, " b"], block: int) -> Int[Tensor, " b"]:
    """Return the number of the last block that holds one of so many tokens."""
    return ((tokens - 1) // block).clamp(min=0)


def draw_random_blocks(
    seed: Int[Tensor, ""],
    tokens: Int[Tensor, " b"],
    *,
    heads: int,
    count: int,
    block: int,
    length: int,
) -> Int[Tensor, "b h n r"]:
    """Draw, for each row, head and block, `count` of the blocks that it does not see anyway.

    The draws are a function of the seed, the head and the block's number, so that a block draws
    the same whatever stands beside it in the batch, on any device. Without replacement: where
    fewer than `count` are left, all of them, then -1.

    Args:
        seed: a number, the same for every call of a layer.
        tokens: how many real tokens each row has.
        heads: number of heads.
        count: r, how many to draw.
        block: tokens in a block.
        length: tokens in a row, padding included: n = ⌈length / block⌉.
    """
    last = last_block(tokens, block)
    place = torch.arange(-(-length // block), device=seed.device)
    # Left over are 1 … last - 1 without the window, lowest … lowest + width - 1, inside of it.
    lowest = (place - 1).clamp(min=1)
    width = (torch.minimum(place + 1, last[:, None] - 1) - lowest + 1).clamp(min=0)
    left = ((last[:, None] - 1).clamp(min=0) - width)[:, None, :]  # [b, 1, n]
    head = torch.arange(heads, device=seed.device)[:, None]
    if not count:
        return place.new_empty(last.shape[0], heads, place.shape[0], 0)
    drawn: list[Tensor] = []
    for turn in range(count):
        uniform = _hash(_hash(_hash(seed) + head) + place * count + turn)
        choice = uniform % (left - turn).clamp(min=1)  # among those not drawn yet
        for earlier in torch.stack(drawn).sort(dim=0).values if drawn else ():
            choice = choice + (choice >= earlier)
        drawn.append(choice)
    choice = torch.stack(drawn, dim=-1)
    chosen = choice + 1
    skip = (chosen >= lowest[:, None]).logical_and((width > 0)[:, None, :, None])
    chosen = chosen + skip * width[:, None, :, None]
    turn = torch.arange(count, device=seed.device)
    return torch.where(turn < left.unsqueeze(-1), chosen, -1)


def _hash(x: Int[Tensor, "..."]) -> Int[Tensor, "..."]:
    """Return a number in [0, 2³²) that looks random (the finaliser of MurmurHash3)."""
    low = 0xFFFFFFFF
    x = x & low
    # Products of 32 by 31 bits: within int64. The constants are Murmur's without their top bit.
    x = ((x ^ (x >> 16)) * 0x05EBCA6B) & low
    x = ((x ^ (x >> 13)) * 0x42B2AE35) & low
    return x ^ (x >> 16)


def _to_window(tokens: Sequences, block: int, is_end: Bool[Tensor, "b n"]) -> Part:
    """Return the block itself, that before it and that after it, but for global ones."""
    length = tokens.query.shape[2]
    hidden = is_end.repeat_interleave(block, dim=1)[:, :length]
    visible = (tokens.real & ~hidden)[:, None, :, None]
    keys, values, visible = (
        windows(x, block, before=block, after=block) for x in (tokens.key, tokens.value, visible)
    )
    scores = blocks(tokens.query, block) @ keys.transpose(-1, -2)
    return in_order(attend(scores, visible.transpose(-1, -2), values), length)


def _to_ends(tokens: Sequences, block: int, ends: Int[Tensor, "b 2"]) -> Part:
    """The first block and the last. Where they are one, `_from_ends` gives the output instead."""
    key, value, real = (
        _blocks_at(x, block, ends[:, None, :]).flatten(2, 3)
        for x in (tokens.key, tokens.value, tokens.real[:, None, :, None])
    )
    return attend(tokens.query @ key.transpose(-1, -2), real.transpose(-1, -2), value)


def _to_random(tokens: Sequences, block: int, chosen: Int[Tensor, "b h n r"]) -> Part:
    """Return the random blocks."""
    length, count = tokens.query.shape[2], chosen.shape[-1]
    flat = chosen.flatten(2).clamp(min=0)
    key, value, real = (
        _blocks_at(x, block, flat).unflatten(2, (-1, count)).flatten(3, 4)
        for x in (tokens.key, tokens.value, tokens.real[:, None, :, None])
    )
    drawn = (chosen >= 0).repeat_interleave(block, dim=-1).unsqueeze(-2)
    scores = blocks(tokens.query, block) @ key.transpose(-1, -2)
    return in_order(attend(scores, drawn & real.transpose(-1, -2), value), length)


def _from_ends(
    tokens: Sequences, block: int, ends: Int[Tensor, "b 2"]
) -> Float[Tensor, "b h 2 block m"]:
    """Return all tokens, as the first and the last block see them."""
    query = _blocks_at(tokens.query, block, ends[:, None, :]).flatten(2, 3)
    visible = tokens.real[:, None, None, :]
    out = attend(query @ tokens.key.transpose(-1, -2), visible, tokens.value).out
    return out.unflatten(2, (2, block))


def _blocks_at(x: Tensor, block: int, index: Int[Tensor, "b h k"]) -> Tensor:
    """Return the blocks `index` of x [b, h, t, d], as [b, h, k, block, d]."""
    return blocks(x, block).take_along_dim(index[..., None, None], dim=2)


class BigBirdAttention(HeadAttention):
    """Softmax attention to global, neighbouring and random blocks (Zaheer et al. 2020).

    The random blocks follow from a seed that is drawn at construction and saved with the
    parameters, so layers differ, and a loaded model sees what the saved one saw.

    Args:
        block: tokens in a block.
        random_blocks: how many random blocks each block sees, for each head its own.
    """

    capabilities = Capabilities(causal=False, cross=False, state=False)
    function = staticmethod(bigbird_attention)
    block: int
    seed: Tensor

    def __init__(self, *, block: int = 64, random_blocks: int = 3) -> None:
        super().__init__(block=block)
        check_positive(block=block)
        if random_blocks != 0:
            check_positive(random_blocks=random_blocks)
        self.random_blocks = random_blocks
        self.register_buffer("seed", torch.randint(2**31, ()))

    def forward(
        self,
        query: Float[Tensor, "b t h d"],
        *others: Tensor,
        mask: Bool[Tensor, "b t"] | None = None,
    ) -> tuple[Tensor, None]:
        """Return the output; it has no state."""
        batch, length, heads = query.shape[:3]
        if mask is None:
            tokens = torch.full((batch,), length, device=query.device)
        else:
            tokens = mask.sum(dim=1)
        chosen = draw_random_blocks(
            self.seed,
            tokens,
            heads=heads,
            count=self.random_blocks,
            block=self.block,
            length=length,
        )
        return super().forward(query, *others, random_blocks=chosen, mask=mask)

    def extra_repr(self) -> str:
        """Return the options, for print(model)."""
        return f"{super().extra_repr()}, random_blocks={self.random_blocks}"


class BigBirdMixer(ProjectedMixer, name="bigbird"):
    """BigBird (Zaheer et al. 2020): softmax over global, neighbouring and random blocks."""

    kind = BigBirdAttention
