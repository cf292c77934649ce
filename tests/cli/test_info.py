"""`flowformer info`."""

import importlib.metadata
import json
import sys

import pytest

from flowformer import __version__
from flowformer.ops.backends.cpu import library

NOT_CORE = ("tyro", "lightning", "matplotlib", "sklearn", "aeon", "gymnasium", "timm", "PIL")


def test_info_says_what_is_available_and_why_the_rest_is_not(flowformer):
    facts = json.loads(flowformer("info", "--json").out)
    assert facts["backends"]["chunked"] is None
    assert {"train", "timeseries", "dev"} <= facts["extras"].keys()
    out = flowformer("info").out
    for name, reason in facts["backends"].items():
        assert f"backend {name}" in out
        assert reason is None or reason in out


@pytest.mark.parametrize("command", ["info", "recipes", "--version", "--help"])
def test_what_there_is_can_be_seen_with_the_core_dependencies_alone(
    flowformer, monkeypatch, command
):
    for name in [each for each in sys.modules if each.startswith("flowformer.cli.")]:
        if name != "flowformer.cli.main":  # which is called
            monkeypatch.delitem(sys.modules, name)
    for name in NOT_CORE:
        for part in [each for each in sys.modules if each.split(".")[0] == name]:
            monkeypatch.delitem(sys.modules, part)
        monkeypatch.setitem(sys.modules, name, None)
    outcome = flowformer(command)
    assert outcome.code == 0
    assert outcome.err == ""


@pytest.mark.parametrize("command", ["info", "recipes", "train --help"])
def test_a_command_that_needs_no_home_does_without(flowformer, monkeypatch, command):
    def nobody(_uid: int) -> None:
        raise KeyError("getpwuid(): uid not found")

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", nobody)
    assert flowformer(*command.split()).code == 0


def test_info_works_where_the_package_is_not_installed(flowformer, monkeypatch):
    def none(name: str) -> list[str]:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "requires", none)
    out = flowformer("info").out
    assert f"flowformer    {__version__}\n" in out
    assert "extras              unknown: flowformer is not installed by pip here" in out


def test_info_names_the_instruction_set_of_the_cpu_backend(flowformer):
    chosen = json.loads(flowformer("info", "--json").out)["instruction_set"]
    if chosen is None:  # no C++ compiler, which is no fault
        pytest.skip("the package was installed without its compiled library")
    assert chosen in library.INSTRUCTION_SETS
    assert f"backend cpu         available, with {chosen}\n" in flowformer("info").out


def test_info_says_what_serves_without_the_compiled_library(flowformer, monkeypatch):
    monkeypatch.setattr(library, "_outcome", lambda: "no C++ compiler was found")
    line = "backend cpu         not available: no C++ compiler was found (chunked serves, slower)"
    assert line in flowformer("info").out.splitlines()


def test_info_names_the_extra_that_brings_a_missing_package(flowformer, monkeypatch):
    from flowformer.cli import info

    found = info.importlib.metadata.version

    def version(name: str) -> str:
        if name == "tensorboard":
            raise info.importlib.metadata.PackageNotFoundError(name)
        return found(name)

    monkeypatch.setattr(info.importlib.metadata, "version", version)
    out = flowformer("info").out
    for extra in ("train", "timeseries", "dev"):  # the latter bring what the first does
        assert f"extra {extra:<14}missing tensorboard: pip install 'flowformer[{extra}]'" in out
