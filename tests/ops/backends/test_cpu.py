"""What is particular to the compiled kernels: threads, instruction sets, operators, odd inputs."""

import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from inspect import signature
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from flowformer import FlowState, flow_attention, linear_attention, mobile_attention
from flowformer.ops.backends.arguments import LINEAR_OPTIONS, numbers
from flowformer.ops.backends.cpu.call import Inputs, is_finite, kept_numbers
from flowformer.ops.backends.cpu.library import INSTRUCTION_SETS, instruction_set
from flowformer.ops.backends.cpu.operators import OPERATORS
from flowformer.ops.options import FlowOptions
from tests.ops.cases import CAUSAL, FORMS, gradients, needs_library, qkv

pytestmark = needs_library

OPTIONS = FlowOptions()
# Tokens, and widths of keys and values: whole tiles and vectors, one more, one less, tiny.
SHAPES = {"t1": (1, 1, 1), "t63": (63, 17, 5), "t64": (64, 64, 64), "t200": (200, 33, 40)}

CORE: list[Any] = []


def core(test: Any) -> Any:
    """Note a test as one for every instruction set; of fixtures it may have `threads`."""
    CORE.append(test)
    return test


@pytest.fixture
def threads():
    yield torch.set_num_threads
    torch.set_num_threads(1)


@core
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("options", FORMS.values(), ids=FORMS)
def test_outputs_and_gradients_are_those_of_the_equations(options, shape):
    length, width, value_width = shape
    inputs = qkv(2, length, heads=3, width=width, value_width=value_width)
    for tensor in inputs:
        tensor.requires_grad_()
    out = flow_attention(*inputs, backend="cpu", **options)
    expected = flow_attention(*inputs, backend="reference", **options)
    assert_close(out, expected)
    assert_close(gradients(out, inputs), gradients(expected, inputs))


@core
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("causal", [False, True])
def test_float32_under_a_mask_is_that_of_float64(causal, shape):
    length, width, value_width = shape
    inputs = qkv(2, length, width=width, value_width=value_width, dtype=torch.float32)
    wide = tuple(tensor.double().requires_grad_() for tensor in inputs)
    inputs = tuple(tensor.requires_grad_() for tensor in inputs)
    mask = torch.arange(length) % 7 != 1
    options = {"causal": causal, "mask": mask.expand(2, length)}
    out = flow_attention(*inputs, backend="cpu", **options)
    expected = flow_attention(*wide, backend="reference", **options)
    close = {"rtol": 1e-4, "atol": 1e-5, "check_dtype": False}
    assert_close(out, expected, **close)
    assert_close(gradients(out, inputs), gradients(expected, wide), **close)


@core
@pytest.mark.parametrize("options", FORMS.values(), ids=FORMS)
def test_a_row_shared_by_threads_gives_the_same(options, threads):
    inputs = qkv(1, 6000, heads=2, width=48, value_width=40)  # enough work for nine threads
    for tensor in inputs:
        tensor.requires_grad_()
    alone = flow_attention(*inputs, backend="cpu", **options)
    expected = gradients(alone, inputs)
    threads(9)
    shared = flow_attention(*inputs, backend="cpu", **options)
    assert_close(shared, alone)
    assert_close(gradients(shared, inputs), expected)
    again = flow_attention(*inputs, backend="cpu", **options)
    assert torch.equal(again, shared)  # the same for a number of threads, whatever their order


@core
@pytest.mark.parametrize("form", ["flow", "linear"])
@pytest.mark.parametrize("batch", ["mask", "pack"])
@pytest.mark.parametrize("heads", [1, 3])
def test_a_causal_row_has_the_same_numbers_on_any_number_of_threads(form, batch, heads, threads):
    """Stretches of a row follow each other, so that nothing is added up in another order."""
    attend: Any = flow_attention if form == "flow" else linear_attention
    width = 90 // heads
    inputs = qkv(1, 3000, heads=heads, width=width, value_width=70, dtype=torch.float32)
    if form == "linear":
        inputs = (inputs[0].sigmoid(), inputs[1].sigmoid(), inputs[2])
    options: dict[str, Any] = {}
    if batch == "mask":
        mask = torch.rand(1, 3000) < 0.9
        mask[:, 2900:] = False
        options["mask"] = mask
    else:
        options["cu_seqlens"] = torch.tensor([0, 0, 1700, 1701, 3000])
    for tensor in inputs:
        tensor.requires_grad_()
    earlier = qkv(4 if batch == "pack" else 1, 5, heads=heads, width=width, value_width=70)
    _, state = attend(*earlier, causal=True, return_state=True)
    found = []
    for count in (1, 2, 5):
        threads(count)
        out, after = attend(
            *inputs, causal=True, backend="cpu", initial_state=state, return_state=True, **options
        )
        weight = torch.linspace(-1, 1, out.numel()).view_as(out)
        total = (out * weight).sum() + after.key_value.sum() * 1e-3
        found.append((out, *after, *torch.autograd.grad(total, inputs)))
    for other in found[1:]:
        assert all(map(torch.equal, found[0], other))


