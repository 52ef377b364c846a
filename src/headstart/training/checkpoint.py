"""Checkpoints: the state of a training in one file of tensors and JSON, without code.

The file is replaced in one step: a kill at any moment leaves the old one or the new one. It
contains a SHA-256 of its content, so that a training never continues from a damaged file.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headstart.backbones.freezing import fingerprint
from headstart.errors import ModelFileError, SetupError, UsageError

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer

__all__ = ["Checkpoint", "flatten_optimiser", "read", "remove", "restore_optimiser", "write"]

NAME = "checkpoint.safetensors"
UNFINISHED = f"{NAME}.unfinished"
"""Folder for a file being written. It has a fixed name: the next write removes it after a kill."""
FORMAT = {"format": "headstart-checkpoint", "version": "1"}
DOCUMENT = "checkpoint.json"
"""Name of the JSON document, stored as a tensor of bytes: the format limits the length of its
header, but not of a tensor."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Checkpoint:
    """The state of a training between two steps.

    Parameters
    ----------
    identity : mapping of str to str
        Everything that determines the training, one hash or text per part, such as data, method
        and seed.
    epoch : int
        The current epoch, from 1.
    step : int
        Number of steps done in this epoch.
    tensors : mapping of str to torch.Tensor
        Weights, statistics and the moments of the optimiser; on the CPU when read. Their memory
        format is preserved, because another format may round the same sums differently.
    values : mapping of str to any
        History, best score, counters: None, bool, int, float (also NaN and infinity), str, and
        lists, tuples and dicts of these. Read exactly as written.
    """

    identity: Mapping[str, str]
    epoch: int
    step: int
    tensors: Mapping[str, Tensor]
    values: Mapping[str, Any] = field(default_factory=dict)


