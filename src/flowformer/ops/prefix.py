"""The softmax over the tokens so far: the competition of the causal form, in every backend."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

# exp of ± this, times any number of tokens, is within the range of float32 and of float64.
LARGEST_EXPONENT = 50.0


def prefix_softmax(
    logit: Float[Tensor, "b h t"],
    real: Bool[Tensor, "b 1 t"] | None,
    before: Float[Tensor, "b h"],
    clamp: float | None,
) -> tuple[Float[Tensor, "b h t"], Float[Tensor, "b h t"]]:
    """Return exp(x_t) / Σ_{s≤t} exp(x_s) and log Σ_{s≤t} exp(x_s) with x = clamp(logit).

    ``before`` is log Σ exp(x) of earlier tokens, -inf if there are none; so is the result while no
    token has been real. Padded tokens are in no sum.
    """
    if clamp is None or clamp > LARGEST_EXPONENT:
        return _of_any_size(logit, real, before[..., None], clamp)
    # exp cannot overflow: the sum itself. Its second derivative is right too, while that of
    # torch's logcumsumexp is NaN wherever a gradient that comes in is exactly zero.
    weight = logit.clamp(-clamp, clamp).exp()
    if real is not None:
        weight = torch.where(real, weight, 0)
    total = before[..., None].exp() + weight.cumsum(-1)
    some = total > 0
    total = torch.where(some, total, 1)
    return weight / total, torch.where(some, total.log(), -torch.inf)


def _of_any_size(
    logit: Float[Tensor, "b h t"],
    real: Bool[Tensor, "b 1 t"] | None,
    before: Float[Tensor, "b h 1"],
    clamp: float | None,
) -> tuple[Float[Tensor, "b h t"], Float[Tensor, "b h t"]]:
    if clamp is not None:
        logit = logit.clamp(-clamp, clamp)
    if real is not None:
        logit = torch.where(real, logit, -1e30)  # not -inf: its gradient would be NaN
    sums = logit.logcumsumexp(-1)
    if sums.requires_grad and not torch.compiler.is_compiling():
        sums.register_hook(_refuse_undefined_second_derivative)
    log_sum = torch.logaddexp(before, sums)
    share = (logit - log_sum).exp()
    return share, torch.where(log_sum > -1e29, log_sum, -torch.inf)


def _refuse_undefined_second_derivative(grad: Tensor | None) -> None:
    """Raise where torch's second derivative of logcumsumexp is NaN."""
    if grad is not None and grad.requires_grad and (grad == 0).any():
        raise RuntimeError(
            "the second derivative of causal Flow-Attention is not available with padding, or with "
            "outputs left out of the loss, for a clamp that is None or above "
            f"{LARGEST_EXPONENT:g}: give a smaller clamp"
        )
