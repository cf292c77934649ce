"""Cross-entropy of tokens and of classes; over a large vocabulary without all logits in memory."""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from flowformer.models.inputs import IGNORED, check_labels

CHUNK_ELEMENTS = 2**24  # logits alive at once: 64 MiB in float32


def token_cross_entropy(
    logits: Float[Tensor, "*tokens vocab"],
    targets: Int[Tensor, "*tokens"],
    *,
    count: Tensor | int | float | None = None,
) -> Float[Tensor, ""]:
    """Return the mean cross-entropy over the tokens whose target is not -100, in float32 at least.

    With a count, which may be that of more tokens than these, it is their sum divided by the count.
    Where nothing counts, the loss is 0, and so is its gradient.
    """
    wide, targets = logits.flatten(0, -2).to(_wide(logits.dtype)), targets.flatten().long()
    total = F.cross_entropy(wide, targets, ignore_index=IGNORED, reduction="sum")
    return total / _divisor(targets, count, total.dtype)


def class_cross_entropy(
    logits: Float[Tensor, "b classes"],
    labels: Int[Tensor, " b"] | Float[Tensor, "b classes"],
) -> Float[Tensor, ""]:
    """Return the mean cross-entropy of classes, or of distributions over them.

    As :func:`token_cross_entropy`, a class of -100 counts for nothing, and the loss of a batch
    without any other is 0.
    """
    if labels.is_floating_point():
        wide = logits.to(_wide(logits.dtype))
        return F.cross_entropy(wide, labels.to(wide.dtype), reduction="sum") / max(1, len(labels))
    return token_cross_entropy(logits, labels)


class ClassifierOutput(NamedTuple):
    """The logits of a classifier, and the mean cross-entropy if labels were given."""

    logits: Float[Tensor, "b classes"]
    loss: Float[Tensor, ""] | None


def classified(
    logits: Float[Tensor, "b classes"], labels: Tensor | None, *, soft: bool = False
) -> ClassifierOutput:
    """Return the logits with the loss of the labels, if there are any.

    Args:
        logits: the classifier's.
        labels: the classes.
        soft: whether labels of floating point are taken, as distributions over the classes.

    Raises:
        ValueError: labels of another shape or type, or outside the classes.
    """
    if labels is None:
        return ClassifierOutput(logits, None)
    if not (soft and labels.is_floating_point()):
        check_labels(labels, logits.shape[:1], logits.shape[1])
    return ClassifierOutput(logits, class_cross_entropy(logits, labels))


