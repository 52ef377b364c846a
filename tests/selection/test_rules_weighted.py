"""Weighted classes: candidates are compared by what is optimised."""

import numpy as np

from headstart.selection.expected_gain import LEAST_GAIN
from headstart.selection.rules import Scorer

TARGETS = np.repeat([0, 1], (500, 10))
WEIGHTED = Scorer(kind="multiclass", targets=TARGETS, weighted=True)
PLAIN = Scorer(kind="multiclass", targets=TARGETS)


def test_always_the_frequent_class_does_not_win():
    """It has 10 errors, and the probe with weighted classes 40: it won by plain errors."""
    probe, constant = np.ones(510), (TARGETS == 0).astype(float)
    probe[:40] = 0
    assert PLAIN.gain(constant, probe, level=0.997).significant
    gain = WEIGHTED.gain(constant, probe, level=0.997)
    assert gain.interval.value < -0.4
    assert WEIGHTED.expected_gain(constant, probe) < LEAST_GAIN
    assert WEIGHTED.gain(probe, constant, level=0.95).interval.value > 0.4


def test_the_score_is_balanced_accuracy():
    constant = (TARGETS == 0).astype(float)
    assert WEIGHTED.score(constant).value == 0.5
    assert (WEIGHTED.measure, PLAIN.measure) == ("balanced accuracy", "accuracy")


def test_many_errors_of_the_frequent_class_alone_may_decide_nothing():
    """Twelve of 500: a perfect model gains 1.2 points of balanced accuracy at most."""
    values = np.ones(510)
    values[:12] = 0
    assert PLAIN.undecidable_reason(values, 0.997) == ""
    assert "too few to show" in WEIGHTED.undecidable_reason(values, 0.997)
    values[-10:] = 0
    assert WEIGHTED.undecidable_reason(values, 0.997) == ""
