"""`flowformer visualize RUN IMAGE`: runs on images, what they attend to, and what is refused."""

from dataclasses import replace
from pathlib import Path

import pytest

from flowformer.train.run import train
from tests.train.small_images import tiny_vision, write_images


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    return write_images(tmp_path_factory.mktemp("images") / "data", {"train": 4, "val": 2})


@pytest.fixture(scope="module")
def runs(tmp_path_factory, images) -> dict[str, Path]:
    """A finished run with each mixer."""
    folder = tmp_path_factory.mktemp("runs")
    config = tiny_vision(images, epochs=1, average=None)
    for mixer in ("flow", "softmax", "yoso"):
        model = replace(config.model, mixer=mixer)
        train(replace(config, model=model), folder / mixer)
    return {path.name: path for path in folder.iterdir()}


@pytest.fixture
def image(images) -> Path:
    return images / "val" / "red" / "0.png"


def test_of_one_run_the_report_has_what_it_attends_to(flowformer, runs, image):
    outcome = flowformer("visualize", runs["flow"], image, "--sink", 0.1, 0.9)
    page = runs["flow"] / "report" / "index.html"
    assert outcome.out.strip() == str(page)
    html = page.read_text(encoding="utf-8")
    assert "Learning curves" in html
    assert "What the layers attend to" in html
    names = {file.name for file in page.parent.glob("1-*.png")}
    assert names == {f"1-0-flow-{what}.png" for what in ("attention", "competition", "allocation")}


def test_several_runs_stand_side_by_side(flowformer, runs, image, tmp_path):
    own = flowformer("visualize", runs["flow"], runs["softmax"], image)
    assert own.out.strip() == str(runs["flow"] / "report" / "side-by-side" / "index.html")
    output = tmp_path / "page"
    there = flowformer(
        "visualize", image, runs["softmax"], runs["flow"], image.with_name("1.png"),
        "--output", output,
    )  # fmt: skip
    assert there.out.strip() == str(output / "index.html")
    assert {"1-0-side-by-side.png", "2-1-side-by-side.png"} <= {
        file.name for file in output.iterdir()
    }


def test_what_cannot_be_drawn_is_said(flowformer, runs, image, tmp_path):
    for arguments, said in (
        ([runs["flow"], tmp_path / "none.png"], "none.png: no such run or image"),
        ([runs["flow"], tmp_path], "holds no run: expected config.json in it, or an image"),
        ([runs["flow"], runs["softmax"]], "one run and one image, got 2 and 0"),
        ([runs["flow"], runs["flow"], image], "expected each run once"),
        ([runs["yoso"], image], "(mixer yoso) is not linear in the values"),
        ([runs["flow"], image, "--class-token"], "no class token"),
        ([runs["flow"], "--output", tmp_path / "page"], "expected an image beside --output"),
        ([runs["flow"], "--class-token"], "expected an image beside --output or --class-token"),
        ([runs["flow"], image, "--sink", "2", "0"], "row and column from 0 to 1"),
        ([runs["flow"], runs["flow"] / "config.json"], "config.json: expected an image"),
    ):
        outcome = flowformer("visualize", *arguments)
        assert outcome.code == 2
        assert said in outcome.err
