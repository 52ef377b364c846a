"""Segmentation head: its architecture and tensors as a value, and its transfer to other classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from headstart.backbones.spec import Stage
from headstart.errors import ModelFileError, UsageError, WeightsMismatchError
from headstart.models.heads.detection import match_classes
from headstart.models.heads.detection_config import lists_to_tuples, tuples_to_lists
from headstart.models.heads.segmentation_config import (
    MaskShape,
    Option,
    decoder_stages,
    resolve_options,
)

if TYPE_CHECKING:
    from headstart.models.heads.segmentation_modules import MaskModule

__all__ = ["VOC_CLASSES", "MaskHead", "PublishedDecoder", "decoder_from_torchvision"]

VOC_CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair",
    "cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa",
    "train", "tvmonitor",
)  # fmt: skip
"""Classes of torchvision's segmentation weights, in the order of their outputs."""

CLASS_OUTPUTS = ("classifier.weight", "classifier.bias")
"""Tensors with one row for each class."""


@dataclass(frozen=True, kw_only=True, eq=False)
class MaskHead:
    """A decoder from maps to logits for every pixel of the canvas; ``random`` initialises one.

    Parameters
    ----------
    taps : tuple of str
        Stages whose maps the head reads, from fine to coarse.
    shape : MaskShape
        The architecture.
    tensors : mapping of str to array
        By the names of ``module().state_dict()``.

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

    def __repr__(self) -> str:
        values = sum(tensor.size for tensor in self.tensors.values())
        return f"MaskHead({self.kind}, taps={self.taps}, {values} parameters)"

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
        """Initialise a head with random tensors.

        Parameters
        ----------
        stages : sequence of Stage
            All stages of the backbone.
        n_classes : int
            2 to 255, a background included.
        kind : {"unet", "unetplusplus", "deeplabv3plus", "fpn", "deeplabv3"}
        canvas : (int, int)
            Height and width of the backbone's input, in pixels.
        seed : int
        **options
            ``widths`` (U-Net, U-Net++): channels of each step, from coarse to fine.
            ``widest`` (U-Net, U-Net++): wider maps are first projected to this many channels.
            ``pyramid``, ``width`` (FPN): channels of the pyramid and of the layers on it.
            ``width`` (DeepLabV3+): channels. ``rates`` (both DeepLabs): the three dilations, by
            default in proportion to the canvas.
            ``dropout`` (FPN, DeepLabV3+): from 0 to below 1.

        Raises
        ------
        UnknownNameError
            If there is no such kind or option.
        UsageError
            If the backbone has no maps of the strides needed, or a value is invalid.
        """
        tapped = decoder_stages(kind, stages)
        strides = tuple(stage.stride for stage in tapped)
        shape = MaskShape(
            kind=kind,
            channels=tuple(stage.channels for stage in tapped),
            strides=strides,
            n_classes=n_classes,
            canvas=canvas,
            options=resolve_options(kind, strides, canvas, options),
        )
        taps = tuple(stage.name for stage in tapped)
        return cls(taps=taps, shape=shape, tensors=_random_tensors(shape, seed))

    def module(self) -> MaskModule:
        """Build the module with its own copy of the tensors, in float32 on the CPU."""
        import torch

        module = _build_without_memory(self.shape)
        state = {name: torch.from_numpy(np.array(value)) for name, value in self.tensors.items()}
        module.load_state_dict(state, assign=True)
        return module

    def state(self) -> dict[str, NDArray[Any]]:
        """Return the tensors by name: float32, and int64 for BatchNorm's counters."""
        return dict(self.tensors)

    def with_state(self, state: Mapping[str, NDArray[Any]]) -> Self:
        """Return the same head with other tensors.

        Raises
        ------
        ModelFileError
            If names, shapes or types are not those of this head.
        """
        module = _build_without_memory(self.shape)
        expected = {name: _type_and_shape(x) for name, x in module.state_dict().items()}
        actual = {name: _type_and_shape(x) for name, x in state.items()}
        wrong = sorted(
            name for name in expected.keys() | actual if expected.get(name) != actual.get(name)
        )
        if wrong:
            raise ModelFileError(
                f"Expected the tensors of a {self.kind} head, got {len(wrong)} that do not match, "
                f"such as {wrong[0]!r}: {actual.get(wrong[0], 'missing')} instead of "
                f"{expected.get(wrong[0], 'none')}. Copy the model again, or train it again."
            )
        return replace(self, tensors=dict(state))

    def as_dict(self) -> dict[str, Any]:
        """The architecture as JSON values, for model.json."""
        shape = self.shape
        return {
            "kind": shape.kind,
            "taps": list(self.taps),
            "channels": list(shape.channels),
            "strides": list(shape.strides),
            "n_classes": shape.n_classes,
            "canvas": list(shape.canvas),
            "options": {name: tuples_to_lists(value) for name, value in shape.options.items()},
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], tensors: Mapping[str, NDArray[Any]]) -> Self:
        """Read what ``as_dict`` and ``state`` wrote, and check it before building anything large.

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
                options={name: lists_to_tuples(value) for name, value in values["options"].items()},
            )
            taps = tuple(str(name) for name in values["taps"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ModelFileError(
                f"Expected a segmentation head, got a damaged description ({error}). Copy the "
                "model again."
            ) from error
        if len(taps) != len(shape.strides):
            raise ModelFileError(
                f"Expected {len(shape.strides)} stages, one for each map of the head, got {taps}. "
                "Copy the model again."
            )
        return cls(taps=taps, shape=shape, tensors={}).with_state(tensors)

    def with_classes(self, before: Sequence[str], after: Sequence[str], seed: int) -> Self:
        """Return the head for other classes; outputs of classes with equal names are copied.

        Parameters
        ----------
        before : sequence of str
            The classes of this head, in order.
        after : sequence of str
            The classes of the new head. Names are compared without case.
        seed : int
            For the random outputs of new classes.

        Raises
        ------
        UsageError
            If ``before`` has another number of classes than this head.
        """
        if len(before) != self.shape.n_classes:
            raise UsageError(f"Expected {self.shape.n_classes} names in `before`, got {before}.")
        shape = replace(self.shape, n_classes=len(after))
        random_tensors = _random_tensors(shape, seed)
        outputs = {name: random_tensors[name] for name in CLASS_OUTPUTS}
        for old, new in match_classes(before, after):
            for name in CLASS_OUTPUTS:
                outputs[name][new] = self.tensors[name][old]
        return replace(self, shape=shape, tensors={**self.tensors, **outputs})


def _build_without_memory(shape: MaskShape) -> MaskModule:
    """Build the module on torch's meta device: its tensors have shapes but no values."""
    import torch

    from headstart.models.heads.segmentation_modules import build

    with torch.device("meta"):
        return build(shape)


