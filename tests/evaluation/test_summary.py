"""The summary states what the intervals show."""

import numpy as np
import pytest
from scipy.special import expit

from headstart.data.dataset import Boxes
from headstart.evaluation.baselines import Baseline
from headstart.evaluation.classification import evaluate_probabilities
from headstart.evaluation.detection import evaluate_detections
from headstart.evaluation.segmentation import PixelCounts, evaluate_counts
from headstart.evaluation.summary import summarise
from headstart.metrics.confidence_intervals import (
    Difference,
    Interval,
    paired_proportion_difference,
    proportion_interval,
    wilson_interval,
)
from headstart.metrics.segmentation import boundary_counts, pixel_counts
from headstart.models.inference import Detections
from headstart.models.tasks import ClassificationTask, DetectionTask, SegmentationTask

PAIR = ClassificationTask(classes=("ant", "bee"))


def judged(task, probabilities, targets, **options):
    probabilities, targets = np.asarray(probabilities, dtype=float), np.asarray(targets)
    names = tuple(f"{i}.png" for i in range(len(targets)))
    return evaluate_probabilities(task, probabilities, targets, names=names, **options)


def baseline(model, other, groups=None):
    return Baseline(
        name="majority class",
        accuracy=proportion_interval(other),
        lead=paired_proportion_difference(model, other, groups),
    )


def told_lead(model_right, baseline_right, n=100):
    """Compare a model that is right in so many images with a baseline."""
    model, other = np.arange(n) < model_right, np.arange(n) >= n - baseline_right
    chances = np.where(model[:, None], [[0.9, 0.1]], [[0.1, 0.9]])
    found = judged(PAIR, chances, np.zeros(n, dtype=int), baselines=(baseline(model, other),))
    return found, summarise(found)[1]


PHRASES = ("no significant difference", "Better than", "WORSE than")


@pytest.mark.parametrize(
    ("right", "other", "phrase"),
    [(95, 50, "Better than"), (50, 95, "WORSE than"), (60, 58, "no significant difference")],
)
def test_the_summary_agrees_with_the_paired_interval(right, other, phrase):
    found, sentence = told_lead(right, other)
    assert [p for p in PHRASES if p in sentence] == [phrase]
    lead = found.baselines[0].lead
    assert lead.interval.value == pytest.approx((right - other) / 100)
    assert lead.significant is (phrase != "no significant difference")
    assert f"{100 * lead.interval.value:+.1f} points" in sentence


def test_the_summary_follows_the_interval_over_the_whole_range():
    for right in range(30, 71, 2):
        found, sentence = told_lead(right, 50)
        interval = found.baselines[0].lead.interval
        expected = PHRASES[(interval.low > 0) + 2 * (interval.high < 0)]
        assert [p for p in PHRASES if p in sentence] == [expected], right


def test_few_images_show_no_significant_difference():
    lead = Difference(
        interval=Interval(value=0.5, low=0.1, high=0.9, method="test"), significant=False
    )
    one = Baseline(name="rule", accuracy=wilson_interval(2, 4), lead=lead)
    chances = [[0.9, 0.1]] * 4
    sentence = summarise(judged(PAIR, chances, [0] * 4, baselines=(one,)))[1]
    assert sentence.startswith("Compared with rule (50.0 %): +50.0 points [10.0, 90.0]: ")
    assert "no significant difference with 4 test images" in sentence


def test_a_wide_interval_is_called_wide_and_a_narrow_one_is_not():
    n = 2000
    chances = np.where((np.arange(n) < 1900)[:, None], [[0.9, 0.1]], [[0.1, 0.9]])
    targets = np.arange(n) % 2
    assert not any("points wide" in said for said in summarise(judged(PAIR, chances, targets)))
    few = summarise(judged(PAIR, chances[:20], targets[:20]))
    assert any("points wide" in said for said in few)


def test_multilabel_has_its_own_title():
    task = ClassificationTask(classes=("red", "round"), kind="multilabel")
    logits = np.random.default_rng(0).normal(scale=2, size=(150, 2))
    targets = (logits + np.random.default_rng(1).normal(size=logits.shape) > 0).astype(int)
    assert summarise(judged(task, expit(logits), targets))[0].startswith("All labels correct: ")


