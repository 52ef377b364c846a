"""What a training can be taken up from: one file of tensors and JSON, nothing that runs.

The file is replaced as a whole, so that a kill at any moment leaves the old one or the new one,
and it carries a SHA-256 of all that is in it, so that a damaged one is never continued from.
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
"""A folder, of one name for all: what a kill leaves behind goes with the next write."""
FORMAT = {"format": "headstart-checkpoint", "version": "1"}
DOCUMENT = "checkpoint.json"
"""JSON as a tensor of bytes: the format limits the length of its header, and no tensor's."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Checkpoint:
    """The state of a training between two steps.

    Parameters
    ----------
    identity : mapping of str to str
        What decides the training, one hash or text for each part, such as data, method, seed.
    epoch : int
        The current epoch, from 1.
    step : int
        Steps done in this epoch, from 0.
    tensors : mapping of str to torch.Tensor
        Weights, statistics, the optimiser's moments; on the CPU when read. Their order in
        memory is kept: in another one the same sums may round differently.
    values : mapping of str to any
        History, best score, counters: None, bool, int, float (NaN and infinite too), str, and
        lists, tuples and dicts of these; read as they were written.
    """

    identity: Mapping[str, str]
    epoch: int
    step: int
    tensors: Mapping[str, Tensor]
    values: Mapping[str, Any] = field(default_factory=dict)


def write(folder: str | Path, checkpoint: Checkpoint) -> None:
    """Keep a checkpoint; the one that was there is replaced, or stays if this one cannot be kept.

    Parameters
    ----------
    folder : str or Path
        Made if need be. One process alone writes.
    checkpoint : Checkpoint

    Raises
    ------
    UsageError
        If the values hold more than JSON can say.
    SetupError
        If the folder cannot be written, as when the disk is full.

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
    tensors = _packed(checkpoint)
    unfinished = folder / UNFINISHED
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        save_file(tensors, unfinished / NAME, {**FORMAT, "sha256": fingerprint(tensors)})
        with (unfinished / NAME).open("rb+") as file:
            os.fsync(file.fileno())
        (unfinished / NAME).replace(folder / NAME)
        _settle(folder)
    except (OSError, SafetensorError) as error:
        left = "an earlier checkpoint is whole" if (folder / NAME).is_file() else "there is none"
        size = sum(tensor.nbytes for tensor in tensors.values()) / 1e6
        raise SetupError(
            f"Expected to keep a checkpoint of {size:.1f} MB in {folder}, got {error}; {left}. "
            "Do free space, or make the folder writable, and resume the run."
        ) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def read(folder: str | Path, *, identity: Mapping[str, str]) -> Checkpoint | None:
    """Take up what a run of the same identity left.

    Parameters
    ----------
    folder : str or Path
    identity : mapping of str to str
        Of the run that is to be continued.

    Returns
    -------
    Checkpoint or None
        None when there is none.

    Raises
    ------
    ModelFileError
        If the file is damaged, or no checkpoint.
    UsageError
        If another run left it; the parts that differ are named.
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
            f"Expected to resume the same run from {path}, got one with another "
            f"{', '.join(different)}; do give what that run was given, or begin anew in another "
            "folder."
        )
    return checkpoint


def remove(folder: str | Path) -> None:
    """Delete the checkpoint, and what an interrupted write left; nothing to do is fine.

    Raises
    ------
    SetupError
        If a file is there and cannot be deleted.
    """
    try:
        shutil.rmtree(Path(folder, UNFINISHED), ignore_errors=True)
        Path(folder, NAME).unlink(missing_ok=True)
    except OSError as error:
        raise SetupError(
            f"Expected to delete the checkpoint in {folder}, got {error}; do delete it by hand."
        ) from error


