"""Simple rules beside the number that a model is compared by."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from sklearn.dummy import DummyClassifier
from sklearn.metrics import average_precision_score, jaccard_score

from headstart.data.dataset import Dataset, Sample
from headstart.evaluation.classification import evaluate_probabilities
from headstart.evaluation.segmentation import MaskEvaluation
from headstart.evaluation.summary import primary_metric, rule_scores
from headstart.models.tasks import ClassificationTask


def _data(targets: list[Any], classes: tuple[str, ...], **more: Any) -> Dataset:
    samples = [
        Sample(image=np.full((2, 2, 3), k, np.uint8), target=t) for k, t in enumerate(targets)
    ]
    return Dataset(name="made", samples=tuple(samples), classes=classes, **more)


def test_the_majority_is_that_of_the_training_part() -> None:
    classes = ("ant", "bee", "cat")
    learned = ["bee", "bee", "cat", "ant"]
    truth = np.array([0, 1, 2, 1, 0, 1, 1])
    task = ClassificationTask(classes=classes, kind="multiclass")
    found = evaluate_probabilities(task, np.full((7, 3), 1 / 3), truth, names=("x",) * 7)
    rules = rule_scores(found, _data(learned, classes))
    dummy = DummyClassifier().fit(np.zeros((4, 1)), [classes.index(name) for name in learned])
    assert rules["majority class"] == pytest.approx(dummy.score(np.zeros((7, 1)), truth))
    assert rules["random guess"] == pytest.approx(1 / 3)
    assert primary_metric(found) == "accuracy"


def test_labels_are_held_against_an_order_by_chance() -> None:
    classes = ("ant", "bee")
    truth = np.array([[1, 0], [0, 0], [1, 1], [1, 0]])
    task = ClassificationTask(classes=classes, kind="multilabel")
    chances = np.random.default_rng(0).random((4, 2))
    found = evaluate_probabilities(task, chances, truth, names=("x",) * 4)
    rules = rule_scores(found, _data([("ant",), ()], classes, kind="multilabel"))
    expected = average_precision_score(truth, np.full((4, 2), 0.5), average="macro")
    assert rules == {"chance": pytest.approx(expected)}
    assert primary_metric(found) == "mean_average_precision"


def test_masks_are_held_against_one_class_everywhere() -> None:
    truth = np.random.default_rng(1).choice(3, p=[0.6, 0.3, 0.1], size=400)
    counts = np.zeros((2, 3, 3), dtype=np.int64)
    for k, half in enumerate((truth[:100], truth[100:])):
        counts[k, :, 2] = np.bincount(half, minlength=3)  # whatever the model answers
    found: Any = object.__new__(MaskEvaluation)
    object.__setattr__(found, "counts", SimpleNamespace(confusion=counts))
    best = max(jaccard_score(truth, np.full(400, k), average="macro") for k in range(3))
    rules = rule_scores(found, _data(["a"], ("a",)))
    assert rules == {"one class everywhere": pytest.approx(best)}
