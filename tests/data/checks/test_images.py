"""Findings: what was planted is found, and a clean set has none."""

import io
import struct
import time
import zlib
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from headstart.data.checks.images import (
    ImageRecord,
    check,
    find_duplicates,
    keep_readable,
    require_no_leak,
    scan,
)
from headstart.data.dataset import Dataset, Sample
from headstart.data.images import ImageOptions
from headstart.errors import DataError, LeakError, UsageError


def image(seed, size=(90, 120)):
    small = np.random.default_rng(seed).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize(size[::-1], Image.Resampling.BICUBIC))


def png(values, colour_type):
    """A PNG of 16 bits, written by hand: Pillow writes no colour of 16 bits."""
    height, width = values.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    chunks = (
        b"IHDR" + struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0),
        b"IDAT" + zlib.compress(rows),
        b"IEND",
    )
    parts = (struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def jpeg(pixels, quality=90):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


class Folder:
    """Images written to a folder, and the data set that they make."""

    def __init__(self, path):
        self.path, self.samples = path, []

    def add(self, data, target="cat", split=None):
        path = self.path / f"{split or 'all'}-{target}-{len(self.samples)}.jpg"
        path.write_bytes(data if isinstance(data, bytes) else jpeg(data))
        self.samples.append(Sample(image=path, target=target, split=split))
        return str(path)

    def dataset(self, classes=("cat", "dog")):
        return Dataset(samples=tuple(self.samples), classes=classes)

    def findings(self, **options):
        dataset = self.dataset(**options)
        return check(dataset, scan(dataset.samples))


@pytest.fixture
def clean(tmp_path):
    folder = Folder(tmp_path)
    for i in range(12):
        for j, target in enumerate(("cat", "dog")):
            folder.add(image(100 * i + j), target, "train")
            folder.add(image(100 * i + j + 50), target, "test")
    return folder


def of_kind(findings, *kinds):
    return [finding for finding in findings if finding.kind in kinds]


def fake(count, seed=0, **fields):
    """Records of unrelated images."""
    noise = np.random.default_rng(seed)
    hashes = noise.integers(0, 2**64, count, dtype=np.uint64)
    looks = noise.integers(0, 256, (count, 256), dtype=np.uint8)
    return [
        ImageRecord(
            digest=f"{seed}-{i}", perceptual_hash=int(h), thumbnail=look.tobytes(), **fields
        )
        for i, (h, look) in enumerate(zip(hashes, looks, strict=True))
    ]


def test_clean_set_has_no_findings(clean):
    assert clean.findings() == ()


def test_exact_copy(clean):
    one, other = (clean.add(image(7), "dog", "train") for _ in range(2))
    (finding,) = clean.findings()
    assert finding.kind == "duplicate"
    assert finding.paths == (one, other)
    require_no_leak([finding], allow_overlap=False)


@pytest.mark.parametrize("change", ["quality", "smaller", "squashed", "brighter", "png"])
def test_near_copy(clean, change):
    original = image(7, (240, 320))
    pil_image, buffer = Image.fromarray(original), io.BytesIO()
    pil_image.save(buffer, "PNG")
    one = clean.add(original, "cat", "train")
    other = clean.add(
        {
            "quality": jpeg(original, 30),
            "smaller": jpeg(np.asarray(pil_image.resize((160, 120)))),
            "squashed": jpeg(np.asarray(pil_image.resize((224, 224)))),
            "brighter": jpeg(np.uint8(np.clip(original * 1.1 + 4, 0, 255))),
            "png": buffer.getvalue(),
        }[change],
        "cat",
        "train",
    )
    (finding,) = clean.findings()
    assert (finding.kind, finding.severity) == ("near-duplicate", "warning")
    assert finding.paths == (one, other)


def test_leak_and_conflict_name_both_paths(clean):
    original = image(7, (240, 320))
    one = clean.add(original, "cat", "train")
    other = clean.add(jpeg(original, 40), "dog", "test")
    findings = clean.findings()
    assert [f.kind for f in findings] == ["leak", "label-conflict"]
    assert findings[0].paths == findings[1].paths == (one, other)
    assert findings[0].severity == "error"
    assert "nearly the same image in train and test" in findings[0].message
    assert "cat and dog" in findings[1].message
    with pytest.raises(LeakError) as caught:
        require_no_leak(findings, allow_overlap=False)
    assert one in str(caught.value)
    assert other in str(caught.value)
    require_no_leak(findings, allow_overlap=True)


def test_both_sides_of_a_leak_come_first_among_many_copies(clean):
    copies = [clean.add(image(7), "cat", "train") for _ in range(9)]
    other = clean.add(image(7), "cat", "test")
    (leak,) = clean.findings()
    assert leak.paths[:2] == (copies[0], other)
    assert set(leak.paths) == {*copies, other}
    with pytest.raises(LeakError, match="got 1"):
        require_no_leak([leak], allow_overlap=False)


def test_multilabel_conflicts_do_not_depend_on_order():
    pil_image = jpeg(image(1))
    targets = [("a", "b"), ("b", "a"), ("a", "b")]
    samples = tuple(Sample(image=pil_image, target=t) for t in targets)
    same = Dataset(samples=samples, classes=("a", "b"), kind="multilabel")
    assert not of_kind(check(same, scan(samples)), "label-conflict")
    other = (*samples, Sample(image=pil_image, target=()))
    conflict = Dataset(samples=other, classes=("a", "b"), kind="multilabel")
    (found,) = of_kind(check(conflict, scan(other)), "label-conflict")
    assert "a + b and nothing" in found.message


def test_unlabelled_copies_do_not_conflict():
    samples = (Sample(image=jpeg(image(1))), Sample(image=jpeg(image(1)), target="a"))
    findings = check(Dataset(samples=samples, classes=("a",)), scan(samples))
    assert not of_kind(findings, "label-conflict")


def test_flat_images_are_not_duplicates_of_each_other(clean):
    noise = np.random.default_rng(0)
    for level in (0, 40, 41, 200, 255):
        flat = np.full((60, 60, 3), level, np.int16)
        clean.add(np.uint8(np.clip(flat + noise.integers(-3, 4, flat.shape), 0, 255)))
    assert clean.findings() == ()
    clean.samples.append(clean.samples[-1])
    assert [f.kind for f in clean.findings()] == ["duplicate"]


def test_unreadable_files_are_named_with_the_reason(clean):
    whole = jpeg(image(1))
    bad = {
        clean.add(whole[: len(whole) // 2]): "truncated",
        clean.add(b""): "an empty file",
        clean.add(b"hello, this is text"): "a text file",
        clean.add(b"\0" * 500): "a file of zeros",
    }
    findings = clean.findings()
    assert {f.paths[0] for f in findings} == set(bad)
    for finding in findings:
        assert (finding.kind, finding.severity) == ("unreadable", "error")
        assert bad[finding.paths[0]] in finding.message


def test_bad_files_stop_or_are_left_out(clean):
    names = [clean.add(b"no image %d" % i) for i in range(30)]
    dataset = clean.dataset()
    records = scan(dataset.samples)
    with pytest.raises(DataError) as caught:
        keep_readable(dataset, records, bad_files="error")
    said = str(caught.value)
    assert sum(name in said for name in names) == 20
    assert "30 that are not" in said
    assert "and 10 more" in said
    assert "a text file" in said
    kept, left = keep_readable(dataset, records, bad_files="skip")
    assert len(kept) == len(left) == 48
    assert [s.digest for s in kept.samples] == [r.digest for r in left]
    assert kept.classes == dataset.classes
    assert keep_readable(kept, left, bad_files="error") == (kept, left)


def test_nothing_readable_is_an_error_under_either_policy(tmp_path):
    folder = Folder(tmp_path)
    folder.add(b"text")
    with pytest.raises(DataError, match="1 that are not"):
        keep_readable(folder.dataset(), scan(folder.samples), bad_files="skip")


def test_classes_and_splits(clean):
    clean.samples = [s for s in clean.samples if (s.target, s.split) != ("dog", "test")]
    clean.add(b"", "bird", "train")
    for i in range(9):
        clean.add(image(5000 + i), "fish", "train")
    clean.add(image(5999), "ant", "test")
    findings = clean.findings(classes=("ant", "bird", "cat", "dog", "fish"))
    said = {(f.kind, f.severity, f.message) for f in findings if f.kind != "unreadable"}
    assert said == {
        ("empty-class", "error", "class 'bird' has no readable image"),
        ("missing-class", "error", "class 'ant' has no image in train"),
        ("missing-class", "warning", "class 'dog' has no image in test"),
        ("missing-class", "warning", "class 'fish' has no image in test"),
        ("rare-class", "warning", "class 'fish' has only 9 images to learn from"),
    }
    severities = [f.severity for f in findings]
    assert severities == sorted(severities), "errors come first"


def test_split_without_readable_images(clean):
    clean.add(b"", "cat", "val")
    (finding,) = of_kind(clean.findings(), "empty-split")
    assert "none of the 1 images in val" in finding.message
    clean.samples = [s for s in clean.samples if s.split == "test"]
    (finding,) = of_kind(clean.findings(), "empty-split")
    assert "no image in train, only in test" in finding.message


def test_dark_images_of_sixteen_bits():
    twelve = (image(1)[:, :, 0].astype(np.uint16) * 16).clip(0, 4095)
    sources = (twelve, twelve[::-1] * 16, np.uint8(twelve.T // 256))
    samples = tuple(Sample(image=array) for array in sources)
    (finding,) = check(Dataset(samples=samples, classes=()), scan(samples))
    assert finding.kind == "16-bit-dark"
    assert len(finding.paths) == 1


def test_dark_images_of_sixteen_bits_in_colour():
    values = (image(1).astype(np.uint16) * 16).clip(0, 4095)
    samples = (Sample(image=png(values, 2)), Sample(image=png(values * 16, 2)))
    (finding,) = check(Dataset(samples=samples, classes=()), scan(samples))
    assert finding.kind == "16-bit-dark"
    assert finding.paths == (samples[0].name,)
    assert "--bits 12" in finding.message
    bright = tuple(replace(sample, options=ImageOptions(bits=12)) for sample in samples[:1])
    assert check(Dataset(samples=bright, classes=()), scan(bright)) == ()


@pytest.mark.parametrize(
    ("fmt", "n_frames"),
    [(fmt, n) for fmt in ("GIF", "WEBP", "TIFF", "PNG", "AVIF") for n in (1, 2, 5)],
)
def test_frames_that_are_left_out_are_counted(fmt, n_frames, tmp_path):
    frames = [Image.fromarray(image(i)) for i in range(n_frames)]
    frames[0].save(tmp_path / f"a.{fmt.lower()}", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "b.png")
    samples = tuple(Sample(image=path) for path in sorted(tmp_path.iterdir()))
    data = Dataset(samples=samples, classes=())
    found = [f for f in check(data, scan(samples)) if f.kind == "several-frames"]
    assert len(found) == (n_frames > 1)
    for finding in found:
        assert f"{n_frames - 1} are left out" in finding.message
        assert finding.paths == (samples[0].name,)


def test_records_must_be_of_the_same_data_set(clean):
    for function in (check, lambda d, r: keep_readable(d, r, bad_files="skip")):
        with pytest.raises(UsageError, match="one record for each"):
            function(clean.dataset(), scan(clean.samples[:3]))


@pytest.mark.parametrize("max_distance", [0, 3, 6, 10])
def test_duplicates_equal_those_of_comparing_all_pairs(max_distance):
    records = fake(60, seed=1)
    noise = np.random.default_rng(2)
    for i in range(0, 60, 2):
        flips = sum(1 << int(b) for b in noise.choice(64, i // 4, replace=False))
        near = records[i].perceptual_hash ^ flips
        look = records[i].thumbnail
        records.append(ImageRecord(digest=f"copy {i}", perceptual_hash=near, thumbnail=look))
    expected = [
        (i, 60 + i // 2)
        for i in range(0, 60, 2)
        if (records[i].perceptual_hash ^ records[60 + i // 2].perceptual_hash).bit_count()
        <= max_distance
    ]
    assert find_duplicates(records, max_distance=max_distance) == expected
    assert find_duplicates(records, max_distance=None) == []


def test_equal_hashes_with_different_looks_are_not_duplicates():
    records = [
        ImageRecord(digest=r.digest, perceptual_hash=5, thumbnail=r.thumbnail) for r in fake(300)
    ]
    assert find_duplicates(records) == []


def test_a_film_of_equal_frames_does_not_cost_its_square():
    frame = fake(1)[0]
    film = [
        ImageRecord(digest=str(i), perceptual_hash=frame.perceptual_hash, thumbnail=frame.thumbnail)
        for i in range(3000)
    ]
    start = time.perf_counter()
    assert find_duplicates(film) == [tuple(range(3000))]
    assert time.perf_counter() - start < 5, "0.1 s where it was written"


def test_groups_join_chains_and_exact_copies():
    a, b = fake(2)
    near = ImageRecord(
        digest="near", perceptual_hash=a.perceptual_hash ^ 0b111, thumbnail=a.thumbnail
    )
    further = ImageRecord(
        digest="further", perceptual_hash=a.perceptual_hash ^ 0xFF, thumbnail=a.thumbnail
    )
    assert find_duplicates([further, b, a, near, a, b]) == [(0, 2, 3, 4), (1, 5)]
    assert find_duplicates([further, b, a, near, a, b], max_distance=None) == [(1, 5), (2, 4)]


def test_unreadable_images_are_no_duplicates():
    assert find_duplicates([ImageRecord(digest="", problem="gone")] * 3) == []
    assert find_duplicates([]) == []


def test_twenty_thousand_images_are_quick():
    records = fake(20_000)
    records.append(
        ImageRecord(
            digest="copy",
            perceptual_hash=records[77].perceptual_hash ^ (1 << 40),
            thumbnail=records[77].thumbnail,
        )
    )
    start = time.perf_counter()
    assert find_duplicates(records) == [(77, 20_000)]
    assert time.perf_counter() - start < 5, "0.2 s where it was written"
