"""Detection and segmentation with every method: freezing, cache and loop as for classes."""

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from headstart.backbones.backbone import load
from headstart.backbones.catalog import resolve
from headstart.backbones.freezing import fingerprint
from headstart.backbones.frozen import FrozenBackbone
from headstart.cache import Cache
from headstart.data.dataset import Boxes, Dataset, Mask, Palette, Sample
from headstart.data.transforms.augment import Augmentation
from headstart.errors import DataError, HeadstartError, UsageError
from headstart.features.extractor import Extractor
from headstart.methods.finetune import Finetune
from headstart.methods.linear_probe import LinearProbe
from headstart.methods.scratch import Scratch
from headstart.models.build import create_model
from headstart.models.heads.detection_config import BoxSelection
from headstart.models.inference import detect, segment
from headstart.models.tasks import DetectionTask
from headstart.models.transfer_model import TransferModel
from headstart.training.job import Score, Session
from headstart.training.losses.classification import Loss
from headstart.training.losses.segmentation import MaskLoss
from headstart.training.objectives import BoxObjective, MaskObjective
from headstart.training.optim import Training
from headstart.training.regularisation.penalties import Regularisation

PALETTE = Palette(codes=((0, "background"), (1, "red"), (2, "blue")))
COLOURS = {"red": (220, 30, 30), "blue": (30, 30, 220)}
SHORT = Training(epochs=2, batch_size=4)
VIEWS = Augmentation(flip=True, crop=0.7, brightness=0.2, views=2)
HEADS = {
    "detection": ("faster-rcnn", "retinanet", "fcos", "ssdlite"),
    "segmentation": ("unet", "unetplusplus", "deeplabv3plus", "fpn", "deeplabv3"),
}
METHODS = {
    "head": Finetune(train_from="head", training=SHORT),
    "last": Finetune(training=SHORT),
    "last, views": Finetune(training=SHORT, augmentation=VIEWS),
    "all": Finetune(train_from="all", training=SHORT),
    "unfreeze": Finetune(train_from="last:2", unfreeze_every=1, training=SHORT),
    "norm": Finetune(train_from="last:2", only="norm", training=SHORT),
    "lora": Finetune(train_from="last:2", only="lora", lora_rank=2, training=SHORT),
    "train": Finetune(train_from="last:2", batch_norm="train", training=SHORT),
    "adapt": Finetune(train_from="last:2", batch_norm="adapt", training=SHORT),
    "anchored": Finetune(training=SHORT, regularisation=Regularisation(l2_sp=0.1, l2_sp_head=0.1)),
    "maps and features": Finetune(
        training=SHORT, regularisation=Regularisation(delta=0.1, bss=0.01)
    ),
    "average": Finetune(training=replace(SHORT, ema=0.5, soup=2), wise_ft=0.7),
    "scratch": Scratch(training=SHORT),
}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def backbone():
    spec = resolve("timm/test_resnet")
    state = load(spec, pretrained=False, seed=0).trunk.state_dict()
    return FrozenBackbone(spec=spec, state=state, origin={"from": "test"})


@pytest.fixture
def extractor(tmp_path):
    return Extractor(cache=Cache(tmp_path / "kept"), engine="fp32", device="cpu", workers=1)


@pytest.fixture
def every_epoch_is_better(monkeypatch):
    """So that the last one is kept, and not the start, whatever a few steps have learned."""
    for objective in (BoxObjective, MaskObjective):
        count = itertools.count()
        monkeypatch.setattr(objective, "score", lambda *_, n=count: Score(float(next(n)), 0.0))


def scene(number):
    """An image with a red and a blue rectangle (every fifth: with none), and what it shows."""
    rng = np.random.default_rng(number)
    height, width = (60, 90) if number % 2 else (80, 64)
    pixels = rng.integers(90, 130, (height, width, 3), dtype=np.uint8)
    mask, corners = np.zeros((height, width), dtype=np.uint8), []
    for place, name in enumerate(() if number % 5 == 4 else COLOURS):
        top, left = rng.integers(2, 14), 2 + place * width // 2 + int(rng.integers(0, 6))
        bottom, right = top + int(rng.integers(18, 40)), left + int(rng.integers(14, 24))
        pixels[top:bottom, left:right] = COLOURS[name]
        mask[top:bottom, left:right] = 1 + place
        corners.append((left, top, right, bottom))
    return pixels, mask, Boxes(corners=tuple(corners), labels=tuple(COLOURS)[: len(corners)])


