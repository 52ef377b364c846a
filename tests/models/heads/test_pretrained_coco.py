from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import nn
from torchvision.models import detection, resnet50
from torchvision.models.detection._utils import overwrite_eps
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.models.detection.retinanet import _default_anchorgen
from torchvision.ops.feature_pyramid_network import LastLevelP6P7
from torchvision.ops.misc import FrozenBatchNorm2d

from headstart.backbones.backbone import build_from_state
from headstart.backbones.catalog import resolve
from headstart.errors import UnknownNameError, WeightsMismatchError
from headstart.models.heads.pretrained import (
    BACKBONE,
    DETECTORS,
    coco_classes,
    detector_from_torchvision,
)

CANVAS = (64, 96)
CATEGORIES = detection.FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
LIMITS = {"proposals": (20, 10), "training_proposals": (20, 10)}
SAME = {
    "min_size": CANVAS[0],
    "max_size": CANVAS[1],
    "image_mean": [0.0] * 3,
    "image_std": [1.0] * 3,
}
REGIONS = SAME | {
    "rpn_pre_nms_top_n_test": 20,
    "rpn_post_nms_top_n_test": 10,
    "box_score_thresh": 0.01,
}
PLACES = SAME | {"score_thresh": 0.01, "topk_candidates": 300, "detections_per_img": 100}
FRESH = {"weights": None, "weights_backbone": None, "num_classes": 91}


def frozen(levels: list[int], extra: nn.Module | None) -> nn.Module:
    """The backbone that torchvision makes for its published weights."""
    backbone = resnet50(weights=None, norm_layer=FrozenBatchNorm2d)
    return _resnet_fpn_extractor(backbone, 5, levels, extra)


def plain_faster_rcnn() -> nn.Module:
    model = detection.FasterRCNN(frozen([1, 2, 3, 4], None), 91, **REGIONS)
    overwrite_eps(model, 0.0)
    return model


def plain_retinanet() -> nn.Module:
    backbone = frozen([2, 3, 4], LastLevelP6P7(256, 256))
    model = detection.RetinaNet(backbone, 91, anchor_generator=_default_anchorgen(), **PLACES)
    overwrite_eps(model, 0.0)
    return model


MODELS: dict[str, Callable[[], nn.Module]] = {
    "fasterrcnn_resnet50_fpn": plain_faster_rcnn,
    "fasterrcnn_resnet50_fpn_v2": partial(detection.fasterrcnn_resnet50_fpn_v2, **FRESH, **REGIONS),
    "retinanet_resnet50_fpn": plain_retinanet,
    "retinanet_resnet50_fpn_v2": partial(detection.retinanet_resnet50_fpn_v2, **FRESH, **PLACES),
    "fcos_resnet50_fpn": lambda: detection.FCOS(
        frozen([2, 3, 4], LastLevelP6P7(256, 256)), 91, **PLACES
    ),
}


def model_of(name: str) -> nn.Module:
    """A model of random numbers, in whose statistics the epsilon counts, that says no N/A."""
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    none = torch.tensor([c in {"N/A", "__background__"} for c in CATEGORIES])
    if name.startswith("fasterrcnn"):
        none[0] = False
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d | FrozenBatchNorm2d):
                module.running_mean.normal_(0, 1e-3)
                module.running_var.uniform_(1e-6, 1e-4)
                module.weight.copy_(0.7 * module.running_var.sqrt())
        for key, value in model.state_dict().items():
            if key.endswith(("cls_score.bias", "classification_head.cls_logits.bias")):
                value.normal_(-2, 0.5)
                value.view(-1, 91)[:, none] = -1e4
    return model


@pytest.mark.parametrize("name", sorted(DETECTORS))
def test_the_parts_find_what_the_whole_finds(name: str) -> None:
    model = model_of(name)
    images = torch.randn(2, 3, *CANVAS)
    with torch.no_grad():
        expected = model(list(images))
    limits = LIMITS if DETECTORS[name].kind == "faster-rcnn" else {}
    state, head = detector_from_torchvision(model.state_dict(), kind=name, canvas=CANVAS, **limits)
    backbone = build_from_state(resolve(BACKBONE, offline=True), state).eval()
    module, maps, x = head.module().eval(), {}, images
    with torch.no_grad():
        for stage in backbone.stages:
            x = backbone.run(x, start=stage.name, stop=stage.name)
            maps[stage.name] = x
        detections = module.detect(module([maps[tap] for tap in head.taps]))
    classes = coco_classes()
    for (boxes, scores, labels), theirs in zip(detections, expected, strict=True):
        assert len(boxes) == len(theirs["boxes"]) > 20
        named = torch.tensor([CATEGORIES.index(classes[i]) for i in labels])
        # Rounding may swap neighbours: each of theirs is looked for among all of ours.
        for box, score, label in zip(
            *(theirs[k][:20] for k in ("boxes", "scores", "labels")), strict=True
        ):
            near = (boxes - box).abs().amax(dim=1) < 1e-2  # 1e-4 of the canvas
            assert (near & ((scores - score).abs() < 1e-4) & (named == label)).any()


def test_classes_of_coco_keep_their_outputs() -> None:
    model = model_of("fasterrcnn_resnet50_fpn")
    state = model.state_dict()
    _, head = detector_from_torchvision(
        state, kind="fasterrcnn_resnet50_fpn", canvas=CANVAS, classes=["blob", "Dog", "n/a"]
    )
    rows = torch.from_numpy(head.tensors["roi.box_predictor.cls_score.weight"])
    theirs = state["roi_heads.box_predictor.cls_score.weight"]
    assert rows.shape == (4, 1024)
    assert torch.equal(rows[0], theirs[0])
    assert torch.equal(rows[2], theirs[CATEGORIES.index("dog")])
    for random_rows in (rows[1], rows[3]):
        assert not (theirs == random_rows).all(dim=1).any()
    boxes = torch.from_numpy(head.tensors["roi.box_predictor.bbox_pred.bias"]).view(4, 4)
    their_boxes = state["roi_heads.box_predictor.bbox_pred.bias"].view(91, 4)
    assert torch.equal(boxes[2], their_boxes[CATEGORIES.index("dog")])


def test_files_with_names_of_old_versions_are_read() -> None:
    state = model_of("retinanet_resnet50_fpn").state_dict()
    old = {}
    for key, value in state.items():
        name = key
        for i in range(4):  # a layer was once followed by its activation in the same list
            name = name.replace(f"_head.conv.{i}.0.", f"_head.conv.{2 * i}.")
        if "blocks" in key and "extra" not in key:
            name = name.replace(".0.weight", ".weight").replace(".0.bias", ".bias")
        old[name] = value
    assert set(old) != set(state)
    _, now = detector_from_torchvision(state, kind="retinanet_resnet50_fpn", canvas=CANVAS)
    _, then = detector_from_torchvision(old, kind="retinanet_resnet50_fpn", canvas=CANVAS)
    assert all((now.tensors[k] == v).all() for k, v in then.tensors.items())


def test_other_weights_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="fcos_resnet50_fpn"):
        detector_from_torchvision({}, kind="fcos_resnet50", canvas=CANVAS)
    with pytest.raises(WeightsMismatchError, match="fcos_resnet50_fpn"):
        detector_from_torchvision({}, kind="fcos_resnet50_fpn", canvas=CANVAS)
