"""Weights of images: in the loss, an image of weight 2 is two equal images."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import headstart
from headstart.backbones.frozen import FrozenBackbone
from headstart.cache import Cache
from headstart.data.dataset import Dataset, Sample
from headstart.errors import UsageError
from headstart.estimators import ImageClassifier
from headstart.features.extractor import Extractor
from headstart.methods.finetune import Finetune
from headstart.methods.linear_probe import LinearProbe
from headstart.methods.scratch import Scratch
from headstart.models.build import create_model
from headstart.training.losses.classification import classification_loss
from headstart.training.losses.own_loss import OwnLoss
from headstart.training.optim import Training
from headstart.workflows.recipe import Recipe
from headstart.workflows.resolve import require_consistent

WEIGHTS = [3, 1, 2, 1, 1, 2]
REPEATED = np.repeat(np.arange(6), WEIGHTS)


@pytest.mark.parametrize("kind", ["multiclass", "multilabel"])
@pytest.mark.parametrize(
    "options", [{}, {"label_smoothing": 0.1}, {"focal_gamma": 2.0}, {"class_weights": True}]
)
def test_the_weighted_loss_is_the_loss_of_repeated_images(kind, options) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 3, generator=generator, dtype=torch.float64)
    targets = torch.tensor([0, 1, 2, 0, 1, 1])
    if kind == "multilabel":
        targets = torch.randint(0, 2, (6, 3), generator=generator).double()
    if options.get("class_weights"):
        options = {"class_weights": torch.tensor([0.5, 1.0, 3.0])}
    weights = torch.tensor(WEIGHTS, dtype=torch.float64)
    weighted = classification_loss(
        logits, targets, kind=kind, row_weights=weights / weights.mean(), **options
    )
    rows = torch.from_numpy(REPEATED)
    repeated = classification_loss(logits[rows], targets[rows], kind=kind, **options)
    assert weighted.item() == pytest.approx(repeated.item(), rel=1e-12)


def test_the_weighted_loss_in_closed_form() -> None:
    logits = torch.log(torch.tensor([[0.5, 0.5], [0.9, 0.1]]))
    weights = torch.tensor([1.5, 0.5])  # 3 to 1, with mean 1
    value = classification_loss(
        logits, torch.tensor([0, 1]), kind="multiclass", row_weights=weights
    )
    assert value.item() == pytest.approx(-(3 * np.log(0.5) + np.log(0.1)) / 4, rel=1e-6)


def by_image(logits, targets):
    return nn.functional.cross_entropy(logits, targets, reduction="none")


def test_a_loss_of_the_users_own_is_weighted_too() -> None:
    logits, targets = torch.randn(6, 3), torch.tensor([0, 1, 2, 0, 1, 1])
    weights = torch.tensor(WEIGHTS) / np.mean(WEIGHTS)
    class_weights = torch.tensor([1.0, 2.0, 0.5])
    value = OwnLoss.of(by_image).mean(logits, targets, class_weights, weights)
    expected = (by_image(logits, targets) * class_weights[targets] * weights).mean()
    assert value.item() == pytest.approx(expected.item())
    with pytest.raises(UsageError, match=r"returned one number for 6 images"):
        OwnLoss.of(nn.functional.cross_entropy).mean(logits, targets, None, weights)


def small_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, 4, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 4, 1))


def images_of(weights) -> Dataset:
    pixels = np.random.default_rng(1).integers(0, 255, (6, 32, 32, 3), dtype=np.uint8)
    samples = [
        Sample(image=pixels[i], target="ab"[i % 2], weight=weight, title=str(i))
        for i, weight in enumerate(weights)
    ]
    return Dataset(samples=tuple(samples), classes=("a", "b"))


TRAINING = Training(epochs=2, batch_size=16, optimiser="sgd", warm_up=0.0, schedule="constant")
RATES = {"learning_rate": 0.1, "head_learning_rate": 0.1}


@pytest.mark.parametrize(
    "method",
    [
        Finetune(train_from="all", start="random", training=TRAINING, **RATES),
        Finetune(train_from="head", start="random", training=TRAINING, **RATES),
        Scratch(training=TRAINING, learning_rate=0.1),
    ],
    ids=["all", "head", "scratch"],
)
def test_a_training_step_is_that_of_repeated_images(method, tmp_path) -> None:
    spec = headstart.Backbone.from_module(small_network(), preprocess={"size": 32, "mean": 0.5})
    backbone = FrozenBackbone.open(spec)
    extractor = Extractor(cache=Cache(tmp_path), engine="fp32", device="cpu")
    plain = images_of([1] * 6)
    val = replace(plain, samples=plain.samples[:4])
    heads = []
    for data in (images_of(WEIGHTS), plain.subset(REPEATED), plain):
        start = create_model(backbone, data, seed=0)
        model = method.fit(start, data, val, extractor=extractor)
        heads.append(model.head.state()["weight"])
    assert np.allclose(heads[0], heads[1], rtol=1e-4, atol=1e-6)
    assert not np.allclose(heads[0], heads[2], atol=1e-3)


def test_weights_that_cannot_be_used_are_refused(tmp_path) -> None:
    weighted = images_of(WEIGHTS)
    with pytest.raises(UsageError, match=r"`mixup` is 0.2, but the images have weights"):
        Finetune(mixup=0.2).check(weighted)
    with pytest.raises(UsageError, match=r"`cutmix` is 1, but the images have weights"):
        Scratch(cutmix=1.0).check(weighted)
    with pytest.raises(UsageError, match=r"have weights, which a race of methods cannot use"):
        require_consistent(Recipe(), weighted, resume=False)
    dense = replace(weighted, kind="detection")
    with pytest.raises(UsageError, match=r"cannot be used for detection"):
        Finetune().check(dense)
    for weight in (0, -1, float("nan"), float("inf"), "2"):
        with pytest.raises(UsageError, match="`weight` must be a finite number above 0"):
            Sample(image=b"", weight=weight)


def test_equal_weights_are_no_weights() -> None:
    assert images_of([2.5] * 6).weights() is None
    assert images_of(WEIGHTS).weights().mean() == pytest.approx(1)
    Finetune(mixup=0.2).check(images_of([2.5] * 6))


def test_the_classifier_passes_sample_weight_to_gradient_methods(tmp_path) -> None:
    pixels = np.random.default_rng(1).integers(0, 255, (12, 32, 32, 3), dtype=np.uint8)
    labels = ["a", "b"] * 6
    backbone = headstart.Backbone.from_module(small_network(), preprocess={"size": 32})
    method = Finetune(train_from="head", start="probe", training=TRAINING)
    fitted = [
        ImageClassifier(backbone=backbone, method=method, cache_dir=tmp_path)
        .fit(pixels, labels, sample_weight=weight)
        .model_.head.state()["weight"]
        for weight in (None, np.full(12, 2.0), np.arange(1.0, 13))
    ]
    assert np.array_equal(fitted[0], fitted[1])
    assert not np.allclose(fitted[0], fitted[2])


def test_the_probe_takes_the_weights_of_the_images(tmp_path) -> None:
    backbone = headstart.Backbone.from_module(small_network(), preprocess={"size": 32})
    opened = FrozenBackbone.open(backbone)
    extractor = Extractor(cache=Cache(tmp_path), engine="fp32", device="cpu")
    data = images_of(WEIGHTS)
    model = LinearProbe(folds=2).fit(create_model(opened, data, seed=0), data, extractor=extractor)
    assert model.record["weighted_images"]
