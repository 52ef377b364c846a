"""Features under boxes and masks, against direct averages of the network's own maps."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from headstart.backbones.backbone import load
from headstart.backbones.catalog import resolve
from headstart.backbones.frozen import FrozenBackbone
from headstart.cache import Cache
from headstart.data.dataset import Boxes, Dataset, Sample
from headstart.data.demo.classification import load as demo
from headstart.data.loader import load_batch, load_boxes, load_mask
from headstart.errors import DataError, UsageError
from headstart.features.extractor import Extractor
from headstart.features.regions import box_coverage, mask_coverage, region_features

CANVAS = (96, 64)


@pytest.fixture(scope="module")
def backbone() -> FrozenBackbone:
    spec = resolve("timm/test_resnet")
    state = load(spec, pretrained=False, seed=1).trunk.state_dict()
    return FrozenBackbone(spec=spec, state=state, origin={}).on_canvas(CANVAS)


@pytest.fixture
def extractor(tmp_path) -> Extractor:
    return Extractor(cache=Cache(tmp_path / "cache"), engine="fp32", device="cpu")


def last_maps(backbone: FrozenBackbone, data: Dataset) -> np.ndarray:
    """(n, h, w, channels), each value then painted over its share of the canvas."""
    pixels = torch.from_numpy(load_batch(data.samples, backbone.spec.preprocess)).permute(
        0, 3, 1, 2
    )
    with torch.inference_mode():
        x = backbone.spec.preprocess.normalise(pixels, torch.float32)
        maps = backbone.module.run(x, stop=backbone.module.stages[-1].name)
    return maps.permute(0, 2, 3, 1).numpy()


def painted(maps: np.ndarray, finer: int = 1) -> np.ndarray:
    h, w = (finer * side // count for side, count in zip(CANVAS, maps.shape, strict=False))
    return maps.repeat(h, axis=0).repeat(w, axis=1)


def test_boxes_average_what_lies_under_them(backbone: FrozenBackbone, extractor: Extractor) -> None:
    data = demo("boxes").subset(range(6))
    regions = region_features(extractor, backbone, data)
    maps, at = last_maps(backbone, data), 0
    for row, sample in enumerate(data.samples):
        truth = load_boxes(sample, backbone.spec.preprocess, data.classes)
        wide = painted(maps[row], finer=8)
        for box, label in zip(truth.boxes, truth.labels, strict=True):
            left, top, right, bottom = (round(8 * float(side)) for side in box)
            expected = wide[top:bottom, left:right].mean(axis=(0, 1))
            np.testing.assert_allclose(regions.values[at], expected, atol=0.02 * np.abs(wide).max())
            assert (regions.targets[at], regions.images[at]) == (label, row)
            at += 1
    assert at == len(regions.values)


def test_masks_average_each_class(backbone: FrozenBackbone, extractor: Extractor) -> None:
    data = demo("masks").subset(range(4))
    regions = region_features(extractor, backbone, data)
    maps, at = last_maps(backbone, data), 0
    for row, sample in enumerate(data.samples):
        mask = load_mask(sample, backbone.spec.preprocess, data.classes)
        for label in sorted(set(mask[mask != 255].tolist())):
            expected = painted(maps[row])[mask == label].mean(axis=0)
            np.testing.assert_allclose(regions.values[at], expected, rtol=1e-3, atol=1e-5)
            assert (regions.targets[at], regions.images[at]) == (label, row)
            at += 1
    assert at == len(regions.values)


def test_maps_are_computed_once(backbone: FrozenBackbone, extractor: Extractor) -> None:
    data = demo("boxes").subset(range(5))
    first, again = (region_features(extractor, backbone, data) for _ in range(2))
    assert (first.computed, first.reused) == (5, 0)
    assert (again.computed, again.reused) == (0, 5)
    np.testing.assert_array_equal(first.values, again.values)


def test_coverage_adds_up_to_one_and_follows_the_area() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        left, top = rng.uniform(0, 40, 2)
        box = np.asarray([left, top, left + rng.uniform(1, 20), top + rng.uniform(1, 50)])
        coverage = box_coverage(box, CANVAS, (3, 2))
        assert coverage.sum() == pytest.approx(1)
        inside = max(0.0, min(box[2], 32) - left) * max(0.0, min(box[3], 32) - top)
        clipped = (min(box[2], 64) - left) * (min(box[3], 96) - top)
        assert coverage[0, 0] == pytest.approx(inside / clipped, abs=1e-6)
    assert not box_coverage(np.asarray([70.0, 0, 90, 10]), CANVAS, (3, 2)).any()
    region = rng.random((60, 90)) < 0.3
    coverage = mask_coverage(region, (7, 4))  # also where the sizes do not divide
    assert coverage.shape == (7, 4)
    assert coverage.sum() == pytest.approx(1)


def test_hard_boxes_are_left_out_and_none_at_all_is_refused(
    backbone: FrozenBackbone, extractor: Extractor
) -> None:
    pixels = np.zeros((96, 64, 3), dtype=np.uint8)
    boxes = Boxes(corners=((0, 0, 32, 32), (0, 0, 64, 64)), labels=("a", "a"), hard=(True, False))
    data = Dataset(samples=(Sample(image=pixels, target=boxes),), classes=("a",), kind="detection")
    assert len(region_features(extractor, backbone, data).values) == 1
    bare = Sample(image=pixels, target=Boxes(corners=(), labels=()))
    with pytest.raises(DataError, match="none"):
        region_features(
            extractor, backbone, Dataset(samples=(bare,), classes=("a",), kind="detection")
        )


def test_what_has_no_regions_is_refused(backbone: FrozenBackbone, extractor: Extractor) -> None:
    data = demo("boxes").subset(range(2))
    with pytest.raises(UsageError, match="on_canvas"):
        region_features(
            extractor, FrozenBackbone(spec=resolve("timm/test_resnet"), state={}, origin={}), data
        )
    whole_images = Dataset(samples=data.samples, classes=("a",), kind="multiclass")
    with pytest.raises(UsageError, match="boxes or masks"):
        region_features(extractor, backbone, whole_images)
