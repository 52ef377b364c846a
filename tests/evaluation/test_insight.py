"""What a run's features tell, on features whose wrong labels and foreign images are planted."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.neighbors import NearestNeighbors

from headstart.backbones.catalog import resolve
from headstart.backbones.frozen import FrozenBackbone
from headstart.backbones.weights import locate
from headstart.cache import Cache
from headstart.data.checks.scan import ImageRecord
from headstart.data.dataset import Dataset, Sample
from headstart.data.demo import classification as demo
from headstart.data.prepare import PreparedData, prepare
from headstart.errors import SetupError, UnknownNameError
from headstart.evaluation.classification import evaluate_probabilities
from headstart.evaluation.insight import ASPECTS, Diagnostics, diagnose
from headstart.features.extractor import Extractor
from headstart.models.tasks import ClassificationTask


@dataclass
class Shelf:
    """An extractor whose features are given by the image's digest; counts who asked."""

    values: np.ndarray[Any, Any]
    engine: str = "fp32"
    asked: list[str] = field(default_factory=list)

    def features(self, backbone: Any, samples: tuple[Sample, ...]) -> SimpleNamespace:
        self.asked.append(backbone.identity)
        rows = [int(sample.digest or "") for sample in samples]
        return SimpleNamespace(values=self.values[rows] * backbone.sign)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """All that is looked into, and the numbers that it was made of."""

    prepared: PreparedData
    values: np.ndarray[Any, Any]
    targets: np.ndarray[Any, Any]
    correct: np.ndarray[Any, Any]
    task: ClassificationTask

    def seen(
        self, *aspects: str, trained: bool = False, seed: int = 0, **record: Any
    ) -> Diagnostics:
        source = SimpleNamespace(identity="source", sign=1.0)
        backbone = SimpleNamespace(identity="trained", sign=-1.0) if trained else source
        model = SimpleNamespace(backbone=backbone, engine="fp32", record=record, task=self.task)
        judged = self.prepared.test.targets()
        if judged.ndim == 1:
            width = len(self.task.classes)
            chances = np.full((len(judged), width), 0.1 / max(width - 1, 1))
            said = np.where(self.correct, judged, (judged + 1) % width)
            chances[np.arange(len(judged)), said] = 0.9 if width > 1 else 1.0
        else:
            chances = np.where(judged == 1, 0.9, 0.1)
        evaluation = evaluate_probabilities(
            self.task,
            chances,
            judged,
            names=tuple(sample.name for sample in self.prepared.test.samples),
            groups=self.prepared.test.groups(),
        )
        return diagnose(
            source,  # type: ignore[arg-type]
            model,  # type: ignore[arg-type]
            self.prepared,
            evaluation,
            extractor=Shelf(self.values),  # type: ignore[arg-type]
            seed=seed,
            aspects=aspects or ASPECTS,
        )