@core
@pytest.mark.parametrize("length", [1, 50, 200])
@pytest.mark.parametrize("width", [3, 17, 33])
def test_decays_of_keys_that_are_no_whole_vector_have_their_gradients(width, length):
    """Lanes that are padding hold nothing that reaches a gradient."""
    query, key, value = qkv(2, length, width=width, value_width=5)
    exact = query.sigmoid(), key.sigmoid(), value, -torch.rand(2, length, 2, dtype=value.dtype)
    found = []
    for backend, dtype in (("reference", torch.float64), ("cpu", torch.float32)):
        leaves = tuple(tensor.to(dtype).requires_grad_() for tensor in exact)
        options: dict[str, Any] = {"causal": True, "log_decay": leaves[3], "backend": backend}
        out = linear_attention(*leaves[:3], **options)
        found.append((out, *gradients(out, leaves)))
    assert_close(found[1], found[0], rtol=1e-4, atol=1e-5, check_dtype=False)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("width", [64, 128, 256, 512])
def test_a_causal_forward_keeps_little_more_than_a_key(dtype, width):
    inputs = Inputs(*qkv(1, 1024, heads=1, width=width, value_width=width, dtype=dtype))
    size = max(dtype.itemsize, 4)
    kept = size * (5 * 1024 + kept_numbers(inputs, linear=False))
    assert kept <= 1.3 * inputs.key.numel() * dtype.itemsize


@core
@pytest.mark.parametrize("options", CAUSAL.values(), ids=CAUSAL)
def test_a_row_of_one_chunk_keeps_no_sums_and_has_the_gradients_of_its_past(options):
    inputs = qkv(2, 64, width=5, value_width=7)
    assert kept_numbers(Inputs(*inputs), linear=False) == 0
    earlier = qkv(2, 9, width=5, value_width=7)
    _, state = flow_attention(*earlier, return_state=True, **options)
    found = []
    for backend in ("reference", "cpu"):
        leaves = [tensor.detach().requires_grad_() for tensor in (*inputs, *state[1:])]
        past = FlowState(state.tokens, *leaves[3:])
        out = flow_attention(*leaves[:3], backend=backend, initial_state=past, **options)
        weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
        grads = torch.autograd.grad((out * weight).sum(), leaves, allow_unused=True)
        found.append([torch.zeros(()) if grad is None else grad for grad in grads])
    for expected, grad in zip(*found, strict=True):
        assert_close(grad, expected.expand_as(grad), check_dtype=False)


NARROW: dict[str, Any] = {
    "bidirectional": flow_attention,
    "causal": partial(flow_attention, causal=True),
    "mobile": mobile_attention,
}


@core
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["f16", "bf16"])
@pytest.mark.parametrize("attend", NARROW.values(), ids=NARROW)
def test_narrow_inputs_are_rounded_once(attend, dtype):
    inputs = tuple(tensor.to(dtype).requires_grad_() for tensor in qkv(1, 130, width=20))
    wide = tuple(tensor.detach().double().requires_grad_() for tensor in inputs)
    expected = attend(*wide, backend="reference", layout="bthd")
    out = attend(*inputs, backend="cpu", layout="bthd")
    rounding = (expected.to(dtype).double() - expected).abs().max()
    assert (out.double() - expected).abs().max() <= 2 * rounding
    assert all(grad.isfinite().all() for grad in gradients(out.float(), inputs))


