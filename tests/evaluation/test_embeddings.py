"""Foreign images, neighbours and the map, on features whose places are known."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest

from headstart.data.dataset import Dataset, Sample
from headstart.data.prepare import PreparedData
from headstart.errors import DataError
from headstart.evaluation.classification import Evaluation, evaluate_probabilities
from headstart.evaluation.embeddings import (
    MAX_MAP_IMAGES,
    MAX_REPORTED,
    EmbeddedDataset,
    find_nearest_images,
    find_outliers,
    map_images,
)
from headstart.models.tasks import ClassificationTask


def known(train: int = 60, test: int = 40, *, groups: bool = False, d: int = 8) -> EmbeddedDataset:
    rng = np.random.default_rng(0)
    n = train + test
    targets = np.arange(n) % 2
    values = rng.normal(size=(n, d)) * 0.2 + np.eye(2, d)[targets]
    samples = tuple(
        Sample(
            image=f"{i}.png",  # type: ignore[arg-type]
            target=("cat", "dog")[target],
            split="train" if i < train else "test",
            group=str(i // 4) if groups else None,
            digest=str(i),
        )
        for i, target in enumerate(targets)
    )
    data = Dataset(samples=samples, classes=("cat", "dog"))
    return EmbeddedDataset(
        data=data,
        values=values.astype(np.float32),
        train=np.arange(train),
        test=np.arange(train, n),
    )


def answered(held: EmbeddedDataset, wrong: int) -> Evaluation:
    targets = held.data.targets()[held.test]
    chances = np.where(np.eye(2)[targets] == 1, 0.9, 0.1)
    chances[:wrong] = 1 - chances[:wrong]
    task = ClassificationTask(classes=held.data.classes)
    names = tuple(held.data.samples[row].name for row in held.test)
    return evaluate_probabilities(task, chances, targets, names=names)


@pytest.mark.parametrize("groups", [False, True])
def test_foreign_images_come_first(groups: bool) -> None:
    held = known(groups=groups)
    planted = held.test[[3, 17]]
    held.values[planted] = -held.values[planted]
    found, share = find_outliers(held, np.ones(len(held.test), bool))
    assert {one.row for one in found[:2]} == set(planted.tolist())
    assert all(one.beyond == 1 for one in found[:2])
    assert [one.score for one in found] == sorted((one.score for one in found), reverse=True)
    assert 2 / 40 <= share < 0.2


def test_nothing_is_typical_of_one_group() -> None:
    held = known(train=4, groups=True)
    found, share = find_outliers(held, np.ones(len(held.test), bool))
    assert math.isnan(share)
    assert math.isnan(found[0].beyond)
    with pytest.raises(DataError, match="two images"):
        find_outliers(known(train=1), np.ones(40, bool))


def test_neighbours_are_the_most_similar_of_those_learned_from() -> None:
    held = known()
    found = find_nearest_images(held, answered(held, wrong=2))
    assert [one.right for one in found] == [False, False, True, True, True, True]
    for one in found:
        unit = held.values / np.linalg.norm(held.values, axis=1, keepdims=True)
        cosines = unit[held.train] @ unit[one.row]
        assert [row for row, *_ in one.neighbours] == np.argsort(-cosines)[:5].tolist()
        assert one.neighbours[0][3] == pytest.approx(cosines.max(), abs=1e-6)
        assert one.label == held.data.samples[one.row].target
        assert (one.predicted == one.label) is one.right


def test_a_perfect_model_has_only_right_neighbourhoods() -> None:
    held = known()
    assert all(one.right for one in find_nearest_images(held, answered(held, wrong=0)))


@pytest.mark.parametrize(("train", "by"), [(60, "t-SNE"), (4, "PCA")])
def test_the_map_is_the_same_every_time_and_keeps_classes_apart(train: int, by: str) -> None:
    held = known(train=train, test=20)
    correct = np.arange(20) != 7
    found, told = map_images(held, correct)
    assert told == by
    assert map_images(held, correct) == (found, told)
    assert [one.right for one in found[:20]] == correct.tolist()
    assert all(one.right is None for one in found[20:])
    places = np.array([(one.x, one.y) for one in found])
    assert places.min() == 0
    assert places.max() == 1
    labels = np.array([one.label == "cat" for one in found])
    centres = places[labels].mean(axis=0), places[~labels].mean(axis=0)
    closer = np.linalg.norm(places - centres[0], axis=1) < np.linalg.norm(
        places - centres[1], axis=1
    )
    assert (closer == labels).mean() > 0.9


def test_what_is_kept_is_bounded() -> None:
    held = known(train=500, test=300, d=3)
    correct = np.ones(300, bool)
    assert len(find_outliers(held, correct)[0]) == MAX_REPORTED
    found, _ = map_images(held, correct)
    assert len(found) == MAX_MAP_IMAGES
    assert sum(one.right is None for one in found) == MAX_MAP_IMAGES - 300


def test_too_few_for_a_map() -> None:
    assert map_images(known(train=1, test=1), np.ones(1, bool)) == ((), "")
    one_feature = map_images(known(train=3, test=3, d=2), np.ones(3, bool))
    assert len(one_feature[0]) == 6


class Counting:
    """Features of one number for every image, and which images were asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def features(self, backbone: object, samples: tuple[Sample, ...]) -> SimpleNamespace:
        self.asked += [sample.digest or "" for sample in samples]
        numbers = [float(sample.digest or "nan") for sample in samples]
        return SimpleNamespace(values=np.array(numbers, np.float32)[:, None])


def test_a_trained_backbone_sees_only_so_many_images_again() -> None:
    data = known(train=60, test=40).data
    prepared, extractor = PreparedData(data=data, records=(), findings=()), Counting()
    held = EmbeddedDataset.of(None, prepared, extractor, max_train=6)  # type: ignore[arg-type]
    assert held.train.tolist() == [0, 10, 20, 30, 40, 50]
    assert held.test.tolist() == list(range(60, 100))
    assert extractor.asked == [str(row) for row in (*held.train, *held.test)]
    assert [held.values[row, 0] for row in (20, 60)] == [20, 60]
    assert np.isnan(held.values[1])
    whole = EmbeddedDataset.of(None, prepared, Counting())  # type: ignore[arg-type]
    assert whole.values[:, 0].tolist() == list(range(100))
