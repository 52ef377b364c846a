"""The table of backbones: one row for each set of weights, and each architecture's stages.

A test holds every row against what torchvision and timm say of the same weights; writing it down
here spares importing them, which takes seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Literal, NamedTuple

from headstart.backbones.spec import BackboneSpec, Stage
from headstart.data.transforms import Preprocess

__all__ = ["table"]

RGB = tuple[float, float, float]
IMAGENET: tuple[RGB, RGB] = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF: tuple[RGB, RGB] = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
IN1K = "ImageNet-1k"


class Row(NamedTuple):
    """One row: a name, its weights, and how a picture is prepared for them."""

    name: str
    file: str  # of a timm row: the repository on the hub
    megabytes: float
    resize: int
    crop: int
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    scale: tuple[RGB, RGB] = IMAGENET
    data: str = IN1K


# fmt: off
TORCHVISION = (
    Row("resnet18", "resnet18-f37072fd.pth", 44.7, 256, 224),
    Row("resnet50", "resnet50-11ad3fa6.pth", 97.8, 232, 224),
    Row("resnet50.v1", "resnet50-0676ba61.pth", 97.8, 256, 224),
    Row("resnet101", "resnet101-cd907fc2.pth", 170.5, 232, 224),
    Row("resnet101.v1", "resnet101-63fe2227.pth", 170.5, 256, 224),
    Row("resnet152", "resnet152-f82ba261.pth", 230.5, 232, 224),
    Row("resnet152.v1", "resnet152-394f9c45.pth", 230.4, 256, 224),
    Row("vgg16", "vgg16-397923af.pth", 527.8, 256, 224),
    Row("vgg19", "vgg19-dcbb9e9d.pth", 548.1, 256, 224),
    Row("efficientnet_b0", "efficientnet_b0_rwightman-7f5810bc.pth", 20.5, 256, 224, "bicubic"),
    Row("efficientnet_b1", "efficientnet_b1-c27df63c.pth", 30.1, 255, 240),
    Row("efficientnet_b1.v1", "efficientnet_b1_rwightman-bac287d4.pth", 30.1, 256, 240, "bicubic"),
    Row("efficientnet_b2", "efficientnet_b2_rwightman-c35c1473.pth", 35.2, 288, 288, "bicubic"),
    Row("efficientnet_b3", "efficientnet_b3_rwightman-b3899882.pth", 47.2, 320, 300, "bicubic"),
    Row("efficientnet_b4", "efficientnet_b4_rwightman-23ab8bcd.pth", 74.5, 384, 380, "bicubic"),
    Row("inception_v3", "inception_v3_google-0cc3c7bd.pth", 103.9, 342, 299),
    Row("mobilenet_v2", "mobilenet_v2-7ebf99e0.pth", 13.6, 232, 224),
    Row("mobilenet_v2.v1", "mobilenet_v2-b0353104.pth", 13.6, 256, 224),
    Row("mobilenet_v3_large", "mobilenet_v3_large-5c1a4163.pth", 21.1, 232, 224),
    Row("mobilenet_v3_large.v1", "mobilenet_v3_large-8738ca79.pth", 21.1, 256, 224),
    Row("mobilenet_v3_small", "mobilenet_v3_small-047dcff4.pth", 9.8, 256, 224),
    Row("densenet121", "densenet121-a639ec97.pth", 30.8, 256, 224),
    Row("convnext_tiny", "convnext_tiny-983f1562.pth", 109.1, 236, 224),
    Row("regnet_y_1_6gf", "regnet_y_1_6gf-0d7bc02a.pth", 43.2, 232, 224),
    Row("regnet_y_1_6gf.v1", "regnet_y_1_6gf-b11a554e.pth", 43.2, 256, 224),
    Row("vit_b_16", "vit_b_16-c867db91.pth", 330.3, 256, 224),
)

TIMM = (
    Row("resnet50", "timm/resnet50.a1_in1k", 102.5, 235, 224, "bicubic"),
    Row("mobilenetv2_100", "timm/mobilenetv2_100.ra_in1k", 14.2, 256, 224, "bicubic"),
    Row("convnext_tiny", "timm/convnext_tiny.in12k_ft_in1k", 114.4, 235, 224, "bicubic",
        data="ImageNet-12k, then ImageNet-1k"),
    Row("vit_tiny_patch16_224", "timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k", 22.9, 248, 224,
        "bicubic", HALF, "ImageNet-21k, then ImageNet-1k"),
    Row("vit_small_patch16_224", "timm/vit_small_patch16_224.augreg_in21k_ft_in1k", 88.2, 248, 224,
        "bicubic", HALF, "ImageNet-21k, then ImageNet-1k"),
    Row("tf_efficientnet_lite0", "timm/tf_efficientnet_lite0.in1k", 18.8, 256, 224, "bicubic",
        HALF),
)

EMBEDDED = BackboneSpec(
    name="embedded/efficientnet_lite0",
    source="embedded",
    architecture="timm/tf_efficientnet_lite0",
    preprocess=Preprocess(
        resize=256, crop=224, interpolation="bicubic", mean=HALF[0], std=HALF[1]
    ),
    file="efficientnet-lite0-57934424.pth",
    sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    data=IN1K,
    licence="Apache-2.0",
    megabytes=18.8,
)

# Stages as "name channels/stride ...", and after "=" the width of the pooled features.
STAGES: Mapping[str, str] = {
    "torchvision/resnet18": "stem 64/4 layer1 64/4 layer2 128/8 layer3 256/16 layer4 512/32 = 512",
    "torchvision/resnet50":
        "stem 64/4 layer1 256/4 layer2 512/8 layer3 1024/16 layer4 2048/32 = 2048",
    "torchvision/resnet101":
        "stem 64/4 layer1 256/4 layer2 512/8 layer3 1024/16 layer4 2048/32 = 2048",
    "torchvision/resnet152":
        "stem 64/4 layer1 256/4 layer2 512/8 layer3 1024/16 layer4 2048/32 = 2048",
    "torchvision/vgg16": "block1 64/2 block2 128/4 block3 256/8 block4 512/16 block5 512/32 = 512",
    "torchvision/vgg19": "block1 64/2 block2 128/4 block3 256/8 block4 512/16 block5 512/32 = 512",
    "torchvision/efficientnet_b0":
        "stem 32/2 stage1 16/2 stage2 24/4 stage3 40/8 stage4 80/16 stage5 112/16 "
        "stage6 192/32 stage7 320/32 conv_head 1280/32 = 1280",
    "torchvision/efficientnet_b1":
        "stem 32/2 stage1 16/2 stage2 24/4 stage3 40/8 stage4 80/16 stage5 112/16 "
        "stage6 192/32 stage7 320/32 conv_head 1280/32 = 1280",
    "torchvision/efficientnet_b2":
        "stem 32/2 stage1 16/2 stage2 24/4 stage3 48/8 stage4 88/16 stage5 120/16 "
        "stage6 208/32 stage7 352/32 conv_head 1408/32 = 1408",
    "torchvision/efficientnet_b3":
        "stem 40/2 stage1 24/2 stage2 32/4 stage3 48/8 stage4 96/16 stage5 136/16 "
        "stage6 232/32 stage7 384/32 conv_head 1536/32 = 1536",
    "torchvision/efficientnet_b4":
        "stem 48/2 stage1 24/2 stage2 32/4 stage3 56/8 stage4 112/16 stage5 160/16 "
        "stage6 272/32 stage7 448/32 conv_head 1792/32 = 1792",
    "torchvision/inception_v3":
        "stem 64/4 conv 192/8 mixed5 288/8 mixed6 768/16 mixed7 2048/32 = 2048",
    "torchvision/mobilenet_v2":
        "stem 16/2 stage1 24/4 stage2 32/8 stage3 96/16 stage4 320/32 conv_head 1280/32 "
        "= 1280",
    "torchvision/mobilenet_v3_large":
        "stem 16/2 stage1 24/4 stage2 40/8 stage3 112/16 stage4 160/32 conv_head 960/32 "
        "= 960",
    "torchvision/mobilenet_v3_small":
        "stem 16/2 stage1 16/4 stage2 24/8 stage3 48/16 stage4 96/32 conv_head 576/32 "
        "= 576",
    "torchvision/densenet121":
        "stem 64/4 block1 256/4 block2 512/8 block3 1024/16 block4 1024/32 = 1024",
    "torchvision/convnext_tiny":
        "stem 96/4 stage1 96/4 stage2 192/8 stage3 384/16 stage4 768/32 = 768",
    "torchvision/regnet_y_1_6gf":
        "stem 32/2 block1 48/4 block2 120/8 block3 336/16 block4 888/32 = 888",
    "torchvision/vit_b_16":
        "patches 768/16 blocks1 768/16 blocks2 768/16 blocks3 768/16 blocks4 768/16 "
        "= 768",
    "timm/tf_efficientnet_lite0":
        "stem 32/2 stage1 16/2 stage2 24/4 stage3 40/8 stage4 80/16 stage5 112/16 "
        "stage6 192/32 stage7 320/32 conv_head 1280/32 = 1280",
    "timm/resnet50": "stem 64/4 layer1 256/4 layer2 512/8 layer3 1024/16 layer4 2048/32 = 2048",
    "timm/mobilenetv2_100":
        "stem 32/2 stage1 16/2 stage2 24/4 stage3 32/8 stage4 64/16 stage5 96/16 "
        "stage6 160/32 stage7 320/32 conv_head 1280/32 = 1280",
    "timm/convnext_tiny": "stem 96/4 stage1 96/4 stage2 192/8 stage3 384/16 stage4 768/32 = 768",
    "timm/vit_tiny_patch16_224":
        "patches 192/16 blocks1 192/16 blocks2 192/16 blocks3 192/16 blocks4 192/16 "
        "= 192",
    "timm/vit_small_patch16_224":
        "patches 384/16 blocks1 384/16 blocks2 384/16 blocks3 384/16 blocks4 384/16 "
        "= 384",
}
# fmt: on


@cache
def table() -> dict[str, BackboneSpec]:
    """Every row as a specification, by its name; not to be changed.

    Examples
    --------
    >>> table()["torchvision/vgg16"].width
    512
    """
    rows = [EMBEDDED]
    rows += [_from_row("torchvision", row) for row in TORCHVISION]
    rows += [_from_row("timm", row) for row in TIMM]
    return {row.name: _with_stages(row) for row in rows}


def _from_row(source: Literal["torchvision", "timm"], row: Row) -> BackboneSpec:
    architecture, _, tag = row.name.partition(".")
    mean, std = row.scale
    on_hub = source == "timm"
    return BackboneSpec(
        name=f"{source}/{row.name}",
        source=source,
        architecture=f"{source}/{architecture}",
        preprocess=Preprocess(
            resize=row.resize,
            crop=row.crop,
            interpolation=row.interpolation,
            mean=mean,
            std=std,
        ),
        file="model.safetensors" if on_hub else row.file,
        sha256="" if on_hub else row.file.removesuffix(".pth").rpartition("-")[2],
        repo=row.file if on_hub else "",
        tag=row.file.rpartition(".")[2] if on_hub else tag,
        data=row.data,
        licence="Apache-2.0" if on_hub else "BSD-3-Clause",
        megabytes=row.megabytes,
    )


def _with_stages(spec: BackboneSpec) -> BackboneSpec:
    if spec.architecture not in STAGES:
        return spec
    text, _, width = STAGES[spec.architecture].partition("=")
    words = text.split()
    stages = tuple(
        Stage(name=name, channels=int(size.split("/")[0]), stride=int(size.split("/")[1]))
        for name, size in zip(words[::2], words[1::2], strict=True)
    )
    return replace(spec, stages=stages, width=int(width))
