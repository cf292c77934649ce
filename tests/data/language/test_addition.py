"""The adder's problems, and counting exact sums."""

import pytest
import torch

from flowformer.data.language.addition import AdditionProblems, count_exact


def digits_of(item: dict[str, torch.Tensor]) -> list[int]:
    return [*item["input_ids"].tolist(), int(item["targets"][-1])]


@pytest.mark.parametrize(("digits", "held_out"), [(1, 20), (2, 500), (3, 500)])
def test_each_problem_is_in_one_part(digits: int, held_out: int) -> None:
    train, test = (AdditionProblems(part, digits=digits) for part in ("train", "test"))
    assert (len(train), len(test)) == (10 ** (2 * digits) - held_out, held_out)
    both = torch.cat([train.problems, test.problems])
    assert len(both.unique(dim=0)) == 10 ** (2 * digits)
    assert both.max() == 10**digits - 1


def test_a_problem_is_its_digits_and_the_reversed_sum() -> None:
    problems = AdditionProblems()
    problems.problems = torch.tensor([[85, 50], [6, 39], [0, 0], [99, 99]])
    expected = ["8550531", "0639540", "0000000", "9999891"]
    for index, digits in enumerate(expected):
        item = problems[index]
        assert digits_of(item) == [int(digit) for digit in digits]
        assert item["input_ids"].shape == item["targets"].shape == (6,)
        assert item["targets"].tolist() == [-100] * 3 + [int(digit) for digit in digits[4:]]


def test_the_held_out_problems_are_the_published_ones() -> None:
    generator = torch.Generator().manual_seed(1337)
    numbers = torch.randperm(10_000, generator=generator)[:500].tolist()
    found = [10**2 * a + b for a, b in AdditionProblems("test").problems.tolist()]
    assert found == numbers


def test_prompts_are_the_inputs_up_to_the_sum() -> None:
    problems = AdditionProblems("test", digits=3)
    expected = torch.stack([problems[index]["input_ids"][:6] for index in range(len(problems))])
    assert torch.equal(problems.prompts(), expected)


def adder(prompts: torch.Tensor, count: int) -> torch.Tensor:
    """A model that adds."""
    width = prompts.shape[1] // 2
    powers = 10 ** torch.arange(width - 1, -1, -1)
    sums = (prompts[:, :width] * powers).sum(1) + (prompts[:, width:] * powers).sum(1)
    return sums[:, None] // 10 ** torch.arange(count) % 10


@pytest.mark.parametrize("digits", [1, 2, 3])
def test_who_adds_right_is_counted_right(digits: int) -> None:
    problems = AdditionProblems("test", digits=digits)
    result = count_exact(adder, problems, batch_size=63)
    assert (result.correct, result.total) == (len(problems), len(problems))
    assert (result.accuracy, result.mistakes) == (1.0, ())


def test_one_wrong_digit_is_a_wrong_sum() -> None:
    problems = AdditionProblems("test")

    def forgets_the_carry(prompts: torch.Tensor, count: int) -> torch.Tensor:
        found = adder(prompts, count)
        found[:, -1] = 0
        return found

    result = count_exact(forgets_the_carry, problems, max_mistakes=2)
    below = int((problems.problems.sum(1) < 100).sum())
    assert result.correct == below
    assert 0 < below < 500
    a, b = next((a, b) for a, b in problems.problems.tolist() if a + b >= 100)
    assert result.mistakes[0] == f"{a} + {b} = {a + b - 100}"
    assert len(result.mistakes) == 2


def test_prompts_among_the_result_are_an_error() -> None:
    problems = AdditionProblems("test")

    def with_prompts(prompts: torch.Tensor, count: int) -> torch.Tensor:
        return torch.cat([prompts, adder(prompts, count)], dim=1)

    with pytest.raises(ValueError, match=r"expected 3 tokens for each of 500 prompts.*\(500, 7\)"):
        count_exact(with_prompts, problems)


def test_another_part_or_too_many_digits_are_errors() -> None:
    with pytest.raises(ValueError, match="part must be train or test, got 'validation'"):
        AdditionProblems("validation")
    for digits in (0, 4):
        with pytest.raises(ValueError, match=f"digits must be from 1 to 3, got {digits}"):
            AdditionProblems(digits=digits)
