"""Every metric against scikit-learn or a second, plainer calculation, and as repetition."""

from __future__ import annotations

import re
import warnings
from dataclasses import astuple
from typing import Any

import numpy as np
import pytest
import sklearn.metrics as sk
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve

from headstart.errors import UsageError
from headstart.metrics import classification as metrics

Case = dict[str, Any]
quick = settings(max_examples=60, deadline=None, derandomize=True)

LABEL_METRICS = {
    "accuracy": metrics.accuracy_score,
    "macro_f1": metrics.macro_f1_score,
}
CLASS_METRICS = {
    "precision": metrics.precision_scores,
    "recall": metrics.recall_scores,
    "f1": metrics.f1_scores,
}
MULTICLASS_ONLY = {"confusion": metrics.confusion_matrix}
SCORE_METRICS = {
    "auroc": metrics.auroc_scores,
    "macro_auroc": metrics.macro_auroc_score,
    "average_precision": metrics.average_precision_scores,
    "mean_average_precision": metrics.mean_average_precision_score,
    "log_loss": metrics.log_loss,
    "brier": metrics.brier_loss,
    "ece": metrics.expected_calibration_error,
    "ece_3": lambda t, p, sample_weight=None: metrics.expected_calibration_error(
        t, p, 3, sample_weight=sample_weight
    ),
    "reliability": lambda t, p, sample_weight=None: np.stack(
        astuple(metrics.reliability_curve(t, p, 4, sample_weight=sample_weight)), axis=-1
    ),
}


@st.composite
def cases(draw: st.DrawFn, *, multilabel: bool | None = None) -> Case:
    """Small data with ties, absent classes, single classes, single rows and zero weights."""
    seed = draw(st.integers(0, 2**32 - 1))
    n, k = draw(st.integers(1, 25)), draw(st.integers(1, 5))
    table = draw(st.booleans()) if multilabel is None else multilabel
    levels = draw(st.sampled_from([2, 4, 10**6]))  # few levels make many ties
    rng = np.random.default_rng(seed)
    raw = rng.integers(0, levels, (n, k)) + 1.0
    if table:
        target = rng.integers(0, 2, (n, k)) * (rng.random(k) < 0.8)
        chance = (raw - 1) / levels
        predicted = (chance > 0.5).astype(int)
    else:
        target = rng.integers(0, draw(st.integers(1, k)), n)
        chance = raw / raw.sum(axis=1, keepdims=True)
        predicted = rng.integers(0, draw(st.integers(1, k)), n)
    weights = rng.integers(0, 4, n)
    weights[rng.integers(n)] += 1
    return {"y": target, "p": chance, "z": predicted, "w": weights, "k": k, "multilabel": table}


def every_metric(case: Case, rows: Any = slice(None), weights: Any = None) -> dict[str, Any]:
    y, p, z, k = case["y"][rows], case["p"][rows], case["z"][rows], case["k"]
    result = {name: f(y, z, sample_weight=weights) for name, f in LABEL_METRICS.items()}
    result |= {name: f(y, z, k, sample_weight=weights) for name, f in CLASS_METRICS.items()}
    result |= {name: f(y, p, sample_weight=weights) for name, f in SCORE_METRICS.items()}
    if not case["multilabel"]:
        result["confusion"] = metrics.confusion_matrix(y, z, k, sample_weight=weights)
        result["balanced"] = metrics.balanced_accuracy_score(y, z, sample_weight=weights)
    return result


def same(a: dict[str, Any], b: dict[str, Any]) -> None:
    assert a.keys() == b.keys()
    for name, value in a.items():
        np.testing.assert_allclose(value, b[name], rtol=1e-9, atol=1e-12, err_msg=name)


def test_every_public_function_is_covered() -> None:
    covered = {*LABEL_METRICS.values(), *CLASS_METRICS.values(), *MULTICLASS_ONLY.values()}
    named = {f.__name__ for f in covered | set(SCORE_METRICS.values())}
    named |= {"balanced_accuracy_score", "Reliability", "reliability_curve"}
    assert set(metrics.__all__) <= named


@quick
@given(cases())
def test_a_weight_is_a_repetition(case: Case) -> None:
    rows = np.repeat(np.arange(len(case["y"])), case["w"])
    same(every_metric(case, weights=case["w"]), every_metric(case, rows))


@quick
@given(cases(), st.randoms(use_true_random=False))
def test_order_does_not_matter(case: Case, random: Any) -> None:
    order = list(range(len(case["y"])))
    random.shuffle(order)
    weights = case["w"]
    same(every_metric(case, weights=weights), every_metric(case, order, weights[order]))


@quick
@given(cases())
def test_rows_of_weights_are_separate_weightings(case: Case) -> None:
    table = np.stack([case["w"], np.ones(len(case["w"])), case["w"] * 0.3])
    together = every_metric(case, weights=table)
    for i, row in enumerate(table):
        same({name: value[i] for name, value in together.items()}, every_metric(case, weights=row))


