"""First and second derivatives, checked numerically in float64."""

from decimal import Context, Decimal, localcontext

import pytest
import torch
from torch.autograd import forward_ad, gradcheck, gradgradcheck

from flowformer import flow_attention, flow_attention_step, linear_attention, mobile_attention
from flowformer.ops.backends.prefix import prefix_softmax
from tests.ops.cases import BACKENDS, CAUSAL, FORMS, gradients, needs_library, qkv

# The reference is plain PyTorch, whose derivatives are autograd's own.
DERIVED = [pytest.param("reference", marks=pytest.mark.slow), *BACKENDS[1:]]


def small(length=5, **sizes):
    """Few numbers: the cost grows with their square. One head, where heads do not meet."""
    sizes = {"heads": 1, "width": 3, "value_width": 2, **sizes}
    return tuple(tensor.requires_grad_() for tensor in qkv(1, length, **sizes))


def heads_of(options):
    return 2 if options.get("competition") == "heads" else 1


@pytest.mark.parametrize("backend", DERIVED)
@pytest.mark.parametrize("options", FORMS.values(), ids=FORMS)
def test_gradcheck(options, backend):
    mask = torch.tensor([[True, True, False, True, True]])

    def attend(q, k, v):
        return flow_attention(q, k, v, mask=mask, backend=backend, **options)

    assert gradcheck(attend, small(heads=heads_of(options)))


@pytest.mark.parametrize("backend", DERIVED)
@pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])
@pytest.mark.parametrize("kind", ["flow", "linear"])
def test_derivatives_where_one_input_is_another_or_made_of_it(kind, causal, backend):
    def attend(x):
        options = {"causal": causal, "backend": backend}
        if kind == "flow":
            return flow_attention(x, x, x.sin(), **options)
        return linear_attention(x, x, x.sin(), row_scale=x.cos().sum(-1), **options)

    (x,) = small(4)[:1]
    once, again = (
        torch.autograd.grad(attend(x).square().sum(), x, create_graph=create)[0]
        for create in (False, True)
    )
    torch.testing.assert_close(once, again)
    assert gradgradcheck(attend, x)


@pytest.mark.parametrize("backend", DERIVED)
@pytest.mark.parametrize("options", FORMS.values(), ids=FORMS)
def test_second_derivatives(options, backend):
    def attend(q, k, v):
        return flow_attention(q, k, v, backend=backend, **options)

    assert gradgradcheck(attend, small(3, heads=heads_of(options), width=2))


# torch's own forward mode still scripts its decompositions
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("causal", [False, True])
def test_a_batch_of_gradients_and_their_derivatives_go_through_the_backward(causal, backend):
    inputs = small(heads=2)
    out = flow_attention(*inputs, causal=causal, backend=backend)
    batch = torch.randn(3, *out.shape, dtype=out.dtype)
    each = [torch.autograd.grad(out, inputs, grad, retain_graph=True) for grad in batch]
    found = torch.autograd.grad(out, inputs, batch, is_grads_batched=True, retain_graph=True)
    for grads, expected in zip(found, zip(*each, strict=True), strict=True):
        torch.testing.assert_close(grads, torch.stack(expected))
    # The backward is linear in what comes in: its derivative is the backward of the tangent.
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(batch[0], batch[1])
        for grad, expected in zip(torch.autograd.grad(out, inputs, dual), each[1], strict=True):
            torch.testing.assert_close(forward_ad.unpack_dual(grad).tangent, expected)


@pytest.mark.usefixtures("shape_checks_off")
@pytest.mark.parametrize("causal", [False, True])
def test_a_program_exported_without_gradients_can_be_trained(causal):
    class Attention(torch.nn.Module):
        def forward(self, query, key, value):
            return flow_attention(query, key, value, causal=causal)

    inputs = small(heads=2)
    with torch.no_grad():
        program = torch.export.export(Attention(), inputs).module()
    found, expected = (gradients(attend(*inputs), inputs) for attend in (program, Attention()))
    torch.testing.assert_close(found, expected)


