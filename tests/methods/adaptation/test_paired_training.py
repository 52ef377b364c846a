"""Training on both domains: resume, collapse, and what each method does on its own domain pair."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from headstart.backbones.backbone import Backbone
from headstart.backbones.frozen import FrozenBackbone
from headstart.cache import Cache
from headstart.data.dataset import Dataset, Sample
from headstart.features.extractor import Extractor
from headstart.methods.adaptation.adversarial import Adda, CdanE
from headstart.methods.adaptation.alignment import DeepCoral, Mcc
from headstart.methods.adaptation.consistency import MeanTeacher
from headstart.methods.adaptation.contract import Domains
from headstart.methods.adaptation.paired_training import PairedTraining, train_on_domains
from headstart.methods.adaptation.self_training import pseudo_labels
from headstart.methods.adaptation.source_free import Shot, centroid_labels
from headstart.models.heads.linear import LinearHead
from headstart.models.tasks import ClassificationTask
from headstart.models.transfer_model import TransferModel
from headstart.training.job import Session
from headstart.training.optim import Training

SHORT = Training(epochs=3, batch_size=8, patience=0)


@pytest.fixture
def extractor(tmp_path: Path) -> Extractor:
    return Extractor(cache=Cache(tmp_path), engine="fp32", device="cpu", workers=1)


@pytest.fixture
def model() -> TransferModel:
    torch.manual_seed(0)
    parts = [nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.Conv2d(4, 8, 3, 2), nn.ReLU()]
    module = Backbone.from_module(nn.Sequential(*parts), preprocess={"size": 12, "crop": 1.0})
    backbone = FrozenBackbone.of(module)
    head = LinearHead.random(backbone.width, 2, seed=0)
    return TransferModel(backbone=backbone, task=ClassificationTask(classes=("a", "b")), head=head)


@pytest.fixture
def domains() -> Domains:
    pixels = np.random.default_rng(0).integers(0, 255, (44, 12, 12, 3)).astype(np.uint8)
    samples = [Sample(image=p, target="ab"[i % 2]) for i, p in enumerate(pixels)]
    source = Dataset(samples=tuple(samples[:24]), classes=("a", "b"))
    return Domains(source=source, target=tuple(samples[24:]))


@pytest.mark.parametrize(
    "method",
    [method(training=SHORT) for method in (DeepCoral, CdanE, Adda, MeanTeacher)],
    ids=lambda method: method.name,
)
def test_a_stopped_training_ends_with_the_same_bits(
    method: Any, model: TransferModel, domains: Domains, extractor: Extractor, tmp_path: Path
) -> None:
    whole = method.adapt(model, domains, extractor=extractor).model

    def press_ctrl_c(epoch: Any, _: int) -> None:
        if epoch.number == 1:
            raise KeyboardInterrupt

    folder = tmp_path / "checkpoints"
    folder.mkdir()
    first = Session(on_epoch=press_ctrl_c, folder=folder)
    assert method.adapt(model, domains, extractor=extractor, session=first).history.interrupted
    second = Session(folder=folder, resume=True)
    resumed = method.adapt(model, domains, extractor=extractor, session=second).model
    for name, value in whole.backbone.state.items():
        assert torch.equal(value, resumed.backbone.state[name])
    assert np.array_equal(whole.linear_head().weight, resumed.linear_head().weight)


def test_one_class_that_takes_over_stops_the_method(
    model: TransferModel, domains: Domains, extractor: Extractor
) -> None:
    method = Shot(training=replace(SHORT, epochs=40, schedule="constant"), learning_rate=0.05)
    logits = model.linear_head().logits(extractor.features(model.backbone, domains.target).values)
    bias = model.linear_head().bias - np.median(logits, axis=0)  # both classes are predicted
    model = replace(model, head=replace(model.linear_head(), bias=bias.astype(np.float32)))
    alone = replace(domains, source=None)
    parts = PairedTraining(loss=lambda batch: -batch.target.logits.log_softmax(1)[:, 0].mean())
    adapted = train_on_domains(method, model, alone, parts, extractor=extractor)
    assert adapted.collapse.startswith("The predictions collapsed")
    assert adapted.history.steps < 40 * 3


def test_the_last_epoch_is_kept_though_the_entropy_rises(
    model: TransferModel, domains: Domains, extractor: Extractor
) -> None:
    head = model.linear_head()
    confident = replace(head, weight=300 * head.weight, bias=0 * head.bias)
    model = replace(model, head=confident)
    method = Shot(training=replace(SHORT, epochs=6, schedule="constant"), learning_rate=0.05)
    alone = replace(domains, source=None)
    parts = PairedTraining(loss=lambda batch: batch.target.logits.square().mean())
    history = train_on_domains(method, model, alone, parts, extractor=extractor).history
    assert history.epochs[-1].held_out_loss > 2 * history.epochs[0].held_out_loss
    assert history.epochs[-1].score <= history.epochs[0].score
    assert history.best == 6


def test_a_loss_that_is_no_number_is_reported(
    model: TransferModel, domains: Domains, extractor: Extractor
) -> None:
    method = Mcc(training=SHORT)
    parts = PairedTraining(loss=lambda batch: batch.target.logits.sum() * float("nan"))
    adapted = train_on_domains(method, model, domains, parts, extractor=extractor)
    assert adapted.collapse == "The loss became nan at step 1."
    assert all(np.isfinite(v.numpy()).all() for v in adapted.model.backbone.state.values())


def test_each_class_has_its_own_threshold() -> None:
    easy = np.column_stack([np.linspace(0.9, 0.99, 10), 1 - np.linspace(0.9, 0.99, 10)])
    hard = np.column_stack([np.linspace(0.3, 0.45, 4), 1 - np.linspace(0.3, 0.45, 4)])
    labels = pseudo_labels(np.concatenate([easy, hard]), 0.5)
    assert labels.tolist() == [-1] * 5 + [0] * 5 + [1, 1, -1, -1]
    assert (pseudo_labels(easy, 1.0) == 0).all()


def test_centroids_survive_a_missing_class() -> None:
    features = np.array([[1.0, 0.0], [0.0, 1.0], [0.1, 1.0]])
    probabilities = np.array([[0.9, 0.1, 0.0], [0.1, 0.9, 0.0], [0.2, 0.8, 0.0]])
    assert centroid_labels(features, probabilities).tolist() == [0, 1, 1]
