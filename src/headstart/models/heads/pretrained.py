"""Published detectors and DeepLabs of torchvision, trained on COCO.

First the conversion of a published detector to a backbone and a head, then the table of published
networks with functions to find, read and adapt them. A head is named
``torchvision/NETWORK?option=value``, or ``file:PATH@torchvision/NETWORK`` for weights in a file.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from headstart.backbones.catalog import resolve
from headstart.backbones.frozen import FrozenBackbone
from headstart.backbones.spec import IMAGENET, BackboneSpec, Stage, WeightsFile
from headstart.backbones.weights import locate, read_state
from headstart.errors import UnknownNameError, UsageError, WeightsMismatchError
from headstart.models.heads.detection import BoxHead
from headstart.models.heads.segmentation import VOC_CLASSES, MaskHead, decoder_from_torchvision

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "DETECTORS",
    "PublishedDetector",
    "coco_classes",
    "detector_from_torchvision",
    "is_published",
    "locate_head",
    "open_head",
    "published_heads",
    "split_options",
]

BACKBONE = "torchvision/resnet50"
STAGES = tuple(Stage(name=f"layer{i + 1}", channels=256 * 2**i, stride=4 * 2**i) for i in range(4))
BODY = "backbone.body."
EPS = 1e-5
"""Epsilon of the BatchNorm of Headstart's ResNet-50."""
HEAD_PREFIXES = {
    "faster-rcnn": {"backbone.fpn.": "pyramid.", "rpn.head.": "rpn_head.", "roi_heads.": "roi."},
    "retinanet": {"backbone.fpn.": "pyramid.", "head.": "net.head."},
    "fcos": {"backbone.fpn.": "pyramid.", "head.": "net.head."},
}
NOT_A_CLASS = {"__background__", "N/A"}

REGION_LIMITS = ("regions", "training_proposals", "proposals")
"""Options of Faster R-CNN that change no tensor; the other kinds have only ``candidates``."""
ANCHOR_OPTIONS = ("sizes", "ratios")
"""Options of the anchors; they can change only together with a new proposal network."""
DenseKind = Literal["detection", "segmentation"]


@dataclass(frozen=True, kw_only=True)
class PublishedDetector:
    """Architecture of a detector with published weights.

    Parameters
    ----------
    kind : str
        Kind of the head.
    options : mapping
        Options of that kind.
    eps : float
        Epsilon of the BatchNorm of its backbone, with the published weights.
    """

    kind: str
    options: Mapping[str, Any]
    eps: float


_FASTER_RCNN: dict[str, Any] = {
    "channels": 256,
    "width": 1024,
    "sizes": tuple((32.0 * 2**i,) for i in range(5)),
}
_DENSE: dict[str, Any] = {"channels": 256, "convs": 4, "extra": "p6p7"}
_OCTAVE_SIZES = {
    # Three sides for each level, a third of an octave apart, rounded down to whole pixels.
    "sizes": tuple(tuple(float(int(32 * 2**i * 2 ** (j / 3))) for j in range(3)) for i in range(5))
}
_RETINANET_V1 = {"norm": "none", "box_loss": "l1"}
_RETINANET_V2 = {"norm": "group", "box_loss": "giou", "extra": "p6p7-of-map"}
DETECTORS: dict[str, PublishedDetector] = {
    "fasterrcnn_resnet50_fpn": PublishedDetector(kind="faster-rcnn", options=_FASTER_RCNN, eps=0.0),
    "fasterrcnn_resnet50_fpn_v2": PublishedDetector(
        kind="faster-rcnn",
        options=_FASTER_RCNN | {"norm": "batch", "rpn_convs": 2, "box_convs": 4},
        eps=EPS,
    ),
    "retinanet_resnet50_fpn": PublishedDetector(
        kind="retinanet", options=_DENSE | _OCTAVE_SIZES | _RETINANET_V1, eps=0.0
    ),
    "retinanet_resnet50_fpn_v2": PublishedDetector(
        kind="retinanet", options=_DENSE | _OCTAVE_SIZES | _RETINANET_V2, eps=EPS
    ),
    "fcos_resnet50_fpn": PublishedDetector(kind="fcos", options=_DENSE, eps=EPS),
}
"""Published detectors by torchvision's names. All have a ResNet-50 as backbone."""


def coco_classes() -> tuple[str, ...]:
    """Names of COCO's 80 classes, in the order of the published weights.

    Examples
    --------
    >>> coco_classes()[:3], len(coco_classes())
    (('person', 'bicycle', 'car'), 80)
    """
    return tuple(name for name in _coco_categories() if name not in NOT_A_CLASS)


