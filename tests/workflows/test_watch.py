"""A folder that grows: every whole image once, changed ones again, damaged ones named."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import headstart
from headstart.errors import LayoutError, UsageError
from headstart.models.prediction_files import as_json
from headstart.workflows.watch import GrowingFolder


def draw(path: Path, seed: int) -> Path:
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def test_a_file_is_taken_when_it_is_whole(tmp_path: Path) -> None:
    folder, path = GrowingFolder(tmp_path), tmp_path / "a.png"
    path.write_bytes(b"")
    (tmp_path / "notes.txt").write_text("no image")
    assert [folder.take() for _ in range(3)] == [[], [], []]  # empty: being written
    path.write_bytes(b"half")
    assert folder.take() == []
    path.write_bytes(b"half and more")
    assert folder.take() == []
    assert folder.take() == [path]
    assert folder.take() == []
    os.utime(path, ns=(1, 1))
    assert [folder.take() for _ in range(3)] == [[], [path], []]
    path.unlink()
    assert folder.take() == []
    path.write_bytes(b"half and more")
    os.utime(path, ns=(1, 1))
    assert [folder.take() for _ in range(2)] == [[], [path]]


def test_rows_are_those_of_predict(classifier: Any, tmp_path: Path) -> None:
    for number in range(5):
        draw(tmp_path / "in" / f"{number}.png", number)
    (tmp_path / "in" / "broken.png").write_bytes(b"<html>")
    rows = headstart.watch(classifier, tmp_path / "in", every=0.01, idle=0.05)
    seen = [next(rows) for _ in range(6)]
    late = draw(tmp_path / "in" / "sub" / "late.png", 9)
    seen += list(rows)
    names = [*(f"{number}.png" for number in range(5)), "broken.png", "sub/late.png"]
    assert [row["name"] for row in seen] == [str(tmp_path / "in" / name) for name in names]
    assert "got an HTML page" in seen[5]["error"]
    (expected,) = as_json(headstart.predict(classifier, late), classifier.task.classes)
    assert seen[6] == expected


def test_wrong_arguments(classifier: Any, tmp_path: Path) -> None:
    with pytest.raises(LayoutError, match="There is no folder"):
        headstart.watch(classifier, tmp_path / "none")
    for name in ("every", "idle"):
        with pytest.raises(UsageError, match=rf"`{name}` must be above 0 seconds, got 0\."):
            headstart.watch(classifier, tmp_path, **{name: 0})


def test_frames_of_a_video(classifier: Any, tmp_path: Path) -> None:
    import av

    path, drawn = tmp_path / "clip.mkv", []
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=4)  # without loss
        stream.width, stream.height, stream.pix_fmt = 50, 40, "bgr0"
        for number in range(8):
            drawn.append(np.asarray(Image.open(draw(tmp_path / "in.png", number))))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(drawn[-1], format="rgb24")))
        container.mux(stream.encode(None))
    rows = list(headstart.watch(classifier, path, every=1.0))
    assert [row.pop("seconds") for row in rows] == [0.0, 1.0]
    alone = [headstart.predict(classifier, drawn[number])[0] for number in (0, 4)]
    expected = as_json(alone, classifier.task.classes)
    assert rows == [{**row, "name": str(path)} for row in expected]
    with pytest.raises(UsageError, match=r"`idle` 3 is for folders"):
        headstart.watch(classifier, path, idle=3)
