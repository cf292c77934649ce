"""Causal attention read from the last token to the first: the turned call of turned tensors."""

from typing import Any

import pytest
import torch
from hypothesis import given
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.export import Dim
from torch.testing import assert_close

from flowformer import flow_attention, linear_attention
from tests.ops.cases import CPU, gradients
from tests.ops.test_decay import Attention, attend, backends, draw, forms
from tests.ops.test_masks_and_packing import few, masks


def turn(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Return the tensors with their tokens in the other order, asking for gradients."""
    return tuple(x.detach().flip(1).requires_grad_() for x in tensors)


@backends
@pytest.mark.parametrize("length", [1, 63, 150])
def test_linear_attention_is_its_sum_over_later_tokens(length, backend):
    inputs = tuple(x.requires_grad_() for x in draw(2, length))
    scale = torch.rand(2, length, 2, dtype=torch.float64)
    q, k, v, log_decay = inputs
    up_to = log_decay.cumsum(1).transpose(1, 2)  # D_ts = exp Σ_{t≤r<s} g_r
    before = torch.nn.functional.pad(up_to, (1, 0))[..., :-1]
    left = (before[:, :, None] - before[..., None]).exp().triu()
    scores = torch.einsum("bthd,bshd->bhts", q, k) * left
    expected = torch.einsum("bhts,bshm->bthm", scores, v) * scale[..., None]
    out = attend("linear", *inputs, row_scale=scale, reverse=True, backend=backend)
    assert_close(out, expected, rtol=1e-10, atol=1e-12)
    for grad, wanted in zip(gradients(out, inputs), gradients(expected, inputs), strict=True):
        assert_close(grad, wanted, rtol=1e-9, atol=1e-11)


@backends
@forms
@pytest.mark.parametrize("decays", [True, False], ids=["decays", "plain"])
@few
@given(mask=masks())
def test_is_the_call_of_turned_tensors(name, decays, backend, mask):
    torch.manual_seed(0)
    inputs = tuple(x.requires_grad_() for x in draw(*mask.shape))
    earlier = draw(mask.shape[0], 5)
    if not decays:
        inputs, earlier = inputs[:3], (*earlier[:3], None)
    turned, nothing = turn(*inputs), () if decays else (None,)
    options: dict[str, Any] = {"return_state": True, "backend": backend}
    _, state = attend(name, *earlier, **options)
    options["initial_state"] = state
    out, after = attend(name, *inputs, *nothing, mask=mask, reverse=True, **options)
    options["backend"] = "reference"
    expected, wanted = attend(name, *turned, *nothing, mask=mask.flip(1), **options)
    assert_close(out, expected.flip(1), rtol=1e-9, atol=1e-12)
    for field, want in zip(after, wanted, strict=True):
        assert_close(field, want, rtol=1e-9, atol=1e-12)
    weight = torch.randn_like(out)
    grads = torch.autograd.grad((out * weight).sum(), inputs)
    expected_grads = torch.autograd.grad((expected * weight.flip(1)).sum(), turned)
    for grad, want in zip(grads, expected_grads, strict=True):
        assert_close(grad, want.flip(1), rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("backend", [CPU])
@forms
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("length", [63, 500])
def test_kernels_compute_the_same_of_heads_where_they_stand(name, length, dtype, backend):
    *inputs, log_decay = draw(2, length, heads=4, dtype=dtype)
    inputs = tuple(x.requires_grad_() for x in inputs)
    some = [x[:, :, 1:3] for x in (*inputs, log_decay.float())]
    out = attend(name, *some, reverse=True, backend=backend)
    expected = attend(name, *(x.flip(1) for x in some), backend=backend).flip(1)
    assert_close(out, expected, rtol=0, atol=0)
    for grad, wanted in zip(gradients(out, inputs), gradients(expected, inputs), strict=True):
        assert_close(grad, wanted, rtol=0, atol=0)


@backends
@forms
def test_a_state_is_that_of_the_tokens_behind(name, backend):
    inputs = draw(2, 100)
    options: dict[str, Any] = {"reverse": True, "return_state": True, "backend": backend}
    out, state = attend(name, *inputs, **options)
    behind, carried = attend(name, *(x[:, 37:] for x in inputs), **options)
    front, carried = attend(name, *(x[:, :37] for x in inputs), initial_state=carried, **options)
    assert_close(torch.cat((front, behind), 1), out, rtol=1e-9, atol=1e-12)
    for field, wanted in zip(carried, state, strict=True):
        assert_close(field, wanted, rtol=1e-9, atol=1e-12)


@backends
@forms
def test_what_is_not_finite_reaches_no_later_token(name, backend):
    inputs = draw(1, 100)
    out = attend(name, *inputs, reverse=True, backend=backend)
    for place in range(4):
        wild = [x.clone() for x in inputs]
        wild[place][:, 30] = torch.nan
        wild = tuple(x.requires_grad_() for x in wild)
        found = attend(name, *wild, reverse=True, backend=backend)
        assert_close(found[:, 31:], out[:, 31:], rtol=1e-12, atol=1e-14)
        assert found[:, 30].isnan().all()
        for grad in torch.autograd.grad(found[:, 31:].sum(), wild):
            assert grad[:, 31:].isfinite().all()
            assert not grad[:, :31].any()


@pytest.mark.parametrize("backend", ["chunked", CPU])
@forms
def test_first_and_second_derivatives(name, backend):
    sizes = {"heads": 1, "width": 3, "value_width": 2}
    inputs = tuple(x.requires_grad_() for x in draw(1, 5, rate=1.0, **sizes))
    mask = torch.tensor([[True, True, False, True, True]])
    options: dict[str, Any] = {"mask": mask, "backend": backend, "reverse": True}

    def run(*tensors: Tensor) -> tuple[Tensor, ...]:
        out, state = attend(name, *tensors, return_state=True, **options)
        return out, *(field for field in state if field.requires_grad)

    assert gradcheck(run, inputs)
    assert gradgradcheck(run, inputs)


@pytest.mark.parametrize("function", [flow_attention, linear_attention])
def test_only_a_causal_call_reads_in_an_order(function):
    q, k, v, _ = draw(1, 5)
    with pytest.raises(ValueError, match="reverse=True needs causal=True"):
        function(q, k, v, reverse=True)


@pytest.mark.usefixtures("shape_checks_off")
class TestGraphs:
    @pytest.fixture(autouse=True)
    def _fresh_compiler(self):
        torch.compiler.reset()

    @pytest.mark.parametrize("backend", ["chunked", CPU])
    def test_compiles_to_one_graph(self, backend):
        model = Attention("linear-normalized", backend=backend, reverse=True)
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        inputs = tuple(x.requires_grad_() for x in draw(2, 70, dtype=torch.float32))
        mask = torch.rand(2, 70) < 0.7
        out, expected = compiled(*inputs, mask), model(*inputs, mask)
        assert_close(out, expected)
        for grad, wanted in zip(gradients(out, inputs), gradients(expected, inputs), strict=True):
            assert_close(grad, wanted, rtol=1e-4, atol=1e-5)

    def test_exports_a_program_for_any_length(self):
        model = Attention("linear-normalized", reverse=True)
        example = draw(2, 320, dtype=torch.float32)
        length = Dim("length", min=2, max=2_000)
        mask = torch.ones(2, 320, dtype=torch.bool)
        program = torch.export.export(model, (*example, mask), dynamic_shapes=({1: length},) * 5)
        inputs, mask = draw(2, 111, dtype=torch.float32), torch.rand(2, 111) < 0.7
        assert_close(program.module()(*inputs, mask), model(*inputs, mask))

    @pytest.mark.parametrize("name", ["causal", "linear"])
    def test_functional_transforms(self, name):
        inputs = draw(3, 9)

        def loss(*tensors: Tensor) -> Tensor:
            return attend(name, *(x[None] for x in tensors), reverse=True).square().sum()

        grads = torch.func.vmap(torch.func.grad(loss, argnums=3))(*inputs)
        for row in range(3):
            alone = tuple(x[row].clone().requires_grad_() for x in inputs)
            assert_close(grads[row], torch.autograd.grad(loss(*alone), alone[3:])[0])