def data(kind, n=10):
    samples = []
    for number in range(n):
        pixels, mask, boxes = scene(number)
        present = tuple(PALETTE.names[code] for code in np.unique(mask))
        target = (
            boxes if kind == "detection" else Mask(source=mask, palette=PALETTE, present=present)
        )
        samples.append(Sample(image=pixels, target=target, title=f"{number}.png"))
    classes = tuple(COLOURS) if kind == "detection" else PALETTE.names
    return Dataset(samples=tuple(samples), classes=classes, kind=kind)


def made(backbone, kind, head="auto", n=10):
    dataset = data(kind, n)
    return create_model(backbone, dataset, head=head, size=64, seed=0), dataset


def trained_values(model):
    """Everything that training decides, to the bit."""
    head = {k: torch.from_numpy(v) for k, v in model.head.state().items()}
    return fingerprint(model.backbone.state), fingerprint(head), model.task


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("name", METHODS)
def test_every_strategy_trains_what_it_says_and_leaves_the_rest(backbone, extractor, kind, name):
    model, train = made(backbone, kind, "fcos" if kind == "detection" else "fpn")
    before = trained_values(model)
    epochs = []
    session = Session(on_epoch=lambda epoch, _: epochs.append(epoch))
    trained = METHODS[name].fit(model, train, extractor=extractor, session=session)
    assert trained_values(model) == before
    assert [epoch.number for epoch in epochs] == [0, 1, 2]
    assert all(np.isfinite(epoch.loss) for epoch in epochs[1:])
    constant = [row["stage"] for row in trained.record["plan"]["stages"] if not row["trainable"]]
    same = [k for k, v in trained.backbone.state.items() if torch.equal(v, model.backbone.state[k])]
    module = model.backbone.module
    moved = {module.stage_of(f"trunk.{k}") for k in trained.backbone.state if k not in same}
    if name not in {"adapt", "scratch"}:
        assert not moved & set(constant)
    json.dumps(trained.record, allow_nan=False)
    again = METHODS[name].fit(model, train, extractor=extractor)
    assert trained_values(again) == trained_values(trained)


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("augmentation", [Augmentation(), VIEWS], ids=["plain", "views"])
@pytest.mark.parametrize("train_from", ["head", "last:2"])
def test_with_and_without_the_cache_the_weights_are_the_same(
    backbone, extractor, kind, augmentation, train_from, every_epoch_is_better
):
    model, train = made(backbone, kind, "fcos" if kind == "detection" else "unet")
    rates = {"learning_rate": 1e-3, "head_learning_rate": 1e-3, "augmentation": augmentation}
    settings = {"train_from": train_from, "training": SHORT, **rates}
    models = [
        Finetune(activation_cache=switch, **settings).fit(model, train, extractor=extractor)
        for switch in ("on", "off")
    ]
    for name, value in models[0].backbone.state.items():
        torch.testing.assert_close(value, models[1].backbone.state[name], atol=1e-6, rtol=0)
    other = models[1].head.state()
    for name, value in models[0].head.state().items():
        np.testing.assert_allclose(value, other[name], atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "head"), [(kind, head) for kind, heads in HEADS.items() for head in heads]
)
def test_every_head_learns_behind_a_frozen_backbone_and_answers_in_the_image(
    backbone, extractor, kind, head, every_epoch_is_better
):
    model, train = made(backbone, kind, head)
    trained = Finetune(train_from="head", training=SHORT).fit(model, train, extractor=extractor)
    assert fingerprint(trained.backbone.state) == fingerprint(model.backbone.state)
    assert any((v != model.head.state()[k]).any() for k, v in trained.head.state().items())
    sizes = [sample.image.shape[:2] for sample in train.samples[:3]]
    if kind == "segmentation":
        masks = [
            prediction.mask
            for prediction in segment(trained.backbone, trained.head, train.samples[:3])
        ]
        assert [mask.shape for mask in masks] == sizes
        assert max(mask.max() for mask in masks) < 3
        return
    for prediction, (height, width) in zip(
        detect(trained.backbone, trained.head, train.samples[:3]), sizes, strict=True
    ):
        assert prediction.size == (width, height)
        assert (prediction.boxes >= 0).all()
        assert (prediction.boxes <= [width, height, width, height]).all()
        assert (np.diff(prediction.scores) <= 0).all()
        assert set(prediction.labels) <= {0, 1}


