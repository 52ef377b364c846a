"""Box metrics against pycocotools, as repetition, in any order, and in closed form."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from headstart.errors import UsageError
from headstart.metrics import detection as metrics
from headstart.metrics.confidence_intervals import bootstrap_intervals

Case = tuple[list[Any], list[Any], int]
quick = settings(max_examples=25, deadline=None, derandomize=True)
seeds = st.integers(0, 2**32 - 1)
SIDES = (12.0, 50.0, 150.0)  # one of each size


def random_case(
    rng: np.random.Generator, *, ties: str = "none", images: int = 6, most: int = 9
) -> Case:
    """Images with objects of every size, some hard, and boxes near them and elsewhere.

    Coordinates are whole, so that overlaps fall on thresholds and areas on limits. No score is tied
    ("none"), or scores are tied within and between images ("all").
    """
    n_classes = int(rng.integers(1, 4))
    predictions, truths = [], []
    for at in range(images):
        k, d = (int(rng.integers(0, m)) * int(rng.random() < 0.8) for m in (6, most))
        corner = rng.integers(0, 200, (k, 2))
        side = np.rint(rng.choice(SIDES, (k, 1)) * rng.uniform(0.5, 1.5, (k, 2)))
        side[rng.random(k) < 0.2] = 32  # the limit of small and medium
        boxes = np.hstack([corner, corner + side]).astype(float)
        near = boxes[rng.integers(0, k, d)] if k else rng.integers(0, 90, (d, 4)).astype(float)
        result = near + rng.integers(-5, 6, (d, 4)) * (rng.random((d, 1)) < 0.7)
        result[:, 2:] = np.maximum(result[:, 2:], result[:, :2])
        score = rng.integers(1, 4, d) / 4
        if ties == "none":
            score = score + np.arange(d) / 1000 + at / 100_000
        truths.append((boxes, rng.integers(0, n_classes, k), rng.random(k) < 0.2))
        predictions.append((result, score, rng.integers(0, n_classes, d)))
    return predictions, truths, n_classes


def coco(predictions: list[Any], truths: list[Any], n_classes: int) -> COCOeval:
    """The reference, evaluated and accumulated."""

    def flat(boxes: Any) -> list[list[float]]:
        table = np.asarray(boxes, dtype=float).reshape(-1, 4)
        return list(np.hstack([table[:, :2], table[:, 2:] - table[:, :2]]).tolist())

    objects: list[Any] = []
    result: list[Any] = []
    for at, (boxes, labels, hard) in enumerate(truths):
        for box, label, crowd in zip(flat(boxes), labels, hard, strict=True):
            place = {"image_id": at, "category_id": int(label), "bbox": box}
            area = {"area": box[2] * box[3], "iscrowd": int(crowd), "id": len(objects) + 1}
            objects.append(place | area)
    for at, (boxes, scores, labels) in enumerate(predictions):
        for box, score, label in zip(flat(boxes), scores, labels, strict=True):
            place = {"image_id": at, "category_id": int(label), "bbox": box}
            result.append(place | {"score": float(score)})
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {
            "images": [{"id": at} for at in range(len(truths))],
            "categories": [{"id": label} for label in range(n_classes)],
            "annotations": objects,
        }
        truth.createIndex()
        answers = truth.loadRes(result) if result else COCO()
        reference = COCOeval(truth, answers, "bbox")
        reference.evaluate()
        reference.accumulate()
        reference.summarize()
    return reference


def unknown(values: Any) -> Any:
    """Write the reference's -1 as NaN."""
    return np.where(np.asarray(values) == -1, np.nan, values)


def every_number(matches: metrics.Matches, weights: Any = None) -> dict[str, Any]:
    result: dict[str, Any] = dict(metrics.box_scores(matches, weights))
    result["table"] = metrics.average_precisions(matches, weights)
    result["classes"] = metrics.per_class_ap(matches, weights)
    result["recall1"] = metrics.average_recalls(matches, weights, max_boxes=1)
    result["objects"] = metrics.object_counts(matches, weights)
    return result


def one_number(matches: metrics.Matches, weights: Any = None) -> dict[str, Any]:
    curve = metrics.pr_curve(matches, 0, 0.5, weights)
    best = metrics.best_threshold(matches, weights)
    return {"precision": curve.precision, "score": curve.score, "best": best}


def close(result: dict[str, Any], expected: dict[str, Any]) -> None:
    for name, value in expected.items():
        np.testing.assert_allclose(
            result[name], value, rtol=0, atol=1e-9, equal_nan=True, err_msg=name
        )


