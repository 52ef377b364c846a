from collections import OrderedDict
from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign, box_iou
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from headstart.backbones.backbone import Backbone, load
from headstart.backbones.spec import Stage
from headstart.errors import ModelFileError, UnknownNameError, UsageError
from headstart.models.heads.detection import BoxHead, pyramid_stages
from headstart.models.heads.detection_config import DETECTION_HEADS

CANVAS = (64, 96)
BACKBONES = ["timm/test_resnet", "timm/test_efficientnet", "torchvision/resnet18"]
SMALL = {"channels": 64}
FEW = {"width": 64, "pooled": 5, "regions": 32, "first_stride": 8}
TRUTHS = [
    (torch.tensor([[4.0, 6.0, 40.0, 50.0], [50.0, 10.0, 90.0, 60.0]]), torch.tensor([2, 0])),
    (torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)),
    (torch.tensor([[0.0, 0.0, 20.0, 12.0]]), torch.tensor([1])),
]
PLAIN = [
    Stage(name="a", channels=8, stride=4),
    Stage(name="b", channels=8, stride=8),
    Stage(name="c", channels=8, stride=16),
    Stage(name="d", channels=8, stride=32),
]


@lru_cache
def backbone_of(name: str) -> Backbone:
    return load(name, pretrained=False).eval()