# Where the machine multiplies bfloat16, features are rounded first: each may be off by a rounding,
# and less only their mean over a token. So these are few, alike, or all that counts is one token.
STRESSES: dict[str, Callable[..., Any]] = {
    "alike": lambda q, k, v: (torch.full_like(q, 0.01), torch.full_like(k, 0.01), v),
    "few": lambda q, k, v: (*(x - 20 * (torch.rand(64) > 0.05) for x in (q, k)), v),
    "saturated": lambda q, k, v: (10 * q, 10 * k, v),
    "rare": lambda q, k, v: (q - 3, k - 3, v),
    "one-large": lambda q, k, v: (
        q,
        k,
        v * (1.0 + 999 * (torch.arange(500) == 250))[:, None, None],
    ),
    "biased": lambda q, k, v: (q, k, v + 3),
}


@core
@pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])
@pytest.mark.parametrize("stress", STRESSES.values(), ids=STRESSES)
@pytest.mark.parametrize("options", [{}, {"clamp": None}, {"feature_map": "relu"}], ids=str)
def test_bfloat16_costs_at_most_twice_the_rounding_of_the_result(stress, options, causal):
    inputs = [x.bfloat16() for x in stress(*qkv(1, 500, width=64, value_width=40))]
    wide = (x.double() for x in inputs)
    exact = flow_attention(*wide, causal=causal, backend="reference", **options)
    out = flow_attention(*inputs, causal=causal, backend="cpu", **options)
    rounding = (exact.bfloat16().double() - exact).abs().max()
    assert (out.double() - exact).abs().max() <= 2 * rounding


@core
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", [0, 1, 2], ids=["query", "key", "value"])
def test_what_is_not_finite_never_reaches_the_past_of_bfloat16(value, where):
    inputs = [x.bfloat16() for x in qkv(1, 300, width=64)]
    clean = flow_attention(*inputs, causal=True, backend="cpu")
    inputs[where][0, 201, 0, 3] = value
    out = flow_attention(*inputs, causal=True, backend="cpu")
    # For its sake its chunk may be multiplied in float32: what is before it differs by a rounding.
    assert torch.equal(out[:, :192], clean[:, :192])
    assert_close(out[:, 192:201].float(), clean[:, 192:201].float(), rtol=2**-7, atol=2**-8)
    assert torch.equal(out[:, :, 1], clean[:, :, 1])


def test_tensors_with_any_strides():
    inputs = qkv(2, 70)
    strided = tuple(x.transpose(1, 2).contiguous().transpose(1, 2) for x in inputs)
    spread = tuple(torch.stack([x, x], -1)[..., 0] for x in inputs)
    expected = flow_attention(*inputs, backend="cpu")
    assert torch.equal(flow_attention(*strided, backend="cpu"), expected)
    assert torch.equal(flow_attention(*spread, backend="cpu"), expected)


def test_an_empty_batch():
    for causal in (False, True):
        inputs = tuple(x.requires_grad_() for x in qkv(0, 5))
        out = flow_attention(*inputs, causal=causal, backend="cpu")
        assert out.shape == (0, 5, 2, 6)
        assert gradients(out, inputs)[0].shape == (0, 5, 2, 8)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("where", [0, 1, 2], ids=["query", "key", "value"])
def test_what_is_not_finite_never_reaches_the_past(value, where):
    inputs = qkv(1, 100)
    clean = flow_attention(*inputs, causal=True, backend="cpu")
    inputs[where][0, 70, 0, 3] = value
    out = flow_attention(*inputs, causal=True, backend="cpu")
    assert torch.equal(out[:, :70], clean[:, :70])
    assert torch.equal(out[:, :, 1], clean[:, :, 1])
    expected = flow_attention(*inputs, causal=True, backend="reference")[:, 70:]
    assert torch.equal(out[:, 70:].isfinite(), expected.isfinite())


@core
@pytest.mark.parametrize("causal", [False, True])
def test_packed_sequences_of_every_length(causal):
    lengths = [1, 63, 0, 64, 65, 130]
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    inputs = tuple(x.requires_grad_() for x in qkv(1, sum(lengths)))
    options = {"causal": causal, "cu_seqlens": offsets}
    out = flow_attention(*inputs, backend="cpu", **options)
    expected = flow_attention(*inputs, backend="chunked", **options)
    assert_close(out, expected)
    assert_close(gradients(out, inputs), gradients(expected, inputs))


