"""One entry for all benchmarks: their names, their options, and the page that lists them."""

import re

import pytest

from benchmarks.__main__ import BENCHMARKS, listing, load, main, parser_of
from benchmarks.runner import ROOT, said_separately, separately


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


def say(text: str) -> None:
    print(text)


def test_a_function_is_called_in_a_process_of_its_own() -> None:
    assert said_separately(say, text="a") == "a\n"
    assert separately(say, wrong="a").returncode == 1
    with pytest.raises(RuntimeError, match="exit status 1: TypeError: .* unexpected keyword"):
        said_separately(say, wrong="a")
