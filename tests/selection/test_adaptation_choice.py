"""The choice between models without labels: what is accepted, and which one."""

from dataclasses import replace

import numpy as np

from headstart.metrics.target_free import EmbeddedRisk
from headstart.selection.adaptation_choice import (
    TargetScores,
    choose_adapted,
    information_gain,
    list_objections,
    score_target,
)


def predictions(sharpness: float, *, m: int = 90, k: int = 3, noise: float = 1.0) -> np.ndarray:
    rng = np.random.default_rng(0)
    z = sharpness * (np.eye(k)[np.arange(m) % k] + noise * rng.normal(size=(m, k)))
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def scored(p: np.ndarray, errors: float | None = None) -> TargetScores:
    risk = None
    if errors is not None:
        terms = (np.arange(100) < 100 * errors).astype(float)
        risk = EmbeddedRisk(float(terms.mean()), terms)
    return score_target(p, p, risk)


def objections(start: TargetScores, adapted: TargetScores) -> str:
    return " ".join(list_objections(start, adapted, information_gain(start, adapted)))


def test_a_model_that_is_better_in_everything_is_accepted() -> None:
    start, better = scored(predictions(1.0), 0.4), scored(predictions(6.0, noise=0.2), 0.3)
    assert objections(start, better) == ""


def test_the_same_model_and_a_worse_one_are_not() -> None:
    start, worse = scored(predictions(3.0)), scored(predictions(1.0))
    for other in (start, worse):
        assert "mutual information is not significantly higher" in objections(start, other)
        assert "Most criteria of the predictions are not better" in objections(start, other)


def test_a_confident_model_with_one_class_is_not() -> None:
    start, same = scored(predictions(2.0)), scored(np.tile(np.eye(3)[:1], (90, 1)))
    assert same.values["mean_entropy"] < start.values["mean_entropy"]
    assert "mutual information" in objections(start, same)


def test_more_errors_on_the_weighted_source_are_an_objection() -> None:
    start, better = scored(predictions(1.0), 0.1), scored(predictions(6.0, noise=0.2), 0.4)
    assert objections(start, better).startswith("The estimated error on the target is signif")
    slightly = scored(predictions(6.0, noise=0.2), 0.11)  # not significantly
    assert objections(start, slightly) == ""


def test_an_estimate_without_source_images_near_the_target_is_not_used() -> None:
    start, better = scored(predictions(1.0), 0.1), scored(predictions(6.0, noise=0.2), 0.4)
    for far in (start, better):
        risk = far.risk._replace(mean_weight=0.4)
        other = replace(far, risk=risk)
        pair = (other, better) if far is start else (start, other)
        assert objections(*pair) == ""
    worse = replace(start, risk=start.risk._replace(value=-9.0, mean_weight=0.4))
    assert choose_adapted([worse, better]) == 1  # its estimate would win


def test_the_gain_follows_the_seed_and_contains_its_value() -> None:
    start, better = scored(predictions(1.0)), scored(predictions(3.0))
    gain = information_gain(start, better, seed=1)
    assert gain == information_gain(start, better, seed=1)
    assert gain.low <= gain.value <= gain.high
    assert gain.low != information_gain(start, better, seed=2).low


def test_the_best_mean_rank_wins_and_ties_go_to_the_first() -> None:
    models = [scored(predictions(s, noise=0.2), 0.5 - s / 20) for s in (1.0, 6.0, 3.0)]
    assert choose_adapted(models) == 1
    assert choose_adapted([models[0], models[0]]) == 0
    assert choose_adapted(models[:1]) == 0
