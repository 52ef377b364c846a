import json
import math

import numpy as np
import pytest
from scipy.special import expit, softmax
from sklearn.metrics import f1_score

from headstart.data.splits import kfold
from headstart.errors import ModelFileError, UsageError
from headstart.metrics.classification import log_loss
from headstart.models.tasks import ClassificationTask
from headstart.training.penalty_search import Problem, search_penalty

ANIMALS = ClassificationTask(classes=("ant", "bee", "cat"))
LABELS = ClassificationTask(classes=("red", "round"), kind="multilabel")


def test_probabilities_equal_scipy():
    logits = np.random.default_rng(0).normal(scale=40, size=(50, 3))
    np.testing.assert_allclose(ANIMALS.probabilities(logits), softmax(logits, axis=1), atol=1e-15)
    np.testing.assert_allclose(
        LABELS.probabilities(logits[:, :2]), expit(logits[:, :2]), rtol=1e-12, atol=1e-300
    )


def test_labels_are_names():
    assert ANIMALS.labels(np.array([[0.1, 0.2, 0.7]])) == ["cat"]
    assert LABELS.labels(np.array([[0.9, 0.6], [0.1, 0.2]])) == [("red", "round"), ()]


def drawn(temperature, n=4000):
    """Logits that are too confident by a known factor."""
    rng = np.random.default_rng(1)
    logits = rng.normal(scale=2, size=(n, 3))
    targets = np.array([rng.choice(3, p=p) for p in softmax(logits, axis=1)])
    return logits * temperature, targets


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_temperature_finds_the_factor(temperature):
    logits, targets = drawn(temperature)
    assert ANIMALS.calibrated(logits, targets).temperature == pytest.approx(temperature, rel=0.1)


def test_temperature_is_the_minimum_of_the_log_loss():
    logits, targets = drawn(2.0, n=300)
    calibrated = ANIMALS.calibrated(logits, targets, spread=math.inf)
    best = log_loss(targets, calibrated.probabilities(logits))
    for other in calibrated.temperature * np.array([0.5, 0.9, 0.99, 1.01, 1.1, 2.0]):
        task = ClassificationTask(classes=ANIMALS.classes, temperature=float(other))
        assert best <= log_loss(targets, task.probabilities(logits))


def test_perfectly_separated_folds_do_not_ask_for_infinite_confidence():
    logits = 5.0 * np.eye(3)[[0, 1, 2]]
    assert ANIMALS.calibrated(logits, np.array([0, 1, 2])).temperature >= 0.05


def test_thresholds_have_the_best_f1():
    rng = np.random.default_rng(3)
    targets = (rng.random((200, 2)) < [0.5, 0.15]).astype(int)
    logits = 1.5 * targets - 2.5 + rng.normal(size=targets.shape)
    task = LABELS.calibrated(logits, targets)
    probabilities = task.probabilities(logits)
    ours = f1_score(targets, task.predicted(probabilities), average=None)
    for column in range(2):
        split_points = np.unique(probabilities[:, column])
        best = max(
            f1_score(targets[:, column], probabilities[:, column] >= split_point)
            for split_point in split_points
        )
        assert ours[column] == pytest.approx(best)


def test_few_positives_keep_one_half():
    targets = np.zeros((40, 2), dtype=int)
    targets[:9] = 1
    logits = np.random.default_rng(0).normal(size=targets.shape)
    assert LABELS.calibrated(logits, targets).thresholds == (0.5, 0.5)


def test_plain_values_come_back():
    task = ClassificationTask(
        classes=("a", "b"), kind="multilabel", temperature=2.5, thresholds=(0.5, 0.25)
    )
    assert ClassificationTask.from_dict(task.as_dict()) == task


@pytest.mark.parametrize(
    "change",
    [
        {"classes": ()},
        {"kind": "regression"},
        {"temperature": 0.0},
        {"temperature": float("nan")},
        {"temperature": "warm"},
        {"thresholds": (0.5,)},
        {"classes": None},
    ],
)
def test_values_that_make_no_sense_are_refused(change):
    with pytest.raises(ModelFileError, match="task"):
        ClassificationTask.from_dict(ANIMALS.as_dict() | change)


def test_few_images_answered_right_do_not_ask_for_any_confidence():
    task = ClassificationTask(classes=("a", "b"))
    targets = np.arange(30) % 2
    logits = np.where(np.eye(2)[targets] == 1, 1.5, -1.5)
    sure = task.calibrated(logits, targets, spread=math.inf).temperature
    careful = task.calibrated(logits, targets).temperature
    assert sure < 0.1
    assert 0.6 < careful < 1
    # The value minimises n * loss(T) + log(T)^2 / (2 * spread^2).
    grid = np.exp(np.linspace(-2, 2, 20_001))
    cost = 30 * np.log1p(np.exp(-3 / grid)) + np.log(grid) ** 2 / (2 * 0.25**2)
    assert careful == pytest.approx(grid[cost.argmin()], rel=1e-3)
    many = task.calibrated(np.tile(logits, (400, 1)), np.tile(targets, 400))
    assert many.temperature < 0.45


