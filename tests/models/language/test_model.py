"""The language model: the published one exactly, causal, and one that padding cannot change."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from flowformer.models.language.config import LanguageModelConfig
from flowformer.models.language.model import LanguageModel, LanguageOutput, LanguageState
from flowformer.nn import MIXERS
from tests.conformance.cases import CASES, Case

SMALL = LanguageModelConfig(dim=24, num_heads=3, num_layers=2, feedforward=40, max_length=64)
PUBLISHED = replace(
    SMALL,
    feedforward=96,
    max_length=40,
    positions="learned",
    activation="gelu-tanh",
    tie_embeddings=False,
    scale_embeddings=False,
)
VOCABULARY = 31
POSITIONS = ("learned", "sinusoidal", "sinusoidal-fairseq", "rotary", "none")

CAUSAL = [name for name, kind in MIXERS.items() if kind.capabilities.causal]
STATEFUL = [name for name in CAUSAL if MIXERS[name].capabilities.state]
STATELESS = [name for name in CAUSAL if name not in STATEFUL]


def build(config: LanguageModelConfig = SMALL, **changes: Any) -> LanguageModel:
    """A model with parameters large enough to tell its parts apart."""
    torch.manual_seed(1)
    model = LanguageModel(replace(config, **changes), vocab_size=VOCABULARY).double().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "blocks" in name or "positions" in name:
                parameter.mul_(4)
            if name == "embedding.weight":
                parameter.mul_(25)
    return model


def build_with(mixer: str, **changes: Any) -> LanguageModel:
    return build(mixer=mixer, mixer_options=dict(CASES.get(mixer, Case()).options), **changes)


def tokens(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(VOCABULARY, shape, generator=torch.Generator().manual_seed(seed))


def logits_of(output: LanguageOutput) -> Tensor:
    assert output.logits is not None
    return output.logits


def loss_of(output: LanguageOutput) -> Tensor:
    assert output.loss is not None
    return output.loss


def states_of(output: LanguageOutput) -> LanguageState:
    assert output.states is not None
    return output.states


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-10) -> None:
    largest = max(1.0, float(expected.detach().abs().max()))
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance * largest)


def padded(lengths: list[int], length: int, side: str) -> tuple[Tensor, Tensor, list[Tensor]]:
    """A batch with ids outside the vocabulary as padding, its mask, and the sequences alone."""
    sequences = [tokens(n, seed=n) for n in lengths]
    batch = torch.full((len(lengths), length), VOCABULARY + 5)
    mask = torch.zeros(len(lengths), length, dtype=torch.bool)
    for row, sequence in enumerate(sequences):
        place = slice(0, len(sequence)) if side == "right" else slice(length - len(sequence), None)
        batch[row, place], mask[row, place] = sequence, True
    return batch, mask, sequences


class TestPublished:
    @pytest.mark.parametrize(
        ("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)], ids=["f64", "f32"]
    )
    def test_published_parameters_give_the_published_logits_and_loss(
        self, golden, dtype: torch.dtype, tolerance: float
    ) -> None:
        values = golden("models/gpt")
        model = build(PUBLISHED).to(dtype)
        model.load_published_state_dict(published(values))
        output = model(values["input"], targets=values["target"])
        expected = values["logits"]
        error = (logits_of(output).double() - expected).abs().max() / expected.abs().max()
        assert error <= tolerance
        assert abs(loss_of(output).double() / values["loss"] - 1) <= tolerance

    def test_every_problem_is_listed_and_nothing_is_loaded(self, golden) -> None:
        state = published(golden("models/gpt"))
        del state["lm_head.weight"]
        state["lm_head.scale"] = torch.ones(31)
        state["transformer.wpe.weight"] = torch.zeros(39, 24)
        model, untouched = build(PUBLISHED), build(PUBLISHED)
        with pytest.raises(ValueError, match="not the parameters of a published GPT") as caught:
            model.load_published_state_dict(state)
        for line in (
            "missing: head.weight",
            "not known: lm_head.scale",
            "transformer.wpe.weight: expected (40, 24), got (39, 24)",
        ):
            assert line in str(caught.value)
        for name, value in untouched.state_dict().items():
            assert value.equal(model.state_dict()[name])


def published(values: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        name.removeprefix("param."): value
        for name, value in values.items()
        if name.startswith("param.")
    }


@pytest.mark.parametrize(
    "changes",
    [
        *({"positions": kind} for kind in POSITIONS),
        {"normalization": "rms"},
        {"activation": "swiglu"},
        {"bias": False},
        {"tie_embeddings": False},
        {"scale_embeddings": True},
        *({"mixer": name} for name in CAUSAL),
    ],
    ids=lambda changes: "-".join(f"{key}-{value}" for key, value in changes.items()),
)
def test_no_logits_depend_on_the_future(changes: dict[str, Any]) -> None:
    model = build_with(changes["mixer"]) if "mixer" in changes else build(**changes)
    ids = tokens(2, 40)
    before = logits_of(model(ids))
    for start in (1, 17, 39):
        changed = ids.clone()
        changed[:, start:] = (ids[:, start:] + 7) % VOCABULARY
        after = logits_of(model(changed))
        close(after[:, :start], before[:, :start], 1e-12)
        assert not after[:, start].allclose(before[:, start])


TURNED = [{"positions": "rotary", "mixer": name} for name in ("gated", "flow-gated")]


@pytest.mark.parametrize(
    "changes",
    [*({"positions": kind} for kind in POSITIONS), *TURNED],
    ids=lambda changes: "-".join(changes.values()),
)
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_neither_logits_nor_loss_nor_state(
    changes: dict[str, Any], side: str
) -> None:
    model = build(**changes)
    ids, mask, sequences = padded([1, 8, 13], 15, side)
    output = model(
        ids, mask, targets=torch.where(mask, ids.roll(-1, 1) % VOCABULARY, 3), use_cache=True
    )
    states = states_of(output)
    assert states.position.tolist() == [1, 8, 13]
    assert not logits_of(output)[~mask].any()
    for row, sequence in enumerate(sequences):
        alone = model(sequence[None], use_cache=True)
        close(logits_of(output)[row, mask[row]], logits_of(alone)[0])
        following = tokens(1, 2, seed=9)
        close(
            logits_of(model(following, past_states=states.reorder(torch.tensor([row])))),
            logits_of(model(following, past_states=states_of(alone))),
        )


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("mixer", [n for n in STATEFUL if MIXERS[n].capabilities.exact_mask])
def test_padding_is_exact_for_each_mixer_with_a_state(mixer: str, side: str) -> None:
    model = build_with(mixer)
    ids, mask, sequences = padded([1, 8, 13], 15, side)
    output = model(ids, mask, use_cache=True)
    following = tokens(3, 2, seed=9)
    continued = logits_of(model(following, past_states=states_of(output)))
    for row, sequence in enumerate(sequences):
        whole = logits_of(model(torch.cat((sequence, following[row]))[None]))[0]
        close(logits_of(output)[row, mask[row]], whole[:-2])
        close(continued[row], whole[-2:])


@pytest.mark.parametrize("side", ["left", "right"])
def test_labels_in_the_padding_count_for_nothing(side: str) -> None:
    model = build()
    ids, mask, sequences = padded([8, 13], 15, side)
    loss = loss_of(model(ids, mask, labels=ids))
    sums = sum(
        loss_of(model(each[None], labels=each[None])) * (len(each) - 1) for each in sequences
    )
    close(loss, torch.as_tensor(sums) / (7 + 12))


class TestState:
    @pytest.mark.parametrize("mixer", STATEFUL)
    def test_prefill_and_single_tokens_give_what_the_whole_gives(self, mixer: str) -> None:
        check_pieces(build_with(mixer), tokens(2, 20), (13, *[1] * 7))

    @pytest.mark.parametrize("positions", POSITIONS)
    def test_pieces_of_any_length_and_positions(self, positions: str) -> None:
        check_pieces(build(positions=positions), tokens(2, 20), (7, 12, 1))

    @pytest.mark.parametrize("positions", [p for p in POSITIONS if p != "learned"])
    @pytest.mark.parametrize("mixer", ["flow", "softmax", "gated", "flow-gated"])
    def test_sequences_go_on_past_the_table(self, mixer: str, positions: str) -> None:
        model = build(mixer=mixer, positions=positions, max_length=16)
        check_pieces(model, tokens(2, 40), (10, *[1] * 10, 20))

    @pytest.mark.parametrize("mixer", STATELESS)
    def test_a_mixer_without_a_state_says_so_when_asked_for_one(self, mixer: str) -> None:
        model = build_with(mixer)
        assert model(tokens(1, 5)).states is None
        with pytest.raises(NotImplementedError, match=r"no state form.*Mixers that can: flow"):
            model(tokens(1, 5), use_cache=True)

    def test_a_state_can_be_saved_reordered_detached_and_moved(self, tmp_path) -> None:
        model, ids = build(), tokens(3, 12)
        torch.save(states_of(model(ids[:, :8], use_cache=True)), tmp_path / "state.pt")
        order = torch.tensor([2, 0, 0])
        state = torch.load(tmp_path / "state.pt").reorder(order).detach().to("cpu")
        assert isinstance(state, LanguageState)
        close(
            logits_of(model(ids[order, 8:], past_states=state)), logits_of(model(ids[order]))[:, 8:]
        )

    def test_a_state_of_a_deeper_model_is_refused(self) -> None:
        states = states_of(build(num_layers=3)(tokens(1, 5), use_cache=True))
        with pytest.raises(ValueError, match="each of 2 layers, got 3"):
            build()(tokens(1, 5), past_states=states)


def check_pieces(model: LanguageModel, ids: Tensor, pieces: tuple[int, ...]) -> None:
    whole, states, parts = logits_of(model(ids)), None, []
    for piece in ids.split(pieces, 1):
        output = model(piece, past_states=states, use_cache=True)
        states = states_of(output)
        parts.append(logits_of(output))
    assert states is not None
    assert states.position.tolist() == [ids.shape[1]] * ids.shape[0]
    close(torch.cat(parts, 1), whole)


class TestLoss:
    def test_labels_are_shifted_as_in_transformers(self) -> None:
        model, ids = build(), tokens(2, 9)
        logits, loss, _ = model(ids, labels=ids)
        close(loss, F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()))

    def test_targets_are_not_shifted(self) -> None:
        model, ids, targets = build(), tokens(2, 9), tokens(2, 9, seed=3)
        targets[0, :5] = -100
        logits, loss, _ = model(ids, targets=targets)
        counted = targets != -100
        expected = -logits.log_softmax(-1).gather(-1, targets.clamp(min=0)[..., None])[..., 0]
        close(loss, expected[counted].mean())

    def test_without_logits_the_loss_is_the_same(self) -> None:
        model, ids = build(), tokens(2, 9)
        logits, loss, _ = model(ids, labels=ids, return_logits=False)
        assert logits is None
        close(loss, loss_of(model(ids, labels=ids)))

    def test_labels_and_targets_exclude_each_other(self) -> None:
        with pytest.raises(ValueError, match="not both"):
            build()(tokens(1, 5), labels=tokens(1, 5), targets=tokens(1, 5))

    def test_one_row_of_logits_has_no_loss(self) -> None:
        with pytest.raises(ValueError, match="last_logits_only has no logits for labels"):
            build()(tokens(1, 5), labels=tokens(1, 5), last_logits_only=True)


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_last_logits_are_those_of_the_last_real_token(side: str) -> None:
    model = build()
    ids, mask, sequences = padded([1, 8, 13], 15, side)
    last = logits_of(model(ids, mask, last_logits_only=True))
    assert last.shape == (3, 1, VOCABULARY)
    for row, sequence in enumerate(sequences):
        close(last[row, 0], logits_of(model(sequence[None], last_logits_only=True))[0, 0])
        close(last[row, 0], logits_of(model(sequence[None]))[0, -1])


@pytest.mark.usefixtures("shape_checks_off")
@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"input_ids": torch.tensor([[1, 31]])}, "token 31 is outside.*expected 0 to 30"),
        ({"input_ids": torch.tensor([[1, -1]])}, "token -1 is outside.*expected 0 to 30"),
        (
            {"input_ids": torch.tensor([[1, 2]]), "attention_mask": torch.ones(1, 2)},
            r"attention_mask \[1, 2\] of bool, True = a real token, got .* of torch.float32",
        ),
        (
            {
                "input_ids": torch.tensor([[1, 2]]),
                "attention_mask": torch.ones(1, 3, dtype=torch.bool),
            },
            r"attention_mask \[1, 2\] of bool.*got \[1, 3\]",
        ),
    ],
    ids=["too-large", "negative", "mask-of-numbers", "mask-of-another-shape"],
)
def test_inputs_that_mean_nothing_are_refused(call: dict[str, Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()(**call)


def test_a_prompt_longer_than_the_table_names_both_lengths() -> None:
    model = build(positions="learned")
    with pytest.raises(ValueError, match="there are 64 places, got a sequence of 65"):
        model(tokens(1, 65))
    states = states_of(model(tokens(1, 60), use_cache=True))
    with pytest.raises(ValueError, match="there are 64 places, got a sequence of 65"):
        model(tokens(1, 5), past_states=states)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "f16"])
@pytest.mark.parametrize("positions", POSITIONS)
def test_low_precision_rounds_and_no_more(positions: str, dtype: torch.dtype) -> None:
    """Each of two blocks rounds six tensors: heads, attention, output; norm, hidden, output."""
    model = build(positions=positions, normalization="rms", activation="swiglu").to(dtype)
    ids, mask, _ = padded([8, 13], 15, "left")
    low = model(ids, mask, labels=ids.clamp(max=VOCABULARY - 1), use_cache=True)
    exact = model.double()(ids, mask, labels=ids.clamp(max=VOCABULARY - 1))
    assert logits_of(low).dtype == dtype
    assert loss_of(low).dtype == torch.float32
    tolerance = 2 * 6 * torch.finfo(dtype).eps
    close(logits_of(low).double(), logits_of(exact), tolerance)
    close(loss_of(low).double(), loss_of(exact), tolerance)


@pytest.mark.parametrize("assign", [False, True], ids=["to-empty", "assign"])
@pytest.mark.parametrize("positions", POSITIONS)
def test_a_model_made_on_meta_is_what_its_state_dict_says(positions: Any, assign: bool) -> None:
    model, ids = build(positions=positions), tokens(2, 17)
    with torch.device("meta"):
        other = LanguageModel(model.config, vocab_size=VOCABULARY).double().eval()
    if not assign:
        other.to_empty(device="cpu")
        other._apply(lambda tensor: torch.full_like(tensor, torch.nan))  # what memory may hold
    other.load_state_dict(model.state_dict(), assign=assign)
    assert logits_of(other(ids)).equal(logits_of(model(ids)))
