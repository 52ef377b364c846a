"""All errors that Headstart raises on purpose, in one tree.

HeadstartError                      exit code
├── UsageError (ValueError)         1   an invalid argument or combination of arguments
│   └── UnknownNameError            1   an unknown name; the message suggests the nearest one
├── DataError                       2   a problem with the images, labels, splits or files
│   ├── LayoutError                 2   a folder or manifest with an unknown layout
│   ├── UnreadableImageError        2   an image that cannot be decoded
│   ├── LeakError                   2   the same image on both sides of a split
│   └── ModelFileError              2   a model folder that is damaged or unsafe to load
├── ExportError                     2   a model that cannot be exported, or a file that disagrees
├── LeadError                       4   a model that is not better than the baselines, as required
├── TrainingError                   1   a failed training, such as a loss of NaN
├── RequestError                    1   a request that the server refuses
└── SetupError                      3   a problem with the machine: weights, packages, disk
    ├── WeightsNotFoundError        3   weights that are neither on disk nor downloadable
    ├── WeightsMismatchError        3   weights with an unexpected hash or unexpected shapes
    └── MissingExtraError           3   an optional package that is not installed

The class shows where to look for the cause: a UsageError in the call or command, a DataError in
the dataset or a model folder, a TrainingError in the hyper-parameters, a SetupError on the
machine. To catch all of them, catch HeadstartError. On the command line the program ends with
the exit code in the table.

A message first names what is wrong and its value, then what to do about it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches

__all__ = [
    "DataError",
    "ExportError",
    "HeadstartError",
    "LayoutError",
    "LeadError",
    "LeakError",
    "MissingExtraError",
    "ModelFileError",
    "RequestError",
    "SetupError",
    "TrainingError",
    "UnknownNameError",
    "UnreadableImageError",
    "UsageError",
    "WeightsMismatchError",
    "WeightsNotFoundError",
]


MOST_CHARACTERS = 1_200
"""Longest line of a message. A value in it comes from a file and may have megabytes."""


class HeadstartError(Exception):
    """Base of all errors that Headstart raises on purpose.

    >>> len(str(HeadstartError(f"Expected a number, got {'9' * 100_000}. Correct it."))) < 200
    True
    """

    exit_code = 1

    def __init__(self, message: str = "", *others: object) -> None:
        super().__init__(_limit(str(message)), *others)


def _limit(message: str) -> str:
    """Shorten long lines: long words first, then the middle; the advice at the end stays.

    A list with one line for each file stays whole.
    """
    return "\n".join(map(_limit_line, message.split("\n")))


def _limit_line(line: str) -> str:
    if len(line) <= MOST_CHARACTERS:
        return line
    shorter = re.sub(r"(\S{60})\S{140,}(\S{20})", r"\1[...]\2", line)
    if len(shorter) <= MOST_CHARACTERS:
        return shorter
    return f"{shorter[: MOST_CHARACTERS * 2 // 3]} [...] {shorter[-MOST_CHARACTERS // 4 :]}"


class UsageError(HeadstartError, ValueError):
    """An invalid argument or an invalid combination of arguments."""

    exit_code = 1


class UnknownNameError(UsageError):
    """An unknown name. The message suggests the nearest known one.

    Parameters
    ----------
    kind : str
        What the name stands for, such as ``"backbone"``.
    name : str
        The unknown name.
    choices : iterable of str
        The known names.
    listing : str, optional
        Sentence that explains how to list the names. It replaces the first known names where
        none is similar and there are too many to print.

    Examples
    --------
    >>> str(UnknownNameError("backbone", "resnet5O", ["resnet18", "resnet50"]))
    "Unknown backbone: 'resnet5O'. Did you mean 'resnet50'?"
    >>> str(UnknownNameError("device", "xla", ["cpu", "cuda"]))
    "Unknown device: 'xla'. Use one of: cpu, cuda."
    """

    def __init__(self, kind: str, name: str, choices: Iterable[str], *, listing: str = "") -> None:
        names = sorted(choices)
        nearest = get_close_matches(name, names, n=1, cutoff=0.5)
        if nearest:
            hint = f"Did you mean {nearest[0]!r}?"
        else:
            first_names = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
            hint = listing or f"Use one of: {first_names}."
        super().__init__(f"Unknown {kind}: {name!r}. {hint}")


class DataError(HeadstartError):
    """A problem with the images, labels, splits or files of the user."""

    exit_code = 2


class LayoutError(DataError):
    """A folder or manifest with an unknown layout."""


class UnreadableImageError(DataError):
    """An image that cannot be decoded."""


class LeakError(DataError):
    """The same image, or nearly the same, on both sides of a split."""


class ModelFileError(DataError):
    """A model folder that is damaged, written by another program, or unsafe to load."""


class ExportError(HeadstartError):
    """A model that cannot be exported, or a file whose predictions differ from the model's."""

    exit_code = 2


class TrainingError(HeadstartError):
    """A failed training, such as a loss that is no longer a finite number."""


class RequestError(HeadstartError):
    """A request that the server refuses.

    Parameters
    ----------
    message : str
    status : int
        HTTP status of the response.
    retry_after : int or None
        Seconds after which the client may try again.

    Examples
    --------
    >>> RequestError("The body is empty. Send an image.").status
    400
    """

    def __init__(self, message: str, *, status: int = 400, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after


class LeadError(HeadstartError):
    """A model that is not significantly better than every baseline, although this was required."""

    exit_code = 4


class SetupError(HeadstartError):
    """A problem with the machine: missing weights, a missing package, no disk space."""

    exit_code = 3


class WeightsNotFoundError(SetupError):
    """Weights that are neither on disk nor downloadable."""


class WeightsMismatchError(SetupError):
    """Weights with an unexpected hash, unexpected tensor names or shapes."""


class MissingExtraError(SetupError):
    """An optional package that is not installed.

    Parameters
    ----------
    package : str
        The missing package.
    extra : str or None
        The extra of Headstart that installs it. None where no extra does.

    Examples
    --------
    >>> str(MissingExtraError("pyarrow", extra="data"))
    "The package 'pyarrow' is not installed. Run: pip install 'headstart[data]'"
    """

    def __init__(self, package: str, *, extra: str | None) -> None:
        requirement = package if extra is None else f"'headstart[{extra}]'"
        super().__init__(
            f"The package {package!r} is not installed. Run: pip install {requirement}"
        )
