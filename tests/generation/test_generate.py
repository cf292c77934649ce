from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flowformer.generation.generate import generate
from flowformer.generation.sampling import Sampling
from flowformer.generation.steps import CarriedDecoder, check_prompt, select_rows
from flowformer.models.language.model import LanguageOutput
from tests.generation.small_language_model import (
    STATEFUL,
    STATELESS,
    VOCABULARY,
    build,
    draw_ids,
)

SAMPLED: dict[str, Any] = {
    "do_sample": True,
    "temperature": 1.3,
    "top_k": 8,
    "top_p": 0.95,
    "repetition_penalty": 1.2,
    "seed": 5,
}


@torch.no_grad()
def recomputed(
    model: nn.Module, ids: Tensor, new: int, *, seed: int | None = None, **options
) -> Tensor:
    """The whole prefix of each row alone, token by token."""
    sampling = Sampling(**options)
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    model.eval()
    for _ in range(new):
        logits = torch.cat([model(row[None]).logits[:, -1] for row in ids])
        seen = torch.zeros_like(logits, dtype=torch.bool).scatter_(1, ids, True)
        ids = torch.cat((ids, sampling.choose(logits, seen, generator)[:, None]), 1)
    return ids


def padded(rows: list[Tensor]) -> tuple[Tensor, Tensor]:
    width = max(len(row) for row in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.int64)
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for i, row in enumerate(rows):
        ids[i, width - len(row) :], mask[i, width - len(row) :] = row, True
    return ids, mask


def decoded(mixers: list[str]) -> pytest.MarkDecorator:
    """Each mixer by sampling, which asks for all that greedy decoding does; the first so too."""
    both = [(mixers[0], {}), *((mixer, SAMPLED) for mixer in mixers)]
    ids = [f"{mixer}-{'sampled' if options else 'greedy'}" for mixer, options in both]
    return pytest.mark.parametrize(("mixer", "options"), both, ids=ids)


@decoded(STATEFUL)
def test_carrying_the_state_gives_what_recomputing_the_prefix_gives(mixer, options):
    model, ids = build(mixer), draw_ids(2, 5)
    output = generate(model, ids, max_new_tokens=14, **options)
    assert output.sequences.equal(recomputed(model, ids, 14, **options))
    logits = model(output.sequences).logits
    taken = output.sequences[:, 5:, None]
    expected = logits[:, 4:-1].log_softmax(-1).gather(2, taken).squeeze(2)
    torch.testing.assert_close(output.log_probs, expected, rtol=0, atol=1e-10)
    assert output.lengths.tolist() == [14, 14]
    assert output.finished.tolist() == [False, False]


@decoded(STATELESS)
def test_a_mixer_without_a_state_reads_the_prefix_again(mixer, options):
    model, ids = build(mixer), draw_ids(2, 5)
    output = generate(model, ids, max_new_tokens=12, **options)
    assert output.sequences.equal(recomputed(model, ids, 12, **options))


def test_the_two_ways_agree_and_the_state_can_be_refused():
    model, ids = build(), draw_ids(2, 5)
    carried = generate(model, ids, max_new_tokens=9, use_cache=True)
    again = generate(model, ids, max_new_tokens=9, use_cache=False)
    assert carried.sequences.equal(again.sequences)


def test_a_state_is_not_asked_of_a_mixer_without_one():
    with pytest.raises(NotImplementedError, match="no state form"):
        generate(build("reformer"), draw_ids(1, 5), max_new_tokens=2, use_cache=True)


@pytest.mark.parametrize(
    ("mixer", "num_beams"), [(STATEFUL[0], 1), *((mixer, 3) for mixer in STATEFUL)]
)
def test_a_padded_batch_is_each_prompt_alone(mixer, num_beams):
    model = build(mixer)
    prompts = [draw_ids(n, seed=n) for n in (1, 4, 9)]
    ids, mask = padded(prompts)
    output = generate(model, ids, attention_mask=mask, max_new_tokens=8, num_beams=num_beams)
    for row, prompt in enumerate(prompts):
        alone = generate(model, prompt[None], max_new_tokens=8, num_beams=num_beams)
        assert output.sequences[row, 9:].equal(alone.sequences[0, len(prompt) :])
        torch.testing.assert_close(output.log_probs[row], alone.log_probs[0], rtol=0, atol=1e-10)