def test_boxes_are_learned_and_the_threshold_is_set(backbone, extractor):
    model, train = made(backbone, "detection", "fcos", n=16)
    training = Training(epochs=25, batch_size=4, patience=25)
    method = Finetune(train_from="all", batch_norm="train", learning_rate=1e-3, training=training)
    trained = method.fit(model, train, train, extractor=extractor)
    epochs = trained.record["epochs"]
    assert max(epoch["score"] for epoch in epochs) > epochs[0]["score"] + 0.2
    assert trained.task != DetectionTask(classes=train.classes)
    best = detect(trained.backbone, trained.head, train.samples[:1])[0]
    truth = train.samples[0].target.array()
    overlap = [iou(best.boxes[best.labels == k][0], truth[k]) for k in (0, 1)]
    assert min(overlap) > 0.5


def test_masks_are_learned(backbone, extractor):
    model, train = made(backbone, "segmentation", "unet", n=12)
    training = Training(epochs=12, batch_size=4, patience=25)
    method = Finetune(train_from="all", batch_norm="train", learning_rate=1e-3, training=training)
    trained = method.fit(model, train, train, extractor=extractor)
    masks = [
        prediction.mask for prediction in segment(trained.backbone, trained.head, train.samples)
    ]
    truths = [sample.target.source for sample in train.samples]
    right = np.mean([(a == b).mean() for a, b in zip(masks, truths, strict=True)])
    plain = np.mean([(truth == 0).mean() for truth in truths])
    assert right > plain + 0.6 * (1 - plain)


