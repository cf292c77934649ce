from html.parser import HTMLParser

import numpy as np
import pytest

from flowformer.report.attention_maps import AttentionPicture, LayerMaps
from flowformer.report.classifier import write_report


class _Page(HTMLParser):
    def __init__(self, path):
        super().__init__()
        self.tags, self.images, self.text = [], [], ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag == "img":
            self.images.append(dict(attrs))

    def handle_data(self, data):
        self.text += data


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "report"


def test_the_report_is_a_page_and_its_figures(make_run, folder, make_flow_map):
    path = write_report(folder, make_run(), flow_maps=[make_flow_map(), make_flow_map(time=19)])
    assert path == folder / "index.html"
    assert sorted(file.name for file in path.parent.iterdir()) == [
        "confusion-matrix.png",
        "flow-map-1.png",
        "flow-map-2.png",
        "index.html",
        "learning-curves.png",
    ]


def test_the_page_stands_alone(make_run, folder, make_flow_map):
    path = write_report(folder, make_run(), flow_maps=[make_flow_map()])
    page = _Page(path)
    assert len(page.images) == 3
    assert all(image["src"].startswith("data:image/png;base64,") for image in page.images)
    assert all(image["alt"] for image in page.images)
    assert not {"script", "link", "iframe"} & set(page.tags)
    assert "http" not in path.read_text(encoding="utf-8")
    assert "url(" not in path.read_text(encoding="utf-8")


def test_what_an_image_model_attends_to_is_a_part_of_its_report(make_run, folder):
    layer = LayerMaps(name="block 1", attention=np.ones((2, 4, 4)))
    image = np.zeros((16, 16, 3), np.uint8)
    seen = AttentionPicture(
        image=image, name="cat.png", model="softmax", sink=(8, 8), layers=(layer,)
    )
    path = write_report(folder, make_run(), attention=[seen])
    assert (path.parent / "1-cat-softmax-attention.png").exists()
    page = _Page(path)
    assert "What the layers attend to" in page.text
    assert len(page.images) == 3
    without = write_report(folder, make_run())  # the report is written again
    assert not list(without.parent.glob("1-cat*"))
    assert "attend to" not in _Page(without).text


def test_an_accuracy_stands_beside_its_protocol_and_the_papers(make_run, folder):
    text = _Page(write_report(folder, make_run())).text
    assert "Test accuracy, clean protocol97.8%362 of 370 series" in text
    assert "The paper's accuracy, by its own protocol98.9%" in text
    assert "this run: −1.1 points" in text
    assert "95% interval 95.8% to 98.9%" in text
    assert "Clean protocol: a stratified part of the training set chose the epoch" in text


def test_the_published_protocol_says_that_the_test_set_chose(make_run, folder):
    note = "best test accuracy over epochs: the test set chose the epoch, as in the paper"
    path = write_report(folder, make_run(protocol="published", protocol_note=note))
    page = _Page(path)
    assert "Test accuracy, published protocol97.8%" in page.text
    assert f"Published protocol: {note}." in page.text
    assert "test (chose the weights) accuracy" in page.images[0]["alt"]
    assert "the best of 30 looks at them, so without an interval" in page.text
    assert "95%" not in page.text


def test_settings_and_classes_are_listed(make_run, folder):
    text = _Page(write_report(folder, make_run())).text
    assert "model.mixer_options.clampNone" in text
    assert "parameters6,452,233" in text
    assert "142100.0%97.6%98.8%" in text  # class 1: series, precision, recall, F1


def test_without_the_papers_figure_there_is_none(make_run, folder):
    text = _Page(write_report(folder, make_run(paper_accuracy=None, paper_source=None))).text
    assert "Test accuracy, clean protocol" in text
    assert "The paper" not in text


def test_without_a_test_set_the_validation_accuracy_is_named_as_such(make_run, folder):
    page = _Page(write_report(folder, make_run(test_accuracy=None)))
    assert "Validation accuracy, clean protocol98.2%" in page.text
    assert "Test accuracy" not in page.text
    assert "The paper's accuracy, by its own protocol98.9%" in page.text
    assert "points" not in page.text
    assert len(page.images) == 1
    assert not (folder / "confusion-matrix.png").exists()


def test_text_from_outside_is_escaped(make_run, folder, make_flow_map):
    evil = '<script>alert("x")</script>'
    run = make_run(classes=(evil, "b & c", "\"'>"), recipe=evil)
    page = _Page(write_report(folder, run, flow_maps=[make_flow_map(label=evil, predicted='">')]))
    assert "script" not in page.tags
    assert evil in page.text
    assert "b & c" in page.text
    assert f"class {evil}" in page.images[-1]["alt"]


def test_a_second_report_replaces_the_first(make_run, folder, make_flow_map):
    write_report(folder, make_run(), flow_maps=[make_flow_map()] * 3)
    path = write_report(folder, make_run(), flow_maps=[make_flow_map()])
    assert len(_Page(path).images) == 3
    assert [file.name for file in path.parent.glob("flow-map-*")] == ["flow-map-1.png"]


def test_a_failed_write_leaves_the_old_page_whole(make_run, folder, monkeypatch):
    path = write_report(folder, make_run())
    before = path.read_bytes()

    def full(_descriptor):
        raise OSError("disk full")

    monkeypatch.setattr("flowformer.files.os.fsync", full)
    with pytest.raises(OSError, match="disk full"):
        write_report(folder, make_run())
    assert path.read_bytes() == before
    assert not list(path.parent.glob(".*"))
