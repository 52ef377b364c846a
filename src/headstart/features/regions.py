"""Features of objects and of regions: the mean of a backbone's last maps under each."""

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

READ_AT_ONCE = 16
"""Images whose maps are in memory together."""

Floats = NDArray[np.float32]
Rows = NDArray[np.intp]


@dataclass(frozen=True, kw_only=True, eq=False)
class Regions:
    """Features of all regions of some images, and what they cost.

    Parameters
    ----------
    values : array, float32, shape (m, channels)
    targets : array, shape (m,)
        Index of each region's class.
    images : array, shape (m,)
        Index of the image that it is in: regions of one are not independent.
    computed, reused : int
        Different images that the network ran on, and that came from the cache.
    seconds : float
    """

    values: Floats
    targets: Rows
    images: Rows
    computed: int
    reused: int
    seconds: float


def region_features(extractor: Extractor, backbone: FrozenBackbone, data: Dataset) -> Regions:
    """Average the last maps under every box, or under every class of a mask.

    Parameters
    ----------
    extractor : Extractor
        Runs in float32, and keeps the maps.
    backbone : FrozenBackbone
        On a canvas, see ``FrozenBackbone.on_canvas``.
    data : Dataset
        For detection: a region for every box that is not hard; for segmentation: one for every
        class that an image shows.

    Returns
    -------
    Regions

    Raises
    ------
    UsageError
        If the data are of whole images, no canvas is set, or the backbone gives no maps.
    DataError
        If there is no region at all.
    UnreadableImageError
        If an image cannot be decoded. What was computed before it is kept.

    Examples
    --------
    >>> from headstart.backbones.backbone import load
    >>> from headstart.backbones.catalog import resolve
    >>> from headstart.cache import Cache
    >>> from headstart.data.demo.classification import load as demo
    >>> spec = resolve("timm/test_resnet")
    >>> state = load(spec, pretrained=False).trunk.state_dict()
    >>> backbone = FrozenBackbone(spec=spec, state=state, origin={}).on_canvas((64, 64))
    >>> found = region_features(Extractor(cache=Cache()), backbone, demo("boxes").subset(range(2)))
    >>> found.values.shape[1], set(found.images.tolist())
    (96, {0, 1})
    """
    preprocess = backbone.spec.preprocess
    if not data.is_dense or preprocess.canvas is None:
        raise UsageError(
            f"Expected boxes or masks and a backbone on a canvas, got {data.kind} on "
            f"{preprocess.canvas}; do use FrozenBackbone.on_canvas."
        )
    begin = time.perf_counter()
    last = (backbone.spec.stages or backbone.module.stages)[-1].name
    split_point = SplitPoint(engine="fp32", stop=last)
    shape = split_point.shape(backbone)
    if len(shape) != 3:
        raise UsageError(
            f"Expected a backbone that gives maps, got {backbone.spec.name}, which gives "
            f"{len(shape)} dimensions an image; do name a convolutional one."
        )
    distinct = len({sample.digest or i for i, sample in enumerate(data.samples)})
    computed = len(extractor.missing(backbone, data.samples, split_point))
    kept = extractor.activations(backbone, data.samples, split_point)
    values, targets, images = [], [], []
    for start in range(0, len(data), READ_AT_ONCE):
        rows = range(start, min(start + READ_AT_ONCE, len(data)))
        for row, maps in zip(rows, kept.read(rows), strict=True):
            for label, coverage in _coverages(data.samples[row], preprocess, data, shape[:2]):
                values.append(np.tensordot(coverage, maps, axes=2))
                targets.append(label)
                images.append(row)
    if not values:
        raise DataError(f"Expected objects or regions in {data.name!r}, got none; do add some.")
    return Regions(
        values=np.asarray(values, dtype=np.float32),
        targets=np.asarray(targets, dtype=np.intp),
        images=np.asarray(images, dtype=np.intp),
        computed=computed,
        reused=max(distinct - computed, 0),
        seconds=time.perf_counter() - begin,
    )


def _coverages(
    sample: Sample, preprocess: Preprocess, data: Dataset, places: tuple[int, ...]
) -> Iterator[tuple[int, Floats]]:
    """Class and coverage (h, w) of each region of an image."""
    height, width = preprocess.shape
    if data.kind == "detection":
        truth = load_boxes(sample, preprocess, data.classes)
        for box, label, hard in zip(truth.boxes, truth.labels, truth.hard, strict=True):
            coverage = box_coverage(box, (height, width), (places[0], places[1]))
            if not hard and coverage.any():
                yield int(label), coverage
        return
    mask = load_mask(sample, preprocess, data.classes)
    for label in np.unique(mask[mask < len(data.classes)]):
        yield int(label), mask_coverage(mask == label, (places[0], places[1]))


def box_coverage(
    box: NDArray[np.floating], canvas: tuple[int, int], places: tuple[int, int]
) -> Floats:
    """Share of a box that lies over each place of a map.

    Parameters
    ----------
    box : array, shape (4,)
        Left, top, right, bottom in pixels of the canvas.
    canvas, places : pair of int
        Height and width in pixels, and of the map.

    Returns
    -------
    array, float32, shape (h, w)
        Of sum 1; zeros for a box that lies outside.

    Examples
    --------
    >>> box_coverage(np.asarray([0.0, 0.0, 48.0, 32.0]), (64, 64), (2, 2)).round(2)
    array([[0.67, 0.33],
           [0.  , 0.  ]], dtype=float32)
    """
    left, top, right, bottom = (float(side) for side in box)
    rows = _overlap(top, bottom, canvas[0], places[0])
    columns = _overlap(left, right, canvas[1], places[1])
    found = np.outer(rows, columns)
    total = found.sum()
    return np.asarray(found / total if total > 0 else found, dtype=np.float32)


def _overlap(low: float, high: float, length: int, count: int) -> NDArray[np.float64]:
    edges = np.linspace(0, length, count + 1)
    return np.asarray(np.clip(np.minimum(edges[1:], high) - np.maximum(edges[:-1], low), 0, None))


def mask_coverage(region: NDArray[np.bool_], places: tuple[int, int]) -> Floats:
    """Share of a region that lies over each place of a map.

    Parameters
    ----------
    region : array of bool, shape (H, W)
        With one true pixel or more.
    places : pair of int
        Height and width of the map.

    Returns
    -------
    array, float32, shape (h, w)
        Of sum 1.

    Examples
    --------
    >>> mask_coverage(np.eye(4, dtype=bool), (2, 2))
    array([[0.5, 0. ],
           [0. , 0.5]], dtype=float32)
    """
    rows, columns = np.nonzero(region)
    height, width = region.shape
    found = np.zeros(places, dtype=np.float64)
    np.add.at(found, (rows * places[0] // height, columns * places[1] // width), 1.0)
    return np.asarray(found / len(rows), dtype=np.float32)