def detector_from_torchvision(
    state: Mapping[str, Tensor],
    *,
    kind: str,
    canvas: tuple[int, int],
    classes: Sequence[str] | None = None,
    seed: int = 0,
    **options: Any,
) -> tuple[dict[str, Tensor], BoxHead]:
    """Split a published detector into backbone and head.

    Parameters
    ----------
    state : mapping of str to tensor
        The detector's weights, by torchvision's names.
    kind : str
        A key of ``DETECTORS``.
    canvas : (int, int)
        Height and width of the backbone's input, in pixels.
    classes : sequence of str, optional
        By default COCO's 80 classes. Outputs of classes with the name of a COCO class are
        copied, those of other classes are initialised at random.
    seed : int
        For the random outputs.
    **options
        Options of the head's kind that change no tensor, such as ``proposals``.

    Returns
    -------
    backbone : dict of str to tensor
        By the names of torchvision's ResNet-50, without a classifier. The variances are adjusted
        so that a BatchNorm with an epsilon of 1e-5 computes the same as the detector's own.
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
    detector = DETECTORS[kind]
    categories = _coco_categories()
    outputs = categories[1:] if detector.kind == "faster-rcnn" else categories
    random_head = BoxHead.random(
        STAGES,
        len(outputs),
        kind=detector.kind,
        canvas=canvas,
        seed=seed,
        **(dict(detector.options) | options),
    )
    head = _load_published_tensors(random_head, state, kind)
    # Outputs without a class get a name that no class can have, so that none is copied.
    names = [f"\0{i}" if name in NOT_A_CLASS else name for i, name in enumerate(outputs)]
    backbone = _extract_backbone(state, detector.eps)
    return backbone, head.with_classes(names, classes or coco_classes(), seed=seed)


def _coco_categories() -> tuple[str, ...]:
    """Names of all 91 outputs: COCO's 80 classes, the background and 10 unused ones."""
    from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

    return tuple(FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"])


def _extract_backbone(state: Mapping[str, Tensor], eps: float) -> dict[str, Tensor]:
    # BatchNorm divides by sqrt(variance + epsilon): adding the difference of the epsilons to the
    # variance gives the same result with the other epsilon.
    backbone = {name.removeprefix(BODY): x for name, x in state.items() if name.startswith(BODY)}
    return {
        name: x + (eps - EPS) if name.endswith("running_var") and eps != EPS else x.clone()
        for name, x in backbone.items()
    }


def _load_published_tensors(head: BoxHead, state: Mapping[str, Tensor], kind: str) -> BoxHead:
    module = head.module()
    renamed = {}
    for name, tensor in state.items():
        for published_prefix, prefix in HEAD_PREFIXES[head.kind].items():
            if name.startswith(published_prefix):
                renamed[prefix + name.removeprefix(published_prefix)] = tensor
    try:
        module.load_state_dict(renamed, strict=True)  # torchvision's modules convert old names
    except RuntimeError as error:
        raise WeightsMismatchError(
            f"Expected the published weights of {kind}, got others ({error}). Name the detector "
            "that the file belongs to: file:PATH@torchvision/NAME."
        ) from error
    return head.with_state({name: tensor.numpy() for name, tensor in module.state_dict().items()})


class PublishedWeights(NamedTuple):
    """A published network: the name of its backbone, its file, the file's size."""

    backbone: str
    file: str
    megabytes: float


# fmt: off
PUBLISHED_DETECTORS = {
    "fasterrcnn_resnet50_fpn":
        PublishedWeights(BACKBONE, "fasterrcnn_resnet50_fpn_coco-258fb6c6.pth", 159.7),
    "fasterrcnn_resnet50_fpn_v2":
        PublishedWeights(BACKBONE, "fasterrcnn_resnet50_fpn_v2_coco-dd69338a.pth", 167.1),
    "retinanet_resnet50_fpn":
        PublishedWeights(BACKBONE, "retinanet_resnet50_fpn_coco-eeacb38b.pth", 130.3),
    "retinanet_resnet50_fpn_v2":
        PublishedWeights(BACKBONE, "retinanet_resnet50_fpn_v2_coco-5905b1c5.pth", 146.0),
    "fcos_resnet50_fpn":
        PublishedWeights(BACKBONE, "fcos_resnet50_fpn_coco-99b0c9b7.pth", 123.6),
}
PUBLISHED_DECODERS = {
    "deeplabv3_resnet50":
        PublishedWeights("timm/resnet50?output_stride=8",
            "deeplabv3_resnet50_coco-cd0a2569.pth", 160.5),
    "deeplabv3_resnet101":
        PublishedWeights("timm/resnet101?output_stride=8",
            "deeplabv3_resnet101_coco-586e9e4e.pth", 233.2),
    "deeplabv3_mobilenet_v3_large":
        PublishedWeights("torchvision/mobilenet_v3_large?dilated=true",
            "deeplabv3_mobilenet_v3_large-fc3c493d.pth", 42.3),
}
# fmt: on
PUBLISHED_HEADS: Mapping[str, Mapping[str, PublishedWeights]] = {
    "detection": PUBLISHED_DETECTORS,
    "segmentation": PUBLISHED_DECODERS,
}
TRAINED_ON: Mapping[str, str] = {
    "detection": "ImageNet-1k, then COCO",
    "segmentation": "ImageNet-1k, then COCO with the classes of VOC",
}


def published_heads(kind: str) -> list[str]:
    """List the names of the published heads for a task.

    Examples
    --------
    >>> published_heads("segmentation")[0]
    'torchvision/deeplabv3_resnet50'
    """
    return [f"torchvision/{name}" for name in PUBLISHED_HEADS[kind]]


def is_published(name: str) -> bool:
    """Whether a head's name refers to published weights, listed or not.

    Examples
    --------
    >>> is_published("torchvision/fcos_resnet50_fpn"), is_published("fcos")
    (True, False)
    """
    return name.startswith(("torchvision/", "file:"))


def split_options(text: str) -> tuple[str, str]:
    """Split a head's name from its options; a path before an @ may contain any character.

    Examples
    --------
    >>> split_options("file:a?b.pth@torchvision/fcos_resnet50_fpn?candidates=100")
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
        As described in this module, without options.
    kind : {"detection", "segmentation"}
    offline : bool, optional
        Download nothing; by default from the environment (``HEADSTART_OFFLINE``).

    Raises
    ------
    UnknownNameError
        If no published head for that task has that name.
    WeightsNotFoundError, WeightsMismatchError
        If the file is not found, or is not the expected one.
    """
    network, spec = _resolve_published(name, kind)
    # Torchvision lists the download address by the name of the network, not of its backbone.
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
) -> tuple[FrozenBackbone, BoxHead | MaskHead]:
    """Find a published network, read it and adapt it to other classes.

    Parameters
    ----------
    name : str
        As described in this module, without options.
    backbone : FrozenBackbone
        The user's backbone. It must be of the architecture of the network's backbone. Only its
        canvas is used; weights and preprocessing are the published ones.
    classes : sequence of str
        Outputs of classes whose name the network has are copied, others are initialised at
        random.
    boxes : array, shape (n, 4), optional
        Detection only: training boxes on the canvas, for the anchors of a new proposal network.
        None for segmentation.
    seed : int
        For the random outputs.
    offline : bool, optional
        Download nothing; by default from the environment (``HEADSTART_OFFLINE``).
    options : mapping, optional
        Options of the head's kind that change no tensor, such as ``proposals`` or
        ``candidates``. For Faster R-CNN also ``rpn="new"``: a new proposal network, with anchors
        fitted to the boxes unless ``sizes`` or ``ratios`` are given. By default the published
        proposal network is used.

    Returns
    -------
    FrozenBackbone
        With the published weights, and their origin.
    BoxHead or MaskHead

    Raises
    ------
    UnknownNameError
        If no published head for that task has that name.
    UsageError
        If the backbone is not the network's, or an option would change its tensors.
    WeightsNotFoundError, WeightsMismatchError
        If the file is not found, or is not the expected one.
    """
    kind: DenseKind = "segmentation" if boxes is None else "detection"
    network, spec = _resolve_published(name, kind)
    _require_backbone(name, PUBLISHED_HEADS[kind][network].backbone, spec, backbone.spec)
    options = options or {}
    _require_allowed_options(name, network, options)
    preprocess = replace(spec.preprocess, canvas=backbone.spec.preprocess.canvas)
    spec = replace(spec, preprocess=preprocess)
    weights = locate_head(name, kind, offline=offline)
    raw = read_state(weights, spec)
    head: BoxHead | MaskHead
    if boxes is None:
        state, head = _adapt_decoder(raw, spec, classes, seed)
    else:
        state, head = _adapt_detector(raw, network, preprocess.shape, classes, seed, boxes, options)
    origin = {"sha256": weights.sha256, "from": weights.origin, "file": weights.path.name}
    published = FrozenBackbone(spec=spec, state=state, origin=origin)
    published.copy()  # fail early if the backbone is incomplete
    return published, head


