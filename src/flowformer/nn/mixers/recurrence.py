"""Linear attention whose state decays (Yang et al. 2024), feature by feature or as a whole.

As a whole it is :func:`linear_attention` with log_decay. Feature by feature, the kernel of
flash-linear-attention runs on CUDA, in half precision, where that package is installed; everywhere
else, and in every other dtype, the chunked form below, which is exact.
"""

from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from flowformer.nn.mixers.head_attention import Capabilities, HeadAttention
from flowformer.ops import linear_attention
from flowformer.ops.backends import prefix
from flowformer.ops.backends.decay import decays_between
from flowformer.ops.features import compute_dtype, masked
from flowformer.ops.inputs import (
    check_causal,
    check_tensors,
    exact_arithmetic,
    is_for_any_length,
    is_recorded,
    resolve_masks,
    starting_state,
)
from flowformer.ops.layout import Layout, takes_layouts
from flowformer.ops.nonfinite import contained
from flowformer.ops.state import LinearState

# Tokens between which every pair is formed. With a decay for each feature a pair holds d numbers
# (their decays cannot be split into a factor of each token: it could be out of range).
CHUNK = 16
SEGMENT = 2048  # tokens whose pairs are held at once


@takes_layouts("query", "key", "value", "log_decay")
@contained("query", "key", "value", "log_decay", always=True)
def gated_linear_attention(
    query: Float[Tensor, "b t h d"],
    key: Float[Tensor, "b t g d"],
    value: Float[Tensor, "b t g m"],
    *,
    log_decay: Float[Tensor, "b t h e"],
    mask: Bool[Tensor, "b t"] | None = None,
    initial_state: LinearState | None = None,
    layout: Layout = "bthd",  # noqa: ARG001 - the decorator reads it
) -> tuple[Float[Tensor, "b t h m"], LinearState]:
    """out_t = q_t S_t with S_t = diag(α_t) S_{t-1} + k_tᵀ v_t, α = exp(log_decay) (equation 3).

    Causal by nature. A padded token leaves the state as it is.

    Args:
        query: the queries; a scale such as 1/√d is the caller's.
        key: the keys; g divides h, and each key head serves h / g query heads.
        value: the values, with as many heads as the keys.
        log_decay: log α ≤ 0, one for each feature (e = d) or one for all (e = 1), which is what
            `linear_attention` computes.
        mask: real tokens (True); the output at the others is zero.
        initial_state: the state after the tokens before these.
        layout: `"bhtd"` for heads first, `[b, h, t, …]`; see `flow_attention`.

    Returns:
        The output, and the state after these tokens.

    Raises:
        ValueError: the tensors do not fit each other, or the state is one of other sizes.
        TypeError: the state is of another kind.
    """
    dtype_out = value.dtype
    query, key, value = check_tensors(query, key, value)
    check_causal(query, key)
    if log_decay.shape not in (query.shape, (*query.shape[:3], 1)):
        raise ValueError(
            f"log_decay must be [batch, time, head, 1 or {query.shape[3]}] with the sizes of the "
            f"query {list(query.shape)}, got {list(log_decay.shape)}"
        )
    if log_decay.shape[3] == 1:
        return linear_attention(
            *(query, key, value),
            causal=True,
            log_decay=log_decay[..., 0],
            mask=mask,
            initial_state=initial_state,
            return_state=True,
            layout="bthd",
        )
    attend = fast_kernel(query, "gla", "chunk_gla", _in_float32) or chunked_gla
    return run_recurrence(attend, (query, key, value, log_decay), mask, initial_state, dtype_out)


Recurrence = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
Gates = Callable[[Tensor, Tensor], tuple[Tensor, ...]]


