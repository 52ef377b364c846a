"""Specification of a backbone: all that is known before its weights are loaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from headstart.data.transforms.preprocess import Preprocess
from headstart.errors import UnknownNameError, UsageError

if TYPE_CHECKING:
    from torch import nn

__all__ = ["IMAGENET", "RGB", "BackboneSpec", "Option", "Origin", "Source", "Stage", "WeightsFile"]

Source = Literal["embedded", "torchvision", "timm", "hf", "other", "file", "module"]
Origin = Literal["path", "cache", "mirror", "hub", "package"]
Option = str | int | float | bool
RGB = tuple[float, float, float]

IMAGENET: tuple[RGB, RGB] = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Means and standard deviations of ImageNet's images."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A part of a backbone that can be run and trained on its own.

    Parameters
    ----------
    name : str
    channels : int
        Of the stage's output: maps (n, channels, h, w), or tokens (n, tokens, channels).
    stride : int
        Pixels of the image per position of the map, or per token.
    """

    name: str
    channels: int
    stride: int


@dataclass(frozen=True, kw_only=True)
class BackboneSpec:
    """Specification of one backbone and its weights.

    Parameters
    ----------
    name : str
        A name that ``resolve`` accepts, such as ``"torchvision/resnet18"``.
    source : {"embedded", "torchvision", "timm", "hf", "other", "file", "module"}
        Origin of the weights; ``other`` stands for the authors of a row in
        ``headstart.backbones.domains``, ``module`` for a network of the user's own.
    architecture : str
        Library and name of the network, such as ``"timm/tf_efficientnet_lite0"``.
    preprocess : Preprocess
        Preprocessing of an image for these weights.
    file : str
        Name of the weights file; a path if ``source`` is ``"file"``; empty if no weights are
        published.
    sha256 : str
        Of that file, in full or the first digits; empty if unknown before the download.
    repo, revision : str
        Repository on the Hugging Face hub, if the file is there.
    url : str
        Address of the file, if it is neither in a repository nor known to torchvision.
    tag : str
        Name of the weights, for an architecture with several.
    data : str
        Dataset that the weights were trained on, if known.
    licence : str
        Licence of the weights, as their publisher states it; empty if not stated.
    megabytes : float
        Size of the file; 0 if unknown.
    stages : tuple of Stage
        Empty if unknown before the network is built.
    width : int
        Number of pooled features; 0 if unknown before the network is built.
    model_options : tuple of (str, value) pairs
        Arguments for the library that builds the network, such as ``("pad_type", "same")``.
    until : str
        Last stage of the backbone, whose output is pooled by the spatial mean; empty for the
        complete network with its own pooling.
    layout : str
        Naming of the tensors in the file, as in ``headstart.backbones.domains``; empty if it is
        that of the library.
    build : callable, optional
        Builds the plain network if it is the user's own; it is never saved. Its
        ``model_options`` are the names of the stages with the submodules that end them.

    Examples
    --------
    >>> preprocess = Preprocess(
    ...     resize=256, crop=224, interpolation="bilinear", mean=(0.5,) * 3, std=(0.5,) * 3
    ... )
    >>> spec = BackboneSpec(
    ...     name="file:w.pth@timm/resnet18",
    ...     source="file",
    ...     architecture="timm/resnet18",
    ...     preprocess=preprocess,
    ... )
    >>> BackboneSpec.from_dict(spec.as_dict()) == spec
    True
    """

    name: str
    source: Source
    architecture: str
    preprocess: Preprocess
    file: str = ""
    sha256: str = ""
    repo: str = ""
    revision: str = "main"
    url: str = ""
    tag: str = ""
    data: str = ""
    licence: str = ""
    megabytes: float = 0.0
    stages: tuple[Stage, ...] = ()
    width: int = 0
    model_options: tuple[tuple[str, Option], ...] = ()
    until: str = ""
    layout: str = ""
    build: Callable[[], nn.Module] | None = field(default=None, compare=False, repr=False)

    def ending_at(self, stage: str) -> Self:
        """Return the specification of the backbone that ends with ``stage``.

        Raises
        ------
        UnknownNameError
            If the stages are known and this is not one of them.

        Examples
        --------
        >>> from headstart.backbones.catalog import resolve
        >>> resolve("resnet18").ending_at("layer3").name, resolve("resnet18?until=layer3").width
        ('torchvision/resnet18?until=layer3', 256)
        """
        names = [stage.name for stage in self.stages]
        if names and stage not in names:
            raise UnknownNameError("stage", stage, names)
        stages = self.stages[: names.index(stage) + 1] if names else ()
        return replace(
            self,
            name=self._name_with({"until": stage}),
            stages=stages,
            width=stages[-1].channels if stages else 0,
            until=stage,
        )

    def resized(self, side: int) -> Self:
        """Return the specification for square images of ``side`` pixels; the crop keeps its share.

        Examples
        --------
        >>> from headstart.backbones.catalog import resolve
        >>> spec = resolve("resnet18").resized(160)
        >>> spec == resolve(spec.name), spec.preprocess.crop, spec.preprocess.resize
        (True, 160, 183)
        """
        resize = round(side * self.preprocess.resize / self.preprocess.crop)
        return replace(
            self,
            name=self._name_with({"crop": side, "resize": resize}),
            preprocess=replace(self.preprocess, crop=side, resize=resize),
        )

    def _name_with(self, options: Mapping[str, Any]) -> str:
        """Return the name with options after the question mark, ``until`` at the end."""
        file, at, rest = self.name.rpartition("@")  # a path may contain question marks
        model, _, query = rest.partition("?")
        pairs = [option for option in query.split("&") if option.partition("=")[0] not in options]
        pairs = sorted(filter(None, pairs), key=lambda pair: pair.startswith("until="))
        new = [f"{key}={value}" for key, value in options.items()]
        is_last = "until" in options or not any(pair.startswith("until=") for pair in pairs)
        pairs = [*pairs, *new] if is_last else [*pairs[:-1], *new, pairs[-1]]
        return f"{file}{at}{model}?{'&'.join(pairs)}"

    def as_dict(self) -> dict[str, Any]:
        """Return a dictionary that JSON can store."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        del values["build"]
        for name in ("until", "layout"):  # earlier releases, which do not know them, can read it
            if not values[name]:
                del values[name]
        return values | {
            "preprocess": self.preprocess.as_dict(),
            "stages": [[stage.name, stage.channels, stage.stride] for stage in self.stages],
            "model_options": dict(self.model_options),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Read the dictionary of ``as_dict``.

        Raises
        ------
        UsageError
            If a value is missing, unknown or invalid.
        """
        try:
            stages = tuple(
                Stage(name=str(name), channels=int(channels), stride=int(stride))
                for name, channels, stride in values["stages"]
            )
            changed = {
                "preprocess": Preprocess.from_dict(values["preprocess"]),
                "stages": stages,
                "model_options": tuple(dict(values["model_options"]).items()),
            }
            return cls(**{**values, **changed, "build": None})
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, UsageError):
                raise
            raise UsageError(
                "Expected a complete description of a backbone, got a damaged one "
                f"({type(error).__name__}: {error}). Copy the model folder again, or train the "
                "model again."
            ) from error


@dataclass(frozen=True, kw_only=True)
class WeightsFile:
    """A local weights file.

    Parameters
    ----------
    path : Path
    sha256 : str
        Of the whole file, computed when the file was located.
    origin : {"path", "cache", "mirror", "hub", "package"}
    """

    path: Path
    sha256: str
    origin: Origin
