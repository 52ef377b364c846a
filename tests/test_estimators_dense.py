"""Boxes and masks in scikit-learn's words, on images with rectangles."""

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from headstart import Boxes, Finetune, ImageSegmenter, ObjectDetector, Training
from headstart.backbones.backbone import load as load_backbone
from headstart.backbones.catalog import resolve
from headstart.cache import Cache
from headstart.errors import DataError, UnknownNameError, UsageError
from headstart.evaluation.classification import evaluate
from headstart.features.extractor import Extractor
from headstart.workflows.evaluate import labelled_part

TINY = "timm/test_resnet"
SHORT = Finetune(train_from="all", training=Training(epochs=3, batch_size=4, patience=9))
KINDS = [ObjectDetector, ImageSegmenter]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    torch.save(load_backbone(resolve(TINY), pretrained=False).trunk.state_dict(), folder / "w.pth")
    return {
        "backbone": f"file:{folder / 'w.pth'}@{TINY}",
        "size": 64,
        "method": SHORT,
        "device": "cpu",
        "cache_dir": str(folder / "kept"),
    }


def scenes(n=10):
    """Images of two sizes with a red rectangle, where it is, and their masks of 0, 7 and 255."""
    images, boxes, masks = [], [], []
    for number in range(n):
        rng = np.random.default_rng(number)
        height, width = (48, 64) if number % 2 else (64, 40)
        pixels = rng.integers(90, 130, (height, width, 3), dtype=np.uint8)
        left, top = map(int, rng.integers(2, 12, 2))
        right, bottom = left + 22, top + 28
        pixels[top:bottom, left:right] = (220, 30, 30)
        mask = np.zeros((height, width), dtype=np.uint8)
        mask[top:bottom, left:right] = 7
        mask[0] = 255
        images.append(pixels)
        boxes.append({"boxes": [[left, top, right, bottom]], "labels": ["red"]})
        masks.append(mask)
    boxes[-1] = {"boxes": [], "labels": []}  # not found is not an error
    return images, boxes, masks


IMAGES, BOXES, MASKS = scenes()
TRUTHS = {ObjectDetector: BOXES, ImageSegmenter: MASKS}
HEADS = {ObjectDetector: "ssdlite", ImageSegmenter: "fpn"}


def made(kind, settings, **changes):
    return kind(**{"head": HEADS[kind], **settings, **changes})


@pytest.fixture(scope="module")
def fitted(settings):
    return {kind: made(kind, settings).fit(IMAGES, TRUTHS[kind]) for kind in KINDS}


def test_boxes_come_back_as_they_are_given(fitted):
    detector = fitted[ObjectDetector]
    found = detector.predict(IMAGES)
    assert len(found) == len(IMAGES)
    for one, image in zip(found, IMAGES, strict=True):
        assert one["boxes"].shape == (len(one["labels"]), 4)
        assert set(one["labels"]) <= {"red"}
        assert (np.diff(one["scores"]) <= 0).all()
        height, width = image.shape[:2]
        assert (one["boxes"] <= [width, height, width, height]).all()
    assert detector.classes_.tolist() == ["red"]
    assert detector.score(IMAGES, found) >= 0  # what is found can be a truth


def test_masks_come_back_in_the_numbers_that_were_given(fitted):
    segmenter = fitted[ImageSegmenter]
    found = segmenter.predict(IMAGES)
    assert [one.shape for one in found] == [one.shape for one in MASKS]
    assert set(np.unique(np.concatenate([one.ravel() for one in found]))) <= {0, 7}
    assert segmenter.classes_.tolist() == ["0", "7"]
    right = np.concatenate([(a == b)[b != 255] for a, b in zip(found, MASKS, strict=True)])
    assert right.mean() > 0.5
    assert segmenter.score(IMAGES, found) == pytest.approx(1.0)