# ---------------------------------------------------------------------- against the reference


def check_against_coco(case: Case) -> None:
    reference, matches = coco(*case), metrics.match_boxes(*case)
    precision, recall = (unknown(reference.eval[name]) for name in ("precision", "recall"))
    table = metrics.average_precisions(matches)
    np.testing.assert_allclose(
        table, np.moveaxis(precision.mean(axis=1)[..., 2], -1, 0).transpose(0, 1, 2), atol=1e-9
    )
    for row, size in enumerate(metrics.SIZES):
        for column, most in enumerate((1, 10, 100)):
            mine = metrics.average_recalls(matches, size=size, max_boxes=most)
            np.testing.assert_allclose(mine, recall[:, :, row, column].mean(axis=0), atol=1e-9)
    scores = metrics.box_scores(matches)
    stats = dict(zip(scores, reference.stats[[0, 1, 2, 3, 4, 5, 8]], strict=True))
    close(scores, {name: unknown(value) for name, value in stats.items()})
    for label in range(case[2]):
        for at, iou in ((0, 0.5), (9, 0.95)):
            curve = metrics.pr_curve(matches, label, iou)
            np.testing.assert_allclose(curve.precision, precision[at, :, label, 0, 2], atol=1e-9)
            defined = ~np.isnan(curve.score)
            raw = reference.eval["scores"][at, :, label, 0, 2]
            np.testing.assert_allclose(curve.score[defined], raw[defined], atol=1e-9)
            assert (raw[~defined] <= 0).all()


@pytest.mark.parametrize("seed", range(40))
def test_every_number_is_that_of_pycocotools(seed: int) -> None:
    check_against_coco(random_case(np.random.default_rng(seed)))


@pytest.mark.parametrize("seed", range(2))
def test_boxes_beyond_the_hundred_best_do_not_count(seed: int) -> None:
    case = random_case(np.random.default_rng(seed), images=2, most=2)
    rng = np.random.default_rng(seed)
    truth = np.array([[10.0, 10, 60, 60], [100, 100, 180, 180]])
    crowd = np.repeat(truth, 80, axis=0) + rng.integers(-9, 10, (160, 4))
    scores = rng.permutation(160) / 160
    case[0].append((crowd, scores, np.zeros(160, dtype=int)))
    case[1].append((truth, [0, 0], [False, False]))
    check_against_coco(case)
    assert (metrics.match_boxes(*case).image == 2).sum() == 100


@pytest.mark.parametrize("objects", [10, 50, 100])
def test_recalls_are_reached_to_the_last_bit(objects: int) -> None:
    """Found / objects falls on the grid of recalls or a rounding beside it, precision declines."""
    box, rows = np.array([[0.0, 0, 10, 10], [20, 0, 30, 10]]), range(objects)
    predictions = [(box, [1 - row / objects, 1 - (row + 0.5) / objects], [0, 0]) for row in rows]
    check_against_coco((predictions, [(box[:1], [0], [False])] * objects, 1))


def test_of_equal_overlaps_the_last_object_is_taken() -> None:
    """The one taken decides what is left to the second box."""
    truth = [([[0, 0, 20, 10], [10, 0, 30, 10]], [0, 0], [False, False])]
    for left in (0, 10):
        result = [([[5, 0, 25, 10], [left, 0, left + 20, 10]], [0.9, 0.8], [0, 0])]
        check_against_coco((result, truth, 1))
        second = metrics.match_boxes(result, truth, 1).outcome[0, 0, 1]
        assert second == (left == 0)


def test_the_cases_hold_what_they_promise() -> None:
    cases = [random_case(np.random.default_rng(seed)) for seed in range(40)]
    pairs = [pair for case in cases for pair in zip(case[0], case[1], strict=True)]
    assert any(len(p[0]) and not len(t[0]) for p, t in pairs)
    assert any(len(t[0]) and not len(p[0]) for p, t in pairs)
    outcomes = [metrics.match_boxes(*case).outcome for case in cases]
    for value in (-1, 0, 1):
        assert all((result == value).any() for result in outcomes[:10])
    assert (
        sum(bool(np.isnan(metrics.box_scores(metrics.match_boxes(*c))["map_large"])) for c in cases)
        < 20
    )


# --------------------------------------------------------------------- weights, order, batches