def _resolve_published(name: str, kind: DenseKind) -> tuple[str, BackboneSpec]:
    """Torchvision's name of the network, and the spec of its backbone with these weights."""
    path, at, rest = name.rpartition("@")
    is_file = path.startswith("file:")
    network = rest.removeprefix("torchvision/")
    if (at and not is_file) or rest not in published_heads(kind):
        raise UnknownNameError(f"head for {kind}", rest, published_heads(kind))
    row = PUBLISHED_HEADS[kind][network]
    backbone = resolve(row.backbone)
    spec = replace(
        backbone,
        name=name,
        # The preprocessing of the published network, which can differ from the backbone's own.
        preprocess=replace(
            backbone.preprocess, interpolation="bilinear", mean=IMAGENET[0], std=IMAGENET[1]
        ),
        source="file" if is_file else "torchvision",
        file=path.removeprefix("file:") if is_file else row.file,
        sha256="" if is_file else row.file.removesuffix(".pth").rpartition("-")[2],
        repo="",
        url="",
        tag="",
        data="" if is_file else TRAINED_ON[kind],
        licence="" if is_file else "BSD-3-Clause",
        megabytes=0.0 if is_file else row.megabytes,
    )
    return network, spec


def _require_backbone(
    name: str, backbone_name: str, spec: BackboneSpec, user_spec: BackboneSpec
) -> None:
    """Compare architectures; the weights of the user's backbone do not matter."""
    is_same = spec.architecture == user_spec.architecture
    if not is_same or sorted(spec.model_options) != sorted(user_spec.model_options):
        raise UsageError(
            f"The head {name} has a backbone of its own, but the chosen backbone is "
            f"{user_spec.name}. Pass --backbone {shlex.quote(backbone_name)}"
        )


