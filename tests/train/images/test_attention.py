"""Image models and image files in, pictures of their attention out."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from PIL import Image

from flowformer.data.images.transforms import ImagePreprocessing
from flowformer.models.images.attention import layer_attentions
from flowformer.models.images.config import VisionModelConfig
from flowformer.models.images.model import VisionClassifier
from flowformer.train.images.attention import (
    ShownModel,
    SinkChoice,
    distinct_names,
    show_image,
    write_attention_pictures,
    write_pictures,
)

STAGES = VisionModelConfig(patch_size=4, dims=(8, 16), depths=(1, 1), num_heads=(2, 2))
DEIT = replace(STAGES, dims=(16,), depths=(1,), num_heads=(2,), layer_scale=None, pooling="cls")
GREY = ImagePreprocessing(image_size=16, resize=16, mean=(0.5,), std=(0.5,))


@pytest.fixture(autouse=True)
def _coarse_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flowformer.report.figures.PNG_DPI", 40)


@pytest.fixture
def photograph(tmp_path: Path) -> Path:
    pixels = np.arange(20 * 40 * 3, dtype=np.uint8).reshape(20, 40, 3)
    Image.fromarray(pixels).save(tmp_path / "cat.png")
    return tmp_path / "cat.png"


def shown(
    config: VisionModelConfig = STAGES, preprocessing: ImagePreprocessing | None = None
) -> ShownModel:
    preprocessing = preprocessing or ImagePreprocessing.for_photographs(16)
    torch.manual_seed(0)
    model = VisionClassifier(
        config, image_size=16, channels=preprocessing.channels, num_classes=2
    ).eval()
    return ShownModel(
        name=config.mixer, model=model, preprocessing=preprocessing, classes=("cat", "dog")
    )


def test_what_is_drawn_is_what_the_model_saw(photograph: Path) -> None:
    own = shown()
    picture = show_image(own, photograph, SinkChoice(row=0.2, column=0.9))
    square = own.preprocessing.square(Image.open(photograph))
    assert np.array_equal(picture.image, np.asarray(square))
    assert picture.sink == (3, 14)
    first, second = picture.layers
    assert (first.name, second.name) == ("stage 1, block 1", "stage 2, block 1")
    (expected, _) = layer_attentions(
        own.model, own.preprocessing.normalise(square)[None], sink=(3, 14)
    )
    weights = expected.implied[0].numpy().reshape(2, 4, 4)
    assert_allclose(first.attention, weights / weights.mean((1, 2), keepdims=True), rtol=1e-5)
    assert expected.flow is not None
    assert first.competition is not None
    assert_allclose(first.competition[1, 2, 3], expected.flow.source_competition[0, 11, 1])
    logits = own.model(own.preprocessing.normalise(square)[None]).logits[0]
    assert picture.verdict.startswith(("cat", "dog")[int(logits.argmax())])


def test_a_class_token_is_beside_the_grid(photograph: Path) -> None:
    picture = show_image(shown(DEIT), photograph, SinkChoice(class_token=True))
    (layer,) = picture.layers
    assert picture.sink is None
    assert layer.name == "block 1"
    assert layer.attention.shape == (2, 4, 4)
    assert layer.class_attention is not None
    total = layer.attention.sum((1, 2)) + layer.class_attention
    assert_allclose(total, 17)  # the mean over all tokens is 1


def test_a_grey_model_sees_and_shows_grey(photograph: Path) -> None:
    picture = show_image(shown(preprocessing=GREY), photograph, SinkChoice())
    assert picture.image.shape == (16, 16, 3)
    assert (picture.image[..., 0] == picture.image[..., 2]).all()


def test_models_stand_side_by_side_on_the_page(photograph: Path, tmp_path: Path) -> None:
    models = [shown(), shown(replace(STAGES, mixer="mobile"))]
    page = write_pictures(models, [photograph], tmp_path / "out", sink=SinkChoice())
    assert page == tmp_path / "out" / "index.html"
    assert sorted(file.name for file in page.parent.iterdir()) == [
        "1-cat-flow-allocation.png",
        "1-cat-flow-attention.png",
        "1-cat-flow-competition.png",
        "1-cat-mobile-attention.png",
        "1-cat-side-by-side.png",
        "index.html",
    ]


def test_a_place_outside_and_nothing_to_show_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"from 0 to 1, got 1\.5 and 0\.5"):
        SinkChoice(row=1.5)
    assert SinkChoice(row=1.0, column=1.0).within(16) == (15, 15)
    with pytest.raises(ValueError, match="one model and one image, got 1 and 0"):
        write_pictures([shown()], [], tmp_path, sink=SinkChoice())


def test_an_image_that_the_page_would_remove_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run" / "report").mkdir(parents=True)
    for image, output in [
        (tmp_path / "run" / "report" / "curves.png", None),
        (tmp_path / "1-cat-flow-attention.png", tmp_path),
    ]:
        image.touch()
        with pytest.raises(ValueError, match="expected an image of one's own"):
            write_attention_pictures([tmp_path / "run"], [image], output, sink=SinkChoice())
        assert image.exists()


def test_runs_are_told_apart_by_as_little_as_needed() -> None:
    a, b, c = Path("runs/a"), Path("runs/b"), Path("old/b")
    assert distinct_names(["flow", "softmax"], [a, b]) == ["flow", "softmax"]
    assert distinct_names(["flow", "flow"], [a, b]) == ["flow (a)", "flow (b)"]
    assert distinct_names(["flow"] * 2, [b, c]) == ["flow (runs/b)", "flow (old/b)"]
    with pytest.raises(ValueError, match="each run once"):
        distinct_names(["flow", "flow"], [a, a])
