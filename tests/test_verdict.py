"""The words say what the intervals say, and nothing more."""

import numpy as np
import pytest
from scipy.special import expit

from headstart.baselines import Baseline
from headstart.evaluation import evaluate_probabilities
from headstart.intervals import (
    Difference,
    Interval,
    paired_proportion_difference,
    proportion_interval,
    wilson_interval,
)
from headstart.tasks.classification import Classification
from headstart.verdict import verdict

PAIR = Classification(classes=("ant", "bee"))


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
    """Verdict on a model that is right in so many pictures, beside a baseline."""
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
    task = Classification(classes=("red", "round"), kind="multilabel")
    logits = np.random.default_rng(0).normal(scale=2, size=(150, 2))
    targets = (logits + np.random.default_rng(1).normal(size=logits.shape) > 0).astype(int)
    assert verdict(judged(task, expit(logits), targets))[0].startswith("All labels right 0.")


def test_a_class_that_no_held_out_picture_shows_is_named():
    said = verdict(judged(PAIR, [[0.9, 0.1]] * 5, [0] * 5))
    assert said[-1] == "Nothing can be said about 'bee': no held-out picture shows it."


def test_a_lead_that_few_answers_carry_is_explained():
    lead = Difference(
        interval=Interval(value=0.5, low=0.1, high=0.9, method="test"), distinguishable=False
    )
    one = Baseline(name="rule", accuracy=wilson_interval(2, 4), lead=lead)
    sentence = verdict(judged(PAIR, [[0.9, 0.1]] * 4, [0] * 4, baselines=(one,)))[1]
    assert sentence.endswith("(their answers differ on too few of them).")
