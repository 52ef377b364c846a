"""A run on masks with a budget: the race's model is the run's model; Ctrl-C, resume and plan."""

import json
import signal
from dataclasses import replace

import numpy as np
import pytest

from headstart.cache import Cache
from headstart.data.dataset import Dataset, Mask, Palette, Sample
from headstart.methods.finetune import Finetune
from headstart.methods.pretraining import SMALL_ARCHITECTURE, random_backbone
from headstart.models.saving import load
from headstart.selection import object_race
from headstart.workflows.events import Decided
from headstart.workflows.fit import fit
from headstart.workflows.plan import plan
from headstart.workflows.recipe import Recipe

PALETTE = Palette(codes=((0, "b"), (1, "a")))


def masks(n=24):
    rng, samples = np.random.default_rng(0), []
    for i in range(n):
        image = rng.integers(120, 200, (32, 32, 3), dtype=np.uint8)
        classes = np.zeros((32, 32), dtype=np.uint8)
        height = int(rng.integers(8, 24))
        image[:height] //= 3
        classes[:height] = 1
        target = Mask(source=classes, palette=PALETTE, present=("b", "a"))
        samples.append(Sample(image=image, target=target, title=f"{i}.png"))
    return Dataset(samples=tuple(samples), classes=("b", "a"), kind="segmentation", name="rows")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    from safetensors.torch import save_file

    path = tmp_path_factory.mktemp("weights") / "0.safetensors"
    state = random_backbone(SMALL_ARCHITECTURE, seed=0).state
    save_file({key: value.contiguous() for key, value in state.items()}, path)
    return f"file:{path}@{SMALL_ARCHITECTURE}"


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    with Cache(tmp_path_factory.mktemp("cache")) as opened:
        yield opened


def recipe(weights, **changes):
    return Recipe(**{"backbone": weights, "device": "cpu", "size": 64, "budget": 1.0, **changes})


def test_the_winner_of_the_race_is_the_model_of_the_run(weights, cache, tmp_path):
    run = fit(masks(), recipe(weights), out=tmp_path / "run", cache=cache)
    record = load(run.folder).record
    decision = record["decision"]
    chosen = next(row for row in decision["rows"] if row["state"] == "chosen")
    assert (decision["measure"], decision["folds"]) == ("mean IoU", 1)
    assert record["method"]["train_from"] in chosen["name"]
    assert run.recipe.method is not None
    assert run.recipe.size == 64
    assert chosen["note"].startswith(f"{len(record['epochs']) - 1} epoch")
    report = run.report.read_text(encoding="utf-8")
    assert "on 4 held-out training images" in report.replace("\xa0", " ")
    assert not (tmp_path / "run.partial").exists()


def test_without_a_budget_the_default_method_trains_once(weights, cache):
    data = masks()
    resolved = recipe(weights, budget=None).resolved_for(data)
    assert isinstance(resolved.method, Finetune)
    assert recipe(weights, budget=0).resolved_for(data).method == resolved.method
    assert recipe(weights).resolved_for(data).method is None


def test_a_first_training_that_is_stopped_is_kept_and_resumed(
    weights, cache, tmp_path, monkeypatch
):
    """Ctrl-C in the second epoch of the first training: its best epoch is the model so far."""
    first = object_race.object_candidates

    def stopped(*args):
        candidate, *_ = first(*args)
        return (replace(candidate, epochs=(3, 6)),)

    steps = []
    train = object_race.race_candidates

    def press(context, *parts):
        report = context.report

        def counted(step, done, total):
            steps.append(done)
            if len(steps) == 5:
                signal.raise_signal(signal.SIGINT)
            report(step, done, total)

        context.report = counted
        train(context, *parts)

    monkeypatch.setattr(object_race, "object_candidates", stopped)
    monkeypatch.setattr(object_race, "race_candidates", press)
    settings = recipe(weights, budget=600.0)
    run = fit(masks(), settings, out=tmp_path / "run", cache=cache)
    assert run.interrupted
    assert run.summary[0].startswith("STOPPED BY HAND after ")
    assert run.model.record["interrupted"]
    saved = json.loads((tmp_path / "run.partial" / "race.json").read_text(encoding="utf-8"))
    assert (saved["size"], saved["method"]["train_from"]) == (64, "last:1")
    monkeypatch.setattr(
        object_race, "decide_objects", lambda *_, **__: pytest.fail("a second race")
    )
    again = fit(masks(), settings, out=tmp_path / "run", cache=cache, resume=True)
    assert not again.interrupted
    assert len(again.model.record["epochs"]) == 1 + saved["method"]["epochs"]
    assert not (tmp_path / "run.partial").exists()


def test_the_plan_of_masks_names_the_race_or_how_to_ask_for_one(weights, cache):
    events = []
    found = plan(masks(), recipe(weights, budget=1e6), cache=cache, observer=events.append)
    names = [row["name"] for row in found["rows"]]
    assert names[0] == "fine-tuning last:1 at 64 px"
    assert all(row["estimated"] > 0 for row in found["rows"])
    assert 0 < found["estimated"] <= 1e6
    assert any(isinstance(event, Decided) for event in events)
    alone = plan(masks(), recipe(weights, budget=None), cache=cache)
    assert len(alone["rows"]) == 1
    assert "pass `--budget 10m`" in alone["why"][-1]
