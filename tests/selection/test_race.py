"""The race with proof: selected candidates, winner, end of the race, and its record."""

import itertools
import json
import signal
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from headstart.cache import Cache
from headstart.data.dataset import Dataset, Sample
from headstart.errors import DataError, TrainingError, UsageError
from headstart.features.extractor import Extractor
from headstart.methods.pretraining import SMALL_ARCHITECTURE, random_backbone
from headstart.selection import race, race_estimate, trainings
from headstart.selection.progress import FirstModel
from headstart.selection.race import decide_with_proof as decide
from headstart.selection.race_context import RaceContext
from headstart.selection.race_estimate import estimate_race
from headstart.training.interruption import StopRequested


def drawn(n, *, noise, seed=0, groups=None):
    """Two classes of noise; a share of the labels is of no use."""
    rng = np.random.default_rng(seed)
    samples = []
    for i in range(n):
        image = rng.integers(0, 90, (32, 32, 3), dtype=np.uint8)
        shown = i % 2 if rng.random() >= noise else rng.integers(2)
        image[:, : 16 * shown] += 120
        group = None if groups is None else f"g{i % groups}"
        samples.append(Sample(image=image, target=("full", "half")[i % 2], group=group))
    return Dataset(samples=tuple(samples), classes=("full", "half"))


@pytest.fixture(scope="module")
def backbone():
    return random_backbone(SMALL_ARCHITECTURE)


@pytest.fixture
def extractor(tmp_path):
    with Cache(tmp_path / "cache") as cache:
        yield Extractor(cache=cache, engine="fp32", device="cpu")


@pytest.fixture
def truths(monkeypatch):
    """Let trainings answer as often right as the test says, by name, without training."""
    accuracy = {}
    rng = np.random.default_rng(1)

    def predict(candidate, train, val, test, *, extractor, watch):
        value = accuracy[candidate.name]
        if isinstance(value, Exception):
            raise value
        targets = test.targets()
        right = rng.random(len(targets)) < value
        return np.eye(2)[np.where(right, targets, 1 - targets)], candidate

    monkeypatch.setattr(race, "train_and_predict", predict)
    for module in (race, trainings):
        monkeypatch.setattr(module, "estimate_training", lambda *_: 0.001)
    return accuracy


LAST, ALL = "fine-tuning last:1", "fine-tuning all"


def states(found):
    return {row["name"]: row["state"] for row in found.record["rows"]}


def test_where_the_probe_is_right_nothing_is_trained(backbone, extractor, truths):
    found = decide([backbone], drawn(60, noise=0), extractor=extractor)
    assert found.method.name == "linear-probe"
    assert found.backbone is backbone
    assert len(found.record["rows"]) == 3
    assert any("even by a perfect model" in why for why in found.record["why"])
    assert json.loads(json.dumps(found.record)) == found.record


def test_who_gains_beyond_chance_wins_and_the_race_ends(backbone, extractor, truths):
    truths |= {LAST: 0.75, ALL: 0.99}
    told = []
    found = decide([backbone], drawn(150, noise=0.5), extractor=extractor, on_progress=told.append)
    assert found.method.train_from == "all"
    assert states(found)[ALL] == "chosen"
    assert states(found)[LAST] == "promoted"
    row = next(row for row in found.record["rows"] if row["name"] == ALL)
    assert row["significant"]
    assert 0 < row["gain"]["low"] < row["gain"]["value"]
    assert row["images"] < 150  # it ended before the last fold
    assert any(ALL in line for line in told)


def test_who_gains_nothing_is_dropped_after_two_folds(backbone, extractor, truths):
    truths |= {LAST: 0.4, ALL: 0.4}
    found = decide([backbone], drawn(150, noise=0.5), extractor=extractor)
    assert found.method.name == "linear-probe"
    for name in (LAST, ALL):
        row = next(row for row in found.record["rows"] if row["name"] == name)
        assert row["images"] <= 60
        assert "no gain" in row["note"]


def test_a_gain_that_is_not_significant_is_not_chosen(backbone, extractor, truths):
    truths |= {LAST: 0.78, ALL: 0.78}
    found = decide([backbone], drawn(60, noise=0.5), extractor=extractor)
    assert found.method.name == "linear-probe"
    assert any("not significantly better" in why for why in found.record["why"])


