"""A plain module is a mixer: what it can do is found out by calling it, what it lacks is added."""

import copy
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flowformer.models.sequences.config import SequenceModelConfig
from flowformer.models.sequences.model import SequenceClassifier
from flowformer.nn import MIXERS, Capabilities, ProjectedMixer, build_mixer, register_mixer
from flowformer.nn.mixers import building
from flowformer.nn.mixers.head_attention import leave
from flowformer.nn.mixers.own import OwnState


class RunningMean(nn.Module):
    """The mean of the tokens so far: causal, with a state, and no word of padding."""

    def __init__(self, width: int, power: float = 1.0) -> None:
        super().__init__()
        self.value = nn.Linear(width, width)
        self.power = power

    def forward(self, x: Tensor, state: Any = None) -> Any:
        count, total = (x.new_zeros(len(x), 1), x.new_zeros(len(x), 1, x.shape[-1]))
        if state is not None:
            count, (total,) = state
        sums = total + self.value(x).cumsum(1)
        counts = count + torch.arange(1, x.shape[1] + 1)
        return sums / counts[..., None] ** self.power, (counts[:, -1:], (sums[:, -1:],))


class Mean(nn.Module):
    """The mean of all real tokens, or of those so far."""

    def __init__(
        self, dim: int, num_heads: int, *, bias: bool = True, dropout: float = 0.3
    ) -> None:
        super().__init__()
        self.value = nn.Linear(dim, dim, bias=bias)
        self.dropout = nn.Dropout(dropout)
        self.heads = num_heads

    def forward(self, x: Tensor, mask: Tensor | None = None, causal: bool = True) -> Tensor:
        real = x.new_ones(x.shape[:2]) if mask is None else mask.to(x)
        value, real = self.dropout(self.value(x)) * real[..., None], real[..., None]
        if causal:
            return value.cumsum(1) / real.cumsum(1).clamp(min=1)
        return (value.sum(1, keepdim=True) / real.sum(1, keepdim=True).clamp(min=1)).expand_as(x)


