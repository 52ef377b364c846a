"""scikit-learn's contract, held by scikit-learn's own tools."""

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.metrics import accuracy_score
from sklearn.model_selection import (
    GridSearchCV,
    StratifiedKFold,
    cross_val_predict,
    cross_val_score,
    cross_validate,
)
from sklearn.pipeline import make_pipeline
from sklearn.utils import estimator_checks

from headstart import ImageClassifier, ImageSegmenter, ObjectDetector
from headstart.backbones.backbone import load as load_backbone
from headstart.backbones.catalog import resolve
from headstart.data.dataset import Dataset
from headstart.errors import DataError, LayoutError, UnknownNameError, UsageError
from headstart.methods.finetune import Finetune
from headstart.methods.linear_probe import LinearProbe
from headstart.models.build import create_model
from headstart.selection import expected_gain as gains

COLOURS = {"red": (200, 60, 60), "green": (60, 200, 60), "blue": (60, 60, 200)}


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    """A small network with weights in a file, by a name that another process can open, too."""
    spec = resolve("torchvision/mobilenet_v3_small")
    file = tmp_path_factory.mktemp("weights") / "w.pth"
    torch.save(load_backbone(spec, pretrained=False).trunk.state_dict(), file)
    return f"file:{file}@torchvision/mobilenet_v3_small?resize=40&crop=32"