def _random_tensors(shape: MaskShape, seed: int) -> dict[str, NDArray[Any]]:
    import torch

    from headstart.models.heads.segmentation_modules import build

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        state = build(shape).state_dict()
    return {name: value.numpy().copy() for name, value in state.items()}


def _type_and_shape(tensor: Any) -> str:
    """Type and shape of a tensor or an array, as text that is equal for both."""
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


class PublishedDecoder(NamedTuple):
    """Torchvision's DeepLabV3, split into backbone and head.

    ``backbone``: the name of the backbone; ``state``: its tensors, by the library's names;
    ``head``: the decoder, with an output for each of ``VOC_CLASSES``.
    """

    backbone: str
    state: dict[str, NDArray[Any]]
    head: MaskHead


def decoder_from_torchvision(
    state: Mapping[str, NDArray[Any]], *, canvas: tuple[int, int]
) -> PublishedDecoder:
    """Split torchvision's DeepLabV3 weights into backbone and head.

    Parameters
    ----------
    state : mapping of str to array
        A file's tensors: deeplabv3_resnet50, deeplabv3_resnet101 or deeplabv3_mobilenet_v3_large.
        The auxiliary classifier of the training (``aux_classifier``) is left out.
    canvas : (int, int)
        Height and width of the backbone's input.

    Returns
    -------
    PublishedDecoder
        ``head.with_classes(VOC_CLASSES, classes, seed)`` adapts it to other classes.

    Raises
    ------
    WeightsMismatchError
        If these are not the weights of such a network.
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
            f"Expected the weights of torchvision's DeepLabV3, got {len(state)} tensors of another "
            "network. Name the network that the file belongs to: file:PATH@torchvision/NAME."
        )
    shape = MaskShape(
        kind="deeplabv3",
        channels=(int(state["classifier.0.convs.0.0.weight"].shape[1]),),
        strides=(stride,),
        n_classes=len(state["classifier.4.weight"]),
        canvas=canvas,
        options={"rates": (12, 24, 36)},
    )
    tensors = {_convert_name(name): state[name] for name in names}
    try:
        head = MaskHead(taps=(tap,), shape=shape, tensors={}).with_state(tensors)
    except ModelFileError as error:
        raise WeightsMismatchError(str(error)) from error
    return PublishedDecoder(backbone, backbone_state, head)


def _convert_name(name: str) -> str:
    """Torchvision has decoder and classifier in one sequence; its last layer is the classifier."""
    layer, _, rest = name.removeprefix("classifier.").partition(".")
    return f"classifier.{rest}" if layer == "4" else f"decoder.{layer}.{rest}"
