"""Choice of a detector's boxes, against torchvision's own suppression."""

import dataclasses

import numpy as np
import pytest
import torch
from torchvision.ops import batched_nms, nms

from headstart.backbones.spec import Stage
from headstart.errors import ModelFileError, UnknownNameError, UsageError
from headstart.models.heads.detection import BoxHead
from headstart.models.heads.detection_config import DETECTION_HEADS, BoxSelection
from headstart.models.tasks import ClassificationTask, DetectionTask
from headstart.models.transfer_model import TransferModel

CANVAS = (96, 128)
OWN = {"faster-rcnn": 0.5, "retinanet": 0.5, "fcos": 0.6, "ssdlite": 0.55}
ALL = BoxSelection(nms=1.0, max_boxes=10_000)


@pytest.fixture(scope="module", params=sorted(DETECTION_HEADS))
def case(request):
    """A head with scores that are far apart, its raw outputs and all its boxes, for two images."""
    stages = [Stage(name=f"s{s}", channels=8, stride=s) for s in (4, 8, 16, 32)]
    head = BoxHead.random(stages, 3, kind=request.param, canvas=CANVAS, seed=0)
    rng = np.random.default_rng(0)
    noise = {k: rng.normal(0, 0.05, v.shape).astype(v.dtype) for k, v in head.tensors.items()}
    module = head.with_state({k: v + noise[k] for k, v in head.tensors.items()}).module().eval()
    maps_rng = torch.Generator().manual_seed(1)
    strides = head.shape.strides
    sizes = [(2, 8, CANVAS[0] // stride, CANVAS[1] // stride) for stride in strides]
    with torch.no_grad():
        raw = module([torch.randn(size, generator=maps_rng) for size in sizes])
        return module, raw, module.detect(raw, ALL)


def require_equal(actual, expected):
    for parts, others in zip(actual, expected, strict=True):
        for part, other in zip(parts, others, strict=True):
            assert torch.equal(part, other)


def kept(everything, suppress, limit):
    """The boxes that a suppression keeps of all boxes."""
    rows = [suppress(boxes, scores, labels)[:limit] for boxes, scores, labels in everything]
    return [tuple(part[row] for part in parts) for parts, row in zip(everything, rows, strict=True)]


def test_boxes_are_suppressed_by_class_as_torchvision_does(case):
    module, raw, everything = case
    assert all(len(scores) > 20 for _, scores, _ in everything)
    for overlap, limit in [(None, 100), (0.1, 100), (0.3, 7), (0.7, 500), (1.0, 3)]:
        least = OWN[module.shape.kind] if overlap is None else overlap
        expected = kept(everything, lambda b, s, c, t=least: batched_nms(b, s, c, t), limit)
        selection = BoxSelection(nms=overlap, max_boxes=limit)
        require_equal(module.detect(raw, selection), expected)
    require_equal(module.detect(raw), module.detect(raw, BoxSelection()))


def test_boxes_of_all_classes_are_suppressed_together(case):
    module, raw, everything = case
    counts = []
    for overlap, limit in [(None, 100), (0.1, 100), (0.5, 5), (0.9, 10_000)]:
        least = OWN[module.shape.kind] if overlap is None else overlap
        expected = kept(everything, lambda b, s, _, t=least: nms(b, s, t), limit)
        selection = BoxSelection(nms=overlap, class_agnostic_nms=True, max_boxes=limit)
        detected = module.detect(raw, selection)
        require_equal(detected, expected)
        counts.append(len(detected[0][0]))
    assert counts[1] < counts[3]
    by_class = module.detect(raw, BoxSelection(nms=0.1, max_boxes=10_000))
    assert counts[1] < len(by_class[0][0])  # the suppression across classes removes more
    require_equal(module.detect(raw, ALL), everything)  # no setting stays from an earlier call


@pytest.mark.parametrize(
    ("values", "message"),
    [({"nms": value}, "`nms` must be an overlap above 0") for value in (0, -0.1, 1.5, True, "a")]
    + [({"nms": float("nan")}, "got nan"), ({"class_agnostic_nms": 1}, "must be True or False")]
    + [({"max_boxes": value}, "from 1 to 10000") for value in (0, -3, 2.5, True, 10_001, "9")],
)
def test_values_out_of_range_are_refused(values, message):
    with pytest.raises(UsageError, match=message):
        BoxSelection(**values)
    stored = dataclasses.asdict(BoxSelection()) | values
    with pytest.raises(ModelFileError, match="detection task is invalid"):
        DetectionTask.from_dict({"classes": ["a"], "threshold": 0.5, "selection": stored})


def test_a_model_stores_the_choice_and_older_models_have_the_default():
    task = DetectionTask(classes=("a",), selection=BoxSelection(nms=0.3, max_boxes=7))
    assert DetectionTask.from_dict(task.as_dict()) == task
    values = {k: v for k, v in task.as_dict().items() if k != "selection"}
    assert DetectionTask.from_dict(values).selection == BoxSelection()
    for wrong in ({"nsm": 1}, [1], "x", None):
        with pytest.raises(ModelFileError, match="detection task is invalid"):
            DetectionTask.from_dict(values | {"selection": wrong})


def test_a_model_takes_another_choice():
    model = TransferModel(backbone=None, task=DetectionTask(classes=("a",)))
    assert model.with_selection(nms=None, max_boxes=None) is model
    chosen = model.with_selection(nms=0.2).with_selection(class_agnostic_nms=True)
    assert chosen.task.selection == BoxSelection(nms=0.2, class_agnostic_nms=True)
    with pytest.raises(UnknownNameError, match="Did you mean 'nms'"):
        model.with_selection(nmss=0.2)
    classifier = TransferModel(backbone=None, task=ClassificationTask(classes=("a", "b")))
    with pytest.raises(UsageError, match="`max_boxes`=3 cannot be used with a multiclass model"):
        classifier.with_selection(max_boxes=3)
