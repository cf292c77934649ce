"""Training on images, from a configuration to a run folder, and the use of a finished run."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from flowformer.data.images.records import load_fashion_mnist_images, load_image_folder
from flowformer.data.images.transforms import Mixing
from flowformer.models.images.model import VisionClassifier
from flowformer.train.folder import RunFolder
from flowformer.train.images.config import (
    AugmentationConfig,
    ImageDataConfig,
    ImagesConfig,
    ImagesOptimizerConfig,
    ImagesRecord,
)
from flowformer.train.images.data import load_images, parameter_groups, part_images
from flowformer.train.images.study import Images
from flowformer.train.loop.checkpoints import read_checkpoint
from flowformer.train.run import predict, train, write_report
from tests.train.small_images import plain, tiny_vision, write_images


@pytest.fixture
def folder(tmp_path) -> Path:
    return write_images(tmp_path / "images", {"train": 12, "val": 5})


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(RunFolder(run).weights)


def rows_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(text.splitlines()))


def test_a_run_leaves_what_every_run_leaves(tmp_path, folder):
    result = train(tiny_vision(folder, epochs=3), tmp_path / "run")
    run = RunFolder(tmp_path / "run")
    rows = rows_of(run.metrics.read_text())
    # 18 images to train on, of which mixing takes four whole batches of 4.
    assert [row["step"] for row in rows] == ["4", "8", "12"]
    record = ImagesRecord.read(run)
    assert record.sizes == {"train": 18, "validation": 6, "test": 10}
    predictions = rows_of(run.predictions.read_text())
    assert np.mean([r["label"] == r["predicted"] for r in predictions]) == result.test_accuracy
    assert (result.epochs, result.test_top5) == (3, None)
    assert "the test set was read once" in result.protocol_note


def test_training_learns(tmp_path, folder):
    config = plain(tiny_vision(folder, epochs=12, average=None))
    assert train(config, tmp_path / "run").test_accuracy == 1.0


@pytest.mark.parametrize("protocol", ["clean", "published"])
def test_images_of_one_class_are_refused(tmp_path, protocol):
    folder = write_images(tmp_path / "images", {"train": 4, "val": 2}, classes=("red",))
    config = tiny_vision(folder, protocol=protocol)
    with pytest.raises(ValueError, match=r"images: expected images of at least 2 .* 4 of 'red'"):
        part_images(config, load_images(config.data))


@pytest.mark.parametrize(
    ("part", "protocol"), [("val", "clean"), ("test", "clean"), ("test", "published")]
)
def test_an_image_that_is_cut_off_is_named_before_the_training(tmp_path, part, protocol):
    folder = write_images(tmp_path / "images", {"train": 6, "val": 3, "test": 4})
    path = folder / part / "red" / "2.png"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"2\.png: cut off or damaged image"):
        train(tiny_vision(folder, protocol=protocol), tmp_path / "run")
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.parametrize("protocol", ["clean", "published"])
def test_only_the_published_protocol_lets_the_test_images_choose(tmp_path, folder, protocol):
    result = train(tiny_vision(folder, protocol=protocol), tmp_path / "run")
    record = ImagesRecord.read(RunFolder(tmp_path / "run"))
    assert record.sizes["validation"] == {"clean": 6, "published": 10}[protocol]
    assert (result.validation_accuracy == result.test_accuracy) or protocol == "clean"


def test_a_folder_with_val_and_test_has_its_own_validation_part(tmp_path):
    folder = write_images(tmp_path / "images", {"train": 6, "val": 3, "test": 2})
    result = train(tiny_vision(folder, epochs=1), tmp_path / "run")
    record = ImagesRecord.read(RunFolder(tmp_path / "run"))
    assert record.sizes == {"train": 12, "validation": 6, "test": 4}
    assert result.protocol_note == "the folder val chose the epoch; the folder test was read once"


@pytest.mark.parametrize("part", ["dev", "Valid", "testing"])
def test_a_part_has_any_of_its_names_before_the_images_are_read(tmp_path, part):
    folder = write_images(tmp_path / "images", {"train": 1, part: 1})
    assert tiny_vision(folder).has_test


def test_without_test_images_there_is_no_test_figure(tmp_path):
    folder = write_images(tmp_path / "images", {"train": 8})
    config = tiny_vision(folder, epochs=1)
    assert not config.has_test
    result = train(config, tmp_path / "run")
    assert result.test_accuracy is None
    assert "there is no test set" in result.protocol_note
    with pytest.raises(ValueError, match="was trained without test images"):
        Images.evaluate(tmp_path / "run")
    with pytest.raises(ValueError, match="the published protocol needs test images"):
        train(tiny_vision(folder, protocol="published"), tmp_path / "other")


def test_worker_processes_change_nothing(tmp_path, folder):
    config = tiny_vision(folder, epochs=1)
    train(config, tmp_path / "none")
    more = replace(config, data=replace(config.data, workers=2))
    result = train(more, tmp_path / "two")
    ours, theirs = weights(tmp_path / "none"), weights(tmp_path / "two")
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert train(config, tmp_path / "two", resume=True) == result


def test_the_average_is_what_is_kept(tmp_path, folder):
    train(tiny_vision(folder, epochs=1), tmp_path / "run")
    state = read_checkpoint(RunFolder(tmp_path / "run").best)["state_dict"]
    kept = weights(tmp_path / "run")
    assert all(torch.equal(kept[name], state[f"average.module.{name}"]) for name in kept)
    assert not torch.equal(kept["positions"], state["model.positions"])


def test_the_average_is_of_the_parameters_after_each_step(tmp_path, folder):
    def trained(average: float | None, epochs: int) -> dict[str, torch.Tensor]:
        run = tmp_path / f"{average}-{epochs}"
        config = tiny_vision(folder, average=average, epochs=epochs)
        # One step an epoch, the same rate in both: the second run has the first one's step.
        config = replace(
            config,
            data=replace(config.data, batch_size=18),
            optimizer=replace(config.optimizer, schedule="constant", warmup_epochs=0.0),
        )
        train(config, run)
        return read_checkpoint(RunFolder(run).last)["state_dict"]

    first, second = trained(None, 1)["model.positions"], trained(0.9, 2)
    # timm's warm-up: the first step has decay 0, the second 1 - 2^(-2/3).
    decay = 1 - 2 ** (-2 / 3)
    expected = decay * first + (1 - decay) * second["model.positions"]
    torch.testing.assert_close(second["average.module.positions"], expected)


def test_passes_are_accumulated_to_steps(tmp_path, folder):
    train(tiny_vision(folder, epochs=2, accumulate=2), tmp_path / "run")
    rows = rows_of(RunFolder(tmp_path / "run").metrics.read_text())
    assert [row["step"] for row in rows] == ["2", "4"]


def test_a_run_starts_from_another_with_other_classes_and_image_size(tmp_path, folder):
    train(tiny_vision(folder), tmp_path / "first")
    other = write_images(tmp_path / "other", {"train": 6}, classes=("blue", "green", "red"))
    config = tiny_vision(other, epochs=1, model_from=tmp_path / "first")
    config = replace(
        config,
        data=replace(config.data, image_size=32),
        optimizer=replace(config.optimizer, learning_rate=1e-12, warmup_from=0.0),
    )
    train(config, tmp_path / "second")
    before, after = weights(tmp_path / "first"), weights(tmp_path / "second")
    assert after["head.weight"].shape == (3, 16)
    assert after["positions"].shape == (64, 8)
    name = "stages.0.0.linear1.weight"
    torch.testing.assert_close(after[name], before[name])


def test_a_run_starts_from_a_published_checkpoint(tmp_path, folder):
    torch.manual_seed(0)
    config = tiny_vision(folder, epochs=1, average=None)
    config = replace(
        config,
        model=replace(
            config.model, dims=(8,), depths=(1,), num_heads=(2,), pooling="cls", patch_size=8
        ),
        optimizer=replace(config.optimizer, learning_rate=1e-12, warmup_from=0.0),
    )
    # As DeiT names them: its one layer for query, key and value.
    model = VisionClassifier(config.model, image_size=16, num_classes=2)
    state = published_names(model)
    torch.save({"model": state}, tmp_path / "deit.pth")
    start = replace(config.training, model_from=tmp_path / "deit.pth")
    train(replace(config, training=start), tmp_path / "run")
    kept = weights(tmp_path / "run")
    torch.testing.assert_close(kept["head.weight"], state["head.weight"])
    name = "stages.0.0.mixer.query_projection.weight"
    torch.testing.assert_close(kept[name], state["blocks.0.attn.qkv.weight"][:8])


def published_names(model: VisionClassifier) -> dict[str, torch.Tensor]:
    own = model.state_dict()
    block = "stages.0.0."
    state = {
        "patch_embed.proj.weight": own["downsamples.0.weight"],
        "patch_embed.proj.bias": own["downsamples.0.bias"],
        "pos_embed": own["positions"][None],
        "cls_token": own["cls"][None, None],
    }
    for kind in ("weight", "bias"):
        parts = [
            own[f"{block}mixer.{part}_projection.{kind}"] for part in ("query", "key", "value")
        ]
        state[f"blocks.0.attn.qkv.{kind}"] = torch.cat(parts)
        state[f"blocks.0.attn.proj.{kind}"] = own[f"{block}mixer.out_projection.{kind}"]
        for ours, theirs in {"linear1": "mlp.fc1", "linear2": "mlp.fc2"}.items():
            state[f"blocks.0.{theirs}.{kind}"] = own[f"{block}{ours}.{kind}"]
        for name in ("norm1", "norm2"):
            state[f"blocks.0.{name}.{kind}"] = own[f"{block}{name}.{kind}"]
        for name in ("norm", "head"):
            state[f"{name}.{kind}"] = own[f"{name}.{kind}"]
    return state


def test_what_a_run_cannot_start_from_is_told(tmp_path, folder):
    train(tiny_vision(folder, epochs=1), tmp_path / "first")
    config = tiny_vision(folder, epochs=1, model_from=tmp_path / "first")
    wider = replace(config, model=replace(config.model, dims=(8, 32)))
    with pytest.raises(ValueError, match="does not hold the run's parameters"):
        train(wider, tmp_path / "second")
    nowhere = replace(config.training, model_from=tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="none"):
        train(replace(config, training=nowhere), tmp_path / "third")


def test_a_finished_run_is_tested_again_on_its_own_and_on_other_images(tmp_path, folder):
    result = train(tiny_vision(folder), tmp_path / "run")
    again = Images.evaluate(tmp_path / "run")
    assert again.metrics.accuracy == result.test_accuracy
    assert not again.differs
    assert "the test images of images, 10 images" in again.describe()
    assert "top5_accuracy" not in again.to_dict()
    other = Images.evaluate(tmp_path / "run", folder / "train")
    assert (other.metrics.count, other.own_test_set) == (24, False)
    wrong = write_images(tmp_path / "wrong", {"val": 2}, classes=("blue", "red"))
    with pytest.raises(ValueError, match="green missing, blue new"):
        Images.evaluate(tmp_path / "run", wrong / "val")


def test_images_are_classified_by_name_as_in_the_test(tmp_path, folder):
    train(tiny_vision(folder), tmp_path / "run")
    test = load_image_folder(folder).test
    assert test is not None
    assert isinstance(test.images, tuple)
    rows = rows_of(predict(tmp_path / "run", *test.images))
    assert [row["file"] for row in rows] == [str(path) for path in test.images]
    tested = rows_of(RunFolder(tmp_path / "run").predictions.read_text())
    assert [row["predicted"] for row in rows] == [row["predicted"] for row in tested]
    (tmp_path / "bad.png").write_text("no image")
    with pytest.raises(ValueError, match=r"bad\.png: expected an image"):
        predict(tmp_path / "run", tmp_path / "bad.png")


def test_a_bad_image_ends_the_training_by_name_and_a_bad_test_image_before_it(tmp_path, folder):
    (folder / "train" / "red" / "0.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"red/0\.png: expected an image"):
        train(tiny_vision(folder), tmp_path / "run")
    (folder / "val" / "red" / "0.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"val/red/0\.png: expected an image"):
        train(tiny_vision(folder), tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_report_is_written(tmp_path, folder):
    train(tiny_vision(folder), tmp_path / "run")
    page = write_report(tmp_path / "run").read_text()
    assert "Learning curves" in page
    assert "10 images" in page


def test_labels_are_mixed_and_smoothed_by_a_key():
    images, labels = torch.rand(6, 3, 8, 8), torch.tensor([0, 1, 2, 3, 4, 5])
    mixing = Mixing(6, mixup=0.8, cutmix=1.0, label_smoothing=0.1)
    mixed, soft = mixing(images.clone(), labels, 0, 1)
    again, _ = mixing(images.clone(), labels, 0, 1)
    other, _ = mixing(images.clone(), labels, 0, 2)
    assert torch.equal(mixed, again)
    assert not torch.equal(mixed, other)
    torch.testing.assert_close(soft.sum(1), torch.ones(6))
    weight = soft[0, 0] - 0.1 / 6
    assert 0 < weight < 0.9
    torch.testing.assert_close(soft[0, 5], 0.9 - weight + 0.1 / 6)


def test_labels_are_smoothed_where_nothing_is_mixed():
    images, labels = torch.rand(3, 3, 8, 8), torch.tensor([0, 1, 2])
    same, soft = Mixing(4, mixup=0.0, cutmix=0.0, label_smoothing=0.2)(images, labels, 0)
    assert torch.equal(same, images)
    torch.testing.assert_close(soft[1], torch.tensor([0.05, 0.85, 0.05, 0.05]))


def test_the_rate_is_in_proportion_to_the_images_of_a_step():
    config = ImagesOptimizerConfig(learning_rate=5e-4, reference_batch=512, warmup_epochs=5.0)
    steps = config.by_steps(100, images=1024)
    assert (steps.learning_rate, steps.warmup) == (1e-3, 500)
    assert replace(config, reference_batch=None).by_steps(1, images=64).learning_rate == 5e-4


def test_weight_decay_is_of_the_matrices(folder):
    config = replace(tiny_vision(folder).model, layer_scale=1e-5)
    model = VisionClassifier(config, image_size=16, num_classes=2)
    matrices, rest = parameter_groups(model, 0.1)
    assert (matrices["weight_decay"], rest["weight_decay"]) == (0.1, 0.0)
    names = {parameter: name for name, parameter in model.named_parameters()}
    assert {names[p].split(".")[-1] for p in matrices["params"]} == {"weight"}  # pyright: ignore[reportGeneralTypeIssues]
    assert len(matrices["params"]) + len(rest["params"]) == len(names)  # pyright: ignore[reportArgumentType]
    assert "positions" in {names[p] for p in rest["params"]}  # pyright: ignore[reportGeneralTypeIssues]


@pytest.mark.usefixtures("shape_checks_off")  # the checks of types would speak first
@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ImageDataConfig(batch_size=0), "batch_size must be at least 1, got 0"),
        (lambda: ImageDataConfig(workers=-1), "workers must be at least 0, got -1"),
        (lambda: AugmentationConfig(mixup=-1.0), "mixup must be at least 0"),
        (
            lambda: AugmentationConfig(crop="shift", rand_augment="rand-m9"),
            "rand_augment needs crop resized beside it, got crop shift",
        ),
        (lambda: ImagesOptimizerConfig(warmup_epochs=-1.0), "warmup_epochs must be at least 0"),
        (lambda: ImagesOptimizerConfig(learning_rate=0.0), "learning_rate must be above 0"),
        (
            lambda: ImagesConfig(name="a", data=ImageDataConfig(dataset="fashion-mnist")),
            "fashion-mnist has small grey images: augmentation.crop must be shift or none",
        ),
        (
            lambda: ImagesConfig(
                name="a",
                data=ImageDataConfig(batch_size=3),
                augmentation=AugmentationConfig(mixup=0.8),
            ),
            "data.batch_size must be even where images are mixed by pairs, got 3",
        ),
    ],
)
def test_a_wrong_value_is_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_more_images_in_a_batch_than_there_are_to_mix_are_refused(tmp_path, folder):
    config = tiny_vision(folder)
    with pytest.raises(ValueError, match="batch_size must be at most 18, the images to train on"):
        train(replace(config, data=replace(config.data, batch_size=20)), tmp_path / "run")
    assert not (tmp_path / "run").exists()  # so that the right one can take the folder


def test_no_folder_is_told(tmp_path):
    config = tiny_vision(tmp_path)
    with pytest.raises(ValueError, match=r"give data\.path"):
        train(replace(config, data=replace(config.data, path=None)), tmp_path / "run")


def test_a_run_on_images_is_no_run_of_another_kind(tmp_path, folder):
    train(tiny_vision(folder, epochs=1), tmp_path / "run")
    config = json.loads(RunFolder(tmp_path / "run").config.read_text())
    RunFolder(tmp_path / "run").config.write_text(json.dumps(config | {"task": "language"}))
    with pytest.raises(ValueError, match="a run on language, and one on images is needed"):
        Images.load(tmp_path / "run")


def test_fashion_mnist_is_read_from_a_folder_of_idx_files(tmp_path):
    rng = np.random.default_rng(0)
    for prefix, count in {"train": 40, "t10k": 20}.items():
        labels = (np.arange(count) % 10).astype(np.uint8)
        images = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        header = bytes([0, 0, 8, 3]) + np.array([count, 28, 28], ">u4").tobytes()
        (tmp_path / f"{prefix}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        header = bytes([0, 0, 8, 1]) + np.array([count], ">u4").tobytes()
        (tmp_path / f"{prefix}-labels-idx1-ubyte").write_bytes(header + labels.tobytes())
    config = plain(tiny_vision(tmp_path, epochs=1))
    data = replace(config.data, dataset="fashion-mnist", image_size=32)
    result = train(replace(config, data=data), tmp_path / "run")
    assert result.test_top5 is not None
    again = Images.evaluate(tmp_path / "run")
    assert again.top5 == result.test_top5
    assert result.test_top5 >= again.metrics.accuracy
    image = tmp_path / "a.png"
    test = load_fashion_mnist_images(tmp_path).test
    assert test is not None
    test.read(3).save(image)
    read = rows_of(predict(tmp_path / "run", image))[0]
    tested = rows_of(RunFolder(tmp_path / "run").predictions.read_text())[3]
    for name in read:
        if name.startswith("probability"):
            assert float(read[name]) == pytest.approx(float(tested[name]), abs=1e-5)