def run_recurrence(
    attend: Recurrence,
    tensors: tuple[Tensor, Tensor, Tensor, Tensor],
    mask: Bool[Tensor, "b t"] | None,
    initial_state: LinearState | None,
    dtype: torch.dtype,
) -> tuple[Float[Tensor, "b t h m"], LinearState]:
    """Run a recurrence over checked tensors; return its output in that dtype, and its state.

    Args:
        attend: a function of the tensors and of the sums so far, which returns output and sums.
        tensors: query, key, value and gates, [b, t, heads, …] each.
        mask: real tokens (True).
        initial_state: the state after the tokens before these.
        dtype: the dtype of the output.
    """
    query, key, value, _ = tensors
    mask, _ = resolve_masks(query, key, causal=True, mask=mask)
    sizes = query.shape[0], query.shape[2], query.shape[3], value.shape[3]
    state = starting_state(initial_state, LinearState.initial, *sizes, query.device)
    query, key, value, gates = (masked(x, mask) for x in tensors)
    with exact_arithmetic(query):
        out, key_value = attend(query, key, value, gates, state.key_value)
    return out.to(dtype), LinearState(key_value)


class RecurrentAttention(HeadAttention):
    """An attention that is a recurrence, with gates of the hidden states: causal, and only that.

    Attributes:
        recur: what a subclass computes: a function of the tensors of `inputs`, of the mask and of
            the state before them (each may be None), which returns the output and the state after.
    """

    capabilities = Capabilities(causal=True, cross=False, state=True, bidirectional=False)
    inputs = ("query", "key", "value", "hidden")

    recur: Callable[..., tuple[Tensor, Any]]

    def forward(
        self,
        *tensors: Float[Tensor, "b t ..."],
        causal: bool = True,  # noqa: ARG002 - it has no other form
        mask: Bool[Tensor, "b t"] | None = None,
        state: Any = None,
        return_state: bool = False,
    ) -> tuple[Float[Tensor, "b t h m"], Any]:
        """Return the output and, if asked for, the state after these tokens."""
        out, state = self.recur(*tensors, mask, state)
        return out, state if return_state else None


def fast_kernel(query: Tensor, module: str, name: str, gates: Gates) -> Recurrence | None:
    """Return flash-linear-attention's kernel, where it is installed and serves these tensors.

    Args:
        query: the queries.
        module: the kernel's module in `fla.ops`.
        name: the kernel's name there.
        gates: what the kernel takes as gates, in its order, of ours and the queries.
    """
    half = query.dtype in (torch.float16, torch.bfloat16)
    return fla_kernel(module, name, gates) if query.is_cuda and half else None


@cache
def fla_kernel(module: str, name: str, gates: Gates) -> Recurrence | None:
    """Return a kernel of flash-linear-attention, which has its own order of arguments, or None."""
    try:
        kernel: Any = getattr(import_module(f"fla.ops.{module}"), name)
    except ImportError:
        return None

    def attend(q: Tensor, k: Tensor, v: Tensor, gate: Tensor, state: Tensor) -> Any:
        begun = state.float()
        out, last = kernel(
            q, k, v, *gates(gate, q), scale=1.0, initial_state=begun, output_final_state=True
        )
        return out, last.to(state.dtype)

    return attend


def _in_float32(log_decay: Tensor, _query: Tensor) -> tuple[Tensor, ...]:
    return (log_decay.float(),)


def is_one_token(query: Float[Tensor, "b t h d"]) -> bool:
    """Return whether there is a single token, which needs no chunks."""
    return query.shape[1] == 1 and not is_recorded()


def read_and_add(
    query: Float[Tensor, "b 1 h d"],
    key: Float[Tensor, "b 1 h d"],
    state: Float[Tensor, "b h d m"],
    find: Callable[[Tensor], Tensor],
) -> tuple[Float[Tensor, "b 1 h m"], Float[Tensor, "b h d m"]]:
    """Return q (S + kᵀ u) and S + kᵀ u for one token, in the dtype of the state.

    Args:
        query: q.
        key: k.
        state: S, what is left of it.
        find: returns u of what the state has for the key, k S.
    """
    q, k = (x[:, 0].to(state.dtype) for x in (query, key))
    of_key, of_query = (torch.stack((k, q), 2) @ state).unbind(2)
    added = find(of_key)
    out = of_query + (q * k).sum(-1, keepdim=True) * added
    return out[:, None], torch.addcmul(state, k[..., None], added[..., None, :])


