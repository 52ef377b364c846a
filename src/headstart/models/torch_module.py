"""A classifier as one torch module, from pixels to probabilities."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from headstart.backbones.freezing import freeze
from headstart.backbones.frozen import FrozenBackbone
from headstart.errors import UsageError
from headstart.models.heads.linear import LinearHead
from headstart.models.tasks import ClassificationTask

__all__ = ["ClassifierModule"]


class ClassifierModule(nn.Module):
    """Backbone, head, preprocessing and calibration of a classifier in one module.

    The parameters are copies, and frozen.

    Parameters
    ----------
    backbone : FrozenBackbone
    head : LinearHead
    task : ClassificationTask
    resize : bool
        Resize and cut images as ``Preprocess.resize_and_crop`` does. Without it, images have the
        model's input size.
    """

    def __init__(
        self,
        backbone: FrozenBackbone,
        head: LinearHead,
        task: ClassificationTask,
        *,
        resize: bool = True,
    ):
        super().__init__()
        preprocess = self.preprocess = backbone.spec.preprocess
        self.backbone, self.head = copy.deepcopy(backbone.module), head.module()
        self.size, self.classes, self.resize = preprocess.shape, task.classes, resize
        self.temperature, self.is_multilabel = task.temperature, task.kind == "multilabel"
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(preprocess.mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(preprocess.std).view(1, 3, 1, 1))
        freeze(self)

    def forward(self, images: Tensor) -> Tensor:
        """Return the probabilities of images.

        Parameters
        ----------
        images : tensor
            uint8 of shape (n, 3, H, W) or (n, H, W, 3), or floating point of these shapes with
            values from 0 to 1. All images of a batch have one size.

        Returns
        -------
        tensor, shape (n, n_classes), of the parameters' type

        Raises
        ------
        UsageError
            If the images have another shape or type.
        """
        is_uint8 = images.dtype == torch.uint8
        shape = tuple(images.shape)
        is_batch = len(shape) == 4 and 3 in (shape[1], shape[3]) and images.numel() > 0
        if not is_batch or not (is_uint8 or images.is_floating_point()):
            raise UsageError(
                "Expected images of shape (n, 3, H, W) or (n, H, W, 3), uint8 or float from 0 to "
                f"1, got {images.dtype} of shape {shape}. Convert them first."
            )
        if shape[1] != 3:
            images = images.permute(0, 3, 1, 2)
        if self.resize:
            images = self.preprocess.resize_and_crop_batch(images)
        elif tuple(images.shape[2:]) != self.size:
            height, width = self.size
            raise UsageError(
                f"Expected images of {height} x {width} pixels, got {tuple(images.shape[2:])}. Use "
                "`model.torch()` without resize=False."
            )
        x = images.to(self.mean.dtype) / 255 if is_uint8 else images.to(self.mean.dtype)
        features = self.backbone((x - self.mean) / self.std)
        logits: Tensor = self.head(features) / self.temperature
        return logits.sigmoid() if self.is_multilabel else logits.softmax(dim=1)
