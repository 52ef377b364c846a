"""The budget of a race is a part of the run's: what comes before and after it counts."""

import time
from dataclasses import replace

import numpy as np
import pytest

from headstart.cache import Cache
from headstart.data.dataset import Dataset, Sample
from headstart.features.extractor import Extractor
from headstart.methods.linear_probe import LinearProbe
from headstart.methods.pretraining import SMALL_ARCHITECTURE, random_backbone
from headstart.selection import expected_gain as gains
from headstart.selection.progress import FirstModel, TimeLimit
from headstart.selection.race import decide
from headstart.selection.race_context import (
    FINISHING_SECONDS,
    LATER_PASSES,
    RaceContext,
    create_context,
)


def drawn(n, *, noise=0.5):
    rng, samples = np.random.default_rng(0), []
    for i in range(n):
        image = rng.integers(0, 90, (32, 32, 3), dtype=np.uint8)
        shown = i % 2 if rng.random() >= noise else rng.integers(2)
        image[:, : 16 * shown] += 120
        samples.append(Sample(image=image, target=("full", "half")[i % 2]))
    return Dataset(samples=tuple(samples), classes=("full", "half"))


@pytest.fixture(scope="module")
def backbone():
    return random_backbone(SMALL_ARCHITECTURE)


@pytest.fixture
def extractor(tmp_path):
    with Cache(tmp_path / "cache") as cache:
        yield Extractor(cache=cache, engine="fp32", device="cpu")


def context_of(backbone, extractor, budget):
    return create_context([backbone], (drawn(20), None), extractor, budget, 0, None, lambda _: None)


def test_what_comes_before_and_after_the_race_counts(backbone, extractor):
    alone = context_of(backbone, extractor, 60.0)
    assert (alone.limit, alone.reserved, alone.total(7.0)) == (60.0, 0.0, 7.0)
    started_at = time.perf_counter() - 20
    limit = TimeLimit(seconds=60.0, started_at=started_at, later_images=50)
    context = context_of(backbone, extractor, limit)
    assert context.before == pytest.approx(20, abs=1)
    assert context.reserved == FINISHING_SECONDS
    context.image_seconds, context.first_probe_seconds = 0.1, 1.5
    assert context.reserved == pytest.approx(FINISHING_SECONDS + 50 * LATER_PASSES * 0.1 + 3.0)
    assert context.limit == pytest.approx(60 - context.before - context.reserved)
    assert context.total(7.0) == pytest.approx(7 + context.before + context.reserved)
    assert context.left <= context.limit


def test_the_rest_of_a_short_budget_is_not_reserved(backbone, extractor):
    context = context_of(backbone, extractor, TimeLimit(seconds=10.0, later_images=5))
    assert context.reserved == pytest.approx(1.0)
    over = TimeLimit(seconds=10.0, started_at=time.perf_counter() - 20, later_images=5)
    assert context_of(backbone, extractor, over).left == 0.0


def test_trainings_fit_into_what_the_run_has_left(backbone, extractor, monkeypatch):
    per_epoch, log = {"fine-tuning all": 10.0, "fine-tuning last:2": 5.0}, []

    def estimate(context, candidate, train, n_predictions):
        return per_epoch.get(candidate.name, 100.0) * candidate.method.training.epochs

    monkeypatch.setattr(gains, "estimate_training", estimate)
    monkeypatch.setattr(gains, "train_candidate", lambda _, entry, __: log.append(entry.candidate))
    monkeypatch.setattr(gains, "pretraining_is_useless", lambda *_: False)
    monkeypatch.setattr(RaceContext, "elapsed", property(lambda self: 5.0))
    limit = TimeLimit(seconds=60.0, started_at=time.perf_counter() - 20, later_images=50)
    decide([backbone], drawn(100), extractor=extractor, budget=limit)
    assert [one.name for one in log] == ["fine-tuning last:2"]  # 31 s are left
    assert log[0].method.training.epochs in {5, 6}


def test_features_that_use_up_the_budget_are_reported_and_one_probe_is_fitted(
    backbone, extractor, monkeypatch
):
    """The clock moves with the images: 200 of them take 20 s, the budget is 8 s."""
    clock, told, events = [0.0], [], []

    def tick(step, done, total):
        clock[0] = 0.1 * done if total == 200 else clock[0]

    monkeypatch.setattr(RaceContext, "elapsed", property(lambda self: clock[0]))
    watched = replace(extractor, progress=tick)
    found = decide(
        [backbone],
        drawn(200, noise=0.3),
        extractor=watched,
        budget=8.0,
        on_progress=told.append,
        notify=events.append,
    )
    assert [type(event) for event in events] == [FirstModel]
    assert isinstance(found.method, LinearProbe)
    assert (found.method.folds, len(found.method.penalties)) == (2, 1)
    (row,) = found.record["rows"]
    assert row["state"] == "chosen"
    assert row["score"]["value"] > 0.7
    assert found.record["folds"] == 2
    (sentence,) = [why for why in found.record["why"] if why.startswith("The features of 200")]
    assert "take about 20 s; 8 s of the 8 s budget are left for the race" in sentence
    assert sentence in told
    assert "Skipped all trainings: the features alone use up the budget." in found.record["why"]


def test_features_that_fit_are_followed_by_the_usual_probes(backbone, extractor, monkeypatch):
    monkeypatch.setattr(RaceContext, "elapsed", property(lambda self: 1.0))
    found = decide([backbone], drawn(60, noise=0), extractor=extractor, budget=8.0)
    assert len(found.record["rows"]) == 3
    assert found.method == LinearProbe()
    without = decide([backbone], drawn(60, noise=0), extractor=extractor, budget=0)
    assert len(without.record["rows"]) == 3
