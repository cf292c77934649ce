"""Published attention modules: their equations, written anew here, against the mixers."""

import pytest
import torch
from torch import Tensor, nn

from flowformer.nn.mixers.building import published_mixer

EPS = 1e-6


class Published(nn.Module):
    """The four projections of a published module, whose names make its state dict."""

    def __init__(self, width: int, inner: int, out: int, heads: int) -> None:
        super().__init__()
        self.query_projection = nn.Linear(width, inner)
        self.key_projection = nn.Linear(width, inner)
        self.value_projection = nn.Linear(width, inner)
        self.out_projection = nn.Linear(inner, out)
        self.heads = heads

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        q, k, v = (
            projection(tokens).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for projection, tokens in (
                (self.query_projection, x),
                (self.key_projection, context),
                (self.value_projection, context),
            )
        )
        out = self.attend(q.sigmoid(), k.sigmoid(), v)
        return self.out_projection(out.transpose(1, 2).flatten(2))

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        raise NotImplementedError


def inner(a: Tensor, b: Tensor) -> Tensor:
    return ((a + EPS) * (b + EPS)).sum(-1, keepdim=True)


class Bidirectional(Published):
    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        incoming = inner(q, k.sum(-2, keepdim=True))
        outgoing = inner(k, q.sum(-2, keepdim=True))
        conserved_sink = inner(q, (k / outgoing).sum(-2, keepdim=True))
        conserved_source = inner(k, (q / incoming).sum(-2, keepdim=True)).clamp(-1, 1)
        allocation = (conserved_sink * q.shape[-2] / k.shape[-2]).sigmoid()
        competition = conserved_source.softmax(-2) * k.shape[-2]
        return (q / incoming) @ (k.mT @ (v * competition)) * allocation


class Causal(Published):
    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        n = torch.arange(1, q.shape[-2] + 1, dtype=q.dtype)[:, None]
        incoming = inner(q, k.cumsum(-2)) / n
        outgoing = inner(k, q.cumsum(-2)) / n
        conserved_sink = inner(q, (k / outgoing).cumsum(-2)) / n
        conserved_source = (inner(k, (q / incoming).cumsum(-2)) / n).clamp(-1, 1).exp()
        competition = conserved_source / conserved_source.cumsum(-2) * n
        mixed = ((q / incoming / n) @ k.mT).tril() @ (v * competition)
        return mixed * conserved_sink.sigmoid()


class Mobile(Published):
    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        incoming = inner(q, k.sum(1, keepdim=True))
        outgoing = inner(k, q.sum(1, keepdim=True))
        conserved_sink = inner(q, (k / outgoing).sum(1, keepdim=True))
        conserved_source = inner(k, (q / incoming).sum(1, keepdim=True)).clamp(-1, 1)
        competition = conserved_source.softmax(-2) * k.shape[-2]
        return (q / incoming) @ (k.mT @ (v * competition)) * conserved_sink.sigmoid()


CASES = {
    "Flow_Attention": Bidirectional,
    "Flow_Attention_Causal": Causal,
    "Mobile_Attention": Mobile,
}


@pytest.mark.parametrize("length", [1, 63, 100], ids="t{}".format)
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("out", [10, 7], ids=["same-width", "other-width"])
def test_mixer_computes_what_the_module_computes(name: str, length: int, out: int) -> None:
    module = CASES[name](10, 16, out, 4).double()
    mixer = published_mixer(module.state_dict(), 4, name=name).eval()
    x = torch.randn(2, length, 10).double()
    y, _ = mixer(x, causal=name == "Flow_Attention_Causal")
    torch.testing.assert_close(y, module(x, x))


def test_cross_attention_to_another_length() -> None:
    module = Bidirectional(10, 16, 10, 4).double()
    mixer = published_mixer(module.state_dict(), 4).eval()
    x, context = torch.randn(2, 9, 10).double(), torch.randn(2, 23, 10).double()
    torch.testing.assert_close(mixer(x, context)[0], module(x, context))


def test_published_dropout_acts_on_the_output() -> None:
    module = Bidirectional(10, 16, 10, 4)
    x = torch.randn(2, 500, 10)
    dropped = published_mixer(module.state_dict(), 4)(x)[0] == 0
    assert 0.03 < dropped.double().mean() < 0.07


class TestRefusals:
    def test_unknown_module(self) -> None:
        with pytest.raises(ValueError, match="'Flow_Attn': expected Flow_Attention, Flow_Att"):
            published_mixer({}, 4, name="Flow_Attn")

    def test_missing_and_unknown_parameters(self) -> None:
        state = Bidirectional(10, 16, 10, 4).state_dict()
        state["scale"] = state.pop("out_projection.bias")
        with pytest.raises(ValueError, match=r"missing \['out_projection.bias'\].*\['scale'\]"):
            published_mixer(state, 4)

    def test_heads_that_do_not_fit(self) -> None:
        with pytest.raises(ValueError, match="divide the inner width 16, got 3"):
            published_mixer(Bidirectional(10, 16, 10, 4).state_dict(), 3)

    def test_shapes_that_do_not_fit(self) -> None:
        state = Bidirectional(10, 16, 10, 4).state_dict()
        state["value_projection.bias"] = torch.zeros(12)
        with pytest.raises(ValueError, match=r"value_projection.bias: expected \[16\], got \[12\]"):
            published_mixer(state, 4)
