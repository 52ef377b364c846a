"""The words say what the intervals say, and nothing more."""

import numpy as np
import pytest
from scipy.special import expit

from headstart.data.dataset import Boxes
from headstart.evaluation.baselines import Baseline
from headstart.evaluation.classification import evaluate_probabilities
from headstart.evaluation.detection import evaluate_detections
from headstart.evaluation.segmentation import PixelCounts, evaluate_counts
from headstart.evaluation.summary import verdict
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
    """Verdict on a model that is right in so many images, beside a baseline."""
    model, other = np.arange(n) < model_right, np.arange(n) >= n - baseline_right
    chances = np.where(model[:, None], [[0.9, 0.1]], [[0.1, 0.9]])
    found = judged(PAIR, chances, np.zeros(n, dtype=int), baselines=(baseline(model, other),))
    return found, verdict(found)[1]


PHRASES = ("cannot be distinguished", "is better", "IS WORSE")


@pytest.mark.parametrize(
    ("right", "other", "phrase"),
    [(95, 50, "is better"), (50, 95, "IS WORSE"), (60, 58, "cannot be distinguished")],
)
def test_the_verdict_says_what_the_paired_interval_says(right, other, phrase):
    found, sentence = told_lead(right, other)
    assert [p for p in PHRASES if p in sentence] == [phrase]
    lead = found.baselines[0].lead
    assert lead.interval.value == pytest.approx((right - other) / 100)
    assert lead.distinguishable is (phrase != "cannot be distinguished")
    assert f"{lead.interval.value:+.3f}" in sentence


def test_the_verdict_follows_the_interval_over_the_whole_range():
    for right in range(30, 71, 2):
        found, sentence = told_lead(right, 50)
        interval = found.baselines[0].lead.interval
        expected = PHRASES[(interval.low > 0) + 2 * (interval.high < 0)]
        assert [p for p in PHRASES if p in sentence] == [expected], right


def test_few_witnesses_distinguish_nothing():
    lead = Difference(
        interval=Interval(value=0.5, low=0.1, high=0.9, method="test"), distinguishable=False
    )
    one = Baseline(name="rule", accuracy=wilson_interval(2, 4), lead=lead)
    chances = [[0.9, 0.1]] * 4
    sentence = verdict(judged(PAIR, chances, [0] * 4, baselines=(one,)))[1]
    assert sentence.startswith("Rule: ")
    assert "cannot be distinguished" in sentence


def test_a_wide_interval_is_called_wide_and_a_narrow_one_is_not():
    n = 2000
    chances = np.where((np.arange(n) < 1900)[:, None], [[0.9, 0.1]], [[0.1, 0.9]])
    targets = np.arange(n) % 2
    assert not any("points wide" in said for said in verdict(judged(PAIR, chances, targets)))
    few = verdict(judged(PAIR, chances[:20], targets[:20]))
    assert any("points wide" in said for said in few)


def test_labels_all_right_is_not_called_accuracy():
    task = ClassificationTask(classes=("red", "round"), kind="multilabel")
    logits = np.random.default_rng(0).normal(scale=2, size=(150, 2))
    targets = (logits + np.random.default_rng(1).normal(size=logits.shape) > 0).astype(int)
    assert verdict(judged(task, expit(logits), targets))[0].startswith("All labels right 0.")


def test_a_class_that_no_held_out_image_shows_is_named():
    said = verdict(judged(PAIR, [[0.9, 0.1]] * 5, [0] * 5))
    assert said[-1] == "Nothing can be said about 'bee': no held-out image shows it."


def test_a_lead_that_few_answers_carry_is_explained():
    lead = Difference(
        interval=Interval(value=0.5, low=0.1, high=0.9, method="test"), distinguishable=False
    )
    one = Baseline(name="rule", accuracy=wilson_interval(2, 4), lead=lead)
    sentence = verdict(judged(PAIR, [[0.9, 0.1]] * 4, [0] * 4, baselines=(one,)))[1]
    assert sentence.endswith("(their answers differ on too few of them).")


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


def test_of_boxes_the_verdict_tells_the_headline_the_counts_and_the_worst_class():
    found = boxes()
    headline, counts, worst, few, *rest = verdict(found)
    assert headline.startswith(f"mAP {found.metrics['map']} on 4 held-out images")
    assert f"at overlap .50: {found.metrics['map50']}" in headline
    assert "names 6 of 12 objects right; 6 it misses, 0 it calls something else, and 4 of" in counts
    assert "score of 0.50" in counts
    values = {row.name: row.ap.value for row in found.per_class[:2]}
    assert worst.startswith(repr(min(values, key=values.get)))
    assert few.startswith("Only 4 held-out images")
    assert rest[-1] == "Nothing can be said about 'cone': no held-out image shows it."


def test_of_many_images_nobody_says_that_they_are_few():
    assert not any(sentence.startswith("Only") for sentence in verdict(boxes(30)))


def test_without_an_object_nothing_is_said():
    assert verdict(boxes(2, seen=False)) == (
        "Nothing can be said: 2 held-out images, and no object that counts.",
    )


def masks(said, true, n=4, groups=None):
    counts = PixelCounts(
        np.stack([pixel_counts(said, true, 2)] * n), np.stack([boundary_counts(said, true, 2)] * n)
    )
    names = tuple(f"{i}.png" for i in range(n))
    return evaluate_counts(
        SegmentationTask(classes=("ground", "leaf")), counts, names=names, groups=groups
    )


def test_of_masks_the_verdict_tells_the_headline_the_worst_class_and_the_lead():
    true = np.array([[0, 0, 0, 1]] * 4, dtype=np.uint8)
    said = np.array([[0, 0, 1, 1]] * 4, dtype=np.uint8)
    found = masks(said, true, groups=np.array([0, 0, 1, 1]))
    headline, worst, pixels, iou, few = verdict(found)
    assert headline.startswith("Mean IoU 0.583 [unknown] on 4 held-out images in 2 groups")
    assert worst.startswith("'leaf' is found worst: IoU 0.500")
    assert pixels.startswith("'ground' everywhere, pixel accuracy: 0.750")
    assert "cannot be distinguished" in pixels
    assert iou.startswith("'ground' everywhere, mean IoU: 0.375")
    assert few.startswith("Only 2 held-out groups")


def test_masks_without_a_judged_pixel_say_nothing():
    nothing = np.full((4, 4), 255, dtype=np.uint8)
    assert verdict(masks(np.zeros((4, 4), np.uint8), nothing, n=1)) == (
        "Nothing can be said: 1 held-out image, and no pixel that is judged.",
    )
