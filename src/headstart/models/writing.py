"""Write a model: model.json and model.safetensors, either both or none."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from headstart.errors import SetupError, UsageError
from headstart.files import hold_lock
from headstart.models.heads.head import Head
from headstart.runtime import versions

if TYPE_CHECKING:
    from headstart.models.transfer_model import TransferModel

__all__ = [
    "DESCRIPTION",
    "FORMAT",
    "TENSORS",
    "VERSION",
    "fitting_tensors",
    "replace_model",
    "save",
]

FORMAT = "headstart-model"
VERSION = 1
DESCRIPTION = "model.json"
TENSORS = "model.safetensors"
PREVIOUS = ".model.safetensors.previous"
"""Second name of the old tensors while a model is replaced."""


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
        replace_model(Path(folder), content, text.encode())
    except BlockingIOError as error:
        raise SetupError(
            f"{error} is saving a model in {folder}. Wait until it ends, or choose another folder."
        ) from error
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


def replace_model(folder: Path, tensors: bytes, description: bytes) -> None:
    """Replace the two files of a model so that a crash at any moment leaves a whole model.

    The description names the hash of its tensors. First the old tensors get a second name,
    ``PREVIOUS``, then both files are replaced. Between the two replacements the old description is
    beside the new tensors: ``load`` then takes the old tensors.

    Parameters
    ----------
    folder : Path
        An existing folder.
    tensors, description : bytes
        Contents of the two files.

    Raises
    ------
    OSError
        If a file cannot be written; the old model stays. ``BlockingIOError`` if another process
        is saving there.
    """
    paths = {folder / TENSORS: tensors, folder / DESCRIPTION: description}
    previous = folder / PREVIOUS
    with hold_lock(folder / ".saving"):
        _restore(folder)
        new = {path: path.with_name(f".{path.name}.new") for path in paths}
        is_replacing = False
        try:
            for path, content in paths.items():
                with new[path].open("wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
            if (folder / TENSORS).exists() and (folder / DESCRIPTION).exists():
                _give_second_name(folder / TENSORS, previous)
            is_replacing = True
            for path in paths:
                new[path].replace(path)
        except BaseException:
            is_first = is_replacing and not previous.exists()
            if is_first and new[folder / DESCRIPTION].exists():
                (folder / TENSORS).unlink(missing_ok=True)
            raise
        finally:
            for path in new.values():
                with suppress(OSError):
                    path.unlink(missing_ok=True)
            with suppress(OSError):  # else the next save does it, and load reads PREVIOUS
                _restore(folder)


def _restore(folder: Path) -> None:
    """Finish or undo a save that was cut off: keep the tensors that the description names."""
    previous = folder / PREVIOUS
    if not previous.exists():
        return
    if fitting_tensors(folder) == previous:
        previous.replace(folder / TENSORS)
    previous.unlink(missing_ok=True)  # two names of one file: replace() does nothing


def fitting_tensors(folder: Path) -> Path:
    """Return the file with the tensors that the folder's description names by their hash.

    It is ``model.safetensors``, except after a crash in the middle of a save.
    """
    path, previous = folder / TENSORS, folder / PREVIOUS
    if not previous.is_file():
        return path
    try:
        expected = json.loads((folder / DESCRIPTION).read_bytes())["files"][TENSORS]
        with previous.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, ValueError, KeyError, TypeError):
        return path
    return previous if digest == expected else path


def _give_second_name(path: Path, name: Path) -> None:
    try:
        os.link(path, name)
    except (OSError, NotImplementedError):  # no hard links here: copy, then rename
        copy = name.with_name(f"{name.name}.new")
        shutil.copyfile(path, copy)
        copy.replace(name)
