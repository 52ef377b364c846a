"""The verb serve: names of models, and what it refuses before it listens."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest

import headstart
from headstart.errors import MissingExtraError, SetupError, UsageError
from headstart.workflows import serve as verb
from headstart.workflows.serve import model_paths


def test_names_of_models(tmp_path: Path) -> None:
    (tmp_path / "a=b").mkdir()
    assert model_paths(tmp_path / "cats") == {"cats": tmp_path / "cats"}
    assert model_paths({"x": "runs/y"}) == {"x": Path("runs/y")}
    assert model_paths([f"x={tmp_path}/a=b", f"{tmp_path}/a=b", "runs/y/m.onnx"]) == {
        "x": tmp_path / "a=b",
        "a=b": tmp_path / "a=b",
        "y": Path("runs/y/m.onnx"),
    }
    (tmp_path / "current").symlink_to(tmp_path / "a=b")
    assert list(model_paths(tmp_path / "current")) == ["current"]
    with pytest.raises(UsageError, match=r"'cats' stands for cats and b/cats\. Write one"):
        model_paths(["cats", "b/cats"])
    with pytest.raises(UsageError, match="without a model"):
        model_paths([])


def test_wrong_arguments(classifier: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    classifier.save(tmp_path / "run")
    (tmp_path / "empty").write_text("\n \n")
    (tmp_path / "keys").write_bytes(b"\xff")
    for settings, message in (
        ({"port": 70_000}, r"`port` must be from 0 to 65535, got 70000"),
        ({"batch": 0}, r"`batch` must be from 1 to 256, got 0"),
        ({"queue": 0}, r"`queue` must be at least 1, got 0"),
        ({"quue": 3}, r"Unknown limit: 'quue'. Did you mean 'queue'"),
        ({"api_key_file": tmp_path / "none"}, r"none' cannot be read"),
        ({"api_key_file": tmp_path / "keys"}, r"keys' cannot be read"),
        ({"api_key_file": tmp_path / "empty"}, r"empty' has no key"),
    ):
        with pytest.raises(UsageError, match=message):
            headstart.serve(tmp_path / "run", **settings)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SetupError, match=rf"127.0.0.1 port {port}: .* Pass another --port"):
            headstart.serve(tmp_path / "run", port=port)
    monkeypatch.setattr(verb, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"headstart\[serve\]"):
        headstart.serve(tmp_path / "run")
