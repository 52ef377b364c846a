"""The race for boxes and masks: candidates, budget, Ctrl-C, and the model that is kept."""

import itertools
import json
import signal
from dataclasses import replace

import numpy as np
import pytest

from headstart.cache import Cache
from headstart.data.dataset import Boxes, Dataset, Mask, Palette, Sample
from headstart.errors import DataError, TrainingError
from headstart.evaluation.classification import evaluate
from headstart.features.extractor import Extractor
from headstart.methods.finetune import Finetune
from headstart.methods.pretraining import SMALL_ARCHITECTURE, random_backbone
from headstart.selection import expected_gain as gains
from headstart.selection import object_race
from headstart.selection.candidates import method_from_record, method_to_record
from headstart.selection.object_race import (
    ObjectRace,
    decide_objects,
    estimate_objects,
    image_sizes,
    object_candidates,
)
from headstart.selection.progress import FirstModel, TimeLimit
from headstart.selection.race_context import RaceContext

FIRST, SMALL = "fine-tuning last:1 at 320 px", "fine-tuning last:1 at 224 px"
ALL = "fine-tuning all at 320 px"


def masks(n, seed=0):
    """Grey images; the upper rows are dark and of another class."""
    rng, samples = np.random.default_rng(seed), []
    for i in range(n):
        image = rng.integers(120, 200, (32, 32, 3), dtype=np.uint8)
        classes = np.zeros((32, 32), dtype=np.uint8)
        height = int(rng.integers(8, 24))
        image[:height] //= 3
        classes[:height] = 1
        target = Mask(
            source=classes, palette=Palette(codes=((0, "b"), (1, "a"))), present=("b", "a")
        )
        samples.append(Sample(image=image, target=target, title=f"{i}.png"))
    return Dataset(samples=tuple(samples), classes=("b", "a"), kind="segmentation", name="rows")


def boxes(n, seed=0):
    """Dark images with one bright square."""
    rng, samples = np.random.default_rng(seed), []
    for i in range(n):
        image = rng.integers(0, 60, (32, 32, 3), dtype=np.uint8)
        x, y = rng.integers(0, 16, 2).tolist()
        image[y : y + 14, x : x + 14] += 150
        target = Boxes(corners=((x, y, x + 14, y + 14),), labels=("square",), size=(32, 32))
        samples.append(Sample(image=image, target=target, title=f"{i}.png"))
    return Dataset(samples=tuple(samples), classes=("square",), kind="detection", name="squares")


@pytest.fixture(scope="module")
def backbone():
    return random_backbone(SMALL_ARCHITECTURE)


@pytest.fixture
def extractor(tmp_path):
    with Cache(tmp_path / "cache") as cache:
        yield Extractor(cache=cache, engine="fp32", device="cpu")


class Evaluations:
    """Evaluation of a segmenter whose share of correct pixels is given."""

    def __init__(self, backbone, data):
        from headstart.models.build import create_model

        self.start = create_model(backbone, data, size=32)

    def of(self, held_out, share):
        from headstart.evaluation.segmentation import PixelCounts, evaluate_counts
        from headstart.models.tasks import SegmentationTask

        confusion = np.zeros((len(held_out), 2, 2), dtype=np.intp)
        right = np.linspace(share - 0.05, share + 0.05, len(held_out))
        confusion[:, 0, 0] = confusion[:, 1, 1] = (1000 * right).astype(int)
        confusion[:, 0, 1] = confusion[:, 1, 0] = 1000 - confusion[:, 0, 0]
        boundary = np.ones((len(held_out), 2, 4), dtype=np.intp)
        counts = PixelCounts(confusion=confusion, boundary=boundary)
        return evaluate_counts(
            SegmentationTask(classes=("b", "a")), counts, names=[s.name for s in held_out.samples]
        )


class Clock:
    """A clock that stands still unless a training runs; a training takes its estimate."""

    def __init__(self, per_epoch, evaluations):
        self.now, self.per_epoch, self.evaluations = 5.0, per_epoch, evaluations
        self.share, self.log = {}, []

    def estimate(self, context, candidate, train, n_predictions):
        return self.per_epoch[candidate.name] * candidate.method.training.epochs

    def train(self, candidate, train, held_out, *, extractor, session, watch):
        value = self.share.get(candidate.name, 0.5)
        if isinstance(value, Exception):
            raise value
        n_epochs = candidate.method.training.epochs
        self.log.append((candidate.name, n_epochs, len(train), len(held_out)))
        self.now += self.per_epoch[candidate.name] * n_epochs
        record = {"epochs": [{}] * (1 + n_epochs), "by": candidate.name}
        return self.evaluations.of(held_out, value), replace(self.evaluations.start, record=record)


