"""Predict the images of a folder that grows, or the frames of a video."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from headstart.cache import open_cache
from headstart.data.dataset import Sample
from headstart.data.formats.layouts import list_folder
from headstart.data.video import VIDEO_SUFFIXES, is_video, video_frames
from headstart.errors import HeadstartError, LayoutError, UsageError
from headstart.models.exported_model import AnyModel, open_model
from headstart.models.prediction_files import as_json
from headstart.serving.predictor import Predictor, require_predictions

__all__ = ["GrowingFolder", "watch"]

BATCH_SIZE = 4
Stamp = tuple[int, int, int]
"""Size, time and inode of a file."""


class GrowingFolder:
    """Files of a folder that are new or changed, and whole.

    A file is whole when its size and time are the same as at the look before, so that a file that
    another program still writes is not read.

    Parameters
    ----------
    folder : Path

    Examples
    --------
    >>> import tempfile
    >>> folder = GrowingFolder(Path(tempfile.mkdtemp()))
    >>> _ = (folder.path / "a.png").write_bytes(b"image")
    >>> [len(folder.take()) for _ in range(3)]
    [0, 1, 0]
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder
        self._before: dict[Path, Stamp] = {}
        self._taken: dict[Path, Stamp] = {}

    def take(self) -> list[Path]:
        """Return the images that are whole and were not returned before, sorted."""
        now = dict(self._stamps())
        whole = [
            path
            for path, stamp in sorted(now.items())
            if self._before.get(path) == stamp != self._taken.get(path) and stamp[0] > 0
        ]
        self._before = now
        self._taken = {path: stamp for path, stamp in self._taken.items() if path in now}
        self._taken.update({path: now[path] for path in whole})
        return whole

    def _stamps(self) -> Iterator[tuple[Path, Stamp]]:
        for name in list_folder(self.path).images:
            path = self.path / name
            try:
                status = path.stat()
            except OSError:
                continue  # removed since the listing
            yield path, (status.st_size, status.st_mtime_ns, status.st_ino)


def watch(
    model: AnyModel | str | Path,
    source: str | Path,
    *,
    every: float = 1.0,
    idle: float | None = None,
    device: str = "auto",
    max_pixels: int | None = None,
) -> Iterator[dict[str, Any]]:
    """Predict every image of a folder, and those that are added later; or frames of a video.

    Parameters
    ----------
    model : TransferModel, ExportedModel, str or Path
        A model, the folder of a saved one, or an exported file.
    source : str or Path
        A folder, whose images are predicted first; subfolders count, hidden files do not. Or a
        video file.
    every : float
        Seconds between two looks at the folder, or between two frames of the video.
    idle : float, optional
        Folders only: end after so many seconds without a new image; by default it does not end.
    device : str
    max_pixels : int, optional
        Largest width times height; by default that of the training.

    Yields
    ------
    dict
        The row of ``predict --json``, or ``name`` and ``error`` of an image that cannot be read.
        A row of a video has also the ``seconds`` from its start.

    Raises
    ------
    LayoutError
        If there is no such folder or video.
    UnreadableImageError
        If the video is damaged.
    UsageError
        If a number of seconds is not above 0, or ``idle`` is set for a video.

    Examples
    --------
    >>> for row in watch("runs/photos", "incoming/"):  # doctest: +SKIP
    ...     print(row["name"], row["label"])
    """
    for name, seconds in (("every", every), ("idle", idle)):
        if seconds is not None and not seconds > 0:
            raise UsageError(
                f"`{name}` must be above 0 seconds, got {seconds}. Pass --{name} with a larger "
                "number."
            )
    path = Path(source)
    if not path.is_dir() and not (path.is_file() and is_video(path)):
        endings = ", ".join(VIDEO_SUFFIXES)
        raise LayoutError(
            f"There is no folder and no video {str(source)!r}. Create it, or pass a folder, or a "
            f"file that ends with {endings}."
        )
    if idle is not None and path.is_file():
        raise UsageError(f"`idle` {idle} is for folders, and {path} is a video. Remove --idle.")
    opened = model if isinstance(model, AnyModel) else open_model(model)
    settings = (device, max_pixels)
    if path.is_file():
        return _predict_video(opened, path, every, settings)
    return _watch(opened, path, every, idle, settings)


def _predict_video(
    model: AnyModel, path: Path, every: float, settings: tuple[str, int | None]
) -> Iterator[dict[str, Any]]:
    device, max_pixels = settings
    classes = tuple(model.task.classes)
    with open_cache(None) as cache:
        predictor = Predictor.of(model, cache=cache, max_pixels=max_pixels, device=device)
        for seconds, pixels in video_frames(path, every=every, options=predictor.options):
            answers = predictor([Sample(image=pixels, title=str(path))])
            for row in as_json(require_predictions(answers), classes):
                yield {"seconds": round(seconds, 3), **row}


def _watch(
    model: AnyModel,
    folder: Path,
    every: float,
    idle: float | None,
    settings: tuple[str, int | None],
) -> Iterator[dict[str, Any]]:
    growing, (device, max_pixels) = GrowingFolder(folder), settings
    with open_cache(None) as cache:
        predictor = Predictor.of(model, cache=cache, max_pixels=max_pixels, device=device)
        seen_at = time.monotonic()
        while True:
            paths = growing.take()
            for at in range(0, len(paths), BATCH_SIZE):
                yield from _predict_files(predictor, paths[at : at + BATCH_SIZE])
            if paths:
                seen_at = time.monotonic()
            elif idle is not None and time.monotonic() - seen_at >= idle:
                return
            time.sleep(every)


def _predict_files(predictor: Predictor, paths: Sequence[Path]) -> Iterator[dict[str, Any]]:
    samples = [Sample(image=path, options=predictor.options) for path in paths]
    classes = tuple(predictor.model.task.classes)
    for sample, answer in zip(samples, predictor(samples), strict=True):
        if isinstance(answer, HeadstartError):
            yield {"name": sample.name, "error": str(answer)}
        else:
            yield from as_json([answer], classes)
