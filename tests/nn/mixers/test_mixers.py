"""What is particular to one mixer, and the errors of building one."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from flowformer.nn import MIXERS, FlowMixer, LinformerMixer, build_mixer, build_norm
from flowformer.nn.mixers import ATTENTIONS
from flowformer.nn.mixers.building import mixer_options
from flowformer.nn.mixers.head_attention import HeadAttention, implied_weights, option_names
from flowformer.nn.mixers.softmax import SoftmaxAttention
from flowformer.ops import flow_attention
from flowformer.train.config import ScheduledOptimizerConfig

FIXED_LENGTH = [name for name, kind in ATTENTIONS.items() if not kind.capabilities.variable_length]


def test_unknown_mixer_lists_the_choices() -> None:
    with pytest.raises(
        ValueError, match=r"'flwo': did you mean flow\? expected one of flow, .*softmax, .*linear"
    ):
        build_mixer("flwo", 8, 2)


def test_unknown_option_lists_the_options() -> None:
    with pytest.raises(ValueError, match=r"'softmax' has no option clamp; it takes .*dropout"):
        build_mixer("softmax", 8, 2, clamp=None)


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ValueError, match="dim=10 and num_heads=4"):
        build_mixer("flow", 10, 4)


def test_key_heads_must_divide_the_heads() -> None:
    with pytest.raises(ValueError, match="num_heads=4 and num_kv_heads=3"):
        build_mixer("flow", 8, 4, num_kv_heads=3)


@pytest.mark.parametrize("heads", [(0, None), (2, 0), (2, -1)])
def test_heads_are_positive(heads: tuple[int, int | None]) -> None:
    with pytest.raises(ValueError, match=f"positive, got num_heads={heads[0]} and num_kv_heads="):
        build_mixer("flow", 8, heads[0], num_kv_heads=heads[1])


@pytest.mark.parametrize(
    "options",
    [
        {"feature_map": "relu"},
        {"clamp": None},
        {"eps": 1e-2},
        {"competition": None},
        {"competition": "heads"},
        {"allocation": False},
        {"backend": "reference"},
    ],
    ids=lambda options: "{}-{}".format(*next(iter(options.items()))),
)
def test_flow_mixer_passes_its_options_on(options: dict) -> None:
    mixer, x = FlowMixer(12, 3, **options).double(), torch.randn(2, 9, 12, dtype=torch.float64)
    q, k, v = (
        projection(x).view(2, 9, 3, 4)
        for projection in (mixer.query_projection, mixer.key_projection, mixer.value_projection)
    )
    mixed = flow_attention(q, k, v, **options)
    assert isinstance(mixed, torch.Tensor)
    torch.testing.assert_close(mixer(x)[0], mixer.out_projection(mixed.flatten(2)))


@pytest.mark.parametrize("name", ["flow", "mobile"])
def test_a_wrong_option_raises_when_the_mixer_is_built(name: str) -> None:
    with pytest.raises(ValueError, match="clamp must be positive or None"):
        build_mixer(name, 8, 2, clamp=-1.0)


WITH_EPS = [name for name, mixer in MIXERS.items() if "eps" in option_names(mixer.kind)]


@pytest.mark.parametrize("eps", [float("inf"), float("nan"), 1e-60, 1e60, -1.0])
def test_an_eps_that_float32_does_not_hold_is_refused_when_a_layer_is_built(eps: float) -> None:
    for name in WITH_EPS:
        with pytest.raises(ValueError, match="eps must "):
            build_mixer(name, 8, 2, max_length=5, eps=eps)
    with pytest.raises(ValueError, match="eps must "):
        build_norm("rms", 8, eps=eps)
    with pytest.raises(ValueError, match="epsilon must "):
        ScheduledOptimizerConfig(epsilon=eps)


UNCLAMPED = {name: {"clamp": None} for name in ("flow", "flow-no-allocation", "flow-gated")}
PUBLISHED = {
    "series": UNCLAMPED,
    "sequences": UNCLAMPED,
    "trajectories": {
        "flow": {"clamp": 10.0},
        "flow-no-allocation": {"clamp": 10.0},
        "flow-gated": {"clamp": 10.0},
        "softmax": {"weight_dropout": 0.3},
    },
}


@pytest.mark.parametrize("model", ["series", "language", "sequences", "images", "trajectories"])
def test_a_mixer_without_options_has_those_of_the_published_models(model: str) -> None:
    config = SimpleNamespace(mixer_options=None, dropout=0.3)
    for config.mixer in MIXERS:
        assert mixer_options(config, model) == PUBLISHED.get(model, {}).get(config.mixer, {})
    config.mixer_options = {"clamp": 5.0}
    assert mixer_options(config, model) == {"clamp": 5.0}


def test_a_record_is_that_of_the_instance() -> None:
    for options in ({"independent_sinks": True}, {"competition": None, "allocation": False}):
        mixer = build_mixer("flow", 8, 2, **options)
        assert mixer.capabilities == mixer.attention.capabilities
        assert mixer.capabilities == replace(FlowMixer.capabilities, independent_sinks=True)
    assert not FlowMixer.capabilities.independent_sinks
    assert not build_mixer("flow", 8, 2, competition=None).capabilities.independent_sinks


def test_linformer_keeps_rank_many_keys() -> None:
    mixer = LinformerMixer(8, 2, max_length=50, rank=5)
    assert mixer.attention.key_mixing.shape == (50, 5)
    with pytest.raises(ValueError, match="rank=0"):
        LinformerMixer(8, 2, max_length=50, rank=0)


def test_weight_dropout_acts_in_training_only() -> None:
    attention = SoftmaxAttention(weight_dropout=0.5)
    q = torch.randn(1, 40, 2, 4)
    dropped = implied_weights(attention.train(), q, q)
    kept = implied_weights(attention.eval(), q, q)
    assert 0.4 < (dropped == 0).double().mean() < 0.6
    torch.testing.assert_close(kept.sum(-1), torch.ones(1, 2, 40))
    with pytest.raises(ValueError, match=r"weight_dropout must be in \[0, 1\)"):
        SoftmaxAttention(weight_dropout=1.0)


def test_implied_flow_weights_are_the_scaled_inner_products() -> None:
    """W_ij = a_i / I_i (q_i·k_j) c_j, written out here from the paper's equations."""
    torch.manual_seed(0)
    q, k = torch.randn(1, 5, 1, 4).double(), torch.randn(1, 7, 1, 4).double()
    v = torch.randn(1, 7, 1, 3).double()
    mixer = FlowMixer(4, 1).double()
    weights = implied_weights(mixer.attention, q, k)

    sink, source, eps = q[0, :, 0].sigmoid(), k[0, :, 0].sigmoid(), 1e-6
    incoming = (sink + eps) @ (source.sum(0) + eps)
    outgoing = (source + eps) @ (sink.sum(0) + eps)
    conserved_sink = (sink + eps) @ ((source / outgoing[:, None]).sum(0) + eps)
    conserved_source = (source + eps) @ ((sink / incoming[:, None]).sum(0) + eps)
    allocation = (conserved_sink * 5 / 7).sigmoid()
    competition = 7 * conserved_source.clamp(-1, 1).softmax(0)
    expected = (allocation / incoming)[:, None] * (sink @ source.T) * competition
    torch.testing.assert_close(weights[0, 0], expected)
    torch.testing.assert_close(torch.einsum("bhls,bshm->blhm", weights, v), flow_attention(q, k, v))