class Flipped(nn.Module):
    """One whose causal form is none, and that knows sequences of at most 20 tokens."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.zeros(20, dim))

    def forward(self, x: Tensor, *, causal: bool = False) -> Tensor:
        del causal
        return x.flip(1) + self.place[: x.shape[1]]


@pytest.fixture(autouse=True)
def _table() -> Iterator[None]:
    before = set(MIXERS)
    yield
    for name in set(MIXERS) - before:
        leave(name)


@pytest.mark.parametrize(
    ("mixer", "expected"),
    [
        (RunningMean, Capabilities(causal=True, cross=False, state=True, bidirectional=False,
                                   exact_mask=False)),
        (Mean, Capabilities(causal=True, cross=False, state=False)),
        (Flipped, Capabilities(causal=False, cross=False, state=False, exact_mask=False,
                               variable_length=False)),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)  # fmt: skip
def test_what_it_can_do_is_found_out(mixer: Any, expected: Capabilities) -> None:
    drawn = torch.get_rng_state()
    assert register_mixer("mine", mixer) == MIXERS["mine"].capabilities == expected
    assert torch.get_rng_state().equal(drawn)


def test_why_something_is_lacking_is_told(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "flowformer.nn")
    register_mixer("running-mean", RunningMean)
    register_mixer("flipped", Flipped)
    means, flipped = caplog.messages
    assert "mixer running-mean: causal, state, variable length; padding changes" in means
    assert means.endswith("for it takes no mask")
    assert "its causal form sees the future" in flipped
    assert "no longer sequences: RuntimeError: The size of tensor" in flipped


def test_a_growing_state_and_one_that_gives_something_else_are_told_apart() -> None:
    class Cache(nn.Module):
        def __init__(self, dim: int, forgets: bool = False) -> None:
            super().__init__()
            self.forgets, self.value = forgets, nn.Linear(dim, dim)

        def forward(self, x: Tensor, state: Any = None, return_state: bool = False) -> Any:
            seen = x if state is None else torch.cat([state, x], 1)
            y = self.value(seen).cumsum(1)[:, -x.shape[1] :]
            return (y, x if self.forgets else seen) if return_state else y

    assert register_mixer("cache", Cache).growing_state
    assert not register_mixer("forgetful", Cache, forgets=True).state


def test_it_gets_what_it_names_and_the_layer_does_the_rest() -> None:
    register_mixer("mean", Mean, dropout=0.2)
    mixer = build_mixer("mean", 12, 3, bias=False, max_length=50)
    module: Any = mixer.attention.get_submodule("module")
    assert (module.heads, module.value.bias, module.dropout.p, mixer.dropout.p) == (3, None, 0.2, 0)
    assert (
        build_mixer("mean", 12, 3, dropout=0.5).attention.get_submodule("module.dropout").p == 0.5
    )
    register_mixer("running-mean", RunningMean)
    assert build_mixer("running-mean", 12, 5, dropout=0.5, bias=False).dropout.p == 0.5
    with pytest.raises(ValueError, match="'mean' has no option head_dim, got 2"):
        build_mixer("mean", 12, 3, head_dim=2)
    with pytest.raises(ValueError, match=r"'mean' has no option eps; it takes bias, .*max_length"):
        build_mixer("mean", 12, 3, eps=1)


def test_padding_is_zero_on_the_way_in_and_on_the_way_out() -> None:
    register_mixer("running-mean", RunningMean)
    mixer, x = build_mixer("running-mean", 8, 2), torch.randn(2, 5, 8)
    mask = torch.tensor([[True] * 5, [True, True, False, False, False]])
    y, _ = mixer(x.masked_fill(~mask[..., None], torch.nan), causal=True, mask=mask)
    assert not y[~mask].any()
    torch.testing.assert_close(y[1, :2], mixer(x[1:, :2], causal=True)[0][0])


def test_packed_sequences_are_mixed_each_for_itself_though_it_knows_no_mask() -> None:
    register_mixer("running-mean", RunningMean)
    mixer, lengths = build_mixer("running-mean", 8, 2), (3, 1, 7)
    x = torch.randn(1, 11, 8)
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    together, _ = mixer(x, causal=True, cu_seqlens=offsets)
    alone = torch.cat([mixer(each, causal=True)[0] for each in x.split(lengths, 1)], 1)
    torch.testing.assert_close(together, alone)


def test_a_state_of_tuples_is_moved_and_reordered_whole() -> None:
    register_mixer("running-mean", RunningMean)
    mixer, x = build_mixer("running-mean", 8, 2), torch.randn(3, 6, 8)
    _, state = mixer(x[:, :4], causal=True, return_state=True)
    assert isinstance(state, OwnState)
    order = torch.tensor([2, 0, 0])
    y, _ = mixer(x[order, 4:], causal=True, state=state.reorder(order).detach().to("cpu"))
    torch.testing.assert_close(y, mixer(x[order], causal=True)[0][:, 4:])


def test_models_copies_and_pickles_know_it() -> None:
    register_mixer("mean", Mean)
    config = SequenceModelConfig(mixer="mean", dim=16, num_heads=2, feedforward=16)
    model = SequenceClassifier(config, vocab_size=11, num_classes=3, max_length=9).eval()
    ids = torch.randint(11, (2, 9))
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert other(ids).logits.equal(model(ids).logits)
    text = pickle.dumps(model)
    leave("mean")
    with pytest.raises(ValueError, match="the mixer 'mean' is not there: one of your own is there"):
        pickle.loads(text)


def test_what_cannot_be_tried_is_refused_with_a_way_out() -> None:
    with pytest.raises(ValueError, match=r"Bilinear cannot be built, of \{'dim': 32.*missing 2"):
        register_mixer("mine", nn.Bilinear)
    with pytest.raises(ValueError, match=r"return hidden states of .* \[2, 12, 32\].* got \[2, 12"):
        register_mixer("mine", nn.Linear, out_features=3)
    with pytest.raises(ValueError, match="Mean has no option window; it takes dim, num_heads"):
        register_mixer("mine", Mean, window=3)
    with pytest.raises(ValueError, match="letters, digits, - and _, got 'my mixer'"):
        register_mixer("my mixer", Mean)
    with pytest.raises(ValueError, match="a mixer 'flow' is there already"):
        register_mixer("flow", Mean)
    assert "mine" not in MIXERS
    able = Capabilities(causal=True, cross=False, state=False)
    assert register_mixer("mine", lambda dim: nn.Linear(dim, 3), capabilities=able) is able


class Entry:
    """An entry point, as importlib.metadata has it."""

    def __init__(self, name: str, mixer: Any) -> None:
        self.name, self.value, self.mixer = name, f"package:{name}", mixer

    def load(self) -> Any:
        if isinstance(self.mixer, Exception):
            raise self.mixer
        return self.mixer


def test_installed_packages_bring_mixers_when_they_are_asked_for(monkeypatch) -> None:
    entries = [Entry("plugged", Mean), Entry("broken", OSError("no such library"))]
    monkeypatch.setattr(building, "entry_points", lambda **_: entries)
    assert "plugged" not in MIXERS
    assert isinstance(build_mixer("plugged", 8, 2), ProjectedMixer)
    assert MIXERS["plugged"].origin == __name__
    with pytest.raises(ValueError, match=r"'broken' \(package:broken\) cannot be loaded: no such"):
        build_mixer("broken", 8, 2)
    with pytest.warns(UserWarning, match="'broken'"):
        building.load_installed()