def test_a_fold_that_diverged_first_is_reported(backbone, extractor, truths, monkeypatch):
    truths |= {LAST: 0.4, ALL: 0.99}
    predict, told = race.train_and_predict, []

    def diverging(candidate, *parts, **others):
        logits, trained = predict(candidate, *parts, **others)
        return logits, replace(trained, rate_scale=0.1 if candidate.name == ALL else 1.0)

    monkeypatch.setattr(race, "train_and_predict", diverging)
    found = decide([backbone], drawn(150, noise=0.5), extractor=extractor, on_progress=told.append)
    expected = "Fine-tuning all diverged in fold 1 and was trained again there with a tenth of its"
    assert any(why.startswith(expected) for why in found.record["why"])
    assert not any("last:1 diverged" in why for why in found.record["why"])
    assert any(line.endswith("diverged first: a tenth of the rates") for line in told)


def test_a_training_that_fails_is_left_and_not_the_run(backbone, extractor, truths):
    truths |= {LAST: TrainingError("The loss is nan. Lower the learning rate."), ALL: 0.99}
    found = decide([backbone], drawn(150, noise=0.5), extractor=extractor)
    assert found.method.train_from == "all"
    row = next(row for row in found.record["rows"] if row["name"] == LAST)
    assert row["note"] == "The loss is nan"


def test_groups_that_a_training_cannot_part_cost_only_that_training(backbone, extractor, truths):
    truths |= {LAST: DataError("Found only one group. Add groups."), ALL: 0.99}
    found = decide([backbone], drawn(150, noise=0.5), extractor=extractor)
    assert found.method.train_from == "all"
    row = next(row for row in found.record["rows"] if row["name"] == LAST)
    assert row["note"] == "Found only one group"


def test_who_comes_second_does_not_begin_when_the_time_is_up(
    backbone, extractor, truths, monkeypatch
):
    truths |= {LAST: 0.8, ALL: 0.99}
    real, slow = race.train_and_predict, []

    def slow_training(candidate, *parts, extractor, watch):
        slow.append(candidate.name)
        return real(candidate, *parts, extractor=extractor, watch=watch)

    monkeypatch.setattr(race, "train_and_predict", slow_training)
    monkeypatch.setattr(RaceContext, "elapsed", property(lambda self: 1000.0 if slow else 1.0))
    found = decide([backbone], drawn(150, noise=0.5), extractor=extractor, budget=30)
    assert slow == [LAST]
    row = next(row for row in found.record["rows"] if row["name"] == ALL)
    assert row["note"].startswith("the time was up before its first fold: needs about")
    assert row["note"].endswith("0 s of the 30 s budget left")
    assert row["state"] == "left out"
    assert any(
        why.startswith(f"{row['name'].capitalize()} has no score: the time")
        for why in found.record["why"]
    )


def test_without_time_only_probes_are_run(backbone, extractor):
    found = decide([backbone], drawn(60, noise=0.5), extractor=extractor, budget=0)
    assert found.method.name == "linear-probe"
    assert set(states(found).values()) == {"chosen", "probed"}
    found = decide([backbone], drawn(60, noise=0.5), extractor=extractor, budget=0.5)
    assert states(found)[ALL] == "left out"
    assert "budget left" in next(r["note"] for r in found.record["rows"] if r["name"] == ALL)
    assert any(f"Skipped: {ALL} (needs" in why and "--budget" in why for why in found.record["why"])


def test_of_very_many_images_only_the_first_probe_is_solved(backbone, extractor, monkeypatch):
    expected = itertools.chain([1e-3], itertools.repeat(1e6))
    monkeypatch.setattr("headstart.selection.race_context.probe_seconds", lambda *_: next(expected))
    found = decide([backbone], drawn(60, noise=0), extractor=extractor)
    assert [row["name"] for row in found.record["rows"]] == ["linear probe"]
    assert sum(why.startswith("Skipped: linear probe") for why in found.record["why"]) == 2


