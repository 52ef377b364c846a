"""Detectors that torchvision publishes, trained on COCO: their trunk and their head, apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from headstart.backbones.spec import Stage
from headstart.errors import UnknownNameError, WeightsMismatchError
from headstart.heads.boxes import BoxHead

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["DETECTORS", "Published", "coco_classes", "from_torchvision"]

TRUNK = "torchvision/resnet50"
STAGES = tuple(Stage(name=f"layer{i + 1}", channels=256 * 2**i, stride=4 * 2**i) for i in range(4))
BODY = "backbone.body."
EPS = 1e-5
"""That of the trunk's BatchNorm here."""
PARTS = {
    "faster-rcnn": {"backbone.fpn.": "pyramid.", "rpn.head.": "rpn_head.", "roi_heads.": "roi."},
    "retinanet": {"backbone.fpn.": "pyramid.", "head.": "net.head."},
    "fcos": {"backbone.fpn.": "pyramid.", "head.": "net.head."},
}
NOT_A_CLASS = {"__background__", "N/A"}


@dataclass(frozen=True, kw_only=True)
class Published:
    """How torchvision built a detector whose weights it publishes.

    Parameters
    ----------
    kind : str
        Of head.
    options : mapping
        Of that kind.
    eps : float
        What the BatchNorm of its trunk adds to the variance, with the published weights.
    """

    kind: str
    options: Mapping[str, Any]
    eps: float


_REGIONS: dict[str, Any] = {
    "channels": 256,
    "width": 1024,
    "sizes": tuple((32.0 * 2**i,) for i in range(5)),
}
_PLACES: dict[str, Any] = {"channels": 256, "convs": 4, "extra": "p6p7"}
_OCTAVES = {
    "sizes": tuple(tuple(float(int(32 * 2**i * 2 ** (j / 3))) for j in range(3)) for i in range(5))
}
_PLAIN = {"norm": "none", "box_loss": "l1"}
_LATER = {"norm": "group", "box_loss": "giou", "extra": "p6p7-of-map"}
DETECTORS: dict[str, Published] = {
    "fasterrcnn_resnet50_fpn": Published(kind="faster-rcnn", options=_REGIONS, eps=0.0),
    "fasterrcnn_resnet50_fpn_v2": Published(
        kind="faster-rcnn",
        options=_REGIONS | {"norm": "batch", "rpn_convs": 2, "box_convs": 4},
        eps=EPS,
    ),
    "retinanet_resnet50_fpn": Published(
        kind="retinanet", options=_PLACES | _OCTAVES | _PLAIN, eps=0.0
    ),
    "retinanet_resnet50_fpn_v2": Published(
        kind="retinanet", options=_PLACES | _OCTAVES | _LATER, eps=EPS
    ),
    "fcos_resnet50_fpn": Published(kind="fcos", options=_PLACES, eps=EPS),
}
"""By torchvision's names. All stand on a ResNet-50."""


def coco_classes() -> tuple[str, ...]:
    """Names of COCO's 80 classes, in the order of the published weights.

    Examples
    --------
    >>> coco_classes()[:3], len(coco_classes())
    (('person', 'bicycle', 'car'), 80)
    """
    return tuple(name for name in _categories() if name not in NOT_A_CLASS)


def from_torchvision(
    state: Mapping[str, Tensor],
    *,
    kind: str,
    canvas: tuple[int, int],
    classes: Sequence[str] | None = None,
    seed: int = 0,
    **options: Any,
) -> tuple[dict[str, Tensor], BoxHead]:
    """Take a published detector apart.

    Parameters
    ----------
    state : mapping of str to tensor
        Its weights, by torchvision's names.
    kind : str
        A key of ``DETECTORS``.
    canvas : (int, int)
        Height and width of what the backbone reads, in pixels.
    classes : sequence of str, optional
        What is to be found; by default COCO's 80 classes. Those that are COCO's, by name, keep
        what was learned of them, others start anew.
    seed : int
        Of what starts anew.
    **options
        Of the head's kind, where they change no tensor, such as ``proposals``.

    Returns
    -------
    trunk : dict of str to tensor
        By the names of torchvision's ResNet-50, without a classifier. Its variances are such
        that a BatchNorm with an epsilon of 1e-5 computes what the detector's own did.
    head : BoxHead

    Raises
    ------
    UnknownNameError
        If there is no such detector.
    WeightsMismatchError
        If these are not its weights.
    """
    if kind not in DETECTORS:
        raise UnknownNameError("detector", kind, DETECTORS)
    built = DETECTORS[kind]
    categories = _categories()
    names = categories[1:] if built.kind == "faster-rcnn" else categories
    drawn = BoxHead.random(
        STAGES,
        len(names),
        kind=built.kind,
        canvas=canvas,
        seed=seed,
        **(dict(built.options) | options),
    )
    head = _loaded(drawn, state, kind)
    # What is no class is called what no class is called.
    known = [name if name not in NOT_A_CLASS else f"\0{i}" for i, name in enumerate(names)]
    return _trunk(state, built.eps), head.adapted(known, classes or coco_classes(), seed=seed)


def _categories() -> tuple[str, ...]:
    """All 91 outputs by name: one for the background and 10 that COCO never used."""
    from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

    return tuple(FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"])


def _trunk(state: Mapping[str, Tensor], eps: float) -> dict[str, Tensor]:
    trunk = {name.removeprefix(BODY): x for name, x in state.items() if name.startswith(BODY)}
    return {
        name: x + (eps - EPS) if name.endswith("running_var") and eps != EPS else x.clone()
        for name, x in trunk.items()
    }


def _loaded(head: BoxHead, state: Mapping[str, Tensor], kind: str) -> BoxHead:
    module = head.module()
    mine = {}
    for name, tensor in state.items():
        for theirs, ours in PARTS[head.kind].items():
            if name.startswith(theirs):
                mine[ours + name.removeprefix(theirs)] = tensor
    try:
        module.load_state_dict(mine, strict=True)  # torchvision's parts know their old names
    except RuntimeError as error:
        raise WeightsMismatchError(
            f"Expected the published weights of {kind}, got others ({error}); do name the "
            "detector that the file was made for."
        ) from error
    return head.with_state({name: x.numpy() for name, x in module.state_dict().items()})
