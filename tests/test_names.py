"""A name is found in its table, or refused with the nearest one there is."""

import pytest

from flowformer.names import choose, did_you_mean


def test_a_name_is_found_and_another_is_refused_with_the_nearest():
    assert choose("flow", {"flow": 1, "linear": 2}, "mixer") == 1
    with pytest.raises(
        ValueError, match=r"^unknown mixer 'Flwo': did you mean flow\? choose from flow, linear$"
    ):
        choose("Flwo", {"flow": 1, "linear": 2}, "mixer")


def test_nothing_is_meant_where_nothing_is_near():
    assert did_you_mean("xyz", ["flow", "linear"]) == ""