@pytest.fixture(scope="module")
def shared_cache(tmp_path_factory):
    return str(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def classifier(backbone, shared_cache):
    return ImageClassifier(backbone, folds=2, engine="fp32", device="cpu", cache_dir=shared_cache)


def coloured(n=8, colours=tuple(COLOURS), seed=0, noise=40):
    """Noisy images of n for each colour, shuffled, and their colours' names."""
    rng = np.random.default_rng(seed)
    names = rng.permutation(np.repeat(colours, n))
    base = np.array([COLOURS[name] for name in names])[:, None, None]
    pixels = base + rng.normal(scale=noise, size=(len(names), 36, 36, 3))
    return np.clip(pixels, 0, 255).astype(np.uint8), names


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    root = tmp_path_factory.mktemp("photos")
    return write(root, *coloured())


def write(root, pixels, names):
    for i, (one, name) in enumerate(zip(pixels, names, strict=True)):
        (root / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(one).save(root / name / f"{i:03d}.png")
    return root


def paths_and_labels(root):
    paths = sorted(root.rglob("*.png"), key=lambda path: path.name)
    return [str(path) for path in paths], np.array([path.parent.name for path in paths])


# ---------------------------------------------------------------- fit, predict, score


def test_it_learns(classifier):
    pixels, names = coloured()
    fitted = classifier.fit(pixels, names)
    assert fitted is classifier
    fresh, truth = coloured(seed=1)
    assert classifier.score(fresh, truth) > 0.9
    assert classifier.score(fresh, truth) == accuracy_score(truth, classifier.predict(fresh))
    weights = np.arange(len(truth))
    weighted = classifier.score(fresh, np.roll(truth, 1), sample_weight=weights)
    right = classifier.predict(fresh) == np.roll(truth, 1)
    assert weighted == pytest.approx(np.average(right, weights=weights))


def test_columns_follow_classes(classifier):
    pixels, names = coloured()
    chances = classifier.fit(pixels, names).predict_proba(pixels)
    assert classifier.classes_.tolist() == ["blue", "green", "red"]
    assert chances.shape == (len(pixels), 3)
    np.testing.assert_allclose(chances.sum(axis=1), 1)
    own = chances[np.arange(len(pixels)), np.searchsorted(classifier.classes_, names)]
    assert (own == chances.max(axis=1)).mean() > 0.9
    assert classifier.predict(pixels).tolist() == classifier.classes_[chances.argmax(1)].tolist()


@pytest.mark.parametrize(
    ("labels", "kind"),
    [
        (["zebra", "ant", "Bee"], "U"),
        ([10, 2, -1], "i"),
        ([2, 0, 7], "i"),
        (np.array([3, 1, 2], dtype=np.uint8), "u"),
        ([0.0, 2.0, 1.0], "f"),
        (np.array(["x", "y", "z"], dtype=object), "O"),
    ],
)
def test_labels_keep_their_type_and_order(classifier, labels, kind):
    pixels, names = coloured()
    given = np.asarray(labels)[np.searchsorted(sorted(COLOURS), names)]
    for y in (given, given.tolist() if kind not in "uO" else given):
        classifier.fit(pixels, y)
        np.testing.assert_array_equal(classifier.classes_, np.unique(given))
        answer = classifier.predict(pixels)
        assert answer.dtype.kind == kind
        assert (answer == given).mean() > 0.9


def test_booleans_come_back_as_booleans(classifier):
    pixels, names = coloured(colours=("red", "blue"))
    classifier.fit(pixels, [bool(name == "red") for name in names])
    assert classifier.classes_.tolist() == [False, True]
    assert classifier.predict(pixels).dtype == np.bool_
    assert (classifier.predict(pixels) == (names == "red")).mean() > 0.9


def test_it_is_the_linear_probe(classifier, backbone):
    """No logic of its own: the same model as the method gives."""
    from headstart.backbones.frozen import FrozenBackbone
    from headstart.data.dataset import Sample
    from headstart.features.extractor import Extractor
    from headstart.models.tasks import ClassificationTask
    from headstart.models.transfer_model import TransferModel

    pixels, names = coloured()
    classifier.fit(pixels, names)
    classes = tuple(sorted(COLOURS))
    blank = TransferModel(
        backbone=FrozenBackbone.open(backbone), task=ClassificationTask(classes=classes)
    )
    samples = tuple(Sample(image=p, target=str(t)) for p, t in zip(pixels, names, strict=True))
    extractor = Extractor(cache=classifier._open_cache(), engine="fp32", device="cpu")
    data = Dataset(samples=samples, classes=classes)
    model = LinearProbe(folds=2).fit(blank, data, extractor=extractor)
    np.testing.assert_array_equal(model.head.weight, classifier.model_.head.weight)
    assert model.task == classifier.model_.task


def test_paths_bytes_images_and_arrays_are_all_images(classifier, photos):
    paths, labels = paths_and_labels(photos)
    reference = classifier.fit(paths, labels).predict_proba(paths)
    images = [Image.open(path) for path in paths]
    contents = [Path(path).read_bytes() for path in paths]
    for X in (np.array(paths), contents, images, np.stack(images), photos):
        if X is photos:  # sorted by class and then by name
            order = sorted(range(len(paths)), key=lambda i: paths[i])
            np.testing.assert_allclose(classifier.predict_proba(X), reference[order], rtol=1e-9)
            continue
        again = clone(classifier).fit(X, labels)
        np.testing.assert_allclose(again.predict_proba(X), reference, atol=1e-3)


def test_groups_stay_in_one_inner_fold(classifier, monkeypatch):
    seen = []
    real = LinearProbe.fit

    def spy(self, model, train, val=None, *, extractor):
        seen.append(train.groups())
        return real(self, model, train, val, extractor=extractor)

    monkeypatch.setattr(LinearProbe, "fit", spy)
    pixels, names = coloured()
    groups = np.arange(len(names)) // 2
    classifier.fit(pixels, names, groups=groups)
    assert seen[0].tolist() == groups.tolist()
    with pytest.raises(UsageError, match="one group"):
        classifier.fit(pixels, names, groups=groups[:-1])


def test_prediction_uses_the_engine_that_the_head_learned_from(classifier, monkeypatch):
    pixels, names = coloured()
    classifier.fit(pixels, names)
    expected = classifier.predict_proba(pixels)
    classifier.set_params(engine="auto")
    monkeypatch.setattr(
        "headstart.features.extractor.choose_engine", lambda *a, **k: pytest.fail("measured")
    )
    np.testing.assert_array_equal(classifier.predict_proba(pixels), expected)


def test_nothing_gives_nothing(classifier):
    classifier.fit(*coloured())
    assert classifier.predict([]).shape == (0,)
    assert classifier.predict([]).dtype == classifier.classes_.dtype
    assert classifier.predict_proba([]).shape == (0, 3)


# ---------------------------------------------------------------- folders


def test_a_folder_brings_its_labels(classifier, photos):
    classifier.fit(photos)
    assert classifier.classes_.tolist() == ["blue", "green", "red"]
    paths, labels = paths_and_labels(photos)
    assert classifier.score(str(photos)) == classifier.score(paths, labels)
    assert 0.9 < classifier.score(photos) <= 1


def test_of_a_folder_with_splits_the_test_part_is_not_learned_from(classifier, tmp_path):
    write(tmp_path / "train", *coloured())
    fresh, truth = coloured(n=3, seed=1)
    write(tmp_path / "test", fresh, np.roll(truth, 1))  # wrong labels: learning them would show
    classifier.fit(tmp_path)
    alone = clone(classifier).fit(tmp_path / "train")
    np.testing.assert_array_equal(classifier.model_.head.weight, alone.model_.head.weight)
    wrong = accuracy_score(np.roll(truth, 1), classifier.predict(fresh))
    assert classifier.score(tmp_path) == classifier.score(tmp_path / "test") == wrong


def test_classes_of_a_folder_are_matched_by_name(classifier, photos, tmp_path):
    classifier.fit(photos)
    fresh, truth = coloured(seed=1)
    few = truth != "blue"
    write(tmp_path / "few", fresh[few], truth[few])
    assert classifier.score(tmp_path / "few") == classifier.score(fresh[few], truth[few]) > 0.8
    write(tmp_path / "more", fresh, np.where(truth == "red", "pink", truth))
    with pytest.raises(UnknownNameError, match="pink"):
        classifier.score(tmp_path / "more")


def test_a_class_without_images_to_learn_from_is_refused(classifier, tmp_path):
    pixels, names = coloured()
    write(tmp_path / "train", pixels[names != "blue"], names[names != "blue"])
    write(tmp_path / "test", pixels[names == "blue"], names[names == "blue"])
    with pytest.raises(DataError, match="blue"):
        classifier.fit(tmp_path)


def test_several_labels_are_not_taken_for_one(classifier, tmp_path):
    for i, pixels in enumerate(coloured(n=4)[0]):
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    rows = [f"{i}.png,{('a', 'a|b', 'b')[i % 3]}" for i in range(12)]
    (tmp_path / "labels.csv").write_text("\n".join(["path,labels", *rows]))
    with pytest.raises(UsageError, match="several labels"):
        classifier.fit(tmp_path)


# ---------------------------------------------------------------- wrong arguments


@pytest.mark.parametrize("method", ["predict", "predict_proba", "score"])
def test_not_fitted(classifier, photos, method):
    with pytest.raises(NotFittedError):
        getattr(classifier, method)(photos)


@pytest.mark.parametrize(
    "y",
    [["a"], [], [["a"]] * 4, np.eye(4), "abcd", [0.5, 1.5, 2.5, 1.0], [1.0, np.nan, 2, 3],
     [None, "a", "b", "a"]],
)  # fmt: skip
def test_labels_that_are_none_are_refused(classifier, y):
    with pytest.raises(UsageError):
        classifier.fit(np.zeros((4, 8, 8, 3), np.uint8), y)


def test_missing_labels_are_refused(classifier, photos):
    with pytest.raises(UsageError, match="labels"):
        classifier.fit(np.zeros((4, 8, 8, 3), np.uint8))
    with pytest.raises(UsageError, match="groups"):
        classifier.fit(photos, groups=[1])
    with pytest.raises(LayoutError, match="does not exist"):
        classifier.fit("no/such/folder")


@pytest.mark.parametrize(
    ("labels", "words"), [(["a"] * 8, "at least two"), (["a"] * 7 + ["b"], "at least 2")]
)
def test_too_few_of_a_class_are_refused(classifier, labels, words):
    with pytest.raises(DataError, match=words):
        classifier.fit(coloured(n=4, colours=("red", "blue"))[0], labels)


def test_an_unreadable_image_is_named(classifier, photos, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    paths, labels = paths_and_labels(photos)
    with pytest.raises(DataError, match=r"broken\.png"):
        classifier.fit([*paths, tmp_path / "broken.png"], [*labels, "red"])
    classifier.fit(paths, labels)
    with pytest.raises(DataError, match=r"broken\.png"):
        classifier.predict([tmp_path / "broken.png"])


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"imbalance": "some"}, UnknownNameError),
        ({"folds": 1}, UsageError),
        ({"backbone": "resnet5O"}, UnknownNameError),
        ({"engine": "fp8"}, UnknownNameError),
        ({"device": "tpu"}, UnknownNameError),
    ],
)
def test_wrong_parameters_are_refused_when_fitted(classifier, wrong, error):
    classifier.set_params(**wrong)
    with pytest.raises(error, match=next(iter(wrong))):
        classifier.fit(*coloured(n=2))


