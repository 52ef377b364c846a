"""Maps of two domains and the classes that moved, on features whose places are known."""

import numpy as np
import pytest
from scipy.spatial.distance import cosine
from sklearn.metrics import confusion_matrix

from headstart.evaluation.domain_change import MAX_POINTS, class_gaps, find_moves, map_domains


def test_moves_are_those_of_the_table_of_both_predictions() -> None:
    rng = np.random.default_rng(0)
    before, after = rng.integers(0, 4, 60), rng.integers(0, 3, 60)
    table = confusion_matrix(before, after, labels=range(5))
    moves = find_moves([*"abcde"], (before, after))
    assert [m.moved for m in moves] == sorted((m.moved for m in moves), reverse=True)
    for move in moves:
        i = "abcde".index(move.name)
        assert (move.before, move.after, move.kept) == (
            table[i].sum(),
            table[:, i].sum(),
            table[i, i],
        )
        assert move.moved == move.before + move.after - 2 * move.kept
        assert move.gap_before is None
    assert sum(m.moved for m in moves) == 2 * (before != after).sum()


def test_gaps_are_cosine_distances_of_means() -> None:
    rng = np.random.default_rng(1)
    source, target = rng.normal(size=(30, 5)), rng.normal(size=(20, 5)) + 1
    labels, predicted = np.arange(30) % 3, np.arange(20) % 2
    gaps = class_gaps((source, target), (labels, predicted), 4)
    for number in (0, 1):
        means = source[labels == number].mean(0), target[predicted == number].mean(0)
        assert gaps[number] == pytest.approx(cosine(*means))
    assert gaps[2:] == [None, None]  # no target image, and no image at all
    assert class_gaps((0 * source, target), (labels, predicted), 1) == [None]


@pytest.mark.parametrize(("n", "m"), [(5, 7), (40, 30)])
def test_the_map_keeps_domains_that_are_far_apart_separate(n: int, m: int) -> None:
    rng = np.random.default_rng(2)
    features = rng.normal(0, 0.1, (n, 6)) + np.eye(6)[0], rng.normal(0, 0.1, (m, 6)) - np.eye(6)[0]
    drawn = map_domains(features, (["x"] * n, ["y"] * m))
    assert drawn.method == ("PCA" if n + m < 30 else "t-SNE")
    assert [p.is_target for p in drawn.points] == [False] * n + [True] * m
    assert {(p.is_target, p.label) for p in drawn.points} == {(False, "x"), (True, "y")}
    places = np.array([(p.x, p.y) for p in drawn.points])
    assert places.min() == 0
    assert places.max() == 1
    centres = places[:n].mean(0), places[n:].mean(0)
    nearest = np.array([np.linalg.norm(places - c, axis=1) for c in centres]).argmin(0)
    assert nearest.tolist() == [0] * n + [1] * m
    assert map_domains(features, (["x"] * n, ["y"] * m)) == drawn


def test_few_equal_and_many_images() -> None:
    one = np.ones((1, 3))
    assert map_domains((one, one), (["x"], ["x"])).points == ()
    same = np.ones((9, 3))
    assert map_domains((same, same), (["x"] * 9, ["x"] * 9)).points == ()
    rng = np.random.default_rng(3)
    many = rng.normal(size=(300, 2)), rng.normal(size=(8, 2))
    drawn = map_domains(many, (["x"] * 300, ["y"] * 8))
    assert sum(not p.is_target for p in drawn.points) == MAX_POINTS
    assert drawn.as_dict()["points"][0].keys() == {"is_target", "label", "x", "y"}