def test_what_stands_in_the_padding_changes_nothing_with_a_repetition_penalty():
    model, (ids, mask) = build(), padded([draw_ids(2), draw_ids(6, seed=1)])
    first = generate(model, ids, attention_mask=mask, max_new_tokens=9, repetition_penalty=1.5)
    changed = ids.masked_fill(~mask, -100)
    second = generate(
        model, changed, attention_mask=mask.long(), max_new_tokens=9, repetition_penalty=1.5
    )
    assert first.sequences[:, 6:].equal(second.sequences[:, 6:])


def test_a_row_ends_with_its_stop_token_and_is_filled():
    model, ids = build(), draw_ids(6, 5)
    free = generate(model, ids, max_new_tokens=20, **SAMPLED).sequences[:, 5:]
    stops = [3, 7]
    output = generate(model, ids, max_new_tokens=20, stop_ids=stops, pad_id=9, **SAMPLED)
    ends = []
    for row in range(6):
        places = [i for i in range(20) if int(free[row, i]) in stops]
        end = places[0] + 1 if places else 20
        new = output.sequences[row, 5:]
        assert new[:end].equal(free[row, :end])
        assert (new[end:] == 9).all()
        assert not output.log_probs[row, end:].any()
        assert output.log_probs[row, :end].all()
        assert (int(output.lengths[row]), bool(output.finished[row])) == (end, bool(places))
        ends.append(end)
    assert len(set(ends)) > 2
    assert output.sequences.shape[1] == 5 + max(ends)


def test_generation_ends_with_the_last_row():
    model, ids = build(), draw_ids(3, 5)
    output = generate(model, ids, max_new_tokens=50, stop_ids=range(VOCABULARY))
    assert output.sequences.shape == (3, 6)
    assert output.finished.all()


def test_a_seed_fixes_the_draws_and_another_changes_them():
    model, ids = build(), draw_ids(2, 5)

    def drawn(seed: int) -> Tensor:
        return generate(model, ids, max_new_tokens=20, do_sample=True, seed=seed).sequences

    state = torch.get_rng_state()
    first = drawn(1)
    assert torch.get_rng_state().equal(state)
    assert first.equal(drawn(1))
    assert not first.equal(drawn(2))


def test_tokens_are_given_as_they_come_and_a_true_answer_ends():
    model, ids, given = build(), draw_ids(2, 5), []

    def read(token: Tensor) -> bool:
        given.append(token)
        return len(given) == 7

    output = generate(model, ids, max_new_tokens=20, on_token=read)
    assert torch.stack(given, 1).equal(output.sequences[:, 5:])
    assert output.sequences.shape == (2, 12)


def test_the_state_stays_as_large_and_each_step_reads_one_token():
    model, read = build(), []
    model.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0].shape[1]))
    decoder = CarriedDecoder(model.eval())
    prompt = check_prompt(model, draw_ids(2, 7), None, 50)
    sizes = set()
    with torch.no_grad():
        token = decoder.start(prompt).argmax(-1)
        for _ in range(50):
            token = decoder.step(token).argmax(-1)
            sizes.add(sum(x.numel() for x in leaves(decoder._states)))
    assert read == [7] + [1] * 50
    assert len(sizes) == 1


def leaves(tree: object) -> list[Tensor]:
    if isinstance(tree, Tensor):
        return [tree]
    return [leaf for part in tree or () for leaf in leaves(part)]  # type: ignore[union-attr] - what is no tensor is iterable


