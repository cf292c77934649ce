"""Parameters and multiply-adds of the image models, beside the paper's table."""

from dataclasses import replace

import pytest

from benchmarks.models.vision_cost import PAPER, count, row
from flowformer.models.images.config import VISION_PRESETS


@pytest.mark.parametrize(
    ("name", "mixer", "parameters", "total", "layers"),
    [
        ("hierarchical", "flow", 43_311_304, 6.88, 6.78),  # the paper says 41M and 6.3
        ("hierarchical", "softmax", 43_311_304, 13.46, 6.78),  # and here 6.7
        ("deit-tiny", "flow", 5_717_416, 1.14, 1.07),  # parameters as DeiT's authors have them
        ("deit-small", "flow", 22_050_664, 4.36, 4.24),  # 22M and 4.2
        ("deit-small", "mobile", 22_050_664, 4.36, 4.24),
        ("deit-small", "softmax", 22_050_664, 4.60, 4.24),  # 4.6
        ("deit-base", "flow", 86_567_656, 17.09, 16.85),
    ],
)
def test_parameters_and_multiply_adds(
    name: str, mixer: str, parameters: int, total: float, layers: float
) -> None:
    cost = count(replace(VISION_PRESETS[name], mixer=mixer))
    assert cost.parameters == parameters
    assert (round(cost.total / 1e9, 2), round(cost.layers / 1e9, 2)) == (total, layers)


def test_the_equations_word_for_word_cost_what_the_published_code_does() -> None:
    reference = {"backend": "reference"}
    cost = count(replace(VISION_PRESETS["hierarchical"], mixer_options=reference))
    assert f"{cost.total / 1e9:.2f}" == "6.87"


def test_a_line_of_the_table_stands_beside_the_paper() -> None:
    expected = "| deit-small | flow | 22.05 | 22 | 4.36 | 4.24 | 4.2 |"
    assert row("deit-small", "flow") == expected
    assert all(name in VISION_PRESETS for name, _ in PAPER)
