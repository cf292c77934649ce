"""Mamba-2 against the layer of transformers, and its equations token by token."""

from typing import Any

import pytest
import torch
import transformers
from torch.nn import functional as F
from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer as Theirs

from flowformer.nn import build_mixer
from flowformer.nn.mixers.mamba2 import Mamba2Attention

DIM, HEADS, WIDTH, STATE = 12, 3, 8, 5


def build() -> tuple[Any, Mamba2Attention]:
    torch.manual_seed(0)
    mixer = build_mixer("mamba2", DIM, HEADS, head_dim=WIDTH, state_size=STATE, bias=False)
    attention = mixer.attention
    assert isinstance(attention, Mamba2Attention)
    torch.nn.init.normal_(attention.skip)
    torch.nn.init.normal_(attention.norm.weight)
    return mixer, attention


def test_the_layer_is_that_of_transformers() -> None:
    """With the same weights, which stand in one matrix there: z, x, B, C and the step."""
    mixer, attention = build()
    config = transformers.Mamba2Config(
        hidden_size=DIM,
        num_heads=HEADS,
        head_dim=WIDTH,
        state_size=STATE,
        n_groups=1,
        expand=2,
        chunk_size=16,
        num_hidden_layers=1,
    )
    theirs = Theirs(config, layer_idx=0)
    convolutions = attention.value_convolution.flatten(0, 1), attention.key_query_convolution
    theirs.load_state_dict(
        {
            "in_proj.weight": torch.cat(
                (
                    attention.output_gate.weight,
                    mixer.value_projection.weight,
                    attention.key_query_projection.weight,
                    attention.decay.projection.weight,
                )
            ),
            "conv1d.weight": torch.cat((convolutions[0], convolutions[1].flatten(0, 1)))[:, None],
            "conv1d.bias": torch.cat(
                (attention.value_bias.flatten(), attention.key_query_bias.flatten())
            ),
            "dt_bias": attention.decay.projection.bias,
            "A_log": attention.decay.log_scale,
            "D": attention.skip,
            "norm.weight": attention.norm.weight,
            "out_proj.weight": mixer.out_projection.weight,
        }
    )
    x = torch.randn(2, 50, DIM)
    torch.testing.assert_close(mixer(x, causal=True)[0], theirs(x), rtol=1e-4, atol=1e-5)


def test_the_layer_is_its_equations() -> None:
    mixer, attention = build()
    mixer, x = mixer.double(), torch.randn(20, DIM, dtype=torch.float64)
    value = mixer.value_projection(x)
    both = attention.key_query_projection(x)

    def convolved(y: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        weight = weight.flatten(0, 1)[:, None]
        return F.silu(F.conv1d(F.pad(y.T, (3, 0)), weight, bias.flatten(), groups=len(weight))).T

    value = convolved(value, attention.value_convolution, attention.value_bias)
    both = convolved(both, attention.key_query_convolution, attention.key_query_bias)
    key, query = both.chunk(2, -1)
    value = value.view(20, HEADS, WIDTH)
    step = F.softplus(attention.decay.projection(x))
    alpha = torch.exp(-step * attention.decay.log_scale.exp())
    state, outputs = torch.zeros(HEADS, STATE, WIDTH, dtype=torch.float64), []
    for t in range(20):
        added = key[t][None, :, None] * (step[t][:, None] * value[t])[:, None, :]
        state = alpha[t][:, None, None] * state + added
        out = torch.einsum("n,hnd->hd", query[t], state) + attention.skip[:, None] * value[t]
        out = out.flatten() * F.silu(attention.output_gate(x[t]))
        out = out / (out.square().mean() + 1e-5).sqrt() * attention.norm.weight
        outputs.append(mixer.out_projection(out))
    torch.testing.assert_close(mixer(x[None], causal=True)[0][0], torch.stack(outputs))


def test_steps_and_decays_start_as_published() -> None:
    decay = Mamba2Attention(dim=4, num_heads=200, head_dim=2).decay
    steps, rates = F.softplus(decay.projection.bias), decay.log_scale.exp()
    assert 0.001 <= steps.min() < 0.0012
    assert 0.085 < steps.max() <= 0.1001
    assert 1 <= rates.min() < 1.5
    assert 15 < rates.max() <= 16


def test_wrong_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="state_size must be a positive whole number, got 0"):
        build_mixer("mamba2", 12, 3, state_size=0)
    with pytest.raises(ValueError, match="convolution must be a positive whole number, got 0"):
        build_mixer("mamba2", 12, 3, convolution=0)