@quick
@given(seeds)
def test_integer_weights_are_repetitions(seed: int) -> None:
    rng = np.random.default_rng(seed)
    predictions, truths, n_classes = random_case(rng, ties="all")
    weights = rng.integers(0, 4, len(truths))
    weights[0] += 1
    rows = np.repeat(np.arange(len(truths)), weights)
    repeated = metrics.match_boxes(
        [predictions[row] for row in rows], [truths[row] for row in rows], n_classes
    )
    once = metrics.match_boxes(predictions, truths, n_classes)
    close(every_number(once, weights), every_number(repeated))
    close(one_number(once, weights), one_number(repeated))


@quick
@given(seeds)
def test_repetitions_are_those_of_pycocotools(seed: int) -> None:
    """Copies are equal, so that their order cannot matter where nothing else is tied."""
    rng = np.random.default_rng(seed)
    predictions, truths, n_classes = random_case(rng, images=4)
    predictions = [
        (b, rng.permutation(len(s)) + at / 9, c) for at, (b, s, c) in enumerate(predictions)
    ]
    weights = np.array([1, 0, 3, 2])
    rows = np.repeat(np.arange(4), weights)
    stats = coco([predictions[row] for row in rows], [truths[row] for row in rows], n_classes).stats
    result = metrics.box_scores(metrics.match_boxes(predictions, truths, n_classes), weights)
    close(
        {"map": result["map"], "ar": result["recall100"]},
        {"map": unknown(stats[0]), "ar": unknown(stats[8])},
    )


@quick
@given(seeds)
def test_rows_of_weights_stand_alone(seed: int) -> None:
    rng = np.random.default_rng(seed)
    matches = metrics.match_boxes(*random_case(rng, ties="all"))
    weights = rng.integers(0, 3, (5, matches.n_images)) + np.eye(5, matches.n_images)
    together = every_number(matches, weights)
    for row, weight in enumerate(weights):
        close({name: value[row] for name, value in together.items()}, every_number(matches, weight))


@quick
@given(seeds)
def test_the_order_of_images_does_not_matter(seed: int) -> None:
    rng = np.random.default_rng(seed)
    predictions, truths, n_classes = random_case(rng, ties="all", images=10)
    order = rng.permutation(10)
    original = metrics.match_boxes(predictions, truths, n_classes)
    other = metrics.match_boxes(
        [predictions[i] for i in order], [truths[i] for i in order], n_classes
    )
    for each in (every_number, one_number):
        for name, value in each(original).items():
            np.testing.assert_array_equal(value, each(other)[name], err_msg=name)


@quick
@given(seeds)
def test_boxes_of_equal_scores_share_a_threshold(seed: int) -> None:
    """A plain reading of the definition, threshold by threshold, on scores with many ties."""
    rng = np.random.default_rng(seed)
    matches = metrics.match_boxes(*random_case(rng, ties="all"))
    weights = rng.integers(0, 3, matches.n_images) + (np.arange(matches.n_images) == 0)
    table = metrics.average_precisions(matches, weights)
    for size, iou, label in np.ndindex(*table.shape):
        objects = float(matches.objects[size, label] @ weights)
        own = (matches.label == label) & (weights[matches.image] > 0)
        points = []
        for threshold in np.unique(matches.score[own]):
            found = own & (matches.score >= threshold)
            outcome, count = matches.outcome[size, iou, found], weights[matches.image[found]]
            right, false = count[outcome == 1].sum(), count[outcome == 0].sum()
            if objects and right:
                points.append((right / objects, right / (right + false)))
        best = [
            max((p for r, p in points if r >= at), default=0.0) for at in np.linspace(0, 1, 101)
        ]
        expected = np.mean(best) if objects else np.nan
        np.testing.assert_allclose(table[size, iou, label], expected, atol=1e-9)
        if size == 0 and iou == 0:
            curve = metrics.pr_curve(matches, label, weights=weights)
            np.testing.assert_allclose(curve.precision.mean(), expected, atol=1e-9)


@quick
@given(seeds)
def test_mirrored_images_have_the_same_numbers(seed: int) -> None:
    predictions, truths, n_classes = random_case(np.random.default_rng(seed), ties="all")

    def mirrored(parts: list[Any]) -> list[Any]:
        flip = np.array([[-1, 1, -1, 1]])
        return [((boxes * flip + [[500, 0, 500, 0]])[:, [2, 1, 0, 3]], *r) for boxes, *r in parts]

    original = metrics.match_boxes(predictions, truths, n_classes)
    other = metrics.match_boxes(mirrored(predictions), mirrored(truths), n_classes)
    close(every_number(original), every_number(other))


