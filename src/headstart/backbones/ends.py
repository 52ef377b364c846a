"""What linear heads at several depths read, in one run of the network."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from headstart.backbones.backbone import Backbone
from headstart.backbones.stages import mean_of_places

__all__ = ["Ends"]


class Ends(nn.Module):
    """Means over places behind some stages, and the pooled features, as one row a picture.

    Parameters
    ----------
    backbone : Backbone
    ends : sequence of str
        Stages in the order in which they run; an empty name, last, is the pooled features.

    Examples
    --------
    >>> from headstart.backbones.backbone import load
    >>> backbone = load("torchvision/resnet18", pretrained=False).eval()
    >>> Ends(backbone, ["layer2", ""])(torch.zeros(1, 3, 64, 64)).shape
    torch.Size([1, 640])
    """

    def __init__(self, backbone: Backbone, ends: Sequence[str]) -> None:
        super().__init__()
        self.backbone = backbone
        self.ends = tuple(ends)

    def forward(self, x: Tensor) -> Tensor:
        """Rows (n, sum of the widths) of normalised pictures (n, 3, H, W)."""
        last = self.backbone.stages[-1].name
        maps = self.backbone.maps(x, [end or last for end in self.ends])
        rows = [
            mean_of_places(one) if end else self.backbone.pool(one)
            for end, one in zip(self.ends, maps, strict=True)
        ]
        return torch.cat(rows, dim=1)
