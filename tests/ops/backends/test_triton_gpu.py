"""The GPU kernels on a card, compiled: what Triton's interpreter cannot show.

    pytest -m gpu tests/ops/backends/test_triton_gpu.py

The oracle is `chunked` in float64, on the same rounded inputs.
"""

import pytest
import torch

from flowformer import FlowState, flow_attention, flow_attention_step, linear_attention
from tests.ops.cases import CAUSAL, FORMS

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

DEVICE = "cuda"
# Of the largest number: a few roundings of 24, 11 (products as TensorFloat-32 too) and 8 bits.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 3e-3, torch.bfloat16: 2e-2}
DTYPES = pytest.mark.parametrize("dtype", TOLERANCE, ids=["f32", "f16", "bf16"])
BOTH = pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
GIBIBYTE = 2**30


def inputs_of(*shape, dtype=torch.bfloat16, value_width=None, device=DEVICE):
    """Return query, key and value, [b, t, h, d], that ask for gradients."""
    widths = (shape[-1], shape[-1], value_width or shape[-1])
    return [
        torch.randn(*shape[:-1], width, device=device, dtype=dtype).requires_grad_()
        for width in widths
    ]


def widened(inputs):
    return [tensor.detach().double().requires_grad_() for tensor in inputs]


def assert_near(found, expected, tolerance):
    assert found.isfinite().all()
    error = (found.double() - expected).abs().max() / expected.abs().max().clamp(min=1e-30)
    assert error.item() <= tolerance


def assert_same(inputs, **options):
    """Compare outputs and gradients with the oracle's."""
    tolerance = TOLERANCE[inputs[0].dtype]
    exact = widened(inputs)
    out = flow_attention(*inputs, backend="triton", **options)
    expected = flow_attention(*exact, backend="chunked", **options)
    assert_near(out, expected, tolerance)
    grad = torch.randn_like(out)
    grads = torch.autograd.grad(out, inputs, grad)
    wanted = torch.autograd.grad(expected, exact, grad.double())
    for found, gradient in zip(grads, wanted, strict=True):
        assert_near(found, gradient, 2 * tolerance)  # of more sums, each of rounded numbers


@pytest.mark.parametrize("options", FORMS.values(), ids=FORMS)
@DTYPES
def test_every_form_forward_and_backward(options, dtype):
    assert_same(inputs_of(2, 500, 3, 64, dtype=dtype), **options)


