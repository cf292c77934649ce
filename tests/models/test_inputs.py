"""What no model can read is refused by our own words: tokens and labels, in every model."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flowformer.models.images.config import VisionModelConfig
from flowformer.models.images.model import VisionClassifier
from flowformer.models.inputs import last_real
from flowformer.models.language.config import LanguageModelConfig
from flowformer.models.language.model import LanguageModel
from flowformer.models.sequences.config import SequenceModelConfig
from flowformer.models.sequences.model import PairClassifier, SequenceClassifier
from flowformer.models.series.config import TimeSeriesModelConfig
from flowformer.models.series.model import build_classifier

pytestmark = pytest.mark.usefixtures("shape_checks_off")

SIZES: dict[str, Any] = {"dim": 8, "num_heads": 2, "num_layers": 1, "feedforward": 8}
IDS = torch.tensor([[3, 1, 4], [1, 5, 2]])


def language(**call: Tensor) -> Tensor:
    model = LanguageModel(LanguageModelConfig(**SIZES), vocab_size=6)
    return model(**{"input_ids": IDS, **call}).loss


def sequences(**call: Tensor) -> Tensor:
    config = SequenceModelConfig(**SIZES)
    model = SequenceClassifier(config, vocab_size=6, num_classes=3, max_length=4)
    return model(**{"inputs": IDS, **call}).loss


def pairs(**call: Tensor) -> Tensor:
    model = PairClassifier(SequenceModelConfig(**SIZES), vocab_size=6, num_classes=3, max_length=4)
    return model(IDS, **{"second": IDS, **call}).loss


def series(encoder: str) -> Callable[..., Tensor]:
    def call(**call: Tensor) -> Tensor:
        config = TimeSeriesModelConfig(**{**SIZES, "encoder": encoder})
        model = build_classifier(config, channels=2, num_classes=3, max_length=4)
        return model(torch.randn(2, 4, 2), **call).loss

    return call


def images(**call: Tensor) -> Tensor:
    config = VisionModelConfig(patch_size=2, dims=(8,), depths=(1,), num_heads=(2,))
    return VisionClassifier(config, image_size=4, num_classes=3)(
        torch.randn(2, 3, 4, 4), **call
    ).loss


CLASSIFIERS = {
    "sequences": sequences,
    "pairs": pairs,
    "transformer": series("transformer"),
    "lstm": series("lstm"),
    "dilated-conv": series("dilated-conv"),
    "images": images,
}
classifiers = pytest.mark.parametrize("model", CLASSIFIERS.values(), ids=CLASSIFIERS)


@classifiers
@pytest.mark.parametrize("label", [3, 7, -1, -99])
def test_a_label_that_is_no_class_is_refused(model: Callable[..., Tensor], label: int) -> None:
    with pytest.raises(ValueError, match=rf"label {label} is outside the classes: expected 0 to 2"):
        model(labels=torch.tensor([0, label]))


@classifiers
def test_labels_of_another_shape_are_refused(model: Callable[..., Tensor]) -> None:
    for labels in (torch.tensor([[0], [1]]), torch.tensor([0, 1, 2])):
        with pytest.raises(ValueError, match=r"expected labels \[2\], integers .* got \["):
            model(labels=labels)


@classifiers
def test_a_label_of_minus_100_counts_for_nothing(model: Callable[..., Tensor]) -> None:
    torch.manual_seed(1)
    loss = model(labels=torch.tensor([-100, 2]))
    assert loss.isfinite()


@classifiers
def test_labels_may_be_bytes(model: Callable[..., Tensor]) -> None:
    assert model(labels=torch.tensor([0, 2], dtype=torch.uint8)).isfinite()
    with pytest.raises(ValueError, match="label 156 is outside the classes: expected 0 to 2"):
        model(labels=torch.tensor([0, 156], dtype=torch.uint8))  # -100, cut to a byte


@pytest.mark.parametrize("tied", [True, False])
def test_an_embedding_of_more_tokens_makes_the_vocabulary_larger(tied: bool) -> None:
    model = LanguageModel(LanguageModelConfig(**SIZES, tie_embeddings=tied), vocab_size=6)
    model.embedding = nn.Embedding(9, 8)
    if not tied:
        model.head = nn.Linear(8, 9, bias=False)
    assert model.vocab_size == 9
    assert model(IDS + 3, labels=IDS + 3).logits.shape == (2, 3, 9)


@pytest.mark.parametrize("name", ["labels", "targets"])
@pytest.mark.parametrize("label", [6, -7])
def test_a_label_outside_the_vocabulary_is_refused(name: str, label: int) -> None:
    given = IDS.clone()
    given[1, 1] = label
    with pytest.raises(ValueError, match=rf"label {label} is outside the vocabulary: .* 0 to 5"):
        language(**{name: given})
    with pytest.raises(ValueError, match=rf"expected {name} \[2, 3\], integers .* got \[2, 2\]"):
        language(**{name: IDS[:, :2]})


@pytest.mark.parametrize(
    ("model", "name"),
    [(language, "input_ids"), (sequences, "inputs"), (pairs, "second")],
    ids=["language", "sequences", "pairs"],
)
def test_tokens_without_a_batch_are_refused(model: Callable[..., Tensor], name: str) -> None:
    with pytest.raises(ValueError, match=r"\[b, t\].* got \(3,\) of torch.int64; of one sequence"):
        model(**{name: IDS[0]})
    with pytest.raises(ValueError, match=r"\[b, t\], integers, got \(2, 3\) of torch.float32"):
        model(**{name: IDS.float()})


def test_labels_in_the_padding_may_be_anything() -> None:
    mask = torch.tensor([[True, True, True], [True, True, False]])
    labels = IDS.masked_fill(~mask, 99)
    assert language(labels=labels, attention_mask=mask).isfinite()


def test_values_are_not_looked_at_on_another_device() -> None:
    config = LanguageModelConfig(**SIZES, positions="none")
    model = LanguageModel(config, vocab_size=6).to("meta")
    assert model(IDS.to("meta"), labels=IDS.to("meta") + 9).loss.is_meta


def test_the_last_real_token_of_each_row_is_found_with_padding_on_either_side() -> None:
    x = torch.randn(4, 3, 2)
    mask = torch.tensor([[1, 1, 1], [1, 0, 0], [0, 1, 0], [0, 0, 0]]).bool()
    assert last_real(x, mask).equal(x[torch.arange(4), torch.tensor([2, 0, 1, 0])])
    assert last_real(x, None).equal(x[:, -1])