@pytest.mark.parametrize("left", [0, 300])
def test_a_tie_does_not_depend_on_where_the_object_lies(left: int) -> None:
    """A right and a wrong box of one score: precision 0.5 at every recall."""
    found = [answers((left, 0, 0.7)), answers((100, 0, 0.7))]
    matches = metrics.match_boxes(found, [image((left, 0)), image()], 1)
    assert metrics.average_precisions(matches)[0, 0, 0] == pytest.approx(0.5)


def test_order_matters_to_a_stable_sort_on_these_cases() -> None:
    """Else the test above could not fail."""
    changed = 0
    for seed in range(10):
        predictions, truths, n = random_case(np.random.default_rng(seed), ties="all", images=10)
        changed += (
            coco(predictions, truths, n).stats[0]
            != coco(predictions[::-1], truths[::-1], n).stats[0]
        )
    assert changed


def test_blocks_of_resamples_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    matches = metrics.match_boxes(*random_case(np.random.default_rng(3)))
    weights = np.random.default_rng(0).integers(1, 4, (50, matches.n_images))
    expected = metrics.average_precisions(matches, weights)
    monkeypatch.setattr(metrics, "_BLOCK", 1)
    np.testing.assert_array_equal(metrics.average_precisions(matches, weights), expected)


def test_the_bootstrap_takes_the_scores() -> None:
    matches = metrics.match_boxes(*random_case(np.random.default_rng(5), images=30))
    interval = bootstrap_intervals(
        lambda w: metrics.box_scores(matches, w)["map"], 30, n_resamples=200, vectorized=True
    )[0]
    assert 0 <= interval.low < interval.value < interval.high <= 1


# ------------------------------------------------------------------------------- closed forms


def image(*boxes: tuple[float, ...], hard: tuple[bool, ...] = ()) -> tuple[Any, Any, Any]:
    """Objects (left, label), 10 pixels wide and high."""
    corners = [[left, 0, left + 10, 10] for left, _ in boxes]
    return corners, [int(label) for _, label in boxes], hard or (False,) * len(boxes)


def answers(*boxes: tuple[float, int, float]) -> tuple[Any, Any, Any]:
    """Boxes (left, label, score) of the same size."""
    corners, labels, _ = image(*((left, label) for left, label, _ in boxes))
    return corners, [score for _, _, score in boxes], labels


def test_precision_by_hand() -> None:
    result = [answers((0, 0, 0.9), (90, 0, 0.8), (20, 0, 0.7))]
    matches = metrics.match_boxes(result, [image((0, 0), (20, 0))], 1)
    curve = metrics.pr_curve(matches, 0)
    np.testing.assert_allclose(curve.precision, np.r_[np.ones(51), np.full(50, 2 / 3)])
    np.testing.assert_allclose(curve.score, np.r_[np.full(51, 0.9), np.full(50, 0.7)])
    assert float(metrics.per_class_ap(matches)[0]) == pytest.approx(curve.precision.mean())


def test_a_hard_object_neither_helps_nor_hurts() -> None:
    result = [answers((0, 0, 0.9), (50, 0, 0.8), (51, 0, 0.7))]
    with_hard = metrics.match_boxes(result, [image((0, 0), (50, 0), hard=(False, True))], 1)
    assert float(metrics.box_scores(with_hard)["map"]) == pytest.approx(1)
    assert metrics.object_counts(with_hard)[0] == 1


def test_without_objects_nothing_is_defined() -> None:
    matches = metrics.match_boxes([answers((0, 0, 0.9))], [image()], 1)
    assert all(np.isnan(value) for value in metrics.box_scores(matches).values())
    assert np.isnan(metrics.pr_curve(matches, 0).precision).all()


def test_without_boxes_every_number_is_zero() -> None:
    matches = metrics.match_boxes([answers()], [image((0, 0))], 1)
    scores = metrics.box_scores(matches)
    assert scores["map"] == scores["map_small"] == scores["recall100"] == 0
    assert metrics.pr_curve(matches, 0).precision.max() == 0
    assert metrics.best_threshold(matches) == 0.5


@quick
@given(seeds)
def test_the_best_threshold_is_best_of_all(seed: int) -> None:
    rng = np.random.default_rng(seed)
    predictions, truths, n_classes = random_case(rng, ties="all")
    best = metrics.best_threshold(metrics.match_boxes(predictions, truths, n_classes))

    def f1(at: float) -> float:
        confident = [tuple(np.asarray(part)[p[1] >= at] for part in p) for p in predictions]
        outcome = metrics.match_boxes(confident, truths, n_classes).outcome[0, 0]
        objects = sum(int((~np.asarray(hard)).sum()) for _, _, hard in truths)
        return float(2 * (outcome == 1).sum() / max(1, (outcome != -1).sum() + objects))

    others = {at: f1(at) for at in np.unique(np.concatenate([p[1] for p in predictions]))}
    if max(others.values(), default=0) > 0:
        assert best == max(at for at, value in others.items() if value == max(others.values()))
    else:
        assert best == 0.5


