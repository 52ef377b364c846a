"""Endpoints: predictions, drawings, states, limits, keys, and no status 5xx for a bad request."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import headstart
from headstart.cache import Cache
from headstart.models.prediction_files import as_json
from headstart.serving import service
from headstart.serving.requests import Limits
from headstart.serving.server import Settings, build_app

Open = Callable[..., TestClient]


@pytest.fixture(scope="module")
def folder(classifier: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model and three images."""
    root = tmp_path_factory.mktemp("serving")
    classifier.save(root / "cats")
    rng = np.random.default_rng(0)
    for name in ("a.png", "b.jpg", "d\u00f6g.png"):
        Image.fromarray(rng.integers(0, 256, (60, 80, 3), dtype=np.uint8)).save(root / name)
    return root


@pytest.fixture(scope="module")
def open_client(folder: Path, exported_files: Any) -> Iterator[Open]:
    clients = []

    def start(keys: tuple[str, ...] = (), **limits: Any) -> TestClient:
        paths = {"cats": folder / "cats", "file": exported_files["image"]}
        app = build_app(paths, Settings(keys=keys), Limits(**limits), cache=Cache())
        clients.append(TestClient(app, raise_server_exceptions=False))
        return clients[-1].__enter__()

    yield start
    for client in clients:
        client.__exit__(None, None, None)


@pytest.fixture(scope="module")
def client(open_client: Open) -> TestClient:
    return open_client()


def test_every_kind_of_body_gets_the_rows_of_predict(client: TestClient, folder: Path) -> None:
    paths = sorted(folder.glob("*.*g"))
    model = headstart.load(folder / "cats")
    expected = [as_json(headstart.predict(model, p), model.task.classes)[0] for p in paths]
    contents = [path.read_bytes() for path in paths]
    form = [("files", (str(p), c, "image/png")) for p, c in zip(paths, contents, strict=True)]
    assert client.post("/predict", files=form).json() == expected
    images = [
        {"name": str(path), "data": base64.b64encode(content).decode()}
        for path, content in zip(paths, contents, strict=True)
    ]
    assert client.post("/predict", json={"images": images}).json() == expected
    for path, content, row in zip(paths, contents, expected, strict=True):
        answer = client.post("/predict", params={"name": str(path)}, content=content)
        assert answer.json() == [row]
        assert answer.headers["content-type"] == "application/json"


def test_several_models_by_name(client: TestClient, folder: Path) -> None:
    content = (folder / "a.png").read_bytes()
    by_name = [
        client.post("/predict", params={"model": m}, content=content) for m in ("cats", "file")
    ]
    first, second = (answer.json()[0]["probabilities"] for answer in by_name)
    assert first == pytest.approx(second, abs=0.02)
    assert [one["name"] for one in client.get("/models").json()] == ["cats", "file"]
    unknown = client.post("/predict?model=dogs", content=content)
    assert (unknown.status_code, unknown.json()["error"][:21]) == (404, "Unknown model: 'dogs'")


def test_heat_maps(client: TestClient, folder: Path) -> None:
    content = (folder / "a.png").read_bytes()
    answer = client.post("/overlay", params={"label": "=ant"}, content=content)
    assert answer.headers["content-type"] == "image/png"
    assert Image.open(io.BytesIO(answer.content)).size == (968, 360)
    for query, text in (
        ({"label": "bird"}, "Unknown class: 'bird'"),
        ({"model": "file"}, "no gradients"),
    ):
        refused = client.post("/overlay", params=query, content=content)
        assert refused.status_code == 422
        assert text in refused.json()["error"]
    two = [("files", ("a", content)), ("files", ("b", content))]
    assert client.post("/overlay", files=two).json()["error"].startswith("Got 2 images")


