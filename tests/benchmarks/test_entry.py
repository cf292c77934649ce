"""One entry for all benchmarks: their names, their options, and the page that lists them."""

import re

import pytest

from benchmarks.__main__ import BENCHMARKS, listing, load, main, parser_of
from benchmarks.runner import ROOT, pin, said_separately


def test_without_a_name_all_are_listed_with_their_questions(capsys) -> None:
    assert main([]) == 0
    lines = capsys.readouterr().out.splitlines()[2:]
    assert [line.split()[0] for line in lines] == list(BENCHMARKS)
    assert all("?" in line for line in lines)
    assert listing().count("\n") == len(BENCHMARKS) + 1


def test_an_unknown_name_is_refused_with_the_nearest(capsys) -> None:
    assert main(["mixer-cost"]) == 2
    said = capsys.readouterr().err
    assert "unknown benchmark 'mixer-cost': did you mean mixer_cost? choose from" in said


def test_every_benchmark_can_be_run_and_says_its_options(capsys) -> None:
    for name in BENCHMARKS:
        module = load(name)
        assert callable(module.execute)
        with pytest.raises(SystemExit, match="0"):
            parser_of(name, module).parse_args(["--help"])
        assert f"usage: python -m benchmarks {name}" in capsys.readouterr().out


def test_the_readme_lists_every_benchmark_once() -> None:
    rows = (ROOT / "benchmarks" / "README.md").read_text()
    assert re.findall(r"^\| `(\w+)` \|", rows, re.MULTILINE) == list(BENCHMARKS)


def test_a_quick_run_is_not_kept_where_the_pages_read(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = []
    module = load("attention_cpu")
    monkeypatch.setattr(module, "execute", lambda arguments: kept.append(arguments.output.name))
    main(["attention_cpu", "--quick"])
    main(["attention_cpu"])
    assert kept == ["attention_cpu_quick.json", "attention_cpu.json"]


def test_a_process_of_its_own_that_fails_is_an_error_with_its_last_line() -> None:
    with pytest.raises(RuntimeError, match=r"exit status 1: TypeError: .* unexpected keyword"):
        said_separately(pin, wrong="a")