def iou(first, other):
    left, top = np.maximum(first[:2], other[:2])
    right, bottom = np.minimum(first[2:], other[2:])
    shared = max(0, right - left) * max(0, bottom - top)
    areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in (first, other)]
    return shared / (sum(areas) - shared)


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize(
    ("method", "message"),
    [
        (Finetune(start="probe"), "start"),
        (Finetune(mixup=0.2), "mixup"),
        (Finetune(dropout=0.1), "dropout"),
        (Scratch(loss=Loss(focal=2.0)), "loss"),
        (LinearProbe(), "--train-from head"),
        (Finetune(regularisation=Regularisation(lwf=0.1)), "whole images"),
        (Finetune(augmentation=Augmentation(policy="randaugment")), "policy cannot be used"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.name,
)
def test_what_is_for_classes_only_is_refused_by_name(backbone, extractor, kind, method, message):
    model, train = made(backbone, kind, "fcos" if kind == "detection" else "fpn")
    with pytest.raises(UsageError, match=message):
        method.fit(model, train, extractor=extractor)


@pytest.mark.parametrize("kind", HEADS)
def test_nothing_to_learn_is_said(backbone, extractor, kind):
    model, train = made(backbone, kind)
    with pytest.raises(DataError, match="at least 2 images"):
        Finetune(training=SHORT).fit(model, train.subset([0]), extractor=extractor)


def test_a_model_without_a_head_is_refused(backbone, extractor):
    train = data("detection")
    with pytest.raises(UsageError, match="head for detection"):
        Finetune().fit(
            TransferModel(backbone=backbone, task=DetectionTask(classes=train.classes)),
            train,
            extractor=extractor,
        )


@pytest.mark.parametrize("loss", ["ce", "dice", "focal", "lovasz", "jaccard", "ce+dice"])
def test_every_loss_of_masks_trains(backbone, extractor, loss):
    model, train = made(backbone, "segmentation", "fpn")
    mask_loss = MaskLoss(kind=loss, class_weights="balanced" if loss.startswith("ce") else "none")
    trained = Finetune(train_from="head", mask_loss=mask_loss, training=SHORT).fit(
        model, train, extractor=extractor
    )
    assert all(np.isfinite(epoch["held_out_loss"]) for epoch in trained.record["epochs"])


def test_tiles_agree_with_the_whole_where_one_tile_is_the_whole(backbone):
    model, train = made(backbone, "segmentation", "fpn")
    masks = [mask.mask for mask in segment(model.backbone, model.head, train.samples[:3])]
    tiled = [mask.mask for mask in segment(model.backbone, model.head, train.samples[:3], tile=90)]
    for mask, other in zip(masks, tiled, strict=True):
        assert mask.shape == other.shape
    np.testing.assert_array_equal(masks[1], tiled[1])  # 60 x 90: as large as the window


def test_tiles_see_what_is_lost_in_the_whole(backbone, extractor):
    """A model of small images finds its classes again in an image nine times as large."""
    model, train = made(backbone, "segmentation", "unet", n=12)
    method = Finetune(
        train_from="all",
        batch_norm="train",
        learning_rate=1e-3,
        training=Training(epochs=12, batch_size=4, patience=25),
    )
    trained = method.fit(model, train, train, extractor=extractor)
    pixels, mask, _ = scene(1)
    large = Sample(image=np.tile(pixels, (4, 4, 1)), title="large.png")
    truth = np.tile(mask, (4, 4))
    resized, tiled = (
        next(iter(segment(trained.backbone, trained.head, [large], tile=tile))).mask
        for tile in (0, 90)
    )
    assert resized.shape == tiled.shape == truth.shape
    assert (tiled == truth).mean() > (resized == truth).mean() + 0.05
    with pytest.raises(UsageError, match="tile"):
        next(iter(segment(trained.backbone, trained.head, [large], tile=-1)))


def test_a_head_takes_the_options_of_its_name(backbone):
    train = data("detection")
    plain, light = (
        create_model(backbone, train, head=head, size=64).head
        for head in ("faster-rcnn", "faster-rcnn?channels=64&first_stride=8")
    )
    sizes = [sum(value.size for value in head.state().values()) for head in (plain, light)]
    assert sizes[1] < sizes[0] / 1.5
    assert len(light.taps) < len(plain.taps)
    for wrong, message in (("unet", "faster-rcnn"), ("fcos?chanels=64", "channels")):
        with pytest.raises(UsageError, match=message):
            create_model(backbone, train, head=wrong, size=64)


def test_from_scratch_no_trained_head_is_taken(backbone, extractor):
    model, train = made(backbone, "detection", "fcos")
    spec = replace(
        model.backbone.spec, name="torchvision/fcos_resnet50_fpn"
    )  # as published ones have
    trained = replace(model, backbone=replace(model.backbone, spec=spec))
    with pytest.raises(UsageError, match="random head"):
        Scratch(training=SHORT).fit(trained, train, extractor=extractor)


@pytest.mark.parametrize("kind", HEADS)
def test_the_rate_finder_sees_the_views_that_are_kept(backbone, extractor, kind):
    """It takes more epochs than the training, whose views are all that is kept."""
    model, train = made(backbone, kind, "fcos" if kind == "detection" else "fpn")
    method = Finetune(
        learning_rate="auto",
        activation_cache="on",
        augmentation=replace(VIEWS, views=10),
        training=replace(SHORT, batch_size=10),
    )
    trained = method.fit(model, train, extractor=extractor)
    assert trained.record["learning_rate_found"]["scale"] > 0


def stopped(model, train, extractor, folder, **settings):
    """A training that Ctrl-C ended in its second epoch, with a checkpoint."""

    def stop(epoch, _):
        if epoch.number == 1:
            raise KeyboardInterrupt

    session = Session(on_epoch=stop, folder=folder)
    Finetune(training=SHORT, **settings).fit(model, train, extractor=extractor, session=session)


def test_a_training_is_taken_up_with_its_own_head_and_truth_only(backbone, extractor, tmp_path):
    model, train = made(backbone, "segmentation", "fpn")
    stopped(model, train, extractor, tmp_path)
    again = Session(folder=tmp_path, resume=True)
    inverted = replace(train.samples[0], target=Mask(source=2 - scene(0)[1], palette=PALETTE))
    other = replace(train, samples=(inverted, *train.samples[1:]))
    for start, data_ in (
        (create_model(backbone, train, head="unet", size=64), train),
        (model, other),
    ):
        with pytest.raises(HeadstartError, match=r"head|data"):
            Finetune(training=SHORT).fit(start, data_, extractor=extractor, session=again)
    resumed = Finetune(training=SHORT).fit(model, train, extractor=extractor, session=again)
    uninterrupted = Finetune(training=SHORT).fit(model, train, extractor=extractor)
    assert trained_values(resumed) == trained_values(uninterrupted)


def test_the_choice_of_boxes_reaches_training_prediction_and_evaluation(backbone, extractor):
    train = data("detection")
    selection = BoxSelection(nms=0.3, class_agnostic_nms=True, max_boxes=2)
    model = create_model(backbone, train, head="fcos", size=64, selection=selection)
    trained = Finetune(train_from="head", training=SHORT).fit(model, train, extractor=extractor)
    assert trained.task.selection == selection
    images = [sample.image for sample in train.samples[:3]]
    few = trained.predict(images, threshold=0)
    many = trained.predict(images, threshold=0, nms=1.0, class_agnostic_nms=False, max_boxes=50)
    assert [len(image.boxes) for image in few] == [2, 2, 2]
    assert [len(image.boxes) for image in many] == [50, 50, 50]
    evaluation = trained.evaluate(train, allow_overlap=True, max_boxes=1)
    assert {len(image.boxes) for image in evaluation.detections} == {1}
    assert evaluation.as_dict()["selection"] == {
        "nms": 0.3,
        "class_agnostic_nms": True,
        "max_boxes": 1,
    }
