"""Features of boxes and mask regions: the mean of a backbone's last maps under each region."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from headstart.backbones.frozen import FrozenBackbone
from headstart.data.dataset import Dataset, Sample
from headstart.data.loader import load_boxes, load_mask
from headstart.data.transforms.preprocess import Preprocess
from headstart.errors import DataError, UsageError
from headstart.features.extractor import Extractor, SplitPoint

__all__ = ["Regions", "box_coverage", "mask_coverage", "region_features"]

BATCH_SIZE = 16
"""Number of images whose maps are in memory at the same time."""

Floats = NDArray[np.float32]
Indices = NDArray[np.intp]


@dataclass(frozen=True, kw_only=True, eq=False)
class Regions:
    """Features of all regions of some images, and the cost of computing them.

    Parameters
    ----------
    values : array, float32, shape (m, channels)
    targets : array, shape (m,)
        Index of each region's class.
    images : array, shape (m,)
        Index of each region's image: regions of one image are not independent.
    computed, reused : int
        Number of distinct images that the network ran on, and that were in the cache.
    seconds : float
    """

    values: Floats
    targets: Indices
    images: Indices
    computed: int
    reused: int
    seconds: float


def region_features(extractor: Extractor, backbone: FrozenBackbone, data: Dataset) -> Regions:
    """Average the last maps under every box, or under every class of a mask.

    Parameters
    ----------
    extractor : Extractor
        Runs the backbone in float32, and caches the maps.
    backbone : FrozenBackbone
        On a canvas, see ``FrozenBackbone.on_canvas``.
    data : Dataset
        Detection: one region for every box that is not marked as hard. Segmentation: one region
        for every class in an image's mask.

    Returns
    -------
    Regions

    Raises
    ------
    UsageError
        If the data have no boxes or masks, no canvas is set, or the backbone gives no maps.
    DataError
        If there are no regions.
    UnreadableImageError
        If an image cannot be decoded. Maps computed before it are stored.

    Examples
    --------
    >>> from headstart.backbones.backbone import load
    >>> from headstart.backbones.catalog import resolve
    >>> from headstart.cache import Cache
    >>> from headstart.data.demo.classification import load as demo
    >>> spec = resolve("timm/test_resnet")
    >>> state = load(spec, pretrained=False).trunk.state_dict()
    >>> backbone = FrozenBackbone(spec=spec, state=state, origin={}).on_canvas((64, 64))
    >>> data = demo("boxes").subset(range(2))
    >>> regions = region_features(Extractor(cache=Cache()), backbone, data)
    >>> regions.values.shape[1], set(regions.images.tolist())
    (96, {0, 1})
    """
    preprocess = backbone.spec.preprocess
    if not data.is_dense or preprocess.canvas is None:
        raise UsageError(
            f"Expected boxes or masks and a backbone on a canvas, got {data.kind} on "
            f"canvas {preprocess.canvas}. Pass boxes or masks, and call FrozenBackbone.on_canvas."
        )
    started_at = time.perf_counter()
    last = (backbone.spec.stages or backbone.module.stages)[-1].name
    split_point = SplitPoint(engine="fp32", stop=last)
    shape = split_point.shape(backbone)
    if len(shape) != 3:
        raise UsageError(
            f"Expected a backbone that gives maps, got {backbone.spec.name}, which gives "
            f"{len(shape)} dimensions for each image. Choose a convolutional one, such as "
            "--backbone torchvision/resnet18."
        )
    distinct = len({sample.digest or i for i, sample in enumerate(data.samples)})
    computed = len(extractor.missing(backbone, data.samples, split_point))
    activations = extractor.activations(backbone, data.samples, split_point)
    values, targets, images = [], [], []
    for start in range(0, len(data), BATCH_SIZE):
        rows = range(start, min(start + BATCH_SIZE, len(data)))
        for row, maps in zip(rows, activations.read(rows), strict=True):
            for label, coverage in _region_coverages(
                data.samples[row], preprocess, data, shape[:2]
            ):
                values.append(np.tensordot(coverage, maps, axes=2))
                targets.append(label)
                images.append(row)
    if not values:
        raise DataError(
            f"Expected objects or regions in {data.name!r}, got none in {len(data)} images. Add "
            "images with boxes or masks."
        )
    return Regions(
        values=np.asarray(values, dtype=np.float32),
        targets=np.asarray(targets, dtype=np.intp),
        images=np.asarray(images, dtype=np.intp),
        computed=computed,
        reused=max(distinct - computed, 0),
        seconds=time.perf_counter() - started_at,
    )


def _region_coverages(
    sample: Sample, preprocess: Preprocess, data: Dataset, map_size: tuple[int, ...]
) -> Iterator[tuple[int, Floats]]:
    """Class and coverage (h, w) of each region of an image."""
    height, width = preprocess.shape
    if data.kind == "detection":
        truth = load_boxes(sample, preprocess, data.classes)
        for box, label, hard in zip(truth.boxes, truth.labels, truth.hard, strict=True):
            coverage = box_coverage(box, (height, width), (map_size[0], map_size[1]))
            if not hard and coverage.any():
                yield int(label), coverage
        return
    mask = load_mask(sample, preprocess, data.classes)
    for label in np.unique(mask[mask < len(data.classes)]):
        yield int(label), mask_coverage(mask == label, (map_size[0], map_size[1]))


def box_coverage(
    box: NDArray[np.floating], canvas: tuple[int, int], map_size: tuple[int, int]
) -> Floats:
    """Share of a box's area in each cell of a map.

    Parameters
    ----------
    box : array, shape (4,)
        Left, top, right, bottom in pixels of the canvas.
    canvas, map_size : pair of int
        Height and width of the canvas in pixels, and of the map in cells.

    Returns
    -------
    array, float32, shape (h, w)
        The sum is 1; all zeros for a box outside the canvas.

    Examples
    --------
    >>> box_coverage(np.asarray([0.0, 0.0, 48.0, 32.0]), (64, 64), (2, 2)).round(2)
    array([[0.67, 0.33],
           [0.  , 0.  ]], dtype=float32)
    """
    left, top, right, bottom = (float(side) for side in box)
    rows = _interval_overlaps(top, bottom, canvas[0], map_size[0])
    columns = _interval_overlaps(left, right, canvas[1], map_size[1])
    areas = np.outer(rows, columns)
    total = areas.sum()
    return np.asarray(areas / total if total > 0 else areas, dtype=np.float32)


def _interval_overlaps(low: float, high: float, length: int, n_cells: int) -> NDArray[np.float64]:
    """Length of the overlap of an interval with each of ``n_cells`` equal parts of a side."""
    edges = np.linspace(0, length, n_cells + 1)
    return np.asarray(np.clip(np.minimum(edges[1:], high) - np.maximum(edges[:-1], low), 0, None))


def mask_coverage(region: NDArray[np.bool_], map_size: tuple[int, int]) -> Floats:
    """Share of a region's pixels in each cell of a map.

    Parameters
    ----------
    region : array of bool, shape (H, W)
        With at least one true pixel.
    map_size : pair of int
        Height and width of the map in cells.

    Returns
    -------
    array, float32, shape (h, w)
        The sum is 1.

    Examples
    --------
    >>> mask_coverage(np.eye(4, dtype=bool), (2, 2))
    array([[0.5, 0. ],
           [0. , 0.5]], dtype=float32)
    """
    rows, columns = np.nonzero(region)
    height, width = region.shape
    counts = np.zeros(map_size, dtype=np.float64)
    cells = (rows * map_size[0] // height, columns * map_size[1] // width)
    np.add.at(counts, cells, 1.0)
    return np.asarray(counts / len(rows), dtype=np.float32)
