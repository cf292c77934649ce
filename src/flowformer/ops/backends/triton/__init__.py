"""The GPU kernels as a backend: written in Triton, for NVIDIA and, as far as Triton goes, AMD.

Inputs are float16, bfloat16 or float32, sums float32 and, over chunks, float64. Under Triton's
interpreter (TRITON_INTERPRET=1, set before triton is first imported) all of it runs on a CPU: a
check of what the kernels compute, at a thousandth of the speed.
"""

import os
import sys
from functools import cache
from importlib.util import find_spec
from shutil import which
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from flowformer.ops.backends import chunked
from flowformer.ops.backends.operators import LINEAR_OPTIONS, is_kept, numbers
from flowformer.ops.backends.triton.operators import OPERATORS, one_token
from flowformer.ops.backends.triton.sequences import LARGEST_PACKED_EXPONENT
from flowformer.ops.options import FlowOptions
from flowformer.ops.packing import Batch, attend_batch
from flowformer.ops.state import FlowState, LinearState, flow_state

PACKS_SEQUENCES = True
TAKES_HALF = True  # linear products too: sums and the row scale are float32 inside
CONTAINS_NONFINITE = False  # zero times NaN, see nonfinite.py

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # as triton reads it, at its import


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


def bidirectional(
    query: Float[Tensor, "b l h d"],
    key: Float[Tensor, "b s h d"],
    value: Float[Tensor, "b s h m"],
    *,
    options: FlowOptions,
    query_mask: Bool[Tensor, "b l"] | None,
    key_mask: Bool[Tensor, "b s"] | None,
    cu_seqlens: Int[Tensor, " n"] | None = None,
    cu_seqlens_k: Int[Tensor, " n"] | None = None,
) -> Float[Tensor, "b l h m"]:
    """Flow-Attention."""
    keep = is_kept(query, key, value)
    masks = query_mask, key_mask, cu_seqlens, cu_seqlens_k
    return OPERATORS.bidirectional(query, key, value, *masks, *numbers(options), keep)[0]


def causal(
    query: Float[Tensor, "b t h d"],
    key: Float[Tensor, "b t h d"],
    value: Float[Tensor, "b t h m"],
    *,
    options: FlowOptions,
    mask: Bool[Tensor, "b t"] | None,
    state: FlowState | None,
    return_state: bool = True,
    cu_seqlens: Int[Tensor, " n"] | None = None,
) -> tuple[Float[Tensor, "b t h m"], FlowState | None]:
    """Causal Flow-Attention."""
    is_large = numbers(options).clamp > LARGEST_PACKED_EXPONENT
    if cu_seqlens is not None and options.competition is not None and is_large:
        # exp may overflow, or hide the next sequence's: each is summed by itself.
        def attend(queries: Any, keys: Any, part: Batch, past: FlowState | None) -> Any:
            return causal(*queries, *keys, options=options, mask=part.key_mask, state=past)

        batch = Batch(None, None, cu_seqlens, None)
        return attend_batch(attend, (query,), (key, value), batch, state)
    before = state or (None,) * 7
    keep = is_kept(query, key, value, *before)
    rest = (mask, cu_seqlens, None, *before, *numbers(options), keep, return_state)
    out, *fields = OPERATORS.causal(query, key, value, *rest)
    if not return_state:
        return out, None
    after = FlowState(*fields[:7])
    if options.competition is None and state is not None:  # it passes by
        after = after._replace(competition=state.competition)
    return out, after


def step(
    query: Float[Tensor, "b 1 h d"],
    key: Float[Tensor, "b 1 h d"],
    value: Float[Tensor, "b 1 h m"],
    *,
    options: FlowOptions,
    state: FlowState | None,
) -> tuple[Float[Tensor, "b 1 h m"], FlowState]:
    """One token of causal Flow-Attention: one kernel, or with gradients the recurrence itself."""
    before = flow_state(state, query, value)
    if is_kept(query, key, value, *before):
        return chunked.step(query, key, value, options=options, state=before)
    out, *fields = one_token(query, key, value, *before, *numbers(options))
    after = FlowState(*fields)
    if options.competition is None:
        after = after._replace(competition=before.competition)
    return out, after


def linear_bidirectional(
    q: Float[Tensor, "b l h d"],
    k: Float[Tensor, "b s h d"],
    v: Float[Tensor, "b s h m"],
    *,
    row_scale: Float[Tensor, "b l h"] | None,
) -> Float[Tensor, "b l h m"]:
    """out_i = row_scale_i · q_i Σ_j k_jᵀ v_j: two products, which cuBLAS does, in float32."""
    return chunked.linear_bidirectional(q.float(), k.float(), v.float(), row_scale=row_scale)


def linear_causal(
    q: Float[Tensor, "b t h d"],
    k: Float[Tensor, "b t h d"],
    v: Float[Tensor, "b t h m"],
    *,
    row_scale: Float[Tensor, "b t h"] | None,
    state: LinearState | None,
    return_state: bool = True,
    cu_seqlens: Int[Tensor, " n"] | None = None,
) -> tuple[Float[Tensor, "b t h m"], LinearState | None]:
    """out_t = row_scale_t · q_t Σ_{s≤t} k_sᵀ v_s, in the dtype of the features."""
    key_value = None if state is None else state.key_value
    keep = is_kept(q, k, v, row_scale, key_value)
    rest = (None, cu_seqlens, row_scale, *(None,) * 6, key_value, *LINEAR_OPTIONS)
    out, *fields = OPERATORS.causal(q, k, v, *rest, keep, return_state)
    return out, LinearState(fields[6]) if return_state else None