@pytest.fixture
def clock(monkeypatch, backbone):
    names = itertools.product(("last:1", "last:2", "all"), (320, 224))
    per_epoch = {
        f"fine-tuning {rung} at {size} px": {"last:1": 1.0, "last:2": 2.0, "all": 3.0}[rung]
        * (size / 320) ** 2
        for rung, size in names
    }
    clock = Clock(per_epoch, Evaluations(backbone, masks(4)))
    monkeypatch.setattr(gains, "estimate_training", clock.estimate)
    monkeypatch.setattr(object_race, "estimate_training", clock.estimate)
    monkeypatch.setattr(gains, "train_on_holdout", clock.train)
    monkeypatch.setattr(RaceContext, "elapsed", property(lambda self: clock.now))
    return clock


def race(backbone, extractor, *, data=None, budget=1000.0, **settings):
    events = settings.pop("events", [])
    return decide_objects(
        backbone if isinstance(backbone, list) else [backbone],
        (data or masks(60), None),
        ObjectRace(budget=budget, **settings),
        extractor=extractor,
        notify=events.append,
    )


def rows(found):
    return {row["name"]: row for row in found.record["rows"]}


def test_candidates_are_the_rungs_at_two_sizes_the_default_first(backbone):
    candidates = object_candidates([backbone], masks(48), ObjectRace(budget=1, seed=3))
    assert [c.name for c in candidates][:2] == [FIRST, "fine-tuning last:2 at 320 px"]
    assert [c.options["size"] for c in candidates] == [320, 320, 320, 224, 224, 224]
    assert candidates[0].measured_as is None
    assert {c.measured_as for c in candidates[1:]} == {candidates[0]}
    assert candidates[2].relative_seconds > 1 > candidates[3].relative_seconds
    assert {c.method.training.patience for c in candidates} == {0}
    assert all(3 <= c.epochs[0] < c.epochs[1] for c in candidates)
    assert image_sizes(96) == (96,)


@pytest.fixture
def two(backbone):
    """The same network under two names."""
    other = replace(backbone, spec=replace(backbone.spec, name="second"))
    return [replace(backbone, spec=replace(backbone.spec, name="first")), other]


def test_backbones_take_turns_and_each_is_measured(two):
    candidates = object_candidates(two, masks(48), ObjectRace(budget=1))
    names = [c.name for c in candidates]
    assert names[:3] == [
        "fine-tuning last:1 of first at 320 px",
        "fine-tuning last:1 of second at 320 px",
        "fine-tuning last:2 of first at 320 px",
    ]
    title = "fine-tuning the last resolution (last:1) of second at 320 pixels"
    assert candidates[1].title == title
    assert [c.options["size"] for c in candidates] == [320] * 6 + [224] * 6
    assert [c.backbone.spec.name for c in candidates] == ["first", "second"] * 6
    assert [c.measured_as for c in candidates[:2]] == [None, None]
    assert {c.measured_as.backbone.spec.name for c in candidates[3::2]} == {"second"}


def test_the_best_backbone_is_chosen_with_its_weights(two, extractor, clock):
    for rung, size in itertools.product(("last:1", "last:2", "all"), (320, 224)):
        for one in two:
            name = f"fine-tuning {rung} of {one.spec.name} at {size} px"
            clock.per_epoch[name] = clock.per_epoch[f"fine-tuning {rung} at {size} px"]
    clock.share = {"fine-tuning last:1 of second at 320 px": 0.9}
    found = race(two, extractor)
    assert found.backbone.spec.name == "second"
    assert found.trained is not None
    assert len(rows(found)) == 12
    quick = "fine-tuning last:1 of second at 224 px"
    clock.per_epoch[quick] = 0.1
    found = race(two, extractor, budget=0.5)
    assert [name for name, row in rows(found).items() if row["state"] == "chosen"] == [quick]


def test_the_best_of_all_is_chosen_and_its_weights_are_the_model(backbone, extractor, clock):
    clock.share, events = {ALL: 0.9}, []
    found = race(backbone, extractor, events=events)
    assert (found.method.train_from, found.size) == ("all", 320)
    assert found.trained.model.record["by"] == ALL
    assert {line[2:] for line in clock.log} == {(48, 12)}
    assert next(event for event in events if isinstance(event, FirstModel)).sentence() == (
        "Fine-tuning the last resolution (last:1) at 320 pixels: mean IoU 0.33 [0.32, 0.35] (on 12 "
        "held-out training images), ready."
    )
    record = found.record
    assert (record["measure"], record["images"], record["folds"]) == ("mean IoU", 12, 1)
    row = rows(found)[ALL]
    assert (row["state"], row["against"], row["significant"]) == ("chosen", FIRST, True)
    assert row["gain"]["low"] < row["gain"]["value"] == pytest.approx(0.485, abs=0.01)
    assert json.loads(json.dumps(record)) == record


def test_without_an_expected_gain_the_first_training_is_the_model(backbone, extractor, clock):
    found = race(backbone, extractor)
    assert (found.method.train_from, found.size) == ("last:1", 320)
    assert found.trained.model.record["by"] == FIRST
    assert rows(found)[FIRST]["state"] == "chosen"
    assert any("is not expected to be better" in why for why in found.record["why"])


