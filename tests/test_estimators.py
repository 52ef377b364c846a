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

from headstart import ImageClassifier
from headstart.backbones.backbone import load as load_backbone
from headstart.backbones.catalog import resolve
from headstart.data.dataset import Dataset
from headstart.errors import DataError, LayoutError, UnknownNameError, UsageError
from headstart.methods.linear_probe import LinearProbe

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


@pytest.mark.parametrize(
    "check",
    [
        estimator_checks.check_estimator_cloneable,
        estimator_checks.check_estimator_repr,
        estimator_checks.check_estimator_tags_renamed,
        estimator_checks.check_valid_tag_types,
        estimator_checks.check_no_attributes_set_in_init,
        estimator_checks.check_parameters_default_constructible,
        estimator_checks.check_get_params_invariance,
        estimator_checks.check_set_params,
        estimator_checks.check_mixin_order,
        estimator_checks.check_estimators_unfitted,
    ],
)
def test_scikit_learns_own_checks(check):
    check("ImageClassifier", ImageClassifier())


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
    by_name = ImageClassifier(method=method, imbalance="none", random_state=5)._create_method()
    assert by_name == METHODS[method](seed=5, loss=replace(settings.loss, imbalance="none"))
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
