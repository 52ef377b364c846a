"""Write a model: model.json and model.safetensors, either both or none."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from headstart.errors import SetupError, UsageError
from headstart.models.heads.head import Head
from headstart.runtime import versions

if TYPE_CHECKING:
    from headstart.models.transfer_model import TransferModel

__all__ = ["DESCRIPTION", "FORMAT", "TENSORS", "VERSION", "save"]

FORMAT = "headstart-model"
VERSION = 1
DESCRIPTION = "model.json"
TENSORS = "model.safetensors"


def save(model: TransferModel, folder: str | Path) -> None:
    """Write a fitted model's two files into a folder, either both or none.

    Parameters
    ----------
    model : TransferModel
    folder : str or Path
        Created if necessary. A model in the folder is replaced, or stays if this one cannot be
        written.

    Raises
    ------
    UsageError
        If the model has no head, or its record has values that are not JSON.
    SetupError
        If the folder cannot be written.
    """
    import torch
    from safetensors.torch import save as to_bytes

    head = model.require_head()
    tensors = {f"backbone.{name}": value for name, value in model.backbone.state.items()}
    tensors |= {f"head.{k}": torch.from_numpy(np.array(v)) for k, v in head.state().items()}
    # Safetensors refuses tensors that share memory, as in some checkpoints: clone them.
    content = to_bytes(
        {
            name: value.detach().clone(memory_format=torch.contiguous_format)
            for name, value in tensors.items()
        }
    )
    text = _description_text(model, head, {TENSORS: hashlib.sha256(content).hexdigest()})
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        _replace_files(Path(folder), {TENSORS: content, DESCRIPTION: text.encode()})
    except OSError as error:
        raise SetupError(
            f"Cannot write the model to {folder}: {error}. Free disk space or choose another "
            "folder."
        ) from error


def _description_text(model: TransferModel, head: Head, files: Mapping[str, str]) -> str:
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
            f"Expected the model's record to have finite JSON values, got {error}. Store numbers, "
            "texts, lists and dicts only."
        ) from error


def _replace_files(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Write files into a folder, all of them or none: on any error the old ones are restored."""
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
