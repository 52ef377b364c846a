"""Evaluating masks: against the metrics themselves, against counts by hand, over a model."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from headstart.backbones.backbone import load
from headstart.backbones.catalog import resolve
from headstart.backbones.frozen import FrozenBackbone
from headstart.cache import Cache
from headstart.data.dataset import Dataset, Mask, Palette, Sample
from headstart.errors import DataError, UnknownNameError
from headstart.evaluation.classification import evaluate
from headstart.evaluation.segmentation import (
    TITLES,
    PixelCounts,
    evaluate_counts,
    evaluate_masks,
    true_mask,
)
from headstart.evaluation.transfer_gain import evaluate_with_transfer_gain
from headstart.features.extractor import Extractor
from headstart.metrics import segmentation as metrics
from headstart.models.build import create_model
from headstart.models.inference import segment
from headstart.models.tasks import SegmentationTask
from headstart.reports.predictions import render_predictions

CLASSES = ("ground", "leaf", "stem")
TASK = SegmentationTask(classes=CLASSES)
PALETTE = Palette(codes=tuple(enumerate(CLASSES)))


def counted(pairs, n_classes=3):
    return PixelCounts(
        np.stack([metrics.pixel_counts(said, true, n_classes) for said, true in pairs]),
        np.stack([metrics.boundary_counts(said, true, n_classes) for said, true in pairs]),
    )


def drawn(n=10, seed=0):
    """Answers that are mostly right, and truths with some ignored pixels."""
    rng = np.random.default_rng(seed)
    pairs = []
    for _ in range(n):
        truth = rng.choice(3, (6, 8), p=(0.6, 0.3, 0.1)).repeat(4, 0).repeat(4, 1).astype(np.uint8)
        said = np.where(rng.random(truth.shape) < rng.uniform(0.6, 1), truth, 0).astype(np.uint8)
        truth[:2] = 255
        pairs.append((said, truth))
    return pairs


def judged(pairs, **how):
    names = how.pop("names", tuple(f"{i}.png" for i in range(len(pairs))))
    return evaluate_counts(TASK, counted(pairs), names=names, **how)


def test_the_numbers_are_those_of_the_metrics():
    pairs = drawn()
    one, counts = judged(pairs), counted(pairs)
    wanted = {
        "mean_iou": metrics.mean_iou_score(counts.confusion),
        "mean_dice": metrics.mean_dice_score(counts.confusion),
        "pixel_accuracy": metrics.pixel_accuracy_score(counts.confusion),
        "mean_class_accuracy": metrics.mean_class_accuracy_score(counts.confusion),
        "boundary_f": metrics.mean_boundary_f_score(counts.boundary),
    }
    assert {k: v.value for k, v in one.metrics.items()} == pytest.approx(
        {k: float(v) for k, v in wanted.items()}
    )
    assert list(one.metrics) == list(TITLES)
    np.testing.assert_allclose(
        [row.iou.value for row in one.per_class], metrics.iou_scores(counts.confusion)
    )
    np.testing.assert_allclose(
        [row.dice.value for row in one.per_class], metrics.dice_scores(counts.confusion)
    )
    said, true = (np.concatenate([pair[i].ravel() for pair in pairs]) for i in (0, 1))
    kept = true != 255
    assert one.metrics["pixel_accuracy"].value == pytest.approx((said == true)[kept].mean())
    assert [row.pixels for row in one.per_class] == np.bincount(true[kept]).tolist()
    assert sum(row.share for row in one.per_class) == pytest.approx(1)
    assert one.confusion.sum() == kept.sum()


def test_intervals_hold_their_value():
    one = judged(drawn(30))
    for interval in (*one.metrics.values(), *(row.iou for row in one.per_class)):
        assert interval.low < interval.value < interval.high


def test_a_perfect_model_gets_one_and_has_no_worst_image():
    one = judged([(true, true) for _, true in ((s, np.where(t == 255, 0, t)) for s, t in drawn())])
    assert all(interval.value == 1.0 for interval in one.metrics.values())
    assert one.worst(10) == []
    assert one.baselines[0].lead.significant


def test_the_order_of_images_decides_nothing():
    pairs = drawn()
    one, other = judged(pairs), judged(pairs[::-1])
    assert {k: v.value for k, v in one.metrics.items()} == pytest.approx(
        {k: v.value for k, v in other.metrics.items()}
    )
    np.testing.assert_array_equal(one.confusion, other.confusion)
    assert one.worst(3) == [9 - row for row in other.worst(3)]


def test_the_worst_images_are_those_with_the_lowest_mean_iou():
    true = np.array([[0, 0, 1, 1]] * 4, dtype=np.uint8)
    half = np.array([[0, 0, 0, 1]] * 4, dtype=np.uint8)
    nothing = np.full((4, 4), 255, dtype=np.uint8)
    one = judged([(half, true), (true, true), (1 - true, true), (true, nothing)])
    np.testing.assert_allclose(one.image_iou, [(2 / 3 + 1 / 2) / 2, 1, 0, np.nan])
    assert one.worst(5) == [2, 0]
    assert one.worst(1) == [2]


def test_one_class_everywhere_stands_beside_the_model():
    pairs = drawn()
    one = judged(pairs)
    constant = judged([(np.zeros_like(said), true) for said, true in pairs])
    accuracy, iou = one.baselines
    assert "'ground' everywhere" in accuracy.name
    for baseline, name in ((accuracy, "pixel_accuracy"), (iou, "mean_iou")):
        assert baseline.accuracy.value == pytest.approx(constant.metrics[name].value)
        lead = one.metrics[name].value - constant.metrics[name].value
        assert baseline.lead.interval.value == pytest.approx(lead)
        assert baseline.lead.significant
    same = constant.baselines[0].lead
    assert same.interval.value == 0
    assert not same.significant


def test_classes_that_are_nowhere_have_no_number():
    one = judged([(np.minimum(said, 1), np.where(true == 2, 1, true)) for said, true in drawn()])
    assert np.isnan(one.per_class[2].iou.value)
    assert not np.isnan(one.metrics["mean_iou"].value)
    told = json.loads(json.dumps(one.as_dict(), allow_nan=False))
    assert told["per_class"][2]["iou"]["value"] is None
    assert told["per_class"][2]["share"] == 0


def test_whole_groups_are_resampled():
    pairs = drawn(20)
    repeated = [pair for pair in pairs for _ in range(4)]
    alone, ignored = judged(pairs), judged(repeated)
    grouped = judged(repeated, groups=np.repeat(np.arange(20), 4))
    widths = [
        m.metrics["mean_iou"].high - m.metrics["mean_iou"].low for m in (alone, ignored, grouped)
    ]
    assert widths[2] == pytest.approx(widths[0], rel=0.2)
    assert widths[1] < 0.7 * widths[2]
    assert grouped.n_groups == 20


def test_the_file_of_answers_has_every_images_scores():
    true = np.array([[0, 0, 1, 1]] * 4, dtype=np.uint8)
    half = np.array([[0, 0, 0, 1]] * 4, dtype=np.uint8)
    files = render_predictions(judged([(half, true), (true, true)], names=("a,b.png", "c.png")))
    assert list(files) == ["predictions.csv"]
    rows = list(csv.DictReader(io.StringIO(files["predictions.csv"])))
    assert [row["image"] for row in rows] == ["a,b.png", "c.png"]
    assert float(rows[0]["iou leaf"]) == pytest.approx(0.5)
    assert float(rows[0]["pixel_accuracy"]) == pytest.approx(0.75)
    assert rows[1]["iou stem"] == ""


# -- a model over images -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def backbone():
    spec = resolve("timm/test_resnet")
    state = load(spec, pretrained=False, seed=0).trunk.state_dict()
    return FrozenBackbone(spec=spec, state=state, origin={"from": "here"})


def data(n=4, palette=PALETTE):
    rng = np.random.default_rng(0)
    samples = []
    for i in range(n):
        shape = (48, 64 + 8 * (i % 2))
        mask = rng.integers(0, 3, shape, dtype=np.uint8)
        samples.append(
            Sample(
                image=rng.integers(0, 256, (*shape, 3), dtype=np.uint8),
                target=Mask(source=mask, palette=palette, present=palette.names),
                title=f"{i}.png",
            )
        )
    return Dataset(samples=tuple(samples), classes=palette.names, kind="segmentation")


@pytest.fixture(scope="module")
def model(backbone):
    return create_model(backbone, data(), head="fpn", size=64, seed=1)


@pytest.fixture
def extractor(tmp_path):
    return Extractor(cache=Cache(tmp_path / "kept"), engine="fp32", device="cpu", workers=1)


def test_a_model_is_judged_in_the_images_own_size(model, extractor):
    one = evaluate(model, data(), extractor=extractor)
    masks = [
        found.mask for found in segment(model.backbone, model.head, data().samples, device="cpu")
    ]
    truths = [sample.target.source for sample in data().samples]
    right = np.concatenate([(m == t).ravel() for m, t in zip(masks, truths, strict=True)])
    assert one.metrics["pixel_accuracy"].value == pytest.approx(right.mean())
    assert one.confusion.sum() == right.size
    assert one.names == ("0.png", "1.png", "2.png", "3.png")


def test_classes_are_matched_by_name_whatever_their_codes(model, extractor):
    turned = Palette(codes=tuple((code, name) for code, name in reversed(PALETTE.codes)))
    one, other = (evaluate(model, data(palette=p), extractor=extractor) for p in (PALETTE, turned))
    np.testing.assert_array_equal(one.confusion, other.confusion)


def test_masks_turn_with_their_image(tmp_path):
    pixels, mask = np.zeros((6, 10, 3), np.uint8), np.zeros((6, 10), np.uint8)
    mask[0, 0] = 1
    exif = Image.Exif()
    exif[0x0112] = 6  # shown a quarter turn to the right
    Image.fromarray(pixels).save(tmp_path / "a.jpg", exif=exif)
    sample = Sample(image=tmp_path / "a.jpg", target=Mask(source=mask, palette=PALETTE))
    turned = true_mask(sample, CLASSES)
    assert turned.shape == (10, 6)
    assert turned[0, 5] == 1


def test_what_the_model_cannot_know_is_refused(model, extractor):
    foreign = data(palette=Palette(codes=((0, "ground"), (1, "leaf"), (2, "flower"))))
    with pytest.raises(DataError, match="does not know the classes \\['flower'\\]"):
        evaluate(model, foreign, extractor=extractor)
    with pytest.raises(UnknownNameError, match="flower"):
        evaluate_masks(model, foreign, device="cpu")
    first = data().samples[0]
    without = replace(data(), samples=(replace(first, target=None),))
    with pytest.raises(DataError, match="has no mask"):
        evaluate_masks(model, without, device="cpu")
    small = Mask(source=np.zeros((5, 5), np.uint8), palette=PALETTE)
    with pytest.raises(DataError, match="image's size"):
        evaluate_masks(
            model, replace(data(), samples=(replace(first, target=small),)), device="cpu"
        )


def test_judging_tells_what_was_forgotten(model, extractor):
    state = {
        k: v + 0.1 if k.endswith("conv1.weight") else v for k, v in model.backbone.state.items()
    }
    moved = replace(model, backbone=replace(model.backbone, state=state))
    told, one = evaluate_with_transfer_gain(model, moved, (data(), data()), extractor=extractor)
    changed = [row["relative_weight_change"] for row in told.record["forgetting"]["stages"]]
    assert max(changed) > 0
    assert one.task == TASK
