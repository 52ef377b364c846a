"""The scan: every source, the cache, and a hash that survives what people do to images."""

import io
import time

import numpy as np
import pytest
from PIL import Image
from scipy.fft import dctn

from headstart.cache import Cache
from headstart.data.checks import scan as scanning
from headstart.data.checks.scan import scan
from headstart.data.dataset import Sample
from headstart.errors import UsageError


def image(seed, size=(120, 160)):
    """A smooth image of its own: random low frequencies, shape (*size, 3), uint8."""
    small = np.random.default_rng(seed).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize(size[::-1], Image.Resampling.BICUBIC))


def jpeg(pixels, quality=90, **options):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality, **options)
    return buffer.getvalue()


def record(source):
    return scan([Sample(image=source)])[0]


def distance(one, other):
    return (record(one).perceptual_hash ^ record(other).perceptual_hash).bit_count()


@pytest.fixture
def files(tmp_path):
    paths = []
    for i in range(40):
        paths.append(tmp_path / f"{i}.jpg")
        paths[-1].write_bytes(jpeg(image(i)))
    return [Sample(image=path) for path in paths]


def test_record_says_what_the_file_is(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    found = record(jpeg(image(0), exif=exif))
    assert (found.width, found.height, found.orientation) == (120, 160, 6)
    assert (found.format, found.mode, found.problem) == ("JPEG", "RGB", None)
    assert len(found.thumbnail) == 256
    assert 0 <= found.perceptual_hash < 2**64


def test_arrays_and_pil_images_are_scanned_too():
    deep = record(np.zeros((20, 30), np.uint16))
    assert (deep.format, deep.mode, deep.width, deep.height) == ("array", "uint16", 30, 20)
    assert record(Image.fromarray(image(1)).convert("L")).mode == "L"
    same = record(image(1)).perceptual_hash
    assert record(Image.fromarray(image(1))).perceptual_hash == same
    with pytest.raises(UsageError, match="channels to the last axis"):
        record(np.zeros((3, 20, 30), np.uint8))


def test_hash_is_the_sign_of_low_frequencies():
    grey = np.asarray(Image.fromarray(image(3, (32, 32))).convert("L"), dtype=float)
    waves = dctn(grey, norm=None)[1:9, 1:9].ravel()
    bits = "".join("1" if w > np.median(waves) else "0" for w in waves)
    assert record(image(3, (32, 32))).perceptual_hash == int(bits, 2)


def test_hash_survives_what_people_do_to_images():
    original = image(5, (300, 400))
    pil_image = Image.fromarray(original)
    brighter = np.uint8(np.clip(original * 1.1 + 5, 0, 255))
    for changed in (
        jpeg(original, quality=30),
        jpeg(np.asarray(pil_image.resize((200, 150)))),
        jpeg(np.asarray(pil_image.resize((224, 224)))),
        jpeg(brighter),
    ):
        assert distance(jpeg(original), changed) <= 6
    others = [distance(original, image(i)) for i in range(6, 26)]
    assert min(others) > 12


@pytest.mark.parametrize("share", [0.0, 0.2, 0.7, 0.95])
def test_truncation_is_found_although_large_images_are_decoded_small(tmp_path, share):
    data = jpeg(image(1, (600, 800)))
    path = tmp_path / "cut.jpg"
    path.write_bytes(data[: int(share * len(data))])
    found = record(path)
    assert found.problem is not None
    assert ("empty" if share == 0 else "truncated") in found.problem
    assert str(tmp_path) not in found.problem, "the record is of the content, not of the place"


def test_unreadable_images_are_recorded_and_not_raised(tmp_path):
    (tmp_path / "page.jpg").write_text("<html>404</html>")
    sources = [tmp_path / "page.jpg", tmp_path / "none.jpg", tmp_path, b"\0" * 999, b""]
    problems = [r.problem for r in scan([Sample(image=s) for s in sources])]
    assert problems == [
        "an HTML page", "no such file", "a folder", "a file of zeros", "an empty file",
    ]  # fmt: skip


def test_cache_gives_the_same_records_without_decoding(files, tmp_path, monkeypatch):
    with Cache(tmp_path / "cache") as cache:
        first = scan(files[:30], cache=cache)
        assert cache.stats().kinds["scan"][0] == 30
        decoded = []
        examine = scanning._examine
        monkeypatch.setattr(scanning, "_examine", lambda *a: decoded.append(a) or examine(*a))
        assert scan(files, cache=cache)[:30] == first
        assert len(decoded) == 10, "only the images that were added"
        assert scan(files, cache=cache) == scan(files)


def test_copies_are_decoded_once_and_bad_files_every_time(files, tmp_path):
    bad = Sample(image=b"not an image")
    with Cache(tmp_path / "cache") as cache:
        records = scan([files[0], files[0], bad, bad], cache=cache)
        assert cache.stats().kinds["scan"][0] == 1
        assert records[0] == records[1]
        assert records[3].problem == "a text file"
        assert scan([bad], cache=cache)[0] == records[3]


def test_order_workers_and_progress(files, monkeypatch):
    monkeypatch.setattr("headstart.data.checks.scan.BATCH", 16)
    calls = []
    records = scan(files, workers=3, progress=lambda *done: calls.append(done))
    assert records == tuple(record(sample.image) for sample in files)
    assert calls == [(16, 40), (32, 40), (40, 40)]
    assert scan([]) == ()


def test_warm_scan_is_quick(tmp_path):
    data = jpeg(image(0)) + b"\0" * 20_000
    paths = [tmp_path / f"{i}.jpg" for i in range(200)]
    for i, path in enumerate(paths):
        path.write_bytes(data + bytes([i]))
    samples = [Sample(image=path) for path in paths]
    with Cache(tmp_path / "cache") as cache:
        scan(samples, cache=cache)
        seconds = []
        for _ in range(3):
            start = time.perf_counter()
            scan(samples, cache=cache)
            seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.3, "0.01 s where it was written"
