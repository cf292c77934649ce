"""What attention may cost at every size, and beside what: the rows that `sizes.py` measures.

A row has one goal for all its cases. A case is made of two things to call, or of one and a number:
a unit. They are made when their turn comes, since a million tokens take a gigabyte.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.attention import fast_transformers, ggml
from benchmarks.attention.peers import BOTH, FORWARD, PASSES, CausalProduct, published_bidirectional
from benchmarks.runner import pin, processor_seconds, seconds_of
from flowformer import (
    LinearState,
    flow_attention,
    flow_attention_step,
    linear_attention,
    mobile_attention,
    short_convolution,
    states_in_place,
)
from flowformer.nn import build_mixer
from flowformer.ops.backends.cpu.library import instruction_set

Shape = tuple[int, int, int, int]  # batch, tokens, heads, width
Attention = Callable[..., Tensor]
Side = Callable[[], object]
Clock = Callable[[Side, int], float]
Case = tuple[Callable[[], Side], Callable[[], Side] | float]

ALONE = "measured"  # the label of a row's only case
WORDS = {FORWARD: "forward", BOTH: "both passes"}
FORMS = {
    "bidirectional": flow_attention,
    "causal": partial(flow_attention, causal=True, layout="bthd"),  # fewer tokens than heads too
}

MASKED: list[Shape] = [
    *((16, tokens, 8, 64) for tokens in (29, 512)),
    *((1, tokens, 1, 64) for tokens in (4096, 65_536, 262_144, 1_048_576)),
]
WIDTHS = [4, 8, 10, 16, 17, 20, 24, 32, 50, 60, 64]
SHORT: list[Shape] = [
    *((512, 1, 8, 64), (512, 8, 8, 64), (256, 16, 4, 128), (32, 32, 1, 256), (16, 64, 1, 512)),
    *((64, tokens, 8, 64) for tokens in (4, 8, 16, 29, 50, 64)),
]
PACKED: list[Shape] = [(16, 512, 8, 64), (64, 512, 8, 64), (256, 128, 8, 64), (256, 128, 4, 32)]
FAMILY: list[Shape] = [
    *((16, 8, 8, 64), (16, 64, 8, 64), (1, 512, 8, 64), (1, 4096, 8, 64), (1, 16_384, 1, 64)),
    *((4, 1024, 8, 24), (4, 1024, 8, 32), (4, 512, 4, 128)),
]
HALF: list[Shape] = [(1, 1024, 8, 64), (1, 4096, 8, 64), (16, 64, 8, 64), (4, 1024, 4, 128)]


@dataclass(frozen=True, kw_only=True)
class Row:
    """A goal and its cases.

    Attributes:
        what: ours.
        against: what it is measured beside, or the unit.
        cases: by their labels.
        most: of what ours takes over what the other takes; or instead
        least: of what the other takes over what ours takes.
        clock: says what a number of calls take.
        threads: cores to stay on; more than one take other threads than the calling one in.
        missing: why it cannot be measured here, or None.
    """

    what: str
    against: str
    cases: dict[str, Case]
    most: float = 0.0
    least: float = 0.0
    clock: Clock = processor_seconds
    threads: int = 1
    missing: str | None = None


def call(
    shape: Shape,
    kind: str,
    attention: Attention = flow_attention,
    *,
    dtype: torch.dtype = torch.float32,
    heads_first: bool = False,
) -> Callable[[], Side]:
    """Return what makes the call of an attention: its forward pass, or both."""

    def make() -> Side:
        torch.manual_seed(0)
        b, t, h, d = shape
        sizes = (b, h, t, d) if heads_first else shape
        inputs = [torch.randn(sizes).to(dtype) for _ in range(4)]
        for tensor in inputs[:3]:
            tensor.requires_grad_()
        return partial(PASSES[kind], attention, inputs)

    return make


def beside(sizes: list[Shape], kind: str, ours: Attention, other: Attention) -> dict[str, Case]:
    """Return two attentions beside each other at some sizes."""
    return {str(size): (call(size, kind, ours), call(size, kind, other)) for size in sizes}


def masks() -> Iterator[Row]:
    """A mask in any length."""

    def seventh(shape: Shape, kind: str) -> Callable[[], Side]:
        mask = torch.ones(shape[:2], dtype=torch.bool)
        mask[:, ::7] = False
        return call(shape, kind, partial(flow_attention, mask=mask))

    for kind, name in WORDS.items():
        yield Row(
            what=f"a seventh masked, {name}",
            against="no mask",
            cases={str(shape): (seventh(shape, kind), call(shape, kind)) for shape in MASKED},
            most=1.25,
        )


def widths() -> Iterator[Row]:
    """Heads of any width."""
    isa = instruction_set() or ""
    vector = 16 if isa.startswith("avx512") else 8 if isa.startswith("avx2") else 4

    def case(width: int, beside: int, kind: str, ours: Attention, other: Attention) -> Case:
        return call((1, 1024, 8, width), kind, ours), call((1, 1024, 8, beside), kind, other)

    whole = {width: -(-width // vector) * vector for width in WIDTHS}
    forms = [(form, kind, f"{form}, {name}") for form in FORMS for kind, name in WORDS.items()]
    for form, kind, name in forms:
        yield Row(
            what=f"a width of part vectors, {name}",
            against=f"the next of whole vectors of {vector}",
            cases={
                str(width): case(width, other, kind, FORMS[form], FORMS[form])
                for width, other in whole.items()
                if width != other
            },
            most=1.1,
        )
    for form, kind, name in forms:
        chunked = partial(FORMS[form], backend="chunked")
        yield Row(
            what=f"any width, {name}",
            against="`chunked`",
            cases={str(width): case(width, width, kind, FORMS[form], chunked) for width in WIDTHS},
            least=1.5,
        )


def short() -> Iterator[Row]:
    """Rows of one chunk or less."""

    def softmax(shape: Shape, kind: str) -> Case:
        other = call(shape, kind, F.scaled_dot_product_attention, heads_first=True)
        return call(shape, kind), other

    for kind, name in WORDS.items():
        yield Row(
            what=f"rows of one chunk or less, bidirectional, {name}",
            against="causal",
            cases=beside(SHORT, kind, flow_attention, FORMS["causal"]),
            most=1.0,
        )
    for kind, name in WORDS.items():
        yield Row(
            what=f"rows of one chunk or less, bidirectional, {name}",
            against="softmax, from 4 tokens on",
            cases={str(shape): softmax(shape, kind) for shape in SHORT if shape[1] >= 4},
            most=1.0,
        )


def packs() -> Iterator[Row]:
    """Packed sequences."""

    def packed(shape: Shape, kind: str) -> Callable[[], Side]:
        sequences, tokens, heads, width = shape
        offsets = torch.arange(sequences + 1) * tokens
        attention = partial(flow_attention, cu_seqlens=offsets)
        return call((1, sequences * tokens, heads, width), kind, attention)

    for kind, name in WORDS.items():
        yield Row(
            what=f"packed, bidirectional, {name}",
            against="the same sequences in a batch",
            cases={str(shape): (packed(shape, kind), call(shape, kind)) for shape in PACKED},
            most=1.05,
        )


def memory() -> Iterator[Row]:
    """What a causal forward keeps for its backward."""

    def case(width: int, dtype: torch.dtype) -> Case:
        def make() -> Side:
            shape = 1, 4096, 1, width
            inputs = [torch.randn(shape).to(dtype).requires_grad_() for _ in range(3)]
            return partial(kept, inputs, FORMS["causal"])

        return make, 4096.0 * width * dtype.itemsize

    for dtype in (torch.float32, torch.bfloat16):
        yield Row(
            what=f"kept for the causal backward beyond inputs and output, {name_of(dtype)}, width",
            against="the bytes of the query",
            cases={str(width): case(width, dtype) for width in (64, 128, 256, 512)},
            most=1.3,
            clock=lambda side, _: float(str(side())),
        )


def kept(inputs: list[Tensor], attention: Attention) -> int:
    """Return the bytes that a call keeps for its backward beyond its inputs and its output."""
    storages = {}

    def pack(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = attention(*inputs)
    for tensor in (*inputs, out):
        storages.pop(tensor.untyped_storage().data_ptr(), None)
    return sum(storages.values())


def decay() -> Iterator[Row]:
    """Causal linear attention that forgets; both passes have the gradient of the decays too."""
    shapes: list[Shape] = [(1, tokens, 8, 64) for tokens in (256, 1024, 4096)]

    def side(shape: Shape, kind: str, *, decays: bool = True, **how: str) -> Callable[[], Side]:
        return partial(linear_call, shape, decays=decays, backward=kind == BOTH, **how)

    for kind, name in WORDS.items():
        yield Row(
            what=f"linear attention with a decay, {name}",
            against="without",
            cases={str(x): (side(x, kind), side(x, kind, decays=False)) for x in shapes},
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
        clock=lambda side, _: float(str(side())),
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
    for kind, name in WORDS.items():
        yield Row(
            what=f"the short convolutions of query, key and value, {size}, {name}",
            against="the causal mixer `gated` that they are part of",
            cases={ALONE: (partial(convolutions, size, kind), partial(gated_mixer, size, kind))},
            most=0.1,
        )
    shapes: list[Shape] = [size, (16, 64, 8, 64), (1, 16_384, 1, 64)]
    for kind, name in WORDS.items():
        yield Row(
            what=f"the short convolutions, {name}",
            against="`chunked`",
            cases={
                str(shape): (
                    partial(convolutions, shape, kind),
                    partial(convolutions, shape, kind, backend="chunked"),
                )
                for shape in shapes
            },
            least=1.5,
        )


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


def threads() -> Iterator[Row]:
    """Threads: what they cost, and what they gain."""

    def on(count: int, make: Callable[[], Side]) -> Callable[[], Side]:
        def made() -> Side:
            side = make()

            def counted() -> None:
                torch.set_num_threads(count)
                side()

            return counted

        return made

    for kind, name in WORDS.items():
        for tokens in (64, 2048):
            one = call((1, tokens, 1, 64), kind, FORMS["causal"])
            yield Row(
                what=f"processor time of several threads, causal, (1, {tokens}, 1, 64), {name}",
                against="of one",
                cases={f"{count} threads": (on(count, one), on(1, one)) for count in (2, 3, 16)},
                most=1.3,
                clock=process_seconds,
                threads=2,
            )
    for kind, name in WORDS.items():
        long = {form: call((1, 4096, 1, 64), kind, attention) for form, attention in FORMS.items()}
        yield Row(
            what=f"two threads, (1, 4096, 1, 64), {name}",
            against="one",
            cases={form: (on(2, one), on(1, one)) for form, one in long.items()},
            least=1.6,
            clock=seconds_of,
            threads=2,
        )
    for form, attention in FORMS.items():
        tokens = fewest_for_two(attention)
        one = call((1, tokens or 1, 1, 64), FORWARD, attention)
        length = f"{tokens:,} tokens" if tokens else "none"
        yield Row(
            what=f"two threads, {form}, forward: {length}, the shortest of one head that gets them",
            against="one",
            cases={ALONE: (on(2, one), on(1, one))},
            most=1.0,
            clock=seconds_of,
            threads=2,
            missing=None if tokens else "no row of up to 16,384 tokens gets a second thread",
        )


def fewest_for_two(attention: Attention) -> int | None:
    """Return the tokens of the shortest row that a second thread works on, to a chunk of 64."""
    pin(2)

    def helped(chunks: int) -> bool:
        side = call((1, 64 * chunks, 1, 64), FORWARD, attention)()
        side()
        own, of_all = processor_seconds(side, 50), process_seconds(side, 50)
        return of_all > 1.1 * own

    fewest, most = 0, 256
    if not helped(most):
        return None
    while most - fewest > 1:
        middle = (fewest + most) // 2
        fewest, most = (fewest, middle) if helped(middle) else (middle, most)
    return 64 * most


def step() -> Iterator[Row]:
    """One token more, as in generation, where the state before it is given up."""
    count = 100

    def ours() -> Side:
        query, key, value = torch.randn(3, 1, 1, 8, 64)
        past = torch.randn(3, 1, 100, 8, 64)
        _, carried = flow_attention(*past, causal=True, return_state=True)

        @torch.no_grad()
        def steps() -> None:
            nonlocal carried
            with states_in_place():
                for _ in range(count):
                    _, carried = flow_attention_step(query, key, value, carried)

        return steps

    def linear() -> Side:
        layer, x = torch.nn.Linear(512, 512), torch.randn(1, 1, 512)

        @torch.no_grad()
        def layers() -> None:
            for _ in range(count):
                layer(x)

        return layers

    what = "a decoding step, 8 heads of 64"
    yield Row(what=what, against="µs", cases={ALONE: (ours, count * 1e-6)}, most=20)
    yield Row(what=what, against="a linear layer of 512", cases={ALONE: (ours, linear)}, most=1.2)


def chunked() -> Iterator[Row]:
    """The backend in PyTorch on short causal rows, which serves MPS and torch.func."""
    sizes = [(64, tokens, 8, 64) for tokens in (1, 4, 16, 29, 64)]
    for kind, name in WORDS.items():
        ours, other = (partial(FORMS["causal"], backend=name) for name in ("chunked", "reference"))
        yield Row(
            what=f"`chunked`, short rows, causal, {name}",
            against="`reference`",
            cases=beside(sizes, kind, ours, other),
            most=1.5,
        )


def family() -> Iterator[Row]:
    """The other attentions, of which linear attention does less and the mobile one as much."""
    for kind, name in WORDS.items():
        for attention, most in ((linear_attention, 0.75), (mobile_attention, 1.2)):
            yield Row(
                what=f"`{attention.__name__}`, bidirectional, {name}",
                against="`flow_attention`",
                cases=beside(FAMILY, kind, attention, flow_attention),
                most=most,
            )


def published() -> Iterator[Row]:
    """What others have written."""
    size = (1, 4096, 8, 64)
    for (kind, name), least in zip(WORDS.items(), (2.3, 2.4), strict=True):
        other = call(size, kind, published_bidirectional, heads_first=True)
        yield Row(
            what=f"bidirectional, {size}, {name}",
            against="the published equations, eager",
            cases={ALONE: (call(size, kind), other)},
            least=least,
        )
    size = (1, 2048, 8, 64)
    for (kind, name), least in zip(WORDS.items(), (2.2, 3.0), strict=True):
        other = call(size, kind, CausalProduct.apply, heads_first=True)
        yield Row(
            what=f"causal, {size}, {name}",
            against="fast-transformers' product without flows",
            cases={ALONE: (call(size, kind, FORMS["causal"]), other)},
            least=least,
            missing=fast_transformers.missing(),
        )


def half() -> Iterator[Row]:
    """Inputs of half precision."""
    products = (instruction_set() or "").startswith("avx512") and has_bfloat16_products()
    for dtype in (torch.bfloat16, torch.float16):
        for form, attention in FORMS.items():
            for kind, name in WORDS.items():
                yield Row(
                    what=f"{name_of(dtype)}, {form}, {name}",
                    against="float32",
                    cases={
                        str(shape): (
                            call(shape, kind, attention, dtype=dtype),
                            call(shape, kind, attention),
                        )
                        for shape in HALF
                    },
                    least=1.5 if dtype == torch.bfloat16 and products else 1.0,
                )


def has_bfloat16_products() -> bool:
    """Return whether this processor multiplies bfloat16 with sums in float32."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def name_of(dtype: torch.dtype) -> str:
    """Return the name of a dtype."""
    return str(dtype).removeprefix("torch.")


def process_seconds(side: Side, calls: int = 1) -> float:
    """Return the processor seconds of all threads."""
    start = time.process_time()
    for _ in range(calls):
        side()
    return time.process_time() - start


SECTIONS: dict[str, Callable[[], Iterator[Row]]] = {
    section.__name__: section
    for section in (
        *(masks, widths, short, packs, memory, decay, convolution, threads),
        *(step, chunked, family, published, half),
    )
}
