import numpy as np
import pytest
from matplotlib.path import Path as Polygon
from pycocotools import mask as coco_mask

from headstart.data.outlines import Bitmap, Outline, OutlineMask, decode_run_lengths, fill_polygon
from headstart.errors import DataError


def square(left: float, top: float, right: float, bottom: float) -> np.ndarray:
    return np.array([[left, top], [right, top], [right, bottom], [left, bottom]])


def star(n: int, seed: int) -> np.ndarray:
    """Corners around (40, 30) at random distances."""
    rng = np.random.default_rng(seed)
    angles = np.sort(rng.uniform(0, 2 * np.pi, n))
    radii = rng.uniform(8, 45, n)
    return np.stack([40 + radii * np.cos(angles), 30 + radii * np.sin(angles)], axis=1)


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        (square(1, 0, 3, 2), [[0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]]),
        (square(0.4, 0.4, 2.5, 1.6), [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]]),
        (square(0.6, 0.6, 1.4, 1.4), [[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]),
        (square(-5, -5, 9, 9), [[1, 1, 1, 1]] * 3),
        (square(5, 0, 9, 2), [[0, 0, 0, 0]] * 3),
        (square(3, 2, 1, 0), [[0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]]),
        (np.array([[0, 0], [4.1, 0], [0, 4.1]]), [[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 0, 0]]),
        (np.array([[1, 1], [1, 1], [1, 1.0]]), [[0, 0, 0, 0]] * 3),
        (square(-1e9, -1e9, 2, 1e9), [[1, 1, 0, 0]] * 3),
    ],
)
def test_a_pixel_is_inside_if_its_centre_is(points: np.ndarray, expected: list[list[int]]) -> None:
    assert fill_polygon(points, 4, 3).astype(int).tolist() == expected


# pycocotools calls NumPy in the manner of version 1.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("seed", range(8))
def test_polygons_are_those_of_matplotlib_and_coco(seed: int) -> None:
    points = star(3 + 4 * seed, seed)
    ours = fill_polygon(points, 80, 60)
    x, y = np.meshgrid(np.arange(80) + 0.5, np.arange(60) + 0.5)
    theirs = Polygon(points).contains_points(np.stack([x.ravel(), y.ravel()], axis=1))
    assert (ours == theirs.reshape(60, 80)).all()
    coco = coco_mask.decode(coco_mask.frPyObjects([points.ravel().tolist()], 60, 80))[:, :, 0] > 0
    assert (ours & coco).sum() / (ours | coco).sum() > 0.9  # coco rounds the border to 0.2 pixels
    assert (Outline(polygons=(points,)).fill(80, 60).pixels().sum()) == ours.sum()


@pytest.mark.parametrize("seed", range(8))
def test_run_lengths_are_those_of_pycocotools(seed: int) -> None:
    rng = np.random.default_rng(seed)
    pixels = rng.uniform(size=(5 + 9 * seed, 7 + seed)) < rng.uniform()
    packed = coco_mask.encode(np.asfortranarray(pixels.astype(np.uint8)))["counts"].decode()
    assert (decode_run_lengths(packed, pixels.shape[1], pixels.shape[0]) == pixels).all()
    columns = pixels.T.ravel().astype(int)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], columns])))
    runs = np.diff(np.concatenate([[0], edges, [len(columns)]])).tolist()
    assert (decode_run_lengths(runs, pixels.shape[1], pixels.shape[0]) == pixels).all()


def test_long_runs_and_damaged_runs() -> None:
    pixels = np.zeros((700, 900), dtype=bool)
    pixels[3:690, 20:880] = True
    packed = coco_mask.encode(np.asfortranarray(pixels.astype(np.uint8)))["counts"].decode()
    assert (decode_run_lengths(packed, 900, 700) == pixels).all()
    bad: list[list[object]] = [[1, 2], [-1, 5], [2**70], [1.5, 2.5], [True, 3, "x"]]
    for runs in (*bad, "~~~~", packed[:-2], ""):
        with pytest.raises(DataError, match="run lengths that add up to 2 x 2 = 4 pixels"):
            decode_run_lengths(runs, 2, 2)  # type: ignore[arg-type]


def test_smaller_objects_are_on_top_and_crowds_below() -> None:
    small, large = Outline(polygons=(square(1, 1, 3, 2),)), Outline(polygons=(square(0, 0, 4, 2),))
    crowd = Outline(polygons=(square(0, 0, 5, 1),))
    expected = [[2, 2, 2, 2, 255, 0], [2, 1, 1, 2, 0, 0]]
    for order in ([0, 1, 2], [2, 1, 0], [1, 2, 0]):
        outlines, codes = (small, large, crowd), (1, 2, 255)
        mask = OutlineMask(
            width=6,
            height=2,
            outlines=tuple(outlines[i] for i in order),
            codes=tuple(codes[i] for i in order),
        )
        assert mask.draw().tolist() == expected
        assert mask.shape == (2, 6)


def test_parts_holes_and_bitmaps() -> None:
    ring = Outline(polygons=(square(0, 0, 3, 3),), holes=(square(1, 1, 2, 2),))
    parts = Outline(polygons=(square(0, 0, 2, 2), square(1, 1, 3, 3)))
    pixels = np.zeros((4, 6), dtype=bool)
    pixels[1:3, 2:6] = True
    bitmap = Outline(bitmap=Bitmap.of(pixels, left=-3, top=1))
    assert bitmap.corners() == (-1.0, 2.0, 3.0, 4.0)
    for outline, expected in (
        (ring, [[1, 1, 1], [1, 0, 1], [1, 1, 1]]),
        (parts, [[1, 1, 0], [1, 1, 1], [0, 1, 1]]),
        (bitmap, [[0, 0, 0], [0, 0, 0], [1, 1, 1]]),
        (Outline(), [[0, 0, 0]] * 3),
        (Outline(bitmap=Bitmap.of(np.zeros((2, 2), dtype=bool))), [[0, 0, 0]] * 3),
    ):
        mask = OutlineMask(width=3, height=3, outlines=(outline,), codes=(1,))
        assert mask.draw().tolist() == expected


def test_the_digest_changes_with_every_value() -> None:
    outline = Outline(polygons=(square(0, 0, 2, 2),))
    hole = Outline(polygons=outline.polygons, holes=outline.polygons)
    base = OutlineMask(width=3, height=3, outlines=(outline,), codes=(1,))
    others = [
        OutlineMask(width=4, height=3, outlines=(outline,), codes=(1,)),
        OutlineMask(width=3, height=3, outlines=(outline,), codes=(2,)),
        OutlineMask(width=3, height=3, outlines=(outline, outline), codes=(1, 1)),
        OutlineMask(width=3, height=3, outlines=(outline.scaled(2, 1),), codes=(1,)),
        OutlineMask(width=3, height=3, outlines=(hole,), codes=(1,)),
    ]
    assert len({mask.digest() for mask in (base, *others)}) == 6
    assert base.digest() == OutlineMask(width=3, height=3, outlines=(outline,), codes=(1,)).digest()
