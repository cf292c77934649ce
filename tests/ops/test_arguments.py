"""Options do what they say, and bad arguments get a message that says what was expected."""

import logging
from inspect import Parameter, signature
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from flowformer import (
    FlowState,
    LinearState,
    flow_attention,
    flow_attention_step,
    flow_map,
    linear_attention,
    mobile_attention,
)
from flowformer.nn.mixers.cosformer import cosformer_attention
from flowformer.nn.mixers.flow import FlowAttention, FlowHeadsAttention
from flowformer.nn.mixers.linear import elu_attention
from flowformer.nn.mixers.performer import performer_attention
from flowformer.nn.mixers.rfa import gated_rfa_attention, rfa_attention
from flowformer.ops import backends
from flowformer.ops.options import DEFAULTS, FlowKeywords, FlowOptions
from flowformer.ops.parallel import sequence_parallel_flow_attention
from tests.ops.cases import BACKENDS, CAUSAL, FORMS, needs_library, qkv

# jaxtyping would refuse some of these first, with its own words; a user runs without it.
pytestmark = pytest.mark.usefixtures("shape_checks_off")

q, k, v = qkv(2, 6)
mask = torch.ones(2, 6, dtype=torch.bool)
state = FlowState.initial(2, 2, 8, 6, torch.device("cpu"))

BAD_CALLS = {
    "three-dimensions": (
        (q[0], k, v),
        {},
        r"query must be \[batch, time, head, feature\].*6, 2, 8",
    ),
    "no-token": (
        (q, k[:, :0], v[:, :0]),
        {},
        r"key must be .* at least 1, got shape \[2, 0, 2, 8\]",
    ),
    "integers": ((q.int(), k.int(), v.int()), {}, "query must be a floating-point.*int32"),
    "dtypes": ((q, k.float(), v), {}, "must share dtype and device.*float64.*key.*float32"),
    "batches": ((q, k[:1], v[:1]), {}, "same batch size, got 2, 1 and 1"),
    "widths": ((q, k[..., :4], v), {}, "query and key must have the same width, got 8 and 4"),
    "sources": ((q, k, v[:, :3]), {}, r"same time and heads, got \[6, 2\] and \[3, 2\]"),
    "heads": (
        (q, k.repeat(1, 1, 2, 1), v.repeat(1, 1, 2, 1)),
        {},
        "multiple of the key's.*2 and 4",
    ),
    "feature-map": ((q, k, v), {"feature_map": "elu"}, "'sigmoid' or 'relu', got 'elu'"),
    "competition": ((q, k, v), {"competition": "sinks"}, "'sources', 'heads' or None, got 'sinks'"),
    "clamp": ((q, k, v), {"clamp": -1.0}, "clamp must be positive or None, got -1"),
    "eps": ((q, k, v), {"eps": 0.0}, "eps must be positive, got 0"),
    "eps-nan": ((q, k, v), {"eps": float("nan")}, "eps must be positive, got nan"),
    "eps-text": ((q, k, v), {"eps": "1e-6"}, "eps must be positive, got '1e-6'"),
    "independent-sinks": (
        (q, k, v),
        {"independent_sinks": "yes"},
        "independent_sinks must be True or False, got 'yes'",
    ),
    "independent-heads": (
        (q, k, v),
        {"independent_sinks": True, "competition": "heads"},
        "leaves out the competition, which competition='heads' asks for",
    ),
    "both-masks": ((q, k, v), {"mask": mask, "key_mask": mask}, "not both kinds"),
    "causal-masks": ((q, k, v), {"causal": True, "key_mask": mask}, "pass mask="),
    "mask-shape": ((q, k, v), {"mask": mask[:, :4]}, r"= \[2, 6\] on cpu, got \[2, 4\]"),
    "allocation": ((q, k, v), {"allocation": "softmax"}, "True or False, got 'softmax'"),
    "mask-device": ((q, k, v), {"mask": mask.to("meta")}, "on cpu, got .* on meta"),
    "causal-cross": (
        (q, k[:, :4], v[:, :4]),
        {"causal": True},
        "L=6 and S=4.*initial_state.*use causal=False and independent_sinks=True.*all queries",
    ),
    "causal-heads": ((q, k, v), {"causal": True, "competition": "heads"}, "no causal form"),
    "state-not-causal": ((q, k, v), {"return_state": True}, "pass causal=True"),
    "initial-not-causal": ((q, k, v), {"initial_state": state}, "pass causal=True"),
    "state-shape": (
        (q[:1], k[:1], v[:1]),
        {"causal": True, "initial_state": state},
        r"tokens of the state must be \[1\] on cpu, got \[2\]",
    ),
    "state-device": (
        (q, k, v),
        {"causal": True, "initial_state": state.to("meta")},
        r"tokens of the state must be \[2\] on cpu, got \[2\] on meta",
    ),
    "packed-batch": (
        (q, k, v),
        {"cu_seqlens": torch.tensor([0, 6])},
        "packed sequences have batch",
    ),
    "packed-end": (
        (q[:1], k[:1], v[:1]),
        {"cu_seqlens": torch.tensor([0, 5])},
        "number of tokens, 6",
    ),
    "packed-order": (
        (q[:1], k[:1], v[:1]),
        {"cu_seqlens": torch.tensor([0, 4, 2, 6])},
        "must rise",
    ),
    "packed-shape": (
        (q[:1], k[:1], v[:1]),
        {"cu_seqlens": torch.tensor([6])},
        "one row of offsets",
    ),
    "packed-one-number": (
        (q[:1], k[:1], v[:1]),
        {"causal": True, "cu_seqlens": torch.tensor(6)},
        r"one row of offsets, \[sequences \+ 1\], got \[\]",
    ),
    "packed-mask": (
        (q[:1], k[:1], v[:1]),
        {"cu_seqlens": torch.tensor([0, 6]), "mask": mask[:1]},
        "no padding",
    ),
    "packed-keys-alone": ((q, k, v), {"cu_seqlens_k": torch.tensor([0, 6])}, "needs cu_seqlens"),
    "packed-count": (
        (q[:1], k[:1], v[:1]),
        {"cu_seqlens": torch.tensor([0, 6]), "cu_seqlens_k": torch.tensor([0, 3, 6])},
        "as many sequences, got 1 and 2",
    ),
    "packed-without-values": (
        (q[:1], k[:1], v[:1]),
        {"cu_seqlens": torch.tensor([0, 6], device="meta")},
        "cu_seqlens must hold values.*got a tensor on meta",
    ),
    "packed-causal-keys": (
        (q[:1], k[:1], v[:1]),
        {"cu_seqlens": torch.tensor([0, 6]), "cu_seqlens_k": torch.tensor([0, 6]), "causal": True},
        "got cu_seqlens_k",
    ),
    "backend": ((q, k, v), {"backend": "cuda"}, "unknown backend 'cuda': choose one of reference"),
}


