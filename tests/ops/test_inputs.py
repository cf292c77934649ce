"""Tensors that are not plain numbers in memory are computed right, or refused by name."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from flowformer import (
    FlowState,
    flow_attention,
    flow_attention_step,
    linear_attention,
    mobile_attention,
)
from flowformer.ops.inputs import is_plain
from tests.ops.cases import BACKENDS, FORMS, gradients, needs_library, qkv

pytestmark = pytest.mark.usefixtures("shape_checks_off")

LENGTH = 5
q, k, v = qkv(2, LENGTH)
mask = torch.arange(LENGTH) < torch.tensor([[LENGTH], [3]])
row_scale = torch.rand(2, LENGTH, 2, dtype=torch.float64)
_, state = flow_attention(q, k, v, causal=True, return_state=True)
QKV = {"query": q, "key": k, "value": v}
LINEAR: dict[str, Any] = {
    "query": q.sigmoid(),
    "key": k.sigmoid(),
    "value": v,
    "row_scale": row_scale,
}

# Functions of all their tensors by name; those of the state are told apart by an underscore.
TENSORS = {
    "flow": QKV,
    "causal": {**QKV, **{f"_{name}": field for name, field in state._asdict().items()}},
    "step": {
        **{name: x[:, :1] for name, x in QKV.items()},
        **{f"_{name}": field for name, field in state._asdict().items()},
    },
    "linear": LINEAR,
    "linear-causal": LINEAR,
    "mobile": QKV,
}


def attend(name: str, tensors: dict[str, Tensor], **options) -> Tensor:
    fields = [x for field, x in tensors.items() if field.startswith("_")]
    given = {field: x for field, x in tensors.items() if not field.startswith("_")}
    if name == "mobile":
        return mobile_attention(**given, **options)
    if name.startswith("linear"):
        return linear_attention(**given, causal=name != "linear", **options)
    if name == "step":
        return flow_attention_step(**given, state=FlowState(*fields), **options)[0]
    if name == "flow":
        return flow_attention(**given, **options)
    return flow_attention(**given, initial_state=FlowState(*fields), causal=True, **options)


def zeros(x: Tensor) -> tuple[Tensor, Tensor]:
    return torch.ops.aten._efficientzerotensor(x.shape, dtype=x.dtype), torch.zeros_like(x)


def imaginary(x: Tensor) -> tuple[Tensor, Tensor]:
    pair = torch.complex(torch.zeros_like(x), x)
    return pair.conj().imag, -x


class Subclass(Tensor):
    pass


def expanded(x: Tensor) -> tuple[Tensor, Tensor]:
    first = x[:1].expand_as(x)
    return first, first.contiguous()


# A special tensor, and a plain one of the same numbers.
SPECIAL = {
    "negative-bit": lambda x: (torch.ops.aten._neg_view(-x), x),
    "imaginary-part-of-conjugate": imaginary,
    "zero-tensor": zeros,
    "subclass": lambda x: (x.as_subclass(Subclass), x),
    "parameter": lambda x: (torch.nn.Parameter(x, requires_grad=False), x),
    "stride-0": expanded,
}


@pytest.mark.parametrize("backend", [None, *BACKENDS])
@pytest.mark.parametrize("special", SPECIAL.values(), ids=SPECIAL)
@pytest.mark.parametrize(("name", "tensors"), TENSORS.items(), ids=TENSORS)
def test_a_special_tensor_counts_as_its_numbers_whichever_argument_it_is(
    name, tensors, special, backend
):
    for argument, x in tensors.items():
        if not x.is_floating_point() and special is imaginary:
            continue
        odd, plain = special(x)
        found = attend(name, {**tensors, argument: odd}, backend=backend)
        expected = attend(name, {**tensors, argument: plain}, backend="reference")
        assert_close(found.as_subclass(Tensor), expected, msg=f"{argument} is not read right")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("form", ["bidirectional", "heads", "causal", "causal-unclamped"])
@pytest.mark.filterwarnings("ignore:`torch.jit.trace` is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # of the checks of shapes
def test_a_trace_without_gradients_serves_any_length_and_gradients(form, backend):
    def call(query, key, value, mask):
        return flow_attention(query, key, value, mask=mask, backend=backend, **FORMS[form])

    with torch.no_grad():
        traced: Any = torch.jit.trace(call, (q, k, v, mask), check_trace=False)
    for length in (1, 70, 2100 if backend != "reference" else 130):  # more than a segment
        query, key, value = qkv(1, length, heads=1, width=2, value_width=1)
        inputs = query.requires_grad_(), key.requires_grad_(), value.requires_grad_()
        real = torch.arange(length)[None] != 2
        out, expected = traced(*inputs, real), call(*inputs, real)
        assert_close(out, expected)
        assert_close(gradients(out, inputs), gradients(expected, inputs))


@pytest.mark.filterwarnings("ignore:`torch.jit.trace` is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_a_trace_that_would_fix_packed_lengths_is_refused():
    offsets = torch.tensor([0, 2, LENGTH])
    with pytest.raises(NotImplementedError, match=r"lengths of packed sequences for constants"):
        torch.jit.trace(
            lambda x: flow_attention(x, x, x, cu_seqlens=offsets, backend="chunked"), q[:1]
        )


OF_OTHERS = {
    "mask": lambda x: flow_attention(q, k, v, mask=x, causal=True),
    "row-scale": lambda x: linear_attention(**{**LINEAR, "row_scale": x}, causal=True),
    "count": lambda x: flow_attention(q, k, v, causal=True, initial_state=state._replace(tokens=x)),
    "sum": lambda x: flow_attention_step(q[:, :1], k[:, :1], v[:, :1], state._replace(key_value=x))[
        0
    ],
}
OTHERS = {"mask": mask, "row-scale": row_scale, "count": state.tokens, "sum": state.key_value}


@pytest.mark.parametrize("name", OTHERS)
def test_vmap_over_one_of_the_other_tensors_alone(name):
    call, x = OF_OTHERS[name], OTHERS[name]
    batch = torch.stack([x, x.flip(0)])
    assert_close(torch.func.vmap(call)(batch), torch.stack([call(each) for each in batch]))


def test_vmap_over_offsets_is_refused():
    offsets = torch.tensor([[0, 2, LENGTH], [0, 3, LENGTH]])
    with pytest.raises(ValueError, match=r"cu_seqlens must be no tensor that torch\.func"):
        torch.func.vmap(lambda x: flow_attention(q[:1], k[:1], v[:1], cu_seqlens=x))(offsets)


# torch's own forward mode still scripts its decompositions
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")
@pytest.mark.parametrize("name", ["row-scale", "sum"])
def test_forward_mode_through_one_of_the_other_tensors_alone(name):
    call, x = OF_OTHERS[name], OTHERS[name]
    step = 1e-6 * torch.randn_like(x)
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(call(forward_ad.make_dual(x, step))).tangent
    assert_close(tangent, (call(x + step) - call(x - step)) / 2, rtol=1e-5, atol=1e-14)


@needs_library
@pytest.mark.parametrize("name", ["row-scale", "sum"])
def test_the_compiled_backend_refuses_them_by_name(name):
    def call(x: Tensor) -> Tensor:
        if name == "sum":
            before = state._replace(key_value=x)
            return flow_attention(q, k, v, causal=True, initial_state=before, backend="cpu")
        scaled: dict[str, Any] = {**LINEAR, "row_scale": x}
        return linear_attention(**scaled, causal=True, backend="cpu")

    with pytest.raises(RuntimeError, match="pass backend='chunked'"):
        torch.func.vmap(call)(OTHERS[name][None])


OTHER_MEMORY = {
    "nested": (lambda x: torch.nested.as_nested_tensor(list(x)), "must not be nested.*cu_seqlens"),
    "jagged": (
        lambda x: torch.nested.as_nested_tensor(list(x), layout=torch.jagged),
        "must not be nested.*cu_seqlens",
    ),
    "sparse": (lambda x: x.to_sparse(), "must be a dense tensor .*sparse_coo"),
}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
@pytest.mark.parametrize(("change", "message"), OTHER_MEMORY.values(), ids=OTHER_MEMORY)
@pytest.mark.parametrize("name", ["flow", "causal", "linear-causal", "mobile"])
def test_tensors_without_strides_are_refused_by_name(name, change, message):
    tensors = TENSORS[name]
    for argument, x in tensors.items():
        if x.ndim > 1:
            with pytest.raises(ValueError, match=message):
                attend(name, {**tensors, argument: change(x)})
    with pytest.raises(ValueError, match=message):
        attend(name, tensors, mask=change(mask))


class Seen(TorchDispatchMode):
    """The operators that it was told of."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(str(func))
        return func(*args, **(kwargs or {}))


