"""What attention may cost at every size, and beside what: the rows that `sizes.py` measures."""

import time
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch.nn import functional as F

from benchmarks.attention import fast_transformers
from benchmarks.attention.cpu.forgetting_goals import convolution, decay
from benchmarks.attention.cpu.rows import (
    ALONE,
    FORMS,
    WORDS,
    Attention,
    Case,
    Row,
    Shape,
    Side,
    beside,
    bytes_of,
    call,
    kept,
    name_of,
    passes,
)
from benchmarks.attention.peers import FORWARD, CausalProduct, published_bidirectional
from benchmarks.runner import pin, processor_seconds, seconds_of
from flowformer import (
    flow_attention,
    flow_attention_step,
    linear_attention,
    mobile_attention,
    states_in_place,
)
from flowformer.ops.backends.cpu.library import instruction_set

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


def masks() -> Iterator[Row]:
    """A mask in any length."""

    def seventh(shape: Shape, kind: str) -> Callable[[], Side]:
        mask = torch.ones(shape[:2], dtype=torch.bool)
        mask[:, ::7] = False
        return call(shape, kind, partial(flow_attention, mask=mask))

    yield from passes(
        "a seventh masked",
        "no mask",
        lambda kind: {str(shape): (seventh(shape, kind), call(shape, kind)) for shape in MASKED},
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

    what = "rows of one chunk or less, bidirectional"
    yield from passes(
        what,
        "causal",
        lambda kind: beside(SHORT, kind, flow_attention, FORMS["causal"]),
        most=1.0,
    )
    yield from passes(
        what,
        "softmax, from 4 tokens on",
        lambda kind: {str(shape): softmax(shape, kind) for shape in SHORT if shape[1] >= 4},
        most=1.0,
    )


def packs() -> Iterator[Row]:
    """Packed sequences."""

    def packed(shape: Shape, kind: str) -> Callable[[], Side]:
        sequences, tokens, heads, width = shape
        offsets = torch.arange(sequences + 1) * tokens
        attention = partial(flow_attention, cu_seqlens=offsets)
        return call((1, sequences * tokens, heads, width), kind, attention)

    yield from passes(
        "packed, bidirectional",
        "the same sequences in a batch",
        lambda kind: {str(shape): (packed(shape, kind), call(shape, kind)) for shape in PACKED},
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
            clock=bytes_of,
        )


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


def process_seconds(side: Side, calls: int = 1) -> float:
    """Return the processor seconds of all threads."""
    start = time.process_time()
    for _ in range(calls):
        side()
    return time.process_time() - start


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
    ours, other = (partial(FORMS["causal"], backend=name) for name in ("chunked", "reference"))
    yield from passes(
        "`chunked`, short rows, causal",
        "`reference`",
        lambda kind: beside(sizes, kind, ours, other),
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


SECTIONS: dict[str, Callable[[], Iterator[Row]]] = {
    section.__name__: section
    for section in (
        *(masks, widths, short, packs, memory, decay, convolution, threads),
        *(step, chunked, family, published, half),
    )
}
