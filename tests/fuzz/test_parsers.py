"""Every reader of files, on damaged ones: an error that names the file, in bounded time and memory.

A short version of `make fuzz`, with the same damage in every run.
"""

import json
import os
import signal
from pathlib import Path

import pytest
from hypothesis import find

from tests.fuzz import child
from tests.fuzz.child import Fuzzer
from tests.fuzz.mutations import damaged
from tests.fuzz.run import fuzz, runnable
from tests.fuzz.target import Target
from tests.fuzz.targets import TARGETS

EXAMPLES = 15


def test_damaged_files_are_refused_by_name(tmp_path: Path) -> None:
    names = runnable()
    outcomes = fuzz(names, tmp_path, engine="hypothesis", examples=EXAMPLES)
    assert {name: list(outcome.findings) for name, outcome in outcomes.items()} == {
        name: [] for name in names
    }
    assert all(outcome.executions >= EXAMPLES for outcome in outcomes.values())


def test_a_crash_is_found_and_the_time_that_is_left_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(folder: Path) -> None:
        if (folder / "x").read_bytes() != b"valid":
            os.abort()

    def make(folder: Path) -> None:
        (folder / "x").write_bytes(b"valid")

    monkeypatch.setitem(TARGETS, "made-up", Target(file="x", read=read, make=make))
    monkeypatch.setattr(child, "_MOST_CRASHES", 2)
    child.fuzz_forked("made-up", tmp_path / "report", "hypothesis", seconds=60, examples=5, seed=0)
    for part in ("made-up-0.json", "made-up-1.json"):
        (finding,) = json.loads((tmp_path / part).read_text())["findings"].items()
        assert finding[0] == f"crash, {-signal.SIGABRT}"
        assert "Fatal Python error: Aborted" in finding[1]["trace"]


def test_damage_changes_content_in_every_way() -> None:
    contents = damaged([b"0123456789"], [b"token"])
    assert find(contents, lambda content: b"token" in content)
    assert find(contents, lambda content: len(content) < 10 and content.startswith(b"012"))
    assert find(contents, lambda content: b"0123456789" in content and len(content) > 200)


@pytest.mark.parametrize(
    ("error", "signature"),
    [
        (ZeroDivisionError("oh"), "ZeroDivisionError in"),
        (ValueError("no name"), "ValueError that names no file in"),
        (MemoryError(), "MemoryError in"),
    ],
    ids=["another-error", "no-name", "memory"],
)
def test_what_a_reader_may_not_do_is_found(
    error: Exception,
    signature: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def read(folder: Path) -> None:
        if (folder / "x").read_bytes() != b"valid":
            raise error

    def make(folder: Path) -> None:
        (folder / "x").write_bytes(b"valid")

    monkeypatch.setitem(TARGETS, "made-up", Target(file="x", read=read, make=make))
    fuzzer = Fuzzer("made-up", tmp_path / "report.json")
    assert fuzzer.try_(b"valid") is None
    found = fuzzer.try_(b"damaged")
    assert found is not None
    assert found.startswith(signature)
    assert fuzzer.try_(b"less") == found
    fuzzer.save()
    findings = json.loads((tmp_path / "report.json").read_text())["findings"]
    assert {name: bytes.fromhex(one["content"]) for name, one in findings.items()} == {
        found: b"less"
    }


def test_a_finding_is_made_small_and_the_search_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(folder: Path) -> None:
        content = (folder / "x").read_bytes()
        if b"!" in content:
            raise KeyError
        if not content:
            raise ZeroDivisionError

    def make(folder: Path) -> None:
        (folder / "x").write_bytes(b"valid content")

    made_up = Target(file="x", read=read, make=make, tokens=(b"!",))
    monkeypatch.setitem(TARGETS, "made-up", made_up)
    fuzzer = Fuzzer("made-up", tmp_path / "report.json")
    child.by_hypothesis(fuzzer, 1e9, 600, 0)
    found = {name.split()[0]: one["content"] for name, one in fuzzer.findings.items()}
    assert found == {"KeyError": b"!".hex(), "ZeroDivisionError": ""}
    assert fuzzer.executions >= 600


def test_an_error_that_names_the_file_is_no_finding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(folder: Path) -> None:
        if (folder / "x").read_bytes() != b"valid":
            raise ValueError(f"{folder / 'x'}: damaged")

    def make(folder: Path) -> None:
        (folder / "x").write_bytes(b"valid")

    monkeypatch.setitem(TARGETS, "made-up", Target(file="x", read=read, make=make))
    fuzzer = Fuzzer("made-up", tmp_path / "report.json")
    assert fuzzer.try_(b"damaged") is None
    assert (fuzzer.executions, fuzzer.read, fuzzer.findings) == (1, 0, {})
