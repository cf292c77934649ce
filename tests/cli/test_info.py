"""`flowformer info`."""

import json

import pytest

from flowformer.ops import cpu_library


def test_info_says_what_is_available_and_why_the_rest_is_not(flowformer):
    facts = json.loads(flowformer("info", "--json").out)
    assert facts["backends"]["chunked"] is None
    assert {"train", "timeseries", "dev"} <= facts["extras"].keys()
    out = flowformer("info").out
    for name, reason in facts["backends"].items():
        assert f"backend {name}" in out
        assert reason is None or reason in out


def test_info_names_the_instruction_set_of_the_cpu_backend(flowformer):
    chosen = json.loads(flowformer("info", "--json").out)["instruction_set"]
    if chosen is None:  # no C++ compiler, which is no fault
        pytest.skip("the package was installed without its compiled library")
    assert chosen in {"portable", "avx2", "avx512"}
    assert f"backend cpu         available, with {chosen}\n" in flowformer("info").out


def test_info_says_what_serves_without_the_compiled_library(flowformer, monkeypatch):
    monkeypatch.setattr(cpu_library, "_outcome", lambda: "no C++ compiler was found")
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
