"""Decode every image once and write down what it is.

The records are what `headstart.data.checks` and the splits work with.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from headstart.cache import Cache, key
from headstart.data.dataset import Sample
from headstart.data.images import ImageHeader, Pixels, decode, decode_file, digest, reason
from headstart.errors import UnreadableImageError
from headstart.runtime import cores

__all__ = ["ImageRecord", "scan"]

BATCH = 256  # images between two looks into the cache
SHORT_SIDE = 32  # of the image that the signature is taken from, at least twice this
_WAVES = np.cos(np.pi * (2 * np.arange(32) + 1) * np.arange(1, 9)[:, None] / 64)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageRecord:
    """What a scan found out about one image.

    Parameters
    ----------
    digest : str
        Content identity; empty where the file cannot be read at all.
    width, height : int
        Pixels of the upright image.
    format, mode : str
        As Pillow names them; for arrays "array" and the type.
    orientation : int
        EXIF orientation as stored, 1 (upright) to 8.
    perceptual_hash : int
        64 bits that re-encoding and resizing hardly change.
    thumbnail : bytes
        256 grey levels, shape (16, 16): the finer comparison after the hash.
    problem : str or None
        Why the image cannot be used.
    """

    digest: str
    width: int = 0
    height: int = 0
    format: str = ""
    mode: str = ""
    orientation: int = 1
    perceptual_hash: int = 0
    thumbnail: bytes = b""
    problem: str | None = None


def scan(
    samples: Sequence[Sample],
    *,
    cache: Cache | None = None,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[ImageRecord, ...]:
    """Decode every image once and describe it; what is damaged is recorded, not raised.

    Records are kept in the cache by content, so that a second scan only reads the files. One
    image per worker is in memory at a time.

    Parameters
    ----------
    samples : sequence of Sample
    cache : Cache or None
    workers : int or None
        Threads; None takes as many as there are processors.
    progress : callable or None
        Called with (images done, images in all).

    Returns
    -------
    tuple of ImageRecord
        One for each sample, in order.

    Examples
    --------
    >>> scan([Sample(image=b"<html>")])[0].problem
    'an HTML page'
    """
    records: list[ImageRecord] = []
    with ThreadPoolExecutor(workers or cores()) as pool:
        for start in range(0, len(samples), BATCH):
            records += _scan_batch(samples[start : start + BATCH], cache, pool)
            if progress is not None:
                progress(len(records), len(samples))
    return tuple(records)


def _scan_batch(
    samples: Sequence[Sample], cache: Cache | None, pool: ThreadPoolExecutor
) -> list[ImageRecord]:
    slices = [samples[i : i + 32] for i in range(0, len(samples), 32)]  # a task costs 30 µs
    first = [record for part in pool.map(_identify_all, slices) for record in part]
    names = [_cache_key(record) for record in first]
    stored = cache.get_many(list(dict.fromkeys(names))) if cache is not None else {}
    todo = {
        name: (sample, record.digest)
        for name, sample, record in zip(names, samples, first, strict=True)
        if name not in stored and record.problem is None
    }
    fresh = dict(zip(todo, pool.map(lambda item: _examine(*item), todo.values()), strict=True))
    if cache is not None:
        good = {name: _pack(record) for name, record in fresh.items() if record.problem is None}
        cache.put_many(good, kind="scan")
    known = {name: _unpack(value) for name, value in stored.items()} | fresh
    return [known.get(name, record) for name, record in zip(names, first, strict=True)]


def _identify_all(samples: Sequence[Sample]) -> list[ImageRecord]:
    return [_identify(sample) for sample in samples]


def _identify(sample: Sample) -> ImageRecord:
    try:
        return ImageRecord(digest=digest(sample.image))
    except UnreadableImageError as error:
        return ImageRecord(digest="", problem=reason(error))


def _examine(sample: Sample, identity: str) -> ImageRecord:
    try:
        head, pixels = _decode(sample)
    except UnreadableImageError as error:
        return ImageRecord(digest=identity, problem=reason(error))
    perceptual_hash, thumbnail = _signature(pixels)
    return ImageRecord(
        digest=identity,
        width=head.width,
        height=head.height,
        format=head.format,
        mode=head.mode,
        orientation=head.exif_orientation,
        perceptual_hash=perceptual_hash,
        thumbnail=thumbnail,
    )


def _decode(sample: Sample) -> tuple[ImageHeader, Pixels]:
    source = sample.image
    if isinstance(source, bytes | Path):
        return decode_file(source, at_least=SHORT_SIDE)
    pixels = decode(source)
    array = isinstance(source, np.ndarray)
    head = ImageHeader(
        format="array" if array else getattr(source, "format", None) or "PIL",
        mode=str(source.dtype) if isinstance(source, np.ndarray) else str(source.mode),
        width=pixels.shape[1],
        height=pixels.shape[0],
        exif_orientation=1,
        n_frames=1,
    )
    return head, pixels


def _signature(pixels: Pixels) -> tuple[int, bytes]:
    """Hash of the 8 x 8 lowest frequencies (Zauner 2010), and a 16 x 16 thumbnail."""
    from PIL import Image

    grey = Image.fromarray(pixels).convert("L").resize((32, 32), Image.Resampling.BOX)
    values = np.asarray(grey, dtype=np.float64)
    waves = (_WAVES @ values @ _WAVES.T).ravel()
    bits = np.packbits(waves > np.median(waves)).tobytes()
    small = np.rint(values.reshape(16, 2, 16, 2).mean((1, 3))).astype(np.uint8)
    return int.from_bytes(bits, "big"), small.tobytes()


def _cache_key(record: ImageRecord) -> bytes:
    from PIL import __version__

    return key("scan", 1, __version__, SHORT_SIDE, record.digest)


def _pack(record: ImageRecord) -> bytes:
    return json.dumps(asdict(record) | {"thumbnail": record.thumbnail.hex()}).encode()


def _unpack(value: bytes) -> ImageRecord:
    fields = json.loads(value)
    return ImageRecord(**fields | {"thumbnail": bytes.fromhex(fields["thumbnail"])})