@lru_cache
def maps_of(name: str) -> dict[str, torch.Tensor]:
    """What every stage gives for three images."""
    backbone, maps = backbone_of(name), {}
    x = torch.randn(3, 3, *CANVAS, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for stage in backbone.stages:
            x = backbone.run(x, start=stage.name, stop=stage.name)
            maps[stage.name] = x
    return maps


def head_of(name: str, kind: str, **options) -> BoxHead:
    if "channels" in DETECTION_HEADS[kind]:
        options = SMALL | options
    return BoxHead.random(backbone_of(name).stages, 3, kind=kind, canvas=CANVAS, seed=1, **options)


def spread(head: BoxHead) -> BoxHead:
    """The head with larger numbers: its scores are far apart, so their order is no accident."""
    rng = np.random.default_rng(0)
    noise = {k: rng.normal(0, 0.05, v.shape).astype(v.dtype) for k, v in head.tensors.items()}
    return head.with_state({k: v + noise[k] for k, v in head.tensors.items()})


def mapped(head: BoxHead, name: str) -> list[torch.Tensor]:
    return [maps_of(name)[tap] for tap in head.taps]


def plain_maps(head: BoxHead, n: int = 1) -> list[torch.Tensor]:
    return [torch.randn(n, 8, CANVAS[0] // s, CANVAS[1] // s) for s in head.shape.strides]


def found(head: BoxHead, maps) -> list:
    module = head.module().eval()
    with torch.no_grad():
        return module.detect(module(maps))


def require_same(first, other, tolerance: float = 0.0) -> None:
    """Scores within the tolerance, boxes within the tolerance of a hundred pixels."""
    assert len(first) == len(other)
    for (boxes, scores, labels), (b, s, c) in zip(first, other, strict=True):
        torch.testing.assert_close(boxes, b, rtol=0, atol=100 * tolerance)
        torch.testing.assert_close(scores, s, rtol=0, atol=tolerance)
        assert torch.equal(labels, c)


# ------------------------------------------------------------- the contract, over all of them

every = [
    pytest.mark.parametrize("kind", sorted(DETECTION_HEADS)),
    pytest.mark.parametrize("name", BACKBONES),
]


def over_all(test):
    return every[1](every[0](test))


@over_all
def test_the_loss_is_finite_and_reaches_every_parameter(name: str, kind: str) -> None:
    head = head_of(name, kind)
    module = head.module()
    torch.manual_seed(0)
    losses = [module.loss(module(mapped(head, name)), TRUTHS) for _ in range(3)]
    for loss in losses:
        assert all(term.ndim == 0 and torch.isfinite(term) for term in loss.values())
    sum(sum(loss.values()) for loss in losses).backward()
    idle = [n for n, p in module.named_parameters() if p.grad is None or not p.grad.any()]
    # SSD learns nothing from a level without objects and without the hardest places.
    may_idle = len(list(module.parameters())) // 2 if kind == "ssdlite" else 0
    assert len(idle) <= may_idle, idle
    assert all(p.grad is not None for p in module.parameters())


@over_all
def test_images_without_objects_are_learned_from(name: str, kind: str) -> None:
    head = head_of(name, kind)
    module = head.module()
    loss = module.loss(module(mapped(head, name)), [TRUTHS[1]] * 3)
    total = sum(loss.values())
    total.backward()
    assert torch.isfinite(total)
    assert all(torch.isfinite(p.grad).all() for p in module.parameters() if p.grad is not None)
    assert total > 0 or kind == "ssdlite"  # SSD mines negatives per object: without one, none


@over_all
def test_what_is_found_obeys_the_contract(name: str, kind: str) -> None:
    head = spread(head_of(name, kind))
    for boxes, scores, labels in found(head, mapped(head, name)):
        assert 0 < len(boxes) <= 100
        assert boxes.dtype == scores.dtype == torch.float32
        assert labels.dtype == torch.int64
        assert boxes.shape == (len(scores), 4) == (len(labels), 4)
        assert (boxes[:, 2:] >= boxes[:, :2]).all()
        assert boxes.min() >= 0
        assert (boxes <= torch.tensor([CANVAS[1], CANVAS[0]] * 2)).all()
        assert (scores >= 0.01).all()
        assert (scores.diff() <= 0).all()
        assert set(labels.tolist()) <= {0, 1, 2}


@over_all
def test_a_stored_head_finds_the_same(name: str, kind: str) -> None:
    head = spread(head_of(name, kind))
    again = BoxHead.from_dict(head.as_dict(), head.state())
    assert again.as_dict() == head.as_dict()
    trained = head.with_state({k: v.numpy() for k, v in again.module().state_dict().items()})
    expected = found(head, mapped(head, name))
    require_same(found(again, mapped(head, name)), expected)
    require_same(found(trained, mapped(head, name)), expected)


@over_all
def test_images_do_not_see_each_other(name: str, kind: str) -> None:
    head = spread(head_of(name, kind))
    maps = mapped(head, name)
    single = [found(head, [x[i : i + 1] for x in maps])[0] for i in range(3)]
    require_same(single, found(head, maps), 1e-4)


@pytest.mark.parametrize("kind", sorted(DETECTION_HEADS))
def test_chance_is_torchs_own(kind: str) -> None:
    head = BoxHead.random(PLAIN, 3, kind=kind, canvas=CANVAS, seed=1)
    maps, module = plain_maps(head, 3), head.module()

    def loss(seed: int) -> float:
        torch.manual_seed(seed)
        return float(sum(module.loss(module(maps), TRUTHS).values()).detach())

    assert loss(0) == loss(0)
    assert (loss(0) != loss(1)) == (kind == "faster-rcnn")  # the only one that samples


@pytest.mark.parametrize("kind", sorted(DETECTION_HEADS))
def test_building_draws_nothing_from_torchs_generator(kind: str) -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    head = BoxHead.random(PLAIN, 3, kind=kind, canvas=CANVAS, seed=1)
    head.module()
    head.with_classes(["a", "b", "c"], ["c"], seed=0)
    assert torch.rand(1) == expected
    twin = BoxHead.random(PLAIN, 3, kind=kind, canvas=CANVAS, seed=1)
    other = BoxHead.random(PLAIN, 3, kind=kind, canvas=CANVAS, seed=2)
    assert all(np.array_equal(twin.tensors[k], v) for k, v in head.tensors.items())
    assert not all(np.array_equal(other.tensors[k], v) for k, v in head.tensors.items())


@pytest.mark.parametrize("kind", sorted(DETECTION_HEADS))
def test_modules_share_no_memory(kind: str) -> None:
    head = BoxHead.random(PLAIN, 3, kind=kind, canvas=CANVAS, seed=1)
    before = {k: v.copy() for k, v in head.tensors.items()}
    with torch.no_grad():
        for p in head.module().parameters():
            p.zero_()
    assert all(np.array_equal(before[k], v) for k, v in head.tensors.items())


@pytest.mark.parametrize("kind", sorted(DETECTION_HEADS))
def test_the_mode_of_the_module_decides_nothing(kind: str) -> None:
    head = spread(BoxHead.random(PLAIN, 3, kind=kind, canvas=CANVAS, seed=1))
    maps, results = plain_maps(head, 3), []
    for training in (True, False):
        module = head.module().train(training)
        torch.manual_seed(0)
        with torch.no_grad():
            raw = module(maps)
            results.append((module.loss(raw, TRUTHS), module.detect(raw)))
    assert results[0][0] == results[1][0]
    require_same(results[0][1], results[1][1])


@pytest.mark.parametrize("kind", sorted(DETECTION_HEADS))
def test_one_box_is_learned(kind: str) -> None:
    canvas, box = (64, 64), torch.tensor([[12.0, 20.0, 44.0, 50.0]])
    stages = backbone_of("timm/test_resnet").stages
    options = {"ssdlite": {}, "faster-rcnn": SMALL | FEW}.get(kind, SMALL)
    head = BoxHead.random(stages, 2, kind=kind, canvas=canvas, seed=0, **options)
    rng = torch.Generator().manual_seed(0)
    maps = [
        torch.randn(1, w, 64 // s, 64 // s, generator=rng)
        for w, s in zip(head.shape.widths, head.shape.strides, strict=True)
    ]
    module = head.module()
    optimizer = torch.optim.Adam(module.parameters(), lr=3e-3)
    torch.manual_seed(0)
    for _ in range(100):
        optimizer.zero_grad()
        sum(module.loss(module(maps), [(box, torch.tensor([1]))]).values()).backward()
        optimizer.step()
    with torch.no_grad():
        boxes, scores, labels = module.detect(module(maps))[0]
    assert labels[0] == 1
    assert scores[0] > 0.3
    assert box_iou(boxes[:1], box)[0, 0] > 0.7


# ------------------------------------------------------------- against torchvision's own model


class Given(nn.Module):
    """A backbone and pyramid that gives the maps it was made of, whatever the image."""

    out_channels = 64

    def __init__(self, pyramid: nn.Module, maps: list[torch.Tensor]) -> None:
        super().__init__()
        self.pyramid, self.maps = pyramid, maps

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return self.pyramid(OrderedDict((str(i), m) for i, m in enumerate(self.maps)))


def test_faster_rcnn_equals_torchvisions_in_losses_and_detections() -> None:
    head = spread(BoxHead.random(PLAIN, 3, kind="faster-rcnn", canvas=CANVAS, seed=1, **SMALL))
    maps = plain_maps(head, 3)
    options = head.shape.options
    theirs = FasterRCNN(
        Given(FeaturePyramidNetwork([8] * 4, 64, LastLevelMaxPool()), maps),
        min_size=CANVAS[0],
        max_size=CANVAS[1],
        image_mean=[0.0] * 3,
        image_std=[1.0] * 3,
        rpn_anchor_generator=AnchorGenerator(options["sizes"], (options["ratios"],) * 5),
        rpn_pre_nms_top_n_train=500,
        rpn_post_nms_top_n_train=200,
        rpn_pre_nms_top_n_test=300,
        rpn_post_nms_top_n_test=100,
        box_roi_pool=MultiScaleRoIAlign(["0", "1", "2", "3"], 7, 2),
        box_head=TwoMLPHead(64 * 49, 256),
        box_predictor=FastRCNNPredictor(256, 4),
        box_score_thresh=0.01,
        box_batch_size_per_image=64,
    )
    names = {"pyramid.": "backbone.pyramid.", "rpn_head.": "rpn.head.", "roi.": "roi_heads."}
    state = {}
    for name, value in head.tensors.items():
        old = next(n for n in names if name.startswith(n))
        state[names[old] + name.removeprefix(old)] = torch.from_numpy(value)
    theirs.load_state_dict(state, strict=True)
    images = [torch.zeros(3, *CANVAS)] * 3
    torch.manual_seed(0)
    losses = theirs.train()(images, [{"boxes": b, "labels": c + 1} for b, c in TRUTHS])
    torch.manual_seed(0)
    torch.rand(3)  # their transform draws a size for each image
    module = head.module()
    ours = module.loss(module(maps), TRUTHS)
    pairs = {
        "objectness": "loss_objectness",
        "proposals": "loss_rpn_box_reg",
        "classes": "loss_classifier",
        "boxes": "loss_box_reg",
    }
    assert set(ours) == set(pairs)
    for name, their_name in pairs.items():
        torch.testing.assert_close(ours[name], losses[their_name])
    with torch.no_grad():
        expected = theirs.eval()(images)
    require_same(
        found(head, maps),
        [
            (detections["boxes"], detections["scores"], detections["labels"] - 1)
            for detections in expected
        ],
        1e-6,
    )


# ------------------------------------------------------------------------- classes and anchors


@pytest.mark.parametrize("kind", sorted(DETECTION_HEADS))
def test_known_classes_are_kept(kind: str) -> None:
    options = {} if kind == "ssdlite" else SMALL
    head = spread(BoxHead.random(PLAIN, 3, kind=kind, canvas=CANVAS, seed=1, **options))
    maps = plain_maps(head, 2)
    with_classes = head.with_classes(["cat", "dog", "cow"], ["Dog", "CAT", "COW"], seed=5)
    turned = torch.tensor([1, 0, 2])
    for (boxes, scores, labels), (b, s, c) in zip(
        found(with_classes, maps), found(head, maps), strict=True
    ):
        torch.testing.assert_close(scores, s)
        torch.testing.assert_close(boxes, b)
        torch.testing.assert_close(labels, turned[c])


@pytest.mark.parametrize("kind", sorted(DETECTION_HEADS))
def test_new_classes_are_drawn_and_counted(kind: str) -> None:
    head = spread(BoxHead.random(PLAIN, 3, kind=kind, canvas=CANVAS, seed=1))
    wider = head.with_classes(["a", "b", "c"], ["new", "b", "other", "more"], seed=5)
    assert wider.shape.n_classes == 4
    other = head.with_classes(["a", "b", "c"], ["new", "b", "other", "more"], seed=6)
    changed = [k for k, v in wider.tensors.items() if not np.array_equal(v, other.tensors[k])]
    layers = {
        "faster-rcnn": ("cls_score", "bbox_pred"),
        "retinanet": ("cls_logits",),
        "fcos": ("cls_logits",),
        "ssdlite": ("classification_head",),
    }[kind]
    assert changed
    assert all(any(layer in name for layer in layers) for name in changed)
    back = wider.with_classes(["new", "b", "other", "more"], ["b"], seed=0)
    direct = head.with_classes(["a", "b", "c"], ["B"], seed=0)
    assert all(np.array_equal(back.tensors[k], v) for k, v in direct.tensors.items())
    with pytest.raises(UsageError, match="3 classes"):
        head.with_classes(["a"], ["a"], seed=0)


def test_anchors_are_fitted_where_a_kind_has_them() -> None:
    boxes = np.array([[i, i, i + 60.0, i + 12.0] for i in range(30)])

    def draw(kind: str, **options) -> BoxHead:
        return BoxHead.with_fitted_anchors(
            PLAIN, 1, kind=kind, canvas=CANVAS, seed=0, boxes=boxes, **options
        )

    for kind in ("faster-rcnn", "retinanet", "ssdlite"):
        usual = BoxHead.random(PLAIN, 1, kind=kind, canvas=CANVAS, seed=0)
        assert draw(kind).anchor_recall(boxes) > usual.anchor_recall(boxes)
        again = BoxHead.from_dict(draw(kind).as_dict(), draw(kind).state())
        np.testing.assert_array_equal(again.anchors(), draw(kind).anchors())
    assert draw("faster-rcnn").anchor_recall(boxes) == 1.0
    assert draw("fcos").anchor_recall(boxes) is None
    assert draw("retinanet", ratios=(1.0,)).shape.ratios == (1.0,)
    none = BoxHead.with_fitted_anchors(
        PLAIN, 1, kind="retinanet", canvas=CANVAS, seed=0, boxes=np.zeros((0, 4))
    )
    assert (
        none.as_dict()
        == BoxHead.random(PLAIN, 1, kind="retinanet", canvas=CANVAS, seed=0).as_dict()
    )


@pytest.mark.parametrize("kind", ["faster-rcnn", "retinanet", "ssdlite"])
def test_anchors_are_those_of_the_module(kind: str) -> None:
    head = BoxHead.random(PLAIN, 1, kind=kind, canvas=(70, 100), seed=0)
    module = head.module()
    maps = [torch.randn(1, 8, *grid) for grid in head.shape.grids[: len(head.taps)]]
    raw = module(maps)
    levels = list(raw["levels"].values() if kind == "faster-rcnn" else raw["levels"])
    maker = module.training_rpn if kind == "faster-rcnn" else module.net
    theirs = maker.anchor_generator(module._image_list(levels), levels)[0]
    np.testing.assert_array_equal(head.anchors(), theirs.numpy())


# ------------------------------------------------------------------------------ odd images


@pytest.mark.parametrize("kind", sorted(DETECTION_HEADS))
def test_maps_that_lost_a_border_are_fitted(kind: str) -> None:
    head = spread(BoxHead.random(PLAIN, 3, kind=kind, canvas=(75, 100), seed=1))
    maps = [torch.randn(3, 8, 75 // s - (s < 32), 100 // s) for s in head.shape.strides]
    module = head.module()
    raw = module(maps)
    assert torch.isfinite(sum(module.loss(raw, TRUTHS).values()))
    assert all(boxes[:, 3].max() <= 75 for boxes, _, _ in module.detect(raw))


@pytest.mark.parametrize("kind", sorted(DETECTION_HEADS))
def test_low_precision_is_left_before_boxes_are_computed(kind: str) -> None:
    head = BoxHead.random(PLAIN, 3, kind=kind, canvas=CANVAS, seed=1)
    module, maps = head.module(), plain_maps(head, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        raw = module([x.bfloat16() for x in maps])
        loss = module.loss(raw, TRUTHS)
        boxes, _, _ = module.detect(raw)[0]
    assert all(torch.isfinite(term) and term.dtype == torch.float32 for term in loss.values())
    assert boxes.dtype == torch.float32


# ------------------------------------------------------------------------------- what fails


def test_backbones_of_tokens_are_refused() -> None:
    with pytest.raises(UsageError, match="torchvision/resnet18"):
        head_of("timm/test_vit", "fcos")
    head = BoxHead.random(PLAIN, 1, kind="fcos", canvas=CANVAS, seed=0)
    with pytest.raises(UsageError, match="convolutional"):
        head.module()([torch.zeros(1, 6, 8)] * 3)


def test_the_last_stage_of_a_stride_is_tapped() -> None:
    stages = backbone_of("timm/test_efficientnet").stages
    assert [s.name for s in pyramid_stages(stages, 4)] == [
        "stage2",
        "stage3",
        "stage4",
        "conv_head",
    ]


@pytest.mark.parametrize(
    ("kind", "options", "error"),
    [
        ("yolo", {}, UnknownNameError),
        ("fcos", {"sizes": ((8,),)}, UnknownNameError),
        ("retinanet", {"channels": 100}, UsageError),
        ("retinanet", {"sizes": ((8.0,), (16.0,))}, UsageError),
        ("retinanet", {"ratios": (0.0,)}, UsageError),
        ("retinanet", {"ratios": ()}, UsageError),
        ("retinanet", {"norm": "batch"}, UsageError),
        ("retinanet", {"convs": 100}, UsageError),
        ("faster-rcnn", {"first_stride": 5}, UsageError),
        ("faster-rcnn", {"proposals": (300,)}, UsageError),
        ("faster-rcnn", {"width": 10**9}, UsageError),
        ("faster-rcnn", {"regions": True}, UsageError),
    ],
)
def test_options_that_cannot_be_meant_are_refused(kind: str, options, error) -> None:
    with pytest.raises(error):
        BoxHead.random(PLAIN, 3, kind=kind, canvas=CANVAS, seed=0, **options)


@pytest.mark.parametrize("kind", sorted(DETECTION_HEADS))
@pytest.mark.parametrize("canvas", [(4128, 4096), (64, 4128), (31, 64)])
def test_a_canvas_that_no_file_may_hold_is_not_built(kind: str, canvas) -> None:
    with pytest.raises(UsageError, match=r"32 to 4096 pixels.*--size"):
        BoxHead.random(PLAIN, 3, kind=kind, canvas=canvas, seed=0)
    with pytest.raises(UsageError, match=r"32 to 4096 pixels.*--size"):
        BoxHead.with_fitted_anchors(
            PLAIN, 3, kind=kind, canvas=canvas, seed=0, boxes=np.zeros((0, 4))
        )


def test_truths_that_cannot_be_meant_are_refused() -> None:
    head = BoxHead.random(PLAIN, 2, kind="fcos", canvas=CANVAS, seed=0)
    module = head.module()
    raw = module(plain_maps(head))
    box, flat = torch.tensor([[1.0, 1.0, 9.0, 9.0]]), torch.tensor([[1.0, 1.0, 1.0, 9.0]])
    with pytest.raises(UsageError, match="area"):
        module.loss(raw, [(flat, torch.tensor([0]))])
    with pytest.raises(UsageError, match="classes from 0 to 1"):
        module.loss(raw, [(box, torch.tensor([2]))])


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "yolo"},
        {"taps": ["a"]},
        {"widths": [8, 8, 10**7]},
        {"canvas": [64, 10**6]},
        {"canvas": "ab"},
        {"n_classes": 0},
        {"n_classes": 5},
        {"strides": [8, 16, 64]},
        {"options": {"convs": 10**6}},
        {"options": {"file": "/etc/passwd"}},
        {"options": None},
    ],
)
def test_a_damaged_description_is_refused(change) -> None:
    head = BoxHead.random(PLAIN, 2, kind="fcos", canvas=CANVAS, seed=0)
    with pytest.raises(ModelFileError):
        BoxHead.from_dict(head.as_dict() | change, head.state())


def test_tensors_of_another_head_are_refused() -> None:
    head = BoxHead.random(PLAIN, 2, kind="fcos", canvas=CANVAS, seed=0)
    state = head.state()
    state.pop(next(iter(state)))
    with pytest.raises(ModelFileError, match="tensors of a fcos head"):
        BoxHead.from_dict(head.as_dict(), state)
    assert replace(head, tensors={}).kind == "fcos"