@needs_library
def test_a_mode_sees_the_operator_and_a_fake_tensor_goes_through_it():
    with Seen() as seen:
        flow_attention(q, k, v, causal=True, backend="cpu")
    assert "flowformer.causal.default" in seen.names
    with FakeTensorMode() as mode:
        fake = [mode.from_tensor(x) for x in (q, k, v)]
        assert flow_attention(*fake, causal=True, backend="cpu").shape == v.shape


@needs_library
@pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])
def test_gradients_past_the_dispatcher_are_those_through_it(causal, monkeypatch):
    from flowformer.ops.backends.cpu.operators import OPERATORS

    given = [x.clone().requires_grad_() for x in (q, k, v)]

    def step():
        out = flow_attention(*given, causal=causal, backend="cpu")
        return out, *torch.autograd.grad(out.square().sum(), given)

    with Seen() as seen:
        expected = step()
    name = "flowformer.causal" if causal else "flowformer.bidirectional"
    assert {f"{name}.default", f"{name}_backward.default"} <= seen.names
    for operator in OPERATORS:
        monkeypatch.setattr(operator, "dispatched", None)
    for one, other in zip(step(), expected, strict=True):
        assert_close(one, other, rtol=0, atol=0)


def test_only_what_the_dispatcher_has_nothing_to_do_for_is_plain():
    assert is_plain(q, mask, None, torch.nn.Parameter(q), state.tokens, q.transpose(1, 2))
    odd = [
        torch.ops.aten._neg_view(q),
        zeros(q)[0],
        q.as_subclass(Subclass),
        q.to("meta"),
        q.to_sparse(),
    ]
    assert not any(is_plain(q, x) for x in odd)
    torch.func.vmap(lambda x: [x.sum(), is_plain(x) and pytest.fail("it is mapped over")][0])(q)
    with torch.inference_mode():
        assert is_plain(torch.ones(2), q)
    with forward_ad.dual_level():
        assert not is_plain(q)
    with Seen():
        assert not is_plain(q)


def test_memory_that_is_not_set_reaches_nothing():
    expected = flow_attention(q, k, v, causal=True)
    torch.use_deterministic_algorithms(True)  # fills it with NaN
    try:
        assert_close(flow_attention(q, k, v, causal=True), expected, rtol=0, atol=0)
    finally:
        torch.use_deterministic_algorithms(False)
