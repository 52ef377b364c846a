"""Likely label errors, against a direct reading of the paper's equations."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_predict

from headstart.errors import HeadstartError, UnknownNameError, UsageError
from headstart.metrics.label_errors import (
    another_is_likelier,
    confident_label_errors,
    label_error_scores,
)


def drawn(seed: int, n: int = 40, k: int = 4) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.dirichlet(np.ones(k), n), rng.integers(0, k, n)


@given(seed=st.integers(0, 10_000))
def test_confident_errors_are_those_of_the_paper(seed: int) -> None:
    """Northcutt et al., equations 1 and 2, image by image."""
    chances, labels = drawn(seed, n=1 + seed % 40)  # also classes of one image, or none
    k = chances.shape[1]
    thresholds = [chances[labels == j, j].mean() if (labels == j).any() else 9.0 for j in range(k)]
    off = []
    for row, label in zip(chances, labels, strict=True):
        reached = [j for j in range(k) if row[j] >= thresholds[j] - 1e-12]
        best = max(reached, key=lambda j: row[j]) if reached else None
        off.append(best is not None and best != label and row.argmax() != label)
    assert confident_label_errors(chances, labels).tolist() == off


@given(seed=st.integers(0, 10_000))
def test_scores_are_their_formulas(seed: int) -> None:
    chances, labels = drawn(seed)
    for row, label, margin, confidence in zip(
        chances,
        labels,
        label_error_scores(chances, labels, measure="normalized_margin"),
        label_error_scores(chances, labels, measure="self_confidence"),
        strict=True,
    ):
        assert confidence == pytest.approx(1 - row[label])
        assert margin == pytest.approx((1 - row[label] + np.delete(row, label).max()) / 2)


@pytest.mark.parametrize("k", [2, 3, 10, 50])
@pytest.mark.parametrize("concentration", [0.1, 1.0, 20.0])
def test_counts_agree_with_cleanlab(k: int, concentration: float) -> None:
    cleanlab = pytest.importorskip("cleanlab")
    for seed in range(10):
        rng = np.random.default_rng(seed)
        labels = np.r_[np.arange(k), rng.integers(0, k, 200)]
        chances = rng.dirichlet(np.full(k, concentration), len(labels))
        chances = (chances + np.eye(k)[labels] * rng.random((len(labels), 1))) / 2
        chances /= chances.sum(axis=1, keepdims=True)
        expected = cleanlab.count.num_label_issues(
            labels, chances, estimation_method="off_diagonal"
        )
        assert confident_label_errors(chances, labels).sum() == expected


@pytest.mark.parametrize("k", [2, 3, 7, 100])
def test_equal_chances_flag_nothing(k: int) -> None:
    labels = np.arange(3 * k) % k
    chances = np.full((len(labels), k), 1 / k)
    assert not another_is_likelier(chances, labels).any()
    assert not confident_label_errors(chances, labels).any()
    table = np.eye(k, dtype=np.intp)[labels]
    assert not another_is_likelier(np.full(table.shape, 0.5), table).any()


@given(seed=st.integers(0, 10_000), k=st.integers(2, 12))
def test_the_most_probable_label_is_never_doubted(seed: int, k: int) -> None:
    chances, labels = drawn(seed, k=k)
    np.testing.assert_array_equal(
        another_is_likelier(chances, labels), chances.argmax(axis=1) != labels
    )
    table = np.eye(k, dtype=np.intp)[labels]
    np.testing.assert_array_equal(
        another_is_likelier(chances, table), label_error_scores(chances, table) > 0.5
    )


@given(share=st.floats(0.01, 0.99), n=st.integers(1, 50))
def test_equal_probabilities_reach_their_mean_whatever_the_rounding(share: float, n: int) -> None:
    chances = np.tile([share, 1 - share, 0.0], (n, 1))
    assert not confident_label_errors(chances, np.zeros(n, np.intp)).any()


def test_no_image_confidently_has_a_class_without_images() -> None:
    chances = np.array([[0.2, 0.1, 0.7], [0.1, 0.2, 0.7]])
    assert confident_label_errors(chances, np.array([0, 1])).tolist() == [False, False]


def test_labels_of_any_number_are_scored_one_by_one() -> None:
    scores = label_error_scores(np.array([[0.9, 0.2]]), np.array([[0, 1]]))
    assert scores.tolist() == [[0.9, 0.8]]


def test_planted_errors_come_first() -> None:
    """Out-of-fold probabilities of scikit-learn's logistic regression on two known clouds."""
    rng = np.random.default_rng(0)
    truth = np.repeat([0, 1], 100)
    features = rng.normal(size=(200, 5)) + 3.0 * truth[:, None]
    planted = rng.choice(200, 10, replace=False)
    labels = truth.copy()
    labels[planted] = 1 - labels[planted]
    chances = cross_val_predict(
        LogisticRegression(), features, labels, cv=5, method="predict_proba"
    )
    first = np.argsort(-label_error_scores(chances, labels))[:10]
    assert set(first) == set(planted)
    assert set(np.flatnonzero(confident_label_errors(chances, labels))) == set(planted)


def test_invalid_arguments_are_refused() -> None:
    chances, labels = drawn(0)
    with pytest.raises(UnknownNameError, match="self_confidence"):
        label_error_scores(chances, labels, measure="self-confidence")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="class indices"):
        confident_label_errors(np.array([[0.9, 0.2]]), np.array([[0, 1]]))
    with pytest.raises(HeadstartError):
        label_error_scores(chances, labels[1:])