@pytest.mark.parametrize(("inputs", "options", "message"), BAD_CALLS.values(), ids=BAD_CALLS)
def test_bad_arguments(inputs, options, message):
    with pytest.raises(ValueError, match=message):
        flow_attention(*inputs, **options)


@pytest.mark.parametrize("function", [flow_attention, linear_attention, mobile_attention])
def test_what_is_no_tensor_is_told(function):
    for inputs, message in (
        ((q.numpy(), k, v), "^query must be a tensor, got ndarray"),
        ((q, k.tolist(), v), "^key must be a tensor, got list"),
    ):
        with pytest.raises(TypeError, match=message):
            function(*inputs)


@pytest.mark.parametrize("causal", ["yes", 1, None])
def test_causal_is_true_or_false(causal):
    for function in (flow_attention, linear_attention):
        with pytest.raises(ValueError, match=f"causal must be True or False, got {causal!r}"):
            function(q, k, v, causal=causal)


def _keywords(function: Any) -> dict[str, Parameter]:
    parameters = signature(function).parameters
    return {name: each for name, each in parameters.items() if name in DEFAULTS}


def test_the_options_and_their_defaults_are_the_same_everywhere():
    assert [*FlowKeywords.__annotations__] == [*FlowOptions._fields, "independent_sinks"]
    for function in (
        flow_attention,
        flow_attention_step,
        flow_map,
        sequence_parallel_flow_attention,
        FlowAttention,
    ):
        found = _keywords(function)
        assert {name: each.default for name, each in found.items()} == DEFAULTS
        assert {name: each.annotation for name, each in found.items()} == (
            FlowKeywords.__annotations__
        )
        assert {each.kind for each in found.values()} == {Parameter.KEYWORD_ONLY}


def test_a_misspelt_option_is_told_its_name():
    calls: list[Any] = [
        lambda **options: flow_attention_step(q[:, :1], k[:, :1], v[:, :1], None, **options),
        lambda **options: flow_map(q, k, **options),
        FlowAttention,
    ]
    for call in calls:
        with pytest.raises(TypeError, match=r"'alocation' \(did you mean allocation\?\): the opt"):
            call(alocation=False)
        with pytest.raises(TypeError, match="'window': the options of Flow-Attention are feature_"):
            call(window=3)