@pytest.mark.parametrize("name", [name for name in ATTENTIONS if name not in FIXED_LENGTH])
def test_weights_are_given_only_where_they_give_the_output(name: str) -> None:
    attention = build_mixer(name, 16, 2).double().eval().attention
    assert isinstance(attention, HeadAttention)
    q, k, v = torch.randn(3, 1, 9, 2, 8, dtype=torch.float64)
    if not attention.linear_in_values:
        with pytest.raises(NotImplementedError, match="is not linear in the values"):
            implied_weights(attention, q, k)
        return
    out, _ = attention(q, k, v)
    weights = implied_weights(attention, q, k)
    torch.testing.assert_close(torch.einsum("bhls,bshm->blhm", weights, v), out)


@pytest.mark.usefixtures("shape_checks_off")
@pytest.mark.parametrize(
    ("shape", "mask", "error", "message"),
    [
        ((2, 5), None, ValueError, r"x must be \[batch, time, 8\], got shape \[2, 5\]"),
        ((2, 5, 6), None, ValueError, r"x must be \[batch, time, 8\], got shape \[2, 5, 6\]"),
        ((2, 5, 8), torch.ones(2, 5), TypeError, "must be boolean, .* got torch.float32"),
        ((2, 5, 8), torch.ones(2, 4).bool(), ValueError, r"= \[2, 5\] on cpu, got \[2, 4\]"),
        ((2, 5, 8), [[True] * 5] * 2, TypeError, "must be boolean, .* got list"),
    ],
    ids=["axes", "width", "dtype", "length", "list"],
)
def test_what_does_not_fit_is_said_before_it_is_projected(shape, mask, error, message):
    with pytest.raises(error, match=message):
        build_mixer("softmax", 8, 2)(torch.randn(shape), mask=mask)