@pytest.mark.parametrize("kind", KINDS)
def test_the_score_is_the_evaluations(kind, fitted, settings):
    estimator = fitted[kind]
    data = estimator._data(IMAGES, TRUTHS[kind], "test")
    extractor = Extractor(cache=Cache(settings["cache_dir"]), engine="fp32", device="cpu")
    found = evaluate(estimator.model_, data, extractor=extractor)
    score = estimator.score(IMAGES, TRUTHS[kind])
    assert score == next(iter(found.metrics.values())).value
    assert 0 <= score <= 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_clone_learns_the_same(kind, fitted, settings):
    other = clone(fitted[kind])
    assert other.get_params() == fitted[kind].get_params()
    assert not hasattr(other, "model_")
    with pytest.raises(NotFittedError):
        other.predict(IMAGES)
    before = {k: np.array(v) for k, v in fitted[kind].model_.head.state().items()}
    after = other.fit(IMAGES, TRUTHS[kind]).model_.head.state()
    for name, value in before.items():
        np.testing.assert_array_equal(value, after[name])
    assert other.set_params(size=96).size == 96


@pytest.mark.parametrize(("kind", "source"), [(ObjectDetector, "boxes"), (ImageSegmenter, "masks")])
def test_a_folder_brings_its_own_truths(kind, source, settings, tmp_path):
    from headstart.data.demo.classification import load as load_demo

    short = Finetune(train_from="head", training=Training(epochs=1))
    estimator = made(kind, settings, method=short).fit(f"demo:{source}")
    assert tuple(estimator.classes_) == load_demo(source).classes
    assert 0 <= estimator.score(f"demo:{source}") <= 1
    [answer] = estimator.predict(IMAGES[0])
    if kind is ImageSegmenter:
        assert set(np.unique(answer)) <= set(range(len(estimator.classes_)))


@pytest.mark.parametrize(
    ("kind", "y", "words"),
    [
        (ObjectDetector, BOXES[:-1], "10 images, got 9"),
        (ObjectDetector, [{"boxes": [[1, 2, 3, 4]], "labels": []}] * 10, "one label per box"),
        (ObjectDetector, [{"boxes": [[1, 2, 3]], "labels": ["a"]}] * 10, "Boxes or"),
        (ObjectDetector, [{"boxes": [[1, 2, 3, np.nan]], "labels": ["a"]}] * 10, "finite"),
        (ObjectDetector, ["red"] * 10, "Boxes or"),
        (ObjectDetector, None, "`y`"),
        (ImageSegmenter, [mask / 255 for mask in MASKS], "whole numbers"),
        (ImageSegmenter, [mask[..., None] for mask in MASKS], "height"),
        (ImageSegmenter, [mask.astype(int) - 1 for mask in MASKS], "0 to 255"),
        (ImageSegmenter, None, "`y`"),
    ],
)
def test_truths_that_are_none_are_refused(kind, y, words, settings):
    with pytest.raises(UsageError, match=words):
        made(kind, settings).fit(IMAGES, y)


def test_masks_of_another_size_are_refused(settings):
    with pytest.raises(DataError, match=r"40 x 64|64 x 40"):
        made(ImageSegmenter, settings).fit(IMAGES, MASKS[1:] + MASKS[:1])


def test_boxes_are_clipped_as_everywhere(settings):
    truths = [Boxes(corners=((-9.0, -9.0, 900.0, 900.0),), labels=("red",))]
    data = made(ObjectDetector, settings)._data(IMAGES[:1], truths, "train")
    assert data.samples[0].target.corners == ((0.0, 0.0, 40.0, 64.0),)
    assert labelled_part(data, "detection", "train", cache=Cache(settings["cache_dir"])) == data


@pytest.mark.parametrize("kind", KINDS)
def test_unknown_names_are_said(kind, settings):
    with pytest.raises(UnknownNameError, match="method"):
        made(kind, settings, method="finetun").fit(IMAGES, TRUTHS[kind])
    with pytest.raises(UnknownNameError, match="head"):
        made(kind, settings, head="yolo").fit(IMAGES, TRUTHS[kind])