def test_states_and_documents(client: TestClient) -> None:
    assert client.get("/healthz").json() == {"status": "ok"}
    assert client.get("/readyz").json() == {"ready": True}
    client.get("/../etc/passwd")
    client.get("/no/such/%2e%2e")
    text = client.get("/metrics").text
    assert 'headstart_requests_total{path="/healthz",status="200"} 1.0' in text
    assert 'headstart_requests_total{path="other",status="404"}' in text
    assert "passwd" not in text
    described = client.get("/openapi.json").json()["paths"]
    assert set(described) == {"/predict", "/overlay", "/models", "/metrics", "/healthz", "/readyz"}
    assert set(described["/predict"]["post"]["requestBody"]["content"]) > {"application/json"}
    docs = client.get("/docs")
    assert "://" not in docs.text
    assert "default-src 'none'" in docs.headers["content-security-policy"]
    for method, path, status in (("GET", "/predict", 405), ("GET", "/src/", 404)):
        answer = client.request(method, path)
        assert answer.status_code == status
        assert answer.json()["error"].endswith("Open /docs for the list.")


def test_limits(open_client: Open, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = open_client(max_body=1, max_images=2, queue=1)
    content = (folder / "a.png").read_bytes()
    large = client.post("/predict", content=bytes(1_000_001))
    assert (large.status_code, "--max-body" in large.json()["error"]) == (413, True)
    chunks = client.post("/predict", content=(bytes(100_000) for _ in range(11)))
    assert chunks.status_code == 413
    three = client.post("/predict", files=[("files", (name, content)) for name in "abc"])
    assert three.status_code == 413
    two = client.post("/predict", files=[("files", (name, content)) for name in "ab"])
    assert (two.status_code, two.headers["retry-after"]) == (429, "1")
    monkeypatch.setattr(Limits, "most_bytes", 100)
    busy = client.post("/predict", content=content)
    assert (busy.status_code, busy.headers["retry-after"]) == (429, "1")
    monkeypatch.undo()
    monkeypatch.setattr(service, "LARGE_BODY", 1)  # parsed in a thread
    assert client.post("/predict", content=content).status_code == 200


def test_a_slow_prediction_ends(
    open_client: Open, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import time

    from headstart.serving.predictor import Predictor

    client = open_client(timeout=1)
    monkeypatch.setattr(Predictor, "__call__", lambda self, samples: time.sleep(1.2))
    slow = client.post("/predict", content=b"x")
    assert (slow.status_code, "--timeout" in slow.json()["error"]) == (503, True)
    monkeypatch.undo()
    assert client.post("/predict", content=(folder / "a.png").read_bytes()).status_code == 200


def test_keys(open_client: Open, folder: Path) -> None:
    client = open_client(keys=("one", "two"))
    content = (folder / "a.png").read_bytes()
    for headers, status in (
        ({}, 401),
        ({"x-api-key": "three"}, 401),
        ({"authorization": "Bearer onee"}, 401),
        ({"x-api-key": "two"}, 200),
        ({"authorization": "Bearer one"}, 200),
    ):
        assert client.post("/predict", content=content, headers=headers).status_code == status
        assert client.get("/models", headers=headers).status_code == status
        assert client.get("/metrics", headers=headers).status_code == status
    assert client.get("/readyz").status_code == 200


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_no_body_makes_the_server_fail(
    client: TestClient, folder: Path, data: st.DataObject
) -> None:
    image = bytearray((folder / "b.jpg").read_bytes())
    for at in data.draw(st.lists(st.integers(0, len(image) - 1), max_size=6)):
        image[at] = data.draw(st.integers(0, 255))
    damaged = bytes(image[: data.draw(st.integers(1, len(image)))])
    entries = st.recursive(
        st.none() | st.text(max_size=5) | st.integers() | st.floats(),
        lambda inner: (
            st.lists(inner, max_size=2)
            | st.dictionaries(st.sampled_from(["images", "data", "name"]), inner, max_size=3)
        ),
    )
    document = json.dumps({"images": data.draw(entries)}).encode()
    body = data.draw(st.sampled_from([damaged, document]) | st.binary(max_size=50))
    kind = data.draw(
        st.sampled_from(["image/jpeg", "application/json", "multipart/form-data", "x"])
    )
    path = data.draw(st.sampled_from(["/predict", "/predict?model=file", "/overlay"]))
    answer = client.post(path, content=body, headers={"content-type": kind})
    assert answer.status_code == 200 or 400 <= answer.status_code < 500
    if answer.status_code != 200:
        assert answer.json()["error"].endswith(".")
