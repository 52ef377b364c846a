"""The teacher's outputs: computed once, in the order of the student's classes, and checked."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from headstart.cache import Cache
from headstart.data.dataset import Dataset, Sample
from headstart.errors import HeadstartError, UnknownNameError, UsageError
from headstart.features.extractor import Extractor
from headstart.methods.finetune import Finetune
from headstart.methods.pretraining import SMALL_ARCHITECTURE, random_backbone
from headstart.models.build import create_model
from headstart.models.heads.linear import LinearHead
from headstart.models.saving import save
from headstart.training.losses.distillation import kd
from headstart.training.network import Outputs
from headstart.training.optim import Training
from headstart.training.regularisation.teacher import (
    Distillation,
    open_teacher,
    read_teacher,
    teacher_term,
)


def images(classes=("a", "b", "c"), n=18):
    rng = np.random.default_rng(0)
    samples = tuple(
        Sample(
            image=np.full((40, 40, 3), 60 * (i % len(classes)) + 20, np.uint8)
            + rng.integers(0, 20, (40, 40, 3), np.uint8),
            target=classes[i % len(classes)],
            title=f"{i}.png",
        )
        for i in range(n)
    )
    return Dataset(samples=samples, classes=classes)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A model whose classes have another order than the images'."""
    backbone = random_backbone(SMALL_ARCHITECTURE)
    model = create_model(backbone, images(("c", "a", "b")))
    folder = tmp_path_factory.mktemp("teacher") / "run"
    save(replace(model, head=LinearHead.random(backbone.width, 3, seed=1)), folder)
    return folder


@pytest.fixture
def extractor(tmp_path):
    with Cache(tmp_path / "cache") as cache:
        yield Extractor(cache=cache, engine="fp32", device="cpu")


def test_columns_follow_the_classes_of_the_images(teacher, extractor):
    data = images()
    found = read_teacher(Distillation(teacher=str(teacher)), data, extractor)
    model, order = open_teacher(Distillation(teacher=str(teacher)), data)
    assert order == [1, 2, 0]
    values = extractor.features(model.backbone, data.samples)
    assert values.computed == 0  # from the cache
    expected = model.linear_head().logits(values.values)[:, order]
    assert np.allclose(found.logits, expected, rtol=1e-6)
    assert np.array_equal(found.targets, data.targets())


@pytest.mark.parametrize("loss", ["kd", "dkd", "dist", "rkd", "pkt"])
def test_the_term_reads_the_rows_of_the_batch(teacher, extractor, loss):
    settings = Distillation(teacher=str(teacher), teacher_loss=loss, teacher_weight=3.0)
    found = read_teacher(settings, images(), extractor)
    term = teacher_term(found, "cpu")
    rows = np.array([7, 2, 11])
    logits = torch.randn(3, 3)
    outputs = Outputs(logits=logits, pooled=torch.randn(3, 5), maps=())
    value = term(outputs, outputs, rows)
    assert torch.isfinite(value)
    if loss == "kd":
        expected = 3 * kd(logits, torch.from_numpy(found.logits[rows]), 4.0)
        assert float(value) == pytest.approx(float(expected))


def test_another_teacher_has_another_fingerprint(teacher, extractor, tmp_path):
    settings = Distillation(teacher=str(teacher))
    first = read_teacher(settings, images(), extractor)
    model, _ = open_teacher(settings, images())
    other = replace(model, head=LinearHead.random(model.backbone.width, 3, seed=2))
    save(other, tmp_path / "other")
    second = read_teacher(Distillation(teacher=str(tmp_path / "other")), images(), extractor)
    assert first.fingerprint != second.fingerprint


def test_a_student_comes_near_its_teacher(teacher, extractor):
    """With a large weight the student learns the teacher's predictions, not the labels."""
    data = images(n=30)
    settings = Distillation(teacher=str(teacher), teacher_weight=1000.0, teacher_temperature=1.0)
    training = Training(epochs=15, patience=0, batch_size=10)
    wanted = read_teacher(settings, data, extractor).logits
    distances = []
    for distillation in (settings, Distillation()):
        method = Finetune(
            train_from="all", learning_rate=1e-2, training=training, distillation=distillation
        )
        start = create_model(random_backbone(SMALL_ARCHITECTURE), data)
        student = method.fit(start, data, data, extractor=extractor)
        values = extractor.features(student.backbone, data.samples).values
        logits = torch.from_numpy(np.asarray(student.linear_head().logits(values)))
        distances.append(float(kd(logits, torch.from_numpy(wanted), 1.0)))
    assert distances[0] < 0.5 * distances[1]


def test_none_without_a_teacher(extractor):
    assert read_teacher(Distillation(), images(), extractor) is None


def test_classes_that_the_teacher_does_not_know_are_named(teacher):
    with pytest.raises(UsageError, match="does not know the classes 'd'"):
        open_teacher(Distillation(teacher=str(teacher)), images(("a", "b", "d")))
    method = Finetune(distillation=Distillation(teacher=str(teacher)))
    with pytest.raises(UsageError, match="'d'"):
        method.check(images(("a", "b", "d")))


def test_several_labels_are_refused(teacher):
    data = images()
    with pytest.raises(UsageError, match="one class per image, not for multilabel"):
        open_teacher(Distillation(teacher=str(teacher)), replace(data, kind="multilabel"))


def test_a_folder_without_a_model_is_named(tmp_path):
    with pytest.raises(HeadstartError, match=r"model\.json"):
        open_teacher(Distillation(teacher=str(tmp_path)), images())


@pytest.mark.parametrize(
    ("values", "error"),
    [
        ({"teacher_loss": "fitnet"}, UnknownNameError),
        ({"teacher_weight": 0}, UsageError),
        ({"teacher_weight": float("nan")}, UsageError),
        ({"teacher_temperature": -1}, UsageError),
        ({"teacher_temperature": True}, UsageError),
    ],
)
def test_settings_are_checked(values, error):
    with pytest.raises(error, match=next(iter(values))):
        Distillation(teacher="x", **values)


@pytest.mark.parametrize("mixing", ["mixup", "cutmix"])
def test_mixed_images_have_no_teacher(mixing):
    with pytest.raises(UsageError, match="--teacher"):
        Finetune(distillation=Distillation(teacher="x"), **{mixing: 0.2})