# ---------------------------------------------------------------- scikit-learn's tools


TABLES = "check passes a table of numbers as `X`, but `X` is images"
LABELS = "check passes no labels, but a folder as `X` contains them"
EXCEPTIONS = {
    "check_requires_y_none": LABELS,
    **dict.fromkeys(
        [
            "check_classifier_data_not_an_array",
            "check_classifiers_classes",
            "check_classifiers_one_label",
            "check_classifiers_one_label_sample_weights",
            "check_classifiers_regression_target",
            "check_classifiers_train",
            "check_complex_data",
            "check_dict_unchanged",
            "check_dont_overwrite_parameters",
            "check_dtype_object",
            "check_estimator_sparse_array",
            "check_estimator_sparse_matrix",
            "check_estimators_dtypes",
            "check_estimators_empty_data_messages",
            "check_estimators_fit_returns_self",
            "check_estimators_nan_inf",
            "check_estimators_overwrite_params",
            "check_estimators_pickle",
            "check_f_contiguous_array_estimator",
            "check_fit2d_1feature",
            "check_fit2d_1sample",
            "check_fit2d_predict1d",
            "check_fit_check_is_fitted",
            "check_fit_idempotent",
            "check_fit_score_takes_y",
            "check_methods_sample_order_invariance",
            "check_methods_subset_invariance",
            "check_n_features_in",
            "check_n_features_in_after_fitting",
            "check_pipeline_consistency",
            "check_positive_only_tag_during_fit",
            "check_readonly_memmap_input",
            "check_sample_weight_equivalence_on_dense_data",
            "check_sample_weight_equivalence_on_sparse_data",
            "check_sample_weights_list",
            "check_sample_weights_not_an_array",
            "check_sample_weights_not_overwritten",
            "check_sample_weights_pandas_series",
            "check_sample_weights_shape",
            "check_all_zero_sample_weights_error",
            "check_supervised_y_2d",
        ],
        TABLES,
    ),
}
"""Checks of scikit-learn that cannot apply to a classifier of images, and why."""


