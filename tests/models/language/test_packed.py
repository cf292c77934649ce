"""Documents packed in one row: none sees another one."""

from typing import Any

import pytest
import torch

from flowformer.models.language.model import LanguageModel
from flowformer.nn import MIXERS
from tests.models.language.test_model import (
    POSITIONS,
    build,
    build_with,
    close,
    logits_of,
    loss_of,
    states_of,
    tokens,
)

LENGTHS = (5, 1, 17, 0, 3)
EXACT = [
    name
    for name, kind in MIXERS.items()
    if kind.capabilities.causal and kind.capabilities.exact_mask
]


def packed() -> tuple[torch.Tensor, torch.Tensor]:
    """One row of documents, and where they start."""
    ids = tokens(1, sum(LENGTHS))
    return ids, torch.tensor([0, *LENGTHS]).cumsum(0).int()


def check_alone(model: LanguageModel) -> None:
    """Each document has the logits that it has alone."""
    ids, offsets = packed()
    together = logits_of(model(ids, cu_seqlens=offsets))
    alone = [logits_of(model(each)) for each in ids.split(LENGTHS, 1) if each.shape[1]]
    close(together, torch.cat(alone, 1))


@pytest.mark.parametrize("mixer", EXACT)
def test_each_mixer_gives_a_packed_document_what_it_gives_it_alone(mixer: str) -> None:
    check_alone(build_with(mixer))


@pytest.mark.parametrize("positions", POSITIONS)
def test_places_start_anew_in_each_document(positions: str) -> None:
    check_alone(build(positions=positions))


def test_a_row_may_be_longer_than_the_table_that_each_document_fits_in() -> None:
    check_alone(build(positions="learned", max_length=17))
    with pytest.raises(ValueError, match="there are 16 places, got a sequence of 17"):
        check_alone(build(positions="learned", max_length=16))


@pytest.mark.parametrize("return_logits", [True, False], ids=["logits", "chunked"])
def test_no_label_is_predicted_from_another_document(return_logits: bool) -> None:
    model = build()
    ids, offsets = packed()
    loss = loss_of(model(ids, labels=ids, cu_seqlens=offsets, return_logits=return_logits))
    sums = [
        loss_of(model(each, labels=each)) * (each.shape[1] - 1)
        for each in ids.split(LENGTHS, 1)
        if each.shape[1] > 1
    ]
    close(loss, torch.stack(sums).sum() / (4 + 16 + 2))


def test_gradients_of_packed_documents_are_those_of_padded_ones() -> None:
    model = build()
    ids, offsets = packed()
    targets = tokens(1, sum(LENGTHS), seed=4)
    padded, mask, right = (torch.zeros(len(LENGTHS), 17, dtype=ids.dtype) for _ in range(3))
    mask = torch.arange(17) < torch.tensor(LENGTHS)[:, None]
    padded[mask], right[mask] = ids[0], targets[0]
    parameters = list(model.parameters())
    one, other = (
        torch.autograd.grad(loss_of(output), parameters)
        for output in (
            model(ids, targets=targets, cu_seqlens=offsets),
            model(padded, mask, targets=right),
        )
    )
    for gradient, expected in zip(one, other, strict=True):
        close(gradient, expected)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"use_cache": True}, "neither a context nor a state"),
        ({"last_logits_only": True}, "no logits for labels, targets or packed"),
        ({"attention_mask": torch.ones(1, 26, dtype=torch.bool)}, "cu_seqlens or a mask"),
        ({"cu_seqlens": torch.tensor([0, 5, 25])}, "from 0 to the number of tokens, 26"),
        ({"input_ids": tokens(2, 13)}, "batch size 1"),
    ],
    ids=["cache", "last", "mask", "short", "rows"],
)
def test_what_contradicts_packing_is_refused(call: dict[str, Any], message: str) -> None:
    ids, offsets = packed()
    with pytest.raises(ValueError, match=message):
        build()(**{"input_ids": ids, "cu_seqlens": offsets, **call})


def test_a_state_cannot_go_on_into_packed_documents() -> None:
    model = build()
    ids, offsets = packed()
    states = states_of(model(tokens(1, 3), use_cache=True))
    with pytest.raises(ValueError, match="neither a context nor a state"):
        model(ids, past_states=states, cu_seqlens=offsets)
