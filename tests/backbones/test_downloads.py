"""A wrong or hostile server leaves nothing half or wrong, and nothing outside the cache."""

import hashlib
import http.server
import json
import threading
import time

import pytest

from headstart.backbones import downloads
from headstart.backbones.catalog import resolve
from headstart.backbones.downloads import DownloadError, download, download_hub_file
from headstart.errors import HeadstartError, UsageError, WeightsMismatchError

CONTENT = b"bytes with a hash " * 500
SHA256 = hashlib.sha256(CONTENT).hexdigest()
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Handler(http.server.BaseHTTPRequestHandler):
    """Answer as the server's ``answer`` says; it gets the request."""

    def do_HEAD(self):
        self.server.heads += 1
        self.server.head(self)

    def do_GET(self):
        self.server.headers_of_gets.append(dict(self.headers))
        self.server.get(self)

    def log_message(self, *args):
        pass


def send(request, content=CONTENT, *, status=200, length=None, body=True, **headers):
    request.send_response(status)
    if length != "none":
        request.send_header("Content-Length", str(len(content) if length is None else length))
    for name, value in headers.items():
        request.send_header(name.replace("_", "-"), value)
    request.end_headers()
    if body:
        request.wfile.write(content)


def trickle(request):
    send(request, b"", length=len(CONTENT))
    for byte in CONTENT[:100]:
        request.wfile.write(bytes([byte]))
        request.wfile.flush()
        time.sleep(0.02)


def endless(request):
    send(request, b"", length="none")
    while True:
        request.wfile.write(b"x" * 4096)


def stall(request):
    send(request, CONTENT[:10], length=len(CONTENT))
    time.sleep(1.0)


HOSTILE = {
    "stalls": stall,
    "trickles": trickle,
    "never ends": endless,
    "cuts": lambda request: send(request, CONTENT[:100], length=len(CONTENT)),
    "announces too much": lambda request: send(request, CONTENT, length=10**15),
    "other content": lambda request: send(request, b"other" * 100),
    "nothing": lambda request: send(request, b""),
    "an error page": lambda request: send(request, b"<html>", status=500),
    "redirects to a file": lambda r: send(r, status=302, Location="file:///etc/passwd"),
    "redirects to ftp": lambda r: send(r, status=302, Location="ftp://127.0.0.1/x"),
    "redirects to itself": lambda r: send(r, status=302, Location=r.path),
    "no http": lambda r: r.wfile.write(b"\0" * 100),
}


