"""Weights of other domains: files laid out as their authors publish them, served on loopback."""

import hashlib
import http.server
import io
import os
import threading
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save

from headstart.backbones.backbone import load
from headstart.backbones.catalog import resolve, table
from headstart.backbones.domains import LAYOUTS, domain_specs, rename_tensors
from headstart.errors import WeightsMismatchError

COMMIT = "0123456789abcdef0123456789abcdef01234567"
NAMES = [spec.name for spec in domain_specs()]


class Handler(http.server.BaseHTTPRequestHandler):
    """A mirror: every file under its name, or as the Hugging Face hub lays it out."""

    def do_HEAD(self):
        self.respond(body=False)

    def do_GET(self):
        self.respond(body=True)

    def respond(self, body):
        content = self.server.content
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *args):
        pass


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.delenv("HEADSTART_OFFLINE", raising=False)
    monkeypatch.setenv("HEADSTART_MIRROR", f"http://127.0.0.1:{server.server_port}")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def torch_file(values):
    """Write a file in the format of torch before 1.6, as these authors used it."""
    buffer = io.BytesIO()
    torch.save(values, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def network(name):
    """Return a network of the row's architecture and its state by the library's names."""
    backbone = load(resolve(name), pretrained=False, seed=1).eval()
    with torch.no_grad():
        for module in backbone.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.uniform_(-0.1, 0.1)
                module.running_var.uniform_(0.5, 2)
    return backbone, backbone.trunk.state_dict()


def places_file(state):
    parallel = {f"module.{name}": tensor for name, tensor in state.items()}
    head = {"module.fc.weight": torch.zeros(365, 8), "module.fc.bias": torch.zeros(365)}
    return torch_file(
        {"epoch": 90, "arch": "resnet18", "state_dict": parallel | head, "best_prec1": 54.0}
    )


def chexnet_file(state):
    def old(name):
        if "denselayer" in name:
            for layer in ("norm", "conv"):
                name = name.replace(f"{layer}1.", f"{layer}.1.").replace(
                    f"{layer}2.", f"{layer}.2."
                )
        return f"module.densenet121.{name}"

    head = {"module.densenet121.classifier.0.weight": torch.zeros(14, 1024)}
    return torch_file(
        {"epoch": 6, "state_dict": {old(name): tensor for name, tensor in state.items()} | head}
    )


def grey_file(state):
    first = state["features.conv0.weight"].sum(dim=1, keepdim=True)  # the same for grey
    extra = {"op_threshs": torch.zeros(18), "classifier.weight": torch.zeros(18, 1024)}
    return save(state | {"features.conv0.weight": first} | extra)


def with_bands(state, n_bands, places):
    first = torch.rand(state["conv1.weight"].shape[0], n_bands, 7, 7)
    first[:, list(places)] = state["conv1.weight"]
    return state | {"conv1.weight": first}


def bigearthnet_file(state):
    wide = with_bands(state, 10, (2, 1, 0))
    head = {"fc.weight": torch.zeros(19, 2048)}
    return save({f"model.vision_encoder.{name}": t for name, t in (wide | head).items()})


def file_of(name, state):
    if name.startswith("places365"):
        return places_file(state)
    if name == "xray/chexnet":
        return chexnet_file(state)
    if name.startswith("xray"):
        return grey_file(state)
    if name.endswith("13bands"):
        return torch_file(with_bands(state, 13, (3, 2, 1)))
    return bigearthnet_file(state) if name.endswith("bigearthnet") else torch_file(state)


def with_hash_of(spec, content):
    """Return the row with the hash of the test's file, if the row has one."""
    return replace(spec, sha256=hashlib.sha256(content).hexdigest() if spec.sha256 else "")


@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith("coco")])
def test_a_published_file_becomes_the_network_that_was_published(name, mirror):
    """Download from the mirror, rename, load strictly: the same features."""
    published, state = network(name)
    mirror.content = file_of(name, state)
    backbone = load(with_hash_of(resolve(name), mirror.content)).eval()
    images = torch.rand(2, 3, 64, 64)
    if name.startswith("xray/densenet"):  # a network for grey images
        images = images.mean(dim=1, keepdim=True).expand(-1, 3, -1, -1)
    with torch.no_grad():
        torch.testing.assert_close(backbone(images), published(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("detector", ["fasterrcnn"])
def test_the_backbone_of_a_detector_computes_what_it_computes_inside(detector, mirror):
    """Reference: the ResNet of torchvision's published detectors, whose epsilon is 0."""
    from torchvision.models import resnet50
    from torchvision.models._utils import IntermediateLayerGetter
    from torchvision.ops.misc import FrozenBatchNorm2d

    body = IntermediateLayerGetter(resnet50(norm_layer=FrozenBatchNorm2d), {"layer4": "3"}).eval()
    for module in body.modules():
        if isinstance(module, FrozenBatchNorm2d):
            module.eps = 0.0
            module.running_var.uniform_(1e-4, 1e-2)
            module.weight.copy_(1.5 * module.running_var.sqrt())  # keeps the maps finite
    state = {f"backbone.body.{name}": tensor for name, tensor in body.state_dict().items()}
    others = {"rpn.head.conv.0.0.bias": torch.zeros(1), "backbone.fpn.bias": torch.zeros(1)}
    mirror.content = torch_file(state | others)
    backbone = load(with_hash_of(resolve(f"coco/resnet50.{detector}"), mirror.content)).eval()
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        expected = body(images)["3"]
        largest = expected.abs().max()
        error = (backbone.run(images) - expected).abs().max() / largest
        assert error < 1e-4  # 0.1 with the variances of the file


@pytest.mark.parametrize("detector", ["fasterrcnn", "maskrcnn"])
def test_rows_of_detectors_are_torchvisions(detector):
    from torchvision.models import get_model_weights

    spec = resolve(f"coco/resnet50.{detector}")
    addresses = [entry.url for entry in get_model_weights(f"{detector}_resnet50_fpn")]
    assert spec.url in addresses


@pytest.mark.parametrize("name", NAMES)
def test_a_row_says_where_it_comes_from(name):
    spec = table()[name]
    assert spec.source == "other"
    assert spec.layout in LAYOUTS
    assert "ImageNet-1k" != spec.data != ""
    assert spec.url or spec.repo
    assert spec.sha256 in spec.file


def test_a_users_copy_has_the_same_layout(tmp_path):
    """``file:`` with the row's name as architecture."""
    published, state = network("xray/chexnet")
    (tmp_path / "mine.pth").write_bytes(chexnet_file(state))
    backbone = load(f"file:{tmp_path / 'mine.pth'}@xray/chexnet").eval()
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(backbone(images), published(images))


def test_the_preprocessing_travels_with_the_weights():
    """X-rays from -1024 to 1024; reflectances where 255 stands for 0.3."""
    white = torch.full((1, 224, 224, 3), 255, dtype=torch.uint8).permute(0, 3, 1, 2)
    xray = resolve("xray/densenet121").preprocess
    assert xray.normalise(white).unique().tolist() == [1024.0]
    assert xray.normalise(white * 0).unique().tolist() == [-1024.0]
    satellite = resolve("satellite/resnet18").preprocess
    assert satellite.normalise(white).unique().tolist() == pytest.approx([0.3])


def test_the_file_of_another_network_is_refused():
    with pytest.raises(WeightsMismatchError, match="layout 'chexnet', got names such as 'conv1"):
        rename_tensors("chexnet", {"conv1.weight": torch.zeros(1)})


def test_a_whole_model_in_a_pickle_is_refused(tmp_path):
    """The older files ``whole_resnet18_places365.pth.tar`` hold code."""
    torch.save(torch.nn.Linear(1, 1), tmp_path / "whole_resnet18_places365.pth.tar")
    with pytest.raises(WeightsMismatchError, match=r"Save model\.state_dict\(\)"):
        load(f"file:{tmp_path / 'whole_resnet18_places365.pth.tar'}@places365/resnet18")
