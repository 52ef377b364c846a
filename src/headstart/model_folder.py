"""A model on disk: safetensors and JSON, nothing that runs when it is read.

``model.json`` describes the model and states the SHA-256 of ``model.safetensors``, which holds
all parameters. Loading needs no code of the user's, no network and no pickle; whatever does not
fit together is refused when it is loaded, not when it is first used.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from headstart.engines import ENGINES
from headstart.errors import ModelFileError, SetupError, UsageError
from headstart.heads.head import Head
from headstart.model import TransferModel
from headstart.model_parts import KINDS, assembled, short
from headstart.runtime import versions

__all__ = ["load", "save"]

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
    tensors = {f"backbone.{name}": value for name, value in model.trunk.state.items()}
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
        "backbone": model.trunk.spec.as_dict(),
        "weights": dict(model.trunk.origin),
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
    return found


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
