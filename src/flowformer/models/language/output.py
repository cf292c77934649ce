"""A language model's state, places and targets, and its output layer, called by chunks too.

An output layer is more than its weight. It may be one of LoRA, quantised, sharded over ranks or
kept on another device until it is called, or have hooks. So its weight is read only where it is
known that nothing else can be meant.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.module import _has_any_global_hook  # torch has no public name for it
from torch.utils.checkpoint import checkpoint

from flowformer.models.cross_entropy import (
    CHUNK_ELEMENTS,
    chunked_cross_entropy,
    token_cross_entropy,
)
from flowformer.models.inputs import SequenceShards, last_real
from flowformer.names import IGNORED
from flowformer.nn.mixers.head_attention import State
from flowformer.ops.inputs import is_transformed
from flowformer.ops.packing import Batch, check_batch

OutputLayer = nn.Module | Float[Tensor, "vocab dim"]  # a module to call, or a matrix

_VOCABULARY = 2**16  # taken for a layer that does not tell its own
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class LanguageState(NamedTuple):
    """The state that the model carries from one call to the next.

    Attributes:
        layers: the state of each block's mixer; of constant size for flow and its linear kin.
        position: how many real tokens each row had so far: the place of the next. Shape ``[b]``.
    """

    layers: tuple[State, ...]
    position: Int[Tensor, " b"]

    def to(self, device: torch.device | str) -> "LanguageState":
        """Return the state on another device."""
        return LanguageState(
            tuple(layer.to(device) for layer in self.layers), self.position.to(device)
        )

    def detach(self) -> "LanguageState":
        """Return the state without its history of gradients (truncated back-propagation)."""
        return LanguageState(tuple(layer.detach() for layer in self.layers), self.position)

    def reorder(self, index: Int[Tensor, " n"]) -> "LanguageState":
        """Return the rows `index` of the batch (beam search keeps, drops and repeats sequences)."""
        return LanguageState(
            tuple(layer.reorder(index) for layer in self.layers),
            self.position.index_select(0, index),
        )


# A state that torch.save wrote is loaded by torch.load, which otherwise takes no classes.
torch.serialization.add_safe_globals([LanguageState])


def token_places(
    embedded: Float[Tensor, "b t dim"],
    mask: Bool[Tensor, "b t"] | None,
    past: LanguageState | None,
    cu_seqlens: Int[Tensor, " offsets"] | None,
    before: Int[Tensor, " b"] | None = None,
) -> Int[Tensor, "rows t"] | None:
    """Return the place of each token; padding has none of its own. None for 0, 1, … in all rows.

    With None the table of positions sees from the shape, without waiting for a device, that it is
    long enough. `before` counts the real tokens of each row that earlier ranks hold.
    """
    if mask is None and past is None and cu_seqlens is None and before is None:
        return None
    if cu_seqlens is not None:
        check_batch(Batch(mask, None, cu_seqlens, None))
    length, device = embedded.shape[1], embedded.device
    tokens = torch.arange(length, device=device)[None] if mask is None else mask.cumsum(1) - 1
    if before is not None:
        tokens = tokens + before[:, None]
    if cu_seqlens is not None:
        offsets = cu_seqlens.to(device)
        return tokens - offsets[torch.searchsorted(offsets, tokens, right=True) - 1]
    places = tokens.clamp(min=0)
    return places if past is None else places + past.position[:, None]


def shifted(
    labels: Int[Tensor, "b t"],
    mask: Bool[Tensor, "b t"] | None,
    cu_seqlens: Int[Tensor, " offsets"] | None,
    shards: SequenceShards | None,
) -> Int[Tensor, "b t"]:
    """Return labels as targets: the label of token t + 1 stands at t, in the same document."""
    if mask is not None:
        labels = labels.masked_fill(~mask, IGNORED)
    if cu_seqlens is not None:
        starts = cu_seqlens.to(labels.device).long()
        if shards is not None:
            starts = starts - shards.before(torch.tensor([labels.shape[1]], device=labels.device))
        starts = starts[(starts >= 0) & (starts < labels.shape[1])]
        labels = labels.index_fill(1, starts, IGNORED)
    if shards is not None:
        following = shards.first_of_next(labels)
        return torch.cat((labels, following), 1)[:, 1:]
    return F.pad(labels[:, 1:], (0, 1), value=IGNORED)


def last_hidden(
    hidden: Float[Tensor, "b t dim"],
    mask: Bool[Tensor, "b t"] | None,
    shards: SequenceShards | None,
) -> Float[Tensor, "b 1 dim"]:
    """Return the hidden state of the last real token in each row."""
    if shards is not None:
        return shards.last_real(hidden, mask)
    return last_real(hidden, mask)[:, None]


def tied_matrix(
    embedding: nn.Module, vocab_size: int, device: torch.device
) -> Float[Tensor, "vocab dim"]:
    """Return the matrix of an output layer that is tied to the embedding of the tokens.

    It holds the vectors that the embedding gives for all tokens: a plain embedding's weight.

    Args:
        embedding: the tokens' embedding.
        vocab_size: number of tokens.
        device: the device of the tokens.
    """
    if type(embedding) is nn.Embedding and _is_own(embedding):
        return embedding.weight
    return embedding(torch.arange(vocab_size, device=device))


def logits_of(hidden: Float[Tensor, "*tokens dim"], output: OutputLayer) -> Tensor:
    """Return the logits [*tokens, vocab]."""
    return F.linear(hidden, output) if isinstance(output, Tensor) else output(hidden)


def chunked_loss(
    hidden: Float[Tensor, "*tokens dim"],
    output: OutputLayer,
    targets: Int[Tensor, "*tokens"],
    *,
    chunk: int | None = None,
    count: Tensor | int | float | None = None,
) -> Float[Tensor, ""]:
    """Return what `chunked_cross_entropy` does, whatever the output layer is.

    From a plain `nn.Linear` without a bias, parametrizations and hooks it takes the weight. It
    calls every other layer with some tokens at a time, and again in the backward pass: not where
    the layer has hooks, which are to see each token once, and with all tokens at a time where there
    are several processes, which may have to call it equally often.

    Args:
        hidden: hidden states.
        output: the output layer.
        targets: the token to be predicted at each; -100 counts for nothing.
        chunk: tokens at a time; None for about 2²⁴ logits at a time.
        count: the divisor of the sum; None for the number of targets that count here.

    Raises:
        ValueError: chunk is not positive.
    """
    weight = output if isinstance(output, Tensor) else _plain_weight(output)
    if weight is not None and not is_transformed(hidden, weight, targets):
        return chunked_cross_entropy(hidden, weight, targets, chunk=chunk, count=count)
    divisor = (targets != IGNORED).sum() if count is None else count

    def loss_of(part: Tensor, target: Tensor) -> Tensor:
        return token_cross_entropy(logits_of(part, output), target, count=divisor)

    time = _time_of_chunk(hidden, output, chunk)
    parts = zip(hidden.split(time, dim=-2), targets.split(time, dim=-1), strict=True)
    again = torch.is_grad_enabled() and not (
        is_transformed(hidden, targets) or isinstance(output, Tensor) or _has_hooks(output)
    )
    losses = [
        checkpoint(loss_of, *part, use_reentrant=False) if again else loss_of(*part)
        for part in parts
    ]
    return torch.stack(losses).sum()


def _time_of_chunk(hidden: Tensor, output: OutputLayer, chunk: int | None) -> int:
    """Return how many places of each row are called at a time."""
    width: int = getattr(output, "out_features", _VOCABULARY)
    tokens = max(1, CHUNK_ELEMENTS // width) if chunk is None else chunk
    if tokens < 1:
        raise ValueError(f"chunk must be at least 1, got {chunk}")
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        return max(1, hidden.shape[-2])
    return max(1, tokens // max(1, math.prod(hidden.shape[:-2])))


def _plain_weight(output: nn.Module) -> Tensor | None:
    """Return the weight of a plain linear layer; None for every other layer."""
    if not isinstance(output, nn.Linear) or type(output) is not nn.Linear:
        return None
    plain = output.bias is None and _is_own(output) and not _has_hooks(output)
    return output.weight if plain else None


def _is_own(layer: nn.Linear | nn.Embedding) -> bool:
    """Return whether a layer has the call of its class and an ordinary weight."""
    return "forward" not in vars(layer) and type(layer.weight) in (nn.Parameter, Tensor)


def _has_hooks(output: nn.Module) -> bool:
    return bool(_has_any_global_hook()) or any(
        getattr(module, name) for module in output.modules() for name in _HOOKS
    )
