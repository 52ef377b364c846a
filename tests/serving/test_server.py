"""The process of a server: address, and what Pillow says of damaged files."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI

from headstart.serving.requests import Limits
from headstart.serving.server import Settings, run_server


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
