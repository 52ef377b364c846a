"""Methods by name: Headstart's own, and those of other packages."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields, is_dataclass
from typing import Any

from headstart import plugins
from headstart.errors import SetupError, UnknownNameError, UsageError
from headstart.methods import METHODS

__all__ = ["find_method", "is_plugin"]

PARTS = ("check", "outline", "expected_seconds", "fit", "resumes", "uses_weights")
"""What a method class has, beside its name and its fields; see `headstart.methods.method`."""


def is_plugin(name: str) -> bool:
    """Whether another package declares a method of this name, which is not Headstart's own.

    >>> is_plugin("finetune")
    False
    """
    return name not in METHODS and plugins.find(plugins.METHODS, name) is not None


def find_method(name: str, *, other_names: Iterable[str] = ()) -> Any:
    """Return the class of a method.

    Parameters
    ----------
    name : str
    other_names : iterable of str
        Other names that are valid where the name was given, for the message.

    Raises
    ------
    UnknownNameError
        If there is no such method.
    UsageError
        If another package declares a name that is Headstart's own, or that of a third package.
    SetupError
        If another package declares the method, but it cannot be imported, or is no method.

    Examples
    --------
    >>> find_method("scratch").__name__
    'Scratch'
    >>> find_method("scrach")
    Traceback (most recent call last):
    headstart.errors.UnknownNameError: Unknown method: 'scrach'. Did you mean 'scratch'?
    """
    plugin = plugins.find(plugins.METHODS, name)
    if name in METHODS:
        if plugin is not None:
            raise UsageError(
                f"The name {name!r} is Headstart's own, but the {plugin} has it too. Remove the "
                f"package (pip uninstall {plugin.package}), or ask its authors for another name."
            )
        return METHODS[name]
    if plugin is None:
        others = [found.name for found in plugins.installed(plugins.METHODS)]
        raise UnknownNameError("method", name, [*METHODS, *others, *other_names])
    kind = plugin.load()
    _require_contract(plugin, kind)
    return kind


def _require_contract(plugin: plugins.Plugin, kind: Any) -> None:
    """Refuse an object that is no method, with the names of the parts that it lacks."""
    is_class = isinstance(kind, type) and is_dataclass(kind)
    lacks = [part for part in PARTS if not hasattr(kind, part)]
    if is_class and "seed" not in {field.name for field in fields(kind)}:
        lacks.append("seed")
    if not is_class or lacks:
        got = f"lacks {', '.join(lacks)}" if is_class else "is no dataclass"
        raise SetupError(
            f"The {plugin} is not a method: {plugin.entry.value} {got}. Ask its authors to follow "
            f"headstart.methods.method.Method, or remove it: pip uninstall {plugin.package}"
        )
    if getattr(kind, "name", None) != plugin.name:
        raise SetupError(
            f"The {plugin} has another name in its code: {getattr(kind, 'name', None)!r}. Ask its "
            f"authors to use one name, or remove it: pip uninstall {plugin.package}"
        )
