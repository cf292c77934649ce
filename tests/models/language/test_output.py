"""Output layers are called: what stands in place of a linear layer counts, in every loss."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

from flowformer.models.language import output
from flowformer.models.language.config import LanguageModelConfig
from flowformer.models.language.model import LanguageModel
from flowformer.models.language.output import chunked_loss
from flowformer.models.series.config import TimeSeriesModelConfig
from flowformer.models.series.model import TimeSeriesClassifier
from tests.models.test_cross_entropy import Largest

VOCABULARY = 31
SMALL: dict[str, Any] = {
    "dim": 16,
    "num_heads": 2,
    "num_layers": 1,
    "feedforward": 24,
    "dropout": 0.0,
}


def build(**changes) -> LanguageModel:
    config = LanguageModelConfig(**{**SMALL, "max_length": 20, **changes})
    return LanguageModel(config, vocab_size=VOCABULARY)


def tokens(*shape: int) -> Tensor:
    return torch.randint(1, VOCABULARY, shape)


class LowRank(nn.Module):
    """What peft puts in place of a layer: the layer and two factors."""

    def __init__(self, base_layer: nn.Linear | nn.Embedding) -> None:
        super().__init__()
        self.base_layer = base_layer.requires_grad_(False)
        rows, columns = base_layer.weight.shape
        self.down = nn.Parameter(torch.randn(2, columns))
        self.up = nn.Parameter(torch.randn(rows, 2))

    @property
    def weight(self) -> Tensor:
        return self.base_layer.weight  # as peft has it

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self.base_layer, nn.Embedding):
            return self.base_layer(x) + self.up[x] @ self.down
        return self.base_layer(x) + x @ self.down.T @ self.up.T

    def merged(self) -> Tensor:
        return self.base_layer.weight + self.up @ self.down


def merge(model: LanguageModel) -> LanguageModel:
    """The same model with plain layers."""
    name = "embedding" if model.head is None else "head"
    plain, adapted = build(tie_embeddings=model.head is None), getattr(model, name)
    weights = {n: v for n, v in model.state_dict().items() if not n.startswith(name)}
    plain.load_state_dict({**weights, f"{name}.weight": adapted.merged()})
    return plain


@pytest.mark.parametrize("tied", [False, True], ids=["own", "tied"])
@pytest.mark.parametrize("logits", [True, False], ids=["logits", "chunks"])
def test_an_adapter_counts_before_it_is_merged_and_gets_its_gradient(
    tied: bool, logits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output, "_VOCABULARY", output.CHUNK_ELEMENTS // 4)
    model, ids = build(tie_embeddings=tied), tokens(3, 9)
    name = "embedding" if tied else "head"
    adapted = LowRank(getattr(model, name))
    setattr(model, name, adapted)
    loss = model(ids, labels=ids, return_logits=logits).loss
    expected = merge(model)(ids, labels=ids).loss
    torch.testing.assert_close(loss, expected)
    with torch.no_grad():
        torch.testing.assert_close(model(ids, labels=ids, return_logits=logits).loss, expected)
    dense = torch.autograd.grad(model(ids, labels=ids).loss, (adapted.down, adapted.up))
    for gradient, wanted in zip(
        torch.autograd.grad(loss, (adapted.down, adapted.up)), dense, strict=True
    ):
        assert gradient.abs().max() > 0
        torch.testing.assert_close(gradient, wanted)


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def with_parametrization(head: nn.Linear) -> nn.Module:
    parametrize.register_parametrization(head, "weight", Doubled())
    return head


def with_hook(head: nn.Linear) -> nn.Module:
    def double(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        return 2 * output

    head.register_forward_hook(double)
    return head


def pruned(head: nn.Linear) -> nn.Module:
    prune.l1_unstructured(head, "weight", 0.5)
    return head


class Quantized(nn.Module):
    """As PyTorch's: its weight is a method, and no gradient leaves it."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.rounded = (layer.weight.detach() * 16).round().to(torch.int8)

    def weight(self) -> Tensor:
        return self.rounded

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.rounded.to(x.dtype).T / 16