MOBILE = {
    "published": {},
    "unclamped": {"clamp": None},
    "relu": {"feature_map": "relu", "eps": 1e-3},
    "normalized": {"normalize": True},
    "no-competition": {"competition": False, "normalize": True},
    "no-allocation": {"allocation": False},
}
# As SHAPES, and heads: of a sequence whose features stay in the cache, and of one whose do not.
MOBILE_SHAPES = {name: (*shape, 3) for name, shape in SHAPES.items()} | {"long": (300, 72, 5, 8)}


@core
@pytest.mark.parametrize("shape", MOBILE_SHAPES.values(), ids=MOBILE_SHAPES)
@pytest.mark.parametrize("options", MOBILE.values(), ids=MOBILE)
def test_mobile_attention_is_that_of_the_equations(options, shape, threads):
    length, width, value_width, heads = shape
    inputs = qkv(2, length, heads=heads, width=width, value_width=value_width)
    for tensor in inputs:
        tensor.requires_grad_()
    expected = mobile_attention(*inputs, backend="reference", layout="bthd", **options)
    wanted = gradients(expected, inputs)
    for count in (1, 9):  # a thread for each sequence, and many for one
        threads(count)
        out = mobile_attention(*inputs, backend="cpu", layout="bthd", **options)
        assert_close(out, expected)
        assert_close(gradients(out, inputs), wanted)


@core
def test_mobile_attention_of_packed_sequences_of_every_length():
    lengths = [1, 7, 63, 0, 64, 65, 130]
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    inputs = tuple(x.requires_grad_() for x in qkv(1, sum(lengths), heads=3))
    out, expected = (
        mobile_attention(*inputs, cu_seqlens=offsets, backend=backend, layout="bthd")
        for backend in ("cpu", "chunked")
    )
    assert_close(out, expected)
    assert_close(gradients(out, inputs), gradients(expected, inputs))


@core
@pytest.mark.parametrize("scaled", [False, True])
def test_causal_linear_attention(scaled):
    q, k, v = (x.requires_grad_() for x in qkv(2, 150, width=20))
    scale = torch.rand(2, 150, 2, dtype=q.dtype).requires_grad_() if scaled else None
    inputs = (q, k, v, scale) if scale is not None else (q, k, v)
    results = []
    for backend in ("cpu", "reference"):
        out = linear_attention(q, k, v, causal=True, row_scale=scale, backend=backend)
        results.append((out, gradients(out, inputs)))
    assert_close(*results)


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("kind", ["long", "one-chunk", "short", "masked", "packed", "empty"])
def test_bidirectional_linear_attention(kind, scaled):
    queries, keys = {"one-chunk": (64, 60), "short": (3, 5)}.get(kind, (150, 330))
    given: dict[str, Any] = {}
    batch = 2
    if kind in ("masked", "empty"):
        given = {"key_mask": torch.arange(keys)[None] < torch.tensor([[keys - 9], [0]])}
        given["query_mask"] = torch.rand(2, queries) < 0.8
    if kind == "empty":  # one chunk of a row that has room for more, and nothing at all
        given["key_mask"] = torch.arange(keys)[None] < torch.tensor([[50], [0]])
    if kind == "packed":
        given = {"cu_seqlens": torch.tensor([0, 3, 3, 70, queries])}
        given["cu_seqlens_k"] = torch.tensor([0, 130, 135, 200, keys])
        batch = 1
    q, k, v = (
        torch.randn(batch, *shape, dtype=torch.float64)
        for shape in ((queries, 2, 20), (keys, 1, 20), (keys, 1, 9))
    )
    inputs = tuple(x.requires_grad_() for x in (q, k, v))
    scale = None
    if scaled:
        scale = torch.randn(batch, queries, 2, dtype=torch.float64)
        if "query_mask" in given:
            scale[~given["query_mask"]] = torch.nan  # padding may hold anything
        inputs = (*inputs, scale.requires_grad_())
    results = []
    for backend in ("cpu", "reference"):
        out = linear_attention(q, k, v, row_scale=scale, backend=backend, **given)
        results.append((out, gradients(out, inputs)))
    assert_close(*results)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("causal", [False, True])