def chunked_gla(
    query: Float[Tensor, "b t h d"],
    key: Float[Tensor, "b t h d"],
    value: Float[Tensor, "b t h m"],
    log_decay: Float[Tensor, "b t h d"],
    state: Float[Tensor, "b h d m"],
) -> tuple[Float[Tensor, "b t h m"], Float[Tensor, "b h d m"]]:
    """Segment after segment, so that the pairs of few tokens at a time are held."""
    length = query.shape[1]
    if is_one_token(query):
        kept = log_decay[:, 0].to(state.dtype).exp()[..., None]
        return read_and_add(query, key, state * kept, lambda _: value[:, 0].to(state.dtype))
    if is_recorded() or length <= SEGMENT:
        return _segment(query, key, value, log_decay, state)
    outputs = []
    pieces = (x.split(SEGMENT, 1) for x in (query, key, value, log_decay))
    for q, k, v, decay in zip(*pieces, strict=True):
        out, state = _segment(q, k, v, decay, state)
        outputs.append(out)
    return torch.cat(outputs, 1), state


def _segment(
    query: Tensor, key: Tensor, value: Tensor, log_decay: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """All pairs inside a chunk, and between chunks the state, one chunk after the other.

    Token t sees token s of its chunk through the decays after s up to t, and the state before the
    chunk through all of them up to t. No exponent is positive.
    """
    dtype = compute_dtype(query.dtype)
    q, k, v, decay = (in_chunks(x.to(dtype), CHUNK) for x in (query, key, value, log_decay))
    between = decays_between(decay)
    if is_for_any_length():  # torch.export holds every length to what einsum asks of it
        scores = (q[..., :, None, :] * k[..., None, :, :] * between).sum(-1)
    else:
        scores = torch.einsum("...td,...sd,...tsd->...ts", q, k, between)
    total = decay.cumsum(-2)
    update = ((k * between[..., -1, :, :]).mT @ v).to(state.dtype)
    kept = total[..., -1:, :].mT.to(state.dtype).exp()
    if is_for_any_length():
        before, state = _all_states(update, total[..., -1, :].to(state.dtype), state)
    else:
        states = [state]
        for added, factor in zip(update.unbind(2), kept.unbind(2), strict=True):
            states.append(states[-1] * factor + added)
        before, state = torch.stack(states[:-1], 2), states[-1]
    out = scores @ v + (q * total.exp()) @ before.to(dtype)
    return from_chunks(out, query.shape[1]), state


def _all_states(
    update: Float[Tensor, "b h n d m"], decay: Float[Tensor, "b h n d"], state: Tensor
) -> tuple[Float[Tensor, "b h n d m"], Float[Tensor, "b h d m"]]:
    """Return the state before each chunk and after the last, without a loop over the chunks.

    Every pair of chunks is formed: for a graph that a loop would fix to one length.
    """
    after = torch.einsum("bhtsd,bhsdm->bhtdm", decays_between(decay), update)
    after = after + decay.cumsum(-2).exp()[..., None] * state[:, :, None]
    return shifted(state, after)


def shifted(
    state: Float[Tensor, "b h d m"], after: Float[Tensor, "b h n d m"]
) -> tuple[Float[Tensor, "b h n d m"], Float[Tensor, "b h d m"]]:
    """Return the state before each chunk and after the last, given the first and those after."""
    before = prefix.first(torch.cat((state[:, :, None], after), 2), after.shape[2], 2)
    return before, after[:, :, -1]


def in_chunks(x: Float[Tensor, "b t h d"], size: int) -> Float[Tensor, "b h n c d"]:
    """Cut the time into chunks, the last one filled up with zeros, heads first."""
    return prefix.in_chunks(x, 1, size).permute(0, 3, 1, 2, 4).contiguous()


def from_chunks(x: Float[Tensor, "b h n c m"], length: int) -> Float[Tensor, "b t h m"]:
    """Undo in_chunks."""
    return prefix.first(x.flatten(2, 3), length, 2).transpose(1, 2)
