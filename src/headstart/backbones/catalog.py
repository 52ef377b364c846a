"""The backbones that are known by name: one visible table, and the grammar of names.

======================================  ====================================================
``embedded/efficientnet_lite0``         weights that come with the installation
``torchvision/resnet50``                torchvision's default weights; ``.v1``: the first ones
``timm/resnet50.a1_in1k``               any model of timm, with or without a tag
``hf/org/model``                        a timm-compatible model on the Hugging Face hub
``file:weights.pth@torchvision/vgg16``  a file and the name of its architecture
``resnet50``                            torchvision's if it has it, else timm's
======================================  ====================================================

Any name may carry options, ``?crop=288&pad_type=same``: those of ``Preprocess`` change what the
weights expect, all others go to the library that builds the network. ``?canvas=240,320`` has it
read whole pictures, 240 pixels high and 320 wide. ``?until=layer3`` ends the network behind that
stage.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any
from urllib.parse import parse_qsl

from headstart.backbones.spec import BackboneSpec, Option, Stage
from headstart.backbones.table import IMAGENET, table
from headstart.data.transforms import Preprocess
from headstart.errors import UnknownNameError, UsageError

__all__ = ["BackboneSpec", "Stage", "names", "resolve"]

PREPROCESS_FIELDS = tuple(field.name for field in fields(Preprocess))
LISTING = "`headstart backbones` lists them, and the kinds of names."


def names() -> list[str]:
    """Names of the backbones in the table.

    Examples
    --------
    >>> "torchvision/resnet18" in names()
    True
    """
    return list(table())


def resolve(name: str, *, offline: bool | None = None) -> BackboneSpec:
    """Find what a name means, without loading anything.

    Parameters
    ----------
    name : str
        In the grammar of this module.
    offline : bool, optional
        For ``hf/`` names, whose description is on the hub: open no socket.

    Raises
    ------
    UnknownNameError
        If nothing has that name; the nearest one that exists is named.
    UsageError
        If the name cannot be read, or the model does not fit.
    WeightsNotFoundError
        If the description of an ``hf/`` model is not here and cannot be fetched.

    Examples
    --------
    >>> resolve("resnet18").name
    'torchvision/resnet18'
    >>> spec = resolve("file:dir/w.pth@timm/mobilenetv2_100?pad_type=same&mean=0.5&std=0.5")
    >>> spec.file, spec.architecture, spec.preprocess.mean, spec.model_options
    ('dir/w.pth', 'timm/mobilenetv2_100', (0.5, 0.5, 0.5), (('pad_type', 'same'),))
    """
    if name.startswith("file:"):
        return _file(name, offline)
    plain, _, query = name.partition("?")
    return _with_options(_plain(plain, offline), query)


def _plain(name: str, offline: bool | None) -> BackboneSpec:
    if name in table():
        return table()[name]
    source, slash, rest = name.partition("/")
    if not slash:
        return _bare(name)
    if source == "timm":
        return _timm(rest)
    if source == "hf":
        from headstart.backbones.weights import hub_config

        return _hub(rest, hub_config(rest, offline=offline))
    raise UnknownNameError("backbone", name, [*table(), "timm/...", "hf/..."], listing=LISTING)


def _bare(name: str) -> BackboneSpec:
    """Embedded before torchvision before timm, which is asked last: importing it is slow."""
    for source in ("embedded", "torchvision", "timm"):
        if (full := f"{source}/{name}") in table():
            return table()[full]
    return _timm(name)


def _file(name: str, offline: bool | None) -> BackboneSpec:
    path, at, rest = name.removeprefix("file:").rpartition("@")
    if not at or not path or not rest:
        raise UsageError(
            "Expected `file:path@architecture`, such as file:weights.pth@torchvision/resnet18, "
            f"got {name!r}; do name the architecture after an @."
        )
    like = resolve(rest, offline=offline)
    return replace(
        like,
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


def _with_options(spec: BackboneSpec, query: str) -> BackboneSpec:
    if not query:
        return spec
    given = parse_qsl(query, keep_blank_values=True, strict_parsing=False)
    if until := dict(given).get("until"):
        others = "&".join(one for one in query.split("&") if not one.startswith("until="))
        return _with_options(spec, others).ending(until)
    if until == "":
        raise UsageError(
            f"Expected `until` to name a stage, got nothing in {query!r}; do name one."
        )
    ours = {key: _setting(key, text) for key, text in given if key in PREPROCESS_FIELDS}
    if "crop" in ours and "resize" not in ours:  # keep the share of the picture that is seen
        seen = spec.preprocess.crop / spec.preprocess.resize
        ours["resize"] = round(ours["crop"] / seen)
    theirs = {key: _value(text) for key, text in given if key not in PREPROCESS_FIELDS}
    options = tuple(sorted((dict(spec.model_options) | theirs).items()))
    return replace(
        spec,
        name=f"{spec.name}?{query}",
        preprocess=replace(spec.preprocess, **ours),
        model_options=options,
        stages=() if theirs else spec.stages,
        width=0 if theirs else spec.width,
    )


def _setting(key: str, text: str) -> Any:
    """Read one of ``Preprocess``'s settings; one number stands for all three colours."""
    if key in {"interpolation", "fit"}:
        return text
    try:
        if key in {"resize", "crop"}:
            return int(text)
        if key == "canvas":
            return tuple(int(part) for part in text.split(","))
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"Expected numbers for `{key}`, got {text!r}.") from None
    return numbers * 3 if len(numbers) == 1 else numbers


