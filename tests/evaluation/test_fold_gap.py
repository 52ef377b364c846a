"""Folds that are easier than the test, by simulation."""

import numpy as np
import pytest

from headstart.data.dataset import Dataset, Sample
from headstart.evaluation.classification import evaluate_probabilities
from headstart.evaluation.fold_gap import explain_fold_gap
from headstart.methods.linear_probe import _cross_validation
from headstart.models.tasks import ClassificationTask

CLASSES = ("ant", "bee", "cat")
PIXEL = np.zeros((1, 1, 3), np.uint8)


def record_of(targets, right, groups=None):
    """The record of a probe whose held-out predictions are right or wrong."""
    samples = tuple(
        Sample(image=PIXEL, target=CLASSES[t], group=None if groups is None else groups[i])
        for i, t in enumerate(targets)
    )
    logits = np.eye(3)[np.where(right, targets, (targets + 1) % 3)]
    return _cross_validation(Dataset(samples=samples, classes=CLASSES), logits)


def evaluation_of(targets, right):
    chances = np.eye(3)[np.where(right, targets, (targets + 1) % 3)] * 0.8 + 0.2 / 3
    task = ClassificationTask(classes=CLASSES)
    return evaluate_probabilities(task, chances, targets, names=("a.png",) * len(targets))


def test_the_splits_by_place_of_the_issue_get_a_sentence():
    rng = np.random.default_rng(0)
    train, test = rng.integers(0, 3, 1500), rng.integers(0, 3, 600)
    record = record_of(train, np.arange(1500) < 0.89 * 1500)
    evaluation = evaluation_of(test, np.arange(600) < 0.838 * 600)
    (sentence,) = explain_fold_gap(record, evaluation)
    assert sentence.startswith("Cross-validation gives 89.")
    assert "pass --group-by with" in sentence
    better = evaluation_of(test, np.arange(600) < 0.95 * 600)
    assert explain_fold_gap(record, better) == ()


def test_a_sentence_by_chance_in_one_run_of_a_hundred_at_most():
    rng, alarms, n = np.random.default_rng(0), 0, 300
    recalls = np.array([0.95, 0.8, 0.6])
    for _ in range(n):
        train, test = rng.integers(0, 3, 200), rng.choice(3, 100, p=[0.2, 0.2, 0.6])
        record = record_of(train, rng.random(200) < recalls[train])
        # Twice the share of the hard class in the test alone makes no alarm.
        chances = rng.random(100) < recalls[test]
        alarms += bool(explain_fold_gap(record, evaluation_of(test, chances)))
    assert alarms / n <= 0.01


def test_groups_of_duplicates_do_not_silence_it():
    rng = np.random.default_rng(0)
    train = np.repeat([0, 1, 2], 400)
    groups = [f"{t}-{i // 4}" for i, t in enumerate(train)]
    record = record_of(train, rng.random(1200) < 0.97, groups)
    (sentence,) = explain_fold_gap(record, evaluation_of(train, rng.random(1200) < 0.6))
    assert "--group-by" in sentence
    assert "coarser than now" in sentence


@pytest.mark.parametrize("record", [{}, {"method": {"name": "finetune"}}])
def test_without_cross_validation_nothing_is_compared(record):
    targets = np.repeat([0, 1, 2], 5)
    assert explain_fold_gap(record, evaluation_of(targets, np.zeros(15, bool))) == ()
