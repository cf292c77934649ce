"""A mixer of one's own is one file: a function, an attention, and a mixer with a name."""

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from flowformer.models.sequences.config import SequenceModelConfig
from flowformer.models.sequences.model import SequenceClassifier
from flowformer.nn import MIXERS, ProjectedMixer, build_mixer, replace_attention
from flowformer.nn.mixers import ATTENTIONS
from flowformer.nn.mixers.conformance import PROMISES, Subject
from flowformer.nn.mixers.flow import FlowAttention
from flowformer.nn.mixers.head_attention import leave, option_defaults
from flowformer.nn.mixers.linear import LinearAttention

FILE = '''
"""Attention Free Transformer (Zhai et al. 2021), its simple form: weights without queries."""

from jaxtyping import Bool, Float
from torch import Tensor

from flowformer.nn import Capabilities, HeadAttention, ProjectedMixer
from flowformer.ops.features import compute_dtype


def aft_attention(
    query: Float[Tensor, "b t h d"],
    key: Float[Tensor, "b t g d"],
    value: Float[Tensor, "b t g d"],
    *,
    temperature: float,
    mask: Bool[Tensor, "b t"] | None = None,
) -> Float[Tensor, "b t h d"]:
    """out_i = sigmoid(q_i) ∘ Σ_j softmax_j(k_j / temperature) ∘ v_j, feature by feature."""
    exact = compute_dtype(query.dtype)
    key, value = key.to(exact) / temperature, value.to(exact)
    if mask is not None:
        padding = ~mask[:, :, None, None]
        key, value = key.masked_fill(padding, -1e4), value.masked_fill(padding, 0)
    mean = (key.softmax(1) * value).sum(1, keepdim=True)
    return query.sigmoid() * mean.repeat_interleave(query.shape[2] // key.shape[2], 2).to(query)


class AFTAttention(HeadAttention):
    """Attention Free Transformer, simple form: see `aft_attention`.

    Args:
        temperature: the higher, the more alike are the weights.
    """

    capabilities = Capabilities(causal=False, cross=False, state=False)
    linear_in_values = False  # each feature has weights of its own
    function = staticmethod(aft_attention)

    def __init__(self, *, temperature: float = 1.0) -> None:
        super().__init__(temperature=temperature)


class AFTMixer(ProjectedMixer, name="aft"):
    """Attention Free Transformer (Zhai et al. 2021), simple form."""

    kind = AFTAttention
'''


def import_file(path: Path, name: str) -> ModuleType:
    path.write_text(FILE)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def aft(tmp_path: Path) -> Iterator[type[ProjectedMixer]]:
    yield import_file(tmp_path / "aft.py", "own_aft").AFTMixer
    leave("aft")
    del sys.modules["own_aft"]


def test_it_is_built_by_its_name_with_its_options(aft: type[ProjectedMixer]) -> None:
    mixer = build_mixer("aft", 24, 3, temperature=2.0, dropout=0.1)
    assert type(mixer) is MIXERS["aft"] is aft
    assert str(mixer.attention) == "AFTAttention(temperature=2.0)"
    with pytest.raises(ValueError, match=r"'aft' has no option clamp; it takes .*temperature"):
        build_mixer("aft", 24, 3, clamp=1.0)


@pytest.mark.usefixtures("aft")
def test_messages_and_models_know_it() -> None:
    with pytest.raises(ValueError, match="did you mean aft"):
        build_mixer("atf", 24, 3)
    with pytest.raises(NotImplementedError, match=r"no bidirectional form.* mobile, aft$"):
        build_mixer("gla", 24, 3)(torch.randn(1, 5, 24))
    config = SequenceModelConfig(mixer="aft", dim=16, num_heads=2, feedforward=16)
    model = SequenceClassifier(config, vocab_size=11, num_classes=3, max_length=9)
    assert "aft" in ATTENTIONS
    assert model(torch.randint(11, (2, 9))).logits.shape == (2, 3)
    layers = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, batch_first=True), 1)
    assert replace_attention(layers, "aft") == ["layers.0.self_attn"]
    assert "layers.0.self_attn.attention.mixer_aft._extra_state" in layers.state_dict()


def test_the_suite_of_conformance_runs_over_it(
    aft: type[ProjectedMixer], request: pytest.FixtureRequest
) -> None:
    subject, kept = Subject(mixer=aft), []
    for promise in PROMISES:
        if promise.topic == "compile":
            request.getfixturevalue("shape_checks_off")
            torch.compiler.reset()
        for case in promise.cases(subject)[:2]:
            promise.check(subject, **case)
            kept.append(promise.topic)
    assert {"dtype", "padding", "packing", "training", "saving", "compile"} == set(kept)


def test_a_name_is_taken_once_and_free_again_when_it_leaves(
    aft: type[ProjectedMixer], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"a mixer 'aft' is there already: own_aft\.AFTMixer"):
        import_file(tmp_path / "other.py", "other_aft")
    again = import_file(tmp_path / "aft.py", "own_aft").AFTMixer  # as a notebook does
    assert MIXERS["aft"] is again is not aft
    leave("aft")
    assert "aft" not in MIXERS.keys() | ATTENTIONS.keys()
    with pytest.raises(ValueError, match="unknown mixer 'aft'"):
        build_mixer("aft", 24, 3)
    del sys.modules["other_aft"]


def test_options_of_an_own_attention_may_stand_anywhere_in_its_constructor() -> None:
    class Doubled(LinearAttention):
        def __init__(self, factor: float = 2.0) -> None:
            super().__init__()
            self.factor = factor

    class Clamped(FlowAttention):
        def __init__(self, *, clamp: float | None = 2.0, **options: Any) -> None:
            super().__init__(clamp=clamp, **options)

    assert option_defaults(Doubled) == {"factor": 2.0}
    assert option_defaults(Clamped)["clamp"] == 2.0
    assert Clamped(allocation=False).options.clamp == 2.0
