import subprocess
import sys

import numpy as np
import pytest

from headstart.backbones.freezing import freeze
from headstart.cache import Cache
from headstart.features import graphs
from headstart.features.engines import compile_engine

pytestmark = pytest.mark.skipif(not graphs.has_openvino(), reason="openvino is not installed")


@pytest.fixture(scope="module")
def backbone():
    from dataclasses import replace

    from headstart.backbones.backbone import load
    from headstart.backbones.catalog import resolve

    spec = resolve("torchvision/resnet18")
    small = replace(spec.preprocess, resize=32, crop=32)
    return freeze(load(replace(spec, preprocess=small), pretrained=False))


def pixels():
    return np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)


def test_a_network_is_converted_once_for_all_its_stages(backbone, tmp_path, monkeypatch):
    cache = Cache(tmp_path)
    first = compile_engine(backbone, "openvino", device="cpu", cache=cache)(pixels())
    assert cache.stats().kinds["graph"][0] == 1
    monkeypatch.setattr(graphs, "_convert", lambda _: pytest.fail("converted again"))
    again = compile_engine(backbone, "openvino", device="cpu", cache=cache)(pixels())
    np.testing.assert_array_equal(again, first)
    for ends in (("layer1",), ("layer2", "layer3"), ("layer1", "")):
        found = compile_engine(backbone, "openvino", device="cpu", ends=ends, cache=cache)
        exact = compile_engine(backbone, "fp32", device="cpu", ends=ends)
        np.testing.assert_allclose(found(pixels()), exact(pixels()), rtol=1e-3, atol=1e-4)


def test_other_weights_are_converted_anew(backbone, tmp_path):
    import copy

    import torch

    cache = Cache(tmp_path)
    first = compile_engine(backbone, "openvino", device="cpu", cache=cache)(pixels())
    other = copy.deepcopy(backbone)
    with torch.no_grad():
        next(other.parameters()).mul_(2.0)
    features = compile_engine(other, "openvino", device="cpu", cache=cache)(pixels())
    assert cache.stats().kinds["graph"][0] == 2
    exact = compile_engine(other, "fp32", device="cpu")(pixels())
    np.testing.assert_allclose(features, exact, rtol=1e-3, atol=1e-4)
    assert np.abs(features - first).max() > 0.01


def test_a_damaged_graph_is_converted_anew(backbone, tmp_path):
    import sqlite3

    cache = Cache(tmp_path)
    first = compile_engine(backbone, "openvino", device="cpu", cache=cache)(pixels())
    with sqlite3.connect(cache.path) as db:
        db.execute("UPDATE bodies SET value = zeroblob(100)")
    again = compile_engine(backbone, "openvino", device="cpu", cache=cache)(pixels())
    np.testing.assert_array_equal(again, first)


def test_telemetry_is_not_imported():
    graphs.import_openvino()
    assert sys.modules.get("openvino_telemetry") is None


def test_a_network_that_cannot_be_converted_runs_in_torch_without_noise(tmp_path, capfd):
    import torch
    from torch import nn

    from headstart.backbones.frozen import FrozenBackbone
    from headstart.features.engines import choose_engine

    class Block(nn.Module):
        def __init__(self, inputs, outputs):
            super().__init__()
            self.conv = nn.Conv2d(inputs, outputs, 3, 2, 1)

        def forward(self, x):
            x = self.conv(x).relu()
            return x * 2 if x.mean().item() > 100 else x

    torch.manual_seed(0)
    network = FrozenBackbone.open(nn.Sequential(Block(3, 8), Block(8, 16), Block(16, 32)))
    choice = choose_engine(network, 500, device="cpu", cache=Cache(tmp_path))
    assert choice.engine in {"bf16", "fp32"}
    assert "conversion failed" in choice.describe()
    written = capfd.readouterr()
    assert written.out + written.err == ""


SIGNAL_AFTER_TWO_NETWORKS = """
import gc, signal, sys
import numpy as np, torch
from headstart.features.engines import compile_engine
from headstart.methods.pretraining import SMALL_ARCHITECTURE, random_backbone

signal.signal(signal.SIGINT, lambda *_: print("handled", flush=True))
images = np.zeros((2, 32, 32, 3), np.uint8)
networks = []
for _ in range(3):
    module = random_backbone(SMALL_ARCHITECTURE).module
    networks.append(compile_engine(module, "openvino", device="cpu"))
    networks[-1](images)
while networks:  # the first that was compiled is freed first
    networks.pop(0)
    gc.collect()
    signal.raise_signal(signal.SIGINT)
"""


def test_a_signal_is_handled_after_networks_are_freed():
    done = subprocess.run(
        [sys.executable, "-c", SIGNAL_AFTER_TWO_NETWORKS],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, (done.returncode, done.stderr[-500:])
    assert done.stdout.split() == ["handled"] * 3
