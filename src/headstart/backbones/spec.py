"""What a backbone is, before anything of it is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, Self

from headstart.data.transforms.preprocess import Preprocess
from headstart.errors import UnknownNameError, UsageError

__all__ = ["BackboneSpec", "Option", "Origin", "Source", "Stage", "WeightsFile"]

Source = Literal["embedded", "torchvision", "timm", "hf", "file"]
Origin = Literal["path", "cache", "mirror", "hub", "package"]
Option = str | int | float | bool


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A part of a backbone that can be run, cut and trained on its own.

    Parameters
    ----------
    name : str
    channels : int
        Of what the stage gives: maps (n, channels, h, w), or tokens (n, tokens, channels).
    stride : int
        Pixels of the image for one place of the map, or for one token's patch.
    """

    name: str
    channels: int
    stride: int


@dataclass(frozen=True, kw_only=True)
class BackboneSpec:
    """One backbone with its weights, by name: all that can be said without loading it.

    Parameters
    ----------
    name : str
        As it can be given to ``resolve`` again, such as ``"torchvision/resnet18"``.
    source : {"embedded", "torchvision", "timm", "hf", "file"}
        Where the weights come from.
    architecture : str
        Library and name of the network, such as ``"timm/tf_efficientnet_lite0"``.
    preprocess : Preprocess
        What the weights expect of an image.
    file : str
        Name of the weights' file; a path when ``source`` is ``"file"``; empty when no weights
        are published.
    sha256 : str
        Of that file, in full or its first digits; empty when not known before download.
    repo, revision : str
        Repository on the Hugging Face hub, when that is where the file is.
    url : str
        Address of the file, when it is neither in a repository nor known to torchvision.
    tag : str
        Which of the architecture's published weights.
    data : str
        What the weights were trained on, where known.
    licence : str
        Of the weights, as stated by who published them; empty when not stated.
    megabytes : float
        Size of the file; 0 when not known.
    stages : tuple of Stage
        Where known without building the network; else empty.
    width : int
        Of the pooled features; 0 when not known without building the network.
    model_options : tuple of (str, value) pairs
        Given to the library when the network is built, such as ``("pad_type", "same")``.
    until : str
        The last stage that is part of it, pooled by the mean over places; empty for all of the
        network, pooled as it was published.

    Examples
    --------
    >>> expects = Preprocess(
    ...     resize=256, crop=224, interpolation="bilinear", mean=(0.5,) * 3, std=(0.5,) * 3
    ... )
    >>> spec = BackboneSpec(
    ...     name="file:w.pth@timm/resnet18",
    ...     source="file",
    ...     architecture="timm/resnet18",
    ...     preprocess=expects,
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

    def ending(self, stage: str) -> Self:
        """Return the backbone that ends behind a stage.

        Raises
        ------
        UnknownNameError
            If its stages are known, and this is none of them.

        Examples
        --------
        >>> from headstart.backbones.catalog import resolve
        >>> resolve("resnet18").ending("layer3").name, resolve("resnet18?until=layer3").width
        ('torchvision/resnet18?until=layer3', 256)
        """
        names = [known.name for known in self.stages]
        if names and stage not in names:
            raise UnknownNameError("stage", stage, names)
        kept = self.stages[: names.index(stage) + 1] if names else ()
        file, at, rest = self.name.rpartition("@")
        plain, _, query = rest.partition("?")
        others = [one for one in query.split("&") if one and not one.startswith("until=")]
        return replace(
            self,
            name=f"{file}{at}{plain}?{'&'.join([*others, f'until={stage}'])}",
            stages=kept,
            width=kept[-1].channels if kept else 0,
            until=stage,
        )

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        if not self.until:  # models of whole networks are read by earlier releases too
            del values["until"]
        return values | {
            "preprocess": self.preprocess.as_dict(),
            "stages": [[stage.name, stage.channels, stage.stride] for stage in self.stages],
            "model_options": dict(self.model_options),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Read what ``as_dict`` wrote.

        Raises
        ------
        UsageError
            If a value is missing, unknown or cannot be meant.
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
            return cls(**{**values, **changed})
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, UsageError):
                raise
            raise UsageError(
                f"Expected a backbone's description, got one that is damaged ({error})."
            ) from error


@dataclass(frozen=True, kw_only=True)
class WeightsFile:
    """A file of weights that is on this machine.

    Parameters
    ----------
    path : Path
    sha256 : str
        Of the whole file, computed when it was found.
    origin : {"path", "cache", "mirror", "hub", "package"}
    """

    path: Path
    sha256: str
    origin: Origin
