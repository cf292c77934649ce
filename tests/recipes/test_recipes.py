"""The paper's experiments as they were published."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from flowformer.config_json import from_plain, to_plain
from flowformer.nn.mixers.building import mixer_options
from flowformer.recipes import RECIPES, build_recipe, series
from flowformer.recipes.series import PAPER_AVERAGE
from flowformer.train.series.config import SeriesDataConfig

# Dataset, longest series, optimizer, epochs, and the paper's accuracy in percent.
PUBLISHED = {
    "ethanol-concentration": ("EthanolConcentration", 1751, "radam", 100, 33.8),
    "face-detection": ("FaceDetection", 62, "radam", 100, 67.6),
    "handwriting": ("Handwriting", 152, "radam", 100, 33.8),
    "heartbeat": ("Heartbeat", 405, "radam", 100, 77.6),
    "japanese-vowels": ("JapaneseVowels", 29, "radam", 100, 98.9),
    "pems-sf": ("PEMS-SF", 144, "radam", 400, 83.8),
    "self-regulation-scp1": ("SelfRegulationSCP1", 896, "radam", 100, 92.5),
    "self-regulation-scp2": ("SelfRegulationSCP2", 1152, "radam", 100, 56.1),
    "spoken-arabic-digits": ("SpokenArabicDigits", 93, "adam", 100, 98.8),
    "uwave-gesture-library": ("UWaveGestureLibrary", 315, "radam", 100, 86.6),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_recipe_has_the_published_settings(name):
    config = series.RECIPES[name]()
    model, optimizer, training = config.model, config.optimizer, config.training
    assert config.paper_accuracy is not None
    assert (
        config.data.dataset,
        config.data.max_length,
        optimizer.name,
        training.epochs,
        round(100 * config.paper_accuracy, 1),
    ) == PUBLISHED[name]
    assert config.name == name
    assert (config.data.batch_size, optimizer.learning_rate, optimizer.gradient_clip) == (
        16,
        1e-3,
        4,
    )
    assert (optimizer.weight_decay, training.protocol) == (0, "clean")
    assert (model.mixer, mixer_options(model, "series")) == ("flow", {"clamp": None})
    assert (model.dim, model.num_heads, model.num_layers, model.feedforward) == (512, 8, 2, 2048)
    assert (model.dropout, model.positions, model.norm, model.pooling) == (
        0.1,
        "learned",
        "post",
        "flatten",
    )


def test_the_paper_average_is_that_of_its_ten_figures():
    accuracies = [series.RECIPES[name]().paper_accuracy for name in PUBLISHED]
    assert sum(a for a in accuracies if a is not None) / 10 == pytest.approx(
        PAPER_AVERAGE, abs=6e-4
    )


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_comes_back_equal_through_json(name):
    config = build_recipe(name)
    assert from_plain(type(config), json.loads(json.dumps(to_plain(config)))) == config


def test_a_wrong_name_lists_the_right_ones():
    with pytest.raises(ValueError, match="did you mean japanese-vowels") as raised:
        build_recipe("Japanese-vowel")
    assert all(name in str(raised.value) for name in RECIPES)


def test_recipes_and_the_command_line_import_no_heavy_library():
    code = "import sys, flowformer.cli, flowformer.recipes; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    heavy = {"torch", "lightning", "aeon", "sklearn", "matplotlib", "pandas", "transformers"}
    assert heavy & set(run.stdout.split()) == set()


@pytest.mark.parametrize(
    "data",
    [
        SeriesDataConfig(dataset="BasicMotions"),
        SeriesDataConfig(train_file=Path("TRAIN.ts")),
        SeriesDataConfig(),
    ],
    ids=["other-dataset", "files", "given-in-python"],
)
def test_the_papers_figure_does_not_stand_beside_other_data(data):
    config = replace(series.japanese_vowels(), data=data)
    assert (config.paper_accuracy, config.paper_source) == (None, None)


def test_the_papers_figure_stands_beside_its_data_however_they_are_prepared():
    recipe = series.japanese_vowels()
    config = replace(recipe, data=replace(recipe.data, folder=Path("archive"), batch_size=4))
    assert config.paper_accuracy == 0.989
