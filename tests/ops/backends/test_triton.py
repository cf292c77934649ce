"""The GPU kernels, run by Triton's interpreter where there is no GPU: float32 against float64."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from flowformer import (
    FlowState,
    LinearState,
    flow_attention,
    flow_attention_step,
    linear_attention,
    mobile_attention,
)
from flowformer.ops.backends import available_backends
from tests.ops.cases import CAUSAL, FORMS, gradients, qkv
from tests.ops.test_golden import NAMES, VARIANTS, relative_error

_missing = available_backends()["triton"]  # such as "triton is not installed": the reason
pytestmark = pytest.mark.skipif(_missing is not None, reason=str(_missing))

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LENGTH = 41  # more than a chunk, and no multiple of one
FLOAT32 = 1e-5  # as of the golden values, of the largest number
HALF = {torch.bfloat16: 1e-2, torch.float16: 2e-3}  # a few roundings to 8 and 11 bits


QUICK = ("bidirectional", "causal", "heads", "causal-unclamped", "causal-no-competition")


def forms(table):
    """Return all of them, the ones not in QUICK for `make test-triton` only: seconds each."""
    return pytest.mark.parametrize(
        "options",
        [
            pytest.param(options, id=name, marks=[] if name in QUICK else [pytest.mark.slow])
            for name, options in table.items()
        ],
    )


def both(length=LENGTH, dtype=torch.float32, batch=1, **sizes):
    """Return inputs of the kernels and the same in float64, both asking for gradients."""
    inputs = [
        x.to(DEVICE) for x in qkv(batch, length, width=20, value_width=18, dtype=dtype, **sizes)
    ]
    exact = [x.double().requires_grad_() for x in inputs]
    return [x.requires_grad_() for x in inputs], exact


def assert_near(found, expected, tolerance=FLOAT32):
    assert found.isfinite().all()
    assert torch.equal(found.double(), expected) or relative_error(found, expected) <= tolerance


def assert_same_state(found, expected):
    """Without a token, or without competition, the logarithm of its sum is -inf in both."""
    for mine, theirs in zip(found, expected, strict=True):
        assert torch.equal(mine.isinf(), theirs.isinf())
        assert_near(mine.nan_to_num(neginf=0), theirs.nan_to_num(neginf=0))


def assert_same_gradients(out, inputs, expected, exact, tolerance=FLOAT32):
    assert_near(out, expected, tolerance)
    pairs = zip(gradients(out.double(), inputs), gradients(expected, exact), strict=True)
    for found, wanted in pairs:
        assert_near(found, wanted, tolerance)


@forms(FORMS)
def test_every_form_with_padding_and_its_gradients(options):
    inputs, exact = both()  # rows of a batch: test_golden_values
    mask = torch.rand(1, LENGTH, device=DEVICE) > 0.2
    out = flow_attention(*inputs, backend="triton", mask=mask, **options)
    expected = flow_attention(*exact, backend="reference", mask=mask, **options)
    assert_same_gradients(out, inputs, expected, exact)


def test_independent_sinks_of_heads_first_tensors_know_their_own_query_alone():
    (query, key, value), exact = both(3, sources=LENGTH)
    wild = query.detach().clone()
    wild[:, 1:] = torch.nan
    heads_first = [x.transpose(1, 2).contiguous() for x in (wild, key, value)]
    out = flow_attention(*heads_first, independent_sinks=True, layout="bhtd", backend="triton")
    expected = flow_attention(*exact, independent_sinks=True, backend="reference")
    assert_near(out[:, :, 0], expected[:, 0])


@pytest.mark.parametrize(
    ("dtype", "causal"),
    [
        (torch.bfloat16, True),
        (torch.float16, False),
        pytest.param(torch.bfloat16, False, marks=pytest.mark.slow),
        pytest.param(torch.float16, True, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_half_precision(dtype, causal):
    inputs, exact = both(70, dtype)
    out = flow_attention(*inputs, backend="triton", causal=causal)
    assert out.dtype == dtype
    expected = flow_attention(*exact, backend="reference", causal=causal)
    assert_same_gradients(out, inputs, expected, exact, HALF[dtype])


@pytest.mark.parametrize("options", [{}, {"clamp": None}], ids=["clamped", "unclamped"])
def test_cross_attention_between_packed_sequences(options):
    inputs, exact = both(60, sources=50, heads=1)
    offsets = torch.tensor([0, 7, 7, 48, 60], device=DEVICE)
    offsets_k = torch.tensor([0, 20, 21, 49, 50], device=DEVICE)
    options = {"cu_seqlens": offsets, "cu_seqlens_k": offsets_k, **options}
    out = flow_attention(*inputs, backend="triton", **options)
    expected = flow_attention(*exact, backend="reference", **options)
    assert_same_gradients(out, inputs, expected, exact)


@pytest.mark.parametrize("options", [{}, {"clamp": None}], ids=["clamped", "unclamped"])
def test_packed_sequences_equal_each_alone(options):
    inputs, exact = both(60, heads=1)
    offsets = torch.tensor([0, 5, 5, 47, 60], device=DEVICE)
    options = {"cu_seqlens": offsets, "causal": True, **options}
    out, state = flow_attention(*inputs, backend="triton", return_state=True, **options)
    expected, after = flow_attention(*exact, backend="reference", return_state=True, **options)
    assert_same_gradients(out, inputs, expected, exact)
    assert_same_state(state, after)


def test_flows_are_read_in_reverse_with_padding_states_and_gradients():
    inputs, exact = both()
    mask = torch.rand(1, LENGTH, device=DEVICE) > 0.2
    options = {"causal": True, "reverse": True, "mask": mask, "return_state": True}
    out, state = flow_attention(*inputs, backend="triton", **options)
    expected, after = flow_attention(*exact, backend="reference", **options)
    assert_same_gradients(out, inputs, expected, exact)
    assert_same_state(state, after)


def test_an_empty_sequence_leaves_the_gradients_of_a_packed_state_finite():
    inputs, exact = both(9, heads=1)
    offsets = torch.tensor([0, 4, 4, 9], device=DEVICE)
    grads = []
    for x, name in ((inputs, "triton"), (exact, "reference")):
        _, state = flow_attention(
            *x, backend=name, causal=True, cu_seqlens=offsets, return_state=True
        )
        grads.append(torch.autograd.grad(state.competition[[0, 2]].sum(), x[:2]))
    for mine, theirs in zip(*grads, strict=True):
        assert_near(mine, theirs, 3 * FLOAT32)


@pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])
def test_nan_in_a_packed_sequence_stays_there(causal):
    (q, k, v), exact = both(9, heads=1)
    offsets = torch.tensor([0, 4, 9], device=DEVICE)
    expected = flow_attention(*exact, backend="reference", causal=causal, cu_seqlens=offsets)
    with torch.no_grad():
        k[:, 3] = torch.nan
        out = flow_attention(q, k, v, backend="triton", causal=causal, cu_seqlens=offsets)
    assert out[:, 3].isnan().all()
    assert_near(out[:, 4:], expected[:, 4:])


@pytest.mark.parametrize("where", [0, 1, 2], ids=["query", "key", "value"])
@pytest.mark.parametrize("attend", [flow_attention, linear_attention])
def test_nan_reaches_no_earlier_output_nor_its_gradient(attend, where):
    inputs, exact = both(9, heads=1)
    expected = attend(*exact, backend="reference", causal=True)[:, :6]
    with torch.no_grad():
        inputs[where][:, 6] = torch.nan
    out = attend(*inputs, backend="triton", causal=True)
    assert out[:, 6].isnan().all()
    assert_near(out[:, :6], expected)
    pairs = (out[:, :6].double(), inputs), (expected, exact)
    grads = [gradients(x, tuple(y)) for x, y in pairs]
    for mine, theirs in zip(*grads, strict=True):
        assert_near(mine[:, :6], theirs[:, :6])


@pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])
def test_nan_in_the_gradient_of_a_packed_sequence_stays_there(causal):
    inputs, exact = both(9, heads=1)
    offsets = torch.tensor([0, 4, 9], device=DEVICE)
    grads = []
    for x, name in ((inputs, "triton"), (exact, "reference")):
        out = flow_attention(*x, backend=name, causal=causal, clamp=5.0, cu_seqlens=offsets)
        weight = torch.ones_like(out)
        weight[:, 6] = torch.nan
        grads.append(torch.autograd.grad(out, x, weight))
    for mine, theirs in zip(*grads, strict=True):
        assert mine[:, 4].isnan().any()
        assert_near(mine[:, :4], theirs[:, :4], 3 * FLOAT32)


def test_a_packed_sequence_of_large_flows_hides_nothing_of_the_next():
    (q, k, v), exact = both(12, heads=1)
    with torch.no_grad():
        for x in (k, exact[1]):
            x[:, :6] -= 9  # so that the next source's flow is in the thousands
    options = {"causal": True, "clamp": 50.0}
    options["cu_seqlens"] = torch.tensor([0, 7, 12], device=DEVICE)
    out = flow_attention(q, k, v, backend="triton", **options)
    assert_near(out, flow_attention(*exact, backend="reference", **options))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_the_default_dtype_is_not_that_of_the_arithmetic(dtype):
    (q, k, v), _ = both(5, heads=1, sources=3)
    expected = flow_attention(q, k, v, backend="triton")
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        out = flow_attention(q, k, v, backend="triton")
    finally:
        torch.set_default_dtype(before)
    assert torch.equal(out, expected)


@forms(CAUSAL)
def test_a_state_goes_in_and_out_with_its_gradients(options):
    heads = 2 if options == {"causal": True} else 1
    inputs, exact = both(heads=heads)
    past = [x.to(DEVICE) for x in qkv(1, 9, heads=heads, width=20, value_width=18)]
    _, state = flow_attention(*past, backend="reference", return_state=True, **options)
    states = [
        FlowState(*(x.clone().requires_grad_(x.is_floating_point()) for x in state)) for _ in "ab"
    ]
    results = [
        flow_attention(*x, backend=name, initial_state=before, return_state=True, **options)
        for x, name, before in ((inputs, "triton", states[0]), (exact, "reference", states[1]))
    ]
    competes = "competition" not in options
    weights = [torch.randn_like(results[1][0]), *map(torch.randn_like, results[1][1][1:])]
    grads = []
    for (out, after), x, before in zip(results, (inputs, exact), states, strict=True):
        weighed = [
            (each.double() * weight).mean()
            for each, weight in zip((out, *after[1:]), weights, strict=True)
        ]
        wanted = [*x, *before[1:5], *before[5 if competes else 6 :]]
        grads.append(torch.autograd.grad(torch.stack(weighed).sum(), wanted))
    assert_same_state(results[0][1], results[1][1])
    for mine, theirs in zip(*grads, strict=True):
        assert_near(mine, theirs, 3 * FLOAT32)


def test_a_long_sequence_of_few_heads_is_split():
    """A split has eight chunks at least: with more of them than that there are several."""
    (q, k, v), exact = both(32 * 8 + 5, heads=1)
    out, state = flow_attention(q, k, v, backend="triton", causal=True, return_state=True)
    expected, after = flow_attention(*exact, backend="chunked", causal=True, return_state=True)
    assert_same_gradients(out, (q, k, v), expected, exact)
    assert_near(state.key_value, after.key_value)


def test_steps_continue_a_prefill():
    (q, k, v), exact = both(12)
    options = {"clamp": 5.0, "feature_map": "relu"}
    with torch.no_grad():
        first = q[:, :9], k[:, :9], v[:, :9]
        out, state = flow_attention(
            *first, backend="triton", causal=True, return_state=True, **options
        )
        outputs = [out]
        for t in range(9, 12):
            token = q[:, t : t + 1], k[:, t : t + 1], v[:, t : t + 1]
            out, state = flow_attention_step(*token, state, backend="triton", **options)
            outputs.append(out)
    expected, after = flow_attention(
        *exact, backend="reference", causal=True, return_state=True, **options
    )
    assert_near(torch.cat(outputs, 1), expected)
    assert_same_state(state, after)


@pytest.mark.parametrize("options", [{}, {"competition": None, "allocation": False}])
def test_a_first_step_needs_no_state(options):
    (q, k, v), (query, key, value) = both(1)
    with torch.no_grad():
        out, state = flow_attention_step(q, k, v, None, backend="triton", **options)
    expected, after = flow_attention_step(query, key, value, None, backend="reference", **options)
    assert_near(out, expected)
    assert_same_state(state, after)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_linear_attention_with_a_row_scale_state_and_gradients(dtype):
    inputs, exact = both(dtype=dtype)
    scale = torch.rand(1, LENGTH, 2, device=DEVICE)
    scales = [scale.clone().requires_grad_(), scale.double().requires_grad_()]
    (out, state), (expected, after) = (
        linear_attention(*x, causal=True, row_scale=s, return_state=True, backend=name)
        for x, s, name in ((inputs, scales[0], "triton"), (exact, scales[1], "reference"))
    )
    tolerance = FLOAT32 if dtype == torch.float32 else HALF[dtype]
    assert out.dtype == dtype
    assert_near(state.key_value, after.key_value, tolerance)
    inputs, exact = [*inputs, scales[0]], [*exact, scales[1]]
    assert_same_gradients(out, inputs, expected, exact, tolerance)


def decays(*shape, rate):
    return (-rate * torch.rand(shape, device=DEVICE) ** 2).requires_grad_()


def linear_results(backend, inputs, state, **options):
    """Return output, next state and all gradients; inputs: query, key, value, decays, scale."""
    query, key, value, log_decay, scale = inputs
    out, after = linear_attention(
        *(query, key, value),
        causal=True,
        log_decay=log_decay,
        row_scale=scale,
        initial_state=LinearState(state),
        return_state=True,
        backend=backend,
        layout="bthd",
        **options,
    )
    loss = (out.double() * weight_of(out)).sum()
    loss = loss + (after.key_value * weight_of(after.key_value)).sum()
    return [out, after.key_value, *torch.autograd.grad(loss, [*inputs, state])]


def weight_of(x):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(x.shape, dtype=torch.float64, generator=generator).to(x.device)


@pytest.mark.parametrize(
    ("length", "rate", "options"),
    [
        pytest.param(LENGTH, 0.2, {}, id="slow"),
        pytest.param(LENGTH, 400.0, {}, id="steep"),
        pytest.param(1, 0.2, {}, id="step"),
        pytest.param(32 * 8 + 5, 0.02, {}, id="split", marks=pytest.mark.slow),
        pytest.param(LENGTH, 0.2, {"normalize": True}, id="normalized", marks=pytest.mark.slow),
        pytest.param(60, 0.2, {"cu_seqlens": (0, 5, 5, 47, 60)}, id="packed"),
        pytest.param(
            60, 0.2, {"cu_seqlens": (0, 5, 5, 47, 60), "reverse": True}, id="packed-reverse"
        ),
    ],
)
def test_linear_attention_that_forgets_with_states_and_all_gradients(length, rate, options):
    (query, key, value), _ = both(length, heads=1)
    log_decay, scale = decays(1, length, 1, rate=rate), torch.rand(1, length, 1, device=DEVICE)
    if rate > 1:
        with torch.no_grad():
            log_decay[:, length // 2] = -torch.inf
    rows = len(options.get("cu_seqlens", (0, length))) - 1
    if "cu_seqlens" in options:
        options = {**options, "cu_seqlens": torch.tensor(options["cu_seqlens"], device=DEVICE)}
    columns = 19 if "normalize" in options else 18
    state = torch.randn(rows, 1, 20, columns, dtype=torch.float64, device=DEVICE).requires_grad_()
    inputs = query.abs(), key.abs(), value, log_decay, scale  # sums of weights are not zero
    inputs = [x.detach().requires_grad_() for x in inputs]
    exact = [x.detach().double().requires_grad_() for x in inputs]
    found = linear_results("triton", inputs, state, **options)
    expected = linear_results("reference", exact, state, **options)
    for mine, theirs in zip(found, expected, strict=True):
        assert_near(mine, theirs)


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_linear_attention_that_forgets_in_half_precision(dtype):
    inputs, exact = both(70, dtype, heads=1)
    log_decay = decays(1, 70, 1, rate=0.2)
    out = linear_attention(*inputs, causal=True, log_decay=log_decay, backend="triton")
    wide = log_decay.detach().double().requires_grad_()
    expected = linear_attention(*exact, causal=True, log_decay=wide, backend="reference")
    assert out.dtype == dtype
    inputs, exact = [*inputs, log_decay], [*exact, wide]
    assert_same_gradients(out, inputs, expected, exact, HALF[dtype])


def test_mobile_attention_takes_packs_without_kernels_of_its_own():
    inputs, exact = both()
    offsets = torch.tensor([0, 3, LENGTH], device=DEVICE)
    out, expected = (
        mobile_attention(*x, cu_seqlens=offsets, backend=name, layout="bthd")
        for x, name in ((inputs, "triton"), (exact, "reference"))
    )
    assert_near(out, expected)
    assert_same_gradients(out, inputs, expected, exact)


def _golden_cases():
    """Those of many tokens and heads take the interpreter minutes; one token cancels in float32."""
    for name in NAMES:
        kind, b, tokens, _, heads, *_ = name.split("-")
        size = int(b[1:]) * int(tokens[1:]) * int(heads[1:])
        if kind != "mobile" and tokens != "l1":  # mobile attention has no kernel of its own
            yield pytest.param(name, marks=[pytest.mark.slow] if size > 200 else [])


@pytest.mark.parametrize("name", list(_golden_cases()))
def test_golden_values(golden, name):
    values = golden(f"attention/{name}")
    kind = name.split("-")[0]
    inputs = {
        key: values[key].to(DEVICE, torch.float32).requires_grad_()
        for key in "qkv"
        if key in values
    }
    q = inputs["q"]
    out = flow_attention(
        q, inputs.get("k", q), inputs.get("v", q), backend="triton", **VARIANTS[kind]
    )
    (out * values["w"].to(out)).sum().backward()
    assert relative_error(out.cpu(), values["out"]) <= 1e-5
    for key, tensor in inputs.items():
        assert tensor.grad is not None
        assert relative_error(tensor.grad.cpu(), values[f"d{key}"]) <= 1e-5, key


def test_strided_inputs_are_read_where_they_are():
    (q, k, v), exact = both(9)
    transposed = [x.detach().transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v)]
    spread = [torch.stack((x.detach(), x.detach()), -1)[..., 0] for x in (q, k, v)]
    expected = flow_attention(*exact, backend="reference", causal=True)
    for inputs in (transposed, spread):
        assert_near(flow_attention(*inputs, backend="triton", causal=True), expected)


def test_nan_in_the_padding_reaches_nothing():
    (q, k, v), exact = both()
    mask = torch.arange(LENGTH, device=DEVICE) % 5 > 0
    with torch.no_grad():
        for x in (q, k, v):
            x[:, ~mask] = torch.nan
    mask = mask[None]
    out = flow_attention(q, k, v, backend="triton", causal=True, mask=mask)
    expected = flow_attention(*exact, backend="reference", causal=True, mask=mask)
    assert_near(out, expected)
    assert all(grad.isfinite().all() for grad in gradients(out, (q, k, v)))


def test_a_gradient_of_a_gradient_is_pytorchs():
    (q, k, v), exact = both(5)
    second = []
    for x, name in (([q, k, v], "triton"), (exact, "reference")):
        out = flow_attention(*x, backend=name)
        first = torch.autograd.grad(out.pow(2).sum(), x, create_graph=True)
        second.append(torch.autograd.grad(torch.cat(first, -1).pow(2).sum(), x))
    for mine, theirs in zip(*second, strict=True):
        assert_near(mine, theirs, 1e-4)


# torch's own forward mode still scripts its decompositions
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")
def test_what_it_does_not_take_is_said():
    q, k, v = qkv(1, 4)
    with pytest.raises(RuntimeError, match="triton backend unavailable: float64 inputs"):
        flow_attention(q, k, v, backend="triton")
    inputs = [x.float() for x in (q, k, v)]
    with pytest.raises(RuntimeError, match="the triton backend has no forward-mode derivatives"):
        torch.func.jvp(
            lambda x: flow_attention(x, *inputs[1:], backend="triton"),
            (inputs[0],),
            (inputs[0],),
        )


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere triton may bring a compiler")
def test_what_a_machine_with_a_card_lacks_is_said(monkeypatch):
    from flowformer.ops.backends import triton

    why_unavailable = triton.why_unavailable.__wrapped__  # not what it has said before
    monkeypatch.setattr(triton, "INTERPRETED", False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(triton, "which", lambda _: None)
    monkeypatch.delenv("CC", raising=False)
    assert str(why_unavailable()).startswith("no C compiler")
    monkeypatch.setenv("CC", "cc")
    assert str(why_unavailable()).startswith("compute capability 7.5")


# opcheck itself looks at .grad of tensors that are no leaves
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.usefixtures("shape_checks_off")
def test_the_operators_hold_what_torch_asks_of_them():
    from flowformer.ops.backends.arguments import numbers
    from flowformer.ops.backends.triton.operators import OPERATORS
    from tests.ops.backends.test_cpu import OPTIONS

    (q, k, v), _ = both(5)
    rest = (*(None,) * 5, *numbers(OPTIONS), True)
    torch.library.opcheck(OPERATORS.bidirectional.dispatched, (q, k, v, *rest))
    rest = (*(None,) * 11, *numbers(OPTIONS), True, True, True)
    torch.library.opcheck(OPERATORS.causal.dispatched, (q, k, v, *rest))


@pytest.mark.usefixtures("shape_checks_off")
def test_results_have_the_strides_that_torch_is_told_whatever_those_of_the_state():
    from flowformer.ops.backends.arguments import numbers
    from flowformer.ops.backends.triton.operators import OPERATORS, one_token
    from tests.ops.backends.test_cpu import OPTIONS

    q, k, v = qkv(1, 5, width=20, value_width=18, dtype=torch.float32)
    offsets = torch.tensor([0, 2, 2, 5])
    sums = [torch.rand(3, 20, 2, dtype=torch.float64).transpose(1, 2) for _ in range(4)]
    state = [torch.full((3,), 2), *sums, torch.rand(2, 3, dtype=torch.float64).T]
    state.append(torch.rand(3, 20, 2, 18, dtype=torch.float64).transpose(1, 2))
    rest = (*numbers(OPTIONS), True, True, False)
    arguments = (q, k, v, None, offsets, None, None, *state, *rest)
    torch.library.opcheck(OPERATORS.causal.dispatched, arguments, test_utils="test_faketensor")
    token = (x.expand(3, -1, -1, -1)[:, :1] for x in (q, k, v))
    arguments = (*token, *state, *numbers(OPTIONS))
    torch.library.opcheck(one_token, arguments, test_utils="test_faketensor")


@pytest.mark.usefixtures("shape_checks_off")
def test_a_compiled_model_holds_the_operators():
    (q, k, v), exact = both(7)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def run(q, k, v):
        return flow_attention(q, k, v, causal=True, backend="triton")

    out = run(q, k, v)
    expected = flow_attention(*exact, causal=True, backend="reference")
    assert_same_gradients(out, (q, k, v), expected, exact)


def test_a_default_of_every_kernel_compiles_without_a_card_and_without_spills(tmp_path):
    """All widths, dtypes and cards: benchmarks/results/gpu_kernels.json, by the same command."""
    command = [sys.executable, "-m", "benchmarks", "gpu_kernels", "--widths", "64"]
    command += ["--dtypes", "bfloat16", "--capabilities", "80", "--passes", "causal", "decay"]
    command += ["convolution"]
    command += ["--output", str(tmp_path / "kernels.json")]
    environment = {"TRITON_CACHE_DIR": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    root = Path(__file__).parents[3]
    done = subprocess.run(
        command, check=True, capture_output=True, text=True, cwd=root, env=environment
    )
    assert "sm_80 bfloat16 d64 causal: 13 kernels, 0 spill" in done.stdout
    assert "sm_80 bfloat16 d64 decay: 6 kernels, 0 spill" in done.stdout
    assert "sm_80 bfloat16 d64 convolution: 6 kernels, 0 spill" in done.stdout
