"""What a saved model is put together of: each part is distrusted, then all are held together.

A description may have been written by anybody. It can name networks, layers and sizes; nothing
here reads a file, fetches, or builds what the tensors at hand do not fill.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import struct
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from headstart.backbones.catalog import names
from headstart.backbones.frozen import FrozenBackbone
from headstart.backbones.spec import BackboneSpec
from headstart.errors import ModelFileError, SetupError, UsageError
from headstart.features.engines import ENGINES
from headstart.models.build import HEADS
from headstart.models.heads.detection import BoxHead
from headstart.models.heads.head import Head
from headstart.models.heads.linear import LinearHead
from headstart.models.heads.segmentation import MaskHead
from headstart.models.tasks import ClassificationTask, DetectionTask, SegmentationTask
from headstart.models.transfer_model import TransferModel
from headstart.runtime import versions

if TYPE_CHECKING:
    from torch import Tensor

    from headstart.backbones.backbone import Backbone

__all__ = ["KINDS", "assembled", "load", "save", "short"]

TASKS: Mapping[str, Any] = {
    "classification": ClassificationTask,
    "detection": DetectionTask,
    "segmentation": SegmentationTask,
}
KINDS: Mapping[str, tuple[str, ...]] = {"classification": ("linear",), **HEADS}
"""The heads that each task can have."""

MOST_PIXELS = 4096
"""Side of an image that a description may ask for: a larger one is a way to take memory."""
MOST_OPTION = 8192
"""Largest number among a network's options, for the same reason."""
READS_FILES = re.compile("pretrained|weights|checkpoint|cache|file|url|hub|dir$|(?<!drop)_path$")
COUNTER = "num_batches_tracked"


def assembled(description: Mapping[str, Any], content: bytes) -> TransferModel:
    """Put a model together.

    Parameters
    ----------
    description : mapping
        What model.json says.
    content : bytes
        Of model.safetensors.

    Raises
    ------
    ModelFileError
        If a part cannot be meant, or they do not fit together. What makes no sense at all may
        make a library fail in a way of its own.
    """
    from safetensors.torch import load as from_bytes

    task = _task(description["task"])
    spec = BackboneSpec.from_dict(description["backbone"])
    _require_plain(spec)
    state, head_state = _parts(from_bytes(content))
    backbone = FrozenBackbone(spec=spec, state=state, origin=description["weights"])
    head = _head(description["head"], task, head_state)
    _require_fit(backbone, head, len(task.classes))
    return TransferModel(
        backbone=backbone,
        task=task,
        head=head,
        engine=description["engine"],
        record=description["record"],
    )


def _task(values: Mapping[str, Any]) -> Any:
    classes, name = values.get("classes"), values.get("name")
    if not isinstance(name, str) or name not in TASKS:
        raise ModelFileError(
            f"Expected a task among {', '.join(TASKS)}, got the task {short(name)}; do use the "
            "release of Headstart that wrote it."
        )
    if not isinstance(classes, list) or not all(isinstance(c, str) for c in classes):
        raise ModelFileError("Expected the model's classes to be a list of names, got another.")
    if len(set(classes)) != len(classes):
        raise ModelFileError("Expected every class of the model to have its own name, got doubles.")
    task = TASKS[name].from_dict(values)
    if not all(0 <= threshold <= 1 for threshold in getattr(task, "thresholds", ())):
        raise ModelFileError("Expected thresholds from 0 to 1, got others.")
    return task


def _head(values: Mapping[str, Any], task: Any, tensors: Mapping[str, Tensor]) -> Head:
    kind = values.get("kind")
    if kind not in KINDS[task.name]:
        raise ModelFileError(
            f"Expected a head for {task.name} ({', '.join(KINDS[task.name])}), got {short(kind)}; "
            "do fetch the model again."
        )
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    match task:
        case DetectionTask():
            return BoxHead.from_dict(values, arrays)
        case SegmentationTask():
            return MaskHead.from_dict(values, arrays)
    if foreign := sorted(arrays.keys() - {"weight", "bias"}):
        raise ModelFileError(f"Expected a head of weight and bias, got {short(foreign)}.")
    return LinearHead.from_state(arrays, n_outputs=len(task.classes))


