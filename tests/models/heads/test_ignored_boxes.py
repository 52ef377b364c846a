"""Crowds and difficult objects are neither objects nor background: tested on the loss itself."""

import pytest
import torch

from headstart.backbones.spec import Stage
from headstart.models.heads.detection import BoxHead
from headstart.models.heads.detection_config import DETECTION_HEADS
from headstart.models.heads.ignored_boxes import drop_ignored_proposals, ignored_anchors

CANVAS = (64, 128)
KINDS = sorted(DETECTION_HEADS)
STAGES = [Stage(name=f"s{stride}", channels=8, stride=stride) for stride in (4, 8, 16, 32)]
NO_OBJECT = (torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
LEFT = (torch.tensor([[4.0, 8.0, 44.0, 56.0]]), torch.tensor([1]))
RIGHT = torch.tensor([[64.0, 0.0, 128.0, 64.0]])
EVERYWHERE = torch.tensor([[0.0, 0.0, 128.0, 64.0]])
NOWHERE = torch.zeros(0, 4)


def module_of(kind: str) -> torch.nn.Module:
    options = {"channels": 64} if "channels" in DETECTION_HEADS[kind] else {}
    return BoxHead.random(STAGES, 3, kind=kind, canvas=CANVAS, seed=1, **options).module()


def raw_outputs(module, kind: str):
    """The outputs of one image, and those of them that decide between object and background."""
    maps = [
        torch.randn(
            1, 8, CANVAS[0] // s, CANVAS[1] // s, generator=torch.Generator().manual_seed(s)
        )
        for s in module.shape.strides
    ]
    raw = module(maps)
    if kind == "faster-rcnn":
        raw["objectness"] = [x.detach().requires_grad_() for x in raw["objectness"]]
        return raw, raw["objectness"]
    raw["outputs"]["cls_logits"] = raw["outputs"]["cls_logits"].detach().requires_grad_()
    return raw, [raw["outputs"]["cls_logits"]]


def pull(module, kind: str, truth, ignored, seed: int = 0) -> torch.Tensor:
    """Size of the gradient for each anchor, and the anchors (n, 4)."""
    raw, leaves = raw_outputs(module, kind)
    torch.manual_seed(seed)
    terms = module.loss(raw, [truth], [ignored])
    sum(terms.values()).backward()
    if kind == "faster-rcnn":  # (1, anchors, h, w): anchors of one cell lie together
        parts = [leaf.grad[0].permute(1, 2, 0).reshape(-1) for leaf in leaves]
        return torch.cat(parts).abs()
    return leaves[0].grad[0].abs().sum(dim=1)


def anchors_of(module, kind: str) -> torch.Tensor:
    raw, _ = raw_outputs(module, kind)
    levels = list(raw["levels"].values()) if kind == "faster-rcnn" else raw["levels"]
    generator = module.training_rpn if kind == "faster-rcnn" else module.net
    return generator.anchor_generator(module._image_list(levels), levels)[0]


def inside(anchors: torch.Tensor, box: torch.Tensor) -> torch.Tensor:
    """Anchors that lie wholly in the box."""
    return (anchors[:, :2] >= box[0, :2]).all(1) & (anchors[:, 2:] <= box[0, 2:]).all(1)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_in_an_ignored_box_is_learned(kind: str) -> None:
    module = module_of(kind)
    region = inside(anchors_of(module, kind), RIGHT)
    assert region.sum() > 5
    seeds = range(6)  # the proposal network samples its anchors
    without = sum(pull(module, kind, LEFT, NOWHERE, seed) for seed in seeds)
    assert without[region].any()  # as background
    ignored = sum(pull(module, kind, LEFT, RIGHT, seed) for seed in seeds)
    assert not ignored[region].any()
    assert ignored[~region].any()


@pytest.mark.parametrize("kind", KINDS)
def test_an_object_in_an_ignored_box_is_learned(kind: str) -> None:
    module = module_of(kind)
    truth = (torch.tensor([[72.0, 8.0, 112.0, 56.0]]), torch.tensor([0]))
    assert pull(module, kind, truth, RIGHT)[inside(anchors_of(module, kind), RIGHT)].any()


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_that_is_all_ignored_has_no_loss(kind: str) -> None:
    module = module_of(kind)
    raw, _ = raw_outputs(module, kind)
    terms = module.loss(raw, [NO_OBJECT], [EVERYWHERE])
    assert sum(terms.values()).item() == 0
    if kind != "ssdlite":  # SSD mines its negatives by its objects: without one, none
        assert sum(module.loss(raw, [NO_OBJECT], [NOWHERE]).values()).item() > 0


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_list_of_ignored_boxes_changes_nothing(kind: str) -> None:
    module = module_of(kind)
    raw, _ = raw_outputs(module, kind)
    values = []
    for ignored in (None, [NOWHERE]):
        torch.manual_seed(0)
        values.append(sum(module.loss(raw, [LEFT], ignored).values()).item())
    assert values[0] == values[1] > 0


@pytest.mark.parametrize(
    ("anchor", "is_ignored"),
    [
        ((70, 10, 90, 30), True),  # inside
        ((60, 10, 68, 30), True),  # half of it
        ((50, 10, 66, 30), False),  # an eighth
        ((4, 8, 44, 56), False),  # beside
        ((100, 30, 160, 90), True),  # its part on the canvas
        ((-200, -200, 20, 20), False),  # no part on the canvas in the box
        ((64, 0, 128, 64), True),  # the box itself
        ((0, 0, 128, 64), True),  # twice the box: half of it
        ((-64, -64, 128, 64), True),  # larger than the canvas: half of its visible part
        ((0, 0, 63, 64), False),  # touches it
    ],
)
def test_an_anchor_is_ignored_by_its_share_in_the_box(anchor, is_ignored: bool) -> None:
    marks = ignored_anchors(torch.tensor([anchor]).float(), RIGHT, 0.5, CANVAS)
    assert marks.tolist() == [is_ignored]


def test_the_overlap_that_matches_an_object_is_ignored_too() -> None:
    small, anchor = (
        torch.tensor([[20.0, 20.0, 30.0, 30.0]]),
        torch.tensor([[20.0, 20.0, 42.0, 32.0]]),
    )
    assert ignored_anchors(anchor, small, 0.3, CANVAS).item()  # IoU 100 / 264
    assert not ignored_anchors(anchor, small, 0.5, CANVAS).item()


def test_proposals_that_match_an_object_stay() -> None:
    proposals = torch.tensor([[70.0, 8, 110, 56], [66.0, 2, 76, 12], [4.0, 8, 44, 56]])
    truth = torch.tensor([[72.0, 8.0, 112.0, 56.0]])
    targets = [{"boxes": truth, "ignored": RIGHT}, {"boxes": truth[:0], "ignored": RIGHT}]
    kept = drop_ignored_proposals([proposals, proposals], targets, 0.5, CANVAS)
    assert [len(regions) for regions in kept] == [2, 1]
    assert torch.equal(kept[0], proposals[[0, 2]])
