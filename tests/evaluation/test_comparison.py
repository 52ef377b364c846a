"""Curves and effects of many trainings: against scipy's tests of the same numbers."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from headstart.evaluation.comparison import (
    ONE_SPLIT,
    ScoringPlan,
    TrainingResult,
    build_curves,
    compare_with_reference,
    summarise_comparison,
)
from headstart.metrics.confidence_intervals import Interval, wilson_interval

SPLITS = ScoringPlan(test_share=0.2)


def cell(method: str, seed: int, value: float, **more) -> TrainingResult:
    given = {
        "backbone": "b", "method": method, "seed": seed, "fraction": 1.0, "images": 80,
        "tested": 20, "score": wilson_interval(20 * value, 20), "seconds": 1.0,
    }  # fmt: skip
    return TrainingResult(**{**given, **more})


def drawn(method: str, right: np.ndarray, picks: np.ndarray) -> list[TrainingResult]:
    """A cell for every seed (row of ``right``), with its scores on the picked images."""
    return [
        cell(
            method, seed, 0.0, draws=tuple(row[picks].mean(axis=1)),
            score=Interval(value=float(row.mean()), low=0.0, high=1.0, method="wilson"),
        )
        for seed, row in enumerate(right)
    ]  # fmt: skip


def test_a_points_interval_is_nadeau_and_bengios_within_what_a_score_can_be() -> None:
    values = [0.9, 0.8, 0.95, 0.85]
    (curve,) = build_curves([cell("a", k, v) for k, v in enumerate(values)], SPLITS)
    error = np.std(values, ddof=1) * np.sqrt(1 / 4 + 0.2 / 0.8)
    (point,) = curve.points
    assert point.score.value == pytest.approx(0.875)
    assert point.score.low == pytest.approx(0.875 - stats.t.ppf(0.975, 3) * error)
    assert point.score.high == 1
    assert point.scores == tuple(values)
    low = (
        build_curves([cell("a", k, 1 - v) for k, v in enumerate(values)], SPLITS)[0].points[0].score
    )
    assert (low.low, low.high) == pytest.approx((0, 1 - point.score.low))


def test_without_spread_a_point_has_the_interval_of_its_test_part() -> None:
    (curve,) = build_curves([cell("a", k, 0.9) for k in range(3)], SPLITS)
    wanted = stats.binomtest(18, 20).proportion_ci(method="wilson")
    found = curve.points[0].score
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high))


def test_one_seed_on_one_test_part_is_the_paired_t_test_over_images() -> None:
    rng = np.random.default_rng(0)
    base, other = rng.normal(0.5, 0.3, 300), rng.normal(0.55, 0.3, 300)
    picks = rng.integers(300, size=(4000, 300))
    cells = [*drawn("a", base[None], picks), *drawn("b", other[None], picks)]
    (found,) = compare_with_reference(cells, ScoringPlan(units=300), "accuracy")
    wanted = stats.ttest_rel(other, base)
    low, high = wanted.confidence_interval()
    assert found.difference.value == pytest.approx((other - base).mean())
    assert (found.difference.low, found.difference.high) == pytest.approx((low, high), abs=3e-3)
    assert found.p_value == pytest.approx(wanted.pvalue, rel=0.2)


def test_seeds_on_one_test_part_add_their_own_spread() -> None:
    """With very many images only seeds are left: the paired t-test over seeds."""
    rng = np.random.default_rng(1)
    lift = np.asarray([0.02, 0.10, 0.07, 0.03])
    base = rng.normal(0.5, 0.01, (4, 2000))
    picks = rng.integers(2000, size=(200, 2000))
    cells = [*drawn("a", base, picks), *drawn("b", base + lift[:, None], picks)]
    (found,) = compare_with_reference(cells, ScoringPlan(units=2000), "accuracy")
    wanted = stats.ttest_1samp(lift, 0).confidence_interval()
    assert (found.difference.low, found.difference.high) == pytest.approx(wanted, rel=1e-6)


def test_splits_are_paired_whatever_the_order_of_the_cells() -> None:
    base, gaps = [0.5, 0.9, 0.7, 0.6], [0.03, 0.05, 0.04, 0.03]
    split = [(0, 1), (1, 0), (1, 1), (0, 0)]
    cells = [
        cell(m, seed, b + g * (m == "b"), fold=fold)
        for m in "ab"
        for (seed, fold), b, g in zip(split, base, gaps, strict=True)
    ]
    (found,) = compare_with_reference([cells[0], *cells[:3:-1], *cells[1:4]], SPLITS, "accuracy")
    error = np.std(gaps, ddof=1) * np.sqrt(1 / 4 + 0.2 / 0.8)
    assert found.difference.value == pytest.approx(np.mean(gaps))
    assert found.p_value == pytest.approx(2 * stats.t.sf(np.mean(gaps) / error, 3))
    assert found.significant


def test_telling_apart_needs_both_the_interval_and_the_corrected_p_value() -> None:
    base = np.asarray([0.80, 0.82, 0.79, 0.81, 0.80])
    gaps = np.asarray([0.03, 0.06, 0.03, 0.05, 0.05])
    names = {"a": base, "b": base + gaps, **{f"other{k}": base[::-1] + 0.001 * k for k in range(9)}}
    cells = [cell(m, k, float(v)) for m, values in names.items() for k, v in enumerate(values)]
    found = compare_with_reference(cells, SPLITS, "accuracy")[0]
    alone = 2 * stats.t.sf(gaps.mean() / (gaps.std(ddof=1) * np.sqrt(1 / 5 + 0.25)), 4)
    assert found.p_value == pytest.approx(10 * alone)
    assert found.difference.low > 0
    assert not found.significant
    assert found.sentence.endswith("not significantly different.")


def test_costs_and_rules_are_means_and_few_images_are_weighed_against_all() -> None:
    cells = [
        cell(
            "a", k, value, fraction=share, images=images + k, seconds=2.0 + k,
            cpu_seconds=4.0 + k, gpu_seconds=0.5 * k, parameters=10 * k, steps=7,
            rules={"r": 0.1 * k},
        )
        for k, (few, most) in enumerate([(0.6, 0.75), (0.4, 0.85)])
        for value, share, images in ((most, 1.0, 80), (few, 0.1, 8))
    ]  # fmt: skip
    (curve,) = build_curves(cells, SPLITS)
    few, most = curve.points
    assert (few.fraction, few.images, most.images) == (0.1, 8, 80)
    assert (most.seconds, most.cpu_seconds, most.gpu_seconds) == (2.5, 4.5, 0.25)
    assert (most.parameters, most.steps, dict(most.rules)) == (5, 7, {"r": pytest.approx(0.05)})
    (told,) = summarise_comparison([curve], (), "accuracy")
    assert "10% of the images reach 62% of the accuracy" in told  # 0.5 / 0.8
    assert told.endswith("with all images (0.500 instead of 0.800).")


def test_one_training_of_each_is_said_to_tell_nothing() -> None:
    cells = [cell("a", 0, 0.5), cell("b", 0, 0.9)]
    found = compare_with_reference(cells, SPLITS, "accuracy")
    assert np.isnan(found[0].p_value)
    assert not found[0].significant
    assert summarise_comparison(build_curves(cells, SPLITS), found, "accuracy")[0] == ONE_SPLIT
    more = [replace(one, seed=1) for one in cells]
    told = summarise_comparison(build_curves([*cells, *more], SPLITS), found, "accuracy")
    assert ONE_SPLIT not in told


def test_what_is_worse_is_told_apart_too_and_all_images_come_first() -> None:
    base, gaps = [0.8, 0.82, 0.79, 0.81], [0.10, 0.12, 0.11, 0.11]
    cells = [
        cell(m, k, b - g * (m == "b"), fraction=share)
        for share in (0.1, 1.0)
        for m in "ab"
        for k, (b, g) in enumerate(zip(base, gaps, strict=True))
    ]
    found = compare_with_reference(cells, SPLITS, "accuracy")
    assert all(one.significant and one.difference.high < 0 for one in found)
    first, second, *_ = summarise_comparison(build_curves(cells, SPLITS), found, "accuracy")
    assert first.startswith("b 0.695 against a 0.805 accuracy on all images: -0.110 [-0.")
    assert second.startswith("b 0.695 against a 0.805 accuracy on 10% of the images: -0.110 [-0.")
    assert first.endswith("], significantly different.")


def test_what_no_test_part_defines_is_undefined() -> None:
    cells = [cell(m, k, 0.5) for m in "ab" for k in range(3)]
    unknown = Interval(value=math.nan, low=math.nan, high=math.nan, method="none")
    cells[3:] = [replace(one, score=unknown) for one in cells[3:]]
    (found,) = compare_with_reference(cells, SPLITS, "accuracy")
    assert math.isnan(found.difference.value)
    assert not found.significant
    assert found.sentence.startswith("b undefined against a 0.500 accuracy on all images: undef")


def test_curves_have_their_backbones_names_where_there_are_several() -> None:
    named = {"file:x/own.pth@timm/y": "own.pth", "embedded/z": "embedded/z"}
    cells = [cell("probe", 0, 0.5, backbone=one) for one in named]
    assert [one.name for one in build_curves(cells, SPLITS)] == [
        f"{n} probe" for n in named.values()
    ]
    assert [one.name for one in build_curves(cells[:1], SPLITS)] == ["probe"]


def test_the_test_is_named() -> None:
    assert "Nadeau and Bengio" in str(SPLITS)
    assert "bootstrap over images" in str(ScoringPlan(units=9))
