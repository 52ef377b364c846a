"""Every adaptation method on one small drawn pair of domains, and what all of them must keep."""

import json
import math
from dataclasses import fields, replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from headstart.backbones.backbone import Backbone
from headstart.backbones.frozen import FrozenBackbone
from headstart.cache import Cache
from headstart.data.dataset import Dataset, Sample
from headstart.errors import DataError, UsageError
from headstart.features.extractor import Extractor
from headstart.methods.adaptation import ADAPTATIONS
from headstart.methods.adaptation.contract import Domains
from headstart.methods.adaptation.paired_training import GradientAdaptation
from headstart.methods.linear_probe import LinearProbe
from headstart.models.tasks import ClassificationTask
from headstart.models.transfer_model import TransferModel
from headstart.training.optim import Training

NAMES = ["adabn", "mixed-bn", "coral", "dan", "jan", "mcc", "afn", "dann", "cdan", "cdan-e", "bsp"]
NAMES += ["mdd", "adda", "mcd", "self-training", "mean-teacher", "fixmatch", "shot", "tent"]
STATISTICS = ("adabn", "mixed-bn")
CLASSES = ("lie", "stand", "lean")


def striped(n: int, seed: int, *, contrast: float = 1.0, light: float = 0.0) -> Dataset:
    """Stripes in three directions; the target has another contrast and brightness."""
    rng = np.random.default_rng(seed)
    samples = []
    y, x = np.mgrid[:16, :16]
    for number in range(n):
        label = number % 3
        along = (y, x, x + y)[label]
        bars = ((along + rng.integers(6)) // 3 % 2) * 120 + 60
        pixels = np.clip((bars + rng.normal(0, 12, bars.shape)) * contrast + light, 0, 255)
        image = np.repeat(pixels[..., None], 3, axis=2).astype(np.uint8)
        samples.append(Sample(image=image, target=CLASSES[label]))
    return Dataset(samples=tuple(samples), classes=CLASSES)


@cache
def backbone() -> FrozenBackbone:
    torch.manual_seed(0)
    parts = [nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU()]
    parts += [nn.Conv2d(8, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU()]
    module = Backbone.from_module(nn.Sequential(*parts), preprocess={"size": 16, "crop": 1.0})
    return FrozenBackbone.of(module)


@pytest.fixture(scope="module")
def extractor(tmp_path_factory: pytest.TempPathFactory) -> Extractor:
    return Extractor(cache=Cache(tmp_path_factory.mktemp("kept")), device="cpu", workers=1)


@pytest.fixture(scope="module")
def model(extractor: Extractor) -> TransferModel:
    empty = TransferModel(backbone=backbone(), task=ClassificationTask(classes=CLASSES))
    return LinearProbe().fit(empty, striped(60, 0), extractor=extractor)


@pytest.fixture
def domains() -> Domains:
    target = striped(45, 1, contrast=0.4, light=90)
    return Domains(source=striped(60, 0), target=target.samples)


def small(name: str, **changes: Any) -> Any:
    """A method that takes two short epochs."""
    method: Any = ADAPTATIONS[name]()
    if not isinstance(method, GradientAdaptation):
        return method
    # two classifiers on the source labels take larger steps on 60 images
    rate = 2e-4 if name == "mcd" else 1e-3
    training = replace(method.training, epochs=2, batch_size=16)
    return replace(method, training=training, learning_rate=rate, **changes)


def accuracy(model: TransferModel, data: Dataset, extractor: Extractor) -> float:
    predicted = model.predict_probabilities(data.samples, extractor=extractor).argmax(axis=1)
    return float((predicted == data.targets()).mean())


def tensors(model: TransferModel) -> dict[str, Any]:
    return {k: v.numpy() for k, v in model.backbone.state.items()} | model.linear_head().state()


def test_the_table_names_every_method() -> None:
    assert list(ADAPTATIONS) == NAMES
    for name, method in ADAPTATIONS.items():
        assert method.name == name
        assert method.__doc__


@pytest.mark.parametrize("name", NAMES)
def test_the_contract(
    name: str, model: TransferModel, domains: Domains, extractor: Extractor
) -> None:
    before = {k: v.copy() for k, v in tensors(model).items()}
    method = small(name)
    adapted = method.adapt(model, domains, extractor=extractor)
    assert not adapted.collapse
    after = tensors(adapted.model)
    assert after.keys() == before.keys()
    assert all(np.array_equal(tensors(model)[k], v) for k, v in before.items())  # a new model
    changed = {k for k in after if not np.array_equal(after[k], before[k])}
    assert changed
    assert all(np.isfinite(v).all() for v in after.values())
    record = adapted.model.record["adaptation"]
    assert json.loads(json.dumps(record, allow_nan=False))["method"]["name"] == name
    assert record["target_images"] == 45
    if name in STATISTICS:
        assert all("running" in k or "num_batches" in k for k in changed)
        assert adapted.history is None
        return
    assert adapted.history.steps == 2 * math.ceil((60 if method.needs_source else 45) / 16)
    if not method.needs_source or name == "adda":
        assert not changed & {"weight", "bias"}  # the head stays
    # labels of the target are never read, and the same seed gives the same bits
    other = replace(domains, target=tuple(replace(s, target=None) for s in domains.target))
    again = tensors(small(name).adapt(model, other, extractor=extractor).model)
    assert all(np.array_equal(again[k], v) for k, v in after.items())


@pytest.mark.parametrize("name", ["coral", "mcc", "shot"])
def test_stages_before_the_first_trained_one_stay(
    name: str, model: TransferModel, domains: Domains, extractor: Extractor
) -> None:
    adapted = small(name, train_from="last:1").adapt(model, domains, extractor=extractor).model
    names = [k for k in model.backbone.state if k.startswith(("0.", "1."))]
    assert names
    for key in names:
        assert torch.equal(model.backbone.state[key], adapted.backbone.state[key])


def test_another_seed_gives_another_model(
    model: TransferModel, domains: Domains, extractor: Extractor
) -> None:
    first, second = (
        tensors(small("dann", seed=seed).adapt(model, domains, extractor=extractor).model)
        for seed in (0, 1)
    )
    assert any(not np.array_equal(first[k], v) for k, v in second.items())


@pytest.mark.parametrize("name", ["coral", "self-training"])
def test_training_batch_norm_ends_with_statistics_of_the_target(
    name: str, model: TransferModel, domains: Domains, extractor: Extractor
) -> None:
    method = small(name, train_from="all", batch_norm="train")
    adapted = method.adapt(model, domains, extractor=extractor).model
    module = adapted.backbone.module
    pixels = np.stack([s.image for s in domains.target])
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    first = module.trunk.get_submodule("0")(adapted.backbone.spec.preprocess.normalise(x))
    mean = module.trunk.get_submodule("1").running_mean
    assert torch.allclose(mean, first.mean(dim=(0, 2, 3)), atol=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_few_images_and_other_models_are_refused(
    name: str, model: TransferModel, domains: Domains, extractor: Extractor
) -> None:
    method = small(name)
    with pytest.raises(DataError, match="at least 8 target images, got 3"):
        method.adapt(model, replace(domains, target=domains.target[:3]), extractor=extractor)
    task = ClassificationTask(classes=CLASSES, kind="multilabel")
    with pytest.raises(UsageError, match="multilabel"):
        method.adapt(replace(model, task=task), domains, extractor=extractor)
    if method.needs_source:
        with pytest.raises(DataError, match=r"needs labelled source images.*--source"):
            method.adapt(model, replace(domains, source=None), extractor=extractor)
    elif name not in STATISTICS:
        return  # source images are not looked at
    other = replace(domains, source=replace(domains.source, classes=("a", "b", "c")))
    with pytest.raises(DataError, match=r"\['a', 'b', 'c'\]"):
        method.adapt(model, other, extractor=extractor)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in STATISTICS])
def test_wrong_settings_are_refused(name: str) -> None:
    method = ADAPTATIONS[name]
    assert {"learning_rate", "weight", "seed"} <= {field.name for field in fields(method)}
    for values in ({"learning_rate": 0.0}, {"weight": -1.0}, {"learning_rate": math.nan}):
        with pytest.raises(UsageError, match=next(iter(values))):
            method(**values)
    with pytest.raises(UsageError, match="no target labels"):
        method(training=Training(patience=3))
