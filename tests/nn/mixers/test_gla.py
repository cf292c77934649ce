"""Gated linear attention against its recurrence, written out and flash-linear-attention's."""

from typing import Any

import pytest
import torch
from torch import Tensor

from flowformer.nn import build_mixer
from flowformer.nn.mixers import recurrence as kernels
from flowformer.nn.mixers.gla import GLAAttention
from flowformer.nn.mixers.recurrence import gated_linear_attention
from flowformer.ops import linear_attention

LENGTHS = [1, 63, 130]


def draw(length: int, *, decays: int = 8, kv_heads: int = 4, strength: float = 1.0) -> list[Tensor]:
    q = torch.randn(2, length, 4, 8, dtype=torch.float64)
    k = torch.randn(2, length, kv_heads, 8, dtype=torch.float64)
    v = torch.randn(2, length, kv_heads, 5, dtype=torch.float64)
    log_decay = -strength * torch.rand(2, length, 4, decays, dtype=torch.float64)
    return [q, k, v, log_decay]


def recurrence(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor) -> tuple[Tensor, Tensor]:
    k, v = (x.repeat_interleave(4 // x.shape[2], 2) for x in (k, v))
    state, outputs = torch.zeros(2, 4, 8, 5, dtype=q.dtype), []
    for t in range(q.shape[1]):
        outer = k[:, t, :, :, None] * v[:, t, :, None, :]
        state = log_decay[:, t].exp()[..., None] * state + outer
        outputs.append(torch.einsum("bhd,bhdm->bhm", q[:, t], state))
    return torch.stack(outputs, 1), state


@pytest.mark.parametrize("kv_heads", [4, 2], ids="{}-key-heads".format)
@pytest.mark.parametrize("decays", [1, 8], ids=["one-decay", "a-decay-each"])
@pytest.mark.parametrize("length", LENGTHS, ids="t{}".format)
def test_is_the_recurrence(length: int, decays: int, kv_heads: int) -> None:
    q, k, v, log_decay = draw(length, decays=decays, kv_heads=kv_heads)
    out, state = gated_linear_attention(q, k, v, log_decay=log_decay)
    expected, last = recurrence(q, k, v, log_decay)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(state.key_value, last)


@pytest.mark.parametrize("decays", [1, 8], ids=["one-decay", "a-decay-each"])
def test_a_strong_decay_stays_in_range(decays: int) -> None:
    """Sums of log α to -25,000: exp of either sign alone would be 0 or infinite."""
    q, k, v, log_decay = draw(130, decays=decays, strength=400.0)
    out, _ = gated_linear_attention(*(x.float() for x in (q, k, v)), log_decay=log_decay.float())
    expected, _ = recurrence(q, k, v, log_decay.float().double())
    # A sum of at most 9 exponents and 8 products, each rounded, of numbers below 4.
    assert (out.double() - expected).abs().max() < 17 * 4 * torch.finfo(torch.float32).eps


def test_without_decay_it_is_linear_attention() -> None:
    q, k, v, log_decay = draw(130)
    out, state = gated_linear_attention(q, k, v, log_decay=torch.zeros_like(log_decay))
    expected, last = linear_attention(q, k, v, causal=True, return_state=True)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(state.key_value, last.key_value)


def test_gradients_are_those_of_finite_differences() -> None:
    q, k, v, log_decay = (x[:1, :5, :2, :3].requires_grad_() for x in draw(5))
    mask = torch.tensor([[True, False, True, True, True]])

    def attend(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor) -> Tensor:
        return gated_linear_attention(q, k, v, log_decay=log_decay, mask=mask)[0]

    assert torch.autograd.gradcheck(attend, (q, k, v, log_decay))


def test_padded_tokens_leave_the_state_whatever_stands_there() -> None:
    q, k, v, log_decay = draw(7)
    mask = torch.tensor([[True, True, False, True, False, True, True]]).expand(2, 7)
    real = mask[0].nonzero()[:, 0]
    expected, last = recurrence(q[:, real], k[:, real], v[:, real], log_decay[:, real])
    for x in (q, k, v, log_decay):
        x[:, ~mask[0]] = torch.nan
    out, state = gated_linear_attention(q, k, v, log_decay=log_decay, mask=mask)
    torch.testing.assert_close(out[:, real], expected)
    torch.testing.assert_close(state.key_value, last)
    assert not out[:, ~mask[0]].any()


def test_a_decay_of_another_width_is_refused() -> None:
    q, k, v, log_decay = draw(3)
    with pytest.raises(ValueError, match=r"1 or 8\] with .* got \[2, 3, 4, 2\]"):
        gated_linear_attention(q, k, v, log_decay=log_decay[..., :2])


def test_the_layer_is_the_papers() -> None:
    """Token by token from the mixer's weights: gate, recurrence, normalisation, output gate."""
    mixer, x = build_mixer("gla", 12, 3).double(), torch.randn(1, 20, 12, dtype=torch.float64)
    assert isinstance(mixer.attention, GLAAttention)
    attention: Any = mixer.attention
    state, outputs = torch.zeros(3, 4, 4, dtype=torch.float64), []
    for token in x[0]:
        q = mixer.query_projection(token).view(3, 4) / 2
        k, v = mixer.key_projection(token).view(3, 4), mixer.value_projection(token).view(3, 4)
        alpha = torch.sigmoid(attention.decay(token)).view(3, 4) ** (1 / 16)
        state = alpha[:, :, None] * state + k[:, :, None] * v[:, None, :]
        out = torch.einsum("hd,hdm->hm", q, state)
        out = out / (out.square().mean(-1, keepdim=True) + 1e-5).sqrt() * attention.norm.weight
        gate = attention.output_gate(token)
        outputs.append(mixer.out_projection(out.flatten() * gate * torch.sigmoid(gate)))
    torch.testing.assert_close(mixer(x, causal=True)[0][0], torch.stack(outputs))


def test_wrong_gates_are_refused() -> None:
    with pytest.raises(ValueError, match="gate_rank=0"):
        build_mixer("gla", 12, 3, gate_rank=0)
    with pytest.raises(ValueError, match=r"gate_temperature=-1\.0"):
        build_mixer("gla", 12, 3, gate_temperature=-1.0)


# At its import the package says what it misses, a GPU for one; its written-out recurrences run.
@pytest.mark.filterwarnings("ignore:Flash Attention is not installed:ImportWarning")
@pytest.mark.filterwarnings("ignore:Triton is not supported:UserWarning")
class TestFlashLinearAttention:
    def test_its_recurrence_gives_the_same(self) -> None:
        """It divides the queries by √d, and counts in float32."""
        from fla.ops.gla.naive import naive_recurrent_gla

        q, k, v, log_decay = draw(63)
        expected, last = naive_recurrent_gla(q, k, v, log_decay, output_final_state=True)
        out, state = gated_linear_attention(q * 8**-0.5, k, v, log_decay=log_decay)
        assert last is not None
        torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(state.key_value.float(), last, rtol=1e-4, atol=1e-5)

    def test_its_kernel_gets_what_it_takes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The kernel needs a GPU; its place is taken by the recurrence, with its signature."""
        import fla.ops.gla
        from fla.ops.gla.naive import naive_recurrent_gla

        def kernel(
            q: Tensor,
            k: Tensor,
            v: Tensor,
            g: Tensor,
            *,
            scale: float,
            initial_state: Tensor,
            output_final_state: bool,
        ) -> tuple[Tensor, Tensor | None]:
            assert g.dtype == initial_state.dtype == torch.float32
            q = q * (scale * q.shape[-1] ** 0.5)
            return naive_recurrent_gla(q, k, v, g, initial_state, output_final_state)

        monkeypatch.setattr(fla.ops.gla, "chunk_gla", kernel)
        attend = kernels.fla_kernel.__wrapped__("gla", "chunk_gla", kernels._in_float32)
        assert attend is not None
        q, k, v, log_decay = draw(20)
        before = torch.randn(2, 4, 8, 5, dtype=torch.float64)
        out, state = attend(q, k, v, log_decay, before)
        expected, last = kernels.chunked_gla(q, k, v, log_decay, before)
        assert state.dtype == torch.float64
        torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(state, last, rtol=1e-4, atol=1e-5)

    def test_its_kernel_is_left_out_where_it_cannot_run(self) -> None:
        query = torch.zeros(1, 1, 1, 1, dtype=torch.bfloat16)
        assert kernels.fast_kernel(query, "gla", "chunk_gla", kernels._in_float32) is None


def test_output_in_half_precision_is_the_rounded_exact_one() -> None:
    q, k, v, log_decay = (x.bfloat16() for x in draw(130))
    out, _ = gated_linear_attention(q, k, v, log_decay=log_decay)
    exact, _ = gated_linear_attention(
        *(x.double() for x in (q, k, v)), log_decay=log_decay.double()
    )
    assert out.dtype == torch.bfloat16
    rounding = (exact.bfloat16().double() - exact).abs().max()
    assert (out.double() - exact).abs().max() <= 2 * rounding
