"""A recipe without a method is resolved by a race, and a run reports the choice."""

import json
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from headstart.backbones.frozen import FrozenBackbone
from headstart.cache import Cache
from headstart.data.dataset import Dataset, Sample
from headstart.errors import UnknownNameError, UsageError
from headstart.features.extractor import Extractor
from headstart.methods.finetune import Finetune
from headstart.methods.linear_probe import LinearProbe
from headstart.methods.pretraining import SMALL_ARCHITECTURE, random_backbone
from headstart.models.saving import load
from headstart.selection.candidates import ALL_EPOCHS
from headstart.selection.progress import FirstModel
from headstart.selection.race import Decision
from headstart.training.interruption import StopRequested
from headstart.workflows import resolve as resolve_module
from headstart.workflows.events import Decided, EpochDone, JsonLog, Noted
from headstart.workflows.fit import fit
from headstart.workflows.plan import plan
from headstart.workflows.recipe import Recipe
from headstart.workflows.resolve import locate_backbones, require_consistent


def drawn(n=40, seed=0, kind="multiclass"):
    rng = np.random.default_rng(seed)
    samples = []
    for i in range(n):
        image = rng.integers(0, 90, (32, 32, 3), dtype=np.uint8)
        image[:, : 16 * (i % 2)] += 120
        samples.append(Sample(image=image, target=("full", "half")[i % 2], title=f"{i}.png"))
    return Dataset(samples=tuple(samples), classes=("full", "half"), kind=kind, name="halves")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Two backbones of one's own, as files."""
    from safetensors.torch import save_file

    names = []
    for seed in (0, 1):
        path = tmp_path_factory.mktemp("weights") / f"{seed}.safetensors"
        state = random_backbone(SMALL_ARCHITECTURE, seed=seed).state
        save_file({key: value.contiguous() for key, value in state.items()}, path)
        names.append(f"file:{path}@{SMALL_ARCHITECTURE}")
    return names


@pytest.fixture
def cache(tmp_path):
    with Cache(tmp_path / "cache") as opened:
        yield opened


def test_a_run_without_a_method_races_and_keeps_the_decision(weights, cache, tmp_path):
    first, second = weights
    recipe = Recipe(backbone=first, rivals=(second,), engine="fp32", device="cpu")
    events = []
    run = fit(drawn(), recipe, out=tmp_path / "run", cache=cache, observer=events.append)
    (decided,) = (event for event in events if isinstance(event, Decided))
    assert decided.method == run.recipe.method == LinearProbe()
    assert decided.backbone == run.recipe.backbone
    assert len(decided.record["rows"]) == 6  # three depths of two backbones
    assert "race" in run.seconds
    decision = load(run.folder).record["decision"]
    assert decision == json.loads(json.dumps(decided.record))
    written = yaml.safe_load((run.folder / "resolved.yaml").read_text())
    assert written["method"]["name"] == "linear-probe"
    lines = (run.folder / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["event"] for line in lines].count("decision") == 1
    assert run.evaluation.metrics["accuracy"].value == 1.0


def test_a_method_that_is_named_is_not_raced(weights, cache, tmp_path):
    recipe = Recipe(backbone=weights[0], method=LinearProbe(), engine="fp32", device="cpu")
    events = []
    run = fit(drawn(), recipe, out=tmp_path / "run", cache=cache, observer=events.append)
    assert not any(isinstance(event, Decided) for event in events)
    assert "decision" not in run.model.record


def test_several_processes_do_not_race_and_say_so(weights, monkeypatch):
    monkeypatch.setattr(resolve_module, "world_size", lambda: 2)
    events = []
    backbone = random_backbone(SMALL_ARCHITECTURE)
    choice = resolve_module.choose(
        Recipe(task="classification", seed=4),
        [backbone],
        None,
        extractor=None,
        notify=events.append,
    )
    assert choice.method == choice.recipe.method == LinearProbe(seed=4)
    assert choice.backbone is backbone
    assert choice.record == {}
    assert [type(event) for event in events] == [Noted]


def test_what_cannot_be_meant_is_said_before_anything_is_computed(weights):
    with pytest.raises(UsageError, match="linear-probe has nothing to resume"):
        require_consistent(Recipe(method=LinearProbe()), drawn(), resume=True)
    require_consistent(Recipe(method=Finetune()), drawn(), resume=True)
    with pytest.raises(UnknownNameError, match="resnet18"):
        locate_backbones(Recipe(rivals=("resnet81",)))