@pytest.fixture
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as instance:
        instance.daemon_threads = True
        instance.block_on_close = False
        instance.heads, instance.headers_of_gets = 0, []
        instance.get = send
        instance.head = lambda request: send(
            request, body=False, ETag=f'"{SHA256}"', X_Repo_Commit=COMMIT
        )
        instance.handle_error = lambda *_: None  # the client hangs up
        instance.address = f"http://127.0.0.1:{instance.server_port}"
        thread = threading.Thread(target=instance.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield instance
        instance.shutdown()
        thread.join()


@pytest.fixture
def short_limits(monkeypatch):
    monkeypatch.setattr(downloads, "TIMEOUT", 0.4)
    monkeypatch.setattr(downloads, "PATIENCE", 0.5)
    monkeypatch.setattr(downloads, "MAX_BYTES", 10**6)


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_download_ends_soon_and_leaves_nothing(kind, server, short_limits, tmp_path):
    server.get = HOSTILE[kind]
    start = time.monotonic()
    with pytest.raises((DownloadError, WeightsMismatchError)):
        download(f"{server.address}/w.pth", tmp_path / "cache" / "w.pth", SHA256)
    assert time.monotonic() - start < 5
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_good_download_is_whole(server, tmp_path):
    assert download(f"{server.address}/w.pth", tmp_path / "w.pth", SHA256[:8]) == SHA256
    assert [path.name for path in tmp_path.iterdir()] == ["w.pth"]
    assert (tmp_path / "w.pth").read_bytes() == CONTENT


def test_a_failed_download_keeps_the_file_that_is_there(server, tmp_path):
    (tmp_path / "w.pth").write_bytes(b"old")
    server.get = HOSTILE["other content"]
    with pytest.raises(WeightsMismatchError, match="was deleted"):
        download(f"{server.address}/w.pth", tmp_path / "w.pth", SHA256)
    assert (tmp_path / "w.pth").read_bytes() == b"old"


BAD_HASHES = [
    "../../../victim",
    "/victim",
    "..",
    "",
    "A" * 64,
    "g" * 64,
    "0" * 63,
    "0" * 65,
    "a" * 5000,
    'W/"' + "a" * 40 + "/../../victim",
    "victim\\..\\..",
]


@pytest.mark.parametrize("name", ["ETag", "X-Linked-Etag", "X-Repo-Commit"])
@pytest.mark.parametrize("bad", BAD_HASHES)
def test_a_hash_of_a_hub_that_is_none_makes_no_path(name, bad, server, tmp_path):
    headers = {"ETag": f'"{SHA256}"', "X-Repo-Commit": COMMIT} | {name: bad}
    server.head = lambda request: send(request, body=False, **headers)
    if name == "X-Linked-Etag" and bad == "":
        return  # an empty header is no header
    folder = tmp_path / "cache" / "models--org--model"
    with pytest.raises(DownloadError, match="not hexadecimal digits"):
        download_hub_file(f"{server.address}/org/model/resolve/main/m", folder, "main", "m")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_hub_file_has_the_layout_of_the_hubs_client(server, tmp_path):
    url = f"{server.address}/org/model/resolve/main/model.safetensors"
    path = download_hub_file(url, tmp_path, "main", "model.safetensors")
    assert path == tmp_path / "snapshots" / COMMIT / "model.safetensors"
    assert path.resolve() == tmp_path / "blobs" / SHA256
    assert path.read_bytes() == CONTENT
    assert (tmp_path / "refs" / "main").read_text() == COMMIT
    server.get = HOSTILE["other content"]  # not asked for again
    assert download_hub_file(url, tmp_path, "main", "model.safetensors") == path


@pytest.mark.parametrize("revision", ["../../victim", "..", "a/b", ".", ""])
def test_a_revision_makes_no_path(revision, server, tmp_path):
    url = f"{server.address}/org/model/resolve/x/m"
    download_hub_file(url, tmp_path / "cache", revision, "m")
    assert not (tmp_path / "cache" / "refs").exists()
    assert not (tmp_path / "victim").exists()


def test_the_token_goes_to_the_hub_and_not_to_where_it_sends_us(server, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    url = f"{server.address}/org/model/resolve/main/m"
    download_hub_file(url, tmp_path / "a", "main", "m")
    assert server.headers_of_gets[-1]["Authorization"] == "Bearer hf_secret"
    elsewhere = server.address.replace("127.0.0.1", "localhost")
    hops = iter([302, 200])
    server.get = lambda r: send(r, status=next(hops), Location=f"{elsewhere}/m")
    download_hub_file(url, tmp_path / "b", "main", "m")
    assert "Authorization" not in server.headers_of_gets[-1]


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://host/x", "x" * 5000])
def test_another_scheme_is_refused_in_a_short_message(url, tmp_path):
    with pytest.raises(UsageError, match="begins with http") as raised:
        download(url, tmp_path / "w", "")
    assert len(str(raised.value)) < 1000


CONFIGS = {
    "a path": {"model_args": {"pretrained_cfg_overlay": {"file": "/etc/passwd"}}},
    "a checkpoint": {"model_args": {"checkpoint_path": "/etc/passwd"}},
    "a name that is none": {"model_args": {"../x": 1}},
    "a long value": {"model_args": {"act_layer": "x" * 500}},
    "a list of lists": {"model_args": {"layers": [{"a": 1}]}},
    "options that are none": {"model_args": [1, 2]},
    "an odd size": {"pretrained_cfg": {"input_size": [3, 1e300, 1e300]}},
    "a negative size": {"pretrained_cfg": {"input_size": [3, -1, -1]}},
    "two numbers": {"pretrained_cfg": {"mean": [0.5, 0.5]}},
    "a text": {"pretrained_cfg": {"mean": "abc"}},
    "a deviation of 0": {"pretrained_cfg": {"std": [0.0, 0.5, 0.5]}},
    "nan": {"pretrained_cfg": {"std": [float("nan"), 0.5, 0.5]}},
    "a crop of 0": {"pretrained_cfg": {"crop_pct": 0}},
    "an unknown filter": {"pretrained_cfg": {"interpolation": "../x"}},
    "an object as licence": {"pretrained_cfg": {"license": {"a": "b"}}},
    "a config that is none": {"pretrained_cfg": "x"},
    "a path as architecture": {"architecture": "../../victim"},
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_config_with_impossible_values_is_refused(kind, server, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_ENDPOINT", server.address)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HEADSTART_OFFLINE", "0")
    content = json.dumps({"architecture": "resnet18", **CONFIGS[kind]}).encode()
    etag = hashlib.sha256(content).hexdigest()
    headers = {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT}
    server.head = lambda request: send(request, content, body=False, **headers)
    server.get = lambda request: send(request, content, **headers)
    with pytest.raises(HeadstartError, match=r"org/model") as raised:
        resolve("hf/org/model")
    assert len(str(raised.value)) < 1000
