"""A run whose model the race has trained: nothing is trained again, and the record is complete."""

from dataclasses import replace

import numpy as np
import pytest

from headstart.backbones.frozen import FrozenBackbone
from headstart.cache import Cache
from headstart.data.dataset import Dataset, Sample
from headstart.data.transforms.augment import Augmentation
from headstart.evaluation.baselines import PROBE
from headstart.features.extractor import Extractor
from headstart.methods.finetune import Finetune
from headstart.methods.pretraining import SMALL_ARCHITECTURE, random_backbone
from headstart.models.saving import load
from headstart.selection import expected_gain
from headstart.selection.candidates import recipe_candidates
from headstart.selection.race_context import RaceContext
from headstart.selection.rules import Scorer
from headstart.training.optim import Training
from headstart.workflows.events import EpochDone
from headstart.workflows.fit import fit
from headstart.workflows.recipe import Recipe


def drawn(n=120, seed=0):
    """Two textures; three in ten images show either of them, so no probe is always right."""
    rng = np.random.default_rng(seed)
    samples = []
    for i in range(n):
        image = np.full((32, 32, 3), 60, dtype=np.uint8)
        phase = int(rng.integers(2))
        if i % 2 if rng.random() > 0.3 else rng.integers(2):
            image[phase::2] = 190
        else:
            image[:, phase::2] = 190
        image = np.clip(image + rng.normal(0, 60, image.shape), 0, 255).astype(np.uint8)
        samples.append(Sample(image=image, target=("rows", "columns")[i % 2], title=f"{i}.png"))
    return Dataset(samples=tuple(samples), classes=("columns", "rows"), name="textures")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    from safetensors.torch import save_file

    path = tmp_path_factory.mktemp("weights") / "0.safetensors"
    state = random_backbone(SMALL_ARCHITECTURE, seed=0).state
    save_file({key: value.contiguous() for key, value in state.items()}, path)
    return f"file:{path}@{SMALL_ARCHITECTURE}"


@pytest.fixture
def cache(tmp_path):
    with Cache(tmp_path / "cache") as opened:
        yield opened


@pytest.fixture
def quick(monkeypatch):
    """One candidate: all stages for two epochs at 64 pixels; it wins whatever its gain is."""

    def candidates(backbone, seed, *, include_scratch):
        first = recipe_candidates(backbone, seed, include_scratch=False)[0]
        method = Finetune(
            train_from="all",
            learning_rate=3e-4,
            training=Training(epochs=2, patience=0),
            augmentation=Augmentation.named("light"),
            seed=seed,
        )
        return (replace(first, backbone=backbone.resized(64), method=method),)

    monkeypatch.setattr(expected_gain, "recipe_candidates", candidates)
    monkeypatch.setattr(expected_gain, "with_epochs", lambda candidate, _: candidate)
    monkeypatch.setattr(expected_gain, "pretraining_is_useless", lambda *_: False)
    monkeypatch.setattr(expected_gain, "estimate_training", lambda *_: 0.01)
    monkeypatch.setattr(Scorer, "expected_gain", lambda *_: 0.1)
    monkeypatch.setattr(RaceContext, "measuring_pays", lambda *_: True)


@pytest.mark.parametrize("max_risk", [None, 0.4])
def test_the_model_of_the_race_is_the_model_of_the_run(weights, cache, tmp_path, quick, max_risk):
    events = []
    recipe = Recipe(backbone=weights, device="cpu", engine="fp32", max_risk=max_risk)
    run = fit(drawn(), recipe, out=tmp_path / "run", cache=cache, observer=events.append)
    assert run.model.record["decision"]["rows"][-1]["state"] == "chosen", run.model.record
    assert not any(isinstance(event, EpochDone) for event in events), "trained a second time"
    record = load(run.folder).record
    assert record["method"]["train_from"] == "all"
    assert len(record["epochs"]) == 3
    assert record["best_epoch"] == 2
    assert record["decision"]["rows"][-1]["state"] == "chosen"
    assert len(record["learned_from"]) == len(run.prepared.train)
    assert PROBE in {baseline.name for baseline in run.evaluation.baselines}
    task = run.model.task
    assert task.max_risk == max_risk
    assert (task.selected is None) == (max_risk is None)
    # The model reads smaller images, and its recipe says so by a name that can be passed again.
    preprocess = run.model.backbone.spec.preprocess
    assert (preprocess.crop, run.recipe.backbone) == (64, run.model.backbone.spec.name)
    again = FrozenBackbone.open(run.recipe.backbone)
    assert again.spec.preprocess == preprocess
    features = Extractor(cache=cache, engine="fp32", device="cpu").features(
        run.model.backbone, run.prepared.test.samples
    )
    found = load(run.folder).linear_head().logits(features.values).argmax(axis=1)
    assert float(np.mean(found == run.prepared.test.targets())) == pytest.approx(
        run.evaluation.metrics["accuracy"].value
    )
