"""The experiments on images as they were published, and the small ones."""

from dataclasses import replace
from pathlib import Path

import pytest

from flowformer.models.images.model import VisionClassifier
from flowformer.recipes import RECIPES
from flowformer.recipes import images as vision
from flowformer.train.prediction import count_parameters


@pytest.mark.parametrize(
    ("name", "accuracy", "dims"),
    [("imagenet", 0.806, (96, 192, 384, 768)), ("imagenet-deit-small", 0.800, (384,))],
)
def test_the_recipes_of_imagenet_have_the_published_settings(name, accuracy, dims):
    config = vision.RECIPES[name]()
    assert config.name == name
    assert (config.model.mixer, config.model.dims, config.data.image_size) == ("flow", dims, 224)
    assert (config.paper_accuracy, config.paper_classes) == (accuracy, 1000)
    chance, optimizer = config.augmentation, config.optimizer
    assert (chance.mixup, chance.cutmix, chance.label_smoothing) == (0.8, 1.0, 0.1)
    assert chance.rand_augment == "rand-m9-mstd0.5-inc1"
    images = config.data.batch_size * config.training.accumulate
    steps = optimizer.by_steps(10, images=images)
    assert steps.learning_rate == pytest.approx(5e-4 * images / 512)
    assert (steps.warmup, steps.weight_decay, steps.gradient_clip) == (50, 0.05, 1.0)
    assert (steps.name, steps.schedule, config.training.epochs) == ("adamw", "cosine", 300)


def test_every_recipe_of_images_is_listed_under_its_name():
    assert {name: RECIPES[name]().name for name in vision.RECIPES} == {
        name: name for name in vision.RECIPES
    }


@pytest.mark.parametrize("name", ["fashion-mnist", "fashion-mnist-long"])
def test_the_model_of_fashion_mnist_is_a_small_hierarchical_one(name):
    config = vision.RECIPES[name]()
    model = VisionClassifier(config.model, image_size=32, channels=1, num_classes=10)
    assert len(config.model.dims) == 2
    assert count_parameters(model) == 275_530
    assert config.dataset_name == "fashion-mnist"


def test_a_folder_is_called_by_its_name():
    config = vision.image_folder()
    data = replace(config.data, path=Path("photos/birds"))
    assert replace(config, data=data).dataset_name == "birds"
