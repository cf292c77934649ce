"""The checks of the tokens and labels that models are given, and the last real token of a row.

Values are looked at on the CPU only, where nothing waits for them, and not where there are none
to see: while a graph is recorded, and under transforms. Elsewhere PyTorch itself refuses them.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from flowformer.ops.inputs import has_values

IGNORED = -100  # the label that counts for nothing, as in torch and transformers
_INTEGERS = (torch.int64, torch.int32)  # that an embedding takes


def check_range(
    name: str, given: Int[Tensor, "..."], count: int, *, of: str = "table", also: int | None = None
) -> None:
    """Refuse a value outside 0 to count - 1.

    Args:
        name: the noun for a value, in the message.
        given: the values.
        count: the number of values.
        of: the noun for all of them, in the message.
        also: one more value that may stand there.

    Raises:
        ValueError: the message names the smallest value out of range, or the largest.
    """
    if given.device.type != "cpu" or not has_values(given) or not given.numel():
        return
    judged = given if also is None else given.masked_fill(given == also, 0)
    lowest, highest = int(judged.min()), int(judged.max())
    if lowest < 0 or highest >= count:
        raise ValueError(
            f"{name} {lowest if lowest < 0 else highest} is outside the {of}: expected 0 to "
            f"{count - 1}{'' if also is None else f', or {also} for none'}"
        )


def check_tokens(tokens: Tensor, name: str) -> None:
    """Refuse anything but a batch of tokens.

    Raises:
        ValueError: another shape than [b, t], or no integers.
    """
    if tokens.ndim == 2 and tokens.dtype in _INTEGERS:
        return
    wanted = "" if tokens.is_floating_point() else "; give int64 or int32"
    if tokens.ndim == 1:
        wanted = f"; of one sequence give {name}[None]"
    raise ValueError(
        f"expected {name} [b, t], integers, got {tuple(tokens.shape)} of {tokens.dtype}{wanted}"
    )


def check_labels(labels: Tensor, expected: tuple[int, ...], classes: int) -> None:
    """Refuse anything but labels of these classes; -100 counts for nothing.

    Raises:
        ValueError: another shape than expected, no integers, or a label outside 0 to classes - 1.
    """
    if labels.dtype == torch.uint8:  # as files of images hold them; none of them is -100
        labels = labels.long()
    check_integers("labels", labels, expected)
    check_range("label", labels, classes, of="classes", also=IGNORED)


def check_integers(name: str, given: Tensor, expected: tuple[int, ...]) -> None:
    """Refuse another shape, or no integers.

    Raises:
        ValueError: the message names both.
    """
    if tuple(given.shape) != expected or given.dtype not in _INTEGERS:
        raise ValueError(
            f"expected {name} {list(expected)}, integers (int64 or int32), got "
            f"{list(given.shape)} of {given.dtype}"
        )


def check_mask(
    mask: Tensor | None, expected: tuple[int, ...], *, of: str, name: str = "a mask"
) -> None:
    """Refuse a mask that is not boolean, or of another shape.

    Args:
        mask: the mask; None for none.
        expected: the shape that it must have.
        of: the noun for a place that it masks: token, place or step.
        name: the mask's name, in the message.

    Raises:
        ValueError: the message names both.
    """
    if mask is not None and (mask.dtype != torch.bool or tuple(mask.shape) != expected):
        raise ValueError(
            f"expected {name} {list(expected)} of bool, True = a real {of}, got "
            f"{list(mask.shape)} of {mask.dtype}"
        )


def last_real(x: Float[Tensor, "b t dim"], mask: Bool[Tensor, "b t"] | None) -> Tensor:
    """Return the last real token of each row, [b, dim]; the first of a row without any."""
    if mask is None:
        return x[:, -1]
    last = (torch.arange(x.shape[1], device=x.device) * mask).amax(1)
    # Not x[rows, last]: a traced program would have the rows of the batch that it was traced with.
    return x.gather(1, last[:, None, None].expand(-1, 1, x.shape[2])).squeeze(1)
