"""One row of the matrix that an attention multiplies its values by, for every mixer."""

from typing import Any

import pytest
import torch
from torch import Tensor

from flowformer.nn import MIXERS, FlowMixer, ProjectedMixer, build_mixer
from flowformer.nn.mixers.head_attention import implied_row, implied_weights
from tests.conformance.cases import CASES, Case

BIDIRECTIONAL = [name for name, kind in MIXERS.items() if kind.capabilities.bidirectional]
LINEAR = [name for name in BIDIRECTIONAL if MIXERS[name].kind.linear_in_values]


def build(name: str, **options: Any) -> ProjectedMixer:
    options = {"max_length": 63, **CASES.get(name, Case()).options, **options}
    return build_mixer(name, 24, 3, **options).double().eval()


def heads_of(mixer: ProjectedMixer, x: Tensor) -> tuple[Tensor, Tensor]:
    """What the attention gives, [b, t, h, m], and the values that it was given, [b, t, g, m]."""
    tensors = mixer._tensors(x, x)
    out, _ = mixer.attention(*tensors, mask=None)
    return out, tensors[mixer.kind.inputs.index("value")]


@pytest.mark.parametrize(
    ("name", "length"),
    [
        (name, length)
        for name in LINEAR
        for length in (1, 63)
        if (name, length) != ("longformer", 1)
    ],
)
def test_a_row_times_the_values_is_the_output(name: str, length: int) -> None:
    mixer, x = build(name), torch.randn(2, length, 24).double()
    out, value = heads_of(mixer, x)
    # Longformer's first token is global, and draws on values of its own kind.
    for sink in {int(name == "longformer"), length // 2, length - 1} & set(range(length)):
        row = mixer.implied_row(x, sink)
        assert row.shape == (2, 3, length)
        drawn = torch.einsum("bhs,bshm->bhm", row, value)
        torch.testing.assert_close(drawn, out[:, sink], rtol=0, atol=1e-10)


@pytest.mark.parametrize("num_kv_heads", [1, 3])
def test_a_global_token_of_longformer_draws_on_the_global_values(num_kv_heads: int) -> None:
    mixer, x = build("longformer", num_kv_heads=num_kv_heads), torch.randn(1, 11, 24).double()
    out, _ = heads_of(mixer, x)
    value = mixer.attention.get_submodule("value_global")(x).unflatten(-1, (3, 8))
    drawn = torch.einsum("bhs,bshm->bhm", mixer.implied_row(x, 0), value)
    torch.testing.assert_close(drawn, out[:, 0])
    local = build("longformer", global_tokens=0)
    torch.testing.assert_close(local.implied_row(x, 0).sum(-1), torch.ones(1, 3).double())


def test_rows_of_softmax_are_its_probabilities() -> None:
    mixer, x = build("softmax"), torch.randn(1, 9, 24).double()
    query, key, _ = mixer._tensors(x, x)
    scores = torch.einsum("blhd,bshd->bhls", query, key) / 8**0.5
    torch.testing.assert_close(mixer.implied_row(x, 4), scores.softmax(-1)[:, :, 4])


def test_rows_of_flow_are_the_scaled_inner_products() -> None:
    """W_ij = a_i / I_i (q_i·k_j) c_j."""
    mixer, x = build("flow"), torch.randn(1, 9, 24).double()
    query, key, _ = (tensor.sigmoid() for tensor in mixer._tensors(x, x))
    assert isinstance(mixer, FlowMixer)
    competition, allocation = mixer.flow_map(x)
    incoming = ((query + 1e-6) * (key.sum(1, keepdim=True) + 1e-6)).sum(-1)
    products = torch.einsum("bhd,bshd->bsh", query[:, 4], key)
    expected = (allocation / incoming)[:, 4, None] * products * competition
    torch.testing.assert_close(mixer.implied_row(x, 4), expected.transpose(1, 2))


@pytest.mark.parametrize("name", ["flow", "softmax", "linear"])
def test_rows_are_those_of_the_whole_matrix_causal_and_padded_too(name: str) -> None:
    mixer, x = build(name), torch.randn(2, 9, 24).double()
    mask = torch.arange(9) < torch.tensor([[9], [6]])
    for call in ({}, {"causal": True}):
        query, key, _ = mixer._tensors(x.masked_fill(~mask[..., None], 0), x)
        weights = implied_weights(mixer.attention, query, key, mask=mask, **call)
        torch.testing.assert_close(mixer.implied_row(x, 5, mask=mask, **call), weights[:, :, 5])


@pytest.mark.parametrize("name", ["flow", "softmax", "reformer"])
def test_heads_that_share_values_have_a_row_each(name: str) -> None:
    mixer = build_mixer(name, 24, 6, num_kv_heads=2).double().eval()
    x = torch.randn(1, 11, 24).double()
    out, value = heads_of(mixer, x)
    drawn = torch.einsum("bhs,bshm->bhm", mixer.implied_row(x, 7), value.repeat_interleave(3, 2))
    torch.testing.assert_close(drawn, out[:, 7])


def test_a_mixer_that_is_not_linear_in_its_values_is_named() -> None:
    mixer, x = build("yoso"), torch.randn(1, 5, 24).double()
    with pytest.raises(NotImplementedError, match=r"\(mixer yoso\) is not linear in the values"):
        mixer.implied_row(x, 0)
    causal = build("gla")
    with pytest.raises(NotImplementedError, match="has no bidirectional form"):
        causal.implied_row(x, 0)


def test_a_sink_that_is_not_there_is_refused() -> None:
    mixer, x = build("flow"), torch.randn(1, 5, 24).double()
    with pytest.raises(IndexError, match="among 5 tokens, got 5"):
        implied_row(mixer.attention, mixer._tensors(x, x), 5)


def test_looking_leaves_no_trace_on_the_parameters() -> None:
    mixer, x = build("linformer"), torch.randn(1, 5, 24).double()
    with torch.no_grad():
        row = mixer.implied_row(x, 0)
    assert not row.requires_grad
    assert all(parameter.grad is None for parameter in mixer.parameters())