def chunked_cross_entropy(
    hidden: Float[Tensor, "*tokens dim"],
    weight: Float[Tensor, "vocab dim"],
    targets: Int[Tensor, "*tokens"],
    *,
    chunk: int | None = None,
    count: Tensor | int | float | None = None,
) -> Float[Tensor, ""]:
    """Return the mean cross-entropy of the logits hidden · weightᵀ over the targets but -100.

    Only the logits of `chunk` tokens live at a time: the backward pass needs them as products with
    `weight` and `hidden` alone, which are taken while they are there (Hsu et al. 2024, Liger
    Kernel). So there is a first derivative and no second one.

    Args:
        hidden: hidden states.
        weight: the output layer's matrix; it has no bias.
        targets: the token to be predicted at each; -100 counts for nothing.
        chunk: tokens at a time; None for 2²⁴ logits at a time.
        count: the divisor of the sum; None for the number of targets that count here. Where
            it is 0, the loss is 0, and so are the gradients.

    Raises:
        ValueError: chunk is not positive.
        RuntimeError: in a backward pass with create_graph=True.

    Examples:
        >>> import torch
        >>> from flowformer.models.cross_entropy import chunked_cross_entropy
        >>> hidden, weight = torch.randn(2, 50, 16), torch.randn(1000, 16)
        >>> chunked_cross_entropy(hidden, weight, torch.randint(1000, (2, 50)), chunk=32).shape
        torch.Size([])
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
        return total / _divisor(targets, count, total.dtype)
    divisor = _divisor(targets, count, _wide(hidden.dtype))
    return _ChunkedCrossEntropy.apply(hidden, weight, targets, chunk, divisor)


def _divisor(
    targets: Int[Tensor, " n"], count: Tensor | int | float | None, dtype: torch.dtype
) -> Float[Tensor, ""]:
    """Return the number that a sum is divided by: 1 in place of 0, for then the sum is 0."""
    if count is None:
        count = (targets != IGNORED).sum()
    divisor = torch.as_tensor(count, device=targets.device).to(dtype).reshape(())
    return torch.where(divisor == 0, 1, divisor)


class _ChunkedCrossEntropy(torch.autograd.Function):
    """The mean loss; its gradients for an incoming gradient of 1 are kept for the backward pass.

    They are kept in float32: training in float16 scales the loss, and digits rounded away before
    that are lost. For the same reason the slopes, which are rounded to the dtype of the products,
    are scaled before by a power of two, as far as no sum of products leaves the range.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Float[Tensor, "n dim"],
        weight: Float[Tensor, "vocab dim"],
        targets: Int[Tensor, " n"],
        chunk: int,
        divisor: Float[Tensor, ""],
    ) -> Float[Tensor, ""]:
        counts = targets != IGNORED
        places = targets.masked_fill(~counts, 0).unsqueeze(-1)
        to_hidden, to_weight, *_ = ctx.needs_input_grad
        grad_hidden = []
        grad_weight = torch.zeros_like(weight, dtype=_wide(weight.dtype)) if to_weight else None
        # 1 / divisor = mantissa · 2^exponent: the products take the mantissa alone, in full range.
        mantissa, exponent = torch.frexp(divisor.reciprocal())
        shares = (counts * mantissa).unsqueeze(-1)
        loss, room = shares.new_zeros(()), 0
        for part, place, share in zip(
            hidden.split(chunk), places.split(chunk), shares.split(chunk), strict=True
        ):
            logits = F.linear(part, weight)
            logs = F.log_softmax(logits.to(share.dtype), dim=-1)
            loss = loss - (logs.gather(-1, place) * share).sum()
            # softmax - one-hot
            slope = logs.exp_().scatter_add_(-1, place, logs.new_full(place.shape, -1.0))
            room = _room(logits.dtype, min(chunk, len(hidden)))
            slope = slope.mul_(share * 2.0**room).to(logits.dtype)
            if to_hidden:
                grad_hidden.append((slope @ weight).to(share.dtype))
            if grad_weight is not None:
                grad_weight += _product_of_columns(slope, part).to(grad_weight.dtype)
        scale = torch.ldexp(torch.ones_like(loss), exponent)
        kept = torch.cat(grad_hidden) if to_hidden else None
        ctx.save_for_backward(kept, grad_weight, scale * 2.0**-room)
        ctx.dtypes = hidden.dtype, weight.dtype
        return loss * scale

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
        *kept, scale = ctx.saved_tensors
        gradients = (
            None if each is None else (each * (grad * scale).to(each.dtype)).to(dtype)
            for each, dtype in zip(kept, ctx.dtypes, strict=True)
        )
        return (*gradients, None, None, None)


def _room(dtype: torch.dtype, tokens: int) -> int:
    """Return the exponent of the power of two that slopes in float16 are scaled by.

    A sum of them over the tokens stays below 2^15, and one over the vocabulary below 2^9.
    """
    return min(8, 15 - (tokens - 1).bit_length()) if dtype == torch.float16 else 0


def _product_of_columns(
    slope: Float[Tensor, "n vocab"], hidden: Float[Tensor, "n dim"]
) -> Float[Tensor, "vocab dim"]:
    """Return slopeᵀ hidden; in float16 with hidden below 1 meanwhile, by powers of two."""
    if slope.dtype != torch.float16:
        return slope.T @ hidden.to(slope.dtype)
    _, exponent = torch.frexp(hidden.float().abs().amax(0))
    small = torch.ldexp(hidden, -exponent).to(slope.dtype)
    return torch.ldexp((slope.T @ small).float(), exponent)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
