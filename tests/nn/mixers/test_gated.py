"""Gated attention: its equations written out, and the mixers that it goes on from."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from flowformer.nn import MultiheadAttention, build_mixer
from flowformer.nn.mixers.gated import GatedAttention
from flowformer.nn.mixers.gating import Decay
from flowformer.ops import flow_attention, flow_map

DIM, HEADS, WIDTH = 24, 4, 6


def build(name: str = "gated", **options: Any) -> Any:
    """A mixer whose parts all act: every parameter of its attention is drawn."""
    torch.manual_seed(1)
    mixer = build_mixer(name, DIM, HEADS, **options).double().eval()
    for parameter in mixer.attention.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return mixer


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def convolved(x: Tensor, weight: Tensor, offsets: list[int]) -> Tensor:
    """Sum the tokens at these offsets from each, [t, d], by the weights [d, w]."""
    out = torch.zeros_like(x)
    for place in range(len(x)):
        for offset, column in zip(offsets, weight.T, strict=True):
            if 0 <= place + offset < len(x):
                out[place] += column * x[place + offset]
    return out


def mixed(direction: str, q: Tensor, k: Tensor, v: Tensor, rate: Tensor, *, flows: bool) -> Tensor:
    """Attend with one head, [t, d] each: pair by pair, or with the flows of the operator."""
    if flows:
        turn = (lambda x: x.flip(0)) if direction == "backwards" else (lambda x: x)
        heads = (turn(x)[None, :, None] for x in (q, k, v))
        given = {"causal": True, "log_decay": -turn(rate)[None, :, None]}
        given = {} if direction == "both" else given
        return turn(flow_attention(*heads, **given, backend="reference", layout="bthd")[0, :, 0])
    q, k = q.sigmoid(), k.sigmoid()
    out = torch.zeros_like(v)
    for i in range(len(q)):
        total = 0.0
        for j in range(len(q)):
            if (direction == "forwards" and j > i) or (direction == "backwards" and j < i):
                continue
            span = {"forwards": rate[j + 1 : i + 1], "backwards": rate[i:j], "both": rate[:0]}
            weight = (-span[direction].sum()).exp() * (q[i] @ k[j])
            out[i] += weight * v[j]
            total += weight
        out[i] /= total
    return out


def written_out(mixer: Any, x: Tensor, *, directions: list[str], flows: bool) -> Tensor:
    """Each head by itself."""
    attention = mixer.attention
    q, k, v = (
        getattr(mixer, f"{name}_projection")(x).unflatten(-1, (HEADS, WIDTH))
        for name in ("query", "key", "value")
    )
    gate = attention.decay
    rate = F.softplus(gate.projection(x)) * gate.log_scale.exp()
    write = 2 * attention.input_gate(x).sigmoid()
    heads = []
    for head, direction in enumerate(directions):
        offsets = {
            "forwards": [-3, -2, -1, 0],
            "backwards": [3, 2, 1, 0],
            "both": [-2, 1, -1, 0],
        }[direction]
        features = []
        for which, each in enumerate((q, k, v)):
            y = convolved(each[:, head], attention.convolution[which, head], offsets)
            if which < 2:
                y = y / (y.square().mean(-1, keepdim=True) + 1e-6).sqrt()
                y = y * attention.gain[which, head]
            features.append(y)
        sink, source, values = features
        written = write[:, head, None] * values
        out = mixed(direction, sink, source, written, rate[:, head], flows=flows)
        out = out + attention.skip[head] * values
        heads.append(out / (out.square().mean(-1, keepdim=True) + 1e-6).sqrt())
    out = torch.stack(heads, 1) * attention.norm.weight
    opened = attention.output_gate(x)
    return mixer.out_projection(out.flatten(1) * opened * opened.sigmoid())


@pytest.mark.parametrize("name", ["gated", "flow-gated"])
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
def test_is_its_equations(causal: bool, name: str) -> None:
    mixer, x = build(name), draw(1, 13, DIM)
    directions = ["forwards"] * 4 if causal else ["both", "both", "forwards", "backwards"]
    expected = written_out(mixer, x[0], directions=directions, flows=name == "flow-gated")
    torch.testing.assert_close(mixer(x, causal=causal)[0][0], expected)


@pytest.mark.parametrize(
    ("heads", "share", "pairs"),
    [(1, 0.5, 0), (2, 0.5, 1), (3, 0.5, 1), (4, 0.5, 1), (8, 0.5, 2), (8, 1.0, 4), (8, 0.0, 0)],
)
def test_as_many_heads_read_forwards_as_backwards(heads: int, share: float, pairs: int) -> None:
    attention = build_mixer("gated", 8, heads, head_dim=2, directions=share).attention
    assert isinstance(attention, GatedAttention)
    expected = {"both": heads - 2 * pairs, "forwards": pairs, "backwards": pairs}
    assert attention.directions == {name: count for name, count in expected.items() if count}


def test_all_heads_directed_show_the_first_token_those_that_read_backwards() -> None:
    mixer, x = build(directions=1.0), draw(1, 9, DIM).requires_grad_()
    mixer.out_projection = torch.nn.Identity()
    out = mixer(x)[0][0, 0].unflatten(-1, (HEADS, WIDTH))
    for head, seen in enumerate((False, False, True, True)):
        (gradient,) = torch.autograd.grad(out[head].sum(), x, retain_graph=True)
        assert gradient[0, 1:].any() == seen


PLAIN = {"gain": None, "norm": False, "directions": 0.0}
CONTINUED = [
    ("linear", {"feature_map": "elu"}),
    ("flow", {"flows": True}),
]


@pytest.mark.parametrize(("name", "options"), CONTINUED, ids=[name for name, _ in CONTINUED])
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
def test_goes_on_from_a_mixer_without_its_parts(
    name: str, options: dict[str, Any], causal: bool
) -> None:
    plain = build_mixer(name, DIM, HEADS).double()
    mixer = build("gated", **PLAIN, **options)
    assert mixer.load_state_dict(plain.state_dict())
    x = draw(2, 50, DIM)
    mask = torch.arange(50) < torch.tensor([[50], [31]])
    expected, _ = plain(x, causal=causal, mask=mask)
    # A decay of 1e-9 a token, and the ε of linear attention's denominator.
    torch.testing.assert_close(mixer(x, causal=causal, mask=mask)[0], expected, rtol=0, atol=1e-6)
    # Every part learns from there.
    mixer(x, causal=True)[0].square().sum().backward()
    assert all(each.grad is not None and each.grad.any() for each in mixer.parameters())


def test_weights_of_its_own_are_loaded_as_they_are() -> None:
    mixer, other = build(), build()
    state = {name: each + 1 for name, each in mixer.state_dict().items()}
    other.load_state_dict(state)
    assert all(other.state_dict()[name].equal(each) for name, each in state.items())
    del state["attention.decay.log_scale"]
    with pytest.raises(RuntimeError, match=r"Missing key.*attention\.decay\.log_scale"):
        other.load_state_dict(state)


def test_weights_of_before_there_was_a_skip_compute_what_they_did() -> None:
    older, mixer = build(skip=False), build()
    state = older.state_dict()
    mixer.load_state_dict(state)
    x = draw(2, 9, DIM)
    torch.testing.assert_close(mixer(x, causal=True)[0], older(x, causal=True)[0])
    assert "attention.skip" not in state


class TestDecay:
    def test_time_constants_are_spread_over_any_neighbours(self) -> None:
        decay = Decay(5, 32, (4.0, 4096.0)).double()
        tokens = -1 / decay(torch.zeros(1, 1, 5, dtype=torch.float64))[0, 0]
        for start in range(0, 32, 8):
            places = (tokens[start : start + 8] / 4).log2().sort().values  # 0 to 10
            assert 0 <= places[0] < 2
            assert 8 < places[-1] <= 10
            assert places.diff().max() < 3

    def test_is_never_a_growth_and_follows_the_hidden_state(self) -> None:
        decay = Decay(5, 3, (1.0, 10.0))
        torch.nn.init.normal_(decay.projection.weight, std=100.0)
        assert decay(torch.randn(2, 50, 5)).max() <= 0

    def test_a_slow_one_is_not_lost_in_half_precision(self) -> None:
        decay = Decay(5, 1, (1e5, 1e5)).bfloat16()
        log = decay(torch.zeros(1, 1, 5, dtype=torch.bfloat16))
        assert log.dtype == torch.float32
        assert -1.1e-5 < log.item() < -0.9e-5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"convolution": -1}, "convolution must be a whole number, 0 for none, got -1"),
        ({"decay": (100.0, 4.0)}, r"such as \(1, 4096\), got \(100"),
        ({"gain": 0.0}, "gain must be positive or None"),
        ({"directions": 1.5}, r"directions must be in \[0, 1\]"),
        ({"skip": 1.0}, "skip must be True or False"),
        ({"norm": "yes"}, "norm must be True or False"),
        ({"flows": True, "feature_map": "elu"}, "feature_map must be one of 'sigmoid', 'relu'"),
        ({"flows": True, "clamp": -1.0}, "clamp must be positive or None"),
    ],
    ids=lambda each: "-".join(each) if isinstance(each, dict) else None,
)
@pytest.mark.usefixtures("shape_checks_off")
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_mixer("gated", DIM, HEADS, **options)


def test_cross_attention_is_refused_by_name() -> None:
    with pytest.raises(NotImplementedError, match=r"GatedAttention has no cross form.*flow"):
        build()(draw(1, 5, DIM), draw(1, 7, DIM))


def test_a_row_is_what_a_head_takes_from_the_convolved_values() -> None:
    """W_i v before norm and gate, which are each token's own."""
    mixer, x = build(norm=False, output_gate=False), draw(1, 11, DIM)
    _, _, value, _ = mixer._tensors(x, x)
    for causal, offsets in ((True, [[-3, -2, -1, 0]] * 4), (False, [[-2, 1, -1, 0]] * 2)):
        heads = []
        row = mixer.implied_row(x, 6, causal=causal)[0]
        for head, places in enumerate(offsets):
            weight = mixer.attention.convolution[2, head]
            heads.append(row[head] @ convolved(value[0, :, head], weight, places))
        out, _ = mixer.attention(*mixer._tensors(x, x), causal=causal)
        torch.testing.assert_close(torch.stack(heads), out[0, 6, : len(offsets)])