def test_what_the_first_probe_took_is_expected_of_the_others(backbone, extractor, monkeypatch):
    monkeypatch.setattr("headstart.selection.race_context.probe_seconds", lambda *_: 1e-3)
    found = decide([backbone], drawn(60, noise=0.5), extractor=extractor, budget=0).record
    first, second, _ = (row["estimated"] for row in found["rows"])
    assert second > 2 * 1e-3  # a search takes longer than a thousandth of a second
    assert found["rows"][0]["seconds"] > first
    parts = sum(row["estimated"] for row in found["rows"])
    assert found["estimated"] == pytest.approx(parts + found["measured"])
    assert found["measured"] == 0  # without a budget nothing is measured
    assert 0 < found["probing"] <= found["seconds"]


def test_another_backbone_is_not_looked_at_when_that_takes_too_long(
    backbone, extractor, monkeypatch
):
    monkeypatch.setattr("headstart.selection.probes.estimate_feature_seconds", lambda *_, **__: 1e6)
    other = random_backbone(SMALL_ARCHITECTURE, seed=1)
    found = decide([backbone, other], drawn(60, noise=0), extractor=extractor)
    assert len(found.record["rows"]) == 3  # of the first
    assert any("its features need about" in why for why in found.record["why"])


def test_random_weights_are_not_tried_without_time(backbone, extractor, truths, monkeypatch):
    monkeypatch.setattr("headstart.selection.probes.random_like", None)  # would raise
    truths |= {LAST: 0.5, ALL: 0.5}
    monkeypatch.setattr(RaceContext, "elapsed", property(lambda self: 1000.0))
    found = decide([backbone], drawn(240, noise=0.5), extractor=extractor, budget=1000)
    assert not any("random weights" in why for why in found.record["why"])


def test_the_time_that_is_up_ends_the_race_between_folds(backbone, extractor, truths, monkeypatch):
    truths |= {LAST: 0.8, ALL: 0.8}
    monkeypatch.setattr(RaceContext, "measuring_pays", lambda *_: True)
    seconds = itertools.count(0, 1.0)  # every look at the clock takes one
    monkeypatch.setattr(RaceContext, "elapsed", property(lambda self: next(seconds)))
    found = decide([backbone], drawn(60, noise=0.5), extractor=extractor, budget=40)
    notes = [row["note"] for row in found.record["rows"] if row["name"] in (LAST, ALL)]
    assert any("the time was up" in note for note in notes), found.record


def test_weights_of_no_use_bring_training_from_scratch_in(backbone, extractor, truths):
    """The backbone is itself random: another random one probes as well."""
    truths |= {LAST: 0.5, "training from scratch": 0.99}
    found = decide([backbone], drawn(240, noise=0.5), extractor=extractor)
    assert found.method.name == "scratch"
    assert any("weights do not help" in why for why in found.record["why"])


def test_groups_stay_together(backbone, extractor, truths):
    """Ten groups are ten witnesses, however many images they have."""
    truths |= {LAST: 0.9, ALL: 0.9}
    data = drawn(100, noise=0.5, groups=10)
    found = decide([backbone], data, extractor=extractor)
    probe = found.record["rows"][0]["score"]
    alone = decide([backbone], drawn(100, noise=0.5), extractor=extractor).record["rows"][0][
        "score"
    ]
    assert probe["method"] != alone["method"]


def test_the_plan_says_what_the_race_would_do_and_learns_nothing(backbone, extractor, monkeypatch):
    monkeypatch.setattr(race, "train_and_predict", None)
    monkeypatch.setattr("headstart.selection.probes.search_penalty", None)
    found = estimate_race(
        [backbone], drawn(60, noise=0.5), prove=True, extractor=extractor, budget=1e6
    )
    assert [row["state"] for row in found["rows"]] == ["probed"] * 3 + ["promoted"] * 2
    parts = sum(row["estimated"] for row in found["rows"])
    assert parts < found["estimated"] < 2 * parts  # one of the two is trained afterwards
    assert json.loads(json.dumps(found))["rows"][0]["score"] is None
    short = estimate_race(
        [backbone], drawn(60, noise=0.5), prove=True, extractor=extractor, budget=0.01
    )
    assert {row["state"] for row in short["rows"]} == {"probed", "left out"}
    assert short["estimated"] == pytest.approx(sum(r["estimated"] for r in short["rows"][:3]))
    assert short["why"][0].startswith(f"Would be skipped: {LAST} (needs about")
    less = estimate_race(
        [backbone],
        drawn(60, noise=0.5),
        prove=True,
        extractor=extractor,
        budget=0.9 * found["estimated"],
    )
    assert less["estimated"] <= 0.9 * found["estimated"]  # it stops when the time is up


