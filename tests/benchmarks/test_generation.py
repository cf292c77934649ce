import pytest
import torch

from benchmarks.models.generation import (
    VOCABULARY,
    generate,
    our_steps,
    ours,
    summarize,
    their_steps,
    theirs,
)

POSITIONS = 12


@torch.no_grad()
def test_both_sides_read_token_by_token_what_they_read_at_once():
    ids = torch.randint(VOCABULARY, (1, POSITIONS), generator=torch.Generator().manual_seed(0))
    own, gpt2 = ours("gpt-nano", "flow", POSITIONS), theirs("gpt-nano", POSITIONS)
    for model, (logits, step) in (
        (own, our_steps(own, ids[:, :4])),
        (gpt2, their_steps(gpt2, ids[:, :4])),
    ):
        whole = model(ids).logits
        torch.testing.assert_close(logits, whole[:, 3], rtol=0, atol=1e-4)
        for place in range(4, POSITIONS):
            torch.testing.assert_close(step(ids[:, place]), whole[:, place], rtol=0, atol=1e-4)


def test_both_sides_have_the_same_size():
    own, gpt2 = (
        sum(parameter.numel() for parameter in model.parameters())
        for model in (ours("gpt-nano", "flow", POSITIONS), theirs("gpt-nano", POSITIONS))
    )
    assert own == pytest.approx(gpt2, rel=1e-3)


def test_sides_take_turns_token_by_token():
    turns: list[str] = []

    def side(name: str):
        def step(token):
            turns.append(name)
            return torch.eye(5)[token + 1]

        return torch.eye(5)[:1], step

    seconds = generate({"a": side("a"), "b": side("b")}, 3)
    assert turns == ["a", "b"] * 3
    assert [len(each) for each in seconds.values()] == [3, 3]


def test_the_ends_are_compared():
    summary = summarize([0.001, 0.002, 0.9, 0.9, 0.9, 0.003, 0.003], at_ends=2)
    assert summary["first_ms"] == pytest.approx(1.5)
    assert summary["last_ms"] == pytest.approx(3)
    assert summary["last_over_first"] == pytest.approx(2)
    assert summary["tokens_per_second"] == pytest.approx(7 / 2.709)
