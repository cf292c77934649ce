"""Options stand once: a configuration and a command have those of the data, in the same words."""

from dataclasses import fields
from typing import get_args

import pytest

from flowformer.data.images.records import IMAGE_SETS
from flowformer.data.options import ImageSetName, SequenceOptions, TextOptions
from flowformer.train.language.config import TextDataConfig
from flowformer.train.sequences.config import SequenceDataConfig


@pytest.mark.parametrize(
    ("options", "config"), [(TextOptions, TextDataConfig), (SequenceOptions, SequenceDataConfig)]
)
def test_a_configuration_begins_with_the_options_of_its_data(options, config):
    own = [field.name for field in fields(options)]
    assert [field.name for field in fields(config)][: len(own)] == own
    for name in own:
        assert f"\n        {name}: " in options.__doc__, name


def test_every_image_set_that_can_be_named_can_be_read():
    assert set(get_args(ImageSetName)) == set(IMAGE_SETS)