def test_the_plan_counts_the_control_with_random_weights(backbone, extractor, monkeypatch):
    monkeypatch.setattr(race_estimate, "training_candidates", lambda *_, **__: ())

    def more(n, budget):
        found = estimate_race(
            [backbone], drawn(n, noise=0.5), prove=True, extractor=extractor, budget=budget
        )
        return found["estimated"] / sum(row["estimated"] for row in found["rows"])

    assert more(199, 120) == pytest.approx(1)
    assert more(201, 120) > 1.2
    assert more(201, 0) == pytest.approx(1)  # as a race, which tries them only for trainings


def test_a_refusal_that_names_some_of_many_classes_ends_in_words(backbone, extractor):
    few = drawn(14, noise=0).samples
    samples = tuple(replace(one, target=f"class{i % 7}") for i, one in enumerate(few))
    data = Dataset(samples=samples, classes=tuple(f"class{i}" for i in range(7)))
    found = estimate_race([backbone], data, prove=True, extractor=extractor, budget=60)
    assert [row["note"][-8:] for row in found["rows"][3:]] == ["'class4'"] * 3


def test_the_same_seed_decides_the_same(backbone, extractor):
    data = drawn(40, noise=0.6)
    first, second = (
        decide([backbone], data, extractor=extractor, budget=0, seed=4) for _ in range(2)
    )
    assert first.method == second.method
    scores = [[row["score"] for row in one.record["rows"]] for one in (first, second)]
    assert scores[0] == scores[1]


def test_what_cannot_be_raced_is_refused(backbone, extractor):
    with pytest.raises(UsageError, match="backbone"):
        decide([], drawn(8, noise=0), extractor=extractor)
    boxes = Dataset(samples=(), classes=("cell",), kind="detection")
    with pytest.raises(UsageError, match="--method finetune"):
        decide([backbone], boxes, extractor=extractor)
    one = drawn(20, noise=0).subset(range(0, 20, 2))
    with pytest.raises(DataError, match="needs at least two"):
        decide([backbone], one, extractor=extractor)


def test_labels_are_raced_too(backbone, extractor, truths):
    rng = np.random.default_rng(0)
    names = ("bright", "left", "odd")
    samples = []
    for _ in range(90):
        held = [name for name in names if rng.random() < 0.5]
        image = rng.integers(0, 60, (32, 32, 3), dtype=np.uint8)
        image += np.uint8(90 * ("bright" in held))
        image[:, :16] += np.uint8(60 * ("left" in held))
        samples.append(Sample(image=image, target=tuple(held)))
    data = Dataset(samples=tuple(samples), classes=names, kind="multilabel")
    found = decide([backbone], data, extractor=extractor, budget=0)
    assert found.record["measure"] == "mean average precision"
    assert found.method.name == "linear-probe"
    for row in found.record["rows"]:
        assert 0.3 < row["score"]["low"] < row["score"]["value"] < row["score"]["high"] <= 1


def test_the_first_answer_comes_before_any_measurement_and_names_the_next_step(
    backbone, extractor, truths
):
    truths |= {LAST: 0.5, ALL: 0.5}
    steps, events = [], []

    def progress(step, done, total):
        steps.append(step)

    observed = replace(extractor, progress=progress)
    found = decide(
        [backbone],
        drawn(60, noise=0.5),
        extractor=observed,
        notify=lambda event: (events.append(event), steps.append(type(event).__name__)),
    )
    answer, probes, trainings = events
    assert answer.score.as_dict() == found.record["rows"][0]["score"]
    assert len(probes.names) == 2
    assert trainings.names == (
        "fine-tuning the last resolution (last:1)",
        "fine-tuning all stages",
    )
    assert trainings.folds == 5
    assert steps.index("fitting the linear probe") < steps.index("FirstModel")
    assert "measuring the speed of this machine" not in steps[: steps.index("FirstModel")]