@pytest.mark.parametrize("mixer", ["flow", "softmax", "local", "deltanet", "gated", "flow-gated"])
def test_rows_of_a_state_can_be_chosen(mixer):
    model, ids = build(mixer).eval(), draw_ids(3, 6)
    order = torch.tensor([2, 0, 0, 1])
    states = select_rows(model(ids, use_cache=True).states, order)
    following = draw_ids(4, 2, seed=3)
    logits = model(following, past_states=states).logits
    whole = model(torch.cat((ids[order], following), 1)).logits[:, -2:]
    torch.testing.assert_close(logits, whole, rtol=0, atol=1e-10)


def test_the_training_mode_is_put_back():
    model = build().train()
    dropped = [generate(model, draw_ids(1, 5), max_new_tokens=20).sequences for _ in range(2)]
    assert dropped[0].equal(dropped[1])
    assert model.training
    assert not generate(model, draw_ids(1, 5), max_new_tokens=1).log_probs.requires_grad


class Scripted(nn.Module):
    """Two tokens with given probabilities after the prompt of one, then the second for certain."""

    has_state, vocab_size, max_positions = False, 2, None

    def __init__(self, first: list[float]) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.tensor(first).log())

    def forward(self, ids: Tensor, _mask: None, *, last_logits_only: bool) -> Any:
        assert last_logits_only
        logits = self.first if ids.shape[1] == 1 else torch.tensor([-1e3, 0.0])
        return LanguageOutput(logits.expand(len(ids), 1, 2), None, None)


class TestBeams:
    @staticmethod
    def best(
        model: nn.Module, prompt: Tensor, new: int, stop: int, length_penalty: float
    ) -> tuple[tuple[int, ...], float]:
        """The best of all sequences of up to `new` tokens that end with the stop or at `new`."""
        found = {}
        for tokens in product(range(VOCABULARY), repeat=new):
            ended = tokens[: tokens.index(stop) + 1] if stop in tokens else tokens
            found[ended] = 0.0
        longest = torch.tensor([[*ended, *[0] * (new - len(ended))] for ended in found])
        ids = torch.cat((prompt.expand(len(longest), -1), longest), 1)
        with torch.no_grad():
            log_probs = model(ids).logits[:, len(prompt) - 1 : -1].log_softmax(-1)
        taken = log_probs.gather(2, longest[..., None]).squeeze(2)
        for row, ended in enumerate(found):
            found[ended] = float(taken[row, : len(ended)].sum()) / len(ended) ** length_penalty
        return max(found.items(), key=lambda each: each[1])

    @pytest.mark.parametrize("length_penalty", [-1.0, 0.0, 1.0, 2.0])
    def test_as_many_beams_as_prefixes_find_the_best_of_all(self, length_penalty):
        model, prompts = build().eval(), draw_ids(4, 5)
        output = generate(
            model,
            prompts,
            max_new_tokens=3,
            num_beams=VOCABULARY**2,
            stop_ids=[2],
            length_penalty=length_penalty,
            pad_id=0,
        )
        for row, prompt in enumerate(prompts):
            tokens, score = self.best(model, prompt, 3, 2, length_penalty)
            length = int(output.lengths[row])
            assert tuple(output.sequences[row, 5 : 5 + length].tolist()) == tokens
            assert not output.sequences[row, 5 + length :].any()
            assert bool(output.finished[row]) == (tokens[-1] == 2)
            ours = float(output.log_probs[row].sum()) / length**length_penalty
            assert ours == pytest.approx(score, abs=1e-10)

    @pytest.mark.parametrize("mixer", ["flow", "softmax", "reformer"])
    def test_beams_are_never_worse_than_the_most_probable_tokens(self, mixer):
        model, ids = build(mixer), draw_ids(4, 5)
        greedy = generate(model, ids, max_new_tokens=10).log_probs.sum(1)
        beams = generate(model, ids, max_new_tokens=10, num_beams=50).log_probs.sum(1)
        assert (beams >= greedy - 1e-10).all()
        assert (beams > greedy + 1e-3).any()

    def test_a_longer_sequence_that_wins_late_is_waited_for(self):
        """-ln .7 = .36 for the stop token at once; ln .3 = -1.2 over 10 tokens: .12 each."""
        output = generate(
            Scripted([0.7, 0.3]),
            torch.ones(1, 1).long(),
            max_new_tokens=10,
            num_beams=2,
            stop_ids=[0],
        )
        assert output.sequences.tolist() == [[1] * 11]
        assert not output.finished.any()

    @pytest.mark.parametrize("num_beams", [2, 3, 4])
    def test_a_sequence_that_ended_is_not_extended(self, num_beams):
        output = generate(
            Scripted([0.9, 0.1]),
            torch.ones(1, 1).long(),
            max_new_tokens=10,
            num_beams=num_beams,
            stop_ids=[0],
        )
        assert output.sequences.tolist() == [[1, 0]]
        assert output.finished.all()

    def test_it_draws_and_streams_nothing(self):
        refused: list[dict[str, Any]] = [{"do_sample": True}, {"on_token": print}]
        for options in refused:
            with pytest.raises(ValueError, match="beam search draws nothing"):
                generate(build(), draw_ids(1, 5), max_new_tokens=2, num_beams=2, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1, got 0"),
        ({"num_beams": 0}, "num_beams must be at least 1, got 0"),
        ({"length_penalty": 2.0}, "length_penalty only ranks sequences of beam search: got 2.0"),
        ({"length_penalty": float("nan"), "num_beams": 2}, "length_penalty must be finite"),
        ({"pad_id": 11}, "pad_id and stop_ids must be tokens, 0 to 10, got 11"),
        ({"stop_ids": [3, -1]}, "pad_id and stop_ids must be tokens, 0 to 10, got -1"),
        ({"input_ids": torch.zeros(1, 0, dtype=torch.int64)}, "a prompt of at least one token"),
        ({"input_ids": torch.tensor([[3, -1]])}, "token -1 of the prompt is outside the voc"),
        ({"input_ids": torch.tensor([[3, 11]])}, "token 11 of .* expected 0 to 10"),
        ({"attention_mask": torch.tensor([[1, 1, 0]])}, "row 0 ends with padding"),
        ({"attention_mask": torch.tensor([[1, 0, 1]])}, "padding between real tokens"),
        ({"top_p": 1.5, "do_sample": True}, "top_p must lie in"),
    ],
    ids=str,
)
def test_a_wrong_argument_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        generate(
            build(), **{"input_ids": torch.tensor([[1, 2, 3]]), "max_new_tokens": 2, **options}
        )