def test_in_a_layer_with_projections_of_its_own_the_gates_read_the_values() -> None:
    torch.manual_seed(0)
    layer = MultiheadAttention(DIM, HEADS, batch_first=True, mixer="gated").double().eval()
    for parameter in layer.attention.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    x = draw(2, 11, DIM)
    wild = x.clone()
    wild[1, 7:] = torch.nan
    padding = torch.arange(11) >= torch.tensor([[11], [7]])
    out, _ = layer(wild, wild, wild, padding, need_weights=False)
    assert not out[1, 7:].any()
    for row, length in enumerate((11, 7)):
        alone = x[row : row + 1, :length]
        q, k, v = (each.unflatten(-1, (HEADS, WIDTH)) for each in layer._project(*[alone] * 3))
        expected = layer.out_proj(layer.attention(q, k, v, v.flatten(2))[0].flatten(2))
        torch.testing.assert_close(out[row, :length], expected[0])
    with pytest.raises(NotImplementedError, match="need_weights=False"):
        layer(x, x, x)


def test_the_map_of_its_flows_is_that_of_each_kind_of_heads() -> None:
    """Convolution and gain off, so that the operator sees the heads themselves."""
    mixer, x = build("flow-gated", convolution=0, gain=None), draw(2, 11, DIM)
    query, key, _, hidden = mixer._tensors(x, x)
    log_decay = mixer.attention.decay(hidden)
    for causal in (True, False):
        competition, allocation = mixer.flow_map(x, causal=causal)
        ways = {"forwards": slice(4)} if causal else BIDIRECTIONAL
        for way, at in ways.items():
            decays = {} if way == "both" else {"causal": True, "log_decay": log_decay[:, :, at]}
            given: dict[str, Any] = {"query": query[:, :, at], "key": key[:, :, at], **decays}
            if way == "backwards":
                given = {k: v.flip(1) if isinstance(v, Tensor) else v for k, v in given.items()}
            expected = flow_map(**given, layout="bthd")
            turned = [each.flip(1) if way == "backwards" else each for each in expected]
            torch.testing.assert_close(competition[:, :, at], turned[0])
            torch.testing.assert_close(allocation[:, :, at], turned[1])


BIDIRECTIONAL = {"both": slice(2), "forwards": slice(2, 3), "backwards": slice(3, 4)}
