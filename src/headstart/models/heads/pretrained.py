"""Detectors that torchvision publishes, trained on COCO: their backbone and their head, apart."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from headstart.backbones.catalog import IMAGENET, resolve
from headstart.backbones.frozen import FrozenBackbone
from headstart.backbones.spec import BackboneSpec, Stage, WeightsFile
from headstart.backbones.weights import locate, read_state
from headstart.errors import UnknownNameError, UsageError, WeightsMismatchError
from headstart.models.heads.detection import BoxHead
from headstart.models.heads.segmentation import VOC_CLASSES, MaskHead, decoder_from_torchvision

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "DETECTORS",
    "Published",
    "coco_classes",
    "detector_from_torchvision",
    "is_published",
    "locate_head",
    "names",
    "open_head",
    "split",
]

BACKBONE = "torchvision/resnet50"
STAGES = tuple(Stage(name=f"layer{i + 1}", channels=256 * 2**i, stride=4 * 2**i) for i in range(4))
BODY = "backbone.body."
EPS = 1e-5
"""That of the backbone's BatchNorm here."""
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
        What the BatchNorm of its backbone adds to the variance, with the published weights.
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


def detector_from_torchvision(
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
    backbone : dict of str to tensor
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
    backbone = {name.removeprefix(BODY): x for name, x in state.items() if name.startswith(BODY)}
    return {
        name: x + (eps - EPS) if name.endswith("running_var") and eps != EPS else x.clone()
        for name, x in backbone.items()
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


class Row(NamedTuple):
    """One published network: the backbone that it stands on, its file, the file's size."""

    backbone: str
    file: str
    megabytes: float


# fmt: off
FOR_BOXES = {
    "fasterrcnn_resnet50_fpn":
        Row(BACKBONE, "fasterrcnn_resnet50_fpn_coco-258fb6c6.pth", 159.7),
    "fasterrcnn_resnet50_fpn_v2":
        Row(BACKBONE, "fasterrcnn_resnet50_fpn_v2_coco-dd69338a.pth", 167.1),
    "retinanet_resnet50_fpn":
        Row(BACKBONE, "retinanet_resnet50_fpn_coco-eeacb38b.pth", 130.3),
    "retinanet_resnet50_fpn_v2":
        Row(BACKBONE, "retinanet_resnet50_fpn_v2_coco-5905b1c5.pth", 146.0),
    "fcos_resnet50_fpn":
        Row(BACKBONE, "fcos_resnet50_fpn_coco-99b0c9b7.pth", 123.6),
}
FOR_MASKS = {
    "deeplabv3_resnet50":
        Row("timm/resnet50?output_stride=8", "deeplabv3_resnet50_coco-cd0a2569.pth", 160.5),
    "deeplabv3_resnet101":
        Row("timm/resnet101?output_stride=8", "deeplabv3_resnet101_coco-586e9e4e.pth", 233.2),
    "deeplabv3_mobilenet_v3_large":
        Row("torchvision/mobilenet_v3_large?dilated=true",
            "deeplabv3_mobilenet_v3_large-fc3c493d.pth", 42.3),
}
# fmt: on
TABLE: Mapping[str, Mapping[str, Row]] = {"detection": FOR_BOXES, "segmentation": FOR_MASKS}
LEARNED: Mapping[str, str] = {
    "detection": "ImageNet-1k, then COCO",
    "segmentation": "ImageNet-1k, then COCO with the classes of VOC",
}
REGION_LIMITS = ("regions", "training_proposals", "proposals")
"""Options of Faster R-CNN that change no tensor; of the others it is ``candidates``."""
ANCHORS = ("sizes", "ratios")
"""Options that say what the proposal network's outputs mean: for a new one only."""

DenseKind = Literal["detection", "segmentation"]


def names(kind: str) -> list[str]:
    """Names of the published heads for a task.

    Examples
    --------
    >>> names("segmentation")[0]
    'torchvision/deeplabv3_resnet50'
    """
    return [f"torchvision/{name}" for name in TABLE[kind]]


def is_published(name: str) -> bool:
    """Whether a head's name says where published weights are, known or not.

    Examples
    --------
    >>> is_published("torchvision/fcos_resnet50_fpn"), is_published("fcos")
    (True, False)
    """
    return name.startswith(("torchvision/", "file:"))


def split(text: str) -> tuple[str, str]:
    """Part a head's name from its options; a path before an @ may hold any character.

    Examples
    --------
    >>> split("file:a?b.pth@torchvision/fcos_resnet50_fpn?candidates=100")
    ('file:a?b.pth@torchvision/fcos_resnet50_fpn', 'candidates=100')
    """
    path, at, rest = text.rpartition("@")
    name, _, query = rest.partition("?")
    return f"{path}{at}{name}", query


def locate_head(name: str, kind: DenseKind, *, offline: bool | None = None) -> WeightsFile:
    """Find the file of a published head, as ``backbones.weights.locate`` finds a backbone's.

    Parameters
    ----------
    name : str
        In the grammar of this module, without options.
    kind : {"detection", "segmentation"}
    offline : bool, optional
        Open no socket; by default the environment says so (``HEADSTART_OFFLINE``).

    Raises
    ------
    UnknownNameError
        If nothing for that task is published under that name.
    WeightsNotFoundError, WeightsMismatchError
        If it is in no place, or is another file.
    """
    network, spec = _described(name, kind)
    # By the network's own name torchvision knows the address.
    return locate(replace(spec, architecture=f"torchvision/{network}"), offline=offline)


def open_head(
    name: str,
    backbone: FrozenBackbone,
    classes: Sequence[str],
    *,
    boxes: NDArray[np.floating[Any]] | None = None,
    seed: int = 0,
    offline: bool | None = None,
    options: Mapping[str, Any] | None = None,
) -> tuple[FrozenBackbone, Any]:
    """Find a published network, read it and turn it to other classes.

    Parameters
    ----------
    name : str
        In the grammar of this module, without options.
    backbone : FrozenBackbone
        The backbone that the user chose: it has to be what the network stands on. Its canvas is
        taken over; its weights and colours are not, for the published ones belong together.
    classes : sequence of str
        Those whose names the network knows keep what it learned of them, others start anew.
    boxes : array, shape (n, 4), optional
        Of the training images on the canvas, for the anchors of a new proposal network; None
        where masks are learned.
    seed : int
        Of what starts anew.
    offline : bool, optional
        Open no socket; by default the environment says so (``HEADSTART_OFFLINE``).
    options : mapping, optional
        Those of the head's kind that change no tensor, such as ``proposals`` or ``candidates``.
        For Faster R-CNN also ``rpn="new"``: a new proposal network, whose anchors are fitted to
        the boxes unless ``sizes`` or ``ratios`` are given; by default the published one stays.

    Returns
    -------
    FrozenBackbone
        With the published weights, and where they came from.
    BoxHead or MaskHead

    Raises
    ------
    UnknownNameError
        If nothing for that task is published under that name.
    UsageError
        If the backbone is another than the network's, or an option would change its tensors.
    WeightsNotFoundError, WeightsMismatchError
        If the file is in no place, or is another one.
    """
    kind: DenseKind = "segmentation" if boxes is None else "detection"
    network, spec = _described(name, kind)
    _require_backbone(name, TABLE[kind][network].backbone, spec, backbone.spec)
    options = options or {}
    _require_free(name, network, options)
    expects = replace(spec.preprocess, canvas=backbone.spec.preprocess.canvas)
    spec = replace(spec, preprocess=expects)
    weights = locate_head(name, kind, offline=offline)
    raw = read_state(weights, spec)
    head: Any
    if boxes is None:
        state, head = _for_masks(raw, spec, classes, seed)
    else:
        state, head = _for_boxes(raw, network, expects.shape, classes, seed, boxes, options)
    origin = {"sha256": weights.sha256, "from": weights.origin, "file": weights.path.name}
    found = FrozenBackbone(spec=spec, state=state, origin=origin)
    found.copy()  # refuses a backbone that is not whole before anything is computed
    return found, head


def _described(name: str, kind: DenseKind) -> tuple[str, BackboneSpec]:
    """Name of the network at torchvision, and its backbone with the network's weights."""
    path, at, rest = name.rpartition("@")
    is_file = path.startswith("file:")
    network = rest.removeprefix("torchvision/")
    if (at and not is_file) or rest not in names(kind):
        raise UnknownNameError(f"head for {kind}", rest, names(kind))
    row = TABLE[kind][network]
    backbone = resolve(row.backbone)
    spec = replace(
        backbone,
        name=name,
        # As the published networks read images themselves, whatever their backbone once learned.
        preprocess=replace(
            backbone.preprocess, interpolation="bilinear", mean=IMAGENET[0], std=IMAGENET[1]
        ),
        source="file" if is_file else "torchvision",
        file=path.removeprefix("file:") if is_file else row.file,
        sha256="" if is_file else row.file.removesuffix(".pth").rpartition("-")[2],
        repo="",
        url="",
        tag="",
        data="" if is_file else LEARNED[kind],
        licence="" if is_file else "BSD-3-Clause",
        megabytes=0.0 if is_file else row.megabytes,
    )
    return network, spec


def _require_backbone(name: str, needed: str, spec: BackboneSpec, given: BackboneSpec) -> None:
    """Compare networks; with which weights the given one came does not count."""
    same = spec.architecture == given.architecture
    if not same or sorted(spec.model_options) != sorted(given.model_options):
        raise UsageError(
            f"Expected the backbone of {name}, got {given.name}; do choose it too: "
            f"--backbone {shlex.quote(needed)}"
        )


def _require_free(name: str, network: str, options: Mapping[str, Any]) -> None:
    published = DETECTORS.get(network)
    if published is None:
        allowed: tuple[str, ...] = ()
    elif published.kind == "faster-rcnn":
        renewed = ANCHORS if options.get("rpn") == "new" else ()
        allowed = (*REGION_LIMITS, "rpn", *renewed)
    else:
        allowed = ("candidates",)
    if options.get("rpn", "keep") not in {"keep", "new"}:
        raise UsageError(f"Expected rpn=keep or rpn=new, got rpn={options['rpn']}.")
    if others := sorted(options.keys() - set(allowed)):
        raise UsageError(
            f"Expected options that leave the published tensors of {name} as they are "
            f"({', '.join(allowed) or 'there are none'}), got {', '.join(others)}; do leave them "
            "out, or draw a new head by its kind."
        )


def _for_masks(
    raw: Mapping[str, Tensor], spec: BackboneSpec, classes: Sequence[str], seed: int
) -> tuple[dict[str, Tensor], MaskHead]:
    import torch

    arrays = {key: tensor.numpy() for key, tensor in raw.items()}
    found = decoder_from_torchvision(arrays, canvas=spec.preprocess.shape)
    needed = resolve(found.backbone)
    if needed.architecture != spec.architecture:
        raise WeightsMismatchError(
            f"Expected the published weights of {spec.name}, got those for {found.backbone}; do "
            "name the network that the file was made for."
        )
    head = found.head.adapted(VOC_CLASSES, classes, seed)
    return {key: torch.from_numpy(value) for key, value in found.state.items()}, head


def _for_boxes(
    raw: Mapping[str, Tensor],
    network: str,
    canvas: tuple[int, int],
    classes: Sequence[str],
    seed: int,
    boxes: NDArray[np.floating[Any]],
    options: Mapping[str, Any],
) -> tuple[dict[str, Tensor], BoxHead]:
    told = {key: value for key, value in options.items() if key not in {"rpn", *ANCHORS}}
    state, head = detector_from_torchvision(
        raw, kind=network, canvas=canvas, classes=classes, seed=seed, **told
    )
    if options.get("rpn") == "new":
        anchors = {key: options[key] for key in ANCHORS if key in options}
        head = _with_new_proposals(head, boxes, seed, anchors)
    return state, head


def _with_new_proposals(
    head: BoxHead, boxes: NDArray[np.floating[Any]], seed: int, anchors: Mapping[str, Any]
) -> BoxHead:
    """Draw the proposal network anew; pyramid and region head keep their numbers."""
    kept = {key: value for key, value in head.shape.options.items() if key not in ANCHORS}
    drawn = BoxHead.fitted(
        STAGES,
        head.shape.n_classes,
        kind=head.kind,
        canvas=head.shape.canvas,
        seed=seed,
        boxes=boxes,
        **{**kept, **anchors},
    )
    new = {key: value for key, value in drawn.tensors.items() if key.startswith("rpn_head.")}
    return replace(drawn, tensors={**head.tensors, **new})