def _value(text: str) -> Option:
    if text in {"true", "false"}:
        return text == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _timm(name: str) -> BackboneSpec:
    """Ask timm for a model that is not in the table."""
    import timm

    known = {*timm.list_models(), *timm.list_models(pretrained=True)}
    if name not in known:
        raise UnknownNameError("backbone", name, {*names(), *known}, listing=LISTING)
    published = timm.get_pretrained_cfg(name)
    config: dict[str, Any] = vars(published) if published is not None else {}
    repo = config.get("hf_hub_id") or ""
    for row in table().values():
        if row.repo and row.repo == repo:  # the same weights by their full name
            return row
    architecture = name.partition(".")[0]
    return _from_config(f"timm/{name}", architecture, config, repo=repo)


def _hub(repo: str, config: Mapping[str, Any]) -> BackboneSpec:
    """Read the description that timm writes beside a model on the hub."""
    architecture = config.get("architecture")
    if not isinstance(architecture, str):
        raise UsageError(
            f"Expected {repo!r} to be a timm-compatible model, got a config.json without an "
            "`architecture`; do choose a repository that timm can load."
        )
    merged = {**config, **config.get("pretrained_cfg", {})}
    spec = _from_config(f"hf/{repo}", architecture, merged, repo=repo)
    options = tuple(sorted(config.get("model_args", {}).items()))
    return replace(spec, source="hf", model_options=options)


def _from_config(
    name: str, architecture: str, config: Mapping[str, Any], *, repo: str
) -> BackboneSpec:
    url = "" if repo else str(config.get("url") or "")
    file = url.rpartition("/")[2]
    return BackboneSpec(
        name=name,
        source="timm",
        architecture=f"timm/{architecture}",
        preprocess=_timm_preprocess(name, config),
        file="model.safetensors" if repo else file,
        sha256=file.partition(".")[0].rpartition("-")[2] if "-" in file else "",
        repo=repo,
        url=url,
        tag=str(config.get("tag") or ""),
        licence=str(config.get("license") or ""),
    )


def _timm_preprocess(name: str, config: Mapping[str, Any]) -> Preprocess:
    """As timm's own evaluation does it, at the size of the training."""
    channels, height, width = config.get("input_size", (3, 224, 224))
    mode = config.get("crop_mode") or "center"
    if channels != 3 or height != width or mode == "border":
        raise UsageError(
            f"Expected a model of square RGB pictures, got {name!r} with input "
            f"{(channels, height, width)} and crop mode {mode!r}; do choose another one."
        )
    squash = mode == "squash"
    resize = int(height / (config.get("crop_pct") or 0.875))
    return Preprocess(
        resize=max(resize, height),
        crop=height,
        interpolation=config.get("interpolation") or "bicubic",
        mean=tuple(config.get("mean") or IMAGENET[0]),
        std=tuple(config.get("std") or IMAGENET[1]),
        fit="squash" if squash else "crop",
    )
