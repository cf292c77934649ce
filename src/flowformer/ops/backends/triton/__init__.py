"""The GPU kernels as a backend: written in Triton, for NVIDIA and, as far as Triton goes, AMD.

Inputs are float16, bfloat16 or float32, sums float32 and, over chunks, float64. Under Triton's
interpreter (TRITON_INTERPRET=1, set before triton is first imported) all of it runs on a CPU: a
check of what the kernels compute, at a thousandth of the speed.
"""

import os
import sys
from functools import cache, partial
from importlib.util import find_spec
from shutil import which
from typing import Any

import torch
from torch import Tensor

from flowformer.ops.backends import chunked
from flowformer.ops.backends.arguments import numbers
from flowformer.ops.backends.operator_backend import CompiledBackend
from flowformer.ops.backends.triton.convolution import short_convolution as short_convolution
from flowformer.ops.backends.triton.operators import OPERATORS, one_token
from flowformer.ops.backends.triton.token_sums import LARGEST_PACKED_EXPONENT
from flowformer.ops.backends.triton.tuning import INTERPRETED
from flowformer.ops.inputs import is_kept
from flowformer.ops.options import FlowOptions
from flowformer.ops.packing import Batch, attend_batch
from flowformer.ops.state import FlowState, state_before

PACKS_SEQUENCES = True
TAKES_HALF = True  # linear products too: sums and the row scale are float32 inside
CONTAINS_NONFINITE = False  # zero times NaN, see nonfinite.py
DECAYS = ("linear",)  # the attentions that take log_decay; chunked computes the others


@cache
def why_unavailable() -> str | None:
    """Return None where the kernels can be used, and otherwise the reason why not."""
    if find_spec("triton") is None:
        return "triton is not installed"
    if INTERPRETED:
        return None
    if not torch.cuda.is_available():
        return "no CUDA device"
    if sys.platform == "linux" and not (os.environ.get("CC") or which("gcc") or which("clang")):
        return "no C compiler (gcc, clang or $CC): triton builds what launches its kernels with it"
    capability = torch.cuda.get_device_capability()
    if torch.version.hip is None and capability < (8, 0):
        return f"compute capability {capability[0]}.{capability[1]}: it needs 8.0 (TensorFloat-32)"
    return None


def why_not_for(query: Tensor) -> str | None:
    """Return None where the kernels take such tensors, and otherwise the reason why not."""
    if query.dtype == torch.float64:
        return "float64 inputs: it computes in float32"
    if not (query.is_cuda or INTERPRETED):
        return f"tensors on {query.device.type}: it takes those on a CUDA device"
    return None


_backend = CompiledBackend(OPERATORS)
bidirectional, linear_causal = _backend.bidirectional, _backend.linear_causal


def causal(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    options: FlowOptions,
    cu_seqlens: Tensor | None = None,
    reverse: bool = False,
    **rest: Any,
) -> tuple[Tensor, FlowState | None]:
    """Causal Flow-Attention, see :class:`CompiledBackend`."""
    attend = partial(_backend.causal, options=options, reverse=reverse)
    is_large = options.clamp is None or options.clamp > LARGEST_PACKED_EXPONENT
    if cu_seqlens is None or options.competition is None or not is_large:
        return attend(query, key, value, cu_seqlens=cu_seqlens, **rest)

    # exp may overflow, or hide the next sequence's: each is summed by itself.
    def alone(queries: Any, keys: Any, part: Batch, past: FlowState | None) -> Any:
        return attend(*queries, *keys, mask=part.key_mask, state=past)

    batch = Batch(None, None, cu_seqlens, None)
    return attend_batch(alone, (query,), (key, value), batch, rest["state"])


def step(
    query: Tensor, key: Tensor, value: Tensor, *, options: FlowOptions, state: FlowState | None
) -> tuple[Tensor, FlowState]:
    """One token of causal Flow-Attention: one kernel, or with gradients the recurrence itself."""
    before = state_before(FlowState, state, query, value)
    if is_kept(query, key, value, *before):
        return chunked.step(query, key, value, options=options, state=before)
    out, *fields = one_token(query, key, value, *before, *numbers(options))
    after = FlowState(*fields)
    if options.competition is None:
        after = after._replace(competition=before.competition)
    return out, after


def mobile(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    options: FlowOptions,
    normalize: bool,
    mask: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> Tensor:
    """Mobile-Attention, in PyTorch: it has no kernels here."""

    def attend(queries: Any, keys: Any, part: Batch, state: None) -> Any:
        rest = {"options": options, "normalize": normalize, "mask": part.key_mask}
        return chunked.mobile(*queries, *keys, **rest), state

    batch = Batch(mask, mask, cu_seqlens, None)
    return attend_batch(attend, (query,), (key, value), batch, None)[0]


def linear_bidirectional(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    row_scale: Tensor | None,
    query_mask: Tensor | None = None,
    key_mask: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    cu_seqlens_k: Tensor | None = None,
) -> Tensor:
    """out_i = row_scale_i · q_i Σ_j k_jᵀ v_j: two products, which cuBLAS does, in float32."""

    def attend(queries: Any, keys: Any, part: Batch, state: Any) -> Any:
        query, *scale = queries
        masks = {"query_mask": part.query_mask, "key_mask": part.key_mask}
        return chunked.linear_bidirectional(
            query, *keys, row_scale=scale[0] if scale else None, **masks
        ), state

    queries = (q.float(),) if row_scale is None else (q.float(), row_scale)
    batch = Batch(query_mask, key_mask, cu_seqlens, cu_seqlens_k)
    return attend_batch(attend, queries, (k.float(), v.float()), batch, None)[0]
