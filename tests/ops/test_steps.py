"""A step that was prepared is the step, and is used for nothing that only resembles its tensors."""

import copy
import pickle
from typing import Any

import pytest
import torch
from torch.autograd import forward_ad

from flowformer.ops import flow, flow_attention, flow_attention_step, linear, linear_attention
from flowformer.ops.state import FlowState, LinearState, empty_state, states_in_place
from tests.ops.cases import needs_library

pytestmark = needs_library


def token(d=5, m=6, heads=2, dtype=torch.float32):
    query, key = torch.rand(3, 1, 2, d, dtype=dtype), torch.rand(3, 1, heads, d, dtype=dtype)
    return query, key, torch.rand(3, 1, heads, m, dtype=dtype)


def flow_step(q, k, v, state, **options):
    return flow_attention_step(q, k, v, state, **options)


def flow_call(q, k, v, state, **options):
    return flow_attention(q, k, v, causal=True, initial_state=state, return_state=True, **options)


def linear_call(q, k, v, state, **options):
    return linear_attention(q, k, v, causal=True, initial_state=state, return_state=True, **options)


def decays(q):
    return torch.linspace(-2, 0, 6, dtype=q.dtype).view(3, 1, 2)


def forgetting_flow(q, k, v, state, **options):
    return flow_call(q, k, v, state, log_decay=decays(q), **options)


def unclamped_flow(q, k, v, state, **options):
    return flow_step(q, k, v, state, log_decay=decays(q), clamp=None, **options)


def forgetting_call(q, k, v, state, **options):
    return linear_call(q, k, v, state, log_decay=decays(q), **options)


def normalized_call(q, k, v, state, **options):
    return forgetting_call(q, k, v, state, normalize=True, **options)


CALLS = {
    "flow-step": flow_step,
    "flow": flow_call,
    "flow-decay": forgetting_flow,
    "flow-decay-unclamped": unclamped_flow,
    "linear": linear_call,
    "linear-decay": forgetting_call,
    "linear-decay-normalized": normalized_call,
}
every_call = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)


@pytest.fixture(autouse=True)
def _nothing_known(monkeypatch):
    monkeypatch.setattr(flow._STEPS, "_known", {})
    monkeypatch.setattr(linear._STEPS, "_known", {})


def first_state(call, d=5, m=6) -> Any:
    device = torch.device("cpu")
    if call in (forgetting_flow, unclamped_flow):
        return empty_state(True, 3, 2, d, m, device)
    kind = FlowState if call in (flow_step, flow_call) else LinearState
    return kind.initial(3, 2, d, m + (call is normalized_call), device)


def known():
    return sum(map(len, [*flow._STEPS._known.values(), *linear._STEPS._known.values()]))


