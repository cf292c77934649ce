"""`flowformer check-mixer`: what holds of a mixer of one's own, and what does not, in words."""

import sys

import pytest

from flowformer.nn.mixers.head_attention import leave

FILE = """
import torch
from torch import nn

from flowformer.nn import register_mixer


class Decay(nn.Module):
    '''Exponential means, token by token; `wrong` breaks one promise each.'''

    def __init__(self, dim, num_heads, wrong=''):
        super().__init__()
        self.value = nn.Linear(dim, dim)
        self.rate = nn.Parameter(torch.randn(dim))
        self.wrong = wrong
        if wrong == 'unused':
            self.unused = nn.Linear(dim, dim)
        if wrong == 'unsaved':
            self.register_buffer('table', torch.ones(dim), persistent=False)

    def forward(self, x, *, mask=None, state=None, return_state=False):
        value = self.value(x)
        rate = self.rate.sigmoid().to(value)
        if self.wrong == 'float32':
            value = value @ torch.eye(x.shape[-1])
        if self.wrong == 'unsaved':
            value = value * self.table
        if self.wrong == 'break' and x.sum() > 1e6:
            value = -value
        h = torch.zeros_like(value[:, 0]) if state is None else state
        if self.wrong == 'future':
            h = h + 1e-9 * x.mean(1)
        out = []
        for step in range(x.shape[1]):
            new = rate * h + (1 - rate) * value[:, step]
            h = new if mask is None else torch.where(mask[:, step, None], new, h)
            out.append(h)
        if self.wrong == 'gate':  # right, and NaN times zero is NaN in its gradient
            out = [each * value[:, step].sigmoid() for step, each in enumerate(out)]
        h = 2 * h if self.wrong == 'state' else h
        return torch.stack(out, 1), h if return_state else None


class Told(nn.Module):
    '''Takes keywords, and may not do what they say.'''

    def __init__(self, dim, wrong='leak'):
        super().__init__()
        self.value = nn.Linear(dim, dim)
        self.wrong = wrong

    def forward(self, x, *, causal=False, mask=None, state=None, return_state=False):
        value = self.value(x)
        if causal and self.wrong == 'refuses':
            raise NotImplementedError('bidirectional only')
        if mask is not None and self.wrong != 'mask':
            value = value * mask[..., None]
        if causal and self.wrong != 'leak':
            before = 0 if state is None or self.wrong == 'state' else state[:, None]
            y = value.cumsum(1) + before
            return y, y[:, -1] if return_state else None
        return value + value.sum(1, keepdim=True), None


class Half(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.value = nn.Linear(dim, dim // 2)

    def forward(self, x, *, causal=False):
        return self.value(x)


class Plain:
    pass


register_mixer('decay', Decay)
"""


@pytest.fixture
def check(tmp_path, monkeypatch, flowformer, shape_checks_off):  # noqa: ARG001 - it compiles
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "my_decay.py").write_text(FILE)
    yield lambda *arguments: flowformer("check-mixer", *arguments)
    leave("decay")
    sys.modules.pop("my_decay", None)


def topics(out: str) -> dict[str, str]:
    """Each topic, and whether it holds."""
    lines = [line.split() for line in out.splitlines() if not line.startswith(" ")]
    return {each[0]: each[1] for each in lines if each[1] in ("holds", "FAILS", "lacks", "-")}


def test_what_holds_is_printed_by_topic(check):
    outcome = check("my_decay:Decay")
    assert outcome.code == 0, outcome.out
    assert "can do     causal, state, variable length, exact mask\n" in outcome.out
    expected = ("dtype", "padding", "packing", "training", "saving", "compile", "future")
    assert topics(outcome.out) == dict.fromkeys((*expected, "nonfinite", "streaming"), "holds")
    assert "eps of bfloat16" in outcome.out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("wrong", "topic", "message"),
    [
        ("unused", "training", "no gradient reaches attention.module.unused.weight"),
        ("unsaved", "saving", "neither a parameter nor a buffer that is saved"),
        ("float32", "dtype", "RuntimeError: expected m1 and m2 to have the same dtype"),
        ("break", "compile", "(masked True): Unsupported: "),
        ("future", "future", "no output depends on the future: Tensor-likes are not close"),
        ("state", "streaming", "pieces with a state give something else"),
    ],
)
def test_what_does_not_hold_is_told_with_its_case(check, wrong, topic, message):
    outcome = check("my_decay:Decay", "--options", f'{{"wrong": "{wrong}"}}')
    assert outcome.code == 1
    assert topics(outcome.out)[topic] == "FAILS"
    assert message in outcome.out
    if wrong == "float32":  # the others are checked in that precision
        assert topics(outcome.out)["padding"] == "holds"


KEYWORDS = {
    "leak": {"future": "its causal form sees the future (outputs move by "},
    "mask": {"padding": "padding changes the outputs (by "},
    "state": {"streaming": "pieces with a state give something else (by "},
    "refuses": {},
}
CAPABILITIES = {"padding": "exact_mask", "future": "causal", "streaming": "state"}


@pytest.mark.parametrize("wrong", KEYWORDS)
def test_a_keyword_that_the_call_names_is_kept_or_refused(check, monkeypatch, wrong):
    from flowformer.nn.mixers import conformance

    few = [each for each in conformance.PROMISES if each.topic not in ("compile", "dtype")]
    monkeypatch.setattr(conformance, "PROMISES", few)
    outcome = check("my_decay:Told", "--options", f'{{"wrong": "{wrong}"}}')
    got = topics(outcome.out)
    told = KEYWORDS[wrong]
    assert {topic for topic, state in got.items() if state == "FAILS"} == told.keys(), outcome.out
    for topic, message in told.items():
        assert f"it does (capability {CAPABILITIES[topic]}): {message}" in outcome.out
    assert outcome.code == (wrong != "refuses")


def test_what_pytorch_does_with_nan_is_told_and_fails_nothing(check, monkeypatch):
    from flowformer.nn.mixers import conformance

    few = [each for each in conformance.PROMISES if each.topic in ("future", "nonfinite")]
    monkeypatch.setattr(conformance, "PROMISES", few)
    outcome = check("my_decay:Decay", "--options", '{"wrong": "gate"}')
    assert topics(outcome.out) == {"future": "holds", "nonfinite": "lacks"}
    assert "nor its gradient (value nan): gradients: Tensor-likes" in outcome.out
    assert outcome.code == 0


def test_a_module_that_cannot_be_called_is_told_once(check):
    refused = check("my_decay:Half")
    assert refused.err.count("must return hidden states of the shape that it is given") == 1
    plain = check("my_decay:Plain")
    assert plain.err.endswith("error: Plain must be an nn.Module, or a function that returns one\n")
    assert (refused.code, plain.code) == (2, 2)


def test_names_and_options_that_are_not_there_are_refused(check):
    assert "has no option expand" in check("gla", "--options", '{"expand": 1}').err
    for reference, message in (
        ("my_decay:Deca", "my_decay has no class Deca: expected MODULE:CLASS"),
        ("decai", "unknown mixer 'decai'"),
        ("nothing:Mixer", "no module nothing: expected nothing.py in"),
    ):
        refused = check(reference)
        assert refused.code == 2
        assert message in refused.err
