"""The way from the square that a network reads back to the image, and what is drawn there."""

import numpy as np
import pytest

from headstart.data.transforms.preprocess import Preprocess
from headstart.evaluation.explain import draw_heat_map, visible_part

RGB = (0.5, 0.5, 0.5)


def expects(**options):
    settings = {"resize": 72, "crop": 64, "interpolation": "bilinear", "mean": RGB, "std": RGB}
    return Preprocess(**(settings | options))


@pytest.mark.parametrize(
    ("height", "width"), [(200, 200), (200, 311), (333, 150), (150, 900), (1400, 100), (50, 60)]
)
@pytest.mark.parametrize(
    "preprocess", [expects(), expects(resize=64), expects(fit="squash"), expects(resize=100)]
)
def test_a_spot_of_the_square_lies_where_it_is_in_the_image(height, width, preprocess):
    left, top, right, bottom = visible_part(height, width, preprocess)
    assert 0 <= left < right <= 1
    assert 0 <= top < bottom <= 1
    for across, down in ((0.5, 0.5), (0.2, 0.3), (0.75, 0.85)):
        x, y = (left + across * (right - left)) * width, (top + down * (bottom - top)) * height
        image = np.zeros((height, width, 3), np.uint8)
        r = max(1, min(height, width) // 40)
        image[max(0, round(y) - r) : round(y) + r, max(0, round(x) - r) : round(x) + r] = 255
        found = preprocess.resize_and_crop(image)[..., 0].astype(float)
        rows, columns = np.indices(found.shape)
        mean = [float((found * (i + 0.5)).sum() / found.sum()) for i in (columns, rows)]
        np.testing.assert_allclose(mean, [64 * across, 64 * down], atol=1.5)


def halves(drawn):
    width = (drawn.shape[1] - 8) // 2
    return drawn[:, :width].astype(float), drawn[:, width + 8 :].astype(float)


def test_the_image_stays_as_it_is_and_the_heat_lies_beside_it():
    image = np.full((240, 480, 3), 120, np.uint8)
    heat = np.zeros((7, 7))
    heat[1, 5] = 2.0
    plain, warm = halves(draw_heat_map(image, heat, (0.25, 0.0, 0.75, 1.0), long_side=480))
    np.testing.assert_array_equal(plain, image)
    lightest = np.unravel_index(warm.sum(axis=2).argmax(), warm.shape[:2])
    # the middle of the cell: row 1 of 7 from 0 to 240, column 5 of 7 from 120 to 360
    np.testing.assert_allclose(lightest, [1.5 / 7 * 240, 120 + 5.5 / 7 * 240], atol=18)


def test_what_is_not_read_is_dark_and_grey():
    image = np.full((100, 100, 3), (40, 120, 200), np.uint8)
    _, warm = halves(draw_heat_map(image, np.ones((3, 3)), (0.3, 0.3, 0.7, 0.7), long_side=100))
    assert (warm[:28] == warm[0, 0]).all()
    assert len(set(warm[0, 0])) == 1
    assert warm[0, 0, 0] < 60
    assert len(set(warm[50, 50])) > 1


@pytest.mark.parametrize("heat", [np.zeros((4, 4)), -np.ones((4, 4)), np.full((4, 4), 1e-300)])
def test_no_heat_is_drawn_without_complaint(heat):
    drawn = draw_heat_map(np.zeros((30, 30, 3), np.uint8), heat, (0, 0, 1, 1), long_side=30)
    assert drawn.shape == (30, 68, 3)


def test_twice_the_heat_is_the_same_drawing():
    rng = np.random.default_rng(0)
    image, heat = rng.integers(0, 255, (50, 40, 3), np.uint8), rng.random((5, 5))
    one, two = (draw_heat_map(image, k * heat, (0, 0, 1, 1), long_side=50) for k in (1, 2))
    np.testing.assert_array_equal(one, two)


def test_the_lightness_of_the_colours_rises_with_the_heat():
    heat = np.linspace(0, 1, 40)[None].repeat(40, axis=0)
    image = np.full((200, 200, 3), 128, np.uint8)
    _, warm = halves(draw_heat_map(image, heat, (0, 0, 1, 1), long_side=200))
    light = warm[100] @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(light) > -1.5).all()
    assert light[-1] - light[0] > 80
