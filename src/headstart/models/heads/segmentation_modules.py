"""Modules of the segmentation heads: decoders from maps to logits for every pixel.

The decoders are those of segmentation-models-pytorch, and torchvision's DeepLabV3. This module
adapts a backbone's maps to them: sizes, widths, and batches of one image.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import batch_norm, interpolate, pad

from headstart.errors import UsageError
from headstart.models.heads.segmentation_config import MaskShape

__all__ = ["MaskModule", "build"]


class MaskModule(nn.Module):
    """Decode maps into logits of the size of the canvas.

    Parameters
    ----------
    decoder : torch.nn.Module
        Takes a list of maps, as the decoders of segmentation-models-pytorch do.
    classifier : torch.nn.Conv2d
        From the decoder's output to one logit for each class.
    readers : torch.nn.ModuleList
        One for each map, applied before the decoder.
    shape : MaskShape
    """

    def __init__(
        self, decoder: nn.Module, classifier: nn.Conv2d, readers: nn.ModuleList, shape: MaskShape
    ) -> None:
        super().__init__()
        self.decoder, self.classifier, self.readers = decoder, classifier, readers
        self.shape = shape

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Logits (n, n_classes, H, W) of maps (n, C, h, w), one for each stride."""
        strides = self.shape.strides
        resized = [
            self._resize_to_stride(x, stride) for x, stride in zip(maps, strides, strict=True)
        ]
        features = [reader(x) for reader, x in zip(self.readers, resized, strict=True)]
        height, width = features[0].shape[2:]
        # The decoders expect finer maps first. They read only the size of these, for the last step.
        finer = features[0].new_empty((0, 0, 2 * height, 2 * width))
        n_finer = 2 if self.shape.kind == "deeplabv3plus" else 1
        logits = self.classifier(self.decoder([finer] * n_finer + features))
        padded = interpolate(logits, size=self.shape.padded, mode="bilinear", align_corners=False)
        return padded[..., : self.shape.canvas[0], : self.shape.canvas[1]]

    def _resize_to_stride(self, x: Tensor, stride: int) -> Tensor:
        """Resize and pad a map to the padded canvas divided by its stride."""
        if x.ndim != 4:
            raise UsageError(
                f"Expected maps (n, C, h, w) of the backbone, got shape {tuple(x.shape)}. Choose a "
                "convolutional backbone, such as --backbone torchvision/resnet18."
            )
        rows, columns = (-(-side // stride) for side in self.shape.canvas)
        if x.shape[2:] != (rows, columns):  # convolutions without padding lose a border
            x = interpolate(x, size=(rows, columns), mode="bilinear", align_corners=False)
        height, width = self.shape.padded
        below, right = height // stride - rows, width // stride - columns
        return pad(x, (0, right, 0, below)) if below or right else x


def build(shape: MaskShape) -> MaskModule:
    """Build a decoder with its classifier, initialised as torch and the library do."""
    kind, options = shape.kind, shape.options
    widest: Any = options.get("widest", max(shape.channels))
    readers = nn.ModuleList(_reader(width, widest) for width in shape.channels)
    widths = [min(width, widest) for width in shape.channels]
    if kind == "deeplabv3":
        decoder, classifier = _deeplabv3(widths[-1], shape.n_classes, options)
    else:
        decoder, width = _DECODERS[kind](widths, options)
        classifier = nn.Conv2d(width, shape.n_classes, kernel_size=1)
        _initialise(decoder, readers, classifier)
    if kind == "deeplabv3plus":
        # The library upsamples by a fixed factor; here it must reach the finer map from any stride.
        finest_size = (shape.padded[0] // shape.strides[0], shape.padded[1] // shape.strides[0])
        decoder.up = nn.Upsample(size=finest_size, mode="bilinear", align_corners=False)
    _replace_batch_norms(decoder)
    _replace_batch_norms(readers)
    return MaskModule(decoder, classifier, readers, shape)


def _reader(channels: int, widest: int) -> nn.Module:
    """Identity, or a projection of a map so wide that decoding costs more than the backbone."""
    if channels <= widest:
        return nn.Identity()
    projection = nn.Conv2d(channels, widest, kernel_size=1, bias=False)
    return nn.Sequential(projection, nn.BatchNorm2d(widest), nn.ReLU(inplace=True))


def _initialise(decoder: nn.Module, readers: nn.Module, classifier: nn.Module) -> None:
    from segmentation_models_pytorch.base.initialization import (
        initialize_decoder,
        initialize_head,
    )

    initialize_decoder(decoder)
    initialize_decoder(readers)
    initialize_head(classifier)


def _unet(channels: Sequence[int], options: Mapping[str, Any]) -> tuple[nn.Module, int]:
    from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoder

    widths = options["widths"]
    decoder = UnetDecoder((0, *channels), decoder_channels=widths, n_blocks=len(widths))
    return decoder, widths[-1]


def _unetplusplus(channels: Sequence[int], options: Mapping[str, Any]) -> tuple[nn.Module, int]:
    from segmentation_models_pytorch.decoders.unetplusplus.decoder import UnetPlusPlusDecoder

    widths = options["widths"]
    decoder = UnetPlusPlusDecoder((0, *channels), decoder_channels=widths, n_blocks=len(widths))
    return decoder, widths[-1]


def _fpn(channels: Sequence[int], options: Mapping[str, Any]) -> tuple[nn.Module, int]:
    from segmentation_models_pytorch.decoders.fpn.decoder import FPNDecoder

    decoder = FPNDecoder(
        (0, *channels),
        encoder_depth=len(channels),
        pyramid_channels=options["pyramid"],
        segmentation_channels=options["width"],
        dropout=options["dropout"],
    )
    return decoder, options["width"]


def _deeplabv3plus(channels: Sequence[int], options: Mapping[str, Any]) -> tuple[nn.Module, int]:
    from segmentation_models_pytorch.decoders.deeplabv3.decoder import DeepLabV3PlusDecoder

    width = options["width"]
    decoder = DeepLabV3PlusDecoder(
        (0, 0, *channels),
        encoder_depth=5,
        out_channels=width,
        atrous_rates=options["rates"],
        output_stride=16,
        aspp_separable=True,
        aspp_dropout=options["dropout"],
    )
    # The pooling branch leaves one value for each image and channel. BatchNorm over a few such
    # values is noise, and over one it fails.
    decoder.aspp[0].convs[-1][2] = nn.GroupNorm(1, width)
    return decoder, width


def _deeplabv3(
    channels: int, n_classes: int, options: Mapping[str, Any]
) -> tuple[nn.Module, nn.Conv2d]:
    from torchvision.models.segmentation.deeplabv3 import DeepLabHead

    *layers, classifier = DeepLabHead(channels, n_classes, options["rates"])
    return _LastMapDecoder(*layers), classifier


_DECODERS: dict[str, Callable[..., tuple[nn.Module, int]]] = {
    "unet": _unet,
    "unetplusplus": _unetplusplus,
    "fpn": _fpn,
    "deeplabv3plus": _deeplabv3plus,
}


class _LastMapDecoder(nn.Sequential):
    """Layers applied to the last of several maps."""

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        return super().forward(maps[-1])  # type: ignore[no-untyped-call, no-any-return]


def _replace_batch_norms(module: nn.Module) -> None:
    """Replace every BatchNorm by one that accepts a single value; names and tensors stay."""
    for name, child in list(module.named_children()):
        if type(child) is nn.BatchNorm2d:
            layer = _SingleValueBatchNorm(
                child.num_features, eps=child.eps, momentum=child.momentum
            )
            layer.load_state_dict(child.state_dict(), assign=True)
            setattr(module, name, layer)
        else:
            _replace_batch_norms(child)


class _SingleValueBatchNorm(nn.BatchNorm2d):
    """BatchNorm that uses its running statistics for a single value for each channel."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training and x.shape[0] * x.shape[2] * x.shape[3] == 1:
            mean, var = self.running_mean, self.running_var
            return batch_norm(x, mean, var, self.weight, self.bias, eps=self.eps)
        return super().forward(x)
