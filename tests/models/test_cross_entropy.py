"""Cross-entropy by chunks: the same numbers and gradients, without the logits of all tokens."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from flowformer.models.cross_entropy import (
    chunked_cross_entropy,
    class_cross_entropy,
    token_cross_entropy,
)


def draw(tokens: int, vocabulary: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    hidden = torch.randn(tokens, 8, dtype=dtype).requires_grad_()
    weight = torch.randn(vocabulary, 8, dtype=dtype).requires_grad_()
    targets = torch.randint(vocabulary, (tokens,))
    targets[::5] = -100
    return hidden, weight, targets


@pytest.mark.parametrize("chunk", [1, 7, 63, 64, None], ids="chunk-{}".format)
@pytest.mark.parametrize("tokens", [1 + 1, 63, 500], ids="t{}".format)
def test_loss_and_gradients_are_those_of_all_logits_at_once(tokens: int, chunk: int | None) -> None:
    hidden, weight, targets = draw(tokens, 50)
    expected = F.cross_entropy(hidden @ weight.T, targets, ignore_index=-100)
    loss = chunked_cross_entropy(hidden, weight, targets, chunk=chunk)
    torch.testing.assert_close(loss, expected, rtol=1e-13, atol=0)
    wanted = torch.autograd.grad(expected, (hidden, weight))
    for gradient, right in zip(torch.autograd.grad(loss, (hidden, weight)), wanted, strict=True):
        torch.testing.assert_close(gradient, right, rtol=0, atol=1e-14)


def test_tied_weights_get_both_gradients() -> None:
    _, weight, targets = draw(20, 50)
    ids = torch.randint(50, (20,))
    losses = (
        chunked_cross_entropy(weight[ids], weight, targets, chunk=6),
        F.cross_entropy(weight[ids] @ weight.T, targets, ignore_index=-100),
    )
    gradient, expected = (torch.autograd.grad(loss, weight)[0] for loss in losses)
    torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-14)


class Largest(TorchDispatchMode):
    """The size of the largest tensor that any operator returns."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for each in result if isinstance(result, tuple) else (result,):
            if isinstance(each, Tensor):
                self.numel = max(self.numel, each.numel())
        return result


def test_the_logits_of_all_tokens_never_exist() -> None:
    hidden, weight, targets = draw(400, 500)
    with Largest() as largest:
        chunked_cross_entropy(hidden, weight, targets, chunk=10).backward()
    assert largest.numel == 10 * 500


def test_low_precision_sums_in_float32() -> None:
    hidden, weight, targets = draw(500, 50, torch.bfloat16)
    logits = (hidden @ weight.T).float()
    expected = F.cross_entropy(logits, targets, ignore_index=-100)
    loss = chunked_cross_entropy(hidden, weight, targets, chunk=64)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    whole = token_cross_entropy(hidden @ weight.T, targets)
    torch.testing.assert_close(whole, expected, rtol=1e-6, atol=0)


def test_a_loss_that_is_scaled_has_scaled_gradients() -> None:
    hidden, weight, targets = draw(20, 50)
    loss = chunked_cross_entropy(hidden, weight, targets, chunk=6)
    once = torch.autograd.grad(loss, (hidden, weight), retain_graph=True)
    thrice = torch.autograd.grad(3 * loss, (hidden, weight))
    for one, three in zip(once, thrice, strict=True):
        torch.testing.assert_close(three, 3 * one, rtol=1e-15, atol=0)


