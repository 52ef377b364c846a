"""Score thresholds of drawn detectors."""

from itertools import chain

import numpy as np
import pytest

from headstart.metrics.detection import best_threshold, match_boxes
from headstart.metrics.score_thresholds import MIN_CLASS_OBJECTS, choose_thresholds


def detector(rng, n_images, scores=((5, 2), (2, 5)), label=0):
    """Three objects an image, nine tenths of them found, and eight boxes that show nothing."""
    predictions, truths = [], []
    true, false = scores
    for _ in range(n_images):
        objects = [[30 * i, 0, 30 * i + 10, 10] for i in range(3)]
        found = [box for box in objects if rng.random() < 0.9]
        extra = [[30 * i, 50, 30 * i + 10, 60] for i in range(8)]
        values = [*rng.beta(*true, len(found)), *rng.beta(*false, len(extra))]
        predictions.append((found + extra, values, [label] * len(values)))
        truths.append((objects, [label] * 3, [False] * 3))
    return predictions, truths


def f1(matches, threshold):
    kept = matches.outcome[0, 0, matches.score >= threshold]
    return 2 * (kept == 1).sum() / ((kept != -1).sum() + matches.objects[0].sum())


def test_it_changes_less_than_the_best_and_is_no_worse_on_new_images():
    rng = np.random.default_rng(0)
    many = match_boxes(*detector(rng, 500), 1)
    best, chosen = [], []
    for _ in range(30):
        few = match_boxes(*detector(rng, 20), 1)
        found = choose_thresholds(few)
        assert found.low <= found.value <= found.high
        best.append(best_threshold(few))
        chosen.append(found.value)
    assert np.std(chosen) < 0.9 * np.std(best)
    assert np.mean([f1(many, t) for t in chosen]) > np.mean([f1(many, t) for t in best])


def test_classes_with_enough_objects_have_their_own():
    rng = np.random.default_rng(0)
    confident = detector(rng, 20, scores=((8, 1), (4, 4)))
    unsure = detector(rng, 20, scores=((4, 4), (1, 8)), label=1)
    rare = detector(rng, MIN_CLASS_OBJECTS // 3 - 1, label=2)
    predictions, truths = (
        list(chain(*parts)) for parts in zip(confident, unsure, rare, strict=True)
    )
    found = choose_thresholds(match_boxes(predictions, truths, 3))
    assert found.by_class[0] > found.value + 0.05
    assert found.by_class[1] < found.value - 0.05
    assert found.by_class[2] == found.value


@pytest.mark.parametrize("boxes", [[], [[50, 50, 60, 60]]])
def test_without_a_match_it_is_one_half(boxes):
    prediction = (boxes, [0.9] * len(boxes), [0] * len(boxes))
    found = choose_thresholds(match_boxes([prediction], [([[0, 0, 10, 10]], [0], [False])], 1))
    assert (found.value, found.by_class, found.low, found.high) == (0.5, (0.5,), 0.5, 0.5)
