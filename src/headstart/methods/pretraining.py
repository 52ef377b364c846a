"""Pretraining: train a network from scratch on a source dataset and write its weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from headstart.backbones.backbone import load
from headstart.backbones.catalog import resolve
from headstart.backbones.frozen import FrozenBackbone
from headstart.backbones.spec import BackboneSpec
from headstart.cache import Cache
from headstart.data.dataset import Dataset
from headstart.data.demo import regimes
from headstart.errors import UnknownNameError, UsageError
from headstart.features.extractor import Extractor
from headstart.files import scratch_folder
from headstart.methods.scratch import Scratch
from headstart.models.build import create_model
from headstart.training.optim import Training

__all__ = ["SMALL_ARCHITECTURE", "pretrain", "random_backbone", "random_like", "regime_backbone"]

SMALL_ARCHITECTURE = f"timm/test_resnet?crop={regimes.SIDE}&resize={regimes.SIDE}"
"""Network of the drawn sets: 0.4 million parameters, at most a second per epoch."""

_SOURCES: Mapping[str, Mapping[str, Any]] = {
    # Strong decay keeps the weights small, so the small fine-tuning rate can change them.
    "symbols": {"epochs": 12, "weight_decay": 10.0, "patience": 100},
    # Even stronger: an image without any structure leaves almost no activation in any layer.
    "blanks": {"epochs": 30, "weight_decay": 20.0, "patience": 100},
}


def random_backbone(architecture: str, *, seed: int = 0) -> FrozenBackbone:
    """Make a backbone with random weights, by the name of its architecture.

    Examples
    --------
    >>> random_backbone(SMALL_ARCHITECTURE).origin["from"]
    'random weights'
    """
    return random_like(resolve(architecture), seed=seed)


def random_like(spec: BackboneSpec, *, seed: int = 0) -> FrozenBackbone:
    """Make a backbone with random weights, by its spec.

    >>> random_like(resolve(SMALL_ARCHITECTURE)).width
    96
    """
    network = load(spec, pretrained=False, seed=seed)
    origin = {"sha256": "", "from": "random weights", "file": ""}
    return FrozenBackbone(spec=spec, state=network.trunk.state_dict(), origin=origin)


def pretrain(
    data: Dataset,
    path: str | Path,
    *,
    architecture: str = SMALL_ARCHITECTURE,
    method: Scratch | None = None,
    device: str = "auto",
) -> str:
    """Train an architecture from scratch on a source, and write the backbone's weights.

    Parameters
    ----------
    data : Dataset
        Training images; a share of them is held out for early stopping.
    path : str or Path
        File to write, ``*.safetensors``; it must not exist yet.
    architecture : str
        A name of the backbone grammar, with its options.
    method : Scratch, optional
    device : {"auto", "cpu", "cuda", "mps"}

    Returns
    -------
    str
        The backbone's name: ``file:<path>@<architecture>``.

    Raises
    ------
    UsageError
        If the file exists already.

    Examples
    --------
    >>> pretrain(regimes.blanks(), "blanks.safetensors")  # doctest: +SKIP
    'file:blanks.safetensors@timm/test_resnet?crop=32&resize=32'
    """
    from safetensors.torch import save_file

    path, method = Path(path), method or Scratch()
    if path.exists():
        raise UsageError(f"{path} exists already. Delete it, or pass another path.")
    start = create_model(random_backbone(architecture, seed=method.seed), data)
    with scratch_folder() as folder, Cache(folder) as cache:
        extractor = Extractor(cache=cache, engine="fp32", device=device)
        trained = method.fit(start, data, extractor=extractor).backbone
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: value.contiguous() for name, value in trained.state.items()}, path)
    return f"file:{path}@{architecture}"


def regime_backbone(regime: str, folder: str | Path, *, seed: int = 0) -> str:
    """Make the source backbone of a drawn set of ``headstart.data.demo.regimes``.

    Parameters
    ----------
    regime : {"near", "shifted", "hopeless"}
    folder : str or Path
        Folder of the weights; existing files are reused.
    seed : int
        Of the source's images and of the training.

    Returns
    -------
    str
        The backbone's name.

    Raises
    ------
    UnknownNameError
        If there is no such set.

    Examples
    --------
    >>> regime_backbone("near", "weights")  # doctest: +SKIP
    'file:weights/symbols-0.safetensors@timm/test_resnet?crop=32&resize=32'
    """
    if regime not in regimes.SOURCES:
        raise UnknownNameError("regime", regime, regimes.SOURCES)
    source = regimes.SOURCES[regime]
    path = Path(folder) / f"{source}-{seed}.safetensors"
    if path.exists():
        return f"file:{path}@{SMALL_ARCHITECTURE}"
    method = Scratch(training=Training(**_SOURCES[source]), seed=seed)
    return pretrain(regimes.make(source, seed), path, method=method, device="cpu")
