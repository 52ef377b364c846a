"""Graph with 8-bit integers: calibration, conversion, and the layers that lose most by it."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from headstart.errors import ExportError, MissingExtraError
from headstart.files import scratch_folder
from headstart.runtime import cores

if TYPE_CHECKING:
    from onnx import ModelProto

__all__ = ["CalibratedGraph", "calibrate"]

OPERATORS = (
    *("Conv", "Gemm", "MatMul", "Add", "Mul", "Relu", "Clip", "Concat"),
    *("MaxPool", "AveragePool", "GlobalAveragePool"),
)
"""Operators that get 8-bit inputs. The softmax and the temperature stay in float32."""
WEIGHTED = ("Conv", "Gemm", "MatMul")
"""Operators with weights: the layers that can be kept in float32."""

Batches = Sequence[NDArray[np.float32]]


@dataclass(frozen=True, kw_only=True, eq=False)
class CalibratedGraph:
    """A float32 graph with the range of every tensor on the calibration images.

    Parameters
    ----------
    graph : ModelProto
        BatchNorm is folded into the convolutions.
    ranges : TensorsData
        Of ONNX Runtime: the smallest and the largest value of every tensor.
    layers : mapping of str to str
        Names of the layers by the names of their nodes, in the order of the graph.
    """

    graph: ModelProto = field(repr=False)
    ranges: Any = field(repr=False)
    layers: Mapping[str, str]

    def quantise(self, *, kept: Iterable[str] = (), only: Iterable[str] = ()) -> ModelProto:
        """Convert to 8 bits: activations unsigned, weights signed and per channel.

        Parameters
        ----------
        kept : iterable of str
            Nodes of layers that stay in float32, with the additions, products and poolings that
            follow them up to the next layers.
        only : iterable of str
            Nodes of layers to convert, with the same; all if empty.
        """
        from onnxruntime.quantization import QDQQuantizer, QuantType

        copy = type(self.graph)()
        copy.CopyFrom(self.graph)
        with _quiet():
            converter = QDQQuantizer(
                copy,
                per_channel=True,
                reduce_range=False,
                weight_qType=QuantType.QInt8,
                activation_qType=QuantType.QUInt8,
                tensors_range=self.ranges,
                nodes_to_quantize=self._with_followers(only),
                nodes_to_exclude=self._with_followers(kept),
                op_types_to_quantize=list(OPERATORS),
                extra_options={},
            )
            converter.quantize_model()
            converter.model.topological_sort()
        result: ModelProto = converter.model.model
        return result

    def _with_followers(self, nodes: Iterable[str]) -> list[str]:
        """Nodes, and all nodes between them and the next layers."""
        found, waiting = set(self.layers), list(nodes)
        names = list(waiting)
        consumers: dict[str, list[Any]] = {}
        for node in self.graph.graph.node:
            for name in node.input:
                consumers.setdefault(name, []).append(node)
        outputs = {node.name: node.output for node in self.graph.graph.node}
        while waiting:
            for name in outputs[waiting.pop()]:
                new = [node.name for node in consumers.get(name, ()) if node.name not in found]
                found.update(new)
                names += new
                waiting += new
        return names

    def rank_layers(self, batches: Batches) -> list[str]:
        """Nodes with weights, the most sensitive first.

        One layer at a time is converted. Its sensitivity is the mean difference of the outputs.

        Parameters
        ----------
        batches : sequence of array
        """
        reference = _outputs(self.graph, batches)
        losses = {
            node: float(np.abs(_outputs(self.quantise(only=[node]), batches) - reference).mean())
            for node in self.layers
        }
        return sorted(losses, key=lambda node: -losses[node])


def calibrate(graph: ModelProto, batches: Batches) -> CalibratedGraph:
    """Fold BatchNorm into the convolutions, and record the range of every tensor.

    Parameters
    ----------
    graph : ModelProto
        From normalised pixels to the output.
    batches : sequence of array, shape (n, 3, height, width)
        Normalised calibration images.

    Raises
    ------
    ExportError
        If ONNX Runtime cannot calibrate the graph.
    MissingExtraError
        If onnxruntime is not installed.
    """
    try:
        from onnxruntime.quantization import CalibrationMethod, create_calibrator
        from onnxruntime.quantization.shape_inference import quant_pre_process
    except ImportError as error:
        raise MissingExtraError("onnxruntime", extra="export") from error
    import onnx

    with scratch_folder(name="int8") as folder, _quiet():
        source, path = folder / "network.onnx", folder / "folded.onnx"
        onnx.save(graph, source)
        try:
            quant_pre_process(source, path, skip_symbolic_shape=True)
            calibrator = create_calibrator(
                path,
                list(OPERATORS),
                augmented_model_path=str(folder / "augmented.onnx"),
                calibrate_method=CalibrationMethod.MinMax,
                providers=["CPUExecutionProvider"],
            )
            calibrator.collect_data(_Reader(graph.graph.input[0].name, batches))
            ranges = calibrator.compute_data()
        except Exception as error:  # its exceptions have no common base
            first_line = str(error).strip().split("\n", 1)[0]
            raise ExportError(
                f"The graph cannot be converted to 8 bits: {first_line}. Export it without --int8."
            ) from error
        folded = onnx.load(path)
    return CalibratedGraph(graph=folded, ranges=ranges, layers=_find_layers(folded))


class _Reader:
    """Batches in the form that ONNX Runtime's calibration reads."""

    def __init__(self, name: str, batches: Batches):
        self._items = iter([{name: batch} for batch in batches])

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        return next(self._items, None)


def _find_layers(graph: ModelProto) -> dict[str, str]:
    """Layers with weights: the name of the weights without the ending, by the node's name."""
    weights = {one.name for one in graph.graph.initializer}
    return {
        node.name: next((n for n in node.input if n in weights), node.name).removesuffix(".weight")
        for node in graph.graph.node
        if node.op_type in WEIGHTED and any(name in weights for name in node.input)
    }


def _outputs(graph: ModelProto, batches: Batches) -> NDArray[np.float64]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = cores()
    session = onnxruntime.InferenceSession(
        graph.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    name = session.get_inputs()[0].name
    rows = [session.run(None, {name: batch})[0] for batch in batches]
    return np.concatenate(rows).astype(np.float64)


class _quiet:  # noqa: N801 - used as a function
    """Silence the warnings that ONNX Runtime logs while it converts."""

    def __enter__(self) -> None:
        self._level = logging.root.manager.disable
        logging.disable(logging.WARNING)

    def __exit__(self, *_: object) -> None:
        logging.disable(self._level)