def with_bias(head: nn.Linear) -> nn.Module:
    head.bias = nn.Parameter(torch.randn(head.out_features))
    return head


CHANGES = [with_parametrization, with_hook, pruned, with_bias, LowRank, Quantized]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_loss_by_chunks_is_that_of_the_layer_as_it_is(
    change: Callable[[nn.Linear], nn.Module],
) -> None:
    head = change(nn.Linear(8, VOCABULARY, bias=False)).double()
    hidden = torch.randn(2, 9, 8, dtype=torch.float64, requires_grad=True)
    targets = tokens(2, 9).index_fill(1, torch.tensor([0, 4]), -100)
    wanted = nn.functional.cross_entropy(head(hidden).flatten(0, 1), targets.flatten())
    inputs = [hidden, *(each for each in head.parameters() if each.requires_grad)]
    expected = torch.autograd.grad(wanted, inputs)
    for chunk in (1, 4, 5, 100):
        loss = chunked_loss(hidden, head, targets, chunk=chunk)
        torch.testing.assert_close(loss, wanted)
        for gradient, right in zip(torch.autograd.grad(loss, inputs), expected, strict=True):
            torch.testing.assert_close(gradient, right)


def test_the_logits_of_all_tokens_never_exist_for_a_layer_that_is_called() -> None:
    head, hidden = LowRank(nn.Linear(8, 500, bias=False)), torch.randn(4, 100, 8)
    hidden.requires_grad_()
    with Largest() as largest:
        chunked_loss(hidden, head, torch.randint(500, (4, 100)), chunk=40).backward()
    assert largest.numel == 40 * 500


@pytest.mark.parametrize("logits", [True, False], ids=["logits", "chunks"])
def test_hooks_of_the_output_see_each_token_once(logits: bool) -> None:
    model, ids, seen = build(tie_embeddings=False), tokens(3, 9), []
    assert model.head is not None
    model.head.register_forward_hook(lambda _m, _i, output: seen.append(output.shape[:2].numel()))
    model.head.register_full_backward_hook(lambda _m, _i, grads: seen.append(grads[0].shape[2]))
    model(ids, labels=ids, return_logits=logits).loss.backward()
    assert seen == [27, VOCABULARY]


@pytest.mark.parametrize("tied", [False, True], ids=["own", "tied"])
def test_an_offloaded_model_gives_the_same_logits_and_loss(tied: bool) -> None:
    model, ids = build(tie_embeddings=tied).eval(), tokens(3, 9)
    with torch.no_grad():
        expected = model(ids, labels=ids)
        cpu_offload(model, execution_device=torch.device("cpu"))
        assert model(ids, labels=ids).logits.equal(expected.logits)
        loss = model(ids, labels=ids, return_logits=False).loss
    torch.testing.assert_close(loss, expected.loss)


def test_the_flatten_classifier_calls_its_head() -> None:
    config = TimeSeriesModelConfig(**SMALL)
    model = TimeSeriesClassifier(config, channels=3, num_classes=4, max_length=12).eval()
    series, mask = torch.randn(2, 9, 3), torch.arange(9)[None] < torch.tensor([[9], [5]])
    for given in (None, mask):
        plain = model(series, given).logits
        factor = nn.Parameter(torch.ones(()))
        model.head.register_forward_hook(lambda _m, _i, output, by=factor: by * output)
        model(series, given).logits.sum().backward()
        torch.testing.assert_close(factor.grad, plain.sum())
        model.head._forward_hooks.clear()


def test_matrices_decay_that_a_parametrization_computes() -> None:
    model = build(tie_embeddings=False)
    head = model.head
    assert head is not None
    parametrize.register_parametrization(head, "weight", Doubled())
    decayed = {id(each) for each in model.parameter_groups(0.1)[0]["params"]}
    assert id(head.get_parameter("parametrizations.weight.original")) in decayed
