"""Heads-first tensors: said by ``layout="bhtd"`` to every public function, and told when unsaid."""

import inspect
import warnings
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from flowformer import (
    FlowMap,
    flow_attention,
    flow_attention_step,
    flow_map,
    linear_attention,
    mobile_attention,
    ops,
    short_convolution,
)
from flowformer.nn import mixers
from flowformer.nn.mixers.bigbird import bigbird_attention
from flowformer.nn.mixers.cosformer import cosformer_attention
from flowformer.nn.mixers.deltanet import delta_rule_attention
from flowformer.nn.mixers.linear import elu_attention
from flowformer.nn.mixers.linformer import linformer_attention
from flowformer.nn.mixers.local import local_attention
from flowformer.nn.mixers.longformer import longformer_attention
from flowformer.nn.mixers.nystromformer import nystromformer_attention
from flowformer.nn.mixers.performer import performer_attention
from flowformer.nn.mixers.recurrence import gated_linear_attention
from flowformer.nn.mixers.reformer import reformer_attention
from flowformer.nn.mixers.rfa import gated_rfa_attention, rfa_attention
from flowformer.nn.mixers.sinkhorn import sinkhorn_attention
from flowformer.nn.mixers.soft import soft_attention
from flowformer.nn.mixers.softmax import softmax_attention
from flowformer.nn.mixers.sparse import sparse_attention
from flowformer.nn.mixers.synthesizer import synthesizer_attention
from flowformer.nn.mixers.yoso import yoso_attention
from flowformer.ops.layout import Layout
from flowformer.ops.parallel import sequence_parallel_flow_attention
from tests.distributed_run import alone
from tests.ops.cases import BACKENDS, gradients, qkv

LENGTH, HEADS = 6, 4
mask = torch.arange(LENGTH) < torch.tensor([[LENGTH], [LENGTH - 2]])


def exchanged(x: Any) -> Any:
    """The first two axes after the batch, of a tensor, of an output beside its state, of a map."""
    if isinstance(x, FlowMap):
        return FlowMap(*map(exchanged, x))
    if isinstance(x, tuple):
        return (exchanged(x[0]), *x[1:])
    return x.transpose(1, 2)


def draw(*shape: int) -> Tensor:
    return torch.randn(2, *shape, dtype=torch.float64)


def of_tokens(width: int = 8) -> Tensor:
    return draw(LENGTH, HEADS, width)


q, k, v = qkv(2, LENGTH, heads=HEADS)
_, state = flow_attention(q, k, v, causal=True, return_state=True)
FEATURES = {"query": q.sigmoid(), "key": k.sigmoid(), "value": v}
QKV = {"query": q, "key": k, "value": v}
DIRECTIONS = {"directions": torch.randn(5, 8, dtype=torch.float64), "eps": 1e-6}
OF_HEADS = {
    "directions": torch.randn(HEADS, 5, 8, dtype=torch.float64),
    "scale": torch.ones(HEADS, 8, dtype=torch.float64),
    "eps": 0.1,
}
MIXING = torch.randn(LENGTH, 3, dtype=torch.float64)

