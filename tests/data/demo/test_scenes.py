"""Crops of photographs: disjoint places with a gap, no near duplicates, no leak after a split."""

from itertools import combinations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, cross_val_score

from headstart.cache import Cache
from headstart.data.demo import classification as demo
from headstart.data.demo import scenes
from headstart.data.demo.drawings import photos
from headstart.data.prepare import prepare

TILES = [tile for label in scenes.PLACES for tile in scenes.find_tiles(label)]


def gap(one: scenes.Tile, other: scenes.Tile) -> int:
    """Pixels between two squares of one photograph, negative where they overlap."""
    distances = [
        max(start - (other_start + other[3]), other_start - (start + one[3]))
        for start, other_start in zip(one[1:3], other[1:3], strict=True)
    ]
    return max(distances)


def test_tiles_lie_in_the_photographs() -> None:
    for photo, left, top, side in TILES:
        width, height = photos()[photo].size
        assert 0 <= left < left + side <= width
        assert 0 <= top < top + side <= height
        assert side >= 30


def test_tiles_are_apart() -> None:
    apart = [gap(a, b) for a, b in combinations(TILES, 2) if a[0] == b[0]]
    assert min(apart) >= scenes.GAP


def test_the_gap_can_be_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scenes, "GAP", 2)
    tiles = scenes.find_tiles("petals")
    assert min(gap(a, b) for a, b in combinations(tiles, 2)) == 2


def test_a_crop_stays_in_its_tile() -> None:
    rng = np.random.default_rng(3)
    for tile in TILES[::7]:
        for _ in range(20):
            photo, left, top, side = scenes._draw_square(tile, rng)
            assert photo == tile[0]
            assert tile[1] <= left
            assert left + side <= tile[1] + tile[3]
            assert tile[2] <= top
            assert top + side <= tile[2] + tile[3]
            assert 0.4 * tile[3] <= side <= tile[3]


def test_pixels_are_those_of_the_photograph() -> None:
    square = TILES[0]
    crop = np.asarray(scenes._cut_crop(square, np.random.default_rng(0)), dtype=float)
    photo, left, top, side = square
    original = np.asarray(photos()[photo], dtype=float)[top : top + side, left : left + side]
    assert side == 32
    small = crop.reshape(32, 4, 32, 4, 3).mean((1, 3))
    errors = [np.abs(small - seen).mean() for seen in (original, original[:, ::-1])]
    assert min(errors) < 2 < max(errors)


def test_a_group_has_one_class_and_at_least_one_place_in_each_part(tmp_path) -> None:
    with Cache(tmp_path) as cache:
        prepared = prepare(demo.load("scenes"), cache=cache)
    assert prepared.findings == ()
    parts = [{s.group for s in part.samples} for part in (prepared.train, prepared.test)]
    assert not parts[0] & parts[1]
    assert len(parts[0] | parts[1]) == 143
    for part in (prepared.train, prepared.test):
        assert len(part.counts()) == 7
        assert min(part.counts().values()) >= 8


def test_more_than_mean_colours_is_needed() -> None:
    samples = demo.load("scenes").samples
    colours = np.stack([np.asarray(sample.image).mean((0, 1)) / 255 for sample in samples])
    score = cross_val_score(
        LogisticRegression(max_iter=500),
        colours,
        [str(sample.target) for sample in samples],
        groups=[sample.group for sample in samples],
        cv=GroupKFold(5),
    ).mean()
    assert 0.5 < score < 0.85