def sk_or_nan(function: Any, *args: Any, **kwargs: Any) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return float(function(*args, **kwargs))
        except ValueError:
            return float("nan")


def weighed_rows(case: Case) -> tuple[Any, Any, Any, Any]:
    """Rows with weight: scikit-learn calls a class present when its weights are all zero."""
    keep = case["w"] > 0
    return case["y"][keep], case["z"][keep], case["p"][keep], case["w"][keep] * 0.7


@quick
@given(cases())
def test_label_metrics_agree_with_scikit_learn(case: Case) -> None:
    y, z, _, w = weighed_rows(case)
    options = {"sample_weight": w, "zero_division": np.nan}
    close = np.testing.assert_allclose
    close(metrics.accuracy_score(y, z, sample_weight=w), sk.accuracy_score(y, z, sample_weight=w))
    labels = list(range(case["k"]))
    for ours, theirs in [
        (metrics.precision_scores, sk.precision_score),
        (metrics.recall_scores, sk.recall_score),
        (metrics.f1_scores, sk.f1_score),
    ]:
        if case["multilabel"]:  # column by column: K = 1 is a table for us, not for scikit-learn
            expected = [theirs(y[:, j], z[:, j], pos_label=1, **options) for j in labels]
        else:
            expected = theirs(y, z, labels=labels, average=None, **options)
        close(ours(y, z, case["k"], sample_weight=w), expected)
    if not case["multilabel"]:
        expected = sk.f1_score(y, z, average="macro", **options)
        close(metrics.macro_f1_score(y, z, sample_weight=w), expected)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "A single label was found")
            expected = sk.confusion_matrix(y, z, labels=labels, sample_weight=w)
        close(metrics.confusion_matrix(y, z, case["k"], sample_weight=w), expected)
        expected = sk_or_nan(sk.balanced_accuracy_score, y, z, sample_weight=w)
        close(metrics.balanced_accuracy_score(y, z, sample_weight=w), expected)
    elif case["k"] > 1:
        expected = sk.f1_score(y, z, average="macro", **options)
        close(metrics.macro_f1_score(y, z, sample_weight=w), expected)


@quick
@given(cases())
def test_ranking_metrics_agree_with_scikit_learn(case: Case) -> None:
    y, _, p, w = weighed_rows(case)
    table = y if case["multilabel"] else np.eye(case["k"], dtype=int)[y]
    auroc, precision = [], []
    for holds, score in zip(table.T, p.T, strict=True):
        auroc.append(sk_or_nan(sk.roc_auc_score, holds, score, sample_weight=w))
        some = sk_or_nan(sk.average_precision_score, holds, score, sample_weight=w)
        precision.append(some if holds.any() else np.nan)
    close = np.testing.assert_allclose
    close(metrics.auroc_scores(y, p, sample_weight=w), auroc)
    close(metrics.average_precision_scores(y, p, sample_weight=w), precision)
    binary = not case["multilabel"] and case["k"] == 2
    defined = [auroc[1]] if binary else [a for a in auroc if not np.isnan(a)]
    expected = np.mean(defined) if defined else np.nan
    close(metrics.macro_auroc_score(y, p, sample_weight=w), expected)
    defined = [a for a in precision if not np.isnan(a)]
    expected = np.mean(defined) if defined else np.nan
    close(metrics.mean_average_precision_score(y, p, sample_weight=w), expected)


@quick
@given(cases())
def test_losses_agree_with_scikit_learn(case: Case) -> None:
    y, _, p, w = weighed_rows(case)
    if case["multilabel"]:
        # each cell is a binary event of its own
        cells, chances, each = y.ravel(), p.ravel(), np.repeat(w, case["k"])
        log = sk.log_loss(cells, chances, labels=[0, 1], sample_weight=each)
        brier = np.average((cells - chances) ** 2, weights=each)
    else:
        labels = list(range(case["k"]))
        single_class = case["k"] == 1
        log = 0 if single_class else sk.log_loss(y, p, labels=labels, sample_weight=w)
        options = {"labels": labels, "sample_weight": w, "scale_by_half": False}
        brier = 0 if single_class else sk.brier_score_loss(y, p, **options)
    np.testing.assert_allclose(metrics.log_loss(y, p, sample_weight=w), log, atol=1e-12)
    np.testing.assert_allclose(metrics.brier_loss(y, p, sample_weight=w), brier, atol=1e-12)


