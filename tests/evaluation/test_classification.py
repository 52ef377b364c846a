"""Every number against scikit-learn or a count by hand; every failure says what to do."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.special import expit, softmax
from sklearn import metrics as reference

from headstart.backbones.backbone import load
from headstart.backbones.catalog import resolve
from headstart.backbones.frozen import FrozenBackbone
from headstart.cache import Cache
from headstart.data.dataset import Boxes, Dataset, Sample
from headstart.data.transforms.preprocess import Preprocess
from headstart.errors import DataError, UsageError
from headstart.evaluation.baselines import Baseline
from headstart.evaluation.classification import (
    TITLES,
    evaluate,
    evaluate_probabilities,
)
from headstart.evaluation.summary import summarise
from headstart.features.extractor import Extractor
from headstart.metrics.confidence_intervals import (
    paired_proportion_difference,
    wilson_interval,
)
from headstart.metrics.selective import threshold_for_risk
from headstart.models.heads.linear import LinearHead
from headstart.models.tasks import ClassificationTask
from headstart.models.transfer_model import TransferModel

ANIMALS = ClassificationTask(classes=("ant", "bee", "cat"))
PAIR = ClassificationTask(classes=("ant", "bee"))
LABELS = ClassificationTask(classes=("red", "round"), kind="multilabel", thresholds=(0.3, 0.5))


def judged(task, probabilities, targets, **options):
    probabilities, targets = np.asarray(probabilities, dtype=float), np.asarray(targets)
    names = options.pop("names", tuple(f"{i}.png" for i in range(len(targets))))
    return evaluate_probabilities(task, probabilities, targets, names=names, **options)


def drawn(task, n=150, seed=0):
    rng = np.random.default_rng(seed)
    logits = rng.normal(scale=2, size=(n, len(task.classes)))
    noisy = logits + rng.normal(size=logits.shape)
    if task.kind == "multilabel":
        return expit(logits), (noisy > 0.5).astype(int)
    return softmax(logits, axis=1), noisy.argmax(axis=1)


def values(evaluation):
    return {name: interval.value for name, interval in evaluation.metrics.items()}


def test_multiclass_numbers_equal_scikit_learn():
    chances, targets = drawn(ANIMALS)
    found = judged(ANIMALS, chances, targets)
    answer = chances.argmax(axis=1)
    expected = {
        "accuracy": reference.accuracy_score(targets, answer),
        "macro_f1": reference.f1_score(targets, answer, average="macro"),
        "balanced_accuracy": reference.balanced_accuracy_score(targets, answer),
        "auroc": reference.roc_auc_score(targets, chances, multi_class="ovr"),
        "log_loss": reference.log_loss(targets, chances),
        "brier": ((chances - np.eye(3)[targets]) ** 2).sum(axis=1).mean(),
    }
    assert {k: v for k, v in values(found).items() if k != "ece"} == pytest.approx(expected)
    np.testing.assert_array_equal(found.confusion, reference.confusion_matrix(targets, answer))
    np.testing.assert_array_equal(found.correct, targets == answer)


def test_binary_auroc_is_that_of_the_second_class():
    chances, targets = drawn(PAIR)
    expected = reference.roc_auc_score(targets, chances[:, 1])
    assert values(judged(PAIR, chances, targets))["auroc"] == pytest.approx(expected)


def test_multilabel_numbers_equal_scikit_learn():
    chances, targets = drawn(LABELS)
    found = judged(LABELS, chances, targets)
    answer = (chances >= [0.3, 0.5]).astype(int)
    expected = {
        "accuracy": reference.accuracy_score(targets, answer),
        "macro_f1": reference.f1_score(targets, answer, average="macro"),
        "mean_average_precision": reference.average_precision_score(targets, chances),
        "auroc": reference.roc_auc_score(targets, chances),
        "brier": ((chances - targets) ** 2).mean(),
        "log_loss": np.mean(
            [reference.log_loss(t, c) for t, c in zip(targets.T, chances.T, strict=True)]
        ),
    }
    assert {k: v for k, v in values(found).items() if k != "ece"} == pytest.approx(expected)
    assert found.as_dict()["confusion"] is None
    np.testing.assert_array_equal(found.predicted, answer)


@pytest.mark.parametrize("task", [ANIMALS, LABELS])
def test_classes_equal_scikit_learn(task):
    chances, targets = drawn(task)
    found = judged(task, chances, targets)
    precision, recall, _, count = reference.precision_recall_fscore_support(
        targets, found.predicted
    )
    assert [row.name for row in found.per_class] == list(task.classes)
    assert [row.count for row in found.per_class] == count.tolist()
    assert [row.precision.value for row in found.per_class] == pytest.approx(precision)
    assert [row.recall.value for row in found.per_class] == pytest.approx(recall)
    for row in found.per_class:
        assert row.recall.low < row.recall.value <= row.recall.high


def test_calibration_counted_by_hand():
    # Sure at 0.9 and right in 3 of 4; sure at 0.6 and right in 1 of 2.
    chances = [[0.9, 0.1]] * 4 + [[0.4, 0.6]] * 2
    found = judged(PAIR, chances, [0, 0, 0, 1, 1, 0])
    assert values(found)["ece"] == pytest.approx((4 * 0.15 + 2 * 0.1) / 6)
    np.testing.assert_array_equal(
        np.nan_to_num(found.reliability.weight), np.eye(10)[5] * 2 + np.eye(10)[8] * 4
    )


def test_every_metric_has_a_title_and_an_interval_that_holds_it():
    for task in (ANIMALS, LABELS):
        found = judged(task, *drawn(task))
        assert set(found.metrics) <= set(TITLES)
        for interval in found.metrics.values():
            assert interval.level == 0.95
            assert interval.low <= interval.value <= interval.high


def test_a_perfect_model_is_not_certain():
    targets = np.arange(60) % 3
    found = judged(ANIMALS, np.eye(3)[targets] * 0.97 + 0.01, targets)
    assert found.metrics["accuracy"].low == pytest.approx(wilson_interval(60, 60).low)
    for name in ("accuracy", "macro_f1", "balanced_accuracy", "auroc"):
        interval = found.metrics[name]
        assert interval.value == 1
        assert interval.low != interval.high
        assert interval.low < 0.99 or math.isnan(interval.low)
    for row in found.per_class:
        assert row.recall.low < 0.9
        assert row.precision.low < 0.9
    assert "interval: 94.0 % to 100.0 %" in summarise(found)[0]


def test_a_class_that_is_missing_has_no_recall_and_does_not_count():
    chances, targets = drawn(ANIMALS)
    kept = targets != 1
    found = judged(ANIMALS, chances[kept], targets[kept])
    assert found.per_class[1].count == 0
    assert math.isnan(found.per_class[1].recall.value)
    answer = chances[kept].argmax(axis=1)
    recalls = reference.recall_score(targets[kept], answer, labels=[0, 2], average=None)
    assert values(found)["balanced_accuracy"] == pytest.approx(recalls.mean())
    assert found.as_dict()["per_class"][1]["recall"]["value"] is None
    assert found.confusion.shape == (3, 3)


@pytest.mark.parametrize("task", [PAIR, ANIMALS])
def test_one_class_only_has_no_auroc(task):
    chances, _ = drawn(task, 30)
    found = judged(task, chances, np.zeros(30, dtype=int))
    auroc = json.loads(json.dumps(found.as_dict(), allow_nan=False))["metrics"]["auroc"]
    assert (auroc["value"], auroc["low"], auroc["high"]) == (None, None, None)
    assert found.metrics["accuracy"].value == (chances.argmax(axis=1) == 0).mean()
    assert str(found.metrics["auroc"]) == "undefined"


def test_a_label_that_never_holds_is_left_out():
    chances, targets = drawn(LABELS)
    targets[:, 1] = 0
    found = judged(LABELS, chances, targets)
    expected = reference.average_precision_score(targets[:, 0], chances[:, 0])
    assert values(found)["mean_average_precision"] == pytest.approx(expected)
    assert values(found)["auroc"] == pytest.approx(
        reference.roc_auc_score(targets[:, 0], chances[:, 0])
    )


@pytest.mark.parametrize("n", [1, 2])
def test_one_or_two_images_are_enough_for_an_answer(n):
    for task in (PAIR, LABELS):
        found = judged(task, np.full((n, 2), 0.5), [0] * n if task is PAIR else [[0, 1]] * n)
        json.dumps(found.as_dict(), allow_nan=False)
        assert len(summarise(found)) == 3  # how good, how wide, and which class nobody saw


def test_no_images_are_refused():
    with pytest.raises(UsageError, match="at least 1"):
        judged(PAIR, np.zeros((0, 2)), np.zeros(0, dtype=int))


def test_groups_widen_every_interval_of_clustered_images():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(20), 12)
    targets = np.repeat(rng.integers(0, 2, 20), 12)
    logits = np.repeat(rng.normal(size=20) + 2.0 * (rng.permutation(20) < 10), 12)
    logits = logits * np.where(targets == 1, 1, -1) + 0.05 * rng.normal(size=240)
    chances = softmax(np.stack([-logits, logits], axis=1), axis=1)
    alone, grouped = judged(PAIR, chances, targets), judged(PAIR, chances, targets, groups=groups)
    assert (alone.n_groups, grouped.n_groups) == (None, 20)
    assert values(alone) == values(grouped)
    for name in set(alone.metrics) - {"ece"}:
        a, b = alone.metrics[name], grouped.metrics[name]
        assert b.high - b.low > 1.5 * (a.high - a.low), name
    for a, b in zip(alone.per_class, grouped.per_class, strict=True):
        assert b.recall.high - b.recall.low > a.recall.high - a.recall.low
    assert "in 20 groups" in summarise(grouped)[0]


def test_groups_of_one_change_nothing_but_the_method():
    chances, targets = drawn(PAIR, 60)
    alone = judged(PAIR, chances, targets)
    grouped = judged(PAIR, chances, targets, groups=np.arange(60))
    for name in ("macro_f1", "auroc", "log_loss"):
        assert grouped.metrics[name].low == pytest.approx(alone.metrics[name].low)


def test_an_image_that_counts_twice_counts_twice():
    chances, targets = drawn(ANIMALS, 80)
    weights = np.random.default_rng(5).integers(1, 4, 80)
    found = judged(ANIMALS, np.repeat(chances, weights, axis=0), np.repeat(targets, weights))
    expected = reference.f1_score(
        targets, chances.argmax(axis=1), average="macro", sample_weight=weights
    )
    assert values(found)["macro_f1"] == pytest.approx(expected)
    expected = reference.log_loss(targets, chances, sample_weight=weights)
    assert values(found)["log_loss"] == pytest.approx(expected)


def test_the_seed_decides_the_intervals_and_nothing_else():
    chances, targets = drawn(PAIR, 60)
    one, again, other = (judged(PAIR, chances, targets, seed=seed) for seed in (0, 0, 1))
    assert one.as_dict() == again.as_dict()
    assert values(one) == values(other)
    assert one.metrics["log_loss"].low != other.metrics["log_loss"].low


def test_mistakes_come_the_surest_first():
    chances = [[0.9, 0.1], [0.2, 0.8], [0.4, 0.6], [0.05, 0.95], [0.3, 0.7]]
    found = judged(PAIR, chances, [0, 0, 0, 0, 1])
    assert found.mistakes(10) == [3, 1, 2]
    assert found.mistakes(1) == [3]
    assert found.worst(2) == [3, 1]
    assert judged(PAIR, chances, [0, 1, 1, 1, 1]).mistakes(10) == []


def test_everything_said_survives_strict_json():
    right = np.arange(100) < 60
    chances = np.where(right[:, None], [[0.9, 0.1]], [[0.1, 0.9]])
    lead = paired_proportion_difference(right, np.arange(100) >= 50)
    rule = Baseline(name="rule", accuracy=wilson_interval(50, 100), lead=lead)
    found = judged(PAIR, chances, np.zeros(100, dtype=int), baselines=(rule,))
    document = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert document["images"] == 100
    assert document["groups"] is None
    assert next(iter(document["metrics"])) == "accuracy"
    assert document["baselines"][0]["significant"] is False
    assert document["confusion"] == [[60, 40], [0, 0]]


# -- a model over images -----------------------------------------------------------------------

SMALL = Preprocess(
    resize=40, crop=32, interpolation="bilinear", mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3)
)


@pytest.fixture(scope="module")
def backbone():
    spec = replace(resolve("torchvision/resnet18"), preprocess=SMALL)
    state = load(spec, pretrained=False, seed=0).trunk.state_dict()
    return FrozenBackbone(spec=spec, state=state, origin={"sha256": "", "from": "test", "file": ""})


@pytest.fixture
def extractor(tmp_path):
    return Extractor(cache=Cache(tmp_path / "cache"), engine="fp32", device="cpu", workers=2)


def images(targets, seed=0, groups=None):
    rng = np.random.default_rng(seed)
    return tuple(
        Sample(
            image=rng.integers(0, 256, (40, 40, 3), dtype=np.uint8),
            target=target,
            group=None if groups is None else groups[i],
        )
        for i, target in enumerate(targets)
    )


@pytest.fixture
def model(backbone):
    rng = np.random.default_rng(0)
    head = LinearHead(
        weight=rng.normal(size=(3, 512)).astype(np.float32), bias=np.zeros(3, dtype=np.float32)
    )
    return TransferModel(backbone=backbone, task=ANIMALS, head=head, engine="fp32")


def test_there_is_no_worst_image_where_several_labels_may_hold():
    assert judged(LABELS, [[0.1, 0.9]], [[1, 0]]).worst(5) == []


def test_data_of_another_task_are_refused(model, extractor):
    boxes = Boxes(corners=((0, 0, 9, 9),), labels=("ant",))
    samples = tuple(replace(sample, target=boxes) for sample in images(["ant"]))
    data = Dataset(samples=samples, classes=("ant",), kind="detection")
    with pytest.raises(
        DataError, match=r"The model is for multiclass, but the data are for detection"
    ):
        evaluate(model, data, extractor=extractor)


def test_a_model_is_judged_by_names_whatever_their_order(model, extractor):
    samples = images(["cat", "ant", "bee", "cat", "ant", "ant"])
    found = [
        evaluate(model, Dataset(samples=samples, classes=classes), extractor=extractor)
        for classes in [("ant", "bee", "cat"), ("cat", "bee", "ant"), ("cat", "ant", "bee", "dog")]
    ]
    chances = model.predict_probabilities(samples, extractor=extractor)
    np.testing.assert_array_equal(found[0].probabilities, chances)
    np.testing.assert_array_equal(found[0].targets, [2, 0, 1, 2, 0, 0])
    assert found[0].as_dict() == found[1].as_dict() == found[2].as_dict()
    assert found[0].baselines == ()


def test_a_data_set_without_one_of_the_classes_is_judged(model, extractor):
    data = Dataset(samples=images(["cat", "bee"] * 3), classes=("bee", "cat"))
    np.testing.assert_array_equal(
        evaluate(model, data, extractor=extractor).targets, [2, 1, 2, 1, 2, 1]
    )


def test_baselines_are_those_of_the_training_part(model, extractor):
    from sklearn.neighbors import KNeighborsClassifier

    train = Dataset(samples=images(["cat"] * 5 + ["ant"] * 3, seed=1), classes=("cat", "ant"))
    groups = ["x", "x", "y", "y", None, None]
    test = Dataset(
        samples=images(["cat", "ant", "cat", "cat", "bee", "ant"], groups=groups),
        classes=ANIMALS.classes,
    )
    found = evaluate(model, test, extractor=extractor, train=train)
    assert found.n_groups == 4
    majority, neighbours = found.baselines
    assert majority.accuracy.value == pytest.approx(3 / 6)
    known = extractor.features(model.backbone, train.samples).values
    asked = extractor.features(model.backbone, test.samples).values
    rule = KNeighborsClassifier(5, metric="cosine").fit(known, train.targets())
    names = np.array(train.classes)[rule.predict(asked)]
    expected = np.mean(names == np.array([s.target for s in test.samples]))
    assert neighbours.accuracy.value == pytest.approx(expected)
    lead = found.metrics["accuracy"].value - expected
    assert neighbours.lead.interval.value == pytest.approx(lead)
    json.dumps(found.as_dict(), allow_nan=False)


def no_features(*_):
    pytest.fail("computed features of images that are refused")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (Dataset(samples=(), classes=("ant",)), "at least one image"),
        (Dataset(samples=images(["ant", "dog"]), classes=("ant", "dog", "eel")), r"\['dog'\]"),
        (Dataset(samples=images(["ant", None]), classes=("ant",)), "a label for every image"),
        (
            Dataset(
                samples=images([("ant", "bee"), ("bee",)]),
                classes=("ant", "bee"),
                kind="multilabel",
            ),
            "one class per image",
        ),
        (
            Dataset(samples=images([()]), classes=("ant", "bee"), kind="multilabel"),
            "one class per image",
        ),
    ],
)
def test_images_that_do_not_fit_are_refused_before_work(
    model, extractor, monkeypatch, data, message
):
    monkeypatch.setattr(Extractor, "features", no_features)
    with pytest.raises(DataError, match=message):
        evaluate(model, data, extractor=extractor)
    if len(data):
        good = Dataset(samples=images(["ant"]), classes=("ant",))
        with pytest.raises(DataError, match=message):
            evaluate(model, good, extractor=extractor, train=data)


def test_a_model_without_a_head_is_refused(model, extractor):
    data = Dataset(samples=images(["ant"]), classes=("ant",))
    with pytest.raises(UsageError, match="no head"):
        evaluate(replace(model, head=None), data, extractor=extractor)


def test_a_multilabel_model_is_judged_on_single_labels_too(model, extractor):
    task = ClassificationTask(classes=ANIMALS.classes, kind="multilabel")
    data = Dataset(samples=images(["ant", "cat"]), classes=("ant", "cat"))
    found = evaluate(replace(model, task=task), data, extractor=extractor, train=data)
    np.testing.assert_array_equal(found.targets, [[1, 0, 0], [0, 0, 1]])
    json.dumps(found.as_dict(), allow_nan=False)


def test_a_threshold_is_held_against_the_judged_images():
    rng = np.random.default_rng(0)
    chances = rng.dirichlet(np.full(3, 0.1), 2000)
    targets = np.array([rng.choice(3, p=p) for p in chances])
    sure, correct = chances.max(axis=1), chances.argmax(axis=1) == targets
    chosen = threshold_for_risk(sure, correct, max_risk=0.1)
    task = replace(ANIMALS, max_risk=0.1, selected=chosen)
    found = judged(task, chances[:200], targets[:200])
    kept = sure[:200] >= chosen.threshold
    assert found.abstention.coverage == wilson_interval(kept.sum(), 200)
    assert found.abstention.risk == wilson_interval((~correct[:200])[kept].sum(), kept.sum())
    assert found.metrics["accuracy"] == wilson_interval(correct[:200].sum(), 200)  # of all
    told = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert told["abstention"]["coverage"]["value"] == kept.mean()
    assert 0 < told["aurc"] < np.mean(~correct[:200])
    assert found.abstention.sentence() in summarise(found)


def test_without_a_wanted_risk_nothing_is_said_of_abstaining():
    found = judged(PAIR, [[0.9, 0.1], [0.2, 0.8]], [0, 1])
    assert found.abstention is None
    assert found.as_dict()["abstention"] is None
    assert not any("bstain" in sentence for sentence in summarise(found))
    assert judged(LABELS, [[0.9, 0.1]], [[1, 0]]).as_dict()["aurc"] is None


def population(rng, n, confidence):
    """Calibrated probabilities of three classes, and labels drawn from them."""
    sure = rng.beta(20 * confidence, 20 * (1 - confidence), n)
    first = rng.integers(0, 3, n)
    chances = np.repeat(((1 - sure) / 2)[:, None], 3, axis=1)
    chances[np.arange(n), first] = sure
    return chances, np.array([rng.choice(3, p=p) for p in chances])


def test_losses_cover_the_truth_where_every_image_is_right():
    """The bounds of log-loss and Brier score covered the truth in none of 150 such sets."""
    rng, found = np.random.default_rng(0), 0
    for _ in range(40):
        evaluation = judged(ANIMALS, *population(rng, 25, 0.97))
        if not evaluation.correct.all():
            continue
        found += 1
        for name in ("log_loss", "brier"):
            assert math.isnan(evaluation.metrics[name].low)
            assert math.isnan(evaluation.metrics[name].high)
        assert evaluation.metrics["accuracy"].high == 1
    assert found > 10


def test_one_mistake_is_enough_for_bounds_of_the_losses():
    chances = np.tile([0.8, 0.1, 0.1], (20, 1))
    evaluation = judged(ANIMALS, chances, [0] * 19 + [1])
    assert all(math.isfinite(evaluation.metrics[name].high) for name in ("log_loss", "brier"))


def test_the_calibration_error_of_a_calibrated_model_covers_zero():
    rng = np.random.default_rng(1)
    for _ in range(20):
        error = judged(ANIMALS, *population(rng, 100, 0.7)).metrics["ece"]
        assert error.low == 0 < error.value <= error.high


@pytest.mark.parametrize(("positives", "has_bounds"), [(9, False), (10, True), (0, True)])
def test_labels_with_few_positive_images_have_no_bounds(positives, has_bounds):
    rng = np.random.default_rng(0)
    targets = np.stack([np.arange(60) < 30, np.arange(60) % 60 < positives], axis=1).astype(int)
    evaluation = judged(LABELS, rng.uniform(size=(60, 2)), targets)
    for name in ("mean_average_precision", "macro_f1"):
        assert math.isfinite(evaluation.metrics[name].low) is has_bounds
