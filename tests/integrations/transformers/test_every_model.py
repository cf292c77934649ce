"""`attn_implementation="flow"` in every class of transformers that predicts token after token.

Each is either right or refused by name: no later token moves an earlier prediction, and padding
changes nothing.
"""

import re
from typing import Any

import pytest
import torch
import transformers

import flowformer.integrations.transformers  # noqa: F401 - registers "flow"
from flowformer.nn.mixers import flow
from tests.integrations.transformers.tiny import UNBUILT, autoregressive_names, build, logits

# Of each way to build a model, one or two that `make test` looks at; all of them take a minute.
FAST = (
    "BartForConditionalGeneration",  # one class of attention for all three
    "BertLMHeadModel",  # an encoder as a decoder
    "BigBirdPegasusForCausalLM",  # modules that do not say that they are causal
    "EncoderDecoderModel",
    "LlamaForCausalLM",
    "MvpForConditionalGeneration",  # refused
    "WhisperForConditionalGeneration",
)
ALL = [
    pytest.param(name, marks=[] if name in FAST else [pytest.mark.slow])
    for name in autoregressive_names()
]
REFUSED = "interface|no mixer has|weight for (each|a) pair|computes with its attention mask itself"


@pytest.mark.filterwarnings("ignore")  # of the models themselves; ours have tests of their own
@pytest.mark.parametrize("name", ALL)
def test_is_right_or_refused_by_name(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if name in UNBUILT:
        pytest.xfail(UNBUILT[name])
    kind = getattr(transformers, name)
    calls: list[bool] = []
    attend = flow.flow_attention

    def spy(*tensors: Any, causal: bool = False, **others: Any) -> Any:
        calls.append(causal)
        return attend(*tensors, causal=causal, **others)

    monkeypatch.setattr(flow, "flow_attention", spy)
    tokens = torch.randint(5, 30, (2, 7), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        try:
            model = build(kind, "flow")
            expected = logits(model, tokens)
        except (ValueError, NotImplementedError, TypeError, AttributeError) as error:
            assert re.search(REFUSED, str(error)), error  # noqa: PT017 - either of two ends
            return
        assert True in calls
        later = tokens.clone()
        later[:, -2:] = 31
        moved = (logits(model, later) - expected).abs()
        scale = float(moved[:, -1].max())
        assert scale > 1e-3
        assert moved[:, :5].max() <= 1e-12 * scale
        mask = torch.ones_like(tokens)
        mask[:, 5:] = 0
        padded, alone = logits(model, later, mask), logits(model, tokens[:, :5])
    # Routers of experts and state spaces compute in single precision, in whatever order.
    torch.testing.assert_close(padded[:, :5], alone, rtol=0, atol=1e-6 * scale)


def test_what_is_not_built_is_still_there() -> None:
    names = set(autoregressive_names())
    assert UNBUILT.keys() <= names
    assert set(FAST) <= names
    assert len(names) > 150, transformers.__version__
