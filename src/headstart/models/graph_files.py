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

_RUNTIMES = {
    ".onnx": ("ONNX Runtime", "onnxruntime"),
    ".xml": ("OpenVINO", "openvino"),
    ".pt2": ("PyTorch", "torch"),
}
"""Runtime and its package, by the ending of the file."""


def suffix_of(path: Path) -> str:
    """Return the ending of an exported file's name; empty for any other name.

    >>> suffix_of(Path("model.ONNX")), suffix_of(Path("runs/photos.v2"))
    ('.onnx', '')
    """
    suffix = path.suffix.lower()
    return suffix if suffix in _RUNTIMES else ""


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

    name, package = _RUNTIMES[suffix_of(path)]
    return f"{name} {version(package)}"


def open_graph(path: Path) -> tuple[Run, dict[str, str]]:
    """Open an exported file with its runtime, and read its metadata.

    Raises
    ------
    ModelFileError
        If the runtime cannot read the file.
    MissingExtraError
        If the runtime is not installed.
    UsageError
        If it is a .pt2 file.
    """
    suffix = suffix_of(path)
    if suffix == ".pt2":
        raise UsageError(
            f"{path} is a file for torch.export.load, which may run code of the file, so Headstart "
            "does not open it. Pass the model folder, or a file of --to onnx or openvino."
        )
    return _open_openvino(path) if suffix == ".xml" else _open_onnx(path)


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


def _open_openvino(path: Path) -> tuple[Run, dict[str, str]]:
    from headstart.features.graphs import has_openvino, openvino_core

    if not has_openvino():
        raise MissingExtraError("openvino", extra="openvino")
    section = PREFIX.rstrip("/")
    # Some processors compute in bfloat16 by default.
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": cores()}
    try:
        graph = openvino_core().read_model(path)
        has_entries = graph.has_rt_info([section])
        entries = graph.get_rt_info([section]).value if has_entries else {}
        metadata = {f"{PREFIX}{name}": str(value) for name, value in entries.items()}
        compiled = openvino_core().compile_model(graph, "CPU", settings)
    except Exception as error:  # as ONNX Runtime's
        first_line = str(error).strip().split("\n", 1)[0]
        raise _damaged_error(path, f"OpenVINO cannot read it ({first_line})") from error

    def run(pixels: NDArray[Any]) -> NDArray[Any]:
        return np.array(compiled([pixels])[0])

    return run, metadata


def _damaged_error(path: Path, reason: str) -> ModelFileError:
    return ModelFileError(f"{path} is damaged: {reason}. Export the model again.")
