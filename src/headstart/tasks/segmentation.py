"""Segmentation: which class every pixel of a picture belongs to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from headstart.data.samples import Kind
from headstart.errors import ModelFileError

__all__ = ["Segmentation"]


@dataclass(frozen=True, kw_only=True)
class Segmentation:
    """One class for every pixel.

    Parameters
    ----------
    classes : tuple of str
        In the order of the head's outputs; the background, if there is one, is one of them.

    Examples
    --------
    >>> Segmentation(classes=("background", "leaf")).name
    'segmentation'
    """

    classes: tuple[str, ...]

    name: ClassVar[str] = "segmentation"
    kind: ClassVar[Kind] = "segmentation"

    def as_dict(self) -> dict[str, Any]:
        """The task as plain values, for model.json."""
        return {"name": self.name, **asdict(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Segmentation:
        """Build the task from the plain values of ``as_dict``.

        Raises
        ------
        ModelFileError
            If a value is missing or makes no sense.
        """
        try:
            classes = tuple(map(str, values["classes"]))
        except (KeyError, TypeError) as error:
            raise ModelFileError(f"Expected a segmentation task, got {error!r}.") from error
        if not 1 < len(classes) < 255:
            raise ModelFileError(f"Expected from 2 to 254 classes, got {len(classes)}.")
        return cls(classes=classes)
