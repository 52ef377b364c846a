"""Detection: which objects a picture shows, and where."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from headstart.data.samples import Kind
from headstart.errors import ModelFileError

__all__ = ["Detection"]


@dataclass(frozen=True, kw_only=True)
class Detection:
    """A box, a class and a score for every object.

    Parameters
    ----------
    classes : tuple of str
        Of objects; the background is none of them.
    threshold : float
        Objects are named from this score on. Metrics read all scores.

    Examples
    --------
    >>> Detection(classes=("cell",)).threshold
    0.5
    """

    classes: tuple[str, ...]
    threshold: float = 0.5

    name: ClassVar[str] = "detection"
    kind: ClassVar[Kind] = "detection"

    def as_dict(self) -> dict[str, Any]:
        """The task as plain values, for model.json."""
        return {"name": self.name, **asdict(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Detection:
        """Build the task from the plain values of ``as_dict``.

        Raises
        ------
        ModelFileError
            If a value is missing or makes no sense.
        """
        try:
            classes, threshold = tuple(map(str, values["classes"])), float(values["threshold"])
        except (KeyError, TypeError, ValueError) as error:
            raise ModelFileError(f"Expected a detection task, got {error!r}.") from error
        if not classes or not 0 <= threshold <= 1:
            raise ModelFileError(f"Expected a detection task that makes sense, got {values}.")
        return cls(classes=classes, threshold=threshold)