@pytest.mark.parametrize("width", [16, 40, 64, 128, 256])
@BOTH
@DTYPES
def test_every_width_and_values_of_another(width, causal, dtype):
    inputs = inputs_of(1, 300, 2, width, dtype=dtype, value_width=width // 2 + 8)
    assert_same(inputs, causal=causal)


@pytest.mark.parametrize("length", [63, 64, 65, 4097], ids="t{}".format)
@BOTH
@DTYPES
def test_every_length(length, causal, dtype):
    assert_same(inputs_of(2, length, 2, 64, dtype=dtype), causal=causal)


@BOTH
@DTYPES
def test_one_token(causal, dtype):
    # The gradients of its query and key are nearly zero: rounding is all that they would show.
    inputs = [tensor.detach() for tensor in inputs_of(2, 1, 2, 64, dtype=dtype)]
    out = flow_attention(*inputs, causal=causal, backend="triton")
    expected = flow_attention(*(x.double() for x in inputs), causal=causal, backend="chunked")
    assert_near(out, expected, TOLERANCE[dtype])


@BOTH
def test_padding(causal):
    mask = torch.rand(3, 500, device=DEVICE) > 0.3
    assert_same(inputs_of(3, 500, 2, 64), causal=causal, mask=mask)


@BOTH
@DTYPES
def test_packed_sequences(causal, dtype):
    offsets = torch.tensor([0, 1, 64, 64, 700, 1000], device=DEVICE)
    inputs = inputs_of(1, 1000, 2, 64, dtype=dtype)
    assert_same(inputs, causal=causal, cu_seqlens=offsets)


@BOTH
def test_half_precision_stays_finite_over_thousands_of_tokens(causal):
    # The unscaled output passes 65,504 here, about 64 · 0.5² · 4,096 · 4, and a scaled query is
    # below float16's normal range.
    query, key, value = inputs_of(1, 4096, 4, 64, dtype=torch.float16)
    assert_same([query, key, (value + 4).detach().requires_grad_()], causal=causal)


@pytest.mark.parametrize("options", CAUSAL.values(), ids=CAUSAL)
def test_a_state_splits_a_sequence_anywhere(options):
    inputs = [tensor.detach() for tensor in inputs_of(2, 700, 2, 64, dtype=torch.float32)]
    whole, end = flow_attention(*inputs, backend="triton", return_state=True, **options)
    first, state = flow_attention(
        *(x[:, :301] for x in inputs), backend="triton", return_state=True, **options
    )
    second, after = flow_attention(
        *(x[:, 301:] for x in inputs),
        backend="triton",
        initial_state=state,
        return_state=True,
        **options,
    )
    assert_near(torch.cat((first, second), 1), whole.double(), 1e-5)
    for found, wanted in zip(after, end, strict=True):
        if found.isfinite().all():  # without competition its logarithm is -inf in both
            assert_near(found, wanted.double(), 1e-5)
        else:
            assert torch.equal(found, wanted)


@pytest.mark.parametrize("rate", [None, 0.05, 300.0], ids=["plain", "decays", "steep"])
@pytest.mark.parametrize("length", [500, 5000], ids=["whole", "split"])
@DTYPES
def test_linear_attention_with_a_row_scale_and_decays(dtype, length, rate):
    inputs = inputs_of(2, length, 2, 64, dtype=dtype)
    inputs.append(torch.rand(2, length, 2, device=DEVICE, requires_grad=True))
    if rate is not None:
        inputs.append((-rate * torch.rand(2, length, 2, device=DEVICE) ** 2).requires_grad_())
    exact = widened(inputs)
    out, expected = (
        linear_attention(
            *(query, key, value),
            row_scale=scale,
            log_decay=decays[0] if decays else None,
            causal=True,
            backend=name,
        )
        for name, (query, key, value, scale, *decays) in (("triton", inputs), ("chunked", exact))
    )
    assert_near(out, expected, TOLERANCE[dtype])
    grads = torch.autograd.grad(out.sum(), inputs)
    wanted = torch.autograd.grad(expected.sum(), exact)
    for found, gradient in zip(grads, wanted, strict=True):
        assert_near(found, gradient, 2 * TOLERANCE[dtype])


@torch.no_grad()
@DTYPES
def test_steps_continue_a_prefill(dtype):
    inputs = [tensor.detach() for tensor in inputs_of(3, 80, 2, 64, dtype=dtype)]
    exact = flow_attention(*(x.double() for x in inputs), causal=True, backend="chunked")
    prompt = (x[:, :70] for x in inputs)
    _, state = flow_attention(*prompt, causal=True, return_state=True, backend="triton")
    for t in range(70, 80):
        query, key, value = (x[:, t : t + 1] for x in inputs)
        out, state = flow_attention_step(query, key, value, state, backend="triton")
        assert_near(out, exact[:, t : t + 1], TOLERANCE[dtype])


# How it is called.


@BOTH
def test_a_cuda_graph_replays_new_inputs(causal):
    inputs = [tensor.detach() for tensor in inputs_of(2, 512, 2, 64)]
    for _ in range(3):  # compiles, and makes the tables of a shape
        flow_attention(*inputs, causal=causal, backend="triton")
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = flow_attention(*inputs, causal=causal, backend="triton")
    for tensor in inputs:
        tensor.copy_(torch.randn_like(tensor))
    graph.replay()
    torch.cuda.synchronize()
    expected = flow_attention(*(x.double() for x in inputs), causal=causal, backend="chunked")
    assert_near(out, expected, TOLERANCE[torch.bfloat16])


@torch.no_grad()
@BOTH
def test_a_cuda_graph_outlives_the_tables_of_other_shapes(causal):
    inputs = [tensor.detach() for tensor in inputs_of(2, 384, 2, 64)]
    expected = flow_attention(*inputs, causal=causal, backend="triton")
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = flow_attention(*inputs, causal=causal, backend="triton")
    for length in range(1, 100):  # more shapes than are kept
        flow_attention(*inputs_of(2, length, 2, 64), causal=causal, backend="triton")
    filler = [torch.full((2**10,), 2**40, device=DEVICE) for _ in range(200)]
    graph.replay()
    torch.cuda.synchronize()
    assert len(filler) == 200  # in the place of what was freed
    assert torch.equal(out, expected)


@pytest.mark.usefixtures("shape_checks_off")
@torch.no_grad()
@BOTH
def test_cuda_graphs_of_torch_compile_take_a_shape_that_is_new(causal):
    torch.compiler.reset()

    @torch.compile(fullgraph=True, mode="reduce-overhead")
    def attend(query, key, value):
        return flow_attention(query, key, value, causal=causal, backend="triton")

    inputs = inputs_of(3, 321, 2, 64)  # of no other test: its tables are made in the first call
    expected = flow_attention(*(x.double() for x in inputs), causal=causal, backend="chunked")
    for _ in range(3):
        torch.compiler.cudagraph_mark_step_begin()
        assert_near(attend(*inputs), expected, TOLERANCE[torch.bfloat16])


@torch.no_grad()
def test_a_cuda_graph_replays_a_step():
    query, key, value = (tensor.detach() for tensor in inputs_of(2, 1, 2, 64))
    state = FlowState.initial(2, 2, 64, 64, torch.device(DEVICE))
    for _ in range(3):
        flow_attention_step(query, key, value, state, backend="triton")
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out, after = flow_attention_step(query, key, value, state, backend="triton")
    for _ in range(5):  # each replay goes on where the last one ended
        graph.replay()
        for field, new in zip(state, after, strict=True):
            field.copy_(new)
    torch.cuda.synchronize()
    assert state.tokens.tolist() == [5, 5]
    five = (x.double().expand(2, 5, 2, 64) for x in (query, key, value))
    expected = flow_attention(*five, causal=True, backend="chunked")
    assert_near(out, expected[:, -1:], TOLERANCE[torch.bfloat16])


@pytest.mark.usefixtures("shape_checks_off")
@BOTH
def test_compiles_to_one_graph_and_trains(causal):
    torch.compiler.reset()

    @torch.compile(fullgraph=True)
    def attend(query, key, value):
        return flow_attention(query.sin(), key.sin(), value, causal=causal, backend="triton").cos()

    inputs = inputs_of(2, 300, 2, 64, dtype=torch.float32)
    out = attend(*inputs)
    query, key, value = inputs
    expected = flow_attention(query.sin(), key.sin(), value, causal=causal, backend="triton").cos()
    assert_near(out, expected.double(), 1e-5)
    grads, wanted = (torch.autograd.grad(each.sum(), inputs) for each in (out, expected))
    for found, gradient in zip(grads, wanted, strict=True):
        assert_near(found, gradient.double(), 1e-4)


@BOTH
def test_autocast_does_not_reach_the_arithmetic(causal):
    inputs = inputs_of(2, 200, 2, 64, dtype=torch.float32)
    expected = flow_attention(*inputs, causal=causal, backend="triton")
    with torch.autocast(DEVICE, dtype=torch.float16):
        out = flow_attention(*inputs, causal=causal, backend="triton")
    assert torch.equal(out, expected)


@BOTH
def test_the_current_stream_is_used(causal):
    inputs = inputs_of(1, 4096, 8, 64)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(10**8)  # what runs elsewhere would be done before this
        doubled = [tensor.detach() * 2 for tensor in inputs]
        out = flow_attention(*doubled, causal=causal, backend="triton")
    torch.cuda.current_stream().wait_stream(stream)
    expected = flow_attention(*(2 * x.double() for x in inputs), causal=causal, backend="chunked")
    assert_near(out, expected, TOLERANCE[torch.bfloat16])


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one CUDA device")
@BOTH
def test_the_tensors_own_device_is_used(causal):
    assert torch.cuda.current_device() == 0
    assert_same(inputs_of(2, 300, 2, 64, device="cuda:1"), causal=causal)


def test_no_length_is_compiled_in():
    from triton import knobs

    compiled = []

    def count(*, repr, **_):
        compiled.append(repr)

    def run(*lengths):
        for length in lengths:
            for causal in (True, False):
                inputs = inputs_of(1, length, 2, 64)
                out = flow_attention(*inputs, causal=causal, backend="triton")
                torch.autograd.grad(out.sum(), inputs)

    # Triton compiles for numbers that 16 divides and for others, and long sequences are split.
    run(512, 501, 8192, 8191)
    before = knobs.runtime.jit_cache_hook
    knobs.runtime.jit_cache_hook = count
    try:
        run(496, 333, 16_000, 9999, 5008)
    finally:
        knobs.runtime.jit_cache_hook = before
    assert compiled == []


@pytest.mark.slow
@BOTH
def test_tensors_beyond_two_to_the_31_elements(causal):
    heads, width = 16, 128
    length = 2**31 // (heads * width) + 100
    free, _ = torch.cuda.mem_get_info()
    if free < 48 * GIBIBYTE:
        pytest.skip(f"needs 48 GiB of the card's memory, {free / GIBIBYTE:.0f} are free")
    with torch.no_grad():
        inputs = [torch.randn(1, length, heads, width, device=DEVICE).bfloat16() for _ in range(3)]
        out = flow_attention(*inputs, causal=causal, backend="triton")
        # The last head alone, in tensors whose indices are small.
        alone = [x[:, :, -1:].contiguous() for x in inputs]
        expected = flow_attention(*alone, causal=causal, backend="triton")
    assert_near(out[:, :, -1:], expected.double(), TOLERANCE[torch.bfloat16])
