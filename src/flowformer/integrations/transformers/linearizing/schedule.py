"""The steps of a training: a rate that rises and falls, and gradients of bounded size."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

WARMUP = 0.05  # share of the steps
FLOOR = 0.1  # of the rate, at the end
CLIP = 1.0


class Steps:
    """The steps of some parameters: AdamW, its rate along half a cosine.

    Args:
        parameters: what is trained.
        rate: the highest learning rate.
        total: the number of steps.
        name: the setting of that rate, for messages.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], rate: float, total: int, *, name: str
    ) -> None:
        self._name = name
        self.parameters = [each for each in parameters if each.requires_grad]
        self._rate, self._total, self._done = rate, total, 0
        self._optimizer = torch.optim.AdamW(self.parameters, lr=rate, weight_decay=0.0)

    def step(self, loss: Tensor) -> None:
        """Go a step down the loss.

        Raises:
            FloatingPointError: the loss is no finite number.
        """
        if not loss.isfinite():
            raise FloatingPointError(
                f"the loss of step {self._done + 1} of {self._total} is {loss.item()}: give a "
                f"lower rate than {self._rate:g} ({self._name})"
            )
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, CLIP)
        for group in self._optimizer.param_groups:
            group["lr"] = self._rate * factor(self._done, self._total)
        self._optimizer.step()
        self._optimizer.zero_grad()
        self._done += 1


def factor(done: int, total: int) -> float:
    """Return the share of the highest rate after so many steps of all."""
    rising = max(1, round(WARMUP * total))
    if done < rising:
        return (done + 1) / rising
    way = (done - rising) / max(1, total - rising)
    return FLOOR + (1 - FLOOR) * (1 + math.cos(math.pi * way)) / 2