# The tensors of each function that have a time and a head axis, and the rest of a call.
CALLS: dict[str, tuple[Any, dict[str, Tensor], dict[str, Any]]] = {
    "flow": (flow_attention, QKV, {"mask": mask}),
    "flow-causal": (flow_attention, QKV, {"causal": True, "return_state": True}),
    "flow-grouped": (flow_attention, {"query": q, "key": k[:, :, :2], "value": v[:, :, :2]}, {}),
    "flow-packed": (
        flow_attention,
        {name: x[:1] for name, x in QKV.items()},
        {"cu_seqlens": torch.tensor([0, 2, LENGTH]), "causal": True},
    ),
    "step": (flow_attention_step, {name: x[:, :1] for name, x in QKV.items()}, {"state": state}),
    "map": (flow_map, {"query": q, "key": k}, {"causal": True, "mask": mask}),
    "linear": (linear_attention, {**FEATURES, "row_scale": q[..., 0]}, {"causal": True}),
    "mobile": (mobile_attention, QKV, {"mask": mask}),
    "bigbird": (
        bigbird_attention,
        QKV,
        {"block": 2, "random_blocks": torch.zeros(2, HEADS, 3, 1, dtype=torch.int64)},
    ),
    "cosformer": (cosformer_attention, QKV, {"max_length": 9, "eps": 1e-6}),
    "delta": (
        delta_rule_attention,
        {"query": q, "key": k / 3, "value": v, "beta": q[..., 0].sigmoid()},
        {},
    ),
    "elu": (elu_attention, QKV, {"mask": mask}),
    "gla": (
        gated_linear_attention,
        {**QKV, "log_decay": -of_tokens().square()},
        {"mask": mask},
    ),
    "rfa": (rfa_attention, QKV, OF_HEADS),
    "rfa-gated": (gated_rfa_attention, {**QKV, "gate": q[..., 0]}, OF_HEADS),
    "linformer": (
        linformer_attention,
        QKV,
        {"key_mixing": MIXING, "value_mixing": MIXING},
    ),
    "local": (local_attention, QKV, {"window": 2, "blocked": False, "causal": True}),
    "longformer": (
        longformer_attention,
        {
            **QKV,
            "global_query": of_tokens(),
            "global_key": of_tokens(),
            "global_value": of_tokens(6),
        },
        {"window": 2, "global_tokens": 1},
    ),
    "nystromformer": (
        nystromformer_attention,
        QKV,
        {"num_landmarks": 3, "iterations": 2, "residual_kernel": None},
    ),
    "performer": (performer_attention, QKV, DIRECTIONS),
    "reformer": (
        reformer_attention,
        {"query": q, "value": v},
        {"rotations": torch.randn(HEADS, 8, 1, 2, dtype=torch.float64), "chunk": 2},
    ),
    "convolution": (
        short_convolution,
        {"x": q},
        {"weight": torch.ones(HEADS, 8, 3), "return_state": True},
    ),
    "sinkhorn": (
        sinkhorn_attention,
        QKV,
        {"block": 2, "temperature": 0.7, "iterations": 2},
    ),
    "soft": (
        soft_attention,
        {"query": q, "value": v},
        {"num_landmarks": 3, "iterations": 4, "ridge": 0.01},
    ),
    "softmax": (softmax_attention, QKV, {"causal": True, "return_state": True}),
    "sparse": (sparse_attention, QKV, {"stride": 2, "pattern": "strided", "summary": 1}),
    "synthesizer": (
        synthesizer_attention,
        {"value": v},
        {"scores": draw(HEADS, LENGTH, LENGTH)},
    ),
    "yoso": (yoso_attention, QKV, {"hash_bits": 4}),
}


@pytest.mark.parametrize(("function", "tensors", "rest"), CALLS.values(), ids=CALLS)
def test_every_function_takes_heads_first_and_returns_them(function, tensors, rest):
    expected = function(**tensors, **rest)
    turned = {name: exchanged(x).contiguous() for name, x in tensors.items()}
    found = function(**turned, **rest, layout="bhtd")
    assert_close(found, exchanged(expected))  # states and all
    assert_close(function(**tensors, **rest, layout="bthd"), expected, rtol=0, atol=0)
    with pytest.raises(ValueError, match="layout must be 'bthd' or 'bhtd', got 'bhdt'"):
        function(**tensors, **rest, layout="bhdt")


def test_no_public_attention_is_left_out():
    found = iter_modules(mixers.__path__, "flowformer.nn.mixers.")
    public = {
        function
        for module in (ops, *(import_module(each.name) for each in found))
        for function in vars(module).values()
        if inspect.isfunction(function) and "layout" in inspect.signature(function).parameters
    }
    assert {function for function, *_ in CALLS.values()} == public - {
        sequence_parallel_flow_attention
    }


