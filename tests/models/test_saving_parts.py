"""Models for boxes and masks: saved and loaded completely, or refused with a message."""

import hashlib
import json
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import torch
from safetensors.torch import load as from_bytes
from safetensors.torch import save as to_bytes

from headstart.backbones.backbone import load as load_backbone
from headstart.backbones.catalog import resolve
from headstart.backbones.frozen import FrozenBackbone
from headstart.cli.options import Size
from headstart.data.dataset import Boxes, Dataset, Mask, Palette, Sample
from headstart.errors import ModelFileError
from headstart.estimators import ObjectDetector
from headstart.models.build import HEADS, create_model
from headstart.models.inference import detect, segment
from headstart.models.saving import load, save
from headstart.workflows.recipe import Recipe

CLASSES = ("background", "leaf")
PALETTE = Palette(codes=tuple(enumerate(CLASSES)))
BOX_KINDS, MASK_KINDS = HEADS["detection"], HEADS["segmentation"]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def backbone():
    spec = resolve("timm/test_resnet")
    state = load_backbone(spec, pretrained=False, seed=0).trunk.state_dict()
    return FrozenBackbone(spec=spec, state=state, origin={"sha256": "", "from": "test", "file": ""})


def images():
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (h, w, 3), dtype=np.uint8) for h, w in ((48, 64), (40, 50))]


def dataset(kind):
    boxes = Boxes(corners=((4, 6, 30, 28), (20, 10, 40, 36)), labels=("leaf", "stem"))
    if kind == "detection":
        targets = [boxes, boxes]
        return Dataset(
            samples=tuple(
                Sample(image=p, target=t) for p, t in zip(images(), targets, strict=True)
            ),
            classes=("leaf", "stem"),
            kind="detection",
        )
    samples = []
    for pixels in images():
        mask = np.zeros(pixels.shape[:2], dtype=np.uint8)
        mask[10:30, 10:30] = 1
        target = Mask(source=mask, palette=PALETTE, present=CLASSES)
        samples.append(Sample(image=pixels, target=target))
    return Dataset(samples=tuple(samples), classes=CLASSES, kind="segmentation")


def made(backbone, task, kind):
    return create_model(backbone, dataset(task), head=kind, size=64, seed=1)


@pytest.mark.parametrize("task", ["detection", "segmentation"])
@pytest.mark.parametrize(("size", "read"), [(64, 64), (65, 96), (100, 128)])
def test_a_size_is_rounded_up_as_every_place_says(backbone, task, size, read):
    model = create_model(backbone, dataset(task), size=size)
    assert max(model.backbone.spec.preprocess.canvas) == read
    option = get_args(Size)[1].help
    for words in (option, create_model.__doc__, Recipe.__doc__, ObjectDetector.__doc__):
        assert "rounded up to a multiple of 32" in " ".join(words.split())


@pytest.mark.parametrize("head", ["retinanet", "fcos"])
def test_anchors_fit_what_is_learned_and_not_what_is_hard(backbone, head):
    def made_of(boxes):
        samples = tuple(Sample(image=p, target=boxes) for p in images())
        data = Dataset(samples=samples, classes=("leaf",), kind="detection")
        return create_model(backbone, data, head=head, size=64, seed=1)

    plain = ((4, 6, 16, 18), (20, 10, 34, 20))
    crowd = (0, 0, 50, 40)
    learned = made_of(Boxes(corners=plain, labels=("leaf",) * 2))
    mixed = Boxes(corners=(*plain, crowd), labels=("leaf",) * 3, hard=(False, False, True))
    both = made_of(mixed)
    assert both.head.as_dict() == learned.head.as_dict()
    assert both.record == learned.record
    nothing = made_of(Boxes(corners=(crowd,), labels=("leaf",), hard=(True,)))
    assert "anchors_reach" not in nothing.record


def answers(model):
    samples = dataset(model.task.kind).samples
    if model.task.kind == "detection":
        predictions = detect(model.backbone, model.head, samples, device="cpu")
        return [
            a
            for prediction in predictions
            for a in (prediction.boxes, prediction.scores, prediction.labels)
        ]
    return [
        prediction.mask for prediction in segment(model.backbone, model.head, samples, device="cpu")
    ]


@pytest.mark.parametrize(
    ("task", "kind"),
    [*(("detection", k) for k in BOX_KINDS), *(("segmentation", k) for k in MASK_KINDS)],
)
def test_every_head_comes_back_and_answers_the_same(backbone, task, kind, tmp_path):
    model = made(backbone, task, kind)
    save(model, tmp_path / "run")
    again = load(tmp_path / "run")
    assert (again.task, again.head.kind, again.head.taps) == (model.task, kind, model.head.taps)
    assert again.head.as_dict() == model.head.as_dict()
    assert again.record == model.record
    assert again.backbone.spec.preprocess.canvas == model.backbone.spec.preprocess.canvas
    before, after = answers(model), answers(again)
    assert sum(array.size for array in before)
    for array, other in zip(before, after, strict=True):
        np.testing.assert_array_equal(array, other)
    save(again, tmp_path / "copy")
    for name in ("model.json", "model.safetensors"):
        assert (tmp_path / "copy" / name).read_bytes() == (tmp_path / "run" / name).read_bytes()


@pytest.fixture(scope="module", params=["fcos", "unet"])
def written(request, backbone, tmp_path_factory):
    folder = tmp_path_factory.mktemp("written")
    save(
        made(backbone, "detection" if request.param == "fcos" else "segmentation", request.param),
        folder,
    )
    return {name: (folder / name).read_bytes() for name in ("model.json", "model.safetensors")}


@pytest.fixture
def folder(written, tmp_path):
    for name, content in written.items():
        (tmp_path / name).write_bytes(content)
    return tmp_path


