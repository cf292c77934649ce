"""Pictures of what image models attend to: what is drawn where, in which colour."""

from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from numpy.testing import assert_allclose

from flowformer.report.attention_maps import (
    NEGATIVE,
    OPACITY,
    AttentionPicture,
    LayerMaps,
    attention_parts,
    head_maps,
    relative_weights,
    side_by_side,
    write_attention_page,
)

HEADS, SIDE = 2, 16
GREY = 0.5  # lightness of the image: 127.5 rounds to 128
STEP = SIDE + 1  # from one panel of a row to the next


def layer(number: int = 1, *, grid: int = 4, flow: bool = True, **changes: Any) -> LayerMaps:
    shape = (HEADS, grid, grid)
    maps: dict[str, Any] = {"name": f"stage {number}, block 2", "attention": np.ones(shape)}
    if flow:
        maps |= {"competition": np.ones(shape), "allocation": np.full(shape, 0.5)}
    return LayerMaps(**{**maps, **changes})


def picture(**changes: Any) -> AttentionPicture:
    parts: dict[str, Any] = {
        "image": np.full((SIDE, SIDE, 3), 128, np.uint8),
        "name": "cat.png",
        "model": "flow",
        "sink": (8, 12),
        "layers": (layer(1), layer(2, grid=2)),
        "verdict": "cat 90 %",
    }
    return AttentionPicture(**{**parts, **changes})


def strips(figure: Figure) -> list[np.ndarray]:
    """The rows of panels, as colours."""
    arrays = [np.asarray(image.get_array()) for axes in figure.axes for image in axes.images]
    return [array / 255 for array in arrays if array.shape[1] != SIDE]


def texts(figure: Figure) -> str:
    heads = [figure.get_suptitle()]
    return " | ".join(heads + [axes.get_ylabel() for axes in figure.axes])


