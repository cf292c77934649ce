"""Training on long sequences, from a configuration to a run folder, and what is done with a run."""

import csv
import io
import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from flowformer.compare.methods import bag_of_tokens, chance, count_tokens
from flowformer.data.sequences.listops import LISTOPS_TOKENS
from flowformer.train.config import ScheduledOptimizerConfig
from flowformer.train.folder import DEFAULT_TASK, RunFolder
from flowformer.train.kinds import KINDS, kind_of_run
from flowformer.train.language.config import LanguageRecord
from flowformer.train.loop.classification import ClassificationTask
from flowformer.train.run import load_run, predict, train, write_report
from flowformer.train.run_files import ClassifierResult
from flowformer.train.sequences.config import (
    SequenceDataConfig,
    SequencesConfig,
    SequencesRecord,
    SequencesTrainingConfig,
)
from flowformer.train.sequences.data import load_sequences, part_sequences
from flowformer.train.sequences.study import Sequences
from tests.data.sequences.arena_files import (
    aan_files,
    fashion_files,
    listops_files,
    pathfinder_files,
)
from tests.train.small_sequences import LISTOPS, tiny_sequences

__all__ = ["tiny_sequences"]  # a fixture


def read_rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


class TestTraining:
    def test_a_run_leaves_what_the_folder_promises(self, tmp_path, tiny_sequences):
        result = train(tiny_sequences(steps=6), tmp_path / "run")
        folder = RunFolder(tmp_path / "run")
        assert ClassifierResult.read(folder) == result
        rows = read_rows(folder.metrics.read_text())
        assert [row["step"] for row in rows] == ["2", "4", "6"]
        best = rows[result.best_epoch - 1]
        assert int(best["step"]) == result.best_step
        assert max(row["validation_accuracy"] for row in rows) == best["validation_accuracy"]
        predicted = read_rows(folder.predictions.read_text())
        right = [row["label"] == row["predicted"] for row in predicted]
        assert len(right) == 30
        assert np.mean(right) == result.test_accuracy
        assert (result.paper_accuracy, result.paper_source) == (None, None)  # generated data
        record = SequencesRecord.read(folder)
        assert record.sizes == {"train": 60, "validation": 20, "test": 30}
        assert "generated" in record.source

    def test_training_learns(self, tmp_path, tiny_sequences):
        config = tiny_sequences(steps=150, evaluate_every=50)
        config = replace(config, data=replace(config.data, sizes=(20, 10, 10)))
        train(config, tmp_path / "run")
        rows = read_rows(RunFolder(tmp_path / "run").metrics.read_text())
        assert float(rows[-1]["train_accuracy"]) > 0.9

    @pytest.mark.parametrize(
        ("name", "write"),
        [("aan", aan_files), ("pathfinder32", pathfinder_files), ("listops", listops_files)],
        ids=["pairs", "pictures", "files"],
    )
    def test_it_reads_a_users_files(self, tmp_path, tiny_sequences, name, write):
        folder = write(tmp_path / "files")
        config = tiny_sequences(SequenceDataConfig(dataset=name, folder=folder, batch_size=2))
        if name == "aan":  # one validation case
            config = replace(config, training=replace(config.training, steps=2))
        result = train(config, tmp_path / "run")
        assert result.test_accuracy is not None
        assert load_run(tmp_path / "run").record.paired == (name == "aan")

    def test_what_files_leave_unused_is_said(self, tmp_path, tiny_sequences, caplog):
        folder = listops_files(tmp_path / "files")
        data = SequenceDataConfig(dataset="listops", folder=folder, sizes=(9, 9, 9), max_depth=3)
        with caplog.at_level("INFO"):
            load_sequences(tiny_sequences(data).data)
        assert "data.max_depth, data.sizes, of what is generated, change nothing" in caplog.text

    @pytest.mark.parametrize("mixer", ["flow-heads", "softmax", "linear", "performer"])
    def test_any_mixer_is_one_word(self, tmp_path, tiny_sequences, mixer):
        train(tiny_sequences(mixer=mixer, steps=2), tmp_path / "run")
        assert load_run(tmp_path / "run").record.config.model.mixer == mixer

    def test_a_run_that_is_stopped_and_resumed_ends_bitwise_the_same(
        self, tmp_path, tiny_sequences, monkeypatch
    ):
        config = tiny_sequences(steps=6)
        config = replace(config, model=replace(config.model, dropout=0.2))
        whole = train(config, tmp_path / "whole")
        step, steps = ClassificationTask.training_step, []

        def stopping(*arguments: Any) -> Any:
            steps.append(arguments)
            if len(steps) == 4:  # the second step after a measurement
                raise RuntimeError("stopped")
            return step(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(ClassificationTask, "training_step", stopping)
            with pytest.raises(RuntimeError, match="stopped"):
                train(config, tmp_path / "resumed")
        resumed = train(config, tmp_path / "resumed", resume=True)
        assert replace(resumed, seconds=0.0) == replace(whole, seconds=0.0)
        one, other = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "resumed")
        assert one.weights.read_bytes() == other.weights.read_bytes()
        assert one.predictions.read_bytes() == other.predictions.read_bytes()
        losses = [
            [row["train_loss"] for row in read_rows(folder.metrics.read_text())]
            for folder in (one, other)
        ]
        assert len(losses[0]) == 3
        assert losses[0] == losses[1]

    def test_a_resumed_run_must_be_the_same(self, tmp_path, tiny_sequences):
        train(tiny_sequences(), tmp_path / "run")
        with pytest.raises(ValueError, match=r"training\.steps was 4, got 8"):
            train(tiny_sequences(steps=8), tmp_path / "run", resume=True)

    def test_the_papers_figure_does_not_stand_beside_other_data(self, tiny_sequences):
        config = tiny_sequences(SequenceDataConfig(dataset="aan"))
        assert (config.paper_accuracy, config.paper_source) == (None, None)
        assert tiny_sequences().paper_score is None  # generated

    def test_it_stands_beside_the_benchmarks_files_as_long_as_there(self, tmp_path, tiny_sequences):
        folder = listops_files(tmp_path / "files")
        for length, figure in ((40, 0.387), (30, None)):
            data = SequenceDataConfig(dataset="listops", folder=folder, max_length=length)
            config = replace(tiny_sequences(data, steps=2), paper_length=40)
            assert config.paper_score == figure
        config = replace(config, data=replace(config.data, max_length=40))
        assert train(config, tmp_path / "run").paper_accuracy == 0.387


