"""Methods and backbones of other installed packages, found by their entry points.

A package declares them in its metadata, which `importlib.metadata` reads. Nothing of a package is
imported before one of its names is used.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal

from headstart.errors import SetupError, UsageError

__all__ = ["BACKBONES", "METHODS", "Group", "Plugin", "find", "installed"]

Group = Literal["headstart.methods", "headstart.backbones"]
METHODS: Group = "headstart.methods"
BACKBONES: Group = "headstart.backbones"

KINDS: Mapping[str, str] = {METHODS: "method", BACKBONES: "backbone"}


@dataclass(frozen=True, kw_only=True)
class Plugin:
    """A method or backbone of another package. It is imported by ``load`` only.

    Parameters
    ----------
    kind : str
        ``method`` or ``backbone``.
    name : str
        Name of the entry point.
    package : str
        Name of the package, in the form that package indexes use: ``acme-vision``.
    version : str
    entry : EntryPoint
    """

    kind: str
    name: str
    package: str
    version: str
    entry: EntryPoint

    def __str__(self) -> str:
        return f"{self.kind} {self.name} of the package {self.package} {self.version}"

    @property
    def full_name(self) -> str:
        """Name with its package, such as ``acme-vision/pathnet``."""
        return f"{self.package}/{self.name}"

    def load(self) -> Any:
        """Import the object of the entry point.

        Raises
        ------
        SetupError
            If it cannot be imported.
        """
        try:
            return self.entry.load()
        except Exception as error:  # code of another package: any exception is possible
            raise SetupError(
                f"The {self} cannot be imported from {self.entry.value} "
                f"({type(error).__name__}: {error}). Install a version of {self.package} that "
                f"works here, or remove it: pip uninstall {self.package}"
            ) from error


def installed(group: Group) -> tuple[Plugin, ...]:
    """List the plug-ins of all installed packages, by name. None is imported.

    Examples
    --------
    >>> [plugin.name for plugin in installed("headstart.methods")]
    []
    """
    found = []
    for entry in entry_points(group=group):
        package = entry.dist
        if package is not None and package.name:
            name = re.sub(r"[-_.]+", "-", package.name).lower()
            found.append(
                Plugin(
                    kind=KINDS[group],
                    name=entry.name,
                    package=name,
                    version=package.version,
                    entry=entry,
                )
            )
    return tuple(sorted(found, key=lambda plugin: (plugin.name, plugin.package)))


def find(group: Group, name: str) -> Plugin | None:
    """Find the plug-in with a name, or with a full name such as ``acme-vision/pathnet``.

    Raises
    ------
    UsageError
        If several packages declare the name.

    Examples
    --------
    >>> find("headstart.backbones", "resnet18") is None
    True
    """
    found = [plugin for plugin in installed(group) if name in {plugin.name, plugin.full_name}]
    if len(found) > 1:
        packages = " and ".join(f"{plugin.package} {plugin.version}" for plugin in found)
        action = (
            f"Pass the full name, such as {found[0].full_name}."
            if group == BACKBONES
            else f"Remove one of them, such as: pip uninstall {found[0].package}"
        )
        raise UsageError(
            f"The name {name!r} is declared by several packages as a {KINDS[group]}: {packages}. "
            f"{action}"
        )
    return found[0] if found else None
