"""Weights of one's own: a network trained from scratch on a source, as a file to start from."""

from __future__ import annotations

import tempfile
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
from headstart.methods.scratch import Scratch
from headstart.models.build import create_model
from headstart.training.optim import Training

__all__ = ["SMALL", "pretrain", "random_backbone", "random_like", "regime_backbone"]

SMALL = f"timm/test_resnet?crop={regimes.SIDE}&resize={regimes.SIDE}"
"""The network of the drawn sets: 0.4 million parameters, a second or less an epoch."""

_SOURCES: Mapping[str, Mapping[str, Any]] = {
    # A strong decay makes weights small, so that the small rate of fine-tuning moves them.
    "symbols": {"epochs": 12, "weight_decay": 10.0, "patience": 100},
    # Stronger still: what is left of a blank behind each layer is next to nothing.
    "blanks": {"epochs": 30, "weight_decay": 20.0, "patience": 100},
}


def random_backbone(architecture: str, *, seed: int = 0) -> FrozenBackbone:
    """Draw an architecture's weights, instead of loading them.

    Examples
    --------
    >>> random_backbone(SMALL).origin["from"]
    'random weights'
    """
    return random_like(resolve(architecture), seed=seed)


def random_like(spec: BackboneSpec, *, seed: int = 0) -> FrozenBackbone:
    """Draw the weights of a backbone anew, instead of reading them.

    >>> random_like(resolve(SMALL)).width
    96
    """
    network = load(spec, pretrained=False, seed=seed)
    origin = {"sha256": "", "from": "random weights", "file": ""}
    return FrozenBackbone(spec=spec, state=network.trunk.state_dict(), origin=origin)


def pretrain(
    data: Dataset,
    path: str | Path,
    *,
    architecture: str = SMALL,
    method: Scratch | None = None,
    device: str = "auto",
) -> str:
    """Train an architecture from scratch on a source, and write its backbone.

    Parameters
    ----------
    data : Dataset
        All of it is learned from, but for what stops the training.
    path : str or Path
        File to write, ``*.safetensors``; it must not be there yet.
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
        If the file is there already.

    Examples
    --------
    >>> pretrain(regimes.blanks(), "blanks.safetensors")  # doctest: +SKIP
    'file:blanks.safetensors@timm/test_resnet?crop=32&resize=32'
    """
    from safetensors.torch import save_file

    path, method = Path(path), method or Scratch()
    if path.exists():
        raise UsageError(f"Expected a new file to write weights to, got {path}; do delete it.")
    start = create_model(random_backbone(architecture, seed=method.seed), data)
    with tempfile.TemporaryDirectory() as folder, Cache(Path(folder)) as cache:
        extractor = Extractor(cache=cache, engine="fp32", device=device)
        trained = method.fit(start, data, extractor=extractor).backbone
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: value.contiguous() for name, value in trained.state.items()}, path)
    return f"file:{path}@{architecture}"


def regime_backbone(regime: str, folder: str | Path, *, seed: int = 0) -> str:
    """Make the backbone that a drawn set of ``headstart.data.regimes`` is to start from.

    Parameters
    ----------
    regime : {"near", "shifted", "hopeless"}
    folder : str or Path
        Where the weights are kept; what is there is not made again.
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
        return f"file:{path}@{SMALL}"
    method = Scratch(training=Training(**_SOURCES[source]), seed=seed)
    return pretrain(regimes.make(source, seed), path, method=method, device="cpu")
