"""What the parts of gated mixers may cost: decays of a state, and short convolutions."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.attention import ggml
from benchmarks.attention.cpu.rows import (
    ALONE,
    WORDS,
    Case,
    Row,
    Shape,
    Side,
    bytes_of,
    kept,
    passes,
)
from benchmarks.attention.peers import BOTH, FORWARD
from flowformer import LinearState, linear_attention, short_convolution
from flowformer.nn import build_mixer


def decay() -> Iterator[Row]:
    """Causal linear attention that forgets; both passes have the gradient of the decays too."""
    shapes: list[Shape] = [(1, tokens, 8, 64) for tokens in (256, 1024, 4096)]

    def side(shape: Shape, kind: str, *, decays: bool = True, **how: str) -> Callable[[], Side]:
        return partial(linear_call, shape, decays=decays, backward=kind == BOTH, **how)

    yield from passes(
        "linear attention with a decay",
        "without",
        lambda kind: {str(x): (side(x, kind), side(x, kind, decays=False)) for x in shapes},
        most=1.2,
    )
    for kind, name in WORDS.items():
        yield Row(
            what=f"linear attention with a decay, {name}",
            against="`chunked`",
            cases={str(x): (side(x, kind), side(x, kind, backend="chunked")) for x in shapes},
            least=5.0 if kind == FORWARD else 4.0,
        )
    for scan, least in (("gated_linear_attn", 3.0), ("ssm_scan", 2.5)):
        scans = {x: partial(ggml.scan, scan, *x[1:]) for x in shapes}
        yield Row(
            what="linear attention with a decay, forward",
            against=f"`ggml_{scan}`",
            cases={str(x): (side(x, FORWARD), each) for x, each in scans.items()},
            least=least,
            missing=ggml.missing(),
        )
    one: Shape = (1, 1, 8, 64)
    past = LinearState(torch.rand(1, 8, 64, 64, dtype=torch.float64))
    yield Row(
        what="a step of linear attention with a decay, 8 heads of 64",
        against="without",
        cases={
            ALONE: (
                partial(linear_call, one, decays=True, past=past),
                partial(linear_call, one, decays=False, past=past),
            )
        },
        most=1.1,
    )
    yield Row(
        what="bytes of inputs, output and what is kept for the backward, with a decay",
        against="without",
        cases={str(x): (kept_by(x, decays=True), kept_by(x, decays=False)) for x in shapes},
        most=1.05,
        clock=bytes_of,
    )


def linear_inputs(shape: Shape, *, decays: bool) -> tuple[list[Tensor], Callable[..., Tensor]]:
    """Return query, key, value and decays of up to a tenth a token, and the causal attention."""
    torch.manual_seed(0)
    inputs = [torch.rand(shape).requires_grad_() for _ in range(3)]
    if decays:
        inputs.append((-0.1 * torch.rand(shape[:3])).requires_grad_())

    def attend(*tensors: Tensor, **options: Any) -> Any:
        query, key, value, *rest = tensors
        given = {"log_decay": rest[0]} if rest else {}
        return linear_attention(query, key, value, causal=True, layout="bthd", **given, **options)

    return inputs, attend


def linear_call(
    shape: Shape,
    *,
    decays: bool,
    backward: bool = False,
    backend: str | None = None,
    past: LinearState | None = None,
) -> Side:
    """Return a call of causal linear attention, or of both its passes."""
    inputs, attend = linear_inputs(shape, decays=decays)
    given = {"initial_state": past, "return_state": past is not None, "backend": backend}
    if not backward:
        return torch.no_grad()(partial(attend, *inputs, **given))
    weight = torch.rand(shape)
    return lambda: torch.autograd.grad(attend(*inputs, **given), inputs, weight)


def kept_by(shape: Shape, *, decays: bool) -> Callable[[], Side]:
    """Return what counts the bytes of a call: those of its inputs, output and what it keeps."""

    def make() -> Side:
        inputs, attend = linear_inputs(shape, decays=decays)
        held = sum(each.nbytes for each in inputs) + inputs[2].nbytes
        return lambda: held + kept(inputs, attend)

    return make


def convolution() -> Iterator[Row]:
    """The short convolution, as a share of the mixer that has three of them, and beside PyTorch."""
    size: Shape = (1, 1024, 8, 64)
    yield from passes(
        f"the short convolutions of query, key and value, {size}",
        "the causal mixer `gated` that they are part of",
        lambda kind: {ALONE: (partial(convolutions, size, kind), partial(gated_mixer, size, kind))},
        most=0.1,
    )
    shapes: list[Shape] = [size, (16, 64, 8, 64), (1, 16_384, 1, 64)]

    def beside_chunked(kind: str) -> dict[str, Case]:
        own = {str(shape): partial(convolutions, shape, kind) for shape in shapes}
        return {name: (ours, partial(ours, backend="chunked")) for name, ours in own.items()}

    yield from passes("the short convolutions", "`chunked`", beside_chunked, least=1.5)


def convolutions(shape: Shape, kind: str, *, backend: str | None = None) -> Side:
    """Return a call of the three short convolutions of a mixer, or of both their passes."""
    torch.manual_seed(0)
    inputs = [torch.randn(shape, requires_grad=True) for _ in range(3)]
    weights = [torch.randn(*shape[2:], 4, requires_grad=True) for _ in inputs]
    pairs = list(zip(inputs, weights, strict=True))
    grads = [torch.rand(shape) for _ in inputs]

    def outputs() -> list[Tensor]:
        return [short_convolution(x, w, backend=backend, layout="bthd") for x, w in pairs]

    if kind == FORWARD:
        return torch.no_grad()(outputs)
    return lambda: torch.autograd.grad(outputs(), [*inputs, *weights], grads)


def gated_mixer(shape: Shape, kind: str) -> Side:
    """Return a call of the causal mixer, or of both its passes, of heads of these sizes."""
    torch.manual_seed(0)
    batch, tokens, heads, width = shape
    mixer = build_mixer("gated", heads * width, heads)
    x = torch.randn(batch, tokens, heads * width, requires_grad=True)
    grad = torch.rand_like(x)

    def output() -> Tensor:
        return mixer(x, causal=True)[0]

    if kind == FORWARD:
        return torch.no_grad()(output)
    return lambda: torch.autograd.grad(output(), [x, *mixer.parameters()], grad)
