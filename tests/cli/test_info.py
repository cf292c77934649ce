"""`flowformer info`."""

import json


def test_info_says_what_is_available_and_why_the_rest_is_not(flowformer):
    facts = json.loads(flowformer("info", "--json").out)
    assert facts["backends"]["chunked"] is None
    assert {"train", "timeseries", "dev"} <= facts["extras"].keys()
    out = flowformer("info").out
    for name, reason in facts["backends"].items():
        assert f"backend {name}" in out
        assert reason is None or reason in out


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
        assert f"extra {extra:<12}missing tensorboard: pip install 'flowformer[{extra}]'" in out
