"""Cross-entropy over a large vocabulary, without the logits of all tokens in memory."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

IGNORED = -100  # the target that counts for nothing, as in torch and transformers

CHUNK_ELEMENTS = 2**24  # logits alive at once: 64 MiB in float32


def token_cross_entropy(
    logits: Float[Tensor, "*tokens vocab"],
    targets: Int[Tensor, "*tokens"],
    *,
    count: Int[Tensor, ""] | None = None,
) -> Float[Tensor, ""]:
    """Mean cross-entropy over the tokens whose target is not -100, in float32 at least.

    With a count, which may be that of more tokens than these, the sum over them divided by it.
    """
    wide, targets = logits.flatten(0, -2).to(_wide(logits.dtype)), targets.flatten().long()
    if count is None:
        return F.cross_entropy(wide, targets, ignore_index=IGNORED)
    return F.cross_entropy(wide, targets, ignore_index=IGNORED, reduction="sum") / count


def chunked_cross_entropy(
    hidden: Float[Tensor, "*tokens dim"],
    weight: Float[Tensor, "vocab dim"],
    targets: Int[Tensor, "*tokens"],
    *,
    chunk: int | None = None,
    count: Int[Tensor, ""] | None = None,
) -> Float[Tensor, ""]:
    """Mean cross-entropy of the logits hidden · weightᵀ over the targets that are not -100.

    The logits of `chunk` tokens live at a time: what the backward pass needs of them, it needs as
    products with `weight` and `hidden`, which are taken while they are there (Hsu et al. 2024,
    Liger Kernel). So there is a first derivative and no second one.

    Args:
        hidden: hidden states.
        weight: of the output layer, which has no bias.
        targets: the token to be predicted at each; -100 counts for nothing.
        chunk: tokens at a time; None for 2²⁴ logits at a time.
        count: what the sum is divided by; None for the number of targets that count here.

    Raises:
        ValueError: chunk is not positive.
        RuntimeError: in a backward pass with create_graph=True.
    """
    if chunk is None:
        chunk = max(1, CHUNK_ELEMENTS // weight.shape[0])
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1, got {chunk}")
    hidden, targets = hidden.flatten(0, -2), targets.flatten().long()
    if not torch.is_grad_enabled():
        # A sliding evaluation reads 4.6 tokens for each that it scores. In training few count for
        # nothing, and looking for them would make a GPU wait.
        hidden, targets = hidden[targets != IGNORED], targets[targets != IGNORED]
        total = hidden.new_zeros((), dtype=_wide(hidden.dtype))
        for part, target in zip(hidden.split(chunk), targets.split(chunk), strict=True):
            logits = F.linear(part, weight).to(total.dtype)
            total = total + F.cross_entropy(logits, target, reduction="sum")
        return total / (len(targets) if count is None else count)
    return _ChunkedCrossEntropy.apply(hidden, weight, targets, chunk, count)


class _ChunkedCrossEntropy(torch.autograd.Function):
    """The mean loss; its gradients for an incoming gradient of 1 are kept for the backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Float[Tensor, "n dim"],
        weight: Float[Tensor, "vocab dim"],
        targets: Int[Tensor, " n"],
        chunk: int,
        count: Int[Tensor, ""] | None,
    ) -> Float[Tensor, ""]:
        counts = targets != IGNORED
        # Ignored rows are weighted with 0, all others with 1 / their number.
        number = counts.sum() if count is None else count
        shares = (counts.to(_wide(hidden.dtype)) / number).unsqueeze(-1)
        places = targets.masked_fill(~counts, 0).unsqueeze(-1)
        to_hidden, to_weight, *_ = ctx.needs_input_grad
        grad_hidden = []
        grad_weight = torch.zeros_like(weight, dtype=_wide(weight.dtype)) if to_weight else None
        loss = shares.new_zeros(())
        for part, place, share in zip(
            hidden.split(chunk), places.split(chunk), shares.split(chunk), strict=True
        ):
            logits = F.linear(part, weight)
            logs = F.log_softmax(logits.to(share.dtype), dim=-1)
            loss = loss - (logs.gather(-1, place) * share).sum()
            # softmax - one-hot; the share is applied to the narrow side of each product.
            slope = logs.exp_().scatter_add_(-1, place, logs.new_full(place.shape, -1.0))
            slope = slope.to(logits.dtype)
            if to_hidden:
                grad_hidden.append((slope @ weight * share).to(hidden.dtype))
            if grad_weight is not None:
                grad_weight += slope.T @ (part * share).to(slope.dtype)
        ctx.save_for_backward(
            torch.cat(grad_hidden) if to_hidden else None,
            None if grad_weight is None else grad_weight.to(weight.dtype),
        )
        return loss

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride] - its ctx is a keyword there
        ctx: Any, *grad_outputs: Tensor
    ) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # by create_graph=True; else what is kept passed for constant
            raise RuntimeError(
                "a cross-entropy by chunks has no second derivative: take token_cross_entropy of "
                "the logits (return_logits=True)"
            )
        (grad,) = grad_outputs
        gradients = (
            None if kept is None else kept * grad.to(kept.dtype) for kept in ctx.saved_tensors
        )
        return (*gradients, None, None, None)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