def test_an_even_share_is_one_and_signs_are_kept() -> None:
    weights = np.array([[2.0, 2.0, 2.0, 2.0], [3.0, -1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    assert_allclose(relative_weights(weights), [[1, 1, 1, 1], [3, -1, 0, 0], [0, 0, 0, 0]])


def test_a_row_stands_for_a_layer_and_a_panel_for_a_head() -> None:
    figure = head_maps(picture(), "attention")
    rows = strips(figure)
    assert [row.shape for row in rows] == [(SIDE, HEADS * STEP - 1, 3)] * 2
    assert all((row[:, SIDE] == 1).all() for row in rows)  # white between them
    assert "stage 1, block 2 | " in texts(figure)


def test_a_token_is_a_square_that_is_red_above_an_even_share_and_blue_below() -> None:
    attention = np.ones((HEADS, 4, 4))
    attention[1, 0, 3], attention[1, 2, 1], attention[0, 3, 3] = 4.0, 0.25, -2.0
    figure = head_maps(picture(layers=(layer(attention=attention),)), "attention")
    (row,) = strips(figure)
    red, blue = row[2, STEP + 13], row[9, STEP + 5]
    assert red[0] > red[2] + 0.15
    assert blue[2] > blue[0] + 0.15
    assert_allclose(row[:4, STEP + 12 :], np.broadcast_to(red, (4, 4, 3)))
    assert_allclose(row[14, 14], OPACITY * NEGATIVE + (1 - OPACITY) * GREY, atol=0.01)
    even = row[1, 1]
    assert np.ptp(even) < 0.02  # neither red nor blue
    assert "dark grey negative" in texts(figure)
    assert "negative" not in texts(head_maps(picture(), "attention"))


def test_each_layer_has_its_own_scale() -> None:
    strong = layer(attention=np.array([[[0.1, 10.0]]] * HEADS), flow=False)
    weak = layer(2, attention=np.array([[[0.9, 1.1]]] * HEADS), flow=False)
    figure = head_maps(picture(layers=(strong, weak)), "attention")
    ticks = [
        [tick.get_text() for tick in axes.get_yticklabels()]
        for axes in figure.axes
        if axes.get_yticklabels()
    ]
    assert [each[1] for each in ticks] == ["1×", "1.00×"]
    assert ticks[0][2] != ticks[1][2]


def test_the_sink_is_marked_and_only_where_it_means_something() -> None:
    def marks(figure: Figure) -> list[tuple[float, float]]:
        return [
            (float(np.asarray(line.get_xdata())[0]), float(np.asarray(line.get_ydata())[0]))
            for axes in figure.axes
            for line in axes.lines
            if line.get_marker() == "+"
        ]

    assert marks(head_maps(picture(), "attention")) == [(12, 8)] * 2  # a cross with an edge
    assert marks(head_maps(picture(), "competition")) == []
    assert marks(head_maps(picture(sink=None), "attention")) == []
    assert "the class token takes" in texts(head_maps(picture(sink=None), "attention"))


def test_what_is_taken_from_the_class_token_stands_beside_the_row() -> None:
    figure = head_maps(picture(layers=(layer(class_attention=np.array([1.0, 4.0])),)), "attention")
    assert "class token 2.50×" in texts(figure)


def test_models_stand_in_rows_with_one_scale_and_the_mean_over_heads() -> None:
    attention = np.ones((HEADS, 4, 4))
    attention[0, 0, 0], attention[1, 0, 0] = 6.0, 2.0
    mean = np.ones((HEADS, 4, 4))
    mean[:, 0, 0] = 4.0
    pictures = [
        picture(layers=(layer(attention=attention), layer(2))),
        picture(model="softmax", layers=(layer(attention=mean, flow=False),)),
    ]
    figure = side_by_side(pictures)
    first, second = strips(figure)
    assert first.shape == second.shape == (SIDE, 2 * STEP - 1, 3)
    assert_allclose(first[:, :SIDE], second[:, :SIDE])
    assert (second[:, STEP:] == 1).all()  # it has one layer only
    assert "softmax\ncat 90 %" in texts(figure)
    assert "1.2" in [tick.get_text() for axes in figure.axes for tick in axes.get_xticklabels()]


def test_pictures_of_two_images_do_not_stand_side_by_side() -> None:
    with pytest.raises(ValueError, match="of one image and one kind of sink"):
        side_by_side([picture(), picture(name="dog.png")])
    with pytest.raises(ValueError, match="of one image and one kind of sink"):
        side_by_side([])


def test_other_mixers_have_no_competition_to_draw() -> None:
    with pytest.raises(ValueError, match="stage 1, block 2 has no competition"):
        head_maps(picture(layers=(layer(flow=False),)), "competition")


def test_maps_that_do_not_fit_are_refused(without_shape_checks: None) -> None:  # noqa: ARG001
    with pytest.raises(ValueError, match=r"attention must be \[heads, rows, columns\]"):
        LayerMaps(name="x", attention=np.ones((4, 4)))
    with pytest.raises(ValueError, match="competition must have the shape of attention"):
        layer(competition=np.ones((HEADS, 2, 2)))
    with pytest.raises(ValueError, match="a grid that divides 16 × 16 pixels, got 5 × 5"):
        picture(layers=(layer(grid=5),))
    with pytest.raises(ValueError, match="at least one layer"):
        picture(layers=())


def test_a_large_image_is_drawn_smaller_but_on_its_grid() -> None:
    image = np.zeros((448, 448, 3), np.uint8)
    figure = head_maps(picture(image=image, layers=(layer(grid=56),)), "attention")
    arrays = [np.asarray(each.get_array()).shape for axes in figure.axes for each in axes.images]
    assert (112, HEADS * 116 - 4, 3) in arrays


def test_the_page_has_every_picture_and_they_lie_beside_it(tmp_path) -> None:
    (tmp_path / "photograph.png").write_bytes(b"not ours")
    (tmp_path / "1-old-flow-attention.png").write_bytes(b"of an earlier page")
    pictures = [picture(), picture(model="softmax", layers=(layer(flow=False),))]
    page = write_attention_page(tmp_path, [pictures])
    assert page == tmp_path / "index.html"
    assert sorted(file.name for file in tmp_path.glob("*.png")) == [
        "1-cat-flow-allocation.png",
        "1-cat-flow-attention.png",
        "1-cat-flow-competition.png",
        "1-cat-side-by-side.png",
        "1-cat-softmax-attention.png",
        "photograph.png",
    ]
    html = page.read_text(encoding="utf-8")
    assert html.count("data:image/png;base64,") == 5
    assert "What flow, softmax attend to" in html
    assert "W_ij" in html


def test_a_name_from_outside_is_no_path_and_no_markup() -> None:
    files, parts = attention_parts([[picture(name="../<b>x.png", model="flow (runs/a)")]])
    assert sorted(files)[0] == "1-b-x-flow-runs-a-allocation.png"
    assert "<b>" not in "".join(parts)


def test_models_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="models of different names"):
        attention_parts([[picture(), picture()]])