def test_scikit_learns_checks_pass_or_are_listed_with_a_reason(classifier):
    results = estimator_checks.check_estimator(classifier, on_fail=None, on_skip=None)
    status = {(each["check_name"], each["status"]): each["exception"] for each in results}
    failed = {name: error for (name, kind), error in status.items() if kind == "failed"}
    passed = {name for name, kind in status if kind == "passed"}
    assert len(passed) > 15
    assert {name: error for name, error in failed.items() if name not in EXCEPTIONS} == {}
    assert passed & set(EXCEPTIONS) == set(), "the list of exceptions is too long"


@pytest.mark.parametrize("estimator", [ObjectDetector(), ImageSegmenter()])
def test_estimators_of_boxes_and_masks_have_scikit_learns_parameters(estimator):
    for check in (
        estimator_checks.check_estimator_cloneable,
        estimator_checks.check_get_params_invariance,
        estimator_checks.check_no_attributes_set_in_init,
        estimator_checks.check_set_params,
        estimator_checks.check_estimators_unfitted,
    ):
        check(type(estimator).__name__, estimator)


def heads(*classifiers):
    return [classifier.model_.linear_head().weight for classifier in classifiers]


def test_weights_of_images_are_those_of_scikit_learn(classifier, backbone):
    """The head is the solution of scikit-learn's logistic regression with the same weights."""
    from sklearn.linear_model import LogisticRegression

    from headstart.backbones.frozen import FrozenBackbone
    from headstart.data.prepare import to_samples
    from headstart.features.extractor import Extractor

    pixels, names = coloured(n=6, noise=90)
    weights = np.random.default_rng(0).uniform(0.2, 3, len(names))
    classifier.fit(pixels, names, sample_weight=weights)
    extractor = Extractor(cache=classifier._open_cache(), engine="fp32", device="cpu")
    extracted = extractor.features(FrozenBackbone.open(backbone), to_samples(pixels)).values
    x = np.asarray(extracted, np.float64)
    scale = np.sqrt(np.square(x - x.mean(axis=0)).sum(axis=1).mean())
    penalty = classifier.model_.record["penalty"]
    reference = LogisticRegression(C=1 / (penalty * weights.sum()), tol=1e-9, max_iter=9999)
    reference.fit((x - x.mean(axis=0)) / scale, names, sample_weight=weights)
    (weight,) = heads(classifier)
    np.testing.assert_allclose(weight * scale, reference.coef_, atol=1e-2)
    unweighted = clone(reference).fit((x - x.mean(axis=0)) / scale, names)
    assert np.abs(weight * scale - unweighted.coef_).max() > 0.1


