"""OpenVINO files of a model: the graph (.xml) with its description, and the weights (.bin)."""

from __future__ import annotations

from collections.abc import Mapping

from headstart.errors import MissingExtraError
from headstart.exports.network import BATCH, OUTPUTS, converting, traced_program
from headstart.features.graphs import has_openvino, import_openvino
from headstart.files import scratch_folder
from headstart.models.graph_files import PREFIX
from headstart.models.transfer_model import TransferModel

__all__ = ["openvino_files"]


def openvino_files(model: TransferModel, entries: Mapping[str, str]) -> dict[str, bytes]:
    """Convert a model for OpenVINO, in float32; the input is a batch of normalised pixels.

    Parameters
    ----------
    model : TransferModel
        A fitted classifier.
    entries : mapping of str to str
        The file's metadata.

    Returns
    -------
    dict of str to bytes
        Contents by the ending of the file: ``.bin`` and ``.xml``.

    Raises
    ------
    UsageError
        If the model is not fitted, or its task cannot be exported.
    ExportError
        If the network cannot be converted.
    MissingExtraError
        If OpenVINO is not installed.
    """
    if not has_openvino():
        raise MissingExtraError("openvino", extra="openvino")
    openvino, program = import_openvino(), traced_program(model, "openvino")
    with converting(model.backbone.spec.name, "openvino"):
        graph = openvino.convert_model(program)
    graph.inputs[0].get_tensor().set_names({BATCH})
    graph.outputs[0].get_tensor().set_names({OUTPUTS[model.task.name]})
    for name, value in entries.items():
        graph.set_rt_info(value, [PREFIX.rstrip("/"), name.removeprefix(PREFIX)])
    with scratch_folder() as folder:
        xml, weights = folder / "model.xml", folder / "model.bin"
        openvino.serialize(graph, xml, weights)
        return {".bin": weights.read_bytes(), ".xml": xml.read_bytes()}
