"""The other forms of Flow-Attention: the ablations, and competing heads."""

import pytest
import torch

from flowformer.nn import FlowMixer, build_mixer

ABLATIONS = {
    "flow-no-competition": {"competition": None, "clamp": None},
    "flow-no-allocation": {"allocation": False},
}


@pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])
@pytest.mark.parametrize("name", ABLATIONS)
def test_is_flow_attention_with_one_option(name: str, causal: bool) -> None:
    ablated, flow = build_mixer(name, 24, 3), build_mixer("flow", 24, 3)
    optioned = build_mixer("flow", 24, 3, **ABLATIONS[name])
    for mixer in (flow, optioned):
        mixer.load_state_dict(ablated.state_dict())
    x = torch.randn(2, 17, 24)
    y, _ = ablated(x, causal=causal)
    assert y.equal(optioned(x, causal=causal)[0])
    assert not y.allclose(flow(x, causal=causal)[0])


@pytest.mark.parametrize(("name", "part"), [("flow-no-competition", 0), ("flow-no-allocation", 1)])
def test_its_map_shows_the_missing_part_as_one(name: str, part: int) -> None:
    mixer = build_mixer(name, 24, 3)
    assert isinstance(mixer, FlowMixer)
    shown = mixer.flow_map(torch.randn(2, 17, 24))
    assert isinstance(shown, tuple)
    assert shown[part].eq(1).all()
    assert not shown[1 - part].eq(1).any()


def test_without_competition_there_is_nothing_to_clamp() -> None:
    with pytest.raises(ValueError, match="has no option clamp"):
        build_mixer("flow-no-competition", 24, 3, clamp=1.0)


def test_competing_heads_are_flow_attention_with_the_published_options() -> None:
    heads = build_mixer("flow-heads", 24, 3)
    optioned = build_mixer("flow", 24, 3, feature_map="relu", clamp=None, competition="heads")
    optioned.load_state_dict(heads.state_dict())
    x = torch.randn(2, 17, 24)
    assert heads(x)[0].equal(optioned(x)[0])


def test_competing_heads_have_no_causal_form() -> None:
    mixer = build_mixer("flow-heads", 24, 3)
    with pytest.raises(NotImplementedError, match="causal"):
        mixer(torch.randn(2, 17, 24), causal=True)
