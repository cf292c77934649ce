"""The losses of the models, and what transformers' Trainer makes of them."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments
from transformers.models.auto import modeling_auto

from flowformer.integrations.transformers import (
    FlowformerConfig,
    FlowformerForCausalLM,
    FlowformerForSequenceClassification,
)
from tests.integrations.transformers.small import LEFT, RIGHT, TOKENS, small

IGNORED = -100

both_paths = pytest.mark.parametrize("chunked", [False, True], ids=["all-logits", "chunked"])


def causal(*, chunked: bool = False, **changes: Any) -> FlowformerForCausalLM:
    """A model in training; with `chunked` its loss is computed without the logits."""
    torch.manual_seed(3)
    config = small(logits_in_training=not chunked, dropout=0.0, **changes)
    return FlowformerForCausalLM(config).double().train()


def is_zero(loss: Tensor, model: torch.nn.Module) -> bool:
    loss.backward()
    return not loss.any() and not any(
        each.grad is not None and each.grad.any() for each in model.parameters()
    )


@both_paths
@pytest.mark.parametrize("mask", [LEFT, RIGHT], ids=["left", "right"])
def test_padding_changes_no_loss_and_no_gradient(mask: Tensor, chunked: bool) -> None:
    model = causal(chunked=chunked)
    labels = TOKENS.masked_fill(mask == 0, IGNORED)
    real = mask[1].bool()
    # The mean over the six targets of the first row and the three of the second.
    alone = [model(row[None], labels=row[None]).loss for row in (TOKENS[0], TOKENS[1][real])]
    expected = (6 * alone[0] + 3 * alone[1]) / 9
    for given in (labels, TOKENS):  # padding may be labelled too
        loss = model(TOKENS, attention_mask=mask, labels=given).loss
        torch.testing.assert_close(loss, expected)
        gradients = zip(
            torch.autograd.grad(loss, list(model.parameters())),
            torch.autograd.grad(expected, list(model.parameters()), retain_graph=True),
            strict=True,
        )
        for found, right in gradients:
            torch.testing.assert_close(found, right)


@both_paths
def test_the_first_token_of_a_packed_document_is_no_target_of_the_one_before(
    chunked: bool,
) -> None:
    model = causal(chunked=chunked)
    alone = [model(row[None], labels=row[None]).loss for row in (TOKENS[0], TOKENS[1][:4])]
    row = torch.cat([TOKENS[0], TOKENS[1][:4]])[None]
    starts = torch.tensor([0, 7, 11], dtype=torch.int32)
    loss = model(row, labels=row, cu_seq_lens_q=starts).loss
    torch.testing.assert_close(loss, (6 * alone[0] + 3 * alone[1]) / 9)


@both_paths
@pytest.mark.parametrize("count", [None, 0, torch.tensor(0), 12], ids=["none", "0", "t0", "12"])
def test_a_batch_without_targets_has_no_loss_and_no_gradient(
    count: Tensor | int | None, chunked: bool
) -> None:
    model = causal(chunked=chunked)
    others = {} if count is None else {"num_items_in_batch": count}
    labels = torch.full_like(TOKENS, IGNORED)
    assert is_zero(model(TOKENS, labels=labels, **others).loss, model)


@both_paths
def test_the_loss_of_some_places_is_that_of_their_logits(chunked: bool) -> None:
    model = causal(chunked=chunked)
    loss = model(TOKENS, labels=TOKENS, logits_to_keep=3).loss
    logits = model.eval()(TOKENS).logits
    torch.testing.assert_close(loss, F.cross_entropy(logits[:, 4:6].mT, TOKENS[:, 5:]))
    with pytest.raises(ValueError, match=r"labels must be .* \[2, 7\], got \[2, 3\]"):
        model(TOKENS, labels=TOKENS[:, 4:], logits_to_keep=3)


def test_a_classifier_without_classes_in_the_batch_has_no_loss_and_no_gradient() -> None:
    model = FlowformerForSequenceClassification(small(num_labels=3)).train()
    assert is_zero(model(TOKENS, labels=torch.tensor([IGNORED] * 2)).loss, model)
    some = model(TOKENS, labels=torch.tensor([2, IGNORED]))
    torch.testing.assert_close(some.loss, F.cross_entropy(some.logits[:1], torch.tensor([2])))


def trainer(model: Any, folder: Any, rows: Any = None, **settings: Any) -> Trainer:
    arguments = TrainingArguments(
        output_dir=str(folder),
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        learning_rate=1.0,
        lr_scheduler_type="constant",
        optim="sgd",
        max_grad_norm=0.0,
        seed=1,
        **settings,
    )
    return Trainer(model=model, args=arguments, train_dataset=rows)


def test_a_smoothed_loss_is_that_of_the_next_token(tmp_path: Any) -> None:
    model = causal()
    batch = {"input_ids": TOKENS, "labels": TOKENS}
    loss = trainer(model, tmp_path, label_smoothing_factor=0.1).compute_loss(model, batch)
    logits = model(TOKENS).logits[:, :-1]
    expected = F.cross_entropy(logits.mT, TOKENS[:, 1:], label_smoothing=0.1)
    torch.testing.assert_close(loss, expected, check_dtype=False, rtol=1e-6, atol=1e-6)


def steps_alike(kind: type, rows: list[dict[str, Any]], folder: Any, **changes: Any) -> None:
    """Compare a step of single rows, accumulated, with one of all rows at once."""
    weights = []
    for size in (1, len(rows)):
        torch.manual_seed(4)
        model = kind(small(dropout=0.0, **changes))
        taught = trainer(
            model,
            folder,
            rows,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=len(rows) // size,
            max_steps=1,
        )
        taught.train()
        weights.append(torch.cat([each.detach().flatten() for each in model.parameters()]))
    torch.testing.assert_close(weights[0], weights[1])


@pytest.mark.filterwarnings("ignore")  # the Trainer's own, of what it was not given
@pytest.mark.parametrize("logits", [True, False], ids=["all-logits", "chunked"])
def test_accumulated_batches_of_which_one_has_no_target_make_the_step_of_one_batch(
    logits: bool, tmp_path: Any
) -> None:
    rows = [{"input_ids": row, "labels": row} for row in (TOKENS[0], TOKENS[1], TOKENS[0])]
    rows[1]["labels"] = torch.full_like(TOKENS[1], IGNORED)
    rows[2]["labels"] = TOKENS[0].masked_fill(TOKENS[0] > 4, IGNORED)
    steps_alike(FlowformerForCausalLM, rows, tmp_path, logits_in_training=logits)


@pytest.mark.filterwarnings("ignore")  # the Trainer's own, of what it was not given
def test_accumulated_batches_of_a_classifier_make_the_step_of_one_batch(tmp_path: Any) -> None:
    rows = [{"input_ids": row, "labels": 1} for row in (TOKENS[0], TOKENS[1], TOKENS[1])]
    steps_alike(FlowformerForSequenceClassification, rows, tmp_path, num_labels=3)


TABLES = {
    name: table
    for name, table in vars(modeling_auto).items()
    if name.endswith("_MAPPING_NAMES") and "llama" in table
}
OURS = ("Model", "ForCausalLM", "ForSequenceClassification")


def test_transformers_tables_of_names_have_the_models_wherever_they_have_llama() -> None:
    """Llama is our models' like: where transformers looks for its class, ours are looked for."""
    found = {}
    for name, table in TABLES.items():
        kind = table["llama"].removeprefix("Llama")
        if kind in OURS:
            found[kind] = name
            assert table["flowformer"] == f"Flowformer{kind}", name
    assert set(found) == set(OURS)


def test_tables_of_names_are_still_read_as_classes() -> None:
    mapping = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING
    assert mapping[LlamaConfig] is LlamaForCausalLM
    assert mapping[FlowformerConfig] is FlowformerForCausalLM
    assert list(mapping.keys()).count(FlowformerConfig) == 1


@pytest.mark.parametrize(
    ("task", "kind"),
    [
        ("text-generation", FlowformerForCausalLM),
        ("text-classification", FlowformerForSequenceClassification),
    ],
)
def test_pipelines_and_model_cards_know_the_models(task: str, kind: type) -> None:
    from transformers.modelcard import TASK_MAPPING

    assert kind.__name__ in TASK_MAPPING[task].values()
