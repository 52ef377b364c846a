"""Graphs with 8-bit integers: exact enough, layers that stay in float32, and the sensitive ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from headstart.errors import ExportError
from headstart.exports.int8_graph import calibrate


def _batches(shape: tuple[int, int]) -> list[Any]:
    rng = np.random.default_rng(0)
    return [rng.normal(size=(4, 3, *shape)).astype(np.float32) for _ in range(2)]


def _run(graph: Any, pixels: Any) -> Any:
    session = onnxruntime.InferenceSession(
        graph.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(None, {"pixels": pixels})[0]


def test_the_graph_has_small_weights_and_nearly_the_same_output(
    classifier: Any, classifier_graph: Any
) -> None:
    batches = _batches(classifier.backbone.spec.preprocess.shape)
    calibrated = calibrate(classifier_graph, batches)
    expected = _run(classifier_graph, batches[0])
    quantised = calibrated.quantise()
    kinds = {one.name: one.data_type for one in quantised.graph.initializer}
    signed = [name for name, kind in kinds.items() if kind == onnx.TensorProto.INT8]
    assert len(signed) >= len(calibrated.layers)
    # Per channel: the scales of a convolution are a vector.
    scales = {one.name: one.dims for one in quantised.graph.initializer if "scale" in one.name}
    assert any(len(dims) == 1 and dims[0] > 1 for dims in scales.values())
    assert 0 < np.abs(_run(quantised, batches[0]) - expected).max() < 0.2
    exact = calibrated.quantise(kept=calibrated.layers)
    assert np.abs(_run(exact, batches[0]) - expected).max() < 1e-5


def test_the_most_sensitive_layer_comes_first(classifier: Any, classifier_graph: Any) -> None:
    batches = _batches(classifier.backbone.spec.preprocess.shape)[:1]
    calibrated = calibrate(classifier_graph, batches)
    ranked = calibrated.rank_layers(batches)
    assert sorted(ranked) == sorted(calibrated.layers)
    expected = _run(calibrated.graph, batches[0])
    losses = [
        np.abs(_run(calibrated.quantise(only=[node]), batches[0]) - expected).mean()
        for node in (ranked[0], ranked[-1])
    ]
    assert losses[0] > losses[1]


def test_a_graph_that_cannot_be_calibrated(classifier_graph: Any) -> None:
    with pytest.raises(ExportError, match=r"cannot be converted to 8 bits: .*--int8"):
        calibrate(classifier_graph, [np.zeros((1, 5, 8, 8), np.float32)])
