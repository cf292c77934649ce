"""The peers of Flow-Attention at the same shapes: on a CPU, and those that a GPU has too.

Each peer gets its inputs in the layout that it computes in, so that none pays for a transposition.

The published equations are written anew, [b, h, t, d] in and out, without projections. Facts of the
code of Wu et al. (2022), `Flow_Attention` and `Flow_Attention_Causal`: an einsum for each flow,
running sums by cumsum, and in the causal form the outer product k vᵀ of every token,
[b, h, t, d, m], summed along the time. Never used by the library.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.attention import fast_transformers
from flowformer import flow_attention
from flowformer.ops.backends import available_backends

WIDTH = 64  # of a head: of its keys and of its values
EPS = 1e-6

OURS, SOFTMAX, PUBLISHED = "flowformer", "softmax", "published"
CHUNKED, COMPILED, FAST = "chunked", "chunked, compiled", "fast-transformers"
FORWARD, BOTH = "forward", "forward+backward"

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Peer:
    """An attention to compare with.

    Attributes:
        make: returns the attention.
        heads_first: whether it takes [b, h, t, d] rather than [b, t, h, d].
        longest: the most tokens that it is measured with in each pass, and why not more.
        missing: why it cannot be measured here, or None.
    """

    make: Callable[[], Attention]
    heads_first: bool = True
    longest: dict[str, float]
    why: str = ""
    missing: str | None = None


def native_or_chunked() -> str:
    """Return the backend to measure as ours: the native one, or `chunked` where it is missing."""
    return CHUNKED if available_backends()["cpu"] else "cpu"


def peers(*, causal: bool, backend: str) -> dict[str, Peer]:
    """Return the peers by name, ours first."""
    softmax = partial(F.scaled_dot_product_attention, is_causal=causal)
    chunked = partial(flow_attention, causal=causal, backend=CHUNKED)
    ours = partial(flow_attention, causal=causal, backend=backend)
    free = {FORWARD: math.inf, BOTH: math.inf}
    table = {
        OURS: Peer(make=lambda: ours, heads_first=False, longest=free),
        SOFTMAX: Peer(
            make=lambda: softmax,
            longest={FORWARD: 16_384 if causal else 8192, BOTH: 8192},
            why="its time is quadratic",
        ),
        CHUNKED: Peer(make=lambda: chunked, heads_first=False, longest=free),
        COMPILED: Peer(make=partial(compiled, chunked), heads_first=False, longest=free),
    }
    if not causal:
        return table | {PUBLISHED: Peer(make=lambda: published_bidirectional, longest=free)}
    return table | {
        PUBLISHED: Peer(
            make=lambda: published_causal,
            longest={FORWARD: 2048, BOTH: 2048},
            why="each of its [b, h, t, d, m] tensors has 256 MiB at 2,048 tokens",
        ),
        FAST: Peer(
            make=lambda: CausalProduct.apply,
            longest={FORWARD: 16_384, BOTH: 4096},
            why="a backward pass takes seconds",
            missing=fast_transformers.missing(),
        ),
    }


def compiled(attention: Attention) -> Attention:
    """Compile with inductor, once for all lengths."""
    fast = torch.compile(attention)

    def call(*inputs: Tensor) -> Tensor:
        for tensor in inputs:
            torch._dynamo.mark_dynamic(tensor, 1)
        return fast(*inputs)

    return call


class CausalProduct(torch.autograd.Function):
    """fast-transformers' causal linear attention: the product alone, without feature maps.

    Its two functions take contiguous float32 tensors and write into tensors that are given.
    """

    @staticmethod
    def forward(ctx, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Return out_t = q_t Σ_{s≤t} k_sᵀ v_s."""
        ctx.save_for_backward(query, key, value)
        out = torch.zeros_like(value)
        fast_transformers.load().causal_dot_product(query, key, value, out)
        return out

    @staticmethod
    def backward(ctx, *grads: Tensor) -> tuple[Tensor, ...]:
        """Return the gradients of query, key and value."""
        saved = ctx.saved_tensors
        results = tuple(torch.zeros_like(tensor) for tensor in saved)
        fast_transformers.load().causal_dot_backward(*saved, *grads, *results)
        return results


def published_bidirectional(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Return the published bidirectional form."""
    q, k = torch.sigmoid(query), torch.sigmoid(key)
    sinks, sources = q.shape[2], k.shape[2]
    row = 1.0 / torch.einsum("bhtd,bhd->bht", q + EPS, k.sum(2) + EPS)
    column = 1.0 / torch.einsum("bhtd,bhd->bht", k + EPS, q.sum(2) + EPS)
    sink = torch.einsum("bhtd,bhd->bht", q + EPS, (k * column[..., None]).sum(2) + EPS)
    source = torch.einsum("bhtd,bhd->bht", k + EPS, (q * row[..., None]).sum(2) + EPS)
    allocation = torch.sigmoid(sink * (sinks / sources))
    competition = torch.softmax(source.clamp(-1.0, 1.0), -1) * sources
    key_value = torch.einsum("bhtd,bhtm->bhdm", k, value * competition[..., None])
    out = torch.einsum("bhtd,bhdm->bhtm", q * row[..., None], key_value)
    return out * allocation[..., None]


def published_causal(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Return the published causal form, with its [b, h, t, d, m] tensor."""
    q, k = torch.sigmoid(query), torch.sigmoid(key)
    n = torch.arange(1.0, q.shape[2] + 1.0, device=q.device)
    row = n / torch.einsum("bhtd,bhtd->bht", q + EPS, k.cumsum(2) + EPS)
    column = n / torch.einsum("bhtd,bhtd->bht", k + EPS, q.cumsum(2) + EPS)
    key_flow = (k * column[..., None]).cumsum(2) + EPS
    query_flow = (q * row[..., None]).cumsum(2) + EPS
    sink = torch.einsum("bhtd,bhtd->bht", q + EPS, key_flow) / n
    source = torch.einsum("bhtd,bhtd->bht", k + EPS, query_flow) / n
    weight = torch.exp(source.clamp(-1.0, 1.0))
    competition = weight / weight.cumsum(-1) * n
    key_value = torch.einsum("bhtd,bhtm->bhtdm", k, value * competition[..., None]).cumsum(2)
    out = torch.einsum("bhtd,bhtdm->bhtm", q * (row / n)[..., None], key_value)
    return out * torch.sigmoid(sink)[..., None]


def make_inputs(length: int, heads: int, *, heads_first: bool) -> list[Tensor]:
    """Return query, key, value and a gradient of the output."""
    shape = (1, heads, length, WIDTH) if heads_first else (1, length, heads, WIDTH)
    generator = torch.Generator().manual_seed(length)
    inputs = [torch.randn(shape, generator=generator) for _ in range(4)]
    for tensor in inputs[:3]:
        tensor.requires_grad_()
    return inputs


def forward(attention: Attention, inputs: list[Tensor]) -> Tensor:
    """Run the forward pass alone."""
    with torch.no_grad():
        return attention(*inputs[:3])


def forward_backward(attention: Attention, inputs: list[Tensor]) -> tuple[Tensor, ...]:
    """Run both passes; return the output and the gradients of query, key and value."""
    out = attention(*inputs[:3])
    return out, *torch.autograd.grad(out, inputs[:3], inputs[3])


PASSES = {FORWARD: forward, BOTH: forward_backward}
