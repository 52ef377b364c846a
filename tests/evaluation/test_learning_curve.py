"""The curve by images, against scikit-learn on the same images."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from headstart.data.splits import kfold
from headstart.errors import DataError
from headstart.evaluation.learning_curve import SHARES, _ranks, probe_curve
from headstart.training.logistic_regression import principal_basis


def clouds(n: int = 300, apart: float = 1.2) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    targets = np.arange(n) % 3
    return rng.normal(size=(n, 20)) + apart * np.eye(3, 20)[targets], targets


def test_all_images_are_scikit_learns_cross_validation() -> None:
    x, y = clouds()
    z = principal_basis(x).apply(x)
    correct = np.zeros(len(y), bool)
    for rows, test in kfold(y, 5, seed=0):
        # ours: mean loss + penalty/2 |w|²; with fewer images the penalty is for all of them
        strength = 1e-2 * len(y) / len(rows) * len(rows)
        fitted = LogisticRegression(C=1 / strength, tol=1e-8, max_iter=1000).fit(z[rows], y[rows])
        correct[test] = fitted.predict(z[test]) == y[test]
    [point] = probe_curve(x, y, penalty=1e-2, shares=(1.0,))
    assert point.images == 240
    assert point.score.value == pytest.approx(correct.mean(), abs=0.004)


def test_more_images_bring_more() -> None:
    x, y = clouds()
    found = probe_curve(x, y)
    assert len(found) == len(SHARES)
    assert [point.images for point in found] == [24, 48, 96, 168, 240]
    assert found[-1].score.value > found[0].score.value + 0.05


def test_several_labels_must_all_be_right() -> None:
    x, y = clouds()
    table = np.stack([y == 0, y != 2], axis=1).astype(np.intp)
    found = probe_curve(x, table, kind="multilabel")
    assert 0.5 < found[-1].score.value < 1


def test_shares_hold_whole_groups_and_every_class() -> None:
    rng = np.random.default_rng(3)
    groups = np.repeat(np.arange(30), 4)
    targets = (groups % 3).astype(np.intp)
    order = rng.permutation(len(groups))
    rank = _ranks(targets[order], groups[order], seed=0)
    for group in range(30):
        assert len(set(rank[groups[order] == group])) == 1
    for share in (0.05, 0.1, 0.5, 1.0):
        chosen = targets[order][rank < share - 1e-9]
        counts = np.bincount(chosen, minlength=3)
        assert counts.min() == counts.max() >= 4
    assert (rank < 1).all()


def test_a_share_without_a_class_is_left_out() -> None:
    """Two classes share every group but one: the first shares lack the second class's contrast."""
    x, y = clouds(30)
    found = probe_curve(x, y, shares=(0.01, 1.0))
    assert [point.images for point in found] == [3, 24]
    labels = np.ones((30, 1), np.intp)
    labels[::10] = 0
    assert probe_curve(x, labels, kind="multilabel", shares=(0.01,)) == ()


def test_a_class_in_one_group_cannot_be_cross_validated() -> None:
    x, y = clouds(12)
    with pytest.raises(DataError):
        probe_curve(x, y, groups=y)