def test_a_variant_takes_no_option_that_it_fixes():
    assert set(_keywords(FlowHeadsAttention)) == {"eps"}
    with pytest.raises(TypeError, match="FlowHeadsAttention fixes clamp, competition: leave it"):
        FlowHeadsAttention(clamp=2.0, competition=None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask": mask.float()}, "must be boolean, True = a real token, got torch.float32"),
        ({"cu_seqlens": torch.tensor([0.0, 6.0])}, "int32 or int64, got torch.float32"),
        ({"cu_seqlens": [0, 6]}, r"cu_seqlens must be a tensor.*torch\.tensor.*got list"),
        (
            {"causal": True, "initial_state": LinearState(state.key_value)},
            "must be a FlowState, got LinearState",
        ),
        (
            {"causal": True, "initial_state": state._replace(tokens=state.tokens.float())},
            "tokens of the state must be torch.int64, .* got torch.float32",
        ),
        (
            {"causal": True, "initial_state": state._replace(key_sum=state.key_sum.half())},
            "key_sum of the state must be torch.float64, .* got torch.float16",
        ),
    ],
    ids=["mask", "offsets", "list", "state", "float-count", "half-sum"],
)
def test_arguments_of_another_type(options, message):
    with pytest.raises(TypeError, match=message):
        flow_attention(*(x[:1] if "cu_seqlens" in options else x for x in (q, k, v)), **options)


def test_a_missing_backend_says_why(monkeypatch):
    missing = backends.Backend(module=backends.cpu, unavailable=lambda: "no compiler")
    for name in ("cpu", "triton"):
        monkeypatch.setitem(backends.BACKENDS, name, missing)
        with pytest.raises(RuntimeError, match=f"{name} backend unavailable: "):
            flow_attention(q, k, v, backend=name)
        assert backends.available_backends()[name]


def _choices(caplog):
    backends._fastest.cache_clear()
    with caplog.at_level(logging.INFO, logger="flowformer"):
        for _ in range(3):
            flow_attention(q, k, v)
    backends._fastest.cache_clear()
    return [record.getMessage() for record in caplog.records]


@needs_library
def test_the_choice_of_a_backend_is_logged_once(caplog):
    assert _choices(caplog) == ["flow_attention uses the cpu backend on cpu tensors"]


def test_without_the_library_another_backend_serves_and_the_log_says_why(caplog, monkeypatch):
    missing = backends.Backend(module=backends.cpu, unavailable=lambda: "no compiler")
    monkeypatch.setitem(backends.BACKENDS, "cpu", missing)
    assert _choices(caplog) == [
        "flow_attention uses the chunked backend on cpu tensors (cpu backend unavailable: "
        "no compiler)"
    ]


def test_a_step_takes_one_token():
    with pytest.raises(ValueError, match="one token, got L=6 and S=6"):
        flow_attention_step(q, k, v, state)


def test_row_scale_has_the_shape_of_the_queries():
    with pytest.raises(ValueError, match=r"= \[2, 6, 2\], got \[2, 6\]"):
        linear_attention(q, k, v, row_scale=torch.ones(2, 6))


def test_mobile_attention_has_no_cross_attention():
    with pytest.raises(ValueError, match="as many queries as keys, got L=6 and S=4"):
        mobile_attention(q, k[:, :4], v[:, :4])


def test_mobile_attention_grows_with_the_length_unless_normalized():
    sums = [mobile_attention(*qkv(1, length)).abs().mean().item() for length in (64, 1024)]
    assert sums[1] > 2 * sums[0]
    q, k, v = qkv(1, 64)
    for competition in (True, False):
        out = mobile_attention(q, k, v, competition=competition)
        normalized = mobile_attention(q, k, v, competition=competition, normalize=True)
        assert_close(normalized * 64, out)


@pytest.mark.parametrize("options", FORMS.values(), ids=FORMS)
def test_backends_agree_on_every_option(options):
    inputs = qkv(2, 200)
    out = flow_attention(*inputs, backend="reference", **options)
    for backend in (None, "chunked"):
        assert_close(flow_attention(*inputs, backend=backend, **options), out)


def test_the_ablations_take_away_one_factor_each():
    plain = flow_attention(q, k, v, competition=None, allocation=False)
    features = torch.einsum("blhd,bshd->bhls", q.sigmoid() + 1e-6, k.sigmoid() + 1e-6)
    weights = features / features.sum(-1, keepdim=True)
    assert_close(plain, torch.einsum("bhls,bshm->blhm", weights, v), rtol=1e-4, atol=1e-5)
    allocated = flow_attention(q, k, v, competition=None)
    assert_close(allocated, plain * flow_map(q, k).sink_allocation[..., None])