def write(folder: str | Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint in place of the previous one, which stays if the writing fails.

    Parameters
    ----------
    folder : str or Path
        Created if needed. Only one process may write.
    checkpoint : Checkpoint

    Raises
    ------
    UsageError
        If the values cannot be written as JSON.
    SetupError
        If the folder cannot be written, for example because the disk is full.

    Examples
    --------
    >>> import tempfile, torch
    >>> state = Checkpoint(identity={"seed": "0"}, epoch=1, step=7, tensors={"w": torch.ones(2)})
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write(folder, state)
    ...     read(folder, identity={"seed": "0"}).tensors["w"]
    tensor([1., 1.])
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    folder = Path(folder)
    tensors = _pack(checkpoint)
    unfinished = folder / UNFINISHED
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        save_file(tensors, unfinished / NAME, {**FORMAT, "sha256": fingerprint(tensors)})
        with (unfinished / NAME).open("rb+") as file:
            os.fsync(file.fileno())
        (unfinished / NAME).replace(folder / NAME)
        _sync_folder(folder)
    except (OSError, SafetensorError) as error:
        has_previous = (folder / NAME).is_file()
        previous = (
            "The previous checkpoint is complete." if has_previous else "No checkpoint exists."
        )
        megabytes = sum(tensor.nbytes for tensor in tensors.values()) / 1e6
        raise SetupError(
            f"Cannot write a checkpoint of {megabytes:.1f} MB to {folder}: {error}. {previous} "
            "Free disk space, or make the folder writable, then pass --resume."
        ) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def read(folder: str | Path, *, identity: Mapping[str, str]) -> Checkpoint | None:
    """Read the checkpoint of a run with the same identity.

    Parameters
    ----------
    folder : str or Path
    identity : mapping of str to str
        Identity of the run that continues.

    Returns
    -------
    Checkpoint or None
        None if there is no checkpoint.

    Raises
    ------
    ModelFileError
        If the file is damaged, or is not a checkpoint.
    UsageError
        If it belongs to another run; the message names the parts that differ.
    SetupError
        If the file cannot be read.

    Examples
    --------
    >>> read("a folder that is not there", identity={"seed": "0"}) is None
    True
    """
    path = Path(folder) / NAME
    if not path.exists():
        return None
    checkpoint = _unpack(path)
    different = [
        part
        for part in sorted({*checkpoint.identity, *identity})
        if checkpoint.identity.get(part) != identity.get(part)
    ]
    if different:
        raise UsageError(
            f"{path} belongs to a run with different {', '.join(different)}. Repeat the command "
            "of that run with --resume, or pass another folder as --out."
        )
    return checkpoint


def remove(folder: str | Path) -> None:
    """Delete the checkpoint, if there is one, and the remains of an interrupted write.

    Raises
    ------
    SetupError
        If a file exists and cannot be deleted.
    """
    try:
        shutil.rmtree(Path(folder, UNFINISHED), ignore_errors=True)
        Path(folder, NAME).unlink(missing_ok=True)
    except OSError as error:
        raise SetupError(
            f"Cannot delete the checkpoint: {error}. Delete {Path(folder, NAME)} by hand."
        ) from error


def flatten_optimiser(state: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Split the result of ``optimiser.state_dict()`` into tensors and values for a checkpoint.

    Returns
    -------
    tensors : dict of str to torch.Tensor
        ``optimiser.<parameter's index>.<name>``; not copied.
    values : dict
        Everything else, with the name of a tensor in place of the tensor.

    Raises
    ------
    UsageError
        If the optimiser stores state that belongs to no single parameter.

    Examples
    --------
    >>> import torch
    >>> weight = torch.nn.Parameter(torch.ones(2))
    >>> weight.grad = torch.ones(2)
    >>> optimiser = torch.optim.Adam([weight])
    >>> optimiser.step()
    >>> tensors, values = flatten_optimiser(optimiser.state_dict())
    >>> sorted(tensors)
    ['optimiser.0.exp_avg', 'optimiser.0.exp_avg_sq', 'optimiser.0.step']
    >>> values["groups"][0]["betas"]
    (0.9, 0.999)
    """
    if unknown_keys := [key for key in state["state"] if not isinstance(key, int)]:
        raise UsageError(
            f"The optimiser stores {unknown_keys[0]!r} outside of its parameters, which a "
            "checkpoint cannot hold. Use another optimiser, such as adamw."
        )
    tensors: dict[str, Tensor] = {}
    values = {
        "state": {
            str(index): _extract_tensors(value, f"optimiser.{index}", tensors)
            for index, value in state["state"].items()
        },
        "groups": [
            _extract_tensors(dict(group), f"optimiser.group{number}", tensors)
            for number, group in enumerate(state["param_groups"])
        ],
    }
    return tensors, values


def restore_optimiser(
    optimiser: Optimizer, tensors: Mapping[str, Tensor], values: Mapping[str, Any]
) -> None:
    """Restore the state of an optimiser from the results of ``flatten_optimiser``.

    Parameters
    ----------
    optimiser : torch.optim.Optimizer
        Created like the first one, with the same parameters in the same order. Changed in place,
        including its learning rates.
    tensors : mapping of str to torch.Tensor
        May contain other tensors too, such as all of a checkpoint. They are copied.
    values : mapping

    Raises
    ------
    UsageError
        If the state belongs to another kind of optimiser, or to other parameters.
    """
    groups = [_insert_tensors(group, tensors) for group in values["groups"]]
    for group in groups:
        if missing := sorted(set(optimiser.defaults) - set(group)):
            raise UsageError(
                f"The checkpoint is not of {type(optimiser).__name__}: its optimiser state lacks "
                f"{', '.join(missing)}. Pass the same --optimiser as the first run."
            )
    state = {
        int(index): _insert_tensors(value, tensors) for index, value in values["state"].items()
    }
    try:
        optimiser.load_state_dict({"state": state, "param_groups": groups})
    except ValueError as error:  # torch compares the numbers of groups and of parameters
        raise UsageError(
            f"The optimiser state of the checkpoint is of other parameters: {error}. Train the "
            "same stages as the first run."
        ) from error


def _extract_tensors(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """Replace every tensor by its name."""
    import torch

    if isinstance(value, torch.Tensor):
        tensors[name] = value
        return {"tensor": name}
    if isinstance(value, Mapping):
        return {
            key: _extract_tensors(item, f"{name}.{key}", tensors) for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return type(value)(
            _extract_tensors(item, f"{name}.{i}", tensors) for i, item in enumerate(value)
        )
    return value


def _insert_tensors(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Replace every name by a copy of its tensor, because optimisers change tensors in place."""
    if isinstance(value, Mapping):
        if set(value) == {"tensor"}:
            if value["tensor"] not in tensors:
                raise UsageError(
                    f"The optimiser's tensor {value['tensor']!r} is missing among {len(tensors)} "
                    "tensors. Pass the tensors and the values of the same checkpoint."
                )
            return tensors[value["tensor"]].clone()
        return {key: _insert_tensors(item, tensors) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_insert_tensors(item, tensors) for item in value)
    return value


def _pack(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Convert a checkpoint to tensors alone, the JSON document among them."""
    import torch

    if DOCUMENT in checkpoint.tensors:
        raise UsageError(f"The tensor name {DOCUMENT!r} is reserved. Rename that tensor.")
    document = {
        "identity": dict(checkpoint.identity),
        "epoch": checkpoint.epoch,
        "step": checkpoint.step,
        "values": _encode(dict(checkpoint.values)),
        "strides": {n: s for n, t in checkpoint.tensors.items() if (s := _unusual_strides(t))},
    }
    text = json.dumps(document, allow_nan=False).encode()
    tensors: dict[str, Tensor] = {}
    used_memory = set()
    for name, tensor in checkpoint.tensors.items():
        flat = tensor.detach().cpu().contiguous()
        memory = flat.untyped_storage()
        # safetensors refuses tensors that share memory.
        is_shared = memory.nbytes() != flat.nbytes or memory.data_ptr() in used_memory
        used_memory.add(memory.data_ptr())
        tensors[name] = flat.clone() if is_shared else flat
    return {**tensors, DOCUMENT: torch.frombuffer(bytearray(text), dtype=torch.uint8)}


def _unpack(path: Path) -> Checkpoint:
    from safetensors import SafetensorError, safe_open

    try:
        with path.open("rb"), safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if {name: metadata.get(name) for name in FORMAT} != FORMAT:
            raise _invalid_file(path, "it is another kind of file")
        if metadata.get("sha256") != fingerprint(tensors):
            raise _invalid_file(path, "it is damaged (its SHA-256 does not match its content)")
    except OSError as error:
        raise SetupError(f"Cannot read {path}: {error}. Make the file readable.") from error
    except SafetensorError as error:
        raise _invalid_file(path, f"it is damaged ({error})") from error
    document = json.loads(tensors.pop(DOCUMENT).numpy().tobytes())
    strides = document.pop("strides")
    document["values"] = _decode(document["values"])
    restored = {
        name: _restore_strides(tensor, strides.get(name)) for name, tensor in tensors.items()
    }
    return Checkpoint(tensors=restored, **document)


def _invalid_file(path: Path, reason: str) -> ModelFileError:
    return ModelFileError(
        f"{path} is not a valid checkpoint: {reason}. Delete it to start again, or restore a copy."
    )


def _sync_folder(folder: Path) -> None:
    """Flush the renamed file to disk, so that it survives a power cut. Windows cannot do it."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _unusual_strides(tensor: Tensor) -> list[int] | None:
    """Return the strides of a dense tensor in another memory format, such as channels_last."""
    import torch

    is_dense = torch.empty_like(tensor).stride() == tensor.stride()
    return list(tensor.stride()) if is_dense and not tensor.is_contiguous() else None


def _restore_strides(tensor: Tensor, strides: list[int] | None) -> Tensor:
    """Copy in the recorded memory format, because the tensor that was read maps the file."""
    import torch

    if strides is None:
        return tensor.clone()
    return torch.empty_strided(tensor.shape, strides, dtype=tensor.dtype).copy_(tensor)


def _encode(value: Any) -> Any:
    """Encode values that strict JSON does not have: NaN, infinities, tuples."""
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else {"$float": repr(float(value))}
        case list():
            return [_encode(item) for item in value]
        case tuple():
            return {"$tuple": [_encode(item) for item in value]}
        case dict() if all(isinstance(k, str) and not k.startswith("$") for k in value):
            return {key: _encode(item) for key, item in value.items()}
    raise UsageError(
        f"A checkpoint cannot store the value {value!r:.100}. Convert it to numbers, strings, "
        "lists, tuples and dicts with string keys, or store it as a tensor."
    )


def _decode(value: Any) -> Any:
    if isinstance(value, list):
        return [_decode(item) for item in value]
    if not isinstance(value, dict):
        return value
    if set(value) == {"$float"}:
        return float(value["$float"])
    if set(value) == {"$tuple"}:
        return tuple(_decode(item) for item in value["$tuple"])
    return {key: _decode(item) for key, item in value.items()}
