"""The layers of the sparse attentions: their options, their random numbers, their parameters."""

from typing import Any

import pytest
import torch

from flowformer.nn import ProjectedMixer, build_mixer
from flowformer.nn.mixers.reformer import ReformerAttention


def build(name: str, **options: Any) -> ProjectedMixer:
    return build_mixer(name, 24, 3, **options).double().eval()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("local", {"window": 0}, "window must be a positive whole number, got 0"),
        ("sparse", {"pattern": "dotted"}, r"pattern must be one of .*, got 'dotted'"),
        ("sparse", {"stride": 1.5}, "stride must be a positive whole number, got 1.5"),
        ("sparse", {"stride": 4, "summary": 5}, "summary must be at most stride"),
        ("longformer", {"window": -1}, "window must be a positive whole number, got -1"),
        ("longformer", {"global_tokens": -1}, "global_tokens must be a positive whole number"),
        ("bigbird", {"block": 0}, "block must be a positive whole number, got 0"),
        ("bigbird", {"random_blocks": -1}, "random_blocks must be a positive whole number"),
        ("sinkhorn", {"iterations": 0}, "iterations must be a positive whole number, got 0"),
        ("sinkhorn", {"temperature": 0.0}, "temperature must be positive, got 0.0"),
        ("reformer", {"num_buckets": 7}, "num_buckets must be even, got 7"),
        ("reformer", {"rounds": 0}, "rounds must be a positive whole number, got 0"),
    ],
    ids=lambda each: each if isinstance(each, str) else None,
)
@pytest.mark.usefixtures("shape_checks_off")  # which would refuse a wrong type before
def test_a_wrong_option_is_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(name, **options)


@pytest.mark.parametrize(("name", "buffer"), [("bigbird", "seed"), ("reformer", "rotations")])
class TestRandomNumbers:
    def test_follow_from_torchs_seed_and_differ_between_layers(
        self, name: str, buffer: str
    ) -> None:
        torch.manual_seed(1)
        one, other = (build(name).attention.get_buffer(buffer) for _ in range(2))
        torch.manual_seed(1)
        assert build(name).attention.get_buffer(buffer).equal(one)
        assert not other.equal(one)

    def test_are_saved_with_the_parameters(self, name: str, buffer: str) -> None:
        assert f"attention.{buffer}" in build(name).state_dict()

    def test_are_what_the_output_depends_on(self, name: str, buffer: str) -> None:
        options = {"block": 4} if name == "bigbird" else {"chunk": 4, "rounds": 1}
        torch.manual_seed(1)
        mixer, x = build(name, **options), torch.randn(1, 63, 24, dtype=torch.float64)
        before, _ = mixer(x)
        values = mixer.attention.get_buffer(buffer)
        values.copy_(values.flip(0) if name == "reformer" else values + 1)
        assert not mixer(x)[0].allclose(before)


def test_reformer_redraws_its_rotations() -> None:
    attention = build("reformer").attention
    assert isinstance(attention, ReformerAttention)
    before = attention.rotations.clone()
    attention.redraw()
    assert not attention.rotations.equal(before)
    assert attention.rotations.shape == before.shape


class TestSinkhornNoise:
    def test_is_added_in_training_alone(self) -> None:
        mixer, x = build("sinkhorn", block=8), torch.randn(1, 63, 24, dtype=torch.float64)
        quiet, _ = mixer(x)
        assert mixer(x)[0].equal(quiet)
        mixer.train()
        assert not mixer(x)[0].allclose(quiet)
        assert not mixer(x)[0].allclose(mixer(x)[0])

    def test_can_be_left_out(self) -> None:
        x = torch.randn(1, 63, 24, dtype=torch.float64)
        mixer = build("sinkhorn", block=8, noise=False).train()
        assert mixer(x)[0].equal(mixer.eval()(x)[0])


def test_longformer_without_global_tokens_is_local_attention() -> None:
    torch.manual_seed(1)
    longformer = build("longformer", window=5, global_tokens=0)
    local = build("local", window=5)
    local.load_state_dict(longformer.state_dict())
    x = torch.randn(2, 63, 24, dtype=torch.float64)
    for causal in (False, True):
        expected, _ = local(x, causal=causal)
        torch.testing.assert_close(longformer(x, causal=causal)[0], expected)


def test_longformers_global_tokens_see_everything() -> None:
    x = torch.randn(1, 63, 24, dtype=torch.float64)
    mixer = build("longformer", window=5, global_tokens=2)
    changed = x.clone()
    changed[:, -1] += 1
    unlike = (mixer(x)[0] != mixer(changed)[0]).any(-1)[0]
    assert unlike.nonzero().flatten().tolist() == [0, 1, *range(57, 63)]


@pytest.mark.parametrize("name", ["local", "sparse", "longformer", "bigbird", "sinkhorn"])
def test_options_show_in_the_printed_model(name: str) -> None:
    attention = build(name).attention
    for option in attention.extra_repr().split(", "):
        key, _, value = option.partition("=")
        assert repr(getattr(attention, key)) == value
