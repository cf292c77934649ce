"""The tasks of recall: their samples against a plain reading of what each asks."""

import itertools

import numpy as np
import pytest
import torch

from flowformer.data.language.recall import RecallSizes
from flowformer.data.language.recall_samples import RecallSamples

SIZES = {
    "recall": [(64, 8, 256), (24, 8, 18), (500, 3, 63), (3, 1, 4)],
    "copy": [(64, 8, 16), (16, 8, 4), (500, 63, 9), (2, 1, 5)],
    "induction": [(64, 1, 16), (3, 1, 3), (500, 1, 63)],
}


def drawn(task: str, size: tuple[int, int, int], part: str = "train", count: int = 40):
    length, pairs, vocab_size = size
    sizes = RecallSizes.of(task, length=length, pairs=pairs, vocab_size=vocab_size)
    samples = RecallSamples(sizes, part, count=count)
    return [tuple(samples[i][name].tolist() for name in samples[0]) for i in range(count)]


def answers(inputs: list[int], targets: list[int]) -> list[tuple[int, int, int]]:
    """Return place, token and answer of each question."""
    places = enumerate(zip(inputs, targets, strict=True))
    return [(place, token, answer) for place, (token, answer) in places if answer != -100]


@pytest.mark.parametrize("size", SIZES["recall"], ids=str)
def test_a_key_asks_for_the_value_that_stood_behind_it(size):
    length, pairs, vocab_size = size
    for inputs, targets in drawn("recall", size):
        assert len(inputs) == len(targets) == length
        keys, values = inputs[: 2 * pairs : 2], inputs[1 : 2 * pairs : 2]
        assert len(set(keys)) == len(set(values)) == pairs
        assert all(
            0 < key < vocab_size // 2 <= value < vocab_size
            for key, value in zip(keys, values, strict=True)
        )
        known = dict(zip(keys, values, strict=True))
        asked = answers(inputs, targets)
        assert sorted(key for _, key, _ in asked) == sorted(keys)
        assert all(place >= 2 * pairs and answer == known[key] for place, key, answer in asked)
        # Beside the pairs and the questions there is nothing, and an answer stands there once.
        assert inputs.count(0) == length - 3 * pairs
        assert all(inputs.count(answer) == 1 for _, _, answer in asked)


@pytest.mark.parametrize("size", SIZES["copy"], ids=str)
def test_marks_ask_for_the_tokens_among_blanks_in_their_order(size):
    length, pairs, vocab_size = size
    for inputs, targets in drawn("copy", size):
        body, marks = inputs[: length - pairs], inputs[length - pairs :]
        assert marks == [vocab_size - 1] * pairs
        tokens = [token for token in body if token != 0]
        assert len(tokens) == pairs
        assert all(0 < token < vocab_size - 1 for token in tokens)
        assert targets == [-100] * len(body) + tokens


@pytest.mark.parametrize("size", SIZES["induction"], ids=str)
def test_the_last_mark_asks_for_what_followed_the_first(size):
    length, _, vocab_size = size
    mark = vocab_size - 1
    for inputs, targets in drawn("induction", size):
        assert len(inputs) == length
        assert inputs.count(mark) == 2
        assert all(0 <= token <= mark for token in inputs)
        (asked,) = answers(inputs, targets)
        assert asked == (length - 1, mark, inputs[inputs.index(mark) + 1])
        assert asked[2] != mark


def test_every_place_and_token_comes_about_as_often():
    count = 2000
    samples = drawn("recall", (8, 2, 10), count=count)
    places = np.bincount([place for sample in samples for place, _, _ in answers(*sample)])
    np.testing.assert_allclose(places[4:], 2 * count / 4, rtol=0.1)
    firsts = [answers(inputs, targets)[0][1] == inputs[0] for inputs, targets in samples]
    assert 0.45 < np.mean(firsts) < 0.55  # the questions are not in the order of the pairs
    samples = drawn("induction", (10, 1, 5), count=count)
    marks = np.bincount([inputs.index(4) for inputs, _ in samples])
    np.testing.assert_allclose(marks, count / 8, rtol=0.2)
    samples = drawn("copy", (8, 2, 6), count=count)
    tokens = np.bincount([token for _, targets in samples for token in targets[-2:]])
    np.testing.assert_allclose(tokens[1:], 2 * count / 4, rtol=0.1)


@pytest.mark.parametrize("task", SIZES)
def test_a_sample_follows_from_seed_part_and_number_alone(task):
    sizes = RecallSizes.of(task, length=64)
    few, many = (RecallSamples(sizes, count=count) for count in (3, 5000))
    for name in ("input_ids", "targets"):
        assert torch.equal(few[2][name], many[2][name])
    streams = [
        RecallSamples(sizes, part, count=20, seed=seed)[number]["input_ids"]
        for part, seed, number in itertools.product(
            ("train", "validation", "test"), (0, 1), range(20)
        )
    ]
    assert len(torch.stack(streams).unique(dim=0)) == 120
    with pytest.raises(IndexError, match="expected one of 3 samples, got 3"):
        few[3]


@pytest.mark.parametrize(
    ("task", "size"), [(task, sizes[0]) for task, sizes in SIZES.items()], ids=SIZES
)
def test_chance_is_what_a_guess_among_the_possible_answers_gets(task, size):
    rng = np.random.default_rng(0)
    right = []
    for inputs, targets in drawn(task, size, count=1000):
        possible = [answer for _, _, answer in answers(inputs, targets)]
        if task == "induction":
            possible = range(size[2] - 1)
        right += [rng.choice(possible) == answer for _, _, answer in answers(inputs, targets)]
    length, pairs, vocab_size = size
    sizes = RecallSizes.of(task, length=length, pairs=pairs, vocab_size=vocab_size)
    deviation = (sizes.chance * (1 - sizes.chance) / len(right)) ** 0.5
    assert abs(np.mean(right) - sizes.chance) < 4 * deviation


@pytest.mark.parametrize(
    ("task", "size", "message"),
    [
        ("recall", (23, 8, 256), "recall of pairs=8 needs a length of at least 24, got 23: a key"),
        ("recall", (64, 8, 17), "needs a vocab_size of at least 18, got 17: a blank and keys in"),
        ("copy", (15, 8, 16), "copy of pairs=8 needs a length of at least 16, got 15"),
        ("copy", (64, 8, 3), "needs a vocab_size of at least 4, got 3"),
        ("induction", (2, 1, 16), "needs a length of at least 3, got 2"),
        ("induction", (64, 2, 16), "induction asks once: pairs must be 1, got 2"),
        ("recall", (64, 0, 16), "pairs must be at least 1, got 0"),
        ("recal", (64, 8, 16), "unknown task 'recal': did you mean recall?"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_does(task, size, message):
    with pytest.raises(ValueError, match=message):
        drawn(task, size)


def test_another_part_is_refused():
    with pytest.raises(ValueError, match="unknown part 'dev': choose from train, validation, test"):
        RecallSamples(RecallSizes.of("copy", length=64), "dev", count=1)
