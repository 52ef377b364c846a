"""Backbones of other packages, by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from headstart import plugins
from headstart.backbones.catalog import table
from headstart.errors import HeadstartError, SetupError, UsageError

if TYPE_CHECKING:
    from torch import nn

__all__ = ["build_plugin", "find_plugin"]

SOURCES = ("embedded", "torchvision", "timm", "hf", "module")
"""Sources of Headstart's own names, ``source/model``."""


def find_plugin(name: str) -> plugins.Plugin | None:
    """Find the plug-in that a backbone's name means; None for Headstart's own names.

    Parameters
    ----------
    name : str
        ``pathnet`` or ``acme-vision/pathnet``, with or without options.

    Raises
    ------
    UsageError
        If a name without package is also one of Headstart's, or of another package.

    Examples
    --------
    >>> find_plugin("torchvision/resnet18") is None
    True
    """
    model = name.partition("?")[0]
    source, slash, _ = model.partition("/")
    if name.startswith("file:") or (slash and source in SOURCES):
        return None
    plugin = plugins.find(plugins.BACKBONES, model)
    if plugin is None or slash:
        return plugin
    if own := _own_name(model):
        raise UsageError(
            f"The backbone {model!r} is ambiguous: Headstart has {own}, and the package "
            f"{plugin.package} has {plugin.full_name}. Pass one of these two names."
        )
    return plugin


def _own_name(model: str) -> str:
    """Full name of Headstart's backbone with a short name; empty if there is none."""
    for source in ("embedded", "torchvision", "timm"):
        if f"{source}/{model}" in table():
            return f"{source}/{model}"
    import timm

    return f"timm/{model}" if timm.is_model(model) else ""


def build_plugin(plugin: plugins.Plugin) -> nn.Module:
    """Call the function of a backbone's entry point; a network is returned as it is.

    Returns
    -------
    torch.nn.Module
        With its weights; it may be a `headstart.Backbone`.

    Raises
    ------
    SetupError
        If it cannot be imported or called, or returns no network.
    """
    made: Any = plugin.load()
    if not hasattr(made, "named_parameters") or isinstance(made, type):
        if not callable(made):
            raise _not_usable(plugin, f"it is a {type(made).__name__}, not a function")
        try:
            made = made()
        except HeadstartError as error:
            raise _not_usable(plugin, str(error)) from error
        except Exception as error:  # code of another package: any exception is possible
            raise _not_usable(plugin, f"{type(error).__name__}: {error}") from error
    if not hasattr(made, "named_parameters"):
        raise _not_usable(plugin, f"it returned a {type(made).__name__}, not an nn.Module")
    network: nn.Module = made
    return network


def _not_usable(plugin: plugins.Plugin, reason: str) -> SetupError:
    return SetupError(
        f"The {plugin} cannot be built by {plugin.entry.value} ({reason}). Install a version of "
        f"{plugin.package} that works here, or choose another backbone."
    )
