"""A model on disk: safetensors and JSON, nothing that runs when it is read.

``model.json`` describes the model and states the SHA-256 of ``model.safetensors``, which holds
all parameters. Loading needs no code of the user's, no network and no pickle; whatever does not
fit together is refused before a tensor is made.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import struct
import tempfile
from pathlib import Path
from typing import Any

from headstart.backbones.spec import BackboneSpec
from headstart.errors import ModelFileError, SetupError, UsageError
from headstart.features import Trunk
from headstart.heads.pooled import LinearHead
from headstart.model import TransferModel
from headstart.runtime import versions
from headstart.tasks.classification import Classification

__all__ = ["load", "save"]

FORMAT = "headstart-model"
VERSION = 1
DESCRIPTION = "model.json"
TENSORS = "model.safetensors"
MOST_BYTES = {"description": 64_000_000, "header": 16_000_000}


def save(model: TransferModel, folder: str | Path) -> None:
    """Write a fitted model's two files into a folder, each whole or not at all.

    Parameters
    ----------
    model : TransferModel
    folder : str or Path
        Made if need be; a model that is there already is replaced.

    Raises
    ------
    UsageError
        If the model has no head.
    SetupError
        If the folder cannot be written.
    """
    import torch
    from safetensors.torch import save as to_bytes

    head = model.require_head()
    tensors = {f"backbone.{name}": value for name, value in model.trunk.state.items()}
    tensors |= {f"head.{name}": torch.from_numpy(value) for name, value in head.state().items()}
    content = to_bytes({name: value.contiguous() for name, value in tensors.items()})
    description = {
        "format": FORMAT,
        "version": VERSION,
        "task": model.task.as_dict(),
        "backbone": model.trunk.spec.as_dict(),
        "weights": model.trunk.origin,
        "head": {"kind": "linear"},
        "engine": model.engine,
        "files": {TENSORS: hashlib.sha256(content).hexdigest()},
        "saved_with": versions(),
        "record": dict(model.record),
    }
    text = json.dumps(description, indent=1, allow_nan=False)
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        _replace(Path(folder) / TENSORS, content)
        _replace(Path(folder) / DESCRIPTION, text.encode())
    except OSError as error:
        raise SetupError(
            f"Expected to write the model to {folder}, got {error}; do free space or choose "
            "another folder."
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
    path = folder / TENSORS
    _check_header(path)
    content = _read(path, None)
    if hashlib.sha256(content).hexdigest() != description["files"][TENSORS]:
        raise ModelFileError(
            f"Expected {path} to have the SHA-256 that {DESCRIPTION} states, got another; "
            "do fetch or train the model again."
        )
    return _assemble(description, content, path)


def _assemble(description: dict[str, Any], content: bytes, path: Path) -> TransferModel:
    from safetensors import SafetensorError
    from safetensors.torch import load as from_bytes

    try:
        tensors = from_bytes(content)
        spec = BackboneSpec.from_dict(description["backbone"])
    except (SafetensorError, UsageError) as error:
        raise ModelFileError(f"Expected {path.parent} to hold a model, got {error}") from error
    _require_plain(spec)
    parts: dict[str, dict[str, Any]] = {"backbone": {}, "head": {}}
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".")
        if part not in parts:
            raise ModelFileError(f"Expected tensors of a backbone and a head, got {name!r}.")
        parts[part][rest] = tensor
    task = Classification.from_dict(description["task"])
    head = {name: tensor.numpy() for name, tensor in parts["head"].items()}
    return TransferModel(
        trunk=Trunk(spec=spec, state=parts["backbone"], origin=description["weights"]),
        task=task,
        head=LinearHead.from_state(head, n_outputs=len(task.classes)),
        engine=str(description["engine"]),
        record=description["record"],
    )


def _require_plain(spec: BackboneSpec) -> None:
    """Refuse a network whose name or options would make a library read files or the network."""
    names = [spec.architecture, *(name for name, _ in spec.model_options)]
    plain = re.fullmatch(r"(timm|torchvision)/\w+", spec.architecture)
    if not plain or any(
        word in name for name in names[1:] for word in ("pretrained", "path", "dir", "weights")
    ):
        raise ModelFileError(
            f"Expected the name of a timm or torchvision network and options of its layers, got "
            f"{names}; do not use a model from a source you do not trust."
        )


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
        found = json.loads(_read(path, MOST_BYTES["description"]))
    except ValueError as error:
        raise ModelFileError(f"Expected {path} to be JSON, got {error}.") from error
    wanted: dict[str, type] = {
        "task": dict,
        "backbone": dict,
        "weights": dict,
        "files": dict,
        "record": dict,
        "engine": str,
    }
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise ModelFileError(f"Expected {path} to describe a Headstart model, got another file.")
    if found.get("version") != VERSION:
        raise ModelFileError(
            f"Expected version {VERSION} of the model's format, got {found.get('version')!r}; "
            "do use the release of Headstart that wrote it."
        )
    wrong = sorted(name for name, kind in wanted.items() if not isinstance(found.get(name), kind))
    if wrong or set(found["files"]) != {TENSORS}:
        # The file's name is fixed: a description cannot point outside its folder.
        raise ModelFileError(
            f"Expected {path} to have {sorted(wanted)} and to name {TENSORS} only, got trouble "
            f"with {wrong or list(found['files'])[:5]}; do fetch the model again."
        )
    return found


def _check_header(path: Path) -> None:
    """Refuse a safetensors header that claims more than the file has, before it is parsed."""
    start = _read(path, None, first=8)
    claimed = struct.unpack("<Q", start)[0] if len(start) == 8 else -1
    room = path.stat().st_size - 8
    if not 0 < claimed <= min(room, MOST_BYTES["header"]):
        raise ModelFileError(
            f"Expected {path} to be a safetensors file with a header of at most "
            f"{MOST_BYTES['header']:,} bytes, got one that claims {claimed:,} in {room:,}; "
            "do fetch the model again."
        )


def _read(path: Path, most: int | None, *, first: int = -1) -> bytes:
    try:
        if most is not None and path.stat().st_size > most:
            raise ModelFileError(f"Expected {path} to be at most {most:,} bytes, got more.")
        with path.open("rb") as file:
            return file.read(first)
    except OSError as error:
        raise ModelFileError(f"Expected to read {path}, got {error}.") from error


def _replace(path: Path, content: bytes) -> None:
    handle, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
