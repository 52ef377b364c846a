"""The contract of a task: what is asked of a picture, as a value."""

from __future__ import annotations

from typing import Any, Protocol

from headstart.data.samples import Kind

__all__ = ["Task"]


class Task(Protocol):
    """What is asked of a picture.

    A task is a value: it knows the names of its classes and how sure it may be, and holds no
    parameters that are trained by gradient.
    """

    @property
    def name(self) -> str:
        """The task's name in files and on the command line."""
        ...

    @property
    def kind(self) -> Kind:
        """The kind of labels that it learns from."""
        ...

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the head's outputs."""
        ...

    def as_dict(self) -> dict[str, Any]:
        """The task as plain values, for model.json."""
        ...
