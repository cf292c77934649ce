"""The models of transformers leave PyTorch, call their output layers, refuse what is no token."""

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from flowformer.integrations.transformers import (
    FlowformerForCausalLM,
    FlowformerForSequenceClassification,
    FlowformerModel,
)
from tests.integrations.transformers.small import LEFT, PAD, TOKENS, small
from tests.tracing import trace

pytestmark = pytest.mark.usefixtures("shape_checks_off")


class Call(nn.Module):
    def __init__(self, kind: type, **changes) -> None:
        super().__init__()
        self.model = kind(small(num_hidden_layers=1, **changes)).eval()

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.model(input_ids=tokens, attention_mask=mask, use_cache=False)[0]


MODELS = {
    "model": (FlowformerModel, {}),
    "causal": (FlowformerForCausalLM, {}),
    "classes": (FlowformerForSequenceClassification, {}),
    "classes-pad": (FlowformerForSequenceClassification, {"pad_token_id": PAD}),
}
models = pytest.mark.parametrize(("kind", "changes"), MODELS.values(), ids=MODELS)


def batch(rows: int, time: int) -> tuple[Tensor, Tensor]:
    """Tokens with padding at the left of all rows but the first, and their mask."""
    mask = torch.arange(time) >= torch.arange(rows)[:, None].clamp(max=time - 1)
    return torch.randint(1, 31, (rows, time)).masked_fill(~mask, PAD), mask.long()


@pytest.mark.parametrize("masked", [False, True], ids=["tokens", "masked"])
@models
def test_a_model_traced_at_one_row_serves_many(kind: type, changes: dict, masked: bool) -> None:
    model, count = Call(kind, **changes), 1 + masked
    program = trace(model, batch(1, 6)[:count])
    for rows, time in ((4, 6), (2, 9), (1, 30)):
        given = batch(rows, time)[:count]
        torch.testing.assert_close(program(*given), model(*given), rtol=1e-4, atol=1e-5)


@pytest.mark.slow  # the language model's own export is like it
def test_an_exported_classifier_takes_any_batch_and_any_length() -> None:
    model = Call(FlowformerForSequenceClassification)
    sizes = {0: Dim("rows", max=64), 1: Dim("time", min=2, max=40)}
    shapes = {"tokens": sizes, "mask": sizes}
    program = torch.export.export(model, batch(2, 6), dynamic_shapes=shapes).module()
    for rows, time in ((1, 6), (4, 40), (3, 5)):
        given = batch(rows, time)
        torch.testing.assert_close(program(*given), model(*given), rtol=1e-4, atol=1e-5)


class LowRank(nn.Module):
    """What peft puts in place of a linear layer."""

    def __init__(self, base_layer: nn.Linear) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.down = nn.Linear(base_layer.in_features, 2, bias=False)
        self.up = nn.Linear(2, base_layer.out_features, bias=False)

    @property
    def weight(self) -> Tensor:
        return self.base_layer.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x) + self.up(self.down(x))


def test_an_adapter_on_the_output_layer_is_trained_by_chunks_too() -> None:
    model = FlowformerForCausalLM(
        small(tie_word_embeddings=False, logits_in_training=False, dropout=0.0)
    )
    model.add_module("lm_head", LowRank(model.lm_head))
    adapter = list(model.lm_head.parameters())
    losses = [model.train(mode)(TOKENS, labels=TOKENS).loss for mode in (True, False)]
    torch.testing.assert_close(*losses)
    for one, other in zip(*(torch.autograd.grad(loss, adapter) for loss in losses), strict=True):
        assert one.abs().max() > 0
        torch.testing.assert_close(one, other)


def test_tokens_and_labels_that_are_none_are_refused() -> None:
    causal = FlowformerForCausalLM(small())
    with pytest.raises(ValueError, match=r"input_ids \[b, t\].* of one sequence give"):
        causal(TOKENS[0])
    with pytest.raises(ValueError, match="token 31 is outside the vocabulary: expected 0 to 30"):
        causal(TOKENS + 22)
    assert causal(TOKENS.masked_fill(LEFT == 0, 99), attention_mask=LEFT).logits.isfinite().all()
    with pytest.raises(ValueError, match="label 31 is outside the vocabulary"):
        causal(TOKENS, labels=TOKENS + 22)
    classifier = FlowformerForSequenceClassification(small(num_labels=3))
    with pytest.raises(ValueError, match="label 3 is outside the classes: expected 0 to 2"):
        classifier(TOKENS, labels=torch.tensor([0, 3]))
    assert classifier(TOKENS, labels=torch.tensor([-100, 2])).loss.isfinite()
    several = FlowformerForSequenceClassification(small(num_labels=3))
    assert several(TOKENS, labels=torch.rand(2, 3)).loss.isfinite()  # of each class for itself