@pytest.mark.parametrize("backend", BACKENDS)
def test_independent_sinks_know_their_own_query_and_the_context_alone(backend):
    query, key, value = qkv(2, 5, sources=9)
    key_mask = torch.rand(2, 9) < 0.8
    offsets = {"cu_seqlens": torch.tensor([0, 2, 5]), "cu_seqlens_k": torch.tensor([0, 8, 9])}
    options = {"independent_sinks": True, "backend": backend}
    # Alone, with the formula of docs/attention/math.md, and beside queries that are not finite.
    features = query.sigmoid(), key.sigmoid() * key_mask[..., None, None]
    incoming = ((features[0] + 1e-6) * (features[1].sum(1, keepdim=True) + 1e-6)).sum(-1)
    weights = torch.einsum("blhd,bshd->blsh", *features) / incoming[:, :, None]
    expected = torch.einsum("blsh,bshm->blhm", weights, value)
    for other in (torch.nan, torch.inf, -torch.inf, 1e30):
        for alone in range(5):
            wild = torch.full_like(query, other)
            wild[:, alone] = query[:, alone]
            out = flow_attention(wild, key, value, key_mask=key_mask, **options)
            assert_close(out[:, alone], expected[:, alone])
            packed = flow_attention(wild[:1], key[:1], value[:1], **offsets, **options)
            seen = slice(0, 8) if alone < 2 else slice(8, 9)
            own = flow_attention(query[:1, [alone]], key[:1, seen], value[:1, seen], **options)
            assert_close(packed[:, [alone]], own)


@pytest.mark.parametrize("backend", BACKENDS)
def test_independent_sinks_are_both_ablations_in_every_form(backend):
    ablations: dict[str, Any] = {"competition": None, "allocation": False}
    independent: dict[str, Any] = {"independent_sinks": True}
    for options in ({}, {"causal": True, "return_state": True}, {"mask": mask}):
        found, expected = (
            flow_attention(q, k, v, backend=backend, **options, **each)
            for each in (independent, ablations)
        )
        assert_close(found, expected, rtol=0, atol=0)
    step, _ = flow_attention_step(
        q[:, :1], k[:, :1], v[:, :1], state, backend=backend, **independent
    )
    # One token without flows: its value, whatever query and key are.
    assert_close(step, v[:, :1], rtol=1e-4, atol=1e-4)
    assert all((x == 1).all() for x in flow_map(q, k, **independent))


EPS = {
    "flow": lambda eps: flow_attention(q, k, v, eps=eps),
    "step": lambda eps: flow_attention_step(q[:, :1], k[:, :1], v[:, :1], None, eps=eps),
    "map": lambda eps: flow_map(q, k, eps=eps),
    "mobile": lambda eps: mobile_attention(q, k, v, eps=eps),
    "elu": lambda eps: elu_attention(q, k, v, eps=eps),
    "performer": lambda eps: performer_attention(q, k, v, directions=q[0, 0], eps=eps),
    "cosformer": lambda eps: cosformer_attention(q, k, v, max_length=9, eps=eps),
    "rfa": lambda eps: rfa_attention(q, k, v, directions=q[0, :2, :, :], scale=q[0, 0], eps=eps),
    "rfa-gated": lambda eps: gated_rfa_attention(
        q, k, v, gate=q[..., 0], directions=q[0, :2, :, :], scale=q[0, 0], eps=eps
    ),
}


@pytest.mark.parametrize("eps", [float("inf"), 1e-60, 1e60, float("nan"), -1.0, None, True])
@pytest.mark.parametrize("attend", EPS.values(), ids=EPS)
def test_an_eps_that_float32_does_not_hold_is_refused(attend, eps):
    with pytest.raises(ValueError, match="eps must "):
        attend(eps)


@pytest.mark.parametrize("options", [FORMS["bidirectional"], *CAUSAL.values()])
def test_the_flow_map_is_what_the_attention_uses(options):
    options = {**options, "mask": torch.tensor([[True] * 6, [True] * 4 + [False] * 2])}
    competition, allocation = flow_map(q, k, **options)
    unweighed = {**options, "competition": None, "allocation": False}
    out = flow_attention(q, k, v * competition[..., None], **unweighed)
    assert_close(out * allocation[..., None], flow_attention(q, k, v, **options))
    assert (competition[1, 4:] == 0).all()
    assert (allocation[1, 4:] == 0).all()
