"""ListOps: the generator against an evaluator of its own, and the release's files."""

import math

import numpy as np
import pytest

from flowformer.data.sequences.listops import (
    LISTOPS_TOKENS,
    evaluate_listops,
    generate_listops,
    read_listops,
    verify_listops,
)
from flowformer.data.sequences.records import SequenceData, Sequences, SequenceSplit
from tests.data.sequences.arena_files import write_listops

SIZES = {"train": 200, "validation": 20, "test": 43}
HEADER = "Source\tTarget\r\n"
GOOD = "( ( ( [MAX 4 ) 3 ) ] )\t4\r\n"


def ids(text: str) -> list[int]:
    return [1 + LISTOPS_TOKENS.index(token) for token in text.split()]


def text_of(tokens: np.ndarray) -> str:
    return " ".join(LISTOPS_TOKENS[token - 1] for token in tokens)


def expressions(data: SequenceData) -> list[str]:
    return [text_of(s.inputs[i]) for s in data.splits.values() for i in range(len(s))]


def same(one: SequenceData, other: SequenceData) -> bool:
    return all(
        np.array_equal(split.labels, other.splits[part].labels)
        and np.array_equal(split.inputs.values, other.splits[part].inputs.values)
        and np.array_equal(split.inputs.offsets, other.splits[part].inputs.offsets)
        for part, split in one.splits.items()
    )


def arguments_of(tokens: np.ndarray) -> list[tuple[int, int, int]]:
    """Of each operator its depth, its number of arguments, and how many of them are operators."""
    found, open_now = [], []
    for token in (LISTOPS_TOKENS[token - 1] for token in tokens):
        if token == "]":
            found.append((len(open_now), *open_now.pop()))
            continue
        if open_now:
            open_now[-1][0] += 1
            open_now[-1][1] += token.startswith("[")
        if token.startswith("["):
            open_now.append([0, 0])
    assert not open_now
    return found


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("[MAX 4 3 [MIN 2 3 ] 1 0 ]", 4),
        ("[MIN 4 3 [MAX 2 3 ] 1 5 ]", 1),
        ("[SM 9 8 [SM 9 9 ] 7 ]", 2),
        ("[MED 9 1 5 ]", 5),
        ("[MED 9 1 4 7 ]", 5),  # the mean of 4 and 7, cut to an integer
        ("[MED 0 1 ]", 0),
        ("7", 7),
    ],
)
def test_the_evaluator_knows_the_operators(expression, value):
    assert evaluate_listops(ids(expression)) == value


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (ids("[MAX 4 [MIN 3 2 ]"), "expected 1 more ], got the end"),
        (ids("[MAX 4 3 ] 2"), "expected no token after the end, got id 8 at 4"),
        (ids("[MAX [MIN ] ]"), "expected an operator with arguments before the ] at 2"),
        ([1, 16], "expected a token, got id 16 at 1"),
        ([1, 0], "expected a token, got id 0 at 1"),
        ([], "expected an expression"),
    ],
)
def test_the_evaluator_refuses_what_is_no_expression(tokens, message):
    with pytest.raises(ValueError, match=message):
        evaluate_listops(tokens)


def test_generated_cases_have_their_values_as_labels_and_lras_form():
    data = generate_listops(sizes=SIZES)
    verify_listops(data)
    assert {part: len(split) for part, split in data.splits.items()} == SIZES
    for split in data.splits.values():
        assert split.inputs.lengths.min() > 500
        assert split.inputs.lengths.max() < 2000
    operations = [one for i in range(200) for one in arguments_of(data.splits["train"].inputs[i])]
    depths, counts, _ = np.array(operations).T
    assert (depths.min(), depths.max()) == (1, 9)  # and a digit at depth 10
    assert (counts.min(), counts.max()) == (2, 10)
    kinds = np.bincount(data.splits["train"].inputs.values)[1:5]
    assert kinds / kinds.sum() == pytest.approx([0.25] * 4, abs=0.02)


def test_a_quarter_of_the_arguments_are_operations():
    # With hardly a bound on the length, none of the draws is left out for it.
    data = generate_listops(
        sizes={"train": 4000}, min_length=1, max_length=10**6, max_depth=4, balanced=False
    )
    inputs = data.splits["train"].inputs
    operations = [one for i in range(4000) for one in arguments_of(inputs[i])]
    depths, counts, nested = np.array(operations).T
    assert (nested[depths == 3] == 0).all()
    total = counts[depths == 2].sum()
    deviation = math.sqrt(0.25 * 0.75 / total)
    assert nested[depths == 2].sum() / total == pytest.approx(0.25, abs=4 * deviation)
    assert counts[depths > 1].mean() == pytest.approx(6, abs=0.15)  # of 2 to 10


def test_each_value_is_as_frequent_as_any_other():
    data = generate_listops(sizes=SIZES)
    for part, size in SIZES.items():
        frequencies = np.bincount(data.splits[part].labels, minlength=10)
        assert frequencies.sum() == size
        assert frequencies.max() - frequencies.min() <= 1


def test_without_balance_the_extremes_are_the_most_frequent():
    data = generate_listops(sizes={"train": 1000}, balanced=False)
    frequencies = np.bincount(data.splits["train"].labels, minlength=10) / 1000
    assert min(frequencies[[0, 9]]) > 0.13
    assert max(frequencies[1:9]) < 0.13


def test_no_expression_occurs_twice_in_any_part():
    # Short ones, so that many are drawn more than once.
    data = generate_listops(
        sizes={"train": 3000, "test": 500}, min_length=3, max_length=6, max_arguments=3
    )
    assert len(set(expressions(data))) == 3500


