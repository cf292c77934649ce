"""The kernels as operators of torch. Triton is imported by the first call, not before."""

from typing import Any

import torch
from torch import Tensor

from flowformer.ops.backends.arguments import (
    LINEAR,
    BidirectionalArguments,
    BidirectionalBackwardArguments,
    BidirectionalGradients,
    BidirectionalKept,
    BidirectionalResults,
    CausalArguments,
    CausalBackwardArguments,
    CausalGradients,
    CausalKept,
    CausalResults,
    StateFields,
)
from flowformer.ops.backends.operators import Kernels, define_operators, room_for_state
from flowformer.ops.backends.triton.chunks import chunk_bound
from flowformer.ops.backends.triton.tuning import VECTORS, settings_of
from flowformer.ops.packing import sequence_count
from flowformer.ops.state import FlowState


def _bidirectional(arguments: BidirectionalArguments) -> BidirectionalResults:
    from flowformer.ops.backends.triton import bidirectional_passes

    return bidirectional_passes.forward(arguments)


def _bidirectional_backward(arguments: BidirectionalBackwardArguments) -> BidirectionalGradients:
    from flowformer.ops.backends.triton import bidirectional_passes

    return bidirectional_passes.backward(arguments)


def _causal(arguments: CausalArguments) -> CausalResults:
    from flowformer.ops.backends.triton import causal_passes

    return causal_passes.forward(arguments)


def _causal_backward(arguments: CausalBackwardArguments) -> CausalGradients:
    from flowformer.ops.backends.triton import causal_passes

    return causal_passes.backward(arguments)


# Shapes of what these return, while a graph is traced: no kernel, no triton.


def _fake_bidirectional(arguments: BidirectionalArguments) -> BidirectionalResults:
    query, key, value = arguments.inputs[:3]
    out = value.new_empty((*query.shape[:3], value.shape[3]))
    if not arguments.keep:
        return BidirectionalResults(out)
    _, _, h, d = query.shape

    def stats(x: Tensor) -> Tensor:
        return x.new_empty((2, x.shape[0], h, x.shape[1]), dtype=torch.float32)

    shape = (sequence_count(query, arguments.inputs.cu_seqlens), h, d * (VECTORS + value.shape[3]))
    sums = query.new_empty(shape, dtype=torch.float32)
    return BidirectionalResults(out, BidirectionalKept(stats(query), stats(key), sums))


def _fake_causal(arguments: CausalArguments) -> CausalResults:
    query, value = arguments.inputs.query, arguments.inputs.value
    b, t, h, d = query.shape
    out = value.new_empty((b, t, h, value.shape[3]))
    state, kept = StateFields(), CausalKept()
    if arguments.return_state:
        state = room_for_state(arguments.inputs, arguments.options)
    if arguments.keep and arguments.options.feature_map != LINEAR:
        stats = query.new_empty((VECTORS, b, h, t), dtype=torch.float32)
        chunks = _chunk_bound(query, value, arguments.inputs.cu_seqlens)
        sums = query.new_empty((VECTORS, chunks, h, d), dtype=torch.float32)
        kept = CausalKept(stats, sums)
    return CausalResults(out, state, kept)


def _chunk_bound(query: Tensor, value: Tensor, cu_seqlens: Tensor | None) -> int:
    """Return the number of chunks that a call has room for: it depends on shapes alone."""
    size = settings_of(query, value, causal=True).size
    if cu_seqlens is None:
        return query.shape[0] * -(-query.shape[1] // size)
    return chunk_bound(query.shape[1], len(cu_seqlens) - 1, size)


OPERATORS = define_operators(
    "triton_",
    Kernels(
        bidirectional=_bidirectional,
        bidirectional_backward=_bidirectional_backward,
        causal=_causal,
        causal_backward=_causal_backward,
        fake_bidirectional=_fake_bidirectional,
        fake_causal=_fake_causal,
        keeps_output=True,
    ),
    "CUDA",
    "CPU",  # under Triton's interpreter
)


@torch.library.custom_op("flowformer::triton_step", mutates_args=())
def one_token(  # noqa: PLR0913 - an operator's arguments are tensors and numbers, no tuples
    query: Tensor,
    key: Tensor,
    value: Tensor,
    tokens: Tensor,
    key_sum: Tensor,
    query_sum: Tensor,
    key_flow: Tensor,
    query_flow: Tensor,
    competition: Tensor,
    key_value: Tensor,
    feature_map: int,
    competes_over: int,
    allocation: bool,
    clamp: float,
    eps: float,
) -> list[Tensor]:
    """Return the output and the fields of the next state; without gradients."""
    from flowformer.ops.backends.triton import launch
    from flowformer.ops.backends.triton.side import on_device, together

    fields = (tokens, key_sum, query_sum, key_flow, query_flow, competition, key_value)
    with on_device(query):
        out, after = launch.step(
            *(together(query), together(key), together(value)),
            FlowState(*(field.contiguous() for field in fields)),
            features=feature_map,
            eps=eps,
            clamp=clamp if competes_over else None,
            allocates=allocation,
        )
    return [out, *after]


@one_token.register_fake
def _fake_one_token(query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> list[Tensor]:  # noqa: ARG001
    b, t, h, _ = query.shape
    after = (field.new_empty(field.shape) for field in rest[:7])
    return [value.new_empty((b, t, h, value.shape[3])), *after]