class Copies(TorchDispatchMode):
    """How many tensors were copied."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        del types
        self.count += func in (torch.ops.aten.clone.default, torch.ops.aten.copy_.default)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("causal", [False, True])
def test_heads_first_costs_no_copy_and_has_the_same_gradients(causal, backend):
    inputs = [x.requires_grad_() for x in qkv(2, 70, heads=3)]
    turned = [exchanged(x.detach()).contiguous().requires_grad_() for x in inputs]
    copies = []
    options = {"causal": causal, "backend": backend}
    calls: list[tuple[list[Tensor], Layout]] = [(inputs, "bthd"), (turned, "bhtd")]
    for tensors, layout in calls:
        with Copies() as counted:
            flow_attention(*tensors, layout=layout, **options)
        copies.append(counted.count)
    assert copies[1] <= copies[0]
    out = flow_attention(*inputs, **options)
    heads_first = flow_attention(*turned, layout="bhtd", **options)
    assert_close(heads_first, exchanged(out))
    grads = [exchanged(grad) for grad in gradients(exchanged(heads_first), tuple(turned))]
    assert_close(grads, list(gradients(out, tuple(inputs))))


def test_a_sharded_sequence_takes_heads_first():
    with alone() as group:
        expected = sequence_parallel_flow_attention(q, k, v, mesh=group, causal=True)
        found = sequence_parallel_flow_attention(
            *map(exchanged, (q, k, v)), mesh=group, causal=True, layout="bhtd"
        )
    assert_close(found, exchanged(expected))


@pytest.mark.parametrize("function", [flow_attention, linear_attention], ids=["flow", "linear"])
@pytest.mark.parametrize(("heads", "tokens"), [(8, 128), (2, 33), (12, 512), (3, 16), (1, 200)])
def test_a_causal_call_of_heads_that_look_like_time_warns_once(function, heads, tokens):
    inputs = [torch.rand(1, heads, tokens, 2) for _ in range(3)]
    with pytest.warns(UserWarning, match=f"{heads} tokens of {tokens} .* pass layout='bhtd'"):
        function(*inputs, causal=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        function(*inputs, causal=True)


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((1, 1, 16, 2), {"causal": True}),  # a decoding step
        ((1, 5, 16, 2), {"causal": True}),  # a short prompt
        ((1, 16, 16, 2), {"causal": True}),
        ((1, 6, 16, 2), {"causal": True, "layout": "bthd"}),  # who says so means it
        ((1, 4, 16, 2), {"causal": True, "layout": "bhtd"}),
        ((1, 10, 16, 2), {}),  # few tokens that all see each other
    ],
)
def test_other_calls_do_not_warn(shape, options):
    inputs = [torch.rand(shape) for _ in range(3)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        flow_attention(*inputs, **options)


def test_a_bidirectional_call_warns_where_no_model_has_so_many_heads():
    inputs = [torch.rand(1, 10, 197, 2) for _ in range(3)]
    with pytest.warns(UserWarning, match="10 tokens of 197 heads"):
        mobile_attention(*inputs)


@pytest.mark.usefixtures("shape_checks_off")
def test_errors_name_the_layout():
    heads_first = [exchanged(x) for x in (q, k, v)]
    query, key, value = (x[:, :, :1] for x in heads_first)
    with pytest.raises(ValueError, match=r"one token, .* need layout='bhtd'"):
        flow_attention_step(query, key, value, state)
    grouped = [heads_first[0], *(x[:, :2] for x in heads_first[1:])]
    with pytest.raises(ValueError, match=r"L=4 and S=2.* need layout='bhtd'"):
        flow_attention(*grouped, causal=True)
    with pytest.raises(ValueError, match="query and key must have the same width") as caught:
        flow_attention(heads_first[0], heads_first[1][..., :4], heads_first[2], layout="bhtd")
    assert caught.value.__notes__ == ["layout='bhtd': shapes above have axes 1 and 2 exchanged"]


@pytest.mark.usefixtures("shape_checks_off")
def test_a_compiled_call_takes_heads_first_in_one_graph():
    torch.compiler.reset()
    compiled = torch.compile(flow_attention, fullgraph=True, backend="aot_eager")
    inputs = [exchanged(x) for x in (q, k, v)]
    out = compiled(*inputs, causal=True, layout="bhtd")
    assert_close(out, exchanged(flow_attention(q, k, v, causal=True)))
