"""Frames of videos: their times, colours and orientation; damaged files are named."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest

from headstart.data.pixel_values import ImageOptions
from headstart.data.video import _every, _upright, video_frames
from headstart.errors import MissingExtraError, UnreadableImageError

OPTIONS = ImageOptions()


def write_video(path: Path, frames: int = 25, rate: int = 10) -> Path:
    """A video whose brightness rises by 10 with every frame."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(frames):
            pixels = np.full((48, 64, 3), 10 * number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def test_frames_at_their_times(tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.mp4")
    for every, numbers in ((1.0, [0, 10, 20]), (0.5, [0, 5, 10, 15, 20]), (0.01, range(25))):
        frames = list(video_frames(path, every=every, options=OPTIONS))
        assert [seconds for seconds, _ in frames] == pytest.approx([n / 10 for n in numbers])
        assert {pixels.shape for _, pixels in frames} == {(48, 64, 3)}
        means = [pixels.mean() for _, pixels in frames]
        assert means == pytest.approx([10 * n for n in numbers], abs=6)


def test_a_gap_does_not_give_frames_twice() -> None:
    times = [0.0, 0.5, 3.2, 3.3, 4.2, 4.3]
    pixels = np.zeros((2, 2, 3), np.uint8)
    frames = (
        SimpleNamespace(time=t, rotation=0, to_ndarray=lambda format: pixels)  # noqa: A006
        for t in times
    )
    assert [seconds for seconds, _ in _every(frames, 1.0)] == [0.0, 3.2, 4.2]


def test_a_phone_that_was_turned() -> None:
    stored = np.arange(18, dtype=np.uint8).reshape(2, 3, 3)
    for rotation, turns in ((0, 0), (90, 1), (-90, -1), (180, 2), (-180, 2)):
        frame = SimpleNamespace(rotation=rotation, to_ndarray=lambda format: stored)  # noqa: A006
        assert (_upright(frame) == np.rot90(stored, turns)).all()


def test_damaged_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video(tmp_path / "clip.mp4")
    broken, playlist = tmp_path / "broken.mp4", tmp_path / "list.mp4"
    broken.write_bytes(path.read_bytes()[:500])
    playlist.write_text(f"#EXTM3U\n#EXTINF:1,\n{path}\n#EXT-X-ENDLIST\n")
    for file in (broken, playlist, tmp_path / "none.mp4"):
        with pytest.raises(UnreadableImageError, match=rf"{file.name} to be a readable video"):
            list(video_frames(file, every=1.0, options=OPTIONS))
    with pytest.raises(UnreadableImageError, match="64 x 48"):
        list(video_frames(path, every=1.0, options=ImageOptions(max_pixels=100)))
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MissingExtraError, match=r"headstart\[video\]"):
        list(video_frames(path, every=1.0, options=OPTIONS))