class TestParts:
    def test_the_sets_own_validation_part_chooses_the_step(self, tiny_sequences):
        config = tiny_sequences()
        parts = part_sequences(config, load_sequences(config.data))
        assert [len(part) for part in parts] == [60, 20, 30, 30]

    def test_without_one_it_is_cut_from_the_training_part(self, tiny_sequences):
        config = tiny_sequences()
        config = replace(config, data=replace(config.data, validation_fraction=1 / 6))
        data = load_sequences(config.data)
        splits = {part: data.splits[part] for part in ("train", "test")}
        parts = part_sequences(config, replace(data, splits=splits))
        assert [len(part) for part in parts] == [50, 10, 30, 30]
        chosen, rest = set(parts.validation.indices), set(parts.train.indices)
        assert chosen | rest == set(range(60))  # 50 and 10 of them: none is in both
        # Each value is 6 of the 60.
        assert sorted(case[2] for case in parts.validation) == list(range(10))

    def test_too_few_to_cut_are_refused(self, tmp_path, tiny_sequences):
        folder = fashion_files(tmp_path / "files")
        data = SequenceDataConfig(dataset="fashion-mnist", folder=folder, batch_size=1)
        config = tiny_sequences(data)
        with pytest.raises(ValueError, match="expected at least 2 cases of each class"):
            part_sequences(config, load_sequences(config.data))  # two pictures of two classes

    def test_under_the_published_protocol_the_test_part_does(self, tiny_sequences):
        config = tiny_sequences(protocol="published")
        data = load_sequences(config.data)
        parts = part_sequences(config, data)
        assert torch.equal(parts.validation[7][0], parts.test[7][0])
        assert len(parts.validation) == 30
        assert "the test part chose the step" in config.protocol_note

    def test_some_cases_are_drawn_once_whatever_the_seed(self, tiny_sequences):
        chosen = []
        for seed in (0, 1):
            config = tiny_sequences(seed=seed, validation_cases=5, test_cases=7)
            parts = part_sequences(config, load_sequences(config.data))
            assert [len(part) for part in parts] == [60, 5, 7, 7]
            chosen.append((list(parts.validation.indices), list(parts.test.indices)))
            labels = [parts.test[i][2] for i in range(7)]
            assert labels == parts.test_labels.tolist()
        assert chosen[0] == chosen[1]
        assert "at most 7 test cases" in config.protocol_note


