import json
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


def test_the_report_is_a_page_and_its_figures(write_run, make_flow_map):
    run_dir = write_run()
    path = write_report(run_dir, flow_maps=[make_flow_map(), make_flow_map(time=19)])
    assert path == run_dir / "report" / "index.html"
    assert sorted(file.name for file in path.parent.iterdir()) == [
        "confusion-matrix.png",
        "flow-map-1.png",
        "flow-map-2.png",
        "index.html",
        "learning-curves.png",
    ]


def test_the_page_stands_alone(write_run, make_flow_map):
    path = write_report(write_run(), flow_maps=[make_flow_map()])
    page = _Page(path)
    assert len(page.images) == 3
    assert all(image["src"].startswith("data:image/png;base64,") for image in page.images)
    assert all(image["alt"] for image in page.images)
    assert not {"script", "link", "iframe"} & set(page.tags)
    assert "http" not in path.read_text(encoding="utf-8")
    assert "url(" not in path.read_text(encoding="utf-8")


def test_what_an_image_model_attends_to_is_a_part_of_its_report(write_run):
    layer = LayerMaps(name="block 1", attention=np.ones((2, 4, 4)))
    image = np.zeros((16, 16, 3), np.uint8)
    seen = AttentionPicture(
        image=image, name="cat.png", model="softmax", sink=(8, 8), layers=(layer,)
    )
    path = write_report(write_run(), attention=[seen])
    assert (path.parent / "1-cat-softmax-attention.png").exists()
    page = _Page(path)
    assert "What the layers attend to" in page.text
    assert len(page.images) == 3
    without = write_report(write_run())  # the report is written again
    assert not list(without.parent.glob("1-cat*"))
    assert "attend to" not in _Page(without).text


def test_an_accuracy_stands_beside_its_protocol_and_the_papers(write_run):
    text = _Page(write_report(write_run())).text
    assert "Test accuracy, clean protocol97.8%362 of 370 series" in text
    assert "The paper's accuracy, by its own protocol98.9%" in text
    assert "this run: −1.1 points" in text
    assert "95% interval 95.8% to 98.9%" in text
    assert "Clean protocol: a stratified part of the training set chose the epoch" in text


def test_the_published_protocol_says_that_the_test_set_chose(write_run):
    note = "best test accuracy over epochs: the test set chose the epoch, as in the paper"
    path = write_report(write_run(protocol="published", protocol_note=note))
    page = _Page(path)
    assert "Test accuracy, published protocol97.8%" in page.text
    assert f"Published protocol: {note}." in page.text
    assert "test (chose the weights) accuracy" in page.images[0]["alt"]
    assert "the best of 30 looks at them, so without an interval" in page.text
    assert "95%" not in page.text


def test_settings_and_classes_are_listed(write_run):
    text = _Page(write_report(write_run())).text
    assert "model.mixer_options.clampNone" in text
    assert "parameters6,452,233" in text
    assert "142100.0%97.6%98.8%" in text  # class 1: series, precision, recall, F1


def test_without_the_papers_figure_there_is_none(write_run):
    text = _Page(write_report(write_run(paper_accuracy=None, paper_source=None))).text
    assert "Test accuracy, clean protocol" in text
    assert "The paper" not in text


def test_without_a_test_set_the_validation_accuracy_is_named_as_such(write_run):
    run_dir = write_run(test_accuracy=None)
    (run_dir / "predictions.csv").unlink()
    page = _Page(write_report(run_dir))
    assert "Validation accuracy, clean protocol98.2%" in page.text
    assert "Test accuracy" not in page.text
    assert "The paper's accuracy, by its own protocol98.9%" in page.text
    assert "points" not in page.text
    assert len(page.images) == 1
    assert not (run_dir / "report" / "confusion-matrix.png").exists()


def test_text_from_outside_is_escaped(write_run, make_flow_map):
    evil = '<script>alert("x")</script>'
    run_dir = write_run(classes=(evil, "b & c", "\"'>"), recipe=evil)
    page = _Page(write_report(run_dir, flow_maps=[make_flow_map(label=evil, predicted='">')]))
    assert "script" not in page.tags
    assert evil in page.text
    assert "b & c" in page.text
    assert f"class {evil}" in page.images[-1]["alt"]


