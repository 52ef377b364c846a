"""Frames of video files, decoded by PyAV."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from headstart.data.pixel_values import ImageOptions, Pixels
from headstart.errors import MissingExtraError, UnreadableImageError

__all__ = ["VIDEO_SUFFIXES", "is_video", "video_frames"]

VIDEO_SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpg", ".webm")


def is_video(path: Path) -> bool:
    """Whether a name ends as that of a video file.

    >>> is_video(Path("clip.MP4")), is_video(Path("image.png"))
    (True, False)
    """
    return path.suffix.lower() in VIDEO_SUFFIXES


def video_frames(
    path: Path, *, every: float, options: ImageOptions
) -> Iterator[tuple[float, Pixels]]:
    """Decode frames of a video, upright, one after the other.

    Parameters
    ----------
    path : Path
    every : float
        Least seconds of the video between two frames.
    options : ImageOptions
        Its ``max_pixels`` limits a frame.

    Yields
    ------
    float, array of shape (H, W, 3), uint8
        Seconds from the start of the video, and the frame.

    Raises
    ------
    UnreadableImageError
        If the file cannot be read, or is damaged; the frames before the damage come first.
    MissingExtraError
        If PyAV is not installed.
    """
    try:
        import av
    except ImportError as error:
        raise MissingExtraError("av", extra="video") from error
    try:
        # A playlist in the file could open other files and addresses.
        settings = {"protocol_whitelist": "file"}
        with path.open("rb") as file, av.open(file, "r", options=settings) as container:
            if not container.streams.video:
                raise UnreadableImageError(
                    f"{path} has no video stream. Pass a video file, or remove it."
                )
            context = container.streams.video[0].codec_context
            options.require_pixels(context.width, context.height)
            yield from _every(container.decode(video=0), every)
    except (OSError, ValueError) as error:  # FFmpeg's errors are both
        raise UnreadableImageError(
            f"Expected {path} to be a readable video, got {error!s:.200}. Replace it or remove it."
        ) from error


def _every(frames: Iterator[Any], every: float) -> Iterator[tuple[float, Pixels]]:
    next_at = 0.0
    for frame in frames:
        seconds = float(frame.time or 0.0)
        if seconds < next_at - 1e-6:
            continue
        steps = math.floor((seconds - next_at) / every + 1e-6) + 1  # more after a gap
        next_at += steps * every
        yield seconds, _upright(frame)


def _upright(frame: Any) -> Pixels:
    """Pixels of a frame as it is shown: a phone stores how it was held."""
    pixels = frame.to_ndarray(format="rgb24")
    return np.ascontiguousarray(np.rot90(pixels, round(frame.rotation / 90)))
