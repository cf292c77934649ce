"""The kernels as operators of torch. Triton is imported by the first call, not before."""

from typing import Any

import torch
from torch import Tensor

from flowformer.ops.backends.operators import Kernels, define_operators
from flowformer.ops.backends.triton import shapes
from flowformer.ops.state import FlowState


def _bidirectional(*arguments: Any) -> tuple[Tensor, ...]:
    from flowformer.ops.backends.triton import bidirectional_passes

    return bidirectional_passes.forward(*arguments)


def _bidirectional_backward(*arguments: Any) -> tuple[Tensor, ...]:
    from flowformer.ops.backends.triton import bidirectional_passes

    return bidirectional_passes.backward(*arguments)


def _causal(*arguments: Any) -> tuple[Tensor, ...]:
    from flowformer.ops.backends.triton import causal_passes

    return causal_passes.forward(*arguments)


def _causal_backward(*arguments: Any) -> tuple[Tensor, ...]:
    from flowformer.ops.backends.triton import causal_passes

    return causal_passes.backward(*arguments)


OPERATORS = define_operators(
    "triton_",
    Kernels(
        bidirectional=_bidirectional,
        bidirectional_backward=_bidirectional_backward,
        causal=_causal,
        causal_backward=_causal_backward,
        fake_bidirectional=shapes.bidirectional,
        fake_bidirectional_backward=shapes.bidirectional_backward,
        fake_causal=shapes.causal,
        fake_causal_backward=shapes.causal_backward,
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
