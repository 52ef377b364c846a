"""Models by name, and their reload when files change."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from headstart.cache import Cache
from headstart.errors import ModelFileError, RequestError
from headstart.serving import model_store
from headstart.serving.model_store import ModelStore
from headstart.serving.predictor import Predictor


@pytest.fixture
def prepare() -> Any:
    return partial(Predictor.of, cache=Cache(), max_pixels=10**6)


def rename(model: Any, *classes: str) -> Any:
    return replace(model, task=replace(model.task, classes=classes))


def test_a_changed_model_is_loaded_again(classifier: Any, prepare: Any, tmp_path: Path) -> None:
    seen: list[tuple[str, bool]] = []
    classifier.save(tmp_path / "run")
    store = ModelStore({"a": tmp_path / "run"}, prepare, lambda *words: seen.append(words))
    before = store.find(None)
    store.refresh()
    assert store.find("a") is before
    rename(classifier, "x", "y", "z").save(tmp_path / "run")
    store.refresh()
    after = store.find("a")
    assert after.as_dict() == {**before.as_dict(), "classes": ["x", "y", "z"], "version": 2}
    assert before.predictor.model.task.classes == classifier.task.classes  # it may still predict
    (tmp_path / "run" / "model.safetensors").write_bytes(b"half")
    store.refresh()
    assert store.find("a").predictor is after.predictor
    assert "model.safetensors" in str(store.find("a").problem)
    store.refresh()  # the same damage is not read again
    assert seen == [("a", True), ("a", False)]
    rename(classifier, "p", "q", "r").save(tmp_path / "run")
    store.refresh()
    assert store.find("a").as_dict()["problem"] is None
    assert store.find("a").predictor.model.task.classes == ("p", "q", "r")


def test_a_link_to_another_folder(classifier: Any, prepare: Any, tmp_path: Path) -> None:
    classifier.save(tmp_path / "first")
    rename(classifier, "x", "y", "z").save(tmp_path / "second")
    (tmp_path / "current").symlink_to(tmp_path / "first")
    store = ModelStore({"a": tmp_path / "current"}, prepare)
    (tmp_path / "next").symlink_to(tmp_path / "second")
    (tmp_path / "next").replace(tmp_path / "current")
    store.refresh()
    assert store.find("a").as_dict()["classes"] == ["x", "y", "z"]


def test_a_folder_that_is_gone_keeps_its_model(
    classifier: Any, prepare: Any, tmp_path: Path
) -> None:
    classifier.save(tmp_path / "run")
    store = ModelStore({"a": tmp_path / "run"}, prepare)
    (tmp_path / "run").rename(tmp_path / "old")
    store.refresh()
    assert store.find("a").problem is None
    (tmp_path / "old").rename(tmp_path / "run")
    store.refresh()
    assert store.find("a").version == 1


def test_a_thread_watches(
    classifier: Any, prepare: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_store, "POLL_SECONDS", 0.01)
    classifier.save(tmp_path / "run")
    store = ModelStore({"a": tmp_path / "run"}, prepare)
    store.start()
    rename(classifier, "x", "y", "z").save(tmp_path / "run")
    deadline = time.monotonic() + 10
    while store.find("a").version == 1 and time.monotonic() < deadline:
        time.sleep(0.01)
    store.close()
    assert store.find("a").version == 2


def test_wrong_names_and_paths(
    classifier: Any, exported_files: Any, prepare: Any, tmp_path: Path
) -> None:
    with pytest.raises(ModelFileError):
        ModelStore({"a": tmp_path / "none"}, prepare)
    store = ModelStore({"a": exported_files["image"]}, prepare)
    with pytest.raises(
        RequestError, match=r"Unknown model: 'b'. Pass \?model= with one of: a."
    ) as e:
        store.find("b")
    assert e.value.status == 404
    assert [served.name for served in store.models()] == ["a"]