@every_call
@pytest.mark.parametrize("in_place", [False, True], ids=["new", "in-place"])
@pytest.mark.parametrize(("d", "m", "dtype"), [(16, 16, torch.float32), (5, 6, torch.float64)])
def test_prepared_steps_are_those_of_another_backend(call, in_place, d, m, dtype):
    state = first_state(call, d, m)
    expected = first_state(call, d, m)
    for i in range(4):
        tensors = token(d, m, dtype=dtype)
        right, expected = call(*tensors, expected, backend="chunked")
        before, kept = state, [field.clone() for field in state]
        with torch.no_grad():
            if in_place:
                with states_in_place():
                    out, state = call(*tensors, state)
            else:
                out, state = call(*tensors, state)
        torch.testing.assert_close(out, right, rtol=1e-5, atol=1e-6)
        for ours, theirs in zip(state, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
        if in_place and i > 0:
            assert state.key_value.data_ptr() == before.key_value.data_ptr()
        elif not in_place:
            torch.testing.assert_close(list(before), kept, rtol=0, atol=0)
            assert not {field.data_ptr() for field in state} & {x.data_ptr() for x in before}
    assert known() == 1


@every_call
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")
def test_what_only_resembles_them_is_checked_and_served_anew(call):
    tensors, state = token(), first_state(call)
    with torch.no_grad():
        call(*tensors, state)
        expected, _ = call(*tensors, state)
    q, k, v = tensors

    leaf = q.clone().requires_grad_()
    call(leaf, k, v, state)[0].sum().backward()
    assert leaf.grad is not None
    mapped = torch.func.vmap(lambda x: call(x, k, v, state)[0])(torch.stack((q, 2 * q)))
    torch.testing.assert_close(mapped[0], expected)
    with forward_ad.dual_level():
        out, _ = call(forward_ad.make_dual(q, torch.ones_like(q)), k, v, state)
        assert forward_ad.unpack_dual(out).tangent is not None
    strided = torch.stack((q, q), -1)[..., 0]
    torch.testing.assert_close(call(strided, k, v, state)[0], expected)
    negative = torch.ops.aten._neg_view(-q)
    torch.testing.assert_close(call(negative, k, v, state)[0], expected)
    half = state._replace(key_value=state.key_value.float())
    with pytest.raises(TypeError, match=r"key_value of the state must be torch\.float64"):
        call(q, k, v, half)
    with pytest.raises(TypeError, match="state"):
        call(q, k, v, tuple(state))
    with pytest.raises(ValueError, match="key_value of the state must be"):
        call(q, k, v[..., :3], state)
    with pytest.raises(ValueError, match="dtype and device"):
        call(q.double(), k, v, state)


@torch.no_grad()
@pytest.mark.parametrize("clamp", [1.0, None], ids=["clamped", "unclamped"])
def test_flows_of_a_step_forget_all_exactly(clamp):
    """And a state without decays, whose count is one of all heads, goes on with them."""
    state = FlowState.initial(3, 2, 5, 6, torch.device("cpu"))
    tensors = out = token()
    for log_decay in (-0.5, -0.5, -300.0, -torch.inf):
        tensors, before = token(), state
        g = torch.full((3, 1, 2), log_decay)
        out, state = flow_step(*tensors, before, log_decay=g, clamp=clamp)
        right, _ = flow_step(*tensors, before, log_decay=g, clamp=clamp, backend="chunked")
        torch.testing.assert_close(out, right)
    assert known() == 1
    empty = empty_state(True, 3, 2, 5, 6, torch.device("cpu"))
    alone, fresh = flow_step(*tensors, empty, clamp=clamp, log_decay=torch.zeros(3, 1, 2))
    torch.testing.assert_close(out, alone, rtol=0, atol=0)
    torch.testing.assert_close(list(state), list(fresh), rtol=0, atol=0)


@torch.no_grad()
def test_a_prepared_step_looks_at_its_decays():
    tensors, state = token(), first_state(linear_call)
    q = tensors[0]
    _, state = forgetting_call(*tensors, state)
    plain = linear_call(*tensors, state)
    kept = state.key_value.clone()
    with states_in_place(), pytest.raises(ValueError, match=r"at most 0, got 0\.5"):
        linear_call(*tensors, state, log_decay=decays(q) + 0.5)
    torch.testing.assert_close(state.key_value, kept, rtol=0, atol=0)
    assert known() == 2
    expected, after = forgetting_call(*tensors, state)
    assert not torch.equal(expected, plain[0])
    spread = torch.stack((decays(q), decays(q)), 1)[:, 0]
    assert not spread.is_contiguous()
    for same in (spread, decays(q).double()):
        out, again = linear_call(*tensors, state, log_decay=same)
        torch.testing.assert_close(out, expected, rtol=0, atol=0)
        torch.testing.assert_close(again.key_value, after.key_value, rtol=0, atol=0)
    assert known() == 2  # those are read anew: the library takes pointers


def test_an_option_that_is_none_is_refused_after_a_step_was_prepared():
    tensors, state = token(), first_state(flow_step)
    with torch.no_grad():
        for _ in range(2):
            flow_step(*tensors, state, clamp=1.0)
        with pytest.raises(ValueError, match="clamp must be positive"):
            flow_step(*tensors, state, clamp=[1.0])
        with pytest.raises(ValueError, match="clamp must be positive"):
            flow_step(*tensors, state, clamp=-1.0)
        two, one = (flow_step(*tensors, state, clamp=c, eps=1e-6)[1] for c in (2.0, 1.0))
    assert (two.competition > one.competition).all()


@torch.no_grad()
def test_heads_that_are_shared_and_no_competition_are_steps_too():
    tensors, state = token(heads=1), first_state(flow_step)
    for options in ({}, {"competition": None, "clamp": None}):
        for _ in range(2):
            out, after = flow_step(*tensors, state, **options)
            right, expected = flow_step(*tensors, state, backend="chunked", **options)
            torch.testing.assert_close(out, right)
            torch.testing.assert_close(list(after), list(expected))


def test_a_gradient_that_needs_the_state_is_told_that_it_was_given_up():
    tensors, state = token(), first_state(flow_step)
    with torch.no_grad():
        _, state = flow_step(*tensors, state)
        flow_step(*tensors, state)
    leaf = tensors[0].clone().requires_grad_()
    with states_in_place():
        out, after = flow_step(leaf, *tensors[1:], state)  # a new one, for the gradient
        assert after.key_value.data_ptr() != state.key_value.data_ptr()
        with torch.no_grad():
            flow_step(*tensors, state)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


@every_call
@pytest.mark.parametrize("backend", [None, "chunked"])
def test_a_state_that_was_given_up_is_refused_and_its_earlier_copy_is_not(call, backend):
    tensors, state = token(), first_state(call)
    with torch.no_grad():
        for _ in range(2):  # the second one is prepared
            with states_in_place():
                _, state = call(*tensors, state)
        before = copy.deepcopy(state)
        with states_in_place():
            out, after = call(*tensors, state)
        for old in (state, copy.deepcopy(state), pickle.loads(pickle.dumps(state))):
            with pytest.raises(RuntimeError, match="the state was given up"):
                call(*tensors, old, backend=backend)
            with states_in_place(), pytest.raises(RuntimeError, match="the state was given up"):
                call(*tensors, old, backend=backend)
        again, right = call(*tensors, before, backend=backend)
    torch.testing.assert_close(again, out)
    torch.testing.assert_close(list(after), list(right))


def test_only_so_many_steps_are_kept(monkeypatch):
    monkeypatch.setattr("flowformer.ops.steps._MOST", 3)
    with torch.no_grad():
        for d in range(1, 9):
            flow_step(*token(d), first_state(flow_step, d))
            assert 1 <= known() <= 3