def test_second_derivatives_of_narrow_linear_attention_are_computed_in_float32(dtype, causal):
    x = (qkv(1, 70, dtype=torch.float32)[0] / 8).to(dtype)  # powers of it stay in range
    found = []
    for backend in ("cpu", "reference"):
        leaf = x.clone().requires_grad_()
        out = linear_attention(leaf, leaf, leaf, causal=causal, backend=backend)
        (grad,) = torch.autograd.grad(out.float().pow(2).sum(), leaf, create_graph=True)
        found.append(torch.autograd.grad(grad.float().pow(2).sum(), leaf)[0])
    assert found[0].dtype == dtype
    largest = found[1].abs().max().item()
    assert_close(found[0], found[1], rtol=0, atol=4 * torch.finfo(dtype).eps * largest)


def test_a_forward_of_many_short_rows_keeps_no_products():
    kept = []
    q, k, v = (x.requires_grad_() for x in qkv(40, 16))
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        flow_attention(q, k, v, backend="cpu")
    numbers_kept = sum(
        x.numel() for x in kept if x.data_ptr() not in {y.data_ptr() for y in (q, k, v)}
    )
    assert numbers_kept < q.numel()


# opcheck itself looks at .grad of tensors that are no leaves
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.usefixtures("shape_checks_off")
def test_opcheck():
    inputs = tuple(x.requires_grad_() for x in qkv(1, 70))
    nothing = (None,) * 5
    bidirectional, causal = OPERATORS.bidirectional.dispatched, OPERATORS.causal.dispatched
    assert OPERATORS.mobile is not None
    mobile = OPERATORS.mobile.dispatched
    torch.library.opcheck(bidirectional, (*inputs, *nothing, *numbers(OPTIONS), True))
    scale = torch.rand(1, 70, 2, dtype=torch.float64, requires_grad=True)
    scaled = (*inputs, *nothing[:-1], scale, *LINEAR_OPTIONS, True)
    torch.library.opcheck(bidirectional, scaled)
    state = FlowState.initial(1, 2, 8, 6, torch.device("cpu"))
    rest = (*nothing[:4], *state, *numbers(OPTIONS), True, True)
    for reverse in (False, True):
        torch.library.opcheck(causal, (*inputs, *rest, reverse))
    torch.library.opcheck(mobile, (*inputs, *nothing, *numbers(OPTIONS), True, True))


@core
@pytest.mark.parametrize("keys", [1, 40, 1000])
@pytest.mark.parametrize("heads", [1, 2])
def test_a_cut_row_of_few_keys_gives_the_same(keys, heads, threads):
    """Segments share the features of their row, of which some have no keys."""
    query = qkv(1, 3000, heads=heads, width=60)[0].requires_grad_()
    key, value = (x.requires_grad_() for x in qkv(1, keys, heads=heads, width=60)[1:])
    inputs = query, key, value
    alone = flow_attention(*inputs, backend="cpu")
    expected = gradients(alone, inputs)
    threads(5)
    shared = flow_attention(*inputs, backend="cpu")
    assert_close(shared, alone)
    assert_close(gradients(shared, inputs), expected)


def _attends_as(inputs, expected):
    torch.set_num_threads(3)
    out = flow_attention(*inputs, backend="cpu")
    torch.set_num_threads(1)
    sys.exit(not torch.equal(out, expected))


