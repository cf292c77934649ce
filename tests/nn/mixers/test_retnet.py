"""Retention against its recurrence in complex numbers, and flash-linear-attention's decays."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from flowformer.nn import build_mixer
from flowformer.nn.mixers.recurrence import gated_linear_attention
from flowformer.nn.mixers.retnet import RetentionAttention, log_decays


def test_the_layer_is_the_papers() -> None:
    """Equations 1 to 8: a state that turns and shrinks by γ e^{iθ} at every token."""
    mixer, x = build_mixer("retnet", 12, 3).double(), torch.randn(1, 20, 12, dtype=torch.float64)
    attention = mixer.attention
    assert isinstance(attention, RetentionAttention)
    q, k, v = (
        getattr(mixer, f"{name}_projection")(x[0]).view(20, 3, 4)
        for name in ("query", "key", "value")
    )

    def turning(heads: Tensor) -> Tensor:
        return torch.complex(heads[..., :2], heads[..., 2:])  # features i and i + d/2 are a pair

    angle = 10_000.0 ** -(torch.arange(2, dtype=torch.float64) / 2)
    gamma = 1 - 2.0 ** -torch.tensor([5.0, 6.0, 7.0], dtype=torch.float64)
    step = gamma[:, None] * torch.exp(1j * angle)
    state = torch.zeros(3, 2, 4, dtype=torch.complex128)
    outputs = []
    for t in range(20):
        state = step[..., None] * state + turning(k[t]).conj()[..., None] * v[t][:, None]
        out = (turning(q[t] / 2)[..., None] * state).real.sum(1)
        outputs.append(
            (out - out.mean(-1, keepdim=True)) / (out.var(-1, False, keepdim=True) + 1e-5).sqrt()
        )
    expected = torch.stack(outputs).flatten(1) * F.silu(attention.output_gate(x[0]))
    torch.testing.assert_close(mixer(x, causal=True)[0][0], mixer.out_projection(expected))


# At its import the package says what it misses, a GPU for one; its written-out recurrences run.
@pytest.mark.filterwarnings("ignore:Flash Attention is not installed:ImportWarning")
@pytest.mark.filterwarnings("ignore:Triton is not supported:UserWarning")
def test_decays_are_those_of_flash_linear_attention() -> None:
    """It divides the queries by √d, puts the heads first, and counts in float32."""
    from fla.ops.retention.naive import naive_retention

    q, k, v = torch.randn(3, 2, 63, 4, 8, dtype=torch.float64)
    decays = log_decays(4, q.device, q.dtype).expand(2, 63, 4, 1)
    out, _ = gated_linear_attention(q * 8**-0.5, k, v, log_decay=decays)
    expected = naive_retention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)


def test_an_odd_width_of_heads_is_refused() -> None:
    with pytest.raises(ValueError, match="head_dim must be even, got 3"):
        build_mixer("retnet", 12, 4)