class TestRunsReadBack:
    def test_its_accuracy_is_found_again(self, tmp_path, tiny_sequences):
        result = train(tiny_sequences(), tmp_path / "run")
        evaluation = Sequences.evaluate(tmp_path / "run")
        assert evaluation.metrics.accuracy == result.test_accuracy
        assert not evaluation.differs
        assert "30 cases" in evaluation.describe()

    def test_changed_data_are_refused(self, tmp_path, tiny_sequences):
        folder = listops_files(tmp_path / "files")
        config = tiny_sequences(SequenceDataConfig(dataset="listops", folder=folder, batch_size=4))
        train(config, tmp_path / "run")
        test = folder / "basic_test.tsv"
        test.write_text("\n".join(test.read_text().splitlines()[:-1]) + "\n")
        with pytest.raises(ValueError, match="is of other data"):
            Sequences.evaluate(tmp_path / "run")

    def test_its_report_counts_steps(self, tmp_path, tiny_sequences):
        result = train(tiny_sequences(), tmp_path / "run")
        page = write_report(tmp_path / "run").read_text()
        assert "Step kept" in page
        assert f"{result.best_step}</" in page
        assert "30 sequences" in page

    def test_runs_of_other_kinds_are_told_apart(self, tmp_path, tiny_sequences):
        train(tiny_sequences(steps=2), tmp_path / "run")
        folder = RunFolder(tmp_path / "run")
        assert kind_of_run(folder).name == "sequences"
        with pytest.raises(ValueError, match="holds a run on sequences, and one on language is"):
            LanguageRecord.read(folder)
        values = json.loads(folder.config.read_text())
        folder.config.write_text(json.dumps({**values, "task": "weather"}))
        with pytest.raises(ValueError, match="task must be one of series, language, sequences"):
            kind_of_run(folder)

    def test_every_kind_is_a_folder_with_the_same_names_in_it(self):
        for name, kind in KINDS.items():
            assert getattr(kind.record, "task", DEFAULT_TASK) == name
            assert kind.record.__dataclass_fields__["config"].type is kind.config
            assert kind.study.__name__.lower() == name