@pytest.mark.parametrize("scale", [1.0, 3.7, 4096.0, 65536.0, 2.0**20], ids="scale-{:g}".format)
@pytest.mark.parametrize("chunk", [8, 512], ids="chunk-{}".format)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
def test_gradients_are_as_exact_as_those_of_all_logits_at_every_scale_of_the_loss(
    dtype: torch.dtype, chunk: int, scale: float
) -> None:
    drawn = draw(512, 300)
    hidden, weight = (each.detach().to(dtype) for each in drawn[:2])
    hidden[:, 0] *= 2.0**-12  # a feature of another size than the others

    def gradients(loss, *parts: Tensor) -> list[Tensor]:
        parts = tuple(part.clone().requires_grad_() for part in parts)
        (loss(*parts) * scale).backward()
        return [part.grad.double() for part in parts if part.grad is not None]

    def dense(hidden: Tensor, weight: Tensor) -> Tensor:
        return token_cross_entropy(hidden @ weight.T, drawn[2])

    exact = gradients(dense, hidden.double(), weight.double())
    others = gradients(dense, hidden, weight)
    found = gradients(
        lambda h, w: chunked_cross_entropy(h, w, drawn[2], chunk=chunk), hidden, weight
    )
    for right, other, gradient in zip(exact, others, found, strict=True):
        # A sum by chunks is rounded once a chunk, and a scale that is no power of two once more.
        assert (gradient - right).norm() < 1.5 * (other - right).norm()


def test_gradients_in_float16_do_not_overflow_where_every_target_is_the_same() -> None:
    hidden, weight, _ = draw(2000, 40, torch.float16)
    targets = torch.full((2000,), 3)
    with torch.no_grad():
        hidden.abs_().add_(30)
        weight[3] = -hidden[0] / 100
    grads = torch.autograd.grad(chunked_cross_entropy(hidden, weight, targets), (hidden, weight))
    assert all(gradient.isfinite().all() for gradient in grads)


@pytest.mark.parametrize("count", [None, 0, torch.tensor(0)], ids=["none", "0", "tensor-0"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=["fp16", "fp32"])
def test_a_batch_without_targets_has_no_loss_and_no_gradient(
    dtype: torch.dtype, count: Tensor | int | None
) -> None:
    hidden, weight, targets = draw(9, 5, dtype)
    targets[:] = -100
    for loss in (
        chunked_cross_entropy(hidden, weight, targets, chunk=4, count=count),
        token_cross_entropy(hidden @ weight.T, targets, count=count),
        class_cross_entropy(hidden @ weight.T, targets),
        class_cross_entropy((hidden @ weight.T)[:0], targets[:0]),
        class_cross_entropy((hidden @ weight.T)[:0], torch.zeros(0, 5)),
    ):
        assert loss == 0
        for gradient in torch.autograd.grad(loss * 65536, (hidden, weight)):
            assert not gradient.any()
    with torch.no_grad():
        assert chunked_cross_entropy(hidden, weight, targets, chunk=4, count=count) == 0


@pytest.mark.parametrize("frozen", ["hidden", "weight"])
def test_what_is_frozen_costs_no_product(frozen: str) -> None:
    hidden, weight, targets = draw(20, 50)
    {"hidden": hidden, "weight": weight}[frozen].requires_grad_(False)
    loss = chunked_cross_entropy(hidden, weight, targets, chunk=6)
    loss.backward()
    expected = F.cross_entropy(hidden @ weight.T, targets, ignore_index=-100)
    other = weight if frozen == "hidden" else hidden
    right = torch.autograd.grad(expected, other)[0]
    assert other.grad is not None
    torch.testing.assert_close(other.grad, right, rtol=0, atol=1e-14)
    assert {"hidden": hidden, "weight": weight}[frozen].grad is None


def test_it_has_no_second_derivative_and_says_so() -> None:
    hidden, weight, targets = draw(20, 50)
    loss = chunked_cross_entropy(hidden, weight, targets, chunk=6)
    with pytest.raises(RuntimeError, match="no second derivative: take token_cross_entropy"):
        torch.autograd.grad(loss, hidden, create_graph=True)


def test_autocast_takes_the_products_in_low_precision_and_gives_float32_gradients() -> None:
    hidden, weight, targets = draw(200, 50, torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = chunked_cross_entropy(hidden, weight, targets, chunk=64)
    gradients = torch.autograd.grad(loss, (hidden, weight))
    expected = F.cross_entropy(hidden @ weight.T, targets, ignore_index=-100)
    for gradient, right in zip(
        gradients, torch.autograd.grad(expected, (hidden, weight)), strict=True
    ):
        assert gradient.dtype == torch.float32
        torch.testing.assert_close(gradient, right, rtol=0.05, atol=1e-3)


def test_a_chunk_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="chunk must be at least 1, got 0"):
        chunked_cross_entropy(*draw(5, 5), chunk=0)