def test_a_forked_process_has_threads_of_its_own(threads):
    inputs = qkv(1, 4096, heads=1, width=64)
    threads(3)
    expected = flow_attention(*inputs, backend="cpu")
    threads(1)  # torch's own do not outlive a fork
    child = get_context("fork").Process(target=_attends_as, args=(inputs, expected))
    child.start()
    child.join(60)
    assert child.exitcode == 0
    threads(3)
    assert torch.equal(flow_attention(*inputs, backend="cpu"), expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_finite_tensors_are_told_from_others(dtype, number):
    x = torch.full((3, 5001), torch.finfo(dtype).max, dtype=dtype)  # its sum is infinite
    x[1] = torch.finfo(dtype).tiny
    assert is_finite(x)
    assert is_finite(x[:0])
    assert is_finite(x.t()) is None  # it reads what lies side by side
    for at in (0, 4096, 15_002):
        other = x.clone()
        other.view(-1)[at] = number
        assert is_finite(other) is False


def test_inference_mode_and_several_python_threads():
    inputs = qkv(2, 300)
    expected = flow_attention(*inputs, causal=True, backend="cpu")

    def attend(_):
        with torch.inference_mode():
            return flow_attention(*inputs, causal=True, backend="cpu")

    with ThreadPoolExecutor(4) as pool:
        assert all(torch.equal(out, expected) for out in pool.map(attend, range(16)))


# torch's own forward mode still scripts its decompositions
forward_mode = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")


TRANSFORMS = {
    "vmap": lambda f, x: torch.func.vmap(f)(x[None])[0],
    "grad": lambda f, x: torch.func.grad(lambda y: f(y).square().sum())(x),
    "jvp": lambda f, x: torch.func.jvp(f, (x,), (x.cos(),))[1],
    "hessian": lambda f, x: torch.func.hessian(lambda y: f(y).square().sum())(x),
}


@forward_mode
@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
@pytest.mark.parametrize("causal", [False, True])
def test_transforms_of_torch_func_get_another_backend_and_asking_for_this_one_is_refused(
    causal, transform
):
    query, key, value = qkv(1, 4, width=3, value_width=2)

    def attend(backend):
        options = {"causal": causal, "backend": backend}
        return lambda x: flow_attention(x, key, value, **options)

    assert_close(transform(attend(None), query), transform(attend("chunked"), query))
    with pytest.raises(RuntimeError, match="pass backend='chunked'"):
        transform(attend("cpu"), query)


@forward_mode
def test_forward_mode_gets_another_backend():
    query, key, value = qkv(1, 4)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(query, query.cos())
        tangents = [
            torch.autograd.forward_ad.unpack_dual(
                flow_attention(dual, key, value, causal=True, backend=backend)
            ).tangent
            for backend in (None, "chunked")
        ]
        assert tangents[0] is not None
        assert_close(*tangents)
        with pytest.raises(RuntimeError, match="forward-mode"):
            flow_attention(dual, key, value, backend="cpu")


# The library chooses one when it is loaded, in each child anew; torch is imported once for all.
EACH_INSTRUCTION_SET = """
import os, sys, warnings, pytest, torch
for isa in sys.argv[1:]:
  if child := os.fork():
    if os.waitpid(child, 0)[1]: print(isa, "failed", flush=True)
    continue
  os.environ["FLOWFORMER_ISA"] = isa
  warnings.simplefilter("ignore", UserWarning)  # of those that are not to be had
  from tests.ops.backends import test_cpu
  print(isa, test_cpu.run_core(isa), flush=True)
  sys.exit()
"""


def run_core(isa: str) -> str | None:
    """Run the tests for every instruction set if this one is served; return the one that is."""
    served = instruction_set()
    for test in CORE if served == isa else ():
        torch.manual_seed(0)
        fixtures = (
            {"threads": torch.set_num_threads} if "threads" in signature(test).parameters else {}
        )
        marks = [mark for mark in getattr(test, "pytestmark", ()) if mark.name == "parametrize"]
        for values in product(*(mark.args[1] for mark in marks)):
            given = dict(zip((mark.args[0] for mark in marks), values, strict=True))
            test(**given, **fixtures)
            torch.set_num_threads(1)
    return served


@pytest.fixture(scope="module")
def instruction_sets():
    """The instruction set that ran, of each that was asked for, and what was said of errors."""
    result = subprocess.run(
        [sys.executable, "-c", EACH_INSTRUCTION_SET, *INSTRUCTION_SETS],
        # Of glibc: memory that nobody wrote holds numbers near the largest float32.
        env=os.environ | {"OMP_NUM_THREADS": "1", "MALLOC_PERTURB_": "128"},
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=False,
    )
    return dict(line.split() for line in result.stdout.splitlines()), result.stderr


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
def test_every_instruction_set_of_this_machine(isa, instruction_sets):
    ran, errors = instruction_sets
    assert ran.get(isa, "failed") != "failed", errors
    # The library falls back to what the processor has: the kernels asked for did not run.
    if ran[isa] != isa:
        pytest.skip(f"this processor has no {isa}")
