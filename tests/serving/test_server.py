"""The process of a server: address, and what Pillow says of damaged files."""

from __future__ import annotations

import subprocess
import sys
import warnings
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI

from headstart.serving.requests import Limits
from headstart.serving.server import Settings, run_server

WITHOUT_TORCH = """
import sys
for name in ("torch", "torchvision", "timm", "sklearn", "matplotlib", "safetensors"):
    sys.modules[name] = None
from pathlib import Path
from fastapi.testclient import TestClient
from headstart.cache import Cache
from headstart.serving.requests import Limits
from headstart.serving.server import Settings, build_app
app = build_app({"cats": Path(sys.argv[1])}, Settings(), Limits(), cache=Cache())
with TestClient(app) as client:
    answer = client.post("/predict", content=b"P5 2 1 255 \\x00\\xff")
    print(answer.status_code, answer.json()[0]["label"])
"""


def test_an_exported_file_is_served_without_torch(exported_files: Any) -> None:
    words = [sys.executable, "-c", WITHOUT_TORCH, str(exported_files["image"])]
    printed = subprocess.run(words, capture_output=True, text=True, check=False)
    assert printed.stdout[:4] == "200 ", printed.stderr


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_clients_cannot_fill_the_log_with_warnings(
    host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def warn(server: uvicorn.Server, sockets: Any) -> None:
        warnings.warn_explicit("damaged tag 17", UserWarning, "x.py", 1, "PIL.TiffImagePlugin")
        raise KeyboardInterrupt

    addresses: list[str] = []
    monkeypatch.setattr(uvicorn.Server, "run", warn)
    run_server(FastAPI(), Settings(host=host, port=0), Limits(), on_start=addresses.append)
    (address,) = addresses
    assert address.startswith(f"http://{host}:")
    assert not address.endswith(":0")