def describe(folder, change):
    description = json.loads((folder / "model.json").read_bytes())
    change(description)
    (folder / "model.json").write_text(json.dumps(description))


def retensor(folder, change):
    tensors = from_bytes((folder / "model.safetensors").read_bytes())
    change(tensors)
    content = to_bytes(tensors)
    (folder / "model.safetensors").write_bytes(content)
    stated = hashlib.sha256(content).hexdigest()
    describe(folder, lambda description: description["files"].update({"model.safetensors": stated}))


def within(*path, value):
    def change(description):
        for name in path[:-1]:
            description = description[name]
        description[path[-1]] = value

    return change


def widen(description):
    key = "widths" if "widths" in description["head"] else "channels"
    description["head"][key][-1] *= 2


def other_stage(description):
    """A tap that the network has not, though the stated stages say so."""
    description["head"]["taps"][-1] = "layer9"
    description["backbone"]["stages"] = [["layer9", 96, 32]]


DESCRIPTIONS = {
    "another task": within("task", "name", value="captions"),
    "no task": within("task", "name", value=["detection"]),
    "a classifier's task": within(
        "task",
        value={
            "name": "classification",
            "classes": ["leaf", "stem"],
            "kind": "multiclass",
            "temperature": 1.0,
            "thresholds": [],
        },
    ),
    "one class more": lambda model: model["task"]["classes"].append("root"),
    "no classes": within("task", "classes", value=[]),
    "classes twice": within("task", "classes", value=["leaf", "leaf"]),
    "no kind of head": within("head", value={}),
    "a linear head": within("head", "kind", value="linear"),
    "an unknown head": within("head", "kind", value="transformer"),
    "a list as the kind": within("head", "kind", value=["fcos"]),
    "no stages": within("head", "taps", value=[]),
    "stages that are not there": other_stage,
    "another width": widen,
    "another canvas": within("backbone", "preprocess", "canvas", value=[96, 96]),
    "no canvas": within("backbone", "preprocess", "canvas", value=None),
    "a huge canvas": within("head", "canvas", value=[10**9, 10**9]),
    "a canvas of nothing": within("head", "canvas", value=[0, 64]),
    "a canvas of infinity": within("head", "canvas", value=[float("inf"), 64]),
    "a canvas of words": within("head", "canvas", value=["64", "64"]),
    "many classes": within("head", "n_classes", value=10**9),
    "classes of words": within("head", "n_classes", value="2"),
    "strides of nothing": lambda model: model["head"].update(strides=[0] * 9),
    "options of words": within("head", "options", value="large"),
    "an unknown option": lambda model: model["head"]["options"].update(code="import os"),
    "wide layers": lambda model: model["head"]["options"].update(
        {k: 10**9 for k in ("channels", "widest") if k in model["head"]["options"]} or {"x": 1}
    ),
    "endless numbers": lambda model: model["head"]["options"].update(
        {k: float("nan") for k in model["head"]["options"]}
    ),
}  # fmt: skip


@pytest.mark.parametrize("damage", DESCRIPTIONS)
def test_a_hostile_description_is_refused(folder, damage):
    describe(folder, DESCRIPTIONS[damage])
    with pytest.raises(ModelFileError, match=r"^(Expected|model\.json: )") as caught:
        load(folder)
    assert len(str(caught.value)) < 1500


def first_head(tensors, kind=torch.float32):
    return next(k for k, t in tensors.items() if k.startswith("head.") and t.dtype == kind)


def spoil(change):
    def damage(tensors):
        name = first_head(tensors)
        tensors[name] = change(tensors[name])

    return damage


TENSORS = {
    "one missing": lambda tensors: tensors.pop(first_head(tensors)),
    "none at all": lambda tensors: [tensors.pop(k) for k in list(tensors) if "head." in k],
    "one more": lambda tensors: tensors.update({"head.door": torch.zeros(3)}),
    "another shape": spoil(lambda t: t[..., :-1].clone() if t.shape[-1] > 1 else t[None]),
    "NaN": spoil(lambda t: torch.full_like(t, torch.nan)),
    "infinity": spoil(lambda t: torch.full_like(t, torch.inf)),
    "half": spoil(lambda t: t.to(torch.bfloat16)),
    "double": spoil(lambda t: t.double()),
    "whole numbers": spoil(lambda t: t.long()),
}


@pytest.mark.parametrize("damage", TENSORS)
def test_hostile_tensors_are_refused(folder, damage):
    retensor(folder, TENSORS[damage])
    with pytest.raises(ModelFileError, match=r"^(Expected|model\.json: )") as caught:
        load(folder)
    assert len(str(caught.value)) < 1500


def test_a_variance_below_zero_is_refused(backbone, tmp_path):
    model = made(backbone, "segmentation", "unet")
    state = model.head.state()
    name = next(name for name in state if name.endswith("running_var"))
    head = replace(model.head, tensors={**state, name: -np.ones_like(state[name])})
    save(replace(model, head=head), tmp_path)
    with pytest.raises(ModelFileError, match="variances"):
        load(tmp_path)


def test_a_head_of_another_network_is_refused(backbone, tmp_path):
    """The same names and strides, other widths: said in words, not where it is first used."""
    other = resolve("torchvision/resnet18")
    state = load_backbone(other, pretrained=False, seed=0).trunk.state_dict()
    model = made(backbone, "segmentation", "fpn")
    alien = FrozenBackbone(spec=other, state=state, origin=backbone.origin).on_canvas(
        model.backbone.spec.preprocess.canvas
    )
    save(replace(model, backbone=alien), tmp_path)
    with pytest.raises(ModelFileError, match="stages of torchvision/resnet18"):
        load(tmp_path)