class TestPredictions:
    def test_lines_of_expressions(self, tmp_path, tiny_sequences):
        train(tiny_sequences(), tmp_path / "run")
        file = tmp_path / "expressions.txt"
        data = load_sequences(tiny_sequences().data)
        case = data.splits["test"].inputs[0]
        file.write_text(" ".join(LISTOPS_TOKENS[token - 1] for token in case) + "\n[SM 1 2 ]\n")
        rows = read_rows(predict(tmp_path / "run", file))
        tested = read_rows(RunFolder(tmp_path / "run").predictions.read_text())
        assert len(rows) == 2
        for name in (name for name in tested[0] if name.startswith("probability")):
            assert float(rows[0][name]) == pytest.approx(float(tested[0][name]), abs=1e-6)

    def test_pairs_have_a_tab_between_them(self, tmp_path, tiny_sequences):
        folder = aan_files(tmp_path / "files")
        data = SequenceDataConfig(dataset="aan", folder=folder, batch_size=2)
        train(tiny_sequences(data, steps=2), tmp_path / "run")
        file = tmp_path / "pairs.txt"
        file.write_bytes(b"one text\tand another\nonly one\n")
        with pytest.raises(ValueError, match=r"pairs\.txt, line 2: expected two texts with a tab"):
            predict(tmp_path / "run", file)
        file.write_bytes(b"one text\tand another\n")
        assert len(read_rows(predict(tmp_path / "run", file))) == 1

    def test_a_picture_is_of_the_size_of_those_in_training(self, tmp_path, tiny_sequences):
        folder = pathfinder_files(tmp_path / "files")
        data = SequenceDataConfig(dataset="pathfinder32", folder=folder, batch_size=2)
        train(tiny_sequences(data, steps=2), tmp_path / "run")
        (picture,) = folder.glob("imgs/0/sample_0.png")
        assert len(read_rows(predict(tmp_path / "run", picture))) == 1
        small = tmp_path / "small.png"
        Image.new("L", (16, 8)).save(small)
        with pytest.raises(ValueError, match=r"small\.png: expected 32 × 32 pixels, got 16 × 8"):
            predict(tmp_path / "run", small)
        small.write_bytes(b"no picture")
        with pytest.raises(ValueError, match=r"small\.png: expected a picture"):
            predict(tmp_path / "run", small)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("[MAX 1 2\n", "line 1: expected the end of the expression"),
            ("[MAX 1 2 ]\n[AVG 1 2 ]\n", r"line 2: expected one of \[MIN"),
            ("[MAX " + "1 " * 20 + "]\n", "line 1: expected 1 to 16 tokens, .* got 22"),
            ("", "expected at least one line"),
        ],
        ids=["cut-off", "unknown-token", "too-long", "empty"],
    )
    def test_what_the_run_cannot_read_is_named(self, tmp_path, tiny_sequences, content, message):
        train(tiny_sequences(steps=2), tmp_path / "run")
        file = tmp_path / "cases.txt"
        file.write_text(content)
        with pytest.raises(ValueError, match=message):
            predict(tmp_path / "run", file)


class TestErrors:
    def test_longer_files_than_the_model_has_room_for(self, tmp_path, tiny_sequences):
        folder = listops_files(tmp_path / "files")
        data = SequenceDataConfig(dataset="listops", folder=folder, max_length=9)
        with pytest.raises(ValueError, match=r"at most max_length=9 tokens, got .*cannot"):
            train(tiny_sequences(data), tmp_path / "run")

    def test_pictures_are_not_cut(self, tmp_path, tiny_sequences):
        folder = pathfinder_files(tmp_path / "files")
        data = SequenceDataConfig(dataset="pathfinder32", folder=folder, max_length=1000)
        with pytest.raises(ValueError, match=r"data\.max_length must be at least 1024"):
            train(tiny_sequences(data), tmp_path / "run")

    def test_texts_are_cut_and_the_run_says_how_many(self, tmp_path, tiny_sequences):
        folder = aan_files(tmp_path / "files")
        data = SequenceDataConfig(dataset="aan", folder=folder, max_length=3, batch_size=2)
        train(tiny_sequences(data, steps=2), tmp_path / "run")
        source = SequencesRecord.read(RunFolder(tmp_path / "run")).source
        assert "Of each text the first 3 bytes; longer were 4 of 4 in train" in source

    @pytest.mark.parametrize(
        ("data", "message"),
        [
            (SequenceDataConfig(dataset="listop"), "did you mean listops"),
            (replace(LISTOPS, difficulty="easy"), "takes .*, got difficulty"),
            (SequenceDataConfig(dataset="aan"), "give their folder"),
        ],
        ids=["unknown", "option", "no-folder"],
    )
    def test_wrong_data_are_refused_before_anything_is_written(
        self, tmp_path, tiny_sequences, data, message
    ):
        with pytest.raises(ValueError, match=message):
            train(tiny_sequences(data), tmp_path / "run")
        assert not (tmp_path / "run").exists()

    @pytest.mark.parametrize(
        ("build", "message"),
        [
            (lambda: SequenceDataConfig(sizes=(1, 2)), "sizes must be three numbers"),
            (lambda: SequenceDataConfig(max_length=0), "max_length must be at least 1, got 0"),
            (lambda: SequencesTrainingConfig(steps=5, evaluate_every=2), "must divide steps"),
            (lambda: SequencesTrainingConfig(test_cases=0), "test_cases must be at least 1"),
            (
                lambda: SequencesTrainingConfig(protocol="published", validation_cases=3),
                "which the published protocol has not",
            ),
            (lambda: ScheduledOptimizerConfig(floor=2.0), r"floor must be in \[0, 1\]"),
            (
                lambda: SequencesConfig(name="x", paper_dataset="listops", paper_accuracy=2.0),
                "paper",
            ),
        ],
    )
    def test_wrong_settings_say_what_was_expected(self, build, message):
        with pytest.raises(ValueError, match=message):
            build()


