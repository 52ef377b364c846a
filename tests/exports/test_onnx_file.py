"""ONNX files of a classifier: one file, any batch, no traces; failures in one sentence."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from headstart.errors import ExportError, MissingExtraError, UsageError
from headstart.exports import onnx_file as room
from headstart.exports.network import ClassNetwork, converting
from headstart.exports.onnx_file import OPSET, onnx_file


def test_the_graph_takes_any_batch_and_holds_no_path(
    classifier: Any, classifier_graph: Any
) -> None:
    assert {one.domain: one.version for one in classifier_graph.opset_import}[""] == OPSET
    content = classifier_graph.SerializeToString()
    assert b".py" not in content
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    network = ClassNetwork(classifier)
    for n in (1, 5):
        pixels = torch.randn(n, 3, *classifier.backbone.spec.preprocess.shape)
        with torch.no_grad():
            expected = network(pixels).numpy()
        (actual,) = session.run(["probabilities"], {"pixels": pixels.numpy()})
        assert np.abs(actual - expected).max() < 1e-5
        assert np.allclose(actual.sum(axis=1), 1, atol=1e-5)


@pytest.mark.usefixtures("quick_export")
def test_the_file_has_its_input_and_entries(classifier: Any) -> None:
    for takes_images, name in ((True, "image"), (False, "pixels")):
        content = onnx_file(classifier, {"headstart/x": '"\u00f6"'}, takes_images=takes_images)
        graph = onnx.load_from_string(content)
        onnx.checker.check_model(graph)
        assert [value.name for value in graph.graph.input] == [name]
        assert {prop.key: prop.value for prop in graph.metadata_props} == {
            "headstart/x": '"\u00f6"'
        }


@pytest.mark.usefixtures("quick_export")
def test_a_file_that_is_too_large_is_refused(
    classifier: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "MOST_BYTES", 1000)
    with pytest.raises(ExportError, match="at most 2 GB"):
        onnx_file(classifier, {}, takes_images=False)


def test_several_labels_have_a_sigmoid_each(classifier: Any) -> None:
    task = replace(classifier.task, kind="multilabel", max_risk=None, selected=None)
    model = replace(classifier, task=task)
    pixels = torch.randn(2, 3, 160, 160)
    features = classifier.backbone.module(pixels).detach().numpy()
    expected = task.probabilities(classifier.head.logits(features))
    with torch.no_grad():
        assert np.abs(ClassNetwork(model)(pixels).numpy() - expected).max() < 1e-5


def test_a_failed_conversion_is_one_silent_sentence(capfd: pytest.CaptureFixture[str]) -> None:
    class Undecided(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if x.sum() > 0 else -x

    with (
        pytest.raises(ExportError, match=r"^my/net cannot be exported to onnx: [^\n]*$") as caught,
        converting("my/net", "onnx"),
    ):
        torch.onnx.export(Undecided(), (torch.ones(2),), dynamo=True, verbose=True)
    assert len(str(caught.value)) < 500
    assert "--to onnx" in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_what_cannot_be_exported(classifier: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="not fitted"):
        onnx_file(replace(classifier, head=None), {}, takes_images=False)
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    with pytest.raises(MissingExtraError, match=r"headstart\[export\]"):
        onnx_file(classifier, {}, takes_images=False)
