"""`make reproduce-TABLE`: every table of docs/results.md, with its time."""

import subprocess

import pytest

from benchmarks import __main__ as entry
from benchmarks import reproduce
from benchmarks.__main__ import load, main, parser_of
from benchmarks.pages import MARK
from benchmarks.reproduce import TABLES, listing
from benchmarks.runner import ROOT

COMMANDS = sorted({command for steps in TABLES.values() for command in steps.commands})


def test_every_table_of_the_results_can_be_made_again() -> None:
    made = {table for each in COMMANDS for table in load(each.split()[0]).TABLES}
    assert set(MARK.findall((ROOT / "docs" / "results.md").read_text())) <= made


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_is_one_of_its_benchmark(command: str) -> None:
    name, *arguments = command.split()
    parser_of(name, load(name)).parse_args(arguments)


def test_the_readme_has_the_list() -> None:
    assert listing() in (ROOT / "benchmarks" / "README.md").read_text()


def test_an_unknown_name_is_refused_with_the_list(capsys) -> None:
    assert main(["reproduce", "charcters"]) == 2
    said = capsys.readouterr().err
    assert "unknown table 'charcters': did you mean characters?" in said
    assert listing() in said


def test_what_fails_ends_it_and_what_ends_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    statuses = iter([0, 0, 3])

    def run(words: list[str]) -> int:
        asked.append(words)
        return next(statuses)

    monkeypatch.setattr(entry, "main", run)
    assert reproduce.main(["mixers"]) == 3
    assert asked == [
        ["comparisons", "scp1", "characters"],
        ["comparisons", "--report"],
        ["mixer_cost", "--threads", "1", "--time-limit", "30"],
    ]


def test_what_was_found_is_written_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []
    monkeypatch.setattr(entry, "main", lambda words: asked.append(words))
    assert reproduce.main(["recall"]) == 0
    assert asked == [["recall", "--again"], ["recall", "--report"], ["findings", "--report"]]


def test_make_hands_the_name_on() -> None:
    words = ["make", "--dry-run", "--directory", str(ROOT), "reproduce-recall"]
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    assert "-m benchmarks reproduce recall" in done.stdout
