"""ONNX file of a model: network, preprocessing and description in one file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from headstart.data.transforms.preprocess import Preprocess
from headstart.errors import ExportError, MissingExtraError
from headstart.exports.network import BATCH, OUTPUTS, converting, network_of
from headstart.exports.pixel_graph import pixel_graph
from headstart.models.transfer_model import TransferModel

if TYPE_CHECKING:
    from onnx import ModelProto

__all__ = ["OPSET", "convert", "onnx_file"]

OPSET = 20
MOST_BYTES = 2_000_000_000
"""Protocol buffers, the format of ONNX files, hold at most 2 GB."""


def onnx_file(
    model: TransferModel,
    entries: Mapping[str, str],
    *,
    takes_images: bool,
    network: ModelProto | None = None,
) -> bytes:
    """Write a model as the content of one ONNX file.

    Parameters
    ----------
    model : TransferModel
        A fitted classifier.
    entries : mapping of str to str
        The file's metadata.
    takes_images : bool
        Put the preprocessing into the graph: the input is then ``image``, uint8 (height, width, 3)
        of any size. Otherwise the input is ``pixels``, float32 (n, 3, height, width), normalised.
    network : ModelProto, optional
        The network's graph, if it was converted before.

    Raises
    ------
    UsageError
        If the model is not fitted, or its task cannot be exported.
    ExportError
        If the network cannot be converted, or is too large for one file.
    MissingExtraError
        If the package onnx or onnxscript is missing.
    """
    _require_packages()
    import onnx

    graph = convert(model) if network is None else _copy(network)
    if takes_images:
        graph = _with_preprocessing(graph, model.backbone.spec.preprocess)
    onnx.helper.set_model_props(graph, dict(entries))
    graph.producer_name = "headstart"
    if graph.ByteSize() > MOST_BYTES:
        raise ExportError(
            f"{model.backbone.spec.name} has {graph.ByteSize() / 1e9:.1f} GB, and one ONNX file "
            "holds at most 2 GB. Export it with --to pt2."
        )
    content: bytes = graph.SerializeToString()
    return content


def _require_packages() -> None:
    for package in ("onnx", "onnxscript"):
        try:
            __import__(package)
        except ImportError as error:
            raise MissingExtraError(package, extra="export") from error


def convert(model: TransferModel) -> ModelProto:
    """Convert a model's network, from normalised pixels to the output, without the description.

    Raises
    ------
    UsageError, ExportError
        As ``onnx_file``.
    """
    import torch

    network, spec = network_of(model), model.backbone.spec
    example = torch.zeros(2, 3, *spec.preprocess.shape)
    with converting(spec.name, "onnx"), torch.no_grad():
        program = torch.onnx.export(
            network,
            (example,),
            dynamo=True,
            opset_version=OPSET,
            dynamic_shapes=({0: torch.export.Dim("images", min=1)},),
            input_names=[BATCH],
            output_names=[OUTPUTS[model.task.name]],
            verbose=False,
        )
    if program is None:
        raise ExportError(f"{spec.name} cannot be exported to onnx. Export it with --to pt2.")
    return _without_traces(program.model_proto)


def _copy(graph: ModelProto) -> ModelProto:
    copy = type(graph)()
    copy.CopyFrom(graph)
    return copy


def _without_traces(graph: ModelProto) -> ModelProto:
    """Drop the exporter's notes: they hold paths of the machine and stack traces."""
    groups = (graph.graph.node, graph.graph.value_info, graph.graph.input, graph.graph.output)
    for item in [
        graph.graph,
        *graph.graph.initializer,
        *(one for group in groups for one in group),
    ]:
        del item.metadata_props[:]
        item.doc_string = ""
    return graph


def _with_preprocessing(graph: ModelProto, preprocess: Preprocess) -> ModelProto:
    """Put preprocessing before the network; the batch becomes one image."""
    import onnx

    prepared = f"prepared_{BATCH}"
    before = onnx.compose.add_prefix(
        pixel_graph(preprocess, prepared, opset=OPSET, ir_version=graph.ir_version),
        "preprocessing/",  # the names of the network's tensors may be the same
        rename_inputs=False,
        rename_outputs=False,
    )
    merged: ModelProto = onnx.compose.merge_models(before, graph, io_map=[(prepared, BATCH)])
    return merged