def flatten_optimiser(state: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Part what ``optimiser.state_dict()`` gives into tensors and values for a checkpoint.

    Returns
    -------
    tensors : dict of str to torch.Tensor
        ``optimiser.<parameter's index>.<name>``; not copied.
    values : dict
        The rest, with the names of tensors where they stood.

    Raises
    ------
    UsageError
        If the optimiser keeps its state by more than its parameters.

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
    if wrong := [key for key in state["state"] if not isinstance(key, int)]:
        raise UsageError(
            f"Expected an optimiser that keeps its state by parameter, got one with {wrong[0]!r}; "
            "do use another optimiser."
        )
    tensors: dict[str, Tensor] = {}
    values = {
        "state": {
            str(index): _take(value, f"optimiser.{index}", tensors)
            for index, value in state["state"].items()
        },
        "groups": [
            _take(dict(group), f"optimiser.group{number}", tensors)
            for number, group in enumerate(state["param_groups"])
        ],
    }
    return tensors, values


def restore_optimiser(
    optimiser: Optimizer, tensors: Mapping[str, Tensor], values: Mapping[str, Any]
) -> None:
    """Put an optimiser into the state that ``flatten_optimiser`` took apart.

    Parameters
    ----------
    optimiser : torch.optim.Optimizer
        Made like the first, over the same parameters in the same order; changed in place, also
        its learning rates.
    tensors : mapping of str to torch.Tensor
        May hold others too, such as all of a checkpoint's; copied.
    values : mapping

    Raises
    ------
    UsageError
        If the state belongs to another kind of optimiser, or to other parameters.
    """
    groups = [_put_back(group, tensors) for group in values["groups"]]
    for group in groups:
        if missing := sorted(set(optimiser.defaults) - set(group)):
            raise UsageError(
                f"Expected the state of {type(optimiser).__name__}, got one without "
                f"{', '.join(missing)}; do resume with the optimiser that the run began with."
            )
    state = {int(index): _put_back(value, tensors) for index, value in values["state"].items()}
    try:
        optimiser.load_state_dict({"state": state, "param_groups": groups})
    except ValueError as error:  # torch compares the numbers of groups and of parameters
        raise UsageError(
            f"Expected the optimiser's state to be of the same parameters, got another ({error}); "
            "do train the stages that the run began with."
        ) from error


def _take(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """Replace every tensor by its name."""
    import torch

    if isinstance(value, torch.Tensor):
        tensors[name] = value
        return {"tensor": name}
    if isinstance(value, Mapping):
        return {key: _take(one, f"{name}.{key}", tensors) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_take(one, f"{name}.{i}", tensors) for i, one in enumerate(value))
    return value


def _put_back(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Replace every name by a copy of its tensor: optimisers change theirs in place."""
    if isinstance(value, Mapping):
        if set(value) == {"tensor"}:
            if value["tensor"] not in tensors:
                raise UsageError(
                    f"Expected the optimiser's tensor {value['tensor']!r}, got {len(tensors)} "
                    "others; do give the tensors and the values of one checkpoint."
                )
            return tensors[value["tensor"]].clone()
        return {key: _put_back(one, tensors) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_put_back(one, tensors) for one in value)
    return value


def _packed(checkpoint: Checkpoint) -> dict[str, Tensor]:
    import torch

    if DOCUMENT in checkpoint.tensors:
        raise UsageError(f"Expected tensors of other names than {DOCUMENT!r}; do rename that one.")
    document = {
        "identity": dict(checkpoint.identity),
        "epoch": checkpoint.epoch,
        "step": checkpoint.step,
        "values": _plain(dict(checkpoint.values)),
        "strides": {n: s for n, t in checkpoint.tensors.items() if (s := _strides(t))},
    }
    text = json.dumps(document, allow_nan=False).encode()
    tensors: dict[str, Tensor] = {}
    taken = set()
    for name, tensor in checkpoint.tensors.items():
        flat = tensor.detach().cpu().contiguous()
        memory = flat.untyped_storage()
        # The format refuses tensors that share memory.
        shared = memory.nbytes() != flat.nbytes or memory.data_ptr() in taken
        taken.add(memory.data_ptr())
        tensors[name] = flat.clone() if shared else flat
    return {**tensors, DOCUMENT: torch.frombuffer(bytearray(text), dtype=torch.uint8)}


def _unpack(path: Path) -> Checkpoint:
    from safetensors import SafetensorError, safe_open

    try:
        with path.open("rb"), safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if {name: about.get(name) for name in FORMAT} != FORMAT:
            raise _damaged(path, "another file")
        if about.get("sha256") != fingerprint(tensors):
            raise _damaged(path, "one whose content is not what was written")
    except OSError as error:
        raise SetupError(f"Expected to read {path}, got {error}; do make it readable.") from error
    except SafetensorError as error:
        raise _damaged(path, f"a damaged file ({error})") from error
    document = json.loads(tensors.pop(DOCUMENT).numpy().tobytes())
    strides = document.pop("strides")
    document["values"] = _original(document["values"])
    laid = {name: _laid(tensor, strides.get(name)) for name, tensor in tensors.items()}
    return Checkpoint(tensors=laid, **document)


def _damaged(path: Path, got: str) -> ModelFileError:
    return ModelFileError(
        f"Expected {path} to be a whole checkpoint, got {got}; do delete it to begin anew, or put "
        "back a copy of it."
    )


def _settle(folder: Path) -> None:
    """Make the new name survive a power cut, where a folder can be synchronised."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _strides(tensor: Tensor) -> list[int] | None:
    """Order in memory of a dense tensor that is not in the usual one, such as channels_last."""
    import torch

    dense = torch.empty_like(tensor).stride() == tensor.stride()
    return list(tensor.stride()) if dense and not tensor.is_contiguous() else None


def _laid(tensor: Tensor, strides: list[int] | None) -> Tensor:
    """Own memory in the order that was recorded: what is read is still the file's."""
    import torch

    if strides is None:
        return tensor.clone()
    return torch.empty_strided(tensor.shape, strides, dtype=tensor.dtype).copy_(tensor)


def _plain(value: Any) -> Any:
    """Say in strict JSON what it has no words for: NaN, infinities, tuples."""
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else {"$float": repr(float(value))}
        case list():
            return [_plain(one) for one in value]
        case tuple():
            return {"$tuple": [_plain(one) for one in value]}
        case dict() if all(isinstance(k, str) and not k.startswith("$") for k in value):
            return {key: _plain(one) for key, one in value.items()}
    raise UsageError(
        "Expected a checkpoint's values to be numbers, texts, lists, tuples and dicts by name, got "
        f"{value!r:.100}; do convert it, or put it among the tensors."
    )


def _original(value: Any) -> Any:
    if isinstance(value, list):
        return [_original(one) for one in value]
    if not isinstance(value, dict):
        return value
    if set(value) == {"$float"}:
        return float(value["$float"])
    if set(value) == {"$tuple"}:
        return tuple(_original(one) for one in value["$tuple"])
    return {key: _original(one) for key, one in value.items()}
