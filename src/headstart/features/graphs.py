"""Networks as OpenVINO graphs, converted once and kept in the cache by the hash of the weights.

A conversion takes seconds, reading a converted graph takes a tenth of a second. A graph has one
output for each stage, so that one conversion serves every set of stages.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr
from functools import lru_cache
from importlib.metadata import version
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from headstart.backbones.freezing import fingerprint
from headstart.cache import Cache, key
from headstart.files import scratch_folder

if TYPE_CHECKING:
    from headstart.backbones.backbone import Backbone

__all__ = ["has_openvino", "import_openvino", "network_identity", "openvino_core", "read_graph"]

GRAPH_VERSION = 1
"""Increased when a conversion gives another graph, so that stored graphs are not used."""
LARGEST_GRAPH = 600_000_000
"""Bytes of the largest graph that is stored; SQLite's values have at most 1 GB."""


def has_openvino() -> bool:
    """Whether the package openvino is installed. It is not imported."""
    return find_spec("openvino") is not None


def import_openvino() -> Any:
    """Import OpenVINO without its telemetry, which contacts an analytics host at import."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    return openvino


@lru_cache(maxsize=1)
def openvino_core() -> Any:
    """Return the one Core of this process, which is never freed.

    Each Core gives the thread that compiles a stack for signal handlers, and takes it away when
    it is freed. If a second Core is freed after the first one, the thread is left with a stack
    that does not exist, and the next signal (Ctrl-C) ends the process with a segmentation fault.
    """
    return import_openvino().Core()


def network_identity(backbone: Backbone) -> tuple[str, ...]:
    """Everything that a converted network depends on, as parts of a cache key."""
    spec = backbone.spec
    return (
        spec.architecture,
        repr(sorted(spec.model_options)),
        fingerprint(backbone.state_dict()),
        repr(spec.preprocess.shape),
        spec.until or "",
        spec.sha256 or "" if spec.source == "module" else "",
    )


def read_graph(backbone: Backbone, ends: Sequence[str], *, cache: Cache | None) -> Any:
    """Read the graph of a network from the cache, or convert the network and store the graph.

    Parameters
    ----------
    backbone : Backbone
        Constant (see ``freezing.freeze``).
    ends : sequence of str
        Stages whose spatial means the graph returns, in the order they run; an empty name stands
        for the pooled features.
    cache : Cache or None
        None converts the network and stores nothing.

    Returns
    -------
    openvino.Model
        From normalised images (n, 3, H, W) to one output for each of ``ends``.
    """
    openvino = import_openvino()
    entry = _graph_key(backbone)
    stored = cache.get_many([entry]).get(entry) if cache is not None else None
    if stored is None:
        stored = _pack(_convert(backbone))
        if cache is not None and len(stored) <= LARGEST_GRAPH:
            cache.put_many({entry: stored}, kind="graph")
    graph = openvino_core().read_model(*_unpack(stored))
    names = _all_ends(backbone)
    outputs = [graph.outputs[names.index(end)].get_node().input_value(0) for end in ends]
    return openvino.Model(outputs, graph.get_parameters())


def _graph_key(backbone: Backbone) -> bytes:
    packages = [version(package) for package in ("openvino", "torch")]
    return key("openvino graph", GRAPH_VERSION, *network_identity(backbone), *packages)


def _all_ends(backbone: Backbone) -> list[str]:
    return [*(stage.name for stage in backbone.stages[:-1]), ""]


def _convert(backbone: Backbone) -> Any:
    import torch
    from torch.export import Dim

    from headstart.backbones.backbone import StageRows

    example = torch.zeros(2, 3, *backbone.spec.preprocess.shape)
    module = StageRows(backbone, _all_ends(backbone))
    # torch prints the whole graph of a network that it cannot export.
    with torch.no_grad(), redirect_stderr(io.StringIO()):
        batch = ({0: Dim("images", min=1)},)
        exported = torch.export.export(module, (example,), dynamic_shapes=batch)
    return import_openvino().convert_model(exported)


def _pack(graph: Any) -> bytes:
    """Description and weights of a graph as one value: length of the first, then both."""
    with scratch_folder() as folder:
        xml, weights = folder / "graph.xml", folder / "graph.bin"
        import_openvino().serialize(graph, xml, weights)
        description = xml.read_bytes()
        return len(description).to_bytes(8, "big") + description + weights.read_bytes()


def _unpack(stored: bytes) -> tuple[bytes, bytes]:
    end = 8 + int.from_bytes(stored[:8], "big")
    return stored[8:end], stored[end:]