@pytest.mark.parametrize(
    ("mixer", "positions"), [("flow", "learned"), ("synthesizer", "none")], ids=str
)
def test_a_text_longer_than_the_model_reads_is_refused_before_the_first_token(mixer, positions):
    model, ids = build(mixer, positions=positions), draw_ids(1, 60)
    assert generate(model, ids, max_new_tokens=5).sequences.shape == (1, 65)
    with pytest.raises(ValueError, match=r"at most 64 tokens .* got a prompt of 60 and .*=6"):
        generate(model, ids, max_new_tokens=6)


def test_generation_goes_on_past_the_training_context():
    model, ids = build(positions="rotary"), draw_ids(2, 60)
    output = generate(model, ids, max_new_tokens=30)
    assert output.sequences.equal(recomputed(model, ids, 30))


def test_nan_is_no_token():
    model = build()
    with torch.no_grad():
        next(model.parameters()).fill_(torch.nan)
    with pytest.raises(ValueError, match="logits are NaN"):
        generate(model, draw_ids(1, 5), max_new_tokens=2)


@pytest.mark.parametrize("num_beams", [1, 2])
def test_progress_counts_the_tokens(told, num_beams):
    generate(build(), draw_ids(1, 4), max_new_tokens=5, num_beams=num_beams)
    assert set(told) <= {("generating", done, 5) for done in range(1, 6)}
    assert ("generating", 3, 5) in told
