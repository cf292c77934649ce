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
        h = 2 * h if self.wrong == 'state' else h
        return torch.stack(out, 1), h if return_state else None


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
    return {words[0]: words[1] for words in lines if words[1] in ("holds", "FAILS", "-")}


def test_what_holds_is_printed_by_topic(check):
    outcome = check("my_decay:Decay")
    assert outcome.code == 0, outcome.out
    assert "can do     causal, state, variable length, exact mask\n" in outcome.out
    expected = ("dtype", "padding", "packing", "training", "saving", "compile", "future")
    assert topics(outcome.out) == dict.fromkeys((*expected, "streaming"), "holds")
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
        ("state", "streaming", "pieces give what the whole gives"),
    ],
)
def test_what_does_not_hold_is_told_with_its_case(check, wrong, topic, message):
    outcome = check("my_decay:Decay", "--options", f'{{"wrong": "{wrong}"}}')
    assert outcome.code == 1
    assert topics(outcome.out)[topic] == "FAILS"
    assert message in outcome.out
    if wrong == "float32":  # the others are checked in that precision
        assert topics(outcome.out)["padding"] == "holds"


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
