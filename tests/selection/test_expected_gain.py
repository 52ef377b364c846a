"""The choice by expected gain: epochs that fit, one hold-out, and the model that is kept."""

import itertools
import json
import signal
from dataclasses import replace

import numpy as np
import pytest

from headstart.cache import Cache
from headstart.data.dataset import Dataset, Sample
from headstart.errors import TrainingError
from headstart.features.extractor import Extractor
from headstart.methods.pretraining import SMALL_ARCHITECTURE, random_backbone
from headstart.models.build import create_model
from headstart.selection import expected_gain as gains
from headstart.selection.candidates import (
    EPOCHS,
    LEAST_EPOCHS,
    is_resizable,
    recipe_candidates,
    with_epochs,
)
from headstart.selection.expected_gain import choose_epochs
from headstart.selection.race import decide
from headstart.selection.race_context import RaceContext
from headstart.selection.race_estimate import estimate_race
from headstart.training.job import Epoch

ALL, TWO, LAST = "fine-tuning all", "fine-tuning last:2", "fine-tuning last:1"


def drawn(n, *, noise, seed=0):
    """Two classes; a share of the images shows nothing of its class."""
    rng = np.random.default_rng(seed)
    samples = []
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


class Clock:
    """A clock that stands still unless a training runs; a training takes its estimate."""

    def __init__(self, per_epoch):
        self.now, self.per_epoch, self.accuracy, self.log = 5.0, per_epoch, {}, []

    def estimate(self, context, candidate, train, n_predictions):
        n_epochs = getattr(candidate.method, "training", None)
        return self.per_epoch[candidate.name] * (n_epochs.epochs if n_epochs else 1)

    def train(self, candidate, train, held_out, *, extractor, session, watch):
        value = self.accuracy[candidate.name]
        if isinstance(value, Exception):
            raise value
        n_epochs = candidate.method.training.epochs
        self.log.append((candidate.name, n_epochs, len(train), len(held_out)))
        self.now += self.per_epoch[candidate.name] * n_epochs
        targets = held_out.targets()
        right = np.arange(len(targets)) < round(value * len(targets))
        logits = np.eye(2)[np.where(right, targets, 1 - targets)]
        model = create_model(candidate.backbone, train)
        return logits, replace(
            model, record={"epochs": [{}] * (1 + n_epochs), "by": candidate.name}
        )


@pytest.fixture
def clock(monkeypatch):
    clock = Clock({ALL: 10.0, TWO: 5.0, LAST: 2.0})
    monkeypatch.setattr(gains, "estimate_training", clock.estimate)
    monkeypatch.setattr(gains, "train_on_holdout", clock.train)
    monkeypatch.setattr(gains, "pretraining_is_useless", lambda *_: False)
    monkeypatch.setattr(RaceContext, "elapsed", property(lambda self: clock.now))
    return clock


def rows(found):
    return {row["name"]: row for row in found.record["rows"]}


def test_a_large_gain_is_found_within_the_budget_and_its_model_is_kept(backbone, extractor, clock):
    clock.accuracy = {ALL: 0.95, TWO: 0.7, LAST: 0.7}
    data = drawn(200, noise=0.5)
    found = decide([backbone], data, extractor=extractor, budget=200)
    assert found.method.train_from == "all"
    assert found.trained.model.record["by"] == ALL
    assert len(found.trained.rows) == len(found.trained.logits) == 40
    assert clock.log[0] == (ALL, EPOCHS, 160, 40)
    row = rows(found)[ALL]
    assert (row["state"], row["images"]) == ("chosen", 40)
    assert row["trains"].startswith("100 % of the parameters")
    assert any(w.startswith(f"F{ALL[1:]} is expected to be better") for w in found.record["why"])
    assert json.loads(json.dumps(found.record)) == found.record


def test_a_gain_need_not_be_significant_and_the_reason_says_so(backbone, extractor, clock):
    """At 0.75 with a probe of about the half of the noise right, 40 images prove nothing."""
    clock.accuracy = {ALL: 0.85, TWO: 0.5, LAST: 0.5}
    found = decide([backbone], drawn(200, noise=0.5), extractor=extractor, budget=200)
    row = rows(found)[ALL]
    assert 0 < row["gain"]["value"] < 0.2
    assert not row["significant"]
    assert found.method.train_from == "all"
    (why,) = (w for w in found.record["why"] if w.startswith(f"F{ALL[1:]} is expected"))
    assert "points): measured +" in why
    assert "on the same 40 held-out images, not significantly different" in why