class TestBaselines:
    def test_a_bag_of_tokens_does_not_see_order(self, tiny_sequences):
        data = load_sequences(tiny_sequences().data)
        split = data.splits["train"]
        counts = count_tokens(split, range(len(split)), 16)
        assert counts.sum(1).tolist() == split.inputs.lengths.tolist()
        for row in (3, 11):
            tokens = split.inputs[row]
            assert all(counts[row, token] == (tokens == token).sum() for token in range(16))

    def test_of_pairs_it_counts_either_document(self, tmp_path, tiny_sequences):
        data = SequenceDataConfig(dataset="aan", folder=aan_files(tmp_path / "files"))
        split = load_sequences(tiny_sequences(data).data).splits["train"]
        counts = count_tokens(split, [1], 257)
        assert counts.shape == (1, 514)
        assert counts[0, 1 + ord("o")] == 2  # one two
        assert counts[0, 257 + 1 + ord("e")] == 2  # three

    @pytest.mark.parametrize("method", [bag_of_tokens, chance])
    def test_it_leaves_a_run_folder(self, tmp_path, tiny_sequences, method):
        config = tiny_sequences(test_cases=12)
        result = method(config, tmp_path / "run", resume=True)
        rows = read_rows((tmp_path / "run" / "predictions.csv").read_text())
        assert np.mean([row["label"] == row["predicted"] for row in rows]) == result.test_accuracy
        assert len(rows) == 12

    def test_cases_of_one_class_are_refused(self, tmp_path, tiny_sequences):
        folder = aan_files(tmp_path / "files")
        (folder / "new_aan_pairs.train.tsv").write_bytes(b"1\tA\tB\ta\tb\n" * 6)
        config = tiny_sequences(SequenceDataConfig(dataset="aan", folder=folder))
        with pytest.raises(ValueError, match=r"aan: expected cases of at least 2 .* got 6 of"):
            part_sequences(config, load_sequences(config.data))

    def test_chance_is_the_most_frequent_class_of_training(self, tmp_path, tiny_sequences):
        mostly = b"1\tA\tB\ta\tb\n" * 3 + b"0\tA\tB\ta\tb\n"
        folder = aan_files(tmp_path / "files", test=mostly)
        (folder / "new_aan_pairs.train.tsv").write_bytes(mostly)
        config = tiny_sequences(SequenceDataConfig(dataset="aan", folder=folder))
        assert chance(config, tmp_path / "run", resume=False).test_accuracy == 0.75


@pytest.mark.parametrize("step", [0, 1, 500, 1000, 4000])
def test_rsqrt_is_the_schedule_of_the_published_code(step):
    config = ScheduledOptimizerConfig(learning_rate=0.005, schedule="rsqrt", warmup=1000)
    published = min(1.0, step / 1000) / math.sqrt(max(step, 1000))
    assert config.rate_at(step, 5000) == pytest.approx(published, abs=1e-15)


def test_cosine_falls_to_its_floor():
    config = ScheduledOptimizerConfig(schedule="cosine", warmup=10, floor=0.0)
    assert config.rate_at(110, 110) == pytest.approx(0.0, abs=1e-12)
    assert config.rate_at(60, 110) == pytest.approx(0.5)
