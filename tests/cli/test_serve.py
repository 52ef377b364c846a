"""The server as a process: signals, requests that have begun, a changed model, many clients."""

from __future__ import annotations

import http.client
import importlib.util
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import headstart

ROOT = Path(__file__).parents[2]
REQUESTS = 2000
Start = Callable[..., tuple["subprocess.Popen[str]", int]]


def read_benchmark() -> Any:
    """The load of benchmarks/serving.py, which is no module of the package."""
    spec = importlib.util.spec_from_file_location("serving", ROOT / "benchmarks" / "serving.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["serving"] = module  # its dataclass looks itself up
    spec.loader.exec_module(module)
    return module


serving = read_benchmark()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return Path(serving.save_tiny(tmp_path / "tiny"))


@pytest.fixture
def start(model: Path) -> Iterator[Start]:
    """Start a server on any free port; return the process and the port."""
    processes = []

    def begin(*flags: str) -> tuple[subprocess.Popen[str], int]:
        process, port = serving.start_server(model, "--port", "0", *flags)
        processes.append(process)
        return process, port

    yield begin
    for process in processes:
        process.kill()
        process.communicate()


def test_ctrl_c_lets_the_request_that_has_begun_finish(start: Start) -> None:
    (content,) = serving.draw_images(1)
    process, port = start()
    client, late = (http.client.HTTPConnection("127.0.0.1", port, timeout=10) for _ in range(2))
    client.putrequest("POST", "/predict")
    client.putheader("Content-Type", "image/png")
    client.putheader("Content-Length", str(len(content)))
    client.endheaders(content[:100])
    time.sleep(0.3)  # until the server has read the first part
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    with pytest.raises(ConnectionRefusedError):  # no new connections
        late.request("GET", "/healthz")
    client.send(content[100:])
    answer = client.getresponse()
    assert (answer.status, answer.read()[:20]) == (200, b'[{"name": "image", "')
    client.close()
    late.close()
    printed, _ = process.communicate(timeout=10)
    assert process.returncode == 0
    assert "All requests that had begun are answered" in printed


def test_many_clients_lose_nothing_while_the_model_changes(start: Start, model: Path) -> None:
    images = serving.draw_images(16)
    old = serving.predictions_of(model, images)
    process, port = start("--queue", "24")  # fewer than the clients: some are asked to wait
    loaded = headstart.load(model)
    new = replace(loaded, task=replace(loaded.task, classes=tuple("vwxyz")))
    renamed = [dict(zip("vwxyz", row.values(), strict=True)) for row in old]
    memory = []

    def change(number: int) -> None:
        if number == REQUESTS // 4:
            new.save(model)
        if number % (REQUESTS // 4) == REQUESTS // 8:
            memory.append(serving.memory(process))

    load = serving.send_load(
        port,
        images,
        lambda image, row: row["probabilities"] in (old[image], renamed[image]),
        requests=REQUESTS,
        on_request=change,
    )
    assert (load.right, load.wrong) == (REQUESTS, [])
    assert max(memory) < 1.15 * memory[0], memory
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    assert serving.ask(client, 0, images[0])[0] == 200
    client.request("GET", "/models")
    (described,) = json.loads(client.getresponse().read())
    client.close()
    assert (described["version"], described["classes"]) == (2, list("vwxyz"))
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=10)
    assert process.returncode == 0
