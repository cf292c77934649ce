"""The same choices as transformers' `generate`, of the same model."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from flowformer.generation.generate import generate
from tests.generation.small_language_model import VOCABULARY, draw_ids

STOPS, PAD = [2, 3], 5


class Wrapped(nn.Module):
    """A GPT-2 of transformers as a model without a state."""

    has_state, vocab_size, max_positions = False, VOCABULARY, 64

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, mask: Tensor | None, *, last_logits_only: bool) -> Any:
        assert last_logits_only
        places = None if mask is None else (mask.long().cumsum(1) - 1).clamp(min=0)
        return self.model(input_ids, attention_mask=mask, position_ids=places, use_cache=False)


@pytest.fixture(scope="module")
def theirs() -> Any:
    torch.manual_seed(1)
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=64,
        n_embd=24,
        n_layer=2,
        n_head=3,
        bos_token_id=1,
        eos_token_id=STOPS,
        initializer_range=0.2,
    )
    return GPT2LMHeadModel(config).double().eval()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"repetition_penalty": 1.3},
        {"do_sample": True},
        {"do_sample": True, "temperature": 0.7, "top_k": 5, "top_p": 0.8},
        {"num_beams": 4},
        {"num_beams": 4, "length_penalty": 0.0},
        {"num_beams": 4, "length_penalty": -1.0},
        {"num_beams": 4, "repetition_penalty": 1.3},
    ],
    ids=str,
)
def test_sequences_are_those_of_transformers(theirs, options):
    ids, mask = draw_ids(5, 6), torch.ones(5, 6, dtype=torch.bool)
    mask[0, :3] = mask[2, :1] = False
    # Tokens of the padding count as repeated there, not here: they are tokens of the prompt.
    ids = torch.where(mask, ids, ids[:, -1:])
    only_there: dict[str, Any] = {"early_stopping": "never"} if "num_beams" in options else {}
    if options.get("do_sample"):
        only_there = {"top_k": 0}
    torch.manual_seed(3)
    expected = theirs.generate(
        ids,
        attention_mask=mask.long(),
        max_new_tokens=20,
        pad_token_id=PAD,
        **{**only_there, **options},
    )
    torch.manual_seed(3)
    output = generate(
        Wrapped(theirs).eval(),
        ids,
        attention_mask=mask,
        max_new_tokens=20,
        stop_ids=STOPS,
        pad_id=PAD,
        **options,
    )
    new = expected[:, 6:]
    assert output.sequences[:, 6:].equal(new)
    assert output.finished.equal(torch.isin(new, torch.tensor(STOPS)).any(1))
    assert output.finished.any()