def test_without_a_budget_nothing_is_measured_and_other_backbones_wait(
    backbone, extractor, monkeypatch
):
    monkeypatch.setattr("headstart.training.time_estimate.measure_costs", None)  # would raise
    monkeypatch.setattr("headstart.features.engines._check_engine", None)
    other = random_backbone(SMALL_ARCHITECTURE, seed=1)
    automatic = replace(extractor, engine="auto")
    found = decide([backbone, other], drawn(60, noise=0.5), extractor=automatic, budget=0)
    assert len(found.record["rows"]) == 3
    assert found.record["measured"] == 0
    assert any("another pass over the images" in why for why in found.record["why"])


def test_trainings_are_left_out_where_measuring_the_machine_takes_too_long(
    backbone, extractor, truths, monkeypatch
):
    monkeypatch.setattr(RaceContext, "expected_measuring", lambda *_: 5.0)
    data = drawn(60, noise=0.5)
    found = decide([backbone], data, extractor=extractor, budget=30)
    assert found.method.name == "linear-probe"
    assert any("more than a tenth" in why and "--budget" in why for why in found.record["why"])
    truths |= {LAST: 0.5, ALL: 0.5}
    longer = decide([backbone], data, extractor=extractor, budget=100)
    assert LAST in states(longer)


def test_ctrl_c_in_a_training_keeps_the_probe(backbone, extractor, truths, monkeypatch):
    def stopped(candidate, *parts, extractor, watch):
        signal.raise_signal(signal.SIGINT)
        watch.session(0).progress("training", 1, 10)
        pytest.fail("the training went on")

    monkeypatch.setattr(race, "train_and_predict", stopped)
    events = []
    found = decide([backbone], drawn(150, noise=0.5), extractor=extractor, notify=events.append)
    assert found.method.name == "linear-probe"
    assert found.record["stopped"]
    assert isinstance(events[-1], StopRequested)
    notes = {row["name"]: row["note"] for row in found.record["rows"]}
    assert notes[LAST] == "stopped by Ctrl-C in fold 1"
    assert any("stopped by Ctrl-C. The best" in why for why in found.record["why"])
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_after_ctrl_c_the_probe_is_kept_where_a_winner_is_not_yet_trained(
    backbone, extractor, truths, monkeypatch
):
    truths |= {LAST: 0.75, ALL: 1.0}
    compared = race._compare_folds

    def press(context, *arguments):
        gain = compared(context, *arguments)
        if gain.significant and not context.stop.is_requested:
            signal.raise_signal(signal.SIGINT)
        return gain

    monkeypatch.setattr(race, "_compare_folds", press)
    found = decide([backbone], drawn(150, noise=0.5), extractor=extractor, notify=lambda _: None)
    assert found.method.name == "linear-probe"
    assert states(found)["linear probe"] == "chosen"
    assert any("or not trained on all images" in why for why in found.record["why"])


def test_ctrl_c_after_the_first_answer_keeps_it(backbone, extractor):
    def press(event):
        if isinstance(event, FirstModel):
            signal.raise_signal(signal.SIGINT)

    found = decide([backbone], drawn(60, noise=0.5), extractor=extractor, notify=press)
    assert [row["name"] for row in found.record["rows"]] == ["linear probe"]
    assert found.record["stopped"]


def test_ctrl_c_before_the_first_answer_and_a_second_one_end_the_run(backbone, extractor):
    def early(step, done, total):
        signal.raise_signal(signal.SIGINT)

    data = drawn(60, noise=0.5)
    with pytest.raises(KeyboardInterrupt):
        decide([backbone], data, extractor=replace(extractor, progress=early))

    def twice(event):
        if isinstance(event, FirstModel):
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        decide([backbone], data, extractor=extractor, notify=twice)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_training_that_runs_over_is_stopped_after_an_epoch(
    backbone, extractor, truths, monkeypatch
):
    late = []

    def slow(candidate, *parts, extractor, watch):
        late.append(candidate.name)
        for number in range(3):
            watch.session(0).on_epoch(SimpleNamespace(number=number), 30)
        pytest.fail("the training went on")

    monkeypatch.setattr(race, "train_and_predict", slow)
    monkeypatch.setattr(RaceContext, "elapsed", property(lambda self: 1000.0 if late else 1.0))
    found = decide([backbone], drawn(150, noise=0.5), extractor=extractor, budget=30)
    assert late == [LAST]
    row = next(row for row in found.record["rows"] if row["name"] == LAST)
    assert row["note"].startswith("fold 1 took longer than expected and was stopped")