def _parts(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Tensors of the backbone and of the head, all in the one precision that is written."""
    import torch

    parts: dict[str, dict[str, Tensor]] = {"backbone": {}, "head": {}}
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".")
        if part not in parts:
            raise ModelFileError(f"Expected tensors of a backbone and a head, got {short(name)}.")
        # Counters and tables of places are whole numbers; statistics never are.
        is_table = part == "backbone" and ".running_" not in name
        may_count = is_table or name.endswith(COUNTER)
        if tensor.dtype != torch.float32 and not (may_count and tensor.dtype == torch.int64):
            raise ModelFileError(
                f"Expected {short(name)} to be in float32, got {tensor.dtype}; do fetch the "
                "model again."
            )
        parts[part][rest] = tensor
    if not all(torch.isfinite(tensor).all() for tensor in parts["head"].values()):
        raise ModelFileError("Expected a head of finite numbers, got others.")
    if any((t < 0).any() for name, t in parts["head"].items() if name.endswith("running_var")):
        raise ModelFileError("Expected variances of at least 0 in the head, got others.")
    return parts["backbone"], parts["head"]


def _require_fit(backbone: FrozenBackbone, head: Head, n_classes: int) -> None:
    """Build the network around the tensors, without trusting what is said of its shape."""
    from headstart.backbones.backbone import assemble

    built = assemble(replace(backbone.spec, stages=(), width=0), backbone.state)
    width = backbone.spec.width or built.width
    if isinstance(head, LinearHead):
        if not built.width == head.width == width:
            raise ModelFileError(
                f"Expected a head for the {built.width} features of {backbone.spec.architecture}, "
                f"got one for {head.width}. Copy the model again."
            )
        return
    if width != built.width or (backbone.spec.stages and backbone.spec.stages != built.stages):
        raise ModelFileError(
            f"Expected the stages of {backbone.spec.architecture}, got a description of others; do "
            "fetch the model again."
        )
    _require_maps(backbone, built, head, n_classes)


def _require_maps(backbone: FrozenBackbone, built: Backbone, head: Any, n_classes: int) -> None:
    """Hold a head on maps against the stages that it reads, the canvas, and the classes."""
    shape = head.shape
    channels = shape.widths if isinstance(head, BoxHead) else shape.channels
    read = list(zip(head.taps, channels, shape.strides, strict=True))
    there = [(stage.name, stage.channels, stage.stride) for stage in built.stages]
    if not read or read != [stage for stage in there if stage in read]:
        raise ModelFileError(
            f"Expected a head on stages of {backbone.spec.architecture} ({short(there)}), got one "
            f"on {short(read)}. Copy the model again."
        )
    canvas = backbone.spec.preprocess.canvas
    if shape.canvas != canvas or shape.n_classes != n_classes:
        raise ModelFileError(
            f"Expected a head for {n_classes} classes on images of {canvas}, got one for "
            f"{shape.n_classes} on {shape.canvas}; do fetch the model again."
        )


def _require_plain(spec: BackboneSpec) -> None:
    """Refuse a network whose name or options make a library read files, fetch, or take memory."""
    library, _, name = spec.architecture.partition("/")
    # Of torchvision's other networks some fetch weights unless they are told not to.
    known = library == "timm" or f"{library}/{name}" in names()
    options = dict(spec.model_options)
    if (
        not known
        or not re.fullmatch(r"(timm|torchvision)/\w+", spec.architecture)
        or any(READS_FILES.search(option) for option in options)
        or not all(_is_plain(value) for value in (*options.values(), spec.until))
    ):
        raise ModelFileError(
            "Expected the name of a timm or torchvision network and options of its layers, got "
            f"{short([spec.architecture, options])}; do not use a model from a source you do "
            "not trust."
        )
    expects = spec.preprocess
    sizes = (expects.resize, expects.crop, *expects.shape)
    if not all(type(size) is int and size <= MOST_PIXELS for size in sizes) or not all(
        math.isfinite(number) for number in (*expects.mean, *expects.std)
    ):
        raise ModelFileError(
            f"Expected images of at most {MOST_PIXELS} pixels a side and finite colours, got "
            f"{short(expects)}."
        )


def _is_plain(value: object) -> bool:
    if isinstance(value, int | float):
        return abs(value) <= MOST_OPTION
    return isinstance(value, str) and len(value) <= 64


def short(value: object) -> str:
    """Return the beginning of what was found, on one line: it may be anything.

    >>> short("a" * 300) == "'" + "a" * 199
    True
    """
    text = repr(value) if not isinstance(value, Exception) else str(value)
    return " ".join(text.split())[:200]


FORMAT = "headstart-model"
VERSION = 1
DESCRIPTION = "model.json"
TENSORS = "model.safetensors"
MOST_BYTES = {DESCRIPTION: 16_000_000, "header": 16_000_000, TENSORS: 16_000_000_000}


def save(model: TransferModel, folder: str | Path) -> None:
    """Write a fitted model's two files into a folder, both whole or none.

    Parameters
    ----------
    model : TransferModel
    folder : str or Path
        Made if need be; a model that is there already is replaced, or stays if this one cannot
        be written.

    Raises
    ------
    UsageError
        If the model has no head, or its record holds more than plain values.
    SetupError
        If the folder cannot be written.
    """
    import torch
    from safetensors.torch import save as to_bytes

    head = model.require_head()
    tensors = {f"backbone.{name}": value for name, value in model.backbone.state.items()}
    tensors |= {f"head.{k}": torch.from_numpy(np.array(v)) for k, v in head.state().items()}
    # Cloned: tensors that share memory, as in some checkpoints, are refused by the format.
    content = to_bytes(
        {
            name: value.detach().clone(memory_format=torch.contiguous_format)
            for name, value in tensors.items()
        }
    )
    text = _described(model, head, {TENSORS: hashlib.sha256(content).hexdigest()})
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        _put(Path(folder), {TENSORS: content, DESCRIPTION: text.encode()})
    except OSError as error:
        raise SetupError(
            f"Expected to write the model to {folder}, got {error}; do free space or choose "
            "another folder."
        ) from error


def _described(model: TransferModel, head: Head, files: Mapping[str, str]) -> str:
    description = {
        "format": FORMAT,
        "version": VERSION,
        "task": model.task.as_dict(),
        "backbone": model.backbone.spec.as_dict(),
        "weights": dict(model.backbone.origin),
        "head": head.as_dict(),
        "engine": model.engine,
        "files": files,
        "saved_with": versions(),
        "record": dict(model.record),
    }
    try:
        return json.dumps(description, indent=1, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"Expected the model's record to hold plain, finite values, got {error}; do store "
            "numbers, texts, lists and dicts only."
        ) from error


def load(folder: str | Path) -> TransferModel:
    """Read a model; everything in the folder is distrusted until its hash and shapes fit.

    Parameters
    ----------
    folder : str or Path
        A run's folder.

    Raises
    ------
    ModelFileError
        If the folder holds no model, or one that is damaged, foreign or hostile.
    """
    folder = Path(folder)
    description = _description(folder)
    content = _content(folder / TENSORS, str(description["files"][TENSORS]))
    try:
        return assembled(description, content)
    except ModelFileError:
        raise
    # Values that make no sense can make the libraries fail in any way they have.
    except Exception as error:
        raise ModelFileError(
            f"Expected {folder} to hold a model, got parts that do not fit together "
            f"({short(error)}); do fetch or train the model again."
        ) from error


def _description(folder: Path) -> dict[str, Any]:
    path = folder / DESCRIPTION
    if not path.is_file():
        inside = ", ".join(sorted(p.name for p in folder.iterdir())[:5]) if folder.is_dir() else ""
        got = f"a folder with {inside or 'nothing'}" if folder.is_dir() else "no such folder"
        raise ModelFileError(
            f"Expected {folder} to be a run's folder with {DESCRIPTION}, got {got}; "
            "do give the folder that `headstart fit` wrote."
        )
    try:
        found = json.loads(_read(path, MOST_BYTES[DESCRIPTION]))
    except (ValueError, RecursionError) as error:
        raise ModelFileError(
            f"Expected {path} to be JSON, got another file ({short(error)})."
        ) from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise ModelFileError(f"Expected {path} to describe a Headstart model, got another file.")
    if found.get("version") != VERSION:
        raise ModelFileError(
            f"Expected version {VERSION} of the model's format, got "
            f"{short(found.get('version'))}; do use the release of Headstart that wrote it."
        )
    _require_parts(found, path)
    _use_current_names(found)
    return found


def _use_current_names(description: Mapping[str, Any]) -> None:
    """Rename the keys of folders that were saved when images were called pictures."""
    task, record = description["task"], description["record"]
    forgetting = record.get("forgetting")
    source = forgetting.get("source") if isinstance(forgetting, dict) else None
    for values in (task.get("selected"), forgetting, source, record.get("data")):
        if isinstance(values, dict) and "pictures" in values:
            values["images"] = values.pop("pictures")


def _require_parts(found: Mapping[str, Any], path: Path) -> None:
    names = ("task", "backbone", "weights", "head", "files", "record")
    wrong = [name for name in names if not isinstance(found.get(name), dict)]
    if found.get("engine") not in ("auto", *ENGINES):
        wrong.append("engine")
    # The file's name is fixed: a description cannot point outside its folder.
    if not wrong and set(found["files"]) != {TENSORS}:
        wrong.append("files")
    if not wrong and found["head"].get("kind") not in [k for row in KINDS.values() for k in row]:
        wrong.append("head")
    if wrong:
        raise ModelFileError(
            f"Expected {path} to describe {', '.join(names)} and engine, and to name {TENSORS} "
            f"only, got trouble with {', '.join(wrong)}; do fetch the model again, or use the "
            "release of Headstart that wrote it."
        )


def _content(path: Path, stated: str) -> bytes:
    """Bytes of the tensors' file: its size and header judged before it is read, then its hash."""
    start = _read(path, MOST_BYTES[TENSORS], first=8)
    claimed = struct.unpack("<Q", start)[0] if len(start) == 8 else -1
    room = path.stat().st_size - 8
    if not 0 < claimed <= min(room, MOST_BYTES["header"]):
        raise ModelFileError(
            f"Expected {path} to be a safetensors file with a header of at most "
            f"{MOST_BYTES['header']:,} bytes, got one that claims {claimed:,} in {room:,}; "
            "do fetch the model again."
        )
    content = _read(path, MOST_BYTES[TENSORS])
    if hashlib.sha256(content).hexdigest() != stated:
        raise ModelFileError(
            f"Expected {path} to have the SHA-256 that {DESCRIPTION} states, got another; "
            "do fetch or train the model again."
        )
    return content


def _read(path: Path, most: int, *, first: int = -1) -> bytes:
    """Read a plain file that is not too large: a pipe or a device would never end."""
    try:
        if not path.is_file():
            raise ModelFileError(f"Expected {path} to be a file, got none; do fetch it again.")
        if path.stat().st_size > most:
            raise ModelFileError(f"Expected {path} to be at most {most:,} bytes, got more.")
        with path.open("rb") as file:
            return file.read(first)
    except OSError as error:
        raise ModelFileError(f"Expected to read {path}, got {error}.") from error


def _put(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Put files into a folder, all of them or none: whatever goes wrong, the old ones are back."""
    with tempfile.TemporaryDirectory(prefix=".saving-", dir=folder) as scratch:
        new, old = Path(scratch, "new"), Path(scratch, "old")
        new.mkdir()
        old.mkdir()
        for name, content in contents.items():
            with (new / name).open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        try:
            for name in contents:
                if (folder / name).is_file() or (folder / name).is_symlink():
                    (folder / name).rename(old / name)
                (new / name).rename(folder / name)
        except BaseException:
            for name in contents:
                if not (new / name).exists():
                    (folder / name).unlink(missing_ok=True)
                if (old / name).exists() or (old / name).is_symlink():
                    (old / name).rename(folder / name)
            raise
