"""The Long Range Arena's models compiled, saved, and trained to tell an order."""

import io
from typing import Any

import pytest
import torch
from torch import Tensor

from flowformer.models.sequences.config import SequenceModelConfig
from flowformer.models.sequences.model import SequenceClassifier
from tests.models.sequences.cases import build, build_pair, features, loss_of, padded, tokens


@pytest.mark.usefixtures("shape_checks_off")
@pytest.mark.parametrize("kind", ["tokens", "features"])
def test_the_models_compile_without_a_graph_break(kind: str) -> None:
    torch.compiler.reset()
    model = (build() if kind == "tokens" else build(None, 5)).float()
    inputs = tokens(2, 13) if kind == "tokens" else features(2, 13, 5).float()
    mask = torch.arange(13).expand(2, 13) < torch.tensor([[13], [6]])
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    output, expected = compiled(inputs, mask, tokens(2) % 3), model(inputs, mask, tokens(2) % 3)
    torch.testing.assert_close(output.logits, expected.logits)
    torch.testing.assert_close(output.loss, expected.loss)


@pytest.mark.usefixtures("shape_checks_off")
def test_the_pair_model_compiles_without_a_graph_break() -> None:
    torch.compiler.reset()
    model, first, second = build_pair().float(), padded(tokens(2, 9), 13, 0), tokens(2, 7)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(first, second).logits, model(first, second).logits)


@pytest.mark.parametrize("positions", ["learned", "sinusoidal", "none"])
def test_parameters_survive_a_file(positions: str) -> None:
    model, file = build(positions=positions), io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    torch.manual_seed(7)
    other = SequenceClassifier(model.encoder.config, vocab_size=11, num_classes=3, max_length=21)
    other = other.double().eval()
    assert not other(tokens(2, 9)).logits.equal(model(tokens(2, 9)).logits)
    other.load_state_dict(torch.load(file))
    assert other(tokens(2, 9)).logits.equal(model(tokens(2, 9)).logits)


def test_the_seed_decides_parameters_and_dropout() -> None:
    first, second = build(), build()
    for name, value in first.state_dict().items():
        assert value.equal(second.state_dict()[name])
    first.train()
    logits = []
    for seed in (4, 4, 5):
        torch.manual_seed(seed)
        logits.append(first(tokens(2, 9)).logits)
    assert logits[0].equal(logits[1])
    assert not logits[0].equal(logits[2])


def order_problems(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Sequences with one 1 and one 2 among other tokens: does the 1 come first?"""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 11, (count, 12), generator=generator)
    places = torch.rand(count, 12, generator=generator).argsort(1)
    ids.scatter_(1, places[:, :2], torch.tensor([1, 2]).expand(count, 2))
    return ids, (places[:, 0] < places[:, 1]).long()


def trained_loss(**changes: Any) -> float:
    """On problems not seen, after 200 steps."""
    torch.manual_seed(0)
    config = SequenceModelConfig(dim=32, feedforward=64, dropout=0.0, num_layers=2, **changes)
    model = SequenceClassifier(config, vocab_size=11, num_classes=2, max_length=12)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for step in range(200):
        ids, labels = order_problems(64, seed=step)
        optimizer.zero_grad()
        loss_of(model(ids, labels=labels)).backward()
        optimizer.step()
    ids, labels = order_problems(512, seed=10_000)
    with torch.no_grad():
        return loss_of(model(ids, labels=labels)).item()


@pytest.mark.parametrize(
    ("mixer", "pooling"),
    [
        pytest.param("flow", "mean", id="paper-mean"),
        # Evidence of the published variant; that each parameter of it learns is tested of all.
        pytest.param("flow-heads", "cls", id="published-cls", marks=pytest.mark.slow),
    ],
)
def test_training_learns_an_order(mixer: str, pooling: str) -> None:
    assert trained_loss(mixer=mixer, pooling=pooling) < 0.25


def test_without_positions_a_bag_of_tokens_learns_no_order() -> None:
    assert trained_loss(positions="none", pooling="mean") > 0.65