def setting(
    n: int = 120,
    *,
    classes: int = 3,
    test: int = 30,
    width: int = 10,
    groups: int | None = None,
    several: bool = False,
) -> Setting:
    """Classes around corners of a cube; the last ``test`` images are held out."""
    rng = np.random.default_rng(0)
    targets = np.arange(n) % classes
    values = rng.normal(size=(n, width)) * 0.15 + np.eye(classes, width)[targets]
    names = tuple(f"class {i}" for i in range(classes))
    samples = tuple(
        Sample(
            image=np.zeros((4, 4, 3), np.uint8),
            target=tuple({names[t], names[i % 2]}) if several else names[t],
            group=None if groups is None else str(i // groups),
            split="train" if i < n - test else "test",
            digest=str(i),
            title=f"{i}.png",
        )
        for i, t in enumerate(targets)
    )
    kind: Any = "multilabel" if several else "multiclass"
    data = Dataset(samples=samples, classes=names, kind=kind)
    records = tuple(
        ImageRecord(digest=str(i), width=10 + i, height=10, format="PNG") for i in range(n)
    )
    return Setting(
        prepared=PreparedData(data=data, records=records, findings=()),
        values=values.astype(np.float32),
        targets=targets,
        correct=np.arange(test) % 5 != 0,
        task=ClassificationTask(classes=names, kind=kind),
    )


def mislabelled(held: Setting, rows: list[int]) -> Setting:
    """Give some images the label of the next class."""
    samples = list(held.prepared.data.samples)
    names = held.prepared.data.classes
    for row in rows:
        wrong = names[(held.targets[row] + 1) % len(names)]
        samples[row] = replace(samples[row], target=wrong)
    data = replace(held.prepared.data, samples=tuple(samples))
    return replace(held, prepared=replace(held.prepared, data=data))


def test_every_aspect_is_seen_and_can_be_written_down() -> None:
    found = setting().seen()
    assert found.notes == ()
    assert set(found.seconds) == set(ASPECTS)
    assert found.features == "frozen backbone"
    plain = found.as_dict()
    assert plain["curve"][-1]["score"]["value"] == found.curve[-1].score.value
    assert all(plain[key] for key in ("slices", "outliers", "neighbourhoods", "places"))


def test_planted_wrong_labels_come_first() -> None:
    planted = [3, 20, 50, 77, 100, 110]
    found = mislabelled(setting(), planted).seen("labels")
    assert {one.row for one in found.label_errors[:6]} == set(planted)
    assert found.labels_looked_at == 120
    assert found.labels_in_doubt in range(1, 7)  # a rough count: the mean chance sets its bar
    first = found.label_errors[0]
    assert first.likely == f"class {first.row % 3}"
    assert first.label == f"class {(first.row + 1) % 3}"
    assert first.part == ("train" if first.row < 90 else "test")
    scores = [one.score for one in found.label_errors]
    assert scores == sorted(scores, reverse=True)
    assert all(one.label != one.likely for one in found.label_errors)


def test_wrong_labels_planted_in_images_are_found(tmp_path: Path) -> None:
    """The same as benchmarks/label_noise.py with fewer images: real features, 5 % wrong."""
    spec = resolve("embedded/efficientnet_lite0", offline=True)
    backbone = FrozenBackbone.read(spec, locate(spec, offline=True))
    whole = demo.load("digits")
    some = whole.subset([row for row in range(240) if row % 60 < 30])
    with Cache(tmp_path) as cache:
        clean = prepare(replace(some, classes=whole.classes[:4]), cache=cache)
        extractor = Extractor(cache=cache, engine="fp32", device="cpu")
        hits = 0
        for seed in range(4):
            rng = np.random.default_rng(seed)
            planted = rng.choice(120, 6, replace=False).tolist()
            held = Setting(
                prepared=clean,
                values=np.zeros(0),
                targets=clean.data.targets(),
                correct=np.ones(len(clean.test), bool),
                task=ClassificationTask(classes=clean.data.classes),
            )
            source = SimpleNamespace(backbone=backbone, record={})
            noisy = mislabelled(held, planted).prepared
            judged = noisy.test.targets()
            names = tuple(sample.name for sample in noisy.test.samples)
            evaluation = evaluate_probabilities(held.task, np.eye(4)[judged], judged, names=names)
            found = diagnose(
                backbone,
                source,  # type: ignore[arg-type]
                noisy,
                evaluation,
                extractor=extractor,
                seed=seed,
                aspects=("labels",),
            )
            hits += len({one.row for one in found.label_errors[:6]} & set(planted))
    assert hits / 24 >= 0.6


def test_the_doubt_ranks_as_scikit_learn_would() -> None:
    held = mislabelled(setting(classes=4, width=40), list(range(0, 120, 13)))
    found = held.seen("labels")
    targets = held.prepared.data.targets()
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    chances = cross_val_predict(
        LogisticRegression(C=1.0), held.values, targets, cv=folds, method="predict_proba"
    )
    reference = np.argsort(chances[np.arange(120), targets])[:10].tolist()
    assert len({one.row for one in found.label_errors[:10]} & set(reference)) >= 8


def test_wrong_labels_are_told_by_the_backbone_before_training() -> None:
    """What has been trained on a wrong label confirms it."""
    found = mislabelled(setting(), [5]).seen(trained=True)
    assert found.features == "trained backbone"
    assert found.label_errors[0].row == 5
    shelf_order = ["source", "trained"]
    held = setting()
    shelf = Shelf(held.values)
    source = SimpleNamespace(identity="source", sign=1.0)
    model = SimpleNamespace(
        backbone=SimpleNamespace(identity="trained", sign=1.0), engine="fp32", record={}
    )
    chances = np.eye(3)[held.prepared.test.targets()]
    names = tuple(sample.name for sample in held.prepared.test.samples)
    judged = held.prepared.test.targets()
    evaluation = evaluate_probabilities(held.task, chances, judged, names=names)
    diagnose(source, model, held.prepared, evaluation, extractor=shelf)  # type: ignore[arg-type]
    assert shelf.asked == shelf_order


def test_neighbours_and_foreign_images_are_scikit_learns() -> None:
    held = setting()
    foreign = 100
    held.values[foreign] = -10 * held.values[foreign]
    found = held.seen("outliers", "neighbours")
    model = NearestNeighbors(n_neighbors=5, metric="cosine").fit(held.values[:90])
    for one in found.neighbourhoods:
        away, rows = model.kneighbors(held.values[[one.row]])
        assert [row for row, *_ in one.neighbours] == rows[0].tolist()
        assert [cosine for *_, cosine in one.neighbours] == pytest.approx(1 - away[0], abs=1e-5)
    assert found.outliers[0].row == foreign
    away, _ = model.kneighbors(held.values[90:], n_neighbors=1)
    by_row = {one.row: one.score for one in found.outliers}
    ours = [by_row[row] for row in range(90, 120)]
    assert ours == pytest.approx(np.sqrt(2 * away[:, 0]), abs=1e-5)  # a chord of the sphere


def test_slices_are_those_of_the_held_out_images() -> None:
    held = setting(groups=6)
    found = held.seen("slices")
    kinds = {kind: [one for one in found.slices if one.kind == kind] for kind in ("class", "group")}
    for one in kinds["class"]:
        inside = held.targets[90:] == int(one.name[-1])
        assert one.images == inside.sum()
        assert one.score.value == pytest.approx(held.correct[inside].mean())
        assert one.rest == pytest.approx(held.correct[~inside].mean())
    assert [one.name for one in kinds["group"]] == ["15", "16", "17", "18", "19"]
    thirds = [one for one in found.slices if one.kind == "size"]
    assert [one.images for one in thirds] == [10, 10, 10]  # each image is wider than the last
    assert thirds[0].score.value == pytest.approx(held.correct[:10].mean())


def test_the_curve_grows_with_images_and_agrees_with_scikit_learn() -> None:
    held = setting(200, classes=5, width=30)
    held.values[:] += np.random.default_rng(1).normal(size=held.values.shape) * 0.3
    found = held.seen("curve", penalty=1e-3)
    counts = [point.images for point in found.curve]
    assert counts == sorted(counts)
    assert found.curve[-1].score.value > found.curve[0].score.value
    values, targets = held.values[:170], held.targets[:170]
    model = LogisticRegression(C=10.0, max_iter=500)
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    told = cross_val_predict(model, values, targets, cv=folds)
    assert found.curve[-1].score.value == pytest.approx((told == targets).mean(), abs=0.06)


def test_the_map_keeps_who_is_near_whom() -> None:
    held = setting()
    found = held.seen("map")
    assert found.map_by == "t-SNE"
    assert len(found.places) == 120
    rows = [one.row for one in found.places]
    flat = np.array([(one.x, one.y) for one in found.places])
    near = NearestNeighbors(n_neighbors=2).fit(flat).kneighbors(flat)[1][:, 1]
    labels = held.targets[rows]
    linear = PCA(2).fit_transform(held.values[rows])
    by_lines = NearestNeighbors(n_neighbors=2).fit(linear).kneighbors(linear)[1][:, 1]
    share = (labels[near] == labels).mean()
    assert share >= (labels[by_lines] == labels).mean()


def test_the_same_seed_tells_the_same() -> None:
    def told(insight: Diagnostics) -> dict[str, Any]:
        return insight.as_dict() | {"seconds": None}

    assert told(setting().seen()) == told(setting().seen())


def test_nothing_else_is_computed_than_what_was_asked_for() -> None:
    found = setting().seen("slices")
    assert found.slices
    assert set(found.seconds) == {"slices"}
    assert found.label_errors == found.outliers == found.places == ()
    with pytest.raises(UnknownNameError, match="labels"):
        setting().seen("lables")


@pytest.mark.parametrize(
    "held",
    [
        setting(6, classes=2, test=2),
        setting(5, classes=2, test=1),
        setting(8, classes=1, test=2),
        setting(12, classes=6, test=2),
        setting(12, classes=3, test=3, groups=12),
        setting(30, test=6, groups=10),
        setting(30, test=6, width=1),
        setting(40, test=10, several=True),
    ],
    ids=["6", "5", "one class", "2 a class", "one group", "3 groups", "one feature", "multilabel"],
)
@pytest.mark.parametrize("trained", [False, True])
def test_small_and_odd_sets_are_told_as_far_as_they_go(held: Setting, trained: bool) -> None:
    found = held.seen(trained=trained)
    assert len(found.seconds) + len(found.notes) == len(ASPECTS)
    assert all(len(note) > 40 for note in found.notes)
    assert len(found.neighbourhoods) <= len(held.prepared.test)


def test_features_that_are_all_alike_have_no_map() -> None:
    held = setting()
    held.values[:] = 1.0
    found = held.seen()
    assert found.places == ()
    assert max(one.score for one in found.outliers) < 1e-6


def test_broken_features_are_said_and_leave_the_rest() -> None:
    held = setting()
    held.values[7] = np.nan
    found = held.seen()
    assert found.slices
    assert "finite" in " ".join(found.notes)


def test_features_that_cannot_be_made_do_not_cost_the_run(monkeypatch: Any) -> None:
    def full(self: Shelf, backbone: Any, samples: Any) -> None:
        raise SetupError("Expected room for features, got a full disk; do make room.")

    monkeypatch.setattr(Shelf, "features", full)
    found = setting().seen()
    assert found.slices
    assert found.notes[-1].endswith("do make room.")