def test_weights_count_and_an_image_of_weight_zero_is_left_out(classifier, backbone):
    pixels, names = coloured(n=6, noise=90)
    unweighted = clone(classifier).fit(pixels, names)
    equal = clone(classifier).fit(pixels, names, sample_weight=np.full(len(names), 2.5))
    assert (heads(unweighted)[0] == heads(equal)[0]).all()
    uneven = clone(classifier).fit(pixels, names, sample_weight=np.arange(1, len(names) + 1))
    assert not np.allclose(*heads(unweighted, uneven))
    assert uneven.model_.record["weighted_images"]
    kept = np.arange(len(names)) % 4 > 0
    without = clone(classifier).fit(pixels[kept], names[kept])
    zeros = clone(classifier).fit(pixels, names, sample_weight=kept.astype(float))
    assert (heads(without)[0] == heads(zeros)[0]).all()


def test_weights_reach_the_classifier_from_a_search(classifier):
    pixels, names = coloured(n=6)
    search = GridSearchCV(classifier, {"imbalance": ["none", "balanced"]}, cv=2)
    search.fit(pixels, names, sample_weight=np.arange(1.0, len(names) + 1))
    assert search.best_estimator_.model_.record["weighted_images"]


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ([1.0, 2.0], "one number for each of the 6 images"),
        ([1, 1, 1, 1, 1, -1], "minimum of -1"),
        ([1, 1, 1, 1, 1, np.nan], "finite"),
        (np.zeros(6), "not all 0"),
    ],
)
def test_wrong_weights_are_refused(classifier, weights, words):
    with pytest.raises(UsageError, match=words):
        classifier.fit(*coloured(n=2), sample_weight=weights)


def test_a_race_that_cannot_weight_images_refuses_to(classifier):
    classifier.set_params(method="auto", budget=0)
    with pytest.raises(UsageError, match=r"`sample_weight` .* race, which cannot weight images"):
        classifier.fit(*coloured(n=4), sample_weight=np.arange(1, 13))


def test_a_random_state_is_a_seed_a_generator_or_none(classifier):
    images = coloured(n=4)
    seeds = set()
    for state in (None, np.random.RandomState(3), np.int64(5)):
        fitted = clone(classifier).set_params(random_state=state).fit(*images)
        seeds.add(fitted.model_.record["method"]["seed"])
    assert len(seeds) == 3
    assert 5 in seeds
    assert np.random.RandomState(3).randint(2**31 - 1) in seeds
    for wrong in (-1, 1.5, "0", np.random.default_rng(0)):
        with pytest.raises(UsageError, match="`random_state` must be None"):
            clone(classifier).set_params(random_state=wrong).fit(*images)