def test_without_an_expected_gain_the_probe_stays(backbone, extractor, clock):
    clock.accuracy = dict.fromkeys((ALL, TWO, LAST), 0.5)
    found = decide([backbone], drawn(200, noise=0.5), extractor=extractor, budget=200)
    assert (found.method.name, found.trained) == ("linear-probe", None)
    assert sum("is not expected to be better" in w for w in found.record["why"]) == 3


def test_within_half_a_point_the_quickest_training_is_chosen(backbone, extractor, clock):
    clock.accuracy = dict.fromkeys((ALL, TWO, LAST), 0.95)
    found = decide([backbone], drawn(200, noise=0.5), extractor=extractor, budget=1000)
    assert found.method.train_from == "last:1"
    assert found.trained.model.record["by"] == LAST


def test_the_epochs_are_scaled_to_what_is_left(backbone, extractor, clock):
    clock.accuracy = dict.fromkeys((ALL, TWO, LAST), 0.95)
    found = decide([backbone], drawn(200, noise=0.5), extractor=extractor, budget=60)
    assert clock.log[0][:2] == (ALL, 5)  # 95 % of 55 s, 10 s each
    assert rows(found)[TWO]["state"] == "left out"
    assert found.method.training.epochs == 5
    assert clock.now <= 60


def test_what_does_not_fit_is_offered_and_a_smaller_rung_is_trained(backbone, extractor, clock):
    clock.accuracy = dict.fromkeys((ALL, TWO, LAST), 0.95)
    found = decide([backbone], drawn(200, noise=0.5), extractor=extractor, budget=15)
    assert [line[:2] for line in clock.log] == [(LAST, 4)]
    skipped = [w for w in found.record["why"] if w.startswith("Skipped: ")]
    assert skipped[0] == (
        f"Skipped: {ALL} (needs about 30 s; 10 s of the 15 s budget left). Try `--budget 1m`."
    )
    assert rows(found)[ALL]["state"] == "left out"


def test_a_training_that_fails_costs_only_itself(backbone, extractor, clock):
    clock.accuracy = {ALL: TrainingError("The loss is nan. Lower it."), TWO: 0.95, LAST: 0.5}
    found = decide([backbone], drawn(200, noise=0.5), extractor=extractor, budget=500)
    assert found.method.train_from == "last:2"
    assert found.trained.model.record["by"] == TWO
    assert rows(found)[ALL]["note"] == "The loss is nan"
    assert f"F{ALL[1:]} has no score: The loss is nan." in found.record["why"]


def test_nothing_is_trained_where_half_a_point_cannot_be_gained(backbone, extractor, clock):
    found = decide([backbone], drawn(200, noise=0), extractor=extractor, budget=500)
    assert found.method.name == "linear-probe"
    assert clock.log == []
    assert any("even a perfect model could not gain half a point" in w for w in found.record["why"])


def test_a_rare_class_that_is_missed_is_something_to_gain(backbone, extractor, clock):
    """500 and 10 images: two rare ones that are missed are 0.4 % of the images, 10 points."""
    rng, samples = np.random.default_rng(0), []
    for i in range(510):
        image = rng.integers(0, 90, (32, 32, 3), dtype=np.uint8)
        image[:, : 16 * (500 <= i < 508)] += 120
        samples.append(Sample(image=image, target="full" if i < 500 else "half"))
    data = Dataset(samples=tuple(samples), classes=("full", "half"))
    clock.accuracy = {ALL: 0.95, TWO: 0.7, LAST: 0.7}
    found = decide([backbone], data, extractor=extractor, budget=5000)
    assert found.record["measure"] == "balanced accuracy"
    assert not any("could not gain half a point" in w for w in found.record["why"])
    assert clock.log


def test_without_a_budget_nothing_is_trained(backbone, extractor, clock):
    found = decide([backbone], drawn(60, noise=0.5), extractor=extractor, budget=0)
    assert found.method.name == "linear-probe"
    assert any("budget is 0 s. Try `--budget 2m`" in w for w in found.record["why"])