def test_a_class_that_no_held_out_image_shows_is_named():
    said = summarise(judged(PAIR, [[0.9, 0.1]] * 5, [0] * 5))
    assert said[0].startswith("Test accuracy: 100.0 % (5 of 5 images). 95 % confidence interval: ")
    assert said[-1] == "Not evaluated: 'bee' (no test image)."


def test_a_lead_that_few_answers_carry_is_explained():
    lead = Difference(
        interval=Interval(value=0.5, low=0.1, high=0.9, method="test"), significant=False
    )
    one = Baseline(name="rule", accuracy=wilson_interval(2, 4), lead=lead)
    sentence = summarise(judged(PAIR, [[0.9, 0.1]] * 4, [0] * 4, baselines=(one,)))[1]
    assert sentence.endswith("(the predictions differ on too few of them).")


# -- boxes and masks -----------------------------------------------------------------------------


def boxes(n=4, *, seen=True):
    """Of every image's two discs one is found, and a rod where there is none."""
    corners = ((0, 0, 20, 20), (50, 50, 70, 70), (80, 0, 99, 40))
    truth = Boxes(corners=corners, labels=("disc", "disc", "rod")) if seen else Boxes()
    found = [
        Detections(
            name=f"{i}.png",
            size=(100, 100),
            boxes=np.array([corners[0], (0, 60, 20, 80), corners[2]], np.float32),
            scores=np.array([0.9, 0.8, 0.7 if i % 3 else 0.1], np.float32),
            labels=np.array([0, 1, 1]),
        )
        for i in range(n)
    ]
    task = DetectionTask(classes=("disc", "rod", "cone"), threshold=0.5)
    return evaluate_detections(task, found, [truth] * n)


def test_the_summary_of_boxes_has_map_counts_and_the_weakest_class():
    found = boxes()
    headline, counts, worst, few, *rest = summarise(found)
    assert headline.startswith(f"mAP: {found.metrics['map'].value:.3f} on 4 test images. 95 % conf")
    assert f"mAP at IoU 0.50: {found.metrics['map50']}" in headline
    assert "6 of 12 objects are correct, 6 are missed, 0 have the wrong class, and 4" in counts
    assert "score threshold of 0.50" in counts
    values = {row.name: row.ap.value for row in found.per_class[:2]}
    assert worst.startswith(f"Weakest class: {min(values, key=values.get)!r} (AP ")
    assert few.startswith("Only 4 test images")
    assert rest[-1] == "Not evaluated: 'cone' (no test image)."


def test_of_many_images_nobody_says_that_they_are_few():
    assert not any(sentence.startswith("Only") for sentence in summarise(boxes(30)))


def test_without_an_object_nothing_is_said():
    assert summarise(boxes(2, seen=False)) == (
        "No score: 2 test images without any object that counts.",
    )


def masks(said, true, n=4, groups=None):
    counts = PixelCounts(
        np.stack([pixel_counts(said, true, 2)] * n), np.stack([boundary_counts(said, true, 2)] * n)
    )
    names = tuple(f"{i}.png" for i in range(n))
    return evaluate_counts(
        SegmentationTask(classes=("ground", "leaf")), counts, names=names, groups=groups
    )


def test_the_summary_of_masks_has_iou_the_weakest_class_and_the_lead():
    true = np.array([[0, 0, 0, 1]] * 4, dtype=np.uint8)
    said = np.array([[0, 0, 1, 1]] * 4, dtype=np.uint8)
    found = masks(said, true, groups=np.array([0, 0, 1, 1]))
    headline, worst, pixels, iou, few = summarise(found)
    assert headline.startswith("Mean IoU: 0.583 on 4 test images in 2 groups.")
    assert "95 % confidence interval: unknown." in headline
    assert worst.startswith("Weakest class: 'leaf' (IoU 0.500")
    start = "Compared with predicting 'ground' everywhere"
    assert pixels.startswith(f"{start} (pixel accuracy 0.750): +0.000 [")
    assert "no significant difference with 4 test images" in pixels
    assert iou.startswith(f"{start} (mean IoU 0.375): +0.208 [")
    assert few.startswith("Only 2 test groups")


def test_masks_without_a_judged_pixel_say_nothing():
    nothing = np.full((4, 4), 255, dtype=np.uint8)
    assert summarise(masks(np.zeros((4, 4), np.uint8), nothing, n=1)) == (
        "No score: 1 test image without any labelled pixel.",
    )