@pytest.mark.parametrize("kind", ["multiclass", "multilabel"])
@pytest.mark.parametrize("distance", [1.0, 3.0, 30.0])
def test_separable_folds_do_not_make_a_probe_certain_of_its_mistakes(kind, distance):
    """45 images that every fold classifies correctly; of the test images 1 of 9 is wrong."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(3, 200)) * distance
    train, test = np.arange(45) % 3, np.arange(900) % 3
    wrong = (test + (np.arange(900) % 9 == 0)) % 3
    features = centres[train] + rng.normal(size=(45, 200))
    unseen = centres[wrong] + rng.normal(size=(900, 200))
    table = np.eye(3, dtype=np.intp)[train] if kind == "multilabel" else train
    problem = Problem.of(table, n_classes=3, kind=kind)
    search = search_penalty(features, problem, kfold(train, 5))
    task = ClassificationTask(classes=ANIMALS.classes, kind=kind)
    calibrated = task.calibrated(search.held_out, table)
    assert search.held_out.argmax(axis=1).tolist() == train.tolist()
    assert calibrated.temperature > 0.5
    logits = unseen @ search.head.weight.T + search.head.bias
    expected = np.eye(3, dtype=np.intp)[test] if kind == "multilabel" else test
    uncertain = log_loss(expected, calibrated.probabilities(logits))
    assert uncertain < 1.2 * log_loss(expected, task.probabilities(logits))


# ------------------------------------------------------------------------- abstaining

SURE = ClassificationTask(classes=ANIMALS.classes, max_risk=0.05)


def test_without_a_wish_nothing_is_chosen_and_nothing_abstains():
    task = ANIMALS.calibrated(*drawn(1.0))
    assert task.selected is None
    assert task.abstains(task.probabilities(np.zeros((2, 3)))) is None


def test_answers_begin_where_the_risk_is_shown_to_be_low_enough():
    logits, targets = drawn(2.0)
    task = SURE.calibrated(logits, targets)
    chances = task.probabilities(logits)
    left_out = task.abstains(chances)
    wrong = task.predicted(chances) != targets
    assert 0.1 < left_out.mean() < 0.9
    assert wrong[~left_out].mean() == pytest.approx(task.selected.risk)
    assert task.selected.risk < task.selected.bound <= 0.05 < wrong.mean()
    assert chances.max(axis=1)[left_out].max() < chances.max(axis=1)[~left_out].min()


def test_groups_prove_less():
    logits, targets = drawn(1.0, n=1000)
    groups = np.arange(1000) // 10
    alone, together = (SURE.calibrated(logits, targets, groups=g).selected for g in (None, groups))
    assert together.provable > alone.provable


def test_a_wish_that_cannot_be_shown_to_hold_is_remembered_and_nothing_abstains():
    logits, targets = drawn(1.0, n=30)
    task = SURE.calibrated(logits, targets)
    assert task.max_risk == 0.05
    assert task.selected.threshold is None
    assert task.abstains(task.probabilities(logits)) is None


@pytest.mark.parametrize("n", [30, 4000])
def test_what_was_chosen_is_kept_in_the_file(n):
    task = SURE.calibrated(*drawn(1.0, n=n))
    assert ClassificationTask.from_dict(json.loads(json.dumps(task.as_dict()))) == task


def test_a_file_of_an_older_version_is_read():
    values = ANIMALS.as_dict()
    del values["max_risk"], values["selected"]
    assert ClassificationTask.from_dict(values) == ANIMALS


@pytest.mark.parametrize(
    "change", [{"selected": {"threshold": 0.5}}, {"max_risk": 2}, {"max_risk": "x"}]
)
def test_a_file_with_a_choice_that_makes_no_sense_is_refused(change):
    with pytest.raises(ModelFileError):
        ClassificationTask.from_dict(ANIMALS.as_dict() | change)


def test_a_wish_for_several_labels_is_refused():
    with pytest.raises(UsageError, match="multilabel"):
        ClassificationTask(classes=("red", "round"), kind="multilabel", max_risk=0.05)


def test_two_classes_abstain_by_the_likelier_one():
    rng = np.random.default_rng(4)
    logits = np.stack([np.zeros(3000), rng.normal(scale=3, size=3000)], axis=1)
    targets = (rng.random(3000) < expit(logits[:, 1])).astype(int)
    task = ClassificationTask(classes=("no", "yes"), max_risk=0.1).calibrated(logits, targets)
    chances = task.probabilities(logits)
    left_out = task.abstains(chances)
    assert left_out.any()
    assert set(task.predicted(chances)[~left_out]) == {0, 1}
