import tracemalloc
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headstart.data.transforms.tiling import blend, tiles
from headstart.errors import UsageError

sides = st.integers(1, 40)


@given(sides, sides, st.integers(1, 20), st.integers(1, 20), st.integers(0, 19))
def test_tiles_cover_everything_and_overlap(height, width, tall, wide, overlap):
    overlap = min(overlap, tall - 1, wide - 1)
    places = tiles(height, width, (tall, wide), overlap)
    covered = np.zeros((height, width), dtype=int)
    for top, left in places:
        covered[top : top + tall, left : left + wide] += 1
        assert 0 <= top <= max(0, height - tall)
        assert 0 <= left <= max(0, width - wide)
    assert covered.all()
    assert len(set(places)) == len(places)
    for along, size in ((0, tall), (1, wide)):
        starts = sorted({place[along] for place in places})
        assert all(a + size - b >= overlap for a, b in pairwise(starts))
    steps = [1 + -(-max(0, n - s) // (s - overlap)) for n, s in ((height, tall), (width, wide))]
    assert len(places) == steps[0] * steps[1], "no more tiles than needed"


@pytest.mark.parametrize(
    "arguments", [(0, 5, 3, 1), (5, 5, 0, 0), (5, 5, 3, 3), (5, 5, (3, 2), 2), (5, 5, 3, -1)]
)
def test_tiles_that_cannot_be_are_refused(arguments):
    with pytest.raises(UsageError, match="overlap"):
        tiles(*arguments)


@settings(max_examples=50)
@given(sides, sides, st.integers(2, 20), st.integers(0, 19), st.integers(0, 2**32 - 1))
def test_tiles_that_agree_are_blended_exactly(height, width, size, overlap, seed):
    """Cut out of one image, whatever it shows, and put together: the image, bit for bit."""
    overlap = min(overlap, size - 1)
    image = np.random.default_rng(seed).normal(size=(3, height, width)).astype(np.float32)
    filled = np.pad(image, ((0, 0), (0, size), (0, size)))
    places = tiles(height, width, size, overlap)
    parts = [filled[:, t : t + size, x : x + size] for t, x in places]
    found = blend(parts, places, (height, width))
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, image)


@pytest.mark.parametrize("value", [0.1, 1 / 3, -7.3e5])
def test_a_constant_stays(value):
    places = tiles(50, 70, 16, 5)
    found = blend((np.full((16, 16), value) for _ in places), places, (50, 70))
    np.testing.assert_array_equal(found, np.full((50, 70), value))


def test_disagreement_is_a_weighted_mean_without_a_seam():
    places = tiles(16, 24, 16, 8)
    assert places == ((0, 0), (0, 8))
    found = blend([np.zeros((16, 16)), np.ones((16, 16))], places, (16, 24))
    window = np.sin(np.pi * (np.arange(16) + 0.5) / 16) ** 2
    np.testing.assert_allclose(found[0, 8:16], window[:8] / (window[:8] + window[8:]))
    assert np.abs(np.diff(found[0])).max() < 0.25


def test_the_order_of_tiles_changes_roundings_only():
    places = tiles(20, 20, 8, 4)
    parts = np.random.default_rng(0).normal(size=(len(places), 8, 8))
    backwards = blend(parts[::-1], places[::-1], (20, 20))
    np.testing.assert_allclose(blend(parts, places, (20, 20)), backwards, atol=1e-12)


def test_memory_does_not_grow_with_the_tiles():
    def most(overlap):
        places = tiles(200, 200, 40, overlap)
        parts = (np.ones((5, 40, 40), dtype=np.float32) for _ in places)
        tracemalloc.start()
        blend(parts, places, (200, 200))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    assert most(30) < 1.2 * most(0)
    assert most(30) < 2 * 200 * 200 * (5 * 4 + 8)


@pytest.mark.parametrize(
    ("parts", "places", "complaint"),
    [
        ([np.ones((4, 4))], [(0, 0), (0, 2)], "each of 2 places, got 1"),
        ([np.ones((4, 4))] * 3, [(0, 0), (0, 2)], "each of 2 places, got 3"),
        ([], [(0, 0)], "got 0"),
        ([np.ones((4, 4)), np.ones((4, 3))], [(0, 0), (0, 2)], "shape"),
        ([np.ones((4, 4))], [(0, 0)], "8 pixels in no tile"),
        ([np.ones((4, 4))], [(0, 6)], "inside the image"),
    ],
)
def test_parts_that_do_not_make_an_image_are_refused(parts, places, complaint):
    with pytest.raises(UsageError, match=complaint):
        blend(parts, places, (4, 6))