def test_proof_keeps_the_first_unless_another_is_significantly_better(backbone, extractor, clock):
    clock.share = {ALL: 0.53}
    assert race(backbone, extractor).method.train_from == "all"
    clock.share, clock.now = {ALL: 0.9}, 5.0
    assert race(backbone, extractor, prove=True).method.train_from == "all"


def test_the_budget_scales_the_epochs_and_skips_what_does_not_fit(backbone, extractor, clock):
    most = object_candidates([backbone], masks(48), ObjectRace(budget=1))[0].epochs[1]
    found = race(backbone, extractor, budget=5.0 + 0.8 * most)
    assert clock.log[0][:2] == (FIRST, int(0.95 * 0.8 * most))
    assert clock.now <= 5.0 + 0.8 * most
    skipped = [row for row in rows(found).values() if row["state"] == "left out"]
    assert len(skipped) == 5
    assert any(why.startswith(f"Skipped: {ALL} (needs about") for why in found.record["why"])


def test_where_nothing_fits_the_quickest_is_trained_and_the_reason_says_so(
    backbone, extractor, clock
):
    found = race(backbone, extractor, budget=7.1)
    assert clock.log == [(SMALL, 4, 48, 12)]
    assert (found.method.train_from, found.size) == ("last:1", 224)
    assert any("expect a poor model" in why for why in found.record["why"])
    assert clock.now <= 7.1


def test_a_training_that_fails_costs_only_itself(backbone, extractor, clock):
    clock.share = {FIRST: TrainingError("The loss is nan. Lower it."), ALL: 0.7}
    found = race(backbone, extractor)
    assert found.method.train_from == "all"
    assert rows(found)[FIRST]["note"] == "The loss is nan"
    clock.share = dict.fromkeys(clock.per_epoch, TrainingError("The loss is nan. Lower it."))
    with pytest.raises(TrainingError, match="Every training of the race failed"):
        race(backbone, extractor)


def test_ctrl_c_keeps_the_best_so_far(backbone, extractor, clock, monkeypatch):
    def stopped(candidate, *parts, watch, **others):
        if len(clock.log) == 2:
            signal.raise_signal(signal.SIGINT)
            watch.session(0).progress("training", 1, 10)
            pytest.fail("the training went on")
        return clock.train(candidate, *parts, watch=watch, **others)

    monkeypatch.setattr(gains, "train_on_holdout", stopped)
    clock.share = {"fine-tuning last:2 at 320 px": 0.8}
    found = race(backbone, extractor)
    assert found.record["stopped"]
    assert found.method.train_from == "last:2"
    assert rows(found)[ALL]["note"] == "stopped by Ctrl-C"


def test_the_plan_has_the_candidates_and_what_would_be_skipped(backbone, extractor, clock):
    settings = ObjectRace(budget=1e6)
    found = estimate_objects([backbone], (masks(60), None), settings, extractor=extractor)
    assert all(row["estimated"] for row in found["rows"])
    assert len(found["rows"]) == 6
    short = replace(settings, budget=0.5)
    found = estimate_objects([backbone], (masks(60), None), short, extractor=extractor)
    assert [row["name"] for row in found["rows"] if row["estimated"]] == [SMALL]
    assert any("expect a poor model" in why for why in found["why"])


def test_too_few_images_for_a_holdout_have_no_race(backbone, extractor):
    with pytest.raises(DataError):
        race(backbone, extractor, data=masks(1))
    found = race(backbone, extractor, data=masks(2))
    assert found.trained is None
    assert found.record["why"][0].startswith("No race: 2 training images are too few")


def test_time_for_the_test_images_and_the_report_is_reserved(backbone, extractor, clock):
    """1.0 s an epoch, 30 s: 5 have passed and 3 are reserved; predictions cost nothing here."""
    limit = TimeLimit(seconds=30.0, later_images=10)
    race(backbone, extractor, budget=limit)
    assert clock.log[0][:2] == (FIRST, int(0.95 * (30 - 5 - 3)))


def test_a_method_of_the_race_is_read_from_its_record(backbone):
    method = object_candidates([backbone], boxes(10), ObjectRace(budget=1, seed=2))[1].method
    assert isinstance(method, Finetune)
    assert method_from_record(json.loads(json.dumps(method_to_record(method)))) == method


@pytest.mark.parametrize("make", [masks, boxes])
def test_a_race_trains_and_scores_real_models(backbone, extractor, make):
    data = make(20)
    found = race(backbone, extractor, data=data, budget=2.0, options={"size": 32})
    chosen = next(row for row in found.record["rows"] if row["state"] == "chosen")
    assert chosen["images"] == found.record["images"] == 4
    held_out = data.subset(found.trained.rows)
    again = evaluate(found.trained.model, held_out, extractor=extractor)
    score = next(iter(again.metrics.values())).value
    assert chosen["score"]["value"] == pytest.approx(np.nan_to_num(score), abs=1e-6)
    assert found.record["seconds"] < 20
