"""Weights that were trained on other images than ImageNet's: scenes, X-rays, satellite images.

Each row names a file as its authors publish it. `rename_tensors` gives its tensors the names and
shapes of torchvision or timm.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from headstart.backbones.spec import IMAGENET, RGB, BackboneSpec
from headstart.data.transforms.preprocess import Preprocess
from headstart.errors import WeightsMismatchError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["LAYOUTS", "domain_specs", "rename_tensors"]

XRAY_SCALE: tuple[RGB, RGB] = ((0.5,) * 3, (0.5 / 1024,) * 3)
"""Values from -1024 to 1024, as torchxrayvision's networks expect them."""
BRIGHTEST = 0.3
"""Reflectance of the value 255 in an 8-bit satellite image: the usual stretch of true colours."""
SENTINEL: tuple[RGB, RGB] = ((0.0,) * 3, (1 / BRIGHTEST,) * 3)
"""Reflectances, as SSL4EO-S12's networks expect them."""
BIGEARTHNET: tuple[RGB, RGB] = (
    tuple(mean / (1e4 * BRIGHTEST) for mean in (588.41, 614.06, 438.37)),  # type: ignore[assignment]
    tuple(std / (1e4 * BRIGHTEST) for std in (684.57, 603.30, 607.03)),
)
"""Mean and standard deviation of BigEarthNet's bands 4, 3 and 2, as shares of an 8-bit image."""
PLACES = "http://places2.csail.mit.edu/models_places365/"


@dataclass(frozen=True, kw_only=True)
class _Row:
    name: str
    architecture: str
    layout: str
    file: str
    data: str
    licence: str
    megabytes: float
    sha256: str = ""
    url: str = ""
    repo: str = ""
    revision: str = "main"
    resize: int = 256
    crop: int = 224
    scale: tuple[RGB, RGB] = IMAGENET


def _places(architecture: str, megabytes: float) -> _Row:
    file = f"{architecture}_places365.pth.tar"
    return _Row(
        name=f"places365/{architecture}",
        architecture=f"torchvision/{architecture}",
        layout="plain",
        file=file,
        url=PLACES + file,
        data="Places365",
        licence="CC-BY",
        megabytes=megabytes,
    )


def _coco(detector: str, sha256: str, megabytes: float) -> _Row:
    file = f"{detector}_resnet50_fpn_coco-{sha256}.pth"
    return _Row(
        name=f"coco/resnet50.{detector}",
        architecture="torchvision/resnet50",
        layout="detector",
        file=file,
        sha256=sha256,
        url=f"https://download.pytorch.org/models/{file}",
        data="ImageNet-1k, then COCO",
        licence="BSD-3-Clause",
        megabytes=megabytes,
    )


def _xrays(name: str, data: str) -> _Row:
    return _Row(
        name=f"xray/densenet121{f'.{name}' if name != 'all' else ''}",
        architecture="torchvision/densenet121",
        layout="grey densenet",
        file="model.safetensors",
        repo=f"torchxrayvision/densenet121-res224-{name}",
        data=data,
        licence="Apache-2.0",
        megabytes=28.4,
        resize=224,
        scale=XRAY_SCALE,
    )


def _sentinel(depth: int, bands: str, sha256: str, megabytes: float) -> _Row:
    is_rgb = bands == "rgb"
    return _Row(
        name=f"satellite/resnet{depth}{'' if is_rgb else '.13bands'}",
        architecture=f"timm/resnet{depth}",
        layout="plain" if is_rgb else "13 bands",
        file=f"resnet{depth}_sentinel2_{bands}_moco-{sha256}.pth",
        sha256=sha256,
        repo=f"torchgeo/resnet{depth}_sentinel2_{bands}_moco",
        data="SSL4EO-S12 (Sentinel-2), MoCo",
        licence="CC-BY-4.0",
        megabytes=megabytes,
        scale=SENTINEL,
    )


_ROWS = (
    _places("resnet18", 45.5),
    _places("resnet50", 97.3),
    _coco("fasterrcnn", "258fb6c6", 159.7),
    _coco("maskrcnn", "bf2d0c1e", 169.8),
    _xrays("all", "chest X-rays of 7 sets"),
    _xrays("nih", "chest X-rays (NIH)"),
    _Row(
        name="xray/chexnet",
        architecture="torchvision/densenet121",
        layout="chexnet",
        file="chexnet_model.pth.tar",
        url="https://github.com/arnoweng/CheXNet/raw/master/model.pth.tar",
        data="ImageNet-1k, then chest X-rays (NIH)",
        licence="",
        megabytes=0.0,
    ),
    _sentinel(18, "rgb", "e3a335e3", 44.8),
    _sentinel(50, "rgb", "2b57ba8b", 94.4),
    _sentinel(50, "all", "df8b932e", 94.5),
    _Row(
        name="satellite/resnet50.bigearthnet",
        architecture="timm/resnet50",
        layout="bigearthnet",
        file="model.safetensors",
        repo="BIFOLD-BigEarthNetv2-0/resnet50-s2-v0.2.0",
        data="BigEarthNet v2 (Sentinel-2)",
        licence="MIT",
        megabytes=94.5,
        resize=120,
        crop=120,
        scale=BIGEARTHNET,
    ),
)