# ---------------------------------------------------------------------------------- confusion


def test_confusion_by_hand() -> None:
    """Right, wrong class, missed, false alarm, below the score, on a hard object."""
    truth = image((0, 0), (20, 1), (40, 1), (60, 0), hard=(False, False, False, True))
    result = answers((1, 0, 0.9), (20, 0, 0.9), (80, 1, 0.9), (40, 1, 0.4), (60, 1, 0.9))
    table = metrics.box_confusion([result], [truth], 2, score=0.5)
    np.testing.assert_array_equal(table, [[1, 0, 0], [1, 0, 1], [0, 1, 0]])


def test_confusion_pairs_the_largest_overlap_first() -> None:
    """Of equal ones that of the right class, whatever the scores."""
    result = answers((3, 1, 0.99), (1, 1, 0.7), (1, 0, 0.6))
    table = metrics.box_confusion([result], [image((0, 0))], 2, score=0.6)
    np.testing.assert_array_equal(table, [[1, 0, 0], [0, 0, 0], [0, 2, 0]])


@quick
@given(seeds)
def test_confusion_counts_everything_once(seed: int) -> None:
    predictions, truths, n_classes = random_case(np.random.default_rng(seed), ties="all")
    truths = [(boxes, labels, np.zeros(len(labels), dtype=bool)) for boxes, labels, _ in truths]
    table = metrics.box_confusion(predictions, truths, n_classes, score=0.5)
    named = np.concatenate([labels[scores >= 0.5] for _, scores, labels in predictions])
    true_labels = np.concatenate([labels for _, labels, _ in truths])
    np.testing.assert_array_equal(
        table[:, :-1].sum(axis=0), np.bincount(named, minlength=n_classes)
    )
    np.testing.assert_array_equal(
        table[:-1].sum(axis=1), np.bincount(true_labels, minlength=n_classes)
    )
    parts = [
        metrics.box_confusion([p], [t], n_classes, score=0.5)
        for p, t in zip(predictions, truths, strict=True)
    ]
    np.testing.assert_array_equal(table, np.sum(parts, axis=0))


# ----------------------------------------------------------------------------------- failures

GOOD = answers((0, 0, 0.9))


@pytest.mark.parametrize(
    ("predictions", "truths"),
    [
        ([GOOD], []),
        ([], []),
        ([([[0, 0, 9, 9]], [0.9], [1])], [image()]),
        ([([[0, 0, 9, 9]], [0.9], [-1])], [image()]),
        ([([[0, 0, 9, 9]], [0.9], [0.0])], [image()]),
        ([([[0, 0, 9, 9]], [], [0])], [image()]),
        ([([[0, 0, 9, 9]], [np.nan], [0])], [image()]),
        ([([[9, 0, 0, 9]], [0.9], [0])], [image()]),
        ([([[0, 0, 9, np.inf]], [0.9], [0])], [image()]),
        ([([[0, 0, 9]], [0.9], [0])], [image()]),
        ([GOOD], [([[0, 0, 9, 9]], [0], [])]),
        ([GOOD], [([[0, 0, 9, 9]], [1], [False])]),
    ],
)
def test_what_does_not_fit_is_refused(predictions: list[Any], truths: list[Any]) -> None:
    with pytest.raises(UsageError, match=r"Expected .* got .*\. [A-Z]"):
        metrics.match_boxes(predictions, truths, 1)


@pytest.mark.parametrize(
    "ask",
    [
        lambda m: metrics.box_scores(m, [1, 1]),
        lambda m: metrics.average_precisions(m, sizes=("huge",)),
        lambda m: metrics.per_class_ap(m, iou=0.52),
        lambda m: metrics.average_recalls(m, max_boxes=0),
        lambda m: metrics.pr_curve(m, 1),
        lambda m: metrics.pr_curve(m, 0, weights=[[1]]),
        lambda m: metrics.best_threshold(m, [[1]]),
        lambda m: metrics.box_confusion([GOOD], [image()], 1, 0.5, iou=0),
    ],
)
def test_questions_without_an_answer_are_refused(ask: Any) -> None:
    with pytest.raises(UsageError, match=r"Expected .* got .*\. [A-Z]"):
        ask(metrics.match_boxes([GOOD], [image((0, 0))], 1))
