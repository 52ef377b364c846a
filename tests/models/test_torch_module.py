"""A classifier as one torch module predicts what the model predicts."""

import numpy as np
import pytest
import torch

from headstart.backbones.backbone import load
from headstart.backbones.catalog import resolve
from headstart.backbones.frozen import FrozenBackbone
from headstart.cache import Cache
from headstart.data.dataset import Sample
from headstart.errors import UsageError
from headstart.features.extractor import Extractor
from headstart.models.heads.linear import LinearHead
from headstart.models.tasks import ClassificationTask, DetectionTask
from headstart.models.transfer_model import TransferModel

CLASSES = ("ant", "bee", "cat")


@pytest.fixture(scope="module")
def backbone():
    torch.manual_seed(0)
    spec = resolve("timm/test_resnet")
    state = load(spec, pretrained=False).trunk.state_dict()
    return FrozenBackbone(spec=spec, state=state, origin={})


@pytest.fixture(scope="module")
def pixels(backbone):
    """Images of another size than the model's input."""
    return np.random.default_rng(0).integers(0, 256, (5, 210, 250, 3), dtype=np.uint8)


def resized(backbone, pixels):
    preprocess = backbone.spec.preprocess
    return torch.from_numpy(np.stack([preprocess.resize_and_crop(image) for image in pixels]))


def classifier(backbone, kind="multiclass"):
    rng = np.random.default_rng(1)
    return TransferModel(
        backbone=backbone,
        task=ClassificationTask(classes=CLASSES, kind=kind, temperature=0.3),
        head=LinearHead(weight=rng.normal(size=(3, backbone.width)), bias=rng.normal(size=3)),
        engine="fp32",
    )


@pytest.mark.parametrize("kind", ["multiclass", "multilabel"])
def test_it_predicts_what_the_model_predicts(backbone, pixels, kind, tmp_path):
    model = classifier(backbone, kind)
    predictions = model.predict(pixels, cache=Cache(tmp_path), device="cpu")
    wanted = np.array([list(p.probabilities.values()) for p in predictions])
    assert np.ptp(wanted, axis=1).max() > 0.1  # no constant answers
    channels_last = resized(backbone, pixels)
    channels_first = channels_last.permute(0, 3, 1, 2)
    module = model.torch(resize=False)
    for batch in (channels_last, channels_first, channels_last / 255, channels_first / 255):
        np.testing.assert_allclose(module(batch).numpy(), wanted, atol=1e-4)


@pytest.mark.parametrize(
    "shape", [(210, 250), (250, 210), (100, 90), (161, 160), (30, 400), (400, 30), (160, 160)]
)
def test_images_of_any_size_are_resized_as_in_predict(backbone, shape, tmp_path):
    """uint8 is equal; floating point is resized without rounding."""
    images = np.random.default_rng(1).integers(0, 256, (3, *shape, 3), dtype=np.uint8)
    model = classifier(backbone)
    predictions = model.predict(images, cache=Cache(tmp_path), device="cpu")
    wanted = np.array([list(p.probabilities.values()) for p in predictions])
    batch = torch.from_numpy(images)
    np.testing.assert_allclose(model.torch()(batch).numpy(), wanted, atol=1e-4)
    np.testing.assert_allclose(
        model.torch()(batch.permute(0, 3, 1, 2) / 255).numpy(), wanted, atol=0.02
    )


def test_it_is_frozen_and_moves_as_one(backbone, pixels):
    module = classifier(backbone).torch()
    assert not module.training
    assert not any(parameter.requires_grad for parameter in module.parameters())
    assert {"mean", "std"} <= set(module.state_dict())
    probabilities = module.double()(resized(backbone, pixels[:1]))
    assert (probabilities.dtype, probabilities.shape) == (torch.float64, (1, 3))


def test_it_owns_its_parameters(backbone):
    model = classifier(backbone)
    module = model.torch()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
    assert any(value.abs().sum() > 0 for value in model.backbone.module.parameters())
    assert np.abs(model.head.weight).sum() > 0


@pytest.mark.parametrize(
    "batch",
    [
        torch.zeros(2, 4, 8, 9),
        torch.zeros(0, 3, 8, 9),
        torch.zeros(3, 160, 160),
        torch.zeros(1, 3, 160, 160, dtype=torch.int64),
    ],
)
def test_other_shapes_and_types_are_refused(backbone, batch):
    with pytest.raises(UsageError, match="Convert them first"):
        classifier(backbone).torch()(batch)


def test_without_resizing_another_size_is_refused(backbone):
    with pytest.raises(UsageError, match="without resize=False"):
        classifier(backbone).torch(resize=False)(torch.zeros(2, 3, 8, 9))


def test_only_a_fitted_classifier_has_a_module(backbone):
    with pytest.raises(UsageError, match="not fitted"):
        TransferModel(backbone=backbone, task=ClassificationTask(classes=CLASSES)).torch()
    with pytest.raises(UsageError, match="detection"):
        TransferModel(backbone=backbone, task=DetectionTask(classes=CLASSES)).torch()


def test_embeddings_are_the_features_of_the_extractor(backbone, pixels, tmp_path):
    model, cache = classifier(backbone), Cache(tmp_path)
    embedded = model.embed(pixels, cache=cache, device="cpu")
    extractor = Extractor(cache=cache, engine="fp32", device="cpu")
    wanted = extractor.features(backbone, [Sample(image=image) for image in pixels]).values
    assert embedded.dtype == np.float32
    assert embedded.shape == (5, backbone.width)
    np.testing.assert_array_equal(embedded, wanted)
    assert model.embed([], cache=cache).shape == (0, backbone.width)
