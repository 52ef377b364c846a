"""Backbones that a config of timm describes: its own records, and config.json files on a hub."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from headstart.backbones.spec import IMAGENET, BackboneSpec
from headstart.data.transforms.preprocess import Preprocess
from headstart.errors import UsageError

__all__ = ["spec_from_config", "spec_from_hub_config"]


def spec_from_hub_config(repo: str, config: Mapping[str, Any]) -> BackboneSpec:
    """Read the config.json that timm writes for a model on the hub.

    Raises
    ------
    UsageError
        If it names no architecture, or has a value that no model has.

    Examples
    --------
    >>> config = {"architecture": "resnet18", "pretrained_cfg": {"input_size": [3, 64, 64]}}
    >>> spec_from_hub_config("org/model", config).preprocess.crop
    64
    """
    architecture = config.get("architecture")
    if not isinstance(architecture, str):
        raise UsageError(
            f"Expected {repo!r} to be a timm-compatible model, got a config.json without an "
            "`architecture`. Choose a repository that timm can load."
        )
    _require_valid_config(repo, config)
    merged = {**config, **config.get("pretrained_cfg", {})}
    spec = spec_from_config(f"hf/{repo}", architecture, merged, repo=repo)
    options = tuple(sorted(config.get("model_args", {}).items()))
    return replace(spec, source="hf", model_options=options)


def _require_valid_config(repo: str, config: Mapping[str, Any]) -> None:
    """Refuse values of a hub's config.json that no model has: anybody can write that file."""
    published = config.get("pretrained_cfg", {})
    options = config.get("model_args", {})
    problems: list[str] = []
    if not isinstance(published, Mapping) or not isinstance(options, Mapping):
        problems.append("pretrained_cfg or model_args is not an object")
    else:
        values = {**config, **published}
        problems += [
            f"{name} {values[name]!r:.100}"
            for name, is_valid in CONFIG_CHECKS.items()
            if values.get(name) is not None and not is_valid(values[name])
        ]
        problems += [
            f"model_args {name!r:.100}"
            for name, value in options.items()
            if not re.fullmatch("[a-z][a-z0-9_]{0,40}", name)
            or name.startswith(LOADING_OPTIONS)
            or not _is_plain(value)
        ]
    if problems:
        raise UsageError(
            f"The config.json of {repo!r} has invalid values: {', '.join(problems[:3])}. Choose "
            "another model, or tell the owner of the repository."
        )


LOADING_OPTIONS = ("pretrained", "checkpoint", "cache_dir", "features_only", "scriptable")
"""Beginnings of timm's options that decide from where files are read."""


def _is_plain(value: Any) -> bool:
    """Whether a value is a number, a short text, or a short list of them."""
    if isinstance(value, list):
        return len(value) <= 64 and all(_is_plain(entry) for entry in value)
    return value is None or (isinstance(value, bool | int | float | str) and len(str(value)) <= 100)


def _are_numbers(value: Any, low: float, high: float) -> bool:
    """Whether a value is a list of three numbers in a range."""
    return (
        isinstance(value, list | tuple)
        and len(value) == 3
        and all(isinstance(x, int | float) and low <= x <= high for x in value)
    )


CONFIG_CHECKS: Mapping[str, Callable[[Any], bool]] = {
    "architecture": lambda value: bool(re.fullmatch(r"\w{1,100}", value)),
    "input_size": lambda value: (
        _are_numbers(value, 1, 4096) and all(isinstance(x, int) for x in value)
    ),
    "mean": lambda value: _are_numbers(value, -1000, 1000),
    "std": lambda value: _are_numbers(value, 1e-6, 1000),
    "crop_pct": lambda value: isinstance(value, int | float) and 0.1 <= value <= 1.0,
    "crop_mode": lambda value: value in {"center", "squash", "border"},
    "interpolation": lambda value: value in {"nearest", "bilinear", "bicubic", "box", "lanczos"},
    "tag": _is_plain,
    "license": _is_plain,
}
"""What each value of a hub's config.json may be."""


def spec_from_config(
    name: str, architecture: str, config: Mapping[str, Any], *, repo: str
) -> BackboneSpec:
    """Return the backbone that a config of timm describes; ``repo`` is its place on the hub.

    Examples
    --------
    >>> spec_from_config("timm/x", "resnet18", {"license": "mit"}, repo="").licence
    'mit'
    """
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
    """Return timm's own preprocessing for evaluation, at the image size of the training."""
    channels, height, width = config.get("input_size", (3, 224, 224))
    mode = config.get("crop_mode") or "center"
    if channels != 3 or height != width or mode == "border":
        raise UsageError(
            f"Expected a model of square RGB images, got {name!r} with input "
            f"{(channels, height, width)} and crop mode {mode!r}. Choose another model; "
            "`headstart backbones` lists some."
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
