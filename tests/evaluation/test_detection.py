"""Evaluating detectors: against the metrics themselves, against counts by hand, over a model."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from headstart.backbones.backbone import load
from headstart.backbones.catalog import resolve
from headstart.backbones.frozen import FrozenBackbone
from headstart.cache import Cache
from headstart.data.dataset import Boxes, Dataset, Sample
from headstart.errors import DataError, UnknownNameError
from headstart.evaluation.classification import evaluate
from headstart.evaluation.detection import (
    TITLES,
    class_indices,
    evaluate_boxes,
    evaluate_detections,
)
from headstart.evaluation.transfer_gain import evaluate_with_transfer_gain
from headstart.features.extractor import Extractor
from headstart.metrics import detection as box_metrics
from headstart.models.build import create_model
from headstart.models.inference import Detections, detect
from headstart.models.tasks import DetectionTask

CLASSES = ("disc", "rod")
TASK = DetectionTask(classes=CLASSES, threshold=0.4)


def found(name, boxes, scores, labels, size=(200, 160)):
    return Detections(
        name=name,
        size=size,
        boxes=np.asarray(boxes, np.float32).reshape(-1, 4),
        scores=np.asarray(scores, np.float32),
        labels=np.asarray(labels, np.intp),
    )


def perfect(truths, classes=CLASSES):
    return [
        found(f"{i}.png", t.array(), np.full(len(t.labels), 0.9), class_indices(t, classes))
        for i, t in enumerate(truths)
    ]


def drawn(n=12, seed=0):
    """Truths, and detections that find most of them roughly and some things beside."""
    rng = np.random.default_rng(seed)
    truths, detections = [], []
    for i in range(n):
        k = int(rng.integers(0, 5))
        corner = rng.uniform(0, 120, (k, 2))
        boxes = np.concatenate([corner, corner + rng.uniform(8, 60, (k, 2))], axis=1)
        labels = rng.integers(0, 2, k)
        truths.append(
            Boxes(
                corners=tuple(map(tuple, boxes.tolist())),
                labels=tuple(CLASSES[j] for j in labels),
                hard=tuple(bool(x) for x in rng.random(k) < 0.1),
            )
        )
        beside = rng.uniform(0, 60, (2, 2))
        extra = np.concatenate([beside, beside + 30], axis=1)
        noisy = boxes + rng.normal(0, 2, boxes.shape)
        detections.append(
            found(
                f"{i}.png",
                np.concatenate([noisy, extra]),
                np.round(rng.random(k + 2), 3),
                np.concatenate([labels, rng.integers(0, 2, 2)]),
            )
        )
    return truths, detections


def test_the_numbers_are_those_of_the_metrics():
    truths, detections = drawn()
    one = evaluate_detections(TASK, detections, truths)
    plain = [(d.boxes, d.scores, d.labels) for d in detections]
    there = [(t.array(), class_indices(t, CLASSES), t.is_hard()) for t in truths]
    matches = box_metrics.match_boxes(plain, there, 2)
    for name, value in box_metrics.box_scores(matches).items():
        if np.isnan(value):
            assert name not in one.metrics
        else:
            assert one.metrics[name].value == pytest.approx(float(value))
    for wanted, field in ((None, "ap"), (0.5, "ap50")):
        values = box_metrics.per_class_ap(matches, iou=wanted)
        got = [getattr(row, field).value for row in one.per_class]
        np.testing.assert_allclose(got, values)
    np.testing.assert_array_equal(
        one.confusion, box_metrics.box_confusion(plain, there, 2, TASK.threshold)
    )
    counted = [sum(t.labels.count(c) for t in truths) for c in CLASSES]
    hard = [
        sum(
            h and label == c for t in truths for h, label in zip(t.is_hard(), t.labels, strict=True)
        )
        for c in CLASSES
    ]
    assert [row.objects for row in one.per_class] == [
        a - b for a, b in zip(counted, hard, strict=True)
    ]
    assert one.objects["all"] == sum(row.objects for row in one.per_class)
    sizes = [one.objects[size] for size in ("small", "medium", "large")]
    assert sum(sizes) == one.objects["all"]
    for curve, row in zip(one.curves, one.per_class, strict=True):
        assert curve.precision.mean() == pytest.approx(row.ap50.value)


def test_intervals_hold_their_value_and_the_headline_comes_first():
    truths, detections = drawn(30)
    one = evaluate_detections(TASK, detections, truths)
    assert next(iter(one.metrics)) == "map"
    assert set(one.metrics) <= set(TITLES)
    for interval in (*one.metrics.values(), *(row.ap for row in one.per_class)):
        assert interval.low <= interval.value <= interval.high
        assert interval.low < interval.high


def test_of_a_few_objects_nobody_claims_an_interval():
    """Nine rods and many discs, some found: only what is about the rods has no bounds."""
    truths, detections = drawn(40, seed=2)
    rods, kept = 0, []
    for truth in truths:
        chosen = []
        for i, label in enumerate(truth.labels):
            rods += label == "rod" and not truth.is_hard()[i]
            if label == "disc" or rods <= 9:
                chosen.append(i)
        kept.append(
            Boxes(
                corners=tuple(truth.corners[i] for i in chosen),
                labels=tuple(truth.labels[i] for i in chosen),
                hard=tuple(truth.hard[i] for i in chosen),
            )
        )
    one = evaluate_detections(TASK, detections, kept)
    disc, rod = one.per_class
    assert (rod.objects, disc.objects > 20) == (9, True)
    for told, number in ((disc.ap, True), (disc.ap50, True), (rod.ap, False), (rod.ap50, False)):
        assert np.isfinite([told.low, told.high]).all() == number
    for size in ("small", "medium"):
        number = one.metrics[f"map_{size}"]
        assert np.isfinite(number.low) == (one.objects[size] >= 10)
    assert np.isfinite(one.metrics["map"].low)


def test_a_perfect_model_gets_one_and_has_no_worst_image():
    truths, _ = drawn()
    truths = [replace(t, hard=()) for t in truths]
    one = evaluate_detections(TASK, perfect(truths), truths)
    assert all(interval.value == 1.0 for interval in one.metrics.values())
    assert one.worst(10) == []
    assert (one.confusion == np.diag([*(row.objects for row in one.per_class), 0])).all()
    assert all((curve.precision == 1).all() for curve in one.curves)


def test_the_order_of_images_decides_nothing():
    truths, detections = drawn()
    one = evaluate_detections(TASK, detections, truths)
    order = np.random.default_rng(3).permutation(len(truths))
    other = evaluate_detections(TASK, [detections[i] for i in order], [truths[i] for i in order])
    assert {k: v.value for k, v in one.metrics.items()} == {
        k: v.value for k, v in other.metrics.items()
    }
    np.testing.assert_array_equal(one.confusion, other.confusion)
    assert [one.names[i] for i in one.worst(12)][:3] == [other.names[i] for i in other.worst(12)][
        :3
    ]


def test_the_worst_images_are_those_with_the_smallest_share_right():
    here = Boxes(corners=((0, 0, 20, 20), (40, 40, 80, 80)), labels=("disc", "rod"))
    truths = [here, here, here, Boxes()]
    detections = [
        *perfect([here]),
        found("one missed.png", [[0, 0, 20, 20]], [0.9], [0]),
        found("all wrong.png", [[0, 0, 20, 20], [100, 100, 120, 120]], [0.9, 0.9], [1, 0]),
        found("nothing there.png", [[0, 0, 9, 9], [20, 0, 29, 9]], [0.9, 0.1], [0, 0]),
    ]
    one = evaluate_detections(TASK, detections, truths)
    assert one.errors.tolist() == [[2, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 1], [0, 0, 0, 1]]
    assert [one.names[i] for i in one.worst(5)] == [
        "all wrong.png", "nothing there.png", "one missed.png",
    ]  # fmt: skip
    assert one.worst(1) == [2]


def test_what_is_below_the_threshold_is_not_named_but_judged():
    truth = [Boxes(corners=((0, 0, 20, 20),), labels=("disc",))] * 2
    one = evaluate_detections(TASK, [found(n, [[0, 0, 20, 20]], [0.3], [0]) for n in "ab"], truth)
    assert one.metrics["map"].value == 1.0
    assert one.confusion.tolist() == [[0, 0, 2], [0, 0, 0], [0, 0, 0]]


def test_a_class_that_nobody_asked_about_has_no_number_and_no_curve():
    truth = [Boxes(corners=((0, 0, 20, 20),), labels=("disc",))] * 3
    one = evaluate_detections(TASK, perfect(truth), truth)
    assert one.per_class[1].objects == 0
    assert np.isnan(one.per_class[1].ap.value)
    assert [curve.name for curve in one.curves] == ["disc"]
    assert "map_large" not in one.metrics


def test_nothing_to_find_at_all_is_told_by_nan():
    one = evaluate_detections(TASK, [found("a", [], [], []), found("b", [], [], [])], [Boxes()] * 2)
    assert np.isnan(one.metrics["map"].value)
    assert list(one.metrics) == ["map"]
    json.dumps(one.as_dict(), allow_nan=False)


def test_whole_groups_are_resampled():
    truths, detections = drawn(24)
    alone = evaluate_detections(TASK, detections, truths)
    truths, detections = (
        [t for t in truths for _ in range(4)],
        [d for d in detections for _ in range(4)],
    )
    groups = np.repeat(np.arange(24), 4)
    grouped = evaluate_detections(TASK, detections, truths, groups=groups)
    ignored = evaluate_detections(TASK, detections, truths)
    assert grouped.n_groups == 24
    width = {
        name: one.metrics["recall100"].high - one.metrics["recall100"].low
        for name, one in (("alone", alone), ("grouped", grouped), ("ignored", ignored))
    }
    assert width["grouped"] == pytest.approx(width["alone"], rel=0.2)
    assert width["ignored"] < 0.7 * width["grouped"]


def test_all_of_it_is_plain_values():
    truths, detections = drawn()
    told = json.loads(
        json.dumps(evaluate_detections(TASK, detections, truths).as_dict(), allow_nan=False)
    )
    assert told["images"] == 12
    assert told["threshold"] == 0.4
    assert next(iter(told["metrics"])) == "map"
    assert [row["class"] for row in told["per_class"]] == list(CLASSES)
    assert len(told["curves"][0]["recall"]) == 101


# -- a model over images -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def backbone():
    spec = resolve("timm/test_resnet")
    state = load(spec, pretrained=False, seed=0).trunk.state_dict()
    return FrozenBackbone(spec=spec, state=state, origin={"from": "here"})


def data(n=4, classes=CLASSES, labels=CLASSES):
    rng = np.random.default_rng(0)
    samples = [
        Sample(
            image=rng.integers(0, 256, (48, 64 + 8 * (i % 2), 3), dtype=np.uint8),
            target=Boxes(corners=((4, 6, 30, 28), (20, 10, 40, 36)), labels=labels),
            title=f"{i}.png",
        )
        for i in range(n)
    ]
    return Dataset(samples=tuple(samples), classes=classes, kind="detection")


@pytest.fixture(scope="module")
def model(backbone):
    return create_model(backbone, data(), head="fcos", size=64, seed=1)


@pytest.fixture
def extractor(tmp_path):
    return Extractor(cache=Cache(tmp_path / "kept"), engine="fp32", device="cpu", workers=1)


def test_a_model_is_judged_by_what_it_finds(model, extractor):
    one = evaluate(model, data(), extractor=extractor)
    again = detect(model.backbone, model.head, data().samples, device="cpu")
    assert one.names == tuple(sample.name for sample in data().samples)
    for mine, other in zip(one.detections, again, strict=True):
        np.testing.assert_allclose(mine.boxes, other.boxes, atol=1e-3)
    assert one.task == model.task


def test_classes_are_matched_by_name(model, extractor):
    turned = data(classes=CLASSES[::-1])
    one, other = (evaluate(model, d, extractor=extractor) for d in (data(), turned))
    np.testing.assert_array_equal(one.confusion, other.confusion)


def test_what_the_model_cannot_know_is_refused(model, extractor):
    with pytest.raises(DataError, match="does not know the classes \\['cone'\\]"):
        evaluate(
            model, data(classes=(*CLASSES, "cone"), labels=("disc", "cone")), extractor=extractor
        )
    with pytest.raises(DataError, match="at least one image"):
        evaluate(model, data(0), extractor=extractor)
    classes = Dataset(
        samples=(Sample(image=np.zeros((9, 9, 3)), target="disc"),), classes=("disc",)
    )
    with pytest.raises(DataError, match="The model is for detection"):
        evaluate(model, classes, extractor=extractor)
    without = replace(data(), samples=(replace(data().samples[0], target=None),))
    with pytest.raises(DataError, match="has no boxes"):
        evaluate_boxes(model, without, device="cpu")
    with pytest.raises(UnknownNameError, match="cone"):
        evaluate_boxes(model, data(labels=("disc", "cone")), device="cpu")


def test_judging_has_no_probe_and_tells_what_was_forgotten(model, extractor):
    same, one = evaluate_with_transfer_gain(model, model, (data(), data()), extractor=extractor)
    assert same is model
    assert one.baselines == ()
    state = {
        k: v + 0.1 if k.endswith("conv1.weight") else v for k, v in model.backbone.state.items()
    }
    moved = replace(model, backbone=replace(model.backbone, state=state))
    told, _ = evaluate_with_transfer_gain(model, moved, (data(), data()), extractor=extractor)
    changed = [row["relative_weight_change"] for row in told.record["forgetting"]["stages"]]
    assert max(changed) > 0
    assert "target_gain" not in told.record