def test_the_gradient_of_a_share_that_is_nearly_one():
    """p = σ(x) for logits 0 and x: dp/dx = σ(x) σ(-x), which is no difference of larger numbers."""
    x = torch.tensor([1.0, 30.0, 60.0, 600.0], dtype=torch.float64, requires_grad=True)
    logits = torch.stack((torch.zeros_like(x), x), -1)[None]
    share, _ = prefix_softmax(logits, None, torch.full((1, 4), -torch.inf).double(), None)
    (grad,) = torch.autograd.grad(share[0, :, 1].sum(), x)
    expected = x.sigmoid() * (-x).sigmoid()
    torch.testing.assert_close(grad, expected.detach(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("backend", BACKENDS[1:])
@pytest.mark.parametrize("scale", [1, 25, 1000])
def test_backends_agree_where_each_source_outweighs_all_before_it(scale, backend):
    q, k, v = qkv(1, 200)
    rising = torch.linspace(-4, 4, 200, dtype=torch.float64)[None, :, None, None]
    inputs = (scale * q, scale * rising.expand_as(k), v)
    grads = []
    for name in (backend, "reference"):
        leaves = tuple(x.clone().requires_grad_() for x in inputs)
        out = flow_attention(*leaves, causal=True, clamp=None, feature_map="relu", backend=name)
        grads.append(gradients(out, leaves))
    for found, expected in zip(*grads, strict=True):
        assert (found - expected).abs().max() <= 1e-12 * expected.abs().max()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("width", [1, 8, 33])
def test_gradients_of_one_token_are_those_of_fifty_digits(width, causal, backend):
    """All flows of one token are one number: its gradients are of the order of ε, what is left of
    terms of the order of 1, and may be off by the roundings of these."""
    query, key, value, grad = (
        torch.randn(1, 1, 1, size, dtype=torch.float64) for size in (width, width, 5, 5)
    )
    leaves = query.requires_grad_(), key.requires_grad_()
    out = flow_attention(*leaves, value, causal=causal, backend=backend)
    found = torch.autograd.grad(out, leaves, grad)
    with localcontext(Context(prec=50)):
        exact = [[Decimal(x) for x in leaf.flatten().tolist()] for leaf in leaves]
        received = [Decimal(x) for x in (value * grad).flatten().tolist()]
        most = sum(map(abs, received)) * Decimal(16 * torch.finfo(torch.float64).eps)
        step = Decimal("1e-16")  # its square is beyond all digits of float64
        eps = Decimal("1e-6")

        def dot(x: list[Decimal], y: list[Decimal]) -> Decimal:
            return sum((a * b for a, b in zip(x, y, strict=True)), Decimal(0))

        def of_one_token(side: int, at: int, move: Decimal) -> Decimal:
            """Return a / I · q·k with one number moved."""
            moved = [list(numbers) for numbers in exact]
            moved[side][at] += move
            q, k = ([1 / (1 + (-x).exp()) for x in numbers] for numbers in moved)
            flow = dot([x + eps for x in q], [x + eps for x in k])
            conserved = dot([x + eps for x in q], [x / flow + eps for x in k])
            return dot(q, k) / flow / (1 + (-conserved).exp())

        for side in (0, 1):
            for at in range(width):
                rise = of_one_token(side, at, step) - of_one_token(side, at, -step)
                expected = sum(received) * rise / (2 * step)
                assert abs(Decimal(found[side].flatten()[at].item()) - expected) <= most


@needs_library
@pytest.mark.parametrize("clamp", [None, 60.0, 20.0], ids="clamp-{}".format)
@pytest.mark.parametrize("where", [2, 9], ids="source-{}".format)
def test_float32_key_gradients_are_as_exact_as_in_torch_where_one_source_dominates(where, clamp):
    """1 - share is not to be had from a share that is rounded to nearly 1."""
    worst = {"chunked": 0.0, "cpu": 0.0}
    for seed in range(8):
        torch.manual_seed(seed)
        q, k, v = qkv(1, where + 20, heads=1, width=16, value_width=8)
        k = k / 10 - 3
        k[:, where] += 6
        inputs, weight = [x.float() for x in (q, k, v)], torch.randn(v.shape).double()

        def key_gradient(backend, dtype, inputs=inputs, weight=weight):
            leaves = [x.to(dtype).requires_grad_() for x in inputs]
            out = flow_attention(*leaves, causal=True, clamp=clamp, backend=backend)
            return torch.autograd.grad((out * weight.to(dtype)).sum(), leaves[1])[0].double()

        exact = key_gradient("reference", torch.float64)
        for name in worst:
            error = (key_gradient(name, torch.float32) - exact).abs().max() / exact.abs().max()
            worst[name] = max(worst[name], float(error))
    assert worst["cpu"] <= 3 * worst["chunked"]


MASKS = {
    "left": [False, False, True, True],
    "right": [True, True, False, False],
    "empty": [False] * 4,
}


@pytest.mark.parametrize("backend", DERIVED)
@pytest.mark.parametrize(
    ("causal", "clamp", "mask"),  # every two of their values meet
    [
        (False, 1.0, "left"),
        (False, None, "right"),
        (False, 1.0, "empty"),
        (True, None, "left"),
        (True, 1.0, "right"),
        (True, None, "empty"),
    ],
)
def test_second_derivatives_with_padding(causal, clamp, mask, backend):
    options = {"causal": causal, "clamp": clamp, "mask": torch.tensor([MASKS[mask]])}
    options["backend"] = backend
    inputs = small(4, width=2, value_width=1)
    assert gradgradcheck(lambda *x: flow_attention(*x, **options), inputs)


@pytest.mark.parametrize("backend", DERIVED)
def test_second_derivatives_with_outputs_left_out_of_the_loss(backend):
    def attend(q, k, v):
        return flow_attention(q, k, v, causal=True, clamp=None, backend=backend)[:, :2]

    assert gradgradcheck(attend, small(4, width=2, value_width=1))


@pytest.mark.parametrize("options", CAUSAL.values(), ids=CAUSAL)
def test_gradcheck_through_a_state(options):
    def attend(q, k, v):
        options_ = {"return_state": True, **options}
        _, state = flow_attention(q[:, :3], k[:, :3], v[:, :3], **options_)
        step_options = {name: x for name, x in options.items() if name != "causal"}
        out, state = flow_attention_step(q[:, 3:4], k[:, 3:4], v[:, 3:4], state, **step_options)
        rest, state = flow_attention(q[:, 4:], k[:, 4:], v[:, 4:], initial_state=state, **options_)
        # The state is an output too. Its count is an integer and has no derivative.
        return out, rest, *(x for x in state if x.is_floating_point() and x.requires_grad)

    # Away from the kink of relu and from its zeros, where the derivatives of a flow reach 1e5.
    inputs = [(tensor.detach().abs() + 0.1).requires_grad_() for tensor in small(6, width=2)]
    assert gradcheck(attend, inputs)


def test_gradcheck_across_chunks_and_segments(monkeypatch):
    monkeypatch.setattr("flowformer.ops.backends.chunked.CHUNK", 3)
    monkeypatch.setattr("flowformer.ops.backends.chunked.SEGMENT", 7)
    assert gradcheck(lambda q, k, v: flow_attention(q, k, v, causal=True), small(length=16))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("normalize", [False, True])
def test_gradcheck_of_mobile_attention(normalize, backend):
    def attend(*x):
        return mobile_attention(*x, normalize=normalize, backend=backend, layout="bthd")

    assert gradcheck(attend, small(heads=3))
    assert gradgradcheck(attend, small(3, heads=3, width=2))


@pytest.mark.parametrize("causal", [False, True])
def test_gradcheck_of_linear_attention(causal):
    scale = torch.rand(1, 5, 1, dtype=torch.float64).requires_grad_()
    assert gradcheck(
        lambda q, k, v, s: linear_attention(q, k, v, row_scale=s, causal=causal),
        (*small(), scale),
    )