def _require_allowed_options(name: str, network: str, options: Mapping[str, Any]) -> None:
    """Refuse options that would change a published tensor."""
    detector = DETECTORS.get(network)
    if detector is None:
        allowed: tuple[str, ...] = ()
    elif detector.kind == "faster-rcnn":
        anchor_options = ANCHOR_OPTIONS if options.get("rpn") == "new" else ()
        allowed = (*REGION_LIMITS, "rpn", *anchor_options)
    else:
        allowed = ("candidates",)
    if options.get("rpn", "keep") not in {"keep", "new"}:
        raise UsageError(f"Expected rpn=keep or rpn=new, got rpn={options['rpn']}.")
    if refused := sorted(options.keys() - set(allowed)):
        raise UsageError(
            f"The published tensors of {name} do not fit these options: {', '.join(refused)}. "
            f"Leave them out (allowed: {', '.join(allowed) or 'none'}), or pass --head with a kind "
            "such as faster-rcnn or unet for a new head."
        )


def _adapt_decoder(
    raw: Mapping[str, Tensor], spec: BackboneSpec, classes: Sequence[str], seed: int
) -> tuple[dict[str, Tensor], MaskHead]:
    import torch

    arrays = {key: tensor.numpy() for key, tensor in raw.items()}
    decoder = decoder_from_torchvision(arrays, canvas=spec.preprocess.shape)
    if resolve(decoder.backbone).architecture != spec.architecture:
        raise WeightsMismatchError(
            f"Expected the published weights of {spec.name}, got those for {decoder.backbone}. "
            "Name the network that the file belongs to: file:PATH@torchvision/NAME."
        )
    head = decoder.head.with_classes(VOC_CLASSES, classes, seed)
    return {key: torch.from_numpy(value) for key, value in decoder.state.items()}, head


def _adapt_detector(
    raw: Mapping[str, Tensor],
    network: str,
    canvas: tuple[int, int],
    classes: Sequence[str],
    seed: int,
    boxes: NDArray[np.floating[Any]],
    options: Mapping[str, Any],
) -> tuple[dict[str, Tensor], BoxHead]:
    limits = {key: value for key, value in options.items() if key not in {"rpn", *ANCHOR_OPTIONS}}
    state, head = detector_from_torchvision(
        raw, kind=network, canvas=canvas, classes=classes, seed=seed, **limits
    )
    if options.get("rpn") == "new":
        anchors = {key: options[key] for key in ANCHOR_OPTIONS if key in options}
        head = _with_new_proposals(head, boxes, seed, anchors)
    return state, head


def _with_new_proposals(
    head: BoxHead, boxes: NDArray[np.floating[Any]], seed: int, anchors: Mapping[str, Any]
) -> BoxHead:
    """Replace the proposal network by a random one; pyramid and region head stay the same."""
    options = {k: value for k, value in head.shape.options.items() if k not in ANCHOR_OPTIONS}
    random_head = BoxHead.with_fitted_anchors(
        STAGES,
        head.shape.n_classes,
        kind=head.kind,
        canvas=head.shape.canvas,
        seed=seed,
        boxes=boxes,
        **{**options, **anchors},
    )
    rpn = {k: value for k, value in random_head.tensors.items() if k.startswith("rpn_head.")}
    return replace(random_head, tensors={**head.tensors, **rpn})