def test_a_seed_means_one_data_set_whatever_the_workers(told):
    sizes = {"train": 400, "test": 30}
    data = generate_listops(sizes=sizes, seed=3)
    told.clear()
    parallel = generate_listops(sizes=sizes, seed=3, workers=2)
    assert ("generating the train part", 400, 400) in told
    assert told[-1] == ("generating the test part", 30, 30)
    assert same(data, parallel)
    assert not same(data, generate_listops(sizes=sizes, seed=4))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_length": 500}, "a length between min_length and max_length, got 500 and 500"),
        ({"max_arguments": 1}, "must be at least 2, got 10 and 1"),
        ({"max_depth": 1}, "must be at least 2, got 1 and 10"),
        ({"sizes": {"train": 0}}, "expected at least 1 case of train, got 0"),
        ({"workers": 0}, "expected at least 1 worker, got 0"),
        (
            {"sizes": {"train": 401}, "min_length": 3, "max_length": 5, "balanced": False},
            "expected 401 distinct expressions, found 400",  # 4 operators, 2 digits
        ),
    ],
)
def test_what_cannot_be_generated_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        generate_listops(**options)


def test_many_levels_and_arguments_do_not_grow_without_bound():
    # Unbounded, some of these would have 3^30 operations.
    data = generate_listops(sizes={"test": 40}, min_length=5, max_depth=32, max_arguments=24)
    verify_listops(data)


def test_verify_names_the_case_whose_label_is_wrong():
    inputs = Sequences.of([np.array(ids("[MAX 4 3 ]")), np.array(ids("[MIN 4 3 ]"))])
    split = SequenceSplit(inputs, np.array([4, 5]))
    data = SequenceData("listops", "a test", tuple("0123456789"), 16, {"test": split})
    with pytest.raises(ValueError, match="test case 1: expected the label 3, got 5"):
        verify_listops(data)


def test_what_was_written_is_read_again(tmp_path):
    data = generate_listops(sizes=SIZES)
    write_listops(data, tmp_path)
    read = read_listops(tmp_path)
    assert same(data, read)
    assert (read.vocab_size, read.classes) == (data.vocab_size, data.classes)
    assert read.splits["train"].inputs.values.dtype == np.uint8


def test_the_files_are_those_of_the_release(tmp_path):
    inputs = Sequences.of([np.array(ids("[MED 1 [SM 2 3 ] 4 ]"))])
    split = SequenceSplit(inputs, np.array([4]))
    parts = {"train": split, "validation": split, "test": split}
    data = SequenceData("listops", "a test", tuple("0123456789"), 16, parts)
    write_listops(data, tmp_path)
    written = (tmp_path / "basic_val.tsv").read_bytes()
    row = "( ( ( ( [MED 1 ) ( ( ( [SM 2 ) 3 ) ] ) ) 4 ) ] )\t4\r\n"
    assert written == (HEADER + row).encode()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (HEADER + GOOD + "( ( [MAX 4 ) 3", "line 3: expected a tab and a target .*truncated"),
        (HEADER + GOOD + "( ( ( [MAX 4 ) 3 ) ] )\t", "line 3: expected a target .* got ''"),
        (HEADER + GOOD + "( ( [MAX 4 ) 3 )\t4\n", "line 3: .* 1 more ]: truncated"),
        (HEADER + GOOD + "( ( ( [TOP 4 ) 3 ) ] )\t4\n", r"line 3: .* got '\[TOP'"),
        (HEADER + GOOD + "( ( ( [MAX 4 ) 12 ) ] )\t4\n", "line 3: .* got '12'"),
        (HEADER + "( ( ( [MAX 4 ) 3 ) ] )\t10\n", "line 2: .* from 0 to 9, got '10'"),
        (HEADER + "( ( ( [MAX 4 ) 3 ) ] )\t-1\n", "line 2: .* from 0 to 9, got '-1'"),
        (HEADER + "( ( ( [MAX 4 ) 3 ) ] )\t[MAX\n", r"line 2: .* from 0 to 9, got '\[MAX'"),
        (HEADER + "[MAX 4 3 ] 2\t4\n", "line 2: expected one expression, got more after token 3"),
        (HEADER + "[MAX 4 3 ] ]\t4\n", "line 2: expected one expression, got more after token 3"),
        (HEADER + "[MAX ( [MIN ] ) ]\t4\n", "line 2: expected an operator with arguments"),
        (HEADER + "\t4\n", "line 2: expected an expression that begins with an operator"),
        (HEADER + "\n" + GOOD, "line 2: expected a tab and a target"),
        (HEADER, "expected cases after the first line, got the end"),
        ("", "expected cases after the first line, got the end"),
        (GOOD, "line 1: expected 'Source\\\\tTarget', got"),
    ],
)
def test_a_damaged_file_is_named_with_the_line(tmp_path, content, message):
    for name in ("basic_train.tsv", "basic_val.tsv", "basic_test.tsv"):
        (tmp_path / name).write_text(HEADER + GOOD)
    (tmp_path / "basic_val.tsv").write_text(content, newline="")
    with pytest.raises(ValueError, match=rf"basic_val\.tsv.*{message}"):
        read_listops(tmp_path)


def test_a_missing_file_is_named(tmp_path):
    (tmp_path / "basic_train.tsv").write_text(HEADER + GOOD)
    with pytest.raises(FileNotFoundError, match=r"no basic_val\.tsv"):
        read_listops(tmp_path)
