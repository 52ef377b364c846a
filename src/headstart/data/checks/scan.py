"""Scan: decode every image once and record its size, digest and perceptual hash.

The records are the input of the other checks and of the splits.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from headstart.cache import Cache, key
from headstart.data.dataset import Sample
from headstart.data.dicom import patient_hash
from headstart.data.images import (
    ImageHeader,
    Pixels,
    decode,
    decode_file,
    digest,
    read_bytes,
    unreadable_reason,
)
from headstart.errors import UnreadableImageError
from headstart.runtime import cores

__all__ = ["SKETCH_SIDE", "ImageRecord", "scan"]

BATCH = 256  # images per cache lookup
SHORT_SIDE = 32  # pixels; large JPEGs are decoded smaller, to a short side of at least twice this
SKETCH_SIDE = 32  # pixels
_WAVES = np.cos(np.pi * (2 * np.arange(32) + 1) * np.arange(1, 9)[:, None] / 64)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageRecord:
    """Result of the scan of one image.

    Parameters
    ----------
    digest : str
        Content identity; empty if the file cannot be read at all.
    width, height : int
        Pixels of the upright image.
    format, mode : str
        Names as in Pillow; for arrays "array" and the data type.
    orientation : int
        EXIF orientation as stored, 1 (upright) to 8.
    perceptual_hash : int
        64 bits that re-encoding and resizing hardly change.
    thumbnail : bytes
        256 grey levels, shape (16, 16), for the finer comparison after the hash.
    sketch : bytes
        1,024 grey levels, shape (32, 32), in which `copies.find_copies` finds crops and views.
    problem : str or None
        Reason why the image cannot be used.
    n_frames : int
        Pages or frames of the file, of which the first is used.
    patient : str or None
        Keyed hash of the patient's id in a DICOM file; never written, see `dicom.patient_hash`.
    """

    digest: str
    width: int = 0
    height: int = 0
    format: str = ""
    mode: str = ""
    orientation: int = 1
    perceptual_hash: int = 0
    thumbnail: bytes = b""
    sketch: bytes = b""
    problem: str | None = None
    n_frames: int = 1
    patient: str | None = None


def scan(
    samples: Sequence[Sample],
    *,
    cache: Cache | None = None,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[ImageRecord, ...]:
    """Decode and describe every image once; damaged images are recorded, not raised.

    Records are cached by content, so that a second scan only reads the files. At most one image
    per worker is in memory.

    Parameters
    ----------
    samples : sequence of Sample
    cache : Cache or None
    workers : int or None
        Threads; None: as many as there are processors.
    progress : callable or None
        Called with (images done, total).

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
    identities = [record for part in pool.map(_identify_all, slices) for record in part]
    keys = [
        _cache_key(record, sample.options.max_pixels)
        for record, sample in zip(identities, samples, strict=True)
    ]
    stored = cache.get_many(list(dict.fromkeys(keys))) if cache is not None else {}
    missing = {
        key: (sample, record.digest)
        for key, sample, record in zip(keys, samples, identities, strict=True)
        if key not in stored and record.problem is None
    }
    decoded = pool.map(lambda item: _examine(*item), missing.values())
    computed = dict(zip(missing, decoded, strict=True))
    if cache is not None:
        # Damaged images are not cached: an update of the decoder may be able to read them.
        readable = {k: _to_bytes(record) for k, record in computed.items() if not record.problem}
        cache.put_many(readable, kind="scan")
    records = {key: _from_bytes(value) for key, value in stored.items()} | computed
    return [
        replace(records[key], patient=identity.patient) if key in records else identity
        for key, identity in zip(keys, identities, strict=True)
    ]


def _identify_all(samples: Sequence[Sample]) -> list[ImageRecord]:
    return [_identify(sample) for sample in samples]


def _identify(sample: Sample) -> ImageRecord:
    source = sample.image
    try:
        source = read_bytes(source) if isinstance(source, Path) else source
        patient = patient_hash(source) if isinstance(source, bytes) else None
        return ImageRecord(digest=digest(source, sample.options), patient=patient)
    except UnreadableImageError as error:
        return ImageRecord(digest="", problem=unreadable_reason(error))


def _examine(sample: Sample, digest: str) -> ImageRecord:
    try:
        header, pixels = _decode(sample)
    except UnreadableImageError as error:
        return ImageRecord(digest=digest, problem=unreadable_reason(error))
    perceptual_hash, thumbnail, sketch = _signature(pixels)
    return ImageRecord(
        digest=digest,
        width=header.width,
        height=header.height,
        format=header.format,
        mode=header.mode,
        orientation=header.exif_orientation,
        perceptual_hash=perceptual_hash,
        thumbnail=thumbnail,
        sketch=sketch,
        n_frames=header.n_frames,
    )


def _decode(sample: Sample) -> tuple[ImageHeader, Pixels]:
    source, options = sample.image, sample.options
    if isinstance(source, bytes | Path):
        return decode_file(source, at_least=SHORT_SIDE, options=options, count_frames=True)
    pixels = decode(source, options=options)
    is_array = isinstance(source, np.ndarray)
    header = ImageHeader(
        format="array" if is_array else getattr(source, "format", None) or "PIL",
        mode=str(source.dtype) if isinstance(source, np.ndarray) else str(source.mode),
        width=pixels.shape[1],
        height=pixels.shape[0],
        exif_orientation=1,
        n_frames=1,
    )
    return header, pixels


def _signature(pixels: Pixels) -> tuple[int, bytes, bytes]:
    """Hash of the 8 x 8 lowest frequencies (Zauner 2010), thumbnail 16 x 16, sketch 32 x 32."""
    from PIL import Image

    grey = Image.fromarray(pixels).convert("L").resize((SKETCH_SIDE,) * 2, Image.Resampling.BOX)
    values = np.asarray(grey, dtype=np.float64)
    waves = (_WAVES @ values @ _WAVES.T).ravel()
    bits = np.packbits(waves > np.median(waves)).tobytes()
    thumbnail = np.rint(values.reshape(16, 2, 16, 2).mean((1, 3))).astype(np.uint8)
    return int.from_bytes(bits, "big"), thumbnail.tobytes(), np.asarray(grey).tobytes()


def _cache_key(record: ImageRecord, max_pixels: int) -> bytes:
    from PIL import __version__

    return key("scan", 4, __version__, SHORT_SIDE, max_pixels, record.digest)


def _to_bytes(record: ImageRecord) -> bytes:
    texts = {"thumbnail": record.thumbnail.hex(), "sketch": record.sketch.hex(), "patient": None}
    return json.dumps(asdict(record) | texts).encode()


def _from_bytes(value: bytes) -> ImageRecord:
    fields = json.loads(value)
    pixels = {name: bytes.fromhex(fields[name]) for name in ("thumbnail", "sketch")}
    return ImageRecord(**fields | pixels)
