"""Models and a checkpoint that an earlier version saved: they load and answer the same.

golden/saved was written before the package was laid out in rooms: a linear probe, a fine-tuned
model, and the checkpoint that the same fine-tuning leaves when it is killed after its first epoch.
The backbone is the first stage of timm's test_resnet with weights from NumPy's seed 7.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import headstart
from headstart.backbones.backbone import load as load_backbone
from headstart.backbones.catalog import resolve
from headstart.cache import Cache
from headstart.data.transforms import preprocess
from headstart.methods.finetune import Finetune
from headstart.training import trainer
from headstart.training.optim import Training
from headstart.workflows.evaluate import evaluate_model
from headstart.workflows.events import EpochDone
from headstart.workflows.fit import fit
from headstart.workflows.recipe import Recipe

SAVED = Path(__file__).parent / "golden" / "saved"
BACKBONE = "file:w.safetensors@timm/test_resnet?until=layer1&resize=36&crop=32"


def probabilities(model, photos):
    """Of every third image, by its path inside photos."""
    files = sorted(photos.rglob("*.png"))[::3]
    return {
        f.relative_to(photos).as_posix(): p.probabilities
        for f, p in zip(files, model.predict(files), strict=True)
    }


def assert_as_before(model, name, tolerance):
    expected = json.loads((SAVED / "expected.json").read_text())[name]
    predicted = probabilities(model, SAVED / "photos")
    assert predicted.keys() == expected.keys()
    for image, by_class in expected.items():
        assert predicted[image] == pytest.approx(by_class, abs=tolerance), image


@pytest.mark.parametrize("name", ["probe", "finetuned"])
def test_a_saved_model_predicts_as_before(name: str) -> None:
    assert_as_before(headstart.load(SAVED / name), name, tolerance=1e-4)


@pytest.mark.parametrize("name", ["probe", "finetuned"])
def test_a_saved_model_can_be_saved_and_evaluated_again(name: str, tmp_path: Path) -> None:
    model = headstart.load(SAVED / name)
    headstart.save(model, tmp_path / "again")
    first, second = (load_file(d / "model.safetensors") for d in (SAVED / name, tmp_path / "again"))
    assert all(torch.equal(first[key], second[key]) for key in first)
    evaluation = evaluate_model(
        tmp_path / "again", SAVED / "photos", cache=Cache(tmp_path / "cache"), allow_overlap=True
    ).evaluation
    assert evaluation.metrics["accuracy"].value > 0.9


def write_weights(path: Path) -> None:
    """Write the backbone's weights as they were: NumPy keeps a seed's stream, torch may not."""
    rng = np.random.default_rng(7)
    state = load_backbone(resolve("timm/test_resnet"), pretrained=False, seed=1).trunk.state_dict()
    weights = {}
    for name in sorted(state):
        tensor = state[name]
        if tensor.is_floating_point():
            values = rng.standard_normal(tuple(tensor.shape)).astype(np.float32)
            if tensor.ndim > 1:
                fan_in = max(1, int(np.prod(tensor.shape[1:])))
                values = values * (2 / fan_in) ** 0.5
            elif name.endswith(("var", "weight")):
                values = np.abs(values) * 0.1 + 1
            else:
                values = values * 0.1
            tensor = torch.from_numpy(values.astype(np.float32))
        weights[name] = tensor.clone()
    save_file(weights, path)


@pytest.fixture
def stopped(tmp_path, monkeypatch):
    """A folder in which the training was killed, on a machine like the one of that time."""
    shutil.copytree(SAVED / "photos", tmp_path / "photos")
    shutil.copytree(SAVED / "finetuned.partial", tmp_path / "finetuned.partial")
    write_weights(tmp_path / "w.safetensors")
    record = json.loads((SAVED / "finetuned" / "model.json").read_text())["record"]
    monkeypatch.setattr(trainer, "versions", lambda: record["versions"])
    monkeypatch.setattr(trainer, "threads", lambda: 1)
    monkeypatch.setattr(preprocess, "RESIZE_VERSION", 1)  # only JPEGs are resized otherwise now
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("stopped")
def test_a_checkpoint_resumes_to_the_same_model(tmp_path: Path) -> None:
    training = Training(epochs=3, batch_size=8, patience=9)
    method = Finetune(train_from="layer1", batch_norm="train", training=training, dropout=0.1)
    recipe = Recipe(engine="fp32", device="cpu", backbone=BACKBONE, method=method)
    events = []
    run = fit(
        "photos",
        recipe,
        out=tmp_path / "finetuned",
        cache=Cache(tmp_path / "cache"),
        observer=events.append,
        resume=True,
    )
    assert [e.epoch.number for e in events if isinstance(e, EpochDone)] == [2, 3]
    assert_as_before(run.model, "finetuned", tolerance=1e-4)
