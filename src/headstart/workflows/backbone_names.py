"""Names of the backbones of a run, and networks of the user's own in place of names."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Sequence

from headstart.backbones.frozen import FrozenBackbone, name_of, to_backbone
from headstart.errors import UsageError

__all__ = ["AUTO", "DEFAULT_BACKBONE", "are_backbones", "parse_backbones", "parse_names"]

DEFAULT_BACKBONE = "embedded/efficientnet_lite0"

AUTO = "auto"
"""Value of ``--backbones``: the backbones on this machine."""


def are_backbones(value: object) -> bool:
    """Whether a value is a sequence of names and networks.

    >>> are_backbones(["resnet18"]), are_backbones("resnet18")
    (True, False)
    """
    if isinstance(value, str) or not isinstance(value, Sequence):
        return False
    return all(isinstance(name, str | FrozenBackbone) for name in value)


def parse_names(text: str) -> tuple[str, ...]:
    """Split names at commas; a number after a comma belongs to the options of the name before it.

    Examples
    --------
    >>> parse_names("resnet18?mean=0.5,0.5,0.5&std=0.2, vgg16")
    ('resnet18?mean=0.5,0.5,0.5&std=0.2', 'vgg16')
    """
    names: list[str] = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        if names and "?" in names[-1] and _is_number(part.partition("&")[0]):
            names[-1] += f",{part}"
        else:
            names.append(part)
    return tuple(names)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def parse_backbones(
    backbone: str | FrozenBackbone, backbones: str | Iterable[str | FrozenBackbone]
) -> tuple[str | FrozenBackbone, tuple[str | FrozenBackbone, ...]]:
    """Return the first backbone of a run and its rivals, from the two settings.

    Raises
    ------
    UsageError
        If both are set, or ``backbones`` has other values than names.

    Examples
    --------
    >>> parse_backbones("resnet18", "")
    ('resnet18', ())
    >>> parse_backbones("embedded/efficientnet_lite0", "vgg16,resnet18")
    ('vgg16', ('resnet18',))
    >>> parse_backbones("embedded/efficientnet_lite0", "auto")
    ('embedded/efficientnet_lite0', ('auto',))
    >>> parse_backbones("embedded/efficientnet_lite0", ["vgg16", "resnet18"])
    ('vgg16', ('resnet18',))
    """
    names = _backbone_names(backbones)
    if not backbones:
        return backbone, ()
    if AUTO in names and len(names) > 1:
        raise UsageError(
            f"--backbones is {','.join(map(name_of, names))}, but {AUTO} stands alone: it takes "
            f"the backbones on this machine. Pass --backbones {AUTO}, or names only."
        )
    if backbone != DEFAULT_BACKBONE:
        names_text = backbones if isinstance(backbones, str) else ",".join(map(name_of, names))
        raise UsageError(
            f"--backbone and --backbones are both set, to {backbone} and {names_text}. Pass "
            f"--backbones {backbone},{names_text}."
        )
    if AUTO in names:
        return backbone, (AUTO,)
    first, *rivals = names or (backbone,)
    return first, tuple(rivals)


def _backbone_names(backbones: object) -> tuple[str | FrozenBackbone, ...]:
    if isinstance(backbones, str):
        return parse_names(backbones)
    if isinstance(backbones, Iterable):
        names = tuple(to_backbone(backbone) for backbone in backbones)
        if are_backbones(names):
            return names
    raise UsageError(
        f"`backbones` must be a list of names, got {reprlib.repr(backbones)}. Pass a list such as "
        "backbones=['resnet18', 'vgg16']."
    )
