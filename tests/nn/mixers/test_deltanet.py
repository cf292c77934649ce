"""The delta rule, with decays too, against its recurrence and flash-linear-attention's."""

import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flowformer.nn import MIXERS, build_mixer
from flowformer.nn.mixers import convolution, deltanet
from flowformer.nn.mixers.deltanet import (
    DeltaNetAttention,
    GatedDeltaNetAttention,
    delta_rule_attention,
    unit,
)
from flowformer.nn.mixers.gating import repeated
from flowformer.nn.mixers.recurrence import fla_kernel
from flowformer.ops.convolution import short_convolutions


def draw(length: int, *, kv_heads: int = 4) -> list[Tensor]:
    q = torch.randn(2, length, 4, 8, dtype=torch.float64)
    k = F.normalize(torch.randn(2, length, kv_heads, 8, dtype=torch.float64), dim=-1)
    v = torch.randn(2, length, kv_heads, 5, dtype=torch.float64)
    beta = torch.rand(2, length, 4, dtype=torch.float64)
    return [q, k, v, beta]


def recurrence(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    k, v = (x.repeat_interleave(q.shape[2] // x.shape[2], 2) for x in (k, v))
    state = q.new_zeros(q.shape[0], q.shape[2], q.shape[3], v.shape[3])
    outputs = []
    for t in range(q.shape[1]):
        if log_decay is not None:
            state = state * log_decay[:, t].exp()[..., None, None]
        error = v[:, t] - torch.einsum("bhd,bhdm->bhm", k[:, t], state)
        correction = beta[:, t, :, None] * error
        state = state + k[:, t, :, :, None] * correction[:, :, None, :]
        outputs.append(torch.einsum("bhd,bhdm->bhm", q[:, t], state))
    return torch.stack(outputs, 1), state


def draw_decays(length: int, strength: float = 1.0) -> Tensor:
    return -strength * torch.rand(2, length, 4, dtype=torch.float64)


@pytest.mark.parametrize("decays", [False, True], ids=["keeps", "decays"])
@pytest.mark.parametrize("kv_heads", [4, 2], ids="{}-key-heads".format)
@pytest.mark.parametrize("length", [1, 20, 63, 130], ids="t{}".format)
def test_is_the_recurrence(length: int, kv_heads: int, decays: bool) -> None:
    q, k, v, beta = draw(length, kv_heads=kv_heads)
    log_decay = draw_decays(length) if decays else None
    out, state = delta_rule_attention(q, k, v, beta=beta, log_decay=log_decay)
    expected, last = recurrence(q, k, v, beta, log_decay)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(state.key_value, last)


def test_a_strong_decay_stays_in_range() -> None:
    """Sums of log α to -25,000: exp of either sign alone would be 0 or infinite."""
    q, k, v, beta = draw(130)
    log_decay = draw_decays(130, 400.0)
    out, state = delta_rule_attention(q, k, v, beta=beta, log_decay=log_decay)
    expected, last = recurrence(q, k, v, beta, log_decay)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(state.key_value, last)


def test_a_full_correction_stores_the_value() -> None:
    """With β = 1 and |k| = 1 the memory answers the last key with its value."""
    _, k, v, beta = draw(40)
    out, _ = delta_rule_attention(k, k, v, beta=torch.ones_like(beta))
    torch.testing.assert_close(out, v)


def test_gradients_are_those_of_finite_differences() -> None:
    q, k, v, beta = (x[:1, :5, :2].requires_grad_() for x in draw(5))
    log_decay = draw_decays(5)[:1, :, :2].requires_grad_()
    mask = torch.tensor([[True, False, True, True, True]])

    def attend(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor) -> Tensor:
        return delta_rule_attention(q, k, v, beta=beta, log_decay=log_decay, mask=mask)[0]

    assert torch.autograd.gradcheck(attend, (q, k, v, beta, log_decay))


def test_padded_tokens_leave_the_state_whatever_stands_there() -> None:
    q, k, v, beta = draw(7)
    mask = torch.tensor([[True, True, False, True, False, True, True]]).expand(2, 7)
    real = mask[0].nonzero()[:, 0]
    expected, last = recurrence(q[:, real], k[:, real], v[:, real], beta[:, real])
    for x in (q, k, v, beta):
        x[:, ~mask[0]] = torch.nan
    out, state = delta_rule_attention(q, k, v, beta=beta, mask=mask)
    torch.testing.assert_close(out[:, real], expected)
    torch.testing.assert_close(state.key_value, last)
    assert not out[:, ~mask[0]].any()


@pytest.mark.usefixtures("shape_checks_off")
def test_a_beta_of_another_shape_is_refused() -> None:
    q, k, v, beta = draw(3)
    with pytest.raises(ValueError, match=r"^beta .* = \[2, 3, 4\], got \[2, 3, 2\]"):
        delta_rule_attention(q, k, v, beta=beta[..., :2])
    with pytest.raises(ValueError, match=r"^log_decay .* = \[2, 3, 4\], got \[2, 3, 2\]"):
        delta_rule_attention(q, k, v, beta=beta, log_decay=-beta[..., :2])


def test_the_layer_is_the_papers() -> None:
    """Token by token from the mixer's weights: convolution, delta rule, normalisation."""
    mixer, x = build_mixer("deltanet", 12, 3).double(), torch.randn(1, 20, 12, dtype=torch.float64)
    assert isinstance(mixer.attention, DeltaNetAttention)
    attention: Any = mixer.attention

    def convolved(projection: nn.Linear, weight: Tensor) -> Tensor:
        channels = F.pad(projection(x[0]).T, (3, 0))[None]
        return F.silu(F.conv1d(channels, weight.reshape(12, 1, 4), groups=12))[0].T.view(20, 3, 4)

    projections = (mixer.query_projection, mixer.key_projection, mixer.value_projection)
    q, k, v = (
        convolved(projection, weight)
        for projection, weight in zip(projections, attention.convolution, strict=True)
    )
    q, k = (each / (each.square().sum(-1, keepdim=True) + 1e-6).sqrt() for each in (q, k))
    beta = torch.sigmoid(attention.strength(x[0]))[..., None]
    state, outputs = torch.zeros(3, 4, 4, dtype=torch.float64), []
    for t in range(20):
        error = v[t] - torch.einsum("hd,hdm->hm", k[t], state)
        state = state + k[t][:, :, None] * (beta[t] * error)[:, None, :]
        out = torch.einsum("hd,hdm->hm", q[t] / 2, state)
        out = out / (out.square().mean(-1, keepdim=True) + 1e-5).sqrt() * attention.norm.weight
        outputs.append(mixer.out_projection(out.flatten()))
    torch.testing.assert_close(mixer(x, causal=True)[0][0], torch.stack(outputs))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_unit_lengths_round_once(dtype: torch.dtype) -> None:
    x = torch.randn(2, 50, 3, 24).to(dtype)
    exact = unit(x.double(), 0.3)
    rounding = (exact.to(dtype).double() - exact).abs().max()
    assert (unit(x, 0.3).double() - exact).abs().max() <= 1.01 * rounding


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_gradients_of_grouped_heads_are_summed_in_float32(dtype: torch.dtype) -> None:
    query, key = torch.randn(2, 9, 16, 5).to(dtype), torch.randn(2, 9, 2, 5).to(dtype)
    key.requires_grad_()
    above = torch.randn(2, 9, 16, 5).to(dtype)
    (grad,) = torch.autograd.grad(repeated(query, key)[0], key, above)
    exact = above.double().unflatten(2, (2, 8)).sum(3)
    rounding = (exact.to(dtype).double() - exact).abs().max()
    assert (grad.double() - exact).abs().max() <= 1.01 * rounding


def test_a_convolution_of_one_token_sees_that_token_only() -> None:
    mixer, x = build_mixer("deltanet", 12, 3, convolution=1), torch.randn(1, 5, 12)
    _, state = mixer(x, causal=True, return_state=True)
    assert state.key.shape == (1, 0, 3, 4)
    with pytest.raises(ValueError, match="convolution must be a whole number, 0 for none, got -1"):
        build_mixer("deltanet", 12, 3, convolution=-1)


def test_the_gated_layer_is_the_papers() -> None:
    """DeltaNet's, with a decay before the correction and a gate after the norm; every part acts."""
    mixer = build_mixer("gated-deltanet", 12, 3).double()
    x = torch.randn(1, 20, 12, dtype=torch.float64)
    assert isinstance(mixer.attention, GatedDeltaNetAttention)
    attention: Any = mixer.attention
    plain = build_mixer("deltanet", 12, 3, norm=False).double()
    plain.load_state_dict(mixer.state_dict(), strict=False)
    tensors = plain._tensors(x, x)
    (q, k, v), _ = short_convolutions(tensors[:3], attention.convolution, activation="silu")
    decay = attention.decay
    rate = F.softplus(decay.projection(x)) * decay.log_scale.exp()
    beta = torch.sigmoid(attention.strength(x))
    expected, _ = recurrence(unit(q) / 2, unit(k), v, beta, -rate)
    expected = expected / (expected.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    gate = F.silu(attention.output_gate(x)).unflatten(-1, (3, 4))
    expected = mixer.out_projection((expected * attention.norm.weight * gate).flatten(2))
    torch.testing.assert_close(mixer(x, causal=True)[0], expected)
    rates = decay.log_scale.exp()
    assert ((rates >= 1) & (rates <= 16)).all()
    steps = F.softplus(decay.projection.bias)
    assert ((steps > 0.0009) & (steps < 0.11)).all()


@pytest.mark.parametrize("name", ["deltanet", "gated-deltanet", "gla"])
def test_parts_can_be_left_out_one_by_one(name: str) -> None:
    x = torch.randn(2, 9, 12)
    for part in ({"convolution": 0}, {"convolution": 3}, {"norm": False}, {"output_gate": False}):
        torch.manual_seed(0)
        mixer = build_mixer(name, 12, 3, **part)
        names = {key.split(".")[1] for key in mixer.state_dict() if key.startswith("attention.")}
        kind: Any = MIXERS[name].kind
        chosen = {**kind.published._asdict(), **part}
        assert {each for each in chosen if chosen[each]} == names & chosen.keys()
        whole, _ = mixer(x, causal=True)
        first, state = mixer(x[:, :5], causal=True, return_state=True)
        second, _ = mixer(x[:, 5:], causal=True, state=state)
        torch.testing.assert_close(torch.cat((first, second), 1), whole, rtol=1e-4, atol=1e-5)


def test_a_state_saved_under_its_former_name_loads() -> None:
    mixer, x = build_mixer("deltanet", 12, 3), torch.randn(1, 5, 12)
    _, state = mixer(x, causal=True, return_state=True)
    file = io.BytesIO()
    torch.save(state, file, _use_new_zipfile_serialization=False)  # a plain pickle
    now, former = (
        f"c{module}\n{name}\n".encode()
        for module, name in (
            (convolution.__name__, "ConvolvedState"),
            (deltanet.__name__, "DeltaNetState"),
        )
    )
    assert now in file.getvalue()
    loaded = torch.load(io.BytesIO(file.getvalue().replace(now, former)))
    assert all(map(torch.equal, loaded, state))


# At its import the package says what it misses, a GPU for one; its written-out recurrences run.
@pytest.mark.filterwarnings("ignore:Flash Attention is not installed:ImportWarning")
@pytest.mark.filterwarnings("ignore:Triton is not supported:UserWarning")
class TestFlashLinearAttention:
    def test_its_recurrence_gives_the_same(self) -> None:
        """It divides the queries by √d, puts the heads first, and counts in float32."""
        from fla.ops.delta_rule.naive import delta_rule_recurrence

        q, k, v, beta = draw(63)
        expected, last = delta_rule_recurrence(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), beta.transpose(1, 2)
        )
        out, state = delta_rule_attention(q * 8**-0.5, k, v, beta=beta)
        torch.testing.assert_close(out, expected.transpose(1, 2), rtol=1e-4, atol=1e-5)
        assert last is not None
        torch.testing.assert_close(state.key_value.float(), last, rtol=1e-4, atol=1e-5)

    def test_its_gated_recurrence_gives_the_same(self) -> None:
        from fla.ops.gated_delta_rule.naive import naive_recurrent_gated_delta_rule

        q, k, v, beta = draw(63)
        log_decay = draw_decays(63)
        expected, last = naive_recurrent_gated_delta_rule(
            q, k, v, beta, log_decay, output_final_state=True
        )
        out, state = delta_rule_attention(q * 8**-0.5, k, v, beta=beta, log_decay=log_decay)
        torch.testing.assert_close(out.float(), expected, rtol=1e-4, atol=1e-5)
        assert last is not None
        torch.testing.assert_close(state.key_value.float(), last, rtol=1e-4, atol=1e-5)

    def test_its_gated_kernel_gets_what_it_takes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The kernel needs a GPU; its place is taken by the recurrence, with its signature."""
        import fla.ops.gated_delta_rule
        from fla.ops.gated_delta_rule.naive import naive_recurrent_gated_delta_rule

        def kernel(
            q: Tensor,
            k: Tensor,
            v: Tensor,
            g: Tensor,
            beta: Tensor,
            *,
            scale: float,
            initial_state: Tensor,
            output_final_state: bool,
        ) -> tuple[Tensor, Tensor | None]:
            assert g.dtype == initial_state.dtype == torch.float32
            return naive_recurrent_gated_delta_rule(
                q, k, v, beta, g, scale, initial_state, output_final_state
            )

        monkeypatch.setattr(fla.ops.gated_delta_rule, "chunk_gated_delta_rule", kernel)
        attend = fla_kernel.__wrapped__(
            "gated_delta_rule", "chunk_gated_delta_rule", deltanet._gates_of_heads
        )
        assert attend is not None
        q, k, v, beta = draw(20)
        gates = torch.stack((beta, draw_decays(20)), -1)
        before = torch.randn(2, 4, 8, 5, dtype=torch.float64)
        out, state = attend(q, k, v, gates, before)
        expected, last = deltanet.chunked_delta_rule(q, k, v, gates, before)
        torch.testing.assert_close(out.double(), expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(state, last, rtol=1e-4, atol=1e-5)

    def test_its_kernel_gets_what_it_takes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The kernel needs a GPU; its place is taken by the recurrence, with its signature."""
        import fla.ops.delta_rule
        from fla.ops.delta_rule.naive import delta_rule_recurrence

        def kernel(
            q: Tensor,
            k: Tensor,
            v: Tensor,
            beta: Tensor,
            *,
            scale: float,
            initial_state: Tensor,
            output_final_state: bool,
        ) -> tuple[Tensor, Tensor | None]:
            assert initial_state.dtype == torch.float32
            q = q * (scale * q.shape[-1] ** 0.5)
            out, last = delta_rule_recurrence(
                q.transpose(1, 2),
                k.transpose(1, 2),
                v.transpose(1, 2),
                beta.transpose(1, 2),
                initial_state,
                output_final_state,
            )
            return out.transpose(1, 2), last

        monkeypatch.setattr(fla.ops.delta_rule, "chunk_delta_rule", kernel)
        attend = fla_kernel.__wrapped__("delta_rule", "chunk_delta_rule", deltanet._of_heads)
        assert attend is not None
        q, k, v, beta = draw(20)
        before = torch.randn(2, 4, 8, 5, dtype=torch.float64)
        out, state = attend(q, k, v, beta[..., None], before)
        expected, last = deltanet.chunked_delta_rule(q, k, v, beta[..., None], before)
        assert state.dtype == torch.float64
        torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(state, last, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("shape_checks_off")
def test_compiled_gated_deltanet_has_the_same_gradient():
    mixer, x = build_mixer("gated-deltanet", 16, 2), torch.randn(2, 9, 16, requires_grad=True)
    compiled = torch.compile(mixer, fullgraph=True, backend="aot_eager")
    ours, right = (
        torch.autograd.grad(each(x, causal=True)[0].square().sum(), x) for each in (compiled, mixer)
    )
    torch.testing.assert_close(ours, right, rtol=1e-4, atol=1e-5)
