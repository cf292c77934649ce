"""What Flow-Attention on a GPU is compared with, at the same shapes.

Each peer gets its inputs in the layout that it computes in, so that none pays for a transposition.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.attention.gpu.traffic import Call
from benchmarks.attention.peers import (
    CHUNKED,
    OURS,
    PUBLISHED,
    Attention,
    published_bidirectional,
    published_causal,
)
from flowformer import FlowState, flow_attention, flow_attention_step

FLASH, FLA, FLA_SCALED = "FlashAttention", "fla", "fla, rows scaled after"
GRAPH = "flowformer, CUDA graph"
PIECE = 4096  # tokens read at once into a state
WARM_UP = 3  # calls before a CUDA graph is captured

Step = Callable[[], object]


@dataclass(frozen=True, kw_only=True)
class Peer:
    """An attention to compare with.

    Attributes:
        make: returns the attention for a call, on a device.
        heads_first: whether it takes [b, h, t, d] rather than [b, t, h, d].
        quadratic: whether its time is, in the length.
        missing: why it cannot be measured here, or None.
    """

    make: Callable[[Call, torch.device], Attention]
    heads_first: bool = False
    quadratic: bool = False
    missing: str | None = None


def fla_missing() -> str | None:
    """Return why flash-linear-attention cannot be measured, or None."""
    if find_spec("fla") is None:
        return "not installed: pip install flash-linear-attention"
    return None


def peers(*, causal: bool, backend: str) -> dict[str, Peer]:
    """Return the peers by name, ours first."""
    table = {
        OURS: Peer(make=partial(_flow, backend)),
        FLASH: Peer(make=_flash, heads_first=True, quadratic=True),
        CHUNKED: Peer(make=partial(_flow, CHUNKED)),
        PUBLISHED: Peer(make=_published, heads_first=True),
    }
    if causal:
        missing = fla_missing()
        table[FLA] = Peer(make=partial(_fla, False), missing=missing)
        table[FLA_SCALED] = Peer(make=partial(_fla, True), missing=missing)
    return table


def _flow(backend: str, call: Call, _: torch.device) -> Attention:
    return partial(flow_attention, causal=call.causal, backend=backend)


def _flash(call: Call, _: torch.device) -> Attention:
    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return F.scaled_dot_product_attention(query, key, value, is_causal=call.causal)

    return attend


def _published(call: Call, device: torch.device) -> Attention:
    """The published equations; half precision as the published code trains: under autocast."""
    attention = published_causal if call.causal else published_bidirectional
    halved = call.dtype != torch.float32

    def attend(*inputs: Tensor) -> Tensor:
        with torch.autocast(device.type, dtype=call.dtype, enabled=halved):
            return attention(*inputs).to(call.dtype)

    return attend


def _fla(scaled: bool, call: Call, device: torch.device) -> Attention:
    """Linear attention without flow or normalizer; scaled, each row is divided by its position."""
    from fla.ops.linear_attn import chunk_linear_attn

    chunked: Any = chunk_linear_attn  # torch.compiler.disable hides its signature
    positions = torch.arange(1.0, call.length + 1.0, device=device)
    scale = positions.reciprocal()[None, :, None, None]

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out, _ = chunked(query, key, value, scale=1.0, normalize=False)
        return (out * scale).to(out.dtype) if scaled else out

    return attend


def make_inputs(call: Call, device: torch.device) -> list[Tensor]:
    """Return query, key, value and a gradient of the output, [b, t, h, d]."""
    shape = (call.batch, call.length, call.heads, call.width)
    generator = torch.Generator(device).manual_seed(call.length)
    return [
        torch.randn(shape, generator=generator, device=device, dtype=call.dtype) for _ in range(4)
    ]


def inputs_of(peer: Peer, inputs: list[Tensor]) -> list[Tensor]:
    """Return the inputs in the layout of a peer, of the same memory where it loses nothing by that.

    FlashAttention computes in [b, t, h, d], whatever it is called with; batched products take one
    row's transpose as it is.
    """
    given = inputs
    if peer.heads_first:
        given = [tensor.transpose(1, 2) for tensor in inputs]
        if not peer.quadratic and inputs[0].shape[0] > 1:
            given = [tensor.contiguous() for tensor in given]
    given = [tensor.detach() for tensor in given]
    for tensor in given[:3]:
        tensor.requires_grad_()
    return given


# One token. The length of the call is the number of tokens before it.


def steps(backend: str) -> dict[str, tuple[Callable[[Call, torch.device], Step], str | None]]:
    """Return what decodes a token, by name, with the reason why it cannot be measured or None."""
    return {
        OURS: (partial(_flow_step, backend), None),
        GRAPH: (partial(_graphed_step, backend), None),
        FLASH: (_flash_step, None),
        CHUNKED: (partial(_flow_step, CHUNKED), None),
        FLA: (_fla_step, fla_missing()),
    }


def _token(call: Call, device: torch.device) -> Tensor:
    shape = (3, call.batch, 1, call.heads, call.width)
    return torch.randn(shape, device=device, dtype=call.dtype)


@torch.no_grad()
def state_after(call: Call, device: torch.device, backend: str | None) -> FlowState:
    """Return the state of each row after the call's tokens: one sequence is read, in pieces."""
    state: FlowState | None = None
    for start in range(0, call.length, PIECE):
        shape = (3, 1, min(PIECE, call.length - start), call.heads, call.width)
        query, key, value = torch.randn(shape, device=device, dtype=call.dtype)
        _, state = flow_attention(
            query,
            key,
            value,
            causal=True,
            initial_state=state,
            return_state=True,
            backend=backend,
        )
    assert state is not None
    return state.reorder(torch.zeros(call.batch, dtype=torch.int64, device=device))


def _flow_step(backend: str, call: Call, device: torch.device) -> Step:
    token, state = _token(call, device), state_after(call, device, backend)
    return partial(flow_attention_step, *token, state, backend=backend)


def _graphed_step(backend: str, call: Call, device: torch.device) -> Step:
    """The same step, replayed: without what Python and the launch cost."""
    step = _flow_step(backend, call, device)
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            step()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = step()

    def replay() -> object:
        graph.replay()
        return out

    return replay


def _flash_step(call: Call, device: torch.device) -> Step:
    """Softmax over a cache that is already filled."""
    query = _token(call, device)[0].transpose(1, 2)
    shape = (2, call.batch, call.heads, call.length, call.width)
    cache = torch.randn(shape, device=device, dtype=call.dtype)
    # Not causal: one query sees the whole cache.
    return partial(_flash(replace(call, causal=False), device), query, *cache)


def _fla_step(call: Call, device: torch.device) -> Step:
    from fla.ops.linear_attn import fused_recurrent_linear_attn

    token = _token(call, device)
    shape = (call.batch, call.heads, call.width, call.width)
    state = torch.randn(shape, device=device, dtype=torch.float32)
    arguments: dict[str, Any] = {"initial_state": state, "output_final_state": True}
    return partial(fused_recurrent_linear_attn, *token, scale=1.0, **arguments)
