"""The server as a process: signals, requests that have begun, a changed model, many clients."""

from __future__ import annotations

import http.client
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

START = (
    "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "from headstart.cli.app import main; sys.argv[0] = 'headstart'; main()"
)
Start = Callable[..., tuple["subprocess.Popen[str]", int]]


@pytest.fixture
def start(classifier: Any, tmp_path: Path) -> Iterator[Start]:
    """Start a server of a tiny model on any free port; return the process and the port."""
    processes = []
    classifier.save(tmp_path / "cats")

    def begin(*flags: str) -> tuple[subprocess.Popen[str], int]:
        words = [
            sys.executable,
            "-c",
            START,
            "serve",
            str(tmp_path / "cats"),
            "--port",
            "0",
            *flags,
        ]
        process = subprocess.Popen(
            words, stdout=subprocess.PIPE, text=True, env={**os.environ, "COLUMNS": "200"}
        )
        processes.append(process)
        assert process.stdout is not None
        address = re.search(r"http://127\.0\.0\.1:(\d+)", process.stdout.readline())
        assert address is not None
        return process, int(address[1])

    yield begin
    for process in processes:
        process.kill()
        process.communicate()


def draw_image(tmp_path: Path) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    return (tmp_path / "a.png").read_bytes()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_the_request_that_has_begun_finish(
    start: Start, tmp_path: Path, number: signal.Signals
) -> None:
    content = draw_image(tmp_path)
    process, port = start()
    client, late = (http.client.HTTPConnection("127.0.0.1", port, timeout=10) for _ in range(2))
    client.putrequest("POST", "/predict")
    client.putheader("Content-Type", "image/png")
    client.putheader("Content-Length", str(len(content)))
    client.endheaders(content[:100])
    time.sleep(0.3)  # until the server has read the first part
    process.send_signal(number)
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