def test_auto_runs_the_race(classifier):
    pixels, names = coloured(n=8)
    classifier.set_params(method="auto", budget=0).fit(pixels, names)
    decision = classifier.model_.record["decision"]
    assert [row["state"] for row in decision["rows"]].count("chosen") == 1
    fresh, truth = coloured(seed=1)
    assert classifier.score(fresh, truth) > 0.9
    with pytest.raises(UsageError, match="budget"):
        classifier.set_params(budget="soon").fit(pixels, names)


def test_auto_keeps_the_model_that_the_race_has_trained(classifier, monkeypatch):
    """The winner is trained once; max_risk is calibrated on the images that it has not seen."""
    trainings = []

    def train(candidate, train, held_out, *, extractor, session, watch):
        trainings.append(candidate.name)
        start = create_model(candidate.backbone, train)
        model = LinearProbe(folds=2).fit(start, train, extractor=extractor)
        logits = 9 * np.eye(len(train.classes))[held_out.targets()]
        return logits, replace(model, record={"epochs": [{}, {}], "by": candidate.name})

    monkeypatch.setattr(gains, "train_on_holdout", train)
    monkeypatch.setattr(gains, "estimate_training", lambda *_: 1.0)
    monkeypatch.setattr(Finetune, "fit", lambda *_, **__: pytest.fail("trained again"))
    pixels, names = coloured(n=40, noise=255)
    names = np.random.default_rng(0).permutation(names)  # a probe cannot predict them
    classifier.set_params(method="auto", budget=600, max_risk=0.3).fit(pixels, names)
    chosen = [r["name"] for r in classifier.model_.record["decision"]["rows"]]
    assert classifier.model_.record["by"] in trainings
    assert set(trainings) <= set(chosen)
    assert classifier.model_.task.selected.threshold is not None
    assert classifier.predict(pixels[:3]).shape == (3,)


def test_clone_copies_parameters_and_nothing_learned(classifier):
    classifier.set_params(imbalance="balanced", random_state=7).fit(*coloured(n=4))
    copy = clone(classifier)
    assert copy.get_params() == classifier.get_params()
    assert not hasattr(copy, "model_")


@pytest.mark.parametrize("as_paths", [True, False])
def test_cross_validation(classifier, photos, as_paths):
    paths, labels = paths_and_labels(photos)
    X = paths if as_paths else np.stack([np.asarray(Image.open(path)) for path in paths])
    folds = StratifiedKFold(2, shuffle=True, random_state=0)
    scores = cross_val_score(classifier, X, labels, cv=folds, error_score="raise")
    expected = []
    for train, test in folds.split(paths, labels):
        fitted = clone(classifier).fit([paths[i] for i in train], labels[train])
        expected.append(accuracy_score(labels[test], fitted.predict([paths[i] for i in test])))
    assert scores.tolist() == expected
    assert min(scores) > 0.8


@pytest.mark.parametrize("scoring", ["roc_auc_ovr", "neg_log_loss", "balanced_accuracy"])
def test_scorers_understand_it(classifier, photos, scoring):
    paths, labels = paths_and_labels(photos)
    scores = cross_val_score(classifier, paths, labels, cv=2, scoring=scoring, error_score="raise")
    assert np.isfinite(scores).all()


def test_cross_val_predict_gives_probabilities(classifier, photos):
    paths, labels = paths_and_labels(photos)
    chances = cross_val_predict(classifier, paths, labels, cv=2, method="predict_proba")
    assert (np.sort(list(COLOURS))[chances.argmax(axis=1)] == labels).mean() > 0.8


def test_grid_search(classifier, photos):
    paths, labels = paths_and_labels(photos)
    grid = {"imbalance": ["none", "balanced"], "folds": [2, 3]}
    search = GridSearchCV(classifier, grid, cv=2, error_score="raise").fit(paths, labels)
    assert len(search.cv_results_["params"]) == 4
    assert search.best_score_ > 0.8
    assert search.predict(paths[:2]).shape == (2,)


def test_in_a_pipeline(classifier, photos):
    paths, labels = paths_and_labels(photos)
    whole = make_pipeline("passthrough", classifier).fit(paths, labels)
    assert whole.score(paths, labels) > 0.9