def test_a_line_break_in_a_class_name_splits_no_row(write_run):
    assert write_report(write_run(classes=("walk\nslowly", "walk\u2028fast", "run"))).is_file()


def test_a_second_report_replaces_the_first(write_run, make_flow_map):
    run_dir = write_run()
    write_report(run_dir, flow_maps=[make_flow_map()] * 3)
    path = write_report(run_dir, flow_maps=[make_flow_map()])
    assert len(_Page(path).images) == 3
    assert [file.name for file in path.parent.glob("flow-map-*")] == ["flow-map-1.png"]


def test_a_failed_write_leaves_the_old_page_whole(write_run, monkeypatch):
    path = write_report(write_run())
    before = path.read_bytes()

    def full(_descriptor):
        raise OSError("disk full")

    monkeypatch.setattr("flowformer.files.os.fsync", full)
    with pytest.raises(OSError, match="disk full"):
        write_report(path.parents[1])
    assert path.read_bytes() == before
    assert not list(path.parent.glob(".*"))


@pytest.mark.parametrize("name", ["config.json", "result.json", "metrics.csv", "predictions.csv"])
def test_a_missing_file_is_named(write_run, name):
    run_dir = write_run()
    (run_dir / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"{name} is missing"):
        write_report(run_dir)
    assert not (run_dir / "report").exists()


def test_a_missing_run_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no run folder .*nowhere"):
        write_report(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        pytest.param("result.json", "{", r"result\.json, line 1: expected JSON", id="not-json"),
        pytest.param("config.json", "[]", "expected a JSON object, got list", id="not-an-object"),
        pytest.param("metrics.csv", "epoch\n1\n", "line 1: expected the columns", id="columns"),
        pytest.param("metrics.csv", "", "line 1: expected the columns", id="empty"),
        pytest.param(
            "metrics.csv",
            "epoch,train_loss,train_accuracy,validation_loss,validation_accuracy\n"
            "23,0.1,0.9,0.1,0.9\n24,0.1,0.9,0.1,many\n",
            "line 3: validation_accuracy must be a number, got 'many'",
            id="not-a-number",
        ),
        pytest.param(
            "metrics.csv",
            "epoch,train_loss,train_accuracy,validation_loss,validation_accuracy\n23,0.1\n",
            "line 2: expected 5 values",
            id="short-row",
        ),
        pytest.param(
            "predictions.csv", "index,label,predicted\n", "at least one row", id="no-predictions"
        ),
        pytest.param(
            "predictions.csv",
            "index,label,predicted\n0,1,1\n1,1,ten\n",
            "line 3: predicted must be one of the classes 1, .*, got 'ten'",
            id="unknown-class",
        ),
        pytest.param(
            "predictions.csv",
            "index,label,predicted\n0,1,1\n1,1,2\n",
            "test_accuracy 0.9784, but 0.5000 of the rows",
            id="of-another-run",
        ),
    ],
)
def test_a_malformed_file_is_named_with_its_line(write_run, name, content, message):
    run_dir = write_run()
    (run_dir / name).write_text(content)
    with pytest.raises(ValueError, match=message) as raised:
        write_report(run_dir)
    assert str(run_dir) in str(raised.value)
    assert not (run_dir / "report").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param({"protocol": "mine"}, "protocol must be one of clean, published", id="name"),
        pytest.param({"best_epoch": 99}, "best_epoch 99 has no row in metrics.csv", id="epoch"),
        pytest.param({"seed": "0"}, "seed must be int, got '0'", id="type"),
        pytest.param({"paper_accuracy": True}, "paper_accuracy must be int or float", id="bool"),
    ],
)
def test_a_wrong_entry_of_the_result_is_named(write_run, changes, message):
    with pytest.raises(ValueError, match=message):
        write_report(write_run(**changes))


def test_a_missing_entry_of_the_result_is_named(write_run):
    run_dir = write_run()
    result = json.loads((run_dir / "result.json").read_text())
    del result["protocol_note"]
    (run_dir / "result.json").write_text(json.dumps(result))
    with pytest.raises(ValueError, match="missing key 'protocol_note'"):
        write_report(run_dir)
