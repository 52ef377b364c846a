"""Every error a user can meet, in one tree.

HeadstartError                      exit code
├── UsageError (ValueError)         1   an argument or a combination of arguments
│   └── UnknownNameError            1   a name that is in no table; suggests the nearest one
├── DataError                       2   the images, labels, splits or files given
│   ├── LayoutError                 2   a folder or manifest that is not recognised
│   ├── UnreadableImageError        2   an image that cannot be decoded
│   ├── LeakError                   2   the same image on both sides of a split
│   └── ModelFileError              2   a model folder that is damaged, foreign or hostile
├── TrainingError                   1   a training that went wrong, such as a loss of NaN
└── SetupError                      3   this machine: weights, extras, disk
    ├── WeightsNotFoundError        3   no weights in any place looked at
    ├── WeightsMismatchError        3   weights whose hash or shapes are not the expected ones
    └── MissingExtraError           3   an optional dependency that is not installed

Messages read "Expected ..., got ...; do ...".
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

__all__ = [
    "DataError",
    "HeadstartError",
    "LayoutError",
    "LeakError",
    "MissingExtraError",
    "ModelFileError",
    "SetupError",
    "TrainingError",
    "UnknownNameError",
    "UnreadableImageError",
    "UsageError",
    "WeightsMismatchError",
    "WeightsNotFoundError",
]


class HeadstartError(Exception):
    """Base of all errors that Headstart raises on purpose."""

    exit_code = 1


class UsageError(HeadstartError, ValueError):
    """An argument, or a combination of arguments, that cannot be meant."""

    exit_code = 1


class UnknownNameError(UsageError):
    """A name that is in no table.

    Parameters
    ----------
    kind : str
        What was being named, such as ``"backbone"``.
    name : str
        The name that was given.
    known : iterable of str
        The names that exist.
    listing : str, optional
        What to say where none is near, instead of the first names: there are too many.

    Examples
    --------
    >>> str(UnknownNameError("backbone", "resnet5O", ["resnet18", "resnet50"]))
    "Expected `backbone` to be a known name, got 'resnet5O'; did you mean 'resnet50'?"
    """

    def __init__(self, kind: str, name: str, known: Iterable[str], *, listing: str = "") -> None:
        names = sorted(known)
        nearest = get_close_matches(name, names, n=1, cutoff=0.5)
        if nearest:
            hint = f"did you mean {nearest[0]!r}?"
        else:
            shown = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
            hint = listing or f"known names are {shown}."
        super().__init__(f"Expected `{kind}` to be a known name, got {name!r}; {hint}")


class DataError(HeadstartError):
    """The images, labels, splits or files that were given."""

    exit_code = 2


class LayoutError(DataError):
    """A folder or manifest whose layout is not recognised."""


class UnreadableImageError(DataError):
    """An image that cannot be decoded."""


class LeakError(DataError):
    """The same image, or nearly the same, on both sides of a split."""


class ModelFileError(DataError):
    """A model folder that is damaged, foreign or hostile."""


class TrainingError(HeadstartError):
    """A training that went wrong: its loss is no longer a number."""


class SetupError(HeadstartError):
    """Something this machine lacks: weights, an extra, disk space."""

    exit_code = 3


class WeightsNotFoundError(SetupError):
    """Weights that are in none of the places looked at."""


class WeightsMismatchError(SetupError):
    """Weights whose hash, names or shapes are not the expected ones."""


class MissingExtraError(SetupError):
    """An optional dependency that is not installed.

    Parameters
    ----------
    package : str
    extra : str or None
        Which extra brings it; None for what is used where it is there, and never brought.

    Examples
    --------
    >>> str(MissingExtraError("pyarrow", extra="data"))
    "Expected the package 'pyarrow' to be installed, got none; do: pip install 'headstart[data]'"
    """

    def __init__(self, package: str, *, extra: str | None) -> None:
        what = package if extra is None else f"'headstart[{extra}]'"
        super().__init__(
            f"Expected the package {package!r} to be installed, got none; do: pip install {what}"
        )
