"""Exported files: their description as text entries, and the runtimes that read them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headstart.data.transforms.preprocess import Preprocess
from headstart.errors import MissingExtraError, ModelFileError, UsageError
from headstart.models.tasks import ClassificationTask
from headstart.runtime import cores

__all__ = [
    "FORMAT",
    "INPUTS",
    "PREFIX",
    "Run",
    "open_graph",
    "read_description",
    "runtime_name",
    "suffix_of",
    "to_entries",
]

FORMAT = "headstart-export"
VERSION = 1
PREFIX = "headstart/"
"""Beginning of the names of the entries in a file's metadata."""
INPUTS = ("image", "batch")

Run = Callable[[NDArray[Any]], NDArray[Any]]
"""From an image or a batch to the file's output, one row for each image."""

_READERS = {".onnx": "ONNX Runtime", ".xml": "OpenVINO"}


def suffix_of(path: Path) -> str:
    """Return the ending of an exported file's name; empty for any other name.

    >>> suffix_of(Path("model.ONNX")), suffix_of(Path("runs/photos.v2"))
    ('.onnx', '')
    """
    suffix = path.suffix.lower()
    return suffix if suffix in _READERS else ""


def to_entries(description: Mapping[str, Any]) -> dict[str, str]:
    """Write a description as text entries, for the metadata of a file.

    >>> to_entries({"input": "image"})
    {'headstart/format': '"headstart-export"', 'headstart/version': '1', \
'headstart/input': '"image"'}
    """
    values = {"format": FORMAT, "version": VERSION, **description}
    return {f"{PREFIX}{name}": json.dumps(value, allow_nan=False) for name, value in values.items()}


def read_description(path: Path, entries: Mapping[str, str]) -> dict[str, Any]:
    """Read what ``to_entries`` wrote; task and preprocessing become objects.

    Parameters
    ----------
    path : Path
        For messages.
    entries : mapping of str to str
        Metadata of the file.

    Raises
    ------
    ModelFileError
        If an entry is missing or invalid.
    """
    own = {name.removeprefix(PREFIX): v for name, v in entries.items() if name.startswith(PREFIX)}
    try:
        values = {name: json.loads(value) for name, value in own.items()}
    except (ValueError, RecursionError) as error:
        raise _damaged_error(path, f"an entry is no JSON ({error})") from error
    if values.get("format") != FORMAT:
        raise ModelFileError(
            f"{path} has no description of Headstart (entry {PREFIX}format). Pass a file that "
            "`headstart export` wrote."
        )
    if values.get("version") != VERSION:
        raise ModelFileError(
            f"{path} has version {values.get('version')!r:.50} of the description, expected "
            f"{VERSION}. Install the version of Headstart that wrote it, or export the model again."
        )
    if values.get("input") not in INPUTS or not isinstance(values.get("record"), dict):
        raise _damaged_error(path, f"input {values.get('input')!r:.50} or its record is invalid")
    try:
        values["preprocessing"] = Preprocess.from_dict(values["preprocessing"])
        values["task"] = ClassificationTask.from_dict(values["task"])
    except (AttributeError, KeyError, TypeError, ValueError, UsageError) as error:
        raise _damaged_error(path, repr(error)) from error
    return values


def runtime_name(path: Path) -> str:
    """Return the name and version of the runtime that reads a file."""
    from importlib.metadata import version

    name = _READERS[suffix_of(path)]
    return f"{name} {version(name.replace(' ', '').lower())}"


def open_graph(path: Path) -> tuple[Run, dict[str, str]]:
    """Open an exported file with its runtime, and read its metadata.

    Raises
    ------
    ModelFileError
        If the runtime cannot read the file.
    MissingExtraError
        If the runtime is not installed.
    """
    return _open_onnx(path)


def _open_onnx(path: Path) -> tuple[Run, dict[str, str]]:
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingExtraError("onnxruntime", extra="onnx") from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # errors come as exceptions
    options.intra_op_num_threads = cores()
    try:
        session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
        metadata = dict(session.get_modelmeta().custom_metadata_map)
    except Exception as error:  # its exceptions have no common base
        first_line = str(error).split("\n", 1)[0]
        raise _damaged_error(path, f"ONNX Runtime cannot read it ({first_line})") from error
    name = session.get_inputs()[0].name

    def run(pixels: NDArray[Any]) -> NDArray[Any]:
        return np.asarray(session.run(None, {name: pixels})[0])

    return run, metadata


def _damaged_error(path: Path, reason: str) -> ModelFileError:
    return ModelFileError(f"{path} is damaged: {reason}. Export the model again.")