def test_ctrl_c_keeps_what_was_trained_before(backbone, extractor, clock, monkeypatch):
    clock.accuracy = {ALL: 0.95, TWO: 0.5, LAST: 0.5}

    def second(candidate, *parts, watch, **others):
        if clock.log:
            signal.raise_signal(signal.SIGINT)
            watch.session(0).progress("training", 1, 10)
            pytest.fail("the training went on")
        return clock.train(candidate, *parts, watch=watch, **others)

    monkeypatch.setattr(gains, "train_on_holdout", second)
    found = decide([backbone], drawn(200, noise=0.5), extractor=extractor, budget=500)
    assert found.record["stopped"]
    assert found.trained.model.record["by"] == ALL
    assert rows(found)[TWO]["note"] == "stopped by Ctrl-C"


def test_the_plan_has_the_epochs_and_what_would_be_skipped(backbone, extractor, clock):
    found = estimate_race([backbone], drawn(200, noise=0.5), extractor=extractor, budget=1e6)
    notes = {row["name"]: row["note"] for row in found["rows"]}
    assert notes[ALL] == "8 epochs, about 80 s"
    assert any(w.startswith(f"F{ALL[1:]} (trains 100 % of the parameters") for w in found["why"])
    short = estimate_race([backbone], drawn(200, noise=0.5), extractor=extractor, budget=1.0)
    assert {row["state"] for row in short["rows"]} == {"probed", "left out"}
    assert "Would be skipped" in short["why"][0]


def test_epochs_that_fit_never_take_longer_than_what_is_left():
    for least, more, left in itertools.product(
        (1.0, 10.0), (0.0, 0.1, 3.0), np.linspace(0, 60, 25)
    ):
        most = least + more * (EPOCHS - LEAST_EPOCHS)
        epochs = choose_epochs((least, most), left)
        assert epochs == 0 or LEAST_EPOCHS <= epochs <= EPOCHS
        assert epochs == 0 or least + more * (epochs - LEAST_EPOCHS) <= left + 1e-9
        if 0 < epochs < EPOCHS:
            assert least + more * (epochs + 1 - LEAST_EPOCHS) > left - 1e-9
        assert (epochs == 0) == (left < least)


def test_candidates_are_the_rungs_from_the_largest_at_the_size_of_the_recipe(backbone):
    candidates = recipe_candidates(backbone, 3, include_scratch=False)
    assert [one.method.train_from for one in candidates] == ["all", "last:2", "last:1"]
    assert {one.method.training.patience for one in candidates} == {0}
    assert all(one.method.augmentation.flip and one.method.seed == 3 for one in candidates)
    assert with_epochs(candidates[0], 4).method.training.epochs == 4
    scratch, *_ = recipe_candidates(backbone, 3, include_scratch=True)
    assert scratch.method.name == "scratch"
    crop = backbone.spec.preprocess.crop
    expected = crop if crop < 192 else 160
    assert {one.backbone.spec.preprocess.crop for one in candidates} == {expected}


def test_a_transformer_keeps_the_size_of_its_positions():
    from headstart.backbones.catalog import resolve
    from headstart.methods.pretraining import random_like

    assert not is_resizable(random_like(resolve("timm/vit_tiny_patch16_224")))
    assert is_resizable(random_like(resolve("resnet18")))


def test_a_training_whose_first_epoch_outlasts_the_budget_has_no_score(
    backbone, extractor, clock, monkeypatch
):
    """The estimate was wrong, as on a loaded machine: the race ends with its budget."""
    steps = []

    def slow(candidate, train, held_out, *, extractor, session, watch):
        session.on_epoch(Epoch(number=0, loss=None, score=0, held_out_loss=0, seconds=0, best=0), 8)
        for step in range(100):
            steps.append(step)
            clock.now += 10
            session.progress("training", step, 800)
        pytest.fail("the training went on")

    monkeypatch.setattr(gains, "train_on_holdout", slow)
    found = decide([backbone], drawn(200, noise=0.5), extractor=extractor, budget=200)
    assert found.method.name == "linear-probe"
    assert len(steps) == 20
    assert rows(found)[ALL]["note"] == "the budget was used up in its first epoch"
    assert clock.now <= 210