def test_each_image_is_seen_by_the_backbone_once(classifier, photos, tmp_path, monkeypatch):
    from headstart.features import extractor as cuts

    classifier.set_params(cache_dir=str(tmp_path / "cache"))
    seen = []
    real = cuts.load_batch

    def count(samples, preprocess):
        seen.extend(samples)
        return real(samples, preprocess)

    monkeypatch.setattr(cuts, "load_batch", count)
    paths, labels = paths_and_labels(photos)
    cross_val_score(classifier, paths, labels, cv=4, error_score="raise")
    assert len(seen) == len(paths)


def test_two_processes_give_what_one_gives(classifier, photos):
    paths, labels = paths_and_labels(photos)
    alone = cross_validate(classifier, paths, labels, cv=2, error_score="raise")
    both = cross_validate(
        classifier, paths, labels, cv=2, n_jobs=2, return_estimator=True, error_score="raise"
    )
    assert both["test_score"].tolist() == alone["test_score"].tolist()
    for fitted in both["estimator"]:  # they came back through a pickle
        assert fitted.predict_proba(paths).shape == (len(paths), 3)


def test_a_fitted_one_survives_a_pickle(classifier, photos, tmp_path):
    import joblib

    paths, labels = paths_and_labels(photos)
    classifier.fit(paths, labels)
    expected = classifier.predict_proba(paths)  # builds the network, which travels too
    joblib.dump(classifier, tmp_path / "c.joblib")
    for again in (pickle.loads(pickle.dumps(classifier)), joblib.load(tmp_path / "c.joblib")):
        again.set_params(cache_dir=str(tmp_path / "other"))
        np.testing.assert_array_equal(again.predict_proba(paths), expected)
        assert again.get_params() == {**classifier.get_params(), "cache_dir": again.cache_dir}


def test_what_it_learned_can_be_saved_as_a_model(classifier, photos, tmp_path):
    from headstart import Cache, load, save

    classifier.fit(photos)
    save(classifier.model_, tmp_path / "run")
    found = load(tmp_path / "run").predict(photos, device="cpu", cache=Cache(tmp_path / "c"))
    assert [one.label for one in found] == classifier.predict(photos).tolist()


@pytest.mark.parametrize("method", ["finetune", "scratch"])
def test_methods_that_train_are_named_or_given(method, backbone, tmp_path):
    from headstart.methods import METHODS
    from headstart.training.optim import Training

    rng = np.random.default_rng(0)
    images = rng.integers(0, 128, (16, 32, 32, 3), dtype=np.uint8)
    images[::2] += 100
    labels = np.arange(16) % 2
    settings = METHODS[method](training=Training(epochs=1), seed=3)
    options = {"backbone": backbone, "engine": "fp32", "cache_dir": str(tmp_path)}
    given = ImageClassifier(method=settings, **options).fit(images, labels)
    assert given.model_.record["method"]["name"] == method
    assert given.model_.record["method"]["seed"] == 3
    assert given.predict_proba(images).shape == (16, 2)
    assert clone(given).method == settings
    by_name = ImageClassifier(method=method, imbalance="none", random_state=5)._create_method(5)
    kind = Finetune.measured if method == "finetune" else METHODS[method]
    assert by_name == kind(seed=5, loss=replace(settings.loss, imbalance="none"))
    with pytest.raises(UnknownNameError, match=method):
        ImageClassifier(method=method[:-1], **options).fit(images, labels)


# ---------------------------------------------------------------- abstaining


def test_with_a_wanted_risk_it_says_which_images_are_too_unsure(classifier):
    images, names = coloured(n=16)
    classifier.set_params(max_risk=0.3).fit(images, names)
    threshold = classifier.model_.task.selected.threshold
    sure = classifier.predict_proba(images).max(axis=1)
    np.testing.assert_array_equal(classifier.abstains(images), sure < threshold)
    assert clone(classifier).max_risk == 0.3


def test_where_no_threshold_is_known_it_says_why(classifier):
    images, names = coloured(n=4)
    with pytest.raises(UsageError, match=r"`max_risk` None"):
        classifier.fit(images, names).abstains(images)
    classifier.set_params(max_risk=0.01)
    with pytest.raises(UsageError, match="cannot prove a risk below"):
        classifier.fit(images, names).abstains(images)