def test_a_plan_trains_nothing_and_counts_every_part(weights, cache):
    recipe = Recipe(backbone=weights[0], engine="fp32", device="cpu")
    race_plan = plan(drawn(), recipe, cache=cache)
    assert [row["state"] for row in race_plan["rows"][:3]] == ["probed"] * 3
    assert race_plan["estimated"] > 0
    assert race_plan["images"] == 32
    extractor = Extractor(cache=cache, engine="fp32", device="cpu")
    samples = drawn().samples
    assert extractor.plan_extraction(FrozenBackbone.open(weights[0]), samples)[1] == len(
        samples
    )  # none is kept
    method_plan = plan(
        drawn(), Recipe(backbone=weights[0], method=Finetune(), device="cpu"), cache=cache
    )
    assert [row["method"] for row in method_plan["rows"]] == ["finetune"]
    assert method_plan["estimated"] > 0


def test_a_plan_for_a_probe_counts_the_test_images(weights, cache):
    recipe = Recipe(backbone=weights[0], method=LinearProbe(), engine="fp32", device="cpu")
    parts = ["train"] * 20 + ["test"] * 20
    samples = (replace(s, split=p) for s, p in zip(drawn().samples, parts, strict=True))
    data = replace(drawn(), samples=tuple(samples))
    backbone, extractor = (
        FrozenBackbone.open(weights[0]),
        Extractor(cache=cache, engine="fp32", device="cpu"),
    )
    extractor.features(backbone, data.samples[:20])
    before = plan(data, recipe, cache=cache)["estimated"]
    extractor.features(backbone, data.samples[20:])  # what is kept costs nothing
    assert plan(data, recipe, cache=cache)["estimated"] < before


def test_a_log_holds_the_decision(tmp_path):
    with JsonLog(tmp_path / "log.jsonl") as log:
        log(Decided(record={"why": ["so"], "rows": []}))
    (line,) = (tmp_path / "log.jsonl").read_text().splitlines()
    assert json.loads(line)["why"] == ["so"]


CHOSEN = Finetune(train_from="all", learning_rate=3e-4, training=ALL_EPOCHS, seed=0)


@pytest.fixture
def races(monkeypatch):
    """Every race is won by fine-tuning all stages; here is what each was asked."""
    training_sets = []

    def decide(backbones, train, *_, extractor, **__):
        training_sets.append(train)
        record = {"why": ["so"], "rows": [], "folds": 5, "images": 32, "measure": "accuracy"}
        record |= {"budget": 1000.0, "seconds": 1.0, "estimated": 1.0, "rule": "a rule"}
        return Decision(method=CHOSEN, backbone=backbones[0], engine="fp32", record=record)

    monkeypatch.setattr("headstart.selection.race.decide", decide)
    return training_sets


def killed(after):
    """Watch until an epoch of this number is over."""

    def observe(event):
        if isinstance(event, EpochDone) and event.epoch.number == after:
            raise RuntimeError("killed")

    return observe


def test_a_training_that_a_race_chose_goes_on_without_racing_again(weights, cache, tmp_path, races):
    recipe = Recipe(backbone=weights[0], device="cpu", engine="fp32")
    uninterrupted = fit(drawn(), recipe, out=tmp_path / "whole", cache=cache)
    with pytest.raises(RuntimeError, match="killed"):
        fit(drawn(), recipe, out=tmp_path / "run", cache=cache, observer=killed(2))
    assert len(races) == 2
    run = fit(drawn(), recipe, out=tmp_path / "run", cache=cache, resume=True)
    assert len(races) == 2
    assert run.recipe.method == CHOSEN
    assert run.model.backbone.fingerprint == uninterrupted.model.backbone.fingerprint
    assert load(run.folder).record["decision"]["why"] == ["so"]
    assert not (tmp_path / "run.partial").exists()