def domain_specs() -> tuple[BackboneSpec, ...]:
    """Return the specifications of all rows.

    Examples
    --------
    >>> [spec.name for spec in domain_specs()][:2]
    ['places365/resnet18', 'places365/resnet50']
    """
    return tuple(_spec_from_row(row) for row in _ROWS)


def _spec_from_row(row: _Row) -> BackboneSpec:
    mean, std = row.scale
    values: dict[str, Any] = {
        name: getattr(row, name)
        for name in ("name", "architecture", "layout", "file", "data", "licence", "megabytes")
    }
    return BackboneSpec(
        source="other",
        preprocess=Preprocess(
            resize=row.resize, crop=row.crop, interpolation="bilinear", mean=mean, std=std
        ),
        sha256=row.sha256,
        url=row.url,
        repo=row.repo,
        revision=row.revision,
        **values,
    )


# -------------------------------------------------------------------------------- tensors of files


def rename_tensors(layout: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give the tensors of a published file the names and shapes of the library's network.

    Parameters
    ----------
    layout : str
        A key of ``LAYOUTS``, or "" for a file that has the library's names.
    state : mapping of str to tensor
        Without the prefix ``module.``. The tensors are not changed.

    Returns
    -------
    dict of str to tensor
        Tensors that do not belong to the backbone or its classifier are left out. A first layer
        for one channel becomes one for the mean of red, green and blue; one for many bands keeps
        those of red, green and blue.

    Raises
    ------
    WeightsMismatchError
        If the file has none of the tensors that this layout has.

    Examples
    --------
    >>> import torch
    >>> state = {"densenet121.features.denseblock1.denselayer2.norm.1.bias": torch.zeros(1)}
    >>> list(rename_tensors("chexnet", state))
    ['features.denseblock1.denselayer2.norm1.bias']
    """
    if not layout:
        return dict(state)
    renamed = LAYOUTS[layout](state)
    if not renamed:
        raise WeightsMismatchError(
            f"Expected tensors of the layout {layout!r}, got names such as "
            f"{', '.join(map(repr, list(state)[:3]))}. Use the file that the backbone's authors "
            "publish, or file:PATH@ARCHITECTURE for a file with the library's names."
        )
    return renamed


def _keep(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return dict(state)


def _from_detector(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Backbone of a detector. Its BatchNorm adds no epsilon to the variance, ours adds 1e-5."""
    prefix = "backbone.body."
    body = {name[len(prefix) :]: value for name, value in state.items() if name.startswith(prefix)}
    return {
        name: value - 1e-5 if name.endswith("running_var") else value
        for name, value in body.items()
    }


def _from_grey_densenet(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """One channel: a third of the weights for each colour gives the same for a grey image."""
    features = ("features.", "classifier.")
    kept = {name: value for name, value in state.items() if name.startswith(features)}
    first = kept.get("features.conv0.weight")
    if first is not None and first.shape[1] == 1:
        kept["features.conv0.weight"] = first.repeat(1, 3, 1, 1) / 3
    return kept


def _from_chexnet(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    prefix = "densenet121."
    return {
        re.sub(r"\b(norm|conv|relu)\.([12])\b", r"\1\2", name[len(prefix) :]).replace(
            "classifier.0.", "classifier."
        ): value
        for name, value in state.items()
        if name.startswith(prefix)
    }


def _keep_bands(state: Mapping[str, Tensor], bands: tuple[int, int, int]) -> dict[str, Tensor]:
    kept = dict(state)
    first = kept.get("conv1.weight")
    if first is not None and first.shape[1] > max(bands):
        kept["conv1.weight"] = first[:, list(bands)].contiguous()
    return kept


def _from_13_bands(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Bands 4, 3 and 2 of Sentinel-2, which are at the places 3, 2 and 1."""
    return _keep_bands(state, (3, 2, 1))


def _from_bigearthnet(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Ten bands, of which the first three are 2, 3 and 4."""
    prefix = "model.vision_encoder."
    encoder = {
        name[len(prefix) :]: value for name, value in state.items() if name.startswith(prefix)
    }
    return _keep_bands(encoder, (2, 1, 0))


LAYOUTS: Mapping[str, Callable[[Mapping[str, Tensor]], dict[str, Tensor]]] = {
    "plain": _keep,
    "detector": _from_detector,
    "grey densenet": _from_grey_densenet,
    "chexnet": _from_chexnet,
    "13 bands": _from_13_bands,
    "bigearthnet": _from_bigearthnet,
}
"""Translations of the names and shapes in published files."""
