"""What abstaining brings is counted on other images, alone and through a whole run."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from headstart.cache import Cache
from headstart.data.dataset import Dataset
from headstart.errors import UsageError
from headstart.evaluation.classification import evaluate_abstention
from headstart.methods.finetune import Finetune
from headstart.methods.linear_probe import LinearProbe
from headstart.metrics.confidence_intervals import (
    proportion_interval,
    wilson_interval,
)
from headstart.metrics.selective import threshold_for_risk
from headstart.models.saving import load
from headstart.training.optim import Training
from headstart.workflows.fit import fit
from headstart.workflows.recipe import Recipe


@pytest.fixture
def chosen():
    sure = np.linspace(0, 1, 1000)
    return threshold_for_risk(sure, sure > 0.3, max_risk=0.05)


def test_coverage_and_risk_are_counted_on_what_is_at_least_as_sure(chosen):
    sure = np.array([0.0, chosen.threshold, 0.8, 0.9])
    right = np.array([False, False, True, True])
    found = evaluate_abstention(chosen, sure, right)
    assert found.coverage == wilson_interval(3, 4)
    assert found.risk == wilson_interval(1, 3)


def test_groups_make_the_intervals_wider(chosen):
    rng = np.random.default_rng(0)
    sure = np.repeat(rng.random(40), 5)
    right = np.repeat(rng.random(40) > 0.2, 5)
    names = np.repeat(np.arange(40), 5)
    found = evaluate_abstention(chosen, sure, right, names)
    kept = sure >= chosen.threshold
    assert found.risk == proportion_interval(~right[kept], names[kept])
    blind = evaluate_abstention(chosen, sure, right)
    assert found.risk.high - found.risk.low > blind.risk.high - blind.risk.low


def test_nothing_wanted_is_nothing_said():
    assert evaluate_abstention(None, np.array([0.5]), np.array([True])) is None


def test_what_could_not_be_chosen_is_said():
    none = threshold_for_risk([0.5] * 10, np.ones(10, bool), max_risk=0.01)
    found = evaluate_abstention(none, np.array([0.5]), np.array([True]))
    assert found.sentence() == none.sentence()
    assert found.as_dict()["coverage"] is None


@pytest.mark.parametrize(
    ("wrong", "said"),
    [(0, "is met"), (20, "neither confirmed nor refuted"), (100, "EXCEEDED")],
)
def test_the_sentence_states_whether_the_requested_risk_is_met(chosen, wrong, said):
    found = evaluate_abstention(chosen, np.ones(500), np.arange(500) >= wrong)
    assert said in found.sentence()
    assert "requested maximum risk of 5 %" in found.sentence()


def test_where_every_answer_counts_no_threshold_is_told():
    every = threshold_for_risk(np.linspace(0.5, 1, 1000), np.ones(1000, bool), max_risk=0.05)
    told = evaluate_abstention(every, np.array([0.1, 0.9]), np.array([True, True])).sentence()
    assert told.startswith("No abstention: the model predicts 100.0 % [")
    assert "0.000:" not in told


def test_where_nothing_is_answered_nothing_can_be_said(chosen):
    found = evaluate_abstention(chosen, np.zeros(5), np.ones(5, bool))
    assert math.isnan(found.risk.value)
    assert found.as_dict()["risk"]["value"] is None
    assert "abstains from all images" in found.sentence()


def test_a_threshold_of_minus_infinity_reads_as_nothing(chosen):
    found = evaluate_abstention(
        replace(chosen, threshold=-math.inf), np.linspace(0, 1, 9), np.ones(9, bool)
    )
    assert found.coverage.value == 1
    assert found.sentence().startswith("No abstention: ")


# ------------------------------------------------------------------------- through a run


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Dark and light noise, learned easily: 30 images of each."""
    root = tmp_path_factory.mktemp("data") / "noise"
    for name, mean in (("dark", 60), ("light", 180)):
        (root / name).mkdir(parents=True)
        for i in range(30):
            rng = np.random.default_rng([i, mean])
            pixels = rng.normal(mean, 30, (40, 40, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return Cache(tmp_path_factory.mktemp("cache"))


RECIPE = Recipe(engine="fp32", device="cpu", method=LinearProbe(), max_risk=0.2)


def test_a_run_chooses_on_the_training_part_and_judges_on_the_test_part(images, store, tmp_path):
    run = fit(images, RECIPE, out=tmp_path / "run", cache=store)
    chosen = run.model.task.selected
    assert chosen.images == len(run.prepared.train)
    assert chosen.threshold is not None
    assert run.recipe.as_dict()["max_risk"] == 0.2
    told = json.loads((run.folder / "report.json").read_text())["evaluation"]["abstention"]
    assert told["selected"] == chosen.as_dict()
    assert told["coverage"]["value"] == run.evaluation.abstention.coverage.value
    moved = run.folder.rename(tmp_path / "elsewhere")
    found = load(moved).predict([s.image for s in run.prepared.test.samples], cache=store)
    assert np.mean([not one.abstains for one in found]) == told["coverage"]["value"]
    rows = (moved / "predictions.csv").read_text().splitlines()
    assert rows[0] == "image,truth,prediction,correct,abstains,dark,light"


def test_a_run_that_cannot_show_the_risk_says_so_and_answers_everything(images, store, tmp_path):
    run = fit(images, replace(RECIPE, max_risk=0.01), out=tmp_path / "run", cache=store)
    assert any("cannot prove a risk below" in sentence for sentence in run.summary)
    [one] = load(run.folder).predict(run.prepared.test.samples[0].image, cache=store)
    assert one.abstains is None


def test_fine_tuning_chooses_on_the_held_out_images(images, store, tmp_path):
    method = Finetune(train_from="head", training=Training(epochs=1))
    run = fit(images, replace(RECIPE, method=method), out=tmp_path / "run", cache=store)
    assert run.model.task.selected.images < len(run.prepared.train)


@pytest.mark.parametrize("kind", ["multilabel", "detection", "segmentation"])
def test_other_tasks_are_refused(kind):
    data = Dataset(samples=(), classes=("a",), kind=kind)
    with pytest.raises(UsageError, match="Remove --max-risk"):
        RECIPE.resolved_for(data)


def test_a_risk_that_is_no_share_is_refused():
    with pytest.raises(UsageError, match="max_risk"):
        Recipe(max_risk=1.5)