def test_a_choice_that_an_older_release_saved_still_resumes(weights, cache, tmp_path, races):
    recipe = Recipe(backbone=weights[0], device="cpu", engine="fp32")
    with pytest.raises(RuntimeError, match="killed"):
        fit(drawn(), recipe, out=tmp_path / "run", cache=cache, observer=killed(0))
    race_file = tmp_path / "run.partial" / "race.json"
    saved = json.loads(race_file.read_text())
    decision = saved["record"]["decision"]
    decision["pictures"] = decision.pop("images")
    row = {"name": "linear probe", "backbone": weights[0], "stage": "", "method": "linear-probe"}
    row |= {"pictures": 16, "distinguishable": False, "note": "", "state": "chosen"}
    row |= {"score": None, "against": "", "gain": None, "seconds": 1.0, "estimated": 1.0}
    decision["rows"] = [row | {"megabytes": 1.0}]
    race_file.write_text(json.dumps(saved))
    run = fit(drawn(), recipe, out=tmp_path / "run", cache=cache, resume=True)
    decision = load(run.folder).record["decision"]
    assert decision["images"] == 32
    assert (decision["rows"][0]["images"], decision["rows"][0]["significant"]) == (16, False)


def test_a_race_that_was_stopped_itself_is_run_again(weights, cache, tmp_path, races):
    recipe = Recipe(backbone=weights[0], device="cpu", engine="fp32")
    arguments = {"out": tmp_path / "run", "cache": cache, "resume": True}
    with pytest.raises(RuntimeError, match="killed"):  # nothing is there: it begins
        fit(drawn(), recipe, **arguments, observer=killed(0))
    assert len(races) == 1
    assert fit(drawn(), recipe, **arguments).recipe.method == CHOSEN
    assert len(races) == 1


def test_a_checkpoint_that_no_race_has_left_is_not_raced_over(weights, cache, tmp_path, races):
    partial = tmp_path / "run.partial"
    partial.mkdir()
    (partial / "checkpoint.safetensors").write_bytes(b"of a method that was named")
    recipe = Recipe(backbone=weights[0], device="cpu", engine="fp32")
    for text in (None, "", "[]", "{}", '{"method": {}, "backbone": "other"}'):
        if text is not None:
            (partial / "race.json").write_text(text)
        with pytest.raises(UsageError, match="name the method of that run"):
            fit(drawn(), recipe, out=tmp_path / "run", cache=cache, resume=True)
    assert races == []


def test_a_choice_is_not_taken_over_to_another_run(weights, cache, tmp_path, races):
    recipe = Recipe(backbone=weights[0], device="cpu", engine="fp32")
    with pytest.raises(RuntimeError, match="killed"):
        fit(drawn(), recipe, out=tmp_path / "run", cache=cache, observer=killed(0))
    race_file = tmp_path / "run.partial" / "race.json"
    before = race_file.read_text()
    race_file.with_name("checkpoint.safetensors").unlink()  # it would tell them apart

    def refused(data, other_recipe, parts):
        with pytest.raises(UsageError, match=rf"written for another {parts}\. "):
            fit(data, other_recipe, out=tmp_path / "run", cache=cache, resume=True)

    refused(drawn(seed=1), recipe, "data")
    refused(drawn(), replace(recipe, seed=1), "data, seed")
    refused(drawn(), replace(recipe, test_fraction=0.4), "data")
    path = Path(weights[0].removeprefix("file:").partition("@")[0])
    first = path.read_bytes()
    try:
        path.write_bytes(Path(weights[1].removeprefix("file:").partition("@")[0]).read_bytes())
        refused(drawn(), recipe, "weights")
    finally:
        path.write_bytes(first)
    assert race_file.read_text() == before
    fit(drawn(), recipe, out=tmp_path / "run", cache=cache, resume=True)
    assert len(races) == 1


def test_ctrl_c_in_a_race_keeps_the_first_answer_and_finishes_the_run(weights, cache, tmp_path):
    recipe = Recipe(backbone=weights[0], engine="fp32", device="cpu")
    events = []

    def press(event):
        events.append(event)
        if isinstance(event, FirstModel):
            signal.raise_signal(signal.SIGINT)

    run = fit(drawn(), recipe, out=tmp_path / "run", cache=cache, observer=press)
    assert run.interrupted
    assert run.recipe.method == LinearProbe()
    assert run.summary[0].startswith("STOPPED BY HAND during the race")
    assert any(isinstance(event, StopRequested) for event in events)
    assert load(run.folder).record["decision"]["stopped"] is True
    lines = (run.folder / "log.jsonl").read_text().splitlines()
    names = [json.loads(line)["event"] for line in lines]
    assert {"first_model", "next", "stop", "decision", "finished"} <= set(names)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