@quick
@given(cases(), st.integers(1, 20))
def test_calibration_agrees_with_scikit_learns_curve(case: Case, n_bins: int) -> None:
    rows = np.repeat(np.arange(len(case["y"])), case["w"])
    y, p = case["y"][rows], case["p"][rows]
    if case["multilabel"]:
        event, sure = y.ravel(), p.ravel()
    else:
        event, sure = (p.argmax(axis=1) == y).astype(int), p.max(axis=1)
    right, confidence = calibration_curve(event, sure, n_bins=n_bins, pos_label=1)
    curve = metrics.reliability_curve(case["y"], case["p"], n_bins, sample_weight=case["w"])
    filled = curve.weight > 0
    np.testing.assert_allclose(curve.accuracy[filled], right)
    np.testing.assert_allclose(curve.confidence[filled], confidence)
    assert np.isnan(curve.accuracy[~filled]).all()
    assert np.isnan(curve.confidence[~filled]).all()
    assert curve.weight.sum() == len(sure)
    error = (np.abs(right - confidence) * curve.weight[filled]).sum() / len(sure)
    result = metrics.expected_calibration_error(
        case["y"], case["p"], n_bins, sample_weight=case["w"]
    )
    np.testing.assert_allclose(result, error, atol=1e-12)


def test_one_image() -> None:
    assert metrics.accuracy_score([1], [1]) == 1
    assert metrics.balanced_accuracy_score([1], [0]) == 0
    assert metrics.macro_f1_score([1], [1]) == 1
    assert np.isnan(metrics.macro_auroc_score([1], [[0.2, 0.8]]))
    np.testing.assert_array_equal(metrics.average_precision_scores([1], [[0.2, 0.8]]), [np.nan, 1])
    assert metrics.brier_loss([1], [[1.0, 0.0]]) == 2
    assert metrics.expected_calibration_error([1], [[1.0, 0.0]]) == 1


def test_a_wrong_certainty_costs_much_but_not_infinity() -> None:
    loss = metrics.log_loss([0], [[0.0, 1.0]])
    assert loss == pytest.approx(-np.log(np.finfo(float).eps))
    assert metrics.log_loss([[1]], [[0.0]]) == pytest.approx(loss)


def test_all_ties_are_no_better_than_chance() -> None:
    flat = np.full((6, 2), 0.5)
    y = [0, 1, 0, 1, 1, 1]
    assert metrics.macro_auroc_score(y, flat) == 0.5
    assert metrics.average_precision_scores(y, flat)[1] == pytest.approx(4 / 6)


def test_single_precision_from_a_network_is_accepted() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(50, 10)).astype(np.float32)
    chance = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    result = metrics.log_loss(np.arange(50) % 10, chance)
    assert result.dtype == np.float64


HALF = [[0.5, 0.5], [0.5, 0.5]]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: metrics.accuracy_score([], []), "n and K at least 1"),
        (lambda: metrics.accuracy_score([0.5], [1]), "to be integers"),
        (lambda: metrics.accuracy_score(["cat"], ["cat"]), "to be integers"),
        (lambda: metrics.accuracy_score([0, -1], [0, 0]), "without a label"),
        (lambda: metrics.accuracy_score([[0, 2]], [[0, 1]]), "only 0 and 1"),
        (lambda: metrics.accuracy_score([0, 1], [0]), "shape of `target`"),
        (lambda: metrics.balanced_accuracy_score([[0, 1]], [[0, 1]]), "class indices"),
        (lambda: metrics.confusion_matrix([0, 2], [0, 0], 2), "labels of 2 classes, got labels"),
        (lambda: metrics.recall_scores([[0, 1]], [[0, 1]], 3), "labels of 3 classes"),
        (lambda: metrics.log_loss([0, 2], HALF), "labels of 2 classes"),
        (lambda: metrics.log_loss([0], HALF), "one row for each image"),
        (lambda: metrics.log_loss([0, 1], [0.5, 0.5]), "shape \\(n, K\\)"),
        (lambda: metrics.log_loss([[0], [1]], HALF), "shape \\(n, K\\)"),
        (lambda: metrics.log_loss([0, 1], [[3.0, -2.0], [0.5, 0.5]]), "softmax"),
        (lambda: metrics.log_loss([0, 1], [[np.nan, 1.0], [0.5, 0.5]]), "from 0 to 1, got nan"),
        (lambda: metrics.log_loss([0, 1], [[0.9, 0.9], [0.5, 0.5]]), "add up to 1"),
        (lambda: metrics.brier_loss([0, 1], HALF, sample_weight=[1]), "one weight for each"),
        (lambda: metrics.brier_loss([0, 1], HALF, sample_weight=[0, 0]), "sum above 0"),
        (lambda: metrics.brier_loss([0, 1], HALF, sample_weight=[2, -1]), "sum above 0"),
        (lambda: metrics.brier_loss([0, 1], HALF, sample_weight=[np.nan, 1]), "finite"),
        (lambda: metrics.brier_loss([0, 1], HALF, sample_weight=[np.inf, 1]), "finite"),
        (lambda: metrics.reliability_curve([0, 1], HALF, 0), "`n_bins`"),
    ],
)
def test_what_does_not_fit_is_refused(call: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        call()
    assert str(caught.value).startswith("Expected ")
    assert re.search(r"\. [A-Z]\w+ .*\.$", str(caught.value)), "an imperative sentence follows"
