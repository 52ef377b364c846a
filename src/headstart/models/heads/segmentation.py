"""Heads that give a class for every pixel, on the maps of any convolutional backbone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from headstart.backbones.spec import Stage
from headstart.errors import ModelFileError, UsageError, WeightsMismatchError
from headstart.models.heads.detection import matched
from headstart.models.heads.segmentation_config import MaskShape, Option, resolved, taps_of

if TYPE_CHECKING:
    from headstart.models.heads.segmentation_modules import MaskModule

__all__ = ["VOC_CLASSES", "MaskHead", "Pretrained", "decoder_from_torchvision"]

VOC_CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair",
    "cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa",
    "train", "tvmonitor",
)  # fmt: skip
"""What torchvision's weights for masks tell apart, in their order."""

ROWS = ("classifier.weight", "classifier.bias")


@dataclass(frozen=True, kw_only=True, eq=False)
class MaskHead:
    """A decoder that gives logits for every pixel of the canvas; ``random`` draws one.

    Parameters
    ----------
    taps : tuple of str
        Stages whose maps it reads, fine ones first.
    shape : MaskShape
        What it is built of.
    tensors : mapping of str to array
        Its numbers, as ``module().state_dict()`` names them.

    References
    ----------
    Ronneberger et al. 2015, U-Net; Zhou et al. 2018, UNet++; Chen et al. 2017 and 2018, Rethinking
    atrous convolution (DeepLabV3), and DeepLabV3+; Kirillov et al. 2019, Panoptic feature pyramid
    networks (FPN).

    Examples
    --------
    >>> import torch
    >>> stages = [Stage(name=f"layer{i}", channels=8, stride=2 ** (i + 1)) for i in (1, 2)]
    >>> head = MaskHead.random(stages, 3, kind="unet", canvas=(32, 48), seed=0, widths=(16, 8))
    >>> head.kind, head.taps
    ('unet', ('layer1', 'layer2'))
    >>> maps = [torch.zeros(2, 8, 8, 12), torch.zeros(2, 8, 4, 6)]
    >>> head.module()(maps).shape
    torch.Size([2, 3, 32, 48])
    """

    taps: tuple[str, ...]
    shape: MaskShape
    tensors: Mapping[str, NDArray[Any]] = field(repr=False)

    @property
    def kind(self) -> str:
        """Its name in files and on the command line."""
        return self.shape.kind

    @classmethod
    def random(
        cls,
        stages: Sequence[Stage],
        n_classes: int,
        *,
        kind: str,
        canvas: tuple[int, int],
        seed: int,
        **options: Option,
    ) -> MaskHead:
        """Draw a head.

        Parameters
        ----------
        stages : sequence of Stage
            Of the backbone, all of them.
        n_classes : int
            2 to 255, a background included.
        kind : {"unet", "unetplusplus", "deeplabv3plus", "fpn", "deeplabv3"}
        canvas : (int, int)
            Height and width of what the backbone reads, in pixels.
        seed : int
        **options
            ``widths`` (U-Net, U-Net++): channels of each step, from coarse to fine.
            ``widest`` (the same): wider maps are projected to that many channels first.
            ``pyramid``, ``width`` (FPN): channels of the pyramid, and of what reads it.
            ``width`` (DeepLabV3+): channels. ``rates`` (both DeepLabs): the three dilations, by
            default in proportion to the canvas.
            ``dropout`` (FPN, DeepLabV3+): from 0 to below 1.

        Raises
        ------
        UnknownNameError
            If there is no such kind or option.
        UsageError
            If the backbone has no maps of the strides needed, or a value cannot be meant.
        """
        read = taps_of(kind, stages)
        strides = tuple(stage.stride for stage in read)
        shape = MaskShape(
            kind=kind,
            channels=tuple(stage.channels for stage in read),
            strides=strides,
            n_classes=n_classes,
            canvas=canvas,
            options=resolved(kind, strides, canvas, options),
        )
        return cls(
            taps=tuple(stage.name for stage in read), shape=shape, tensors=_drawn(shape, seed)
        )

    def module(self) -> MaskModule:
        """Build it with tensors of its own, in float32 on the CPU."""
        import torch

        module = _empty(self.shape)
        state = {name: torch.from_numpy(np.array(value)) for name, value in self.tensors.items()}
        module.load_state_dict(state, assign=True)
        return module

    def state(self) -> dict[str, NDArray[Any]]:
        """Return its numbers by name: float32, but for BatchNorm's counters of batches."""
        return dict(self.tensors)

    def with_state(self, state: Mapping[str, NDArray[Any]]) -> Self:
        """Return the same head with other numbers.

        Raises
        ------
        ModelFileError
            If names, shapes or types are not those of this head.
        """
        wanted = {name: _kind_of(value) for name, value in _empty(self.shape).state_dict().items()}
        given = {name: _kind_of(value) for name, value in state.items()}
        wrong = sorted(n for n in wanted.keys() | given if wanted.get(n) != given.get(n))
        if wrong:
            raise ModelFileError(
                f"Expected the tensors of this {self.kind} head, got trouble with {len(wrong)}, "
                f"such as {wrong[0]!r} ({given.get(wrong[0], 'none')} for "
                f"{wanted.get(wrong[0], 'none')}); do fetch or train the model again."
            )
        return replace(self, tensors=dict(state))

    def as_dict(self) -> dict[str, Any]:
        """What it is built of, as plain values for model.json."""
        shape = self.shape
        return {
            "kind": shape.kind,
            "taps": list(self.taps),
            "channels": list(shape.channels),
            "strides": list(shape.strides),
            "n_classes": shape.n_classes,
            "canvas": list(shape.canvas),
            "options": {
                name: list(value) if isinstance(value, tuple) else value
                for name, value in shape.options.items()
            },
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], tensors: Mapping[str, NDArray[Any]]) -> Self:
        """Read what ``as_dict`` and ``state`` gave; nothing large is built before they fit.

        Raises
        ------
        ModelFileError
            If they are damaged or do not fit together.
        """
        try:
            height, width = values["canvas"]
            shape = MaskShape(
                kind=str(values["kind"]),
                channels=tuple(values["channels"]),
                strides=tuple(values["strides"]),
                n_classes=values["n_classes"],
                canvas=(height, width),
                options={
                    name: tuple(value) if isinstance(value, list) else value
                    for name, value in values["options"].items()
                },
            )
            taps = tuple(str(name) for name in values["taps"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ModelFileError(
                f"Expected the description of a head for masks, got a damaged one ({error})."
            ) from error
        if len(taps) != len(shape.strides):
            raise ModelFileError(f"Expected a stage for every map of the head, got {taps}.")
        return cls(taps=taps, shape=shape, tensors={}).with_state(tensors)

    def adapted(self, before: Sequence[str], after: Sequence[str], seed: int) -> Self:
        """Return the head for other classes: those of equal names keep what they learned.

        Parameters
        ----------
        before : sequence of str
            The classes of this head, in order.
        after : sequence of str
            The classes of the new one.
        seed : int
            Of the outputs of new classes.

        Raises
        ------
        UsageError
            If ``before`` does not name this head's classes.
        """
        if len(before) != self.shape.n_classes:
            raise UsageError(f"Expected {self.shape.n_classes} names in `before`, got {before}.")
        shape = replace(self.shape, n_classes=len(after))
        drawn = _drawn(shape, seed)
        rows = {name: drawn[name] for name in ROWS}
        for old, new in matched(before, after):
            for name in ROWS:
                rows[name][new] = self.tensors[name][old]
        return replace(self, shape=shape, tensors={**self.tensors, **rows})


def _empty(shape: MaskShape) -> MaskModule:
    """Build it without memory for its numbers."""
    import torch

    from headstart.models.heads.segmentation_modules import build

    with torch.device("meta"):
        return build(shape)


def _drawn(shape: MaskShape, seed: int) -> dict[str, NDArray[Any]]:
    import torch

    from headstart.models.heads.segmentation_modules import build

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        state = build(shape).state_dict()
    return {name: value.numpy().copy() for name, value in state.items()}


def _kind_of(value: Any) -> str:
    """Type and shape of a tensor or an array, in words."""
    return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"


class Pretrained(NamedTuple):
    """Torchvision's DeepLabV3 in our parts.

    ``backbone``: the name of the network that ``state``, tensors by the library's names, belongs
    to; ``head``: the decoder, with an output for each of ``VOC_CLASSES``.
    """

    backbone: str
    state: dict[str, NDArray[Any]]
    head: MaskHead


def decoder_from_torchvision(
    state: Mapping[str, NDArray[Any]], *, canvas: tuple[int, int]
) -> Pretrained:
    """Take torchvision's DeepLabV3 weights apart.

    Parameters
    ----------
    state : mapping of str to array
        A file's tensors: deeplabv3_resnet50, deeplabv3_resnet101 or deeplabv3_mobilenet_v3_large.
        The classifier that helps in training (``aux_classifier``) is left out.
    canvas : (int, int)
        Height and width of what the backbone reads.

    Returns
    -------
    Pretrained
        ``head.adapted(VOC_CLASSES, classes, seed)`` turns it to other classes.

    Raises
    ------
    WeightsMismatchError
        If these are the weights of something else.
    """
    backbone_state = {
        k.removeprefix("backbone."): v for k, v in state.items() if k.startswith("backbone.")
    }
    is_resnet = "conv1.weight" in backbone_state
    if is_resnet:
        depth = 101 if "layer3.22.conv1.weight" in backbone_state else 50
        backbone, tap, stride = f"timm/resnet{depth}?output_stride=8", "layer4", 8
    else:
        backbone_state = {f"features.{name}": value for name, value in backbone_state.items()}
        backbone, tap, stride = "torchvision/mobilenet_v3_large?dilated=true", "conv_head", 16
    names = {name for name in state if name.startswith("classifier.")}
    if not backbone_state or not {"classifier.4.weight", "classifier.0.convs.0.0.weight"} <= names:
        raise WeightsMismatchError(
            "Expected the weights of torchvision's DeepLabV3, got tensors of another network."
        )
    shape = MaskShape(
        kind="deeplabv3",
        channels=(int(state["classifier.0.convs.0.0.weight"].shape[1]),),
        strides=(stride,),
        n_classes=len(state["classifier.4.weight"]),
        canvas=canvas,
        options={"rates": (12, 24, 36)},
    )
    tensors = {_renamed(name): state[name] for name in names}
    try:
        head = MaskHead(taps=(tap,), shape=shape, tensors={}).with_state(tensors)
    except ModelFileError as error:
        raise WeightsMismatchError(str(error)) from error
    return Pretrained(backbone, backbone_state, head)


def _renamed(name: str) -> str:
    place, _, rest = name.removeprefix("classifier.").partition(".")
    return f"classifier.{rest}" if place == "4" else f"decoder.{place}.{rest}"
