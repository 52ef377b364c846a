"""The page of a data set: complete for every task, escaped, self-contained, bounded."""

import io
import re
import time
from base64 import b64decode
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from headstart.cache import Cache
from headstart.data.checks.images import Finding
from headstart.data.checks.scan import ImageRecord
from headstart.data.dataset import Boxes, Dataset, Mask, Palette, Sample
from headstart.data.prepare import examine_dataset
from headstart.reports.data_page import histogram, render_data_page

HOSTILE = "<script>alert('x')</script>"
NOISE = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
PALETTE = Palette(codes=((0, "background"), (1, "leaf")))


def page_of(samples: list[Sample], classes: tuple[str, ...], kind: str) -> str:
    data = Dataset(samples=tuple(samples), classes=classes, kind=kind, name="leaves")
    return render_data_page(*examine_dataset(data, cache=Cache()))


def text_of(page: str) -> str:
    body = re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)
    return " ".join(re.sub(r"<[^>]+>", " ", body).split())


def images_of(page: str) -> list[Image.Image]:
    return [
        Image.open(io.BytesIO(b64decode(text)))
        for text in re.findall(r'src="data:image/\w+;base64,([^"]+)"', page)
    ]


def view(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (60, 80, 3), dtype=np.uint8)


def test_classes_splits_sizes_copies_and_unreadable_files_are_shown() -> None:
    samples = [
        Sample(image=view(i), target=name, split=split, title=f"{name}/{i}.png")
        for i, (name, split) in enumerate([("cat", "train")] * 3 + [("dog", "train")] * 2)
    ]
    samples += [
        Sample(image=view(0), target="dog", split="test", title="dog/copy.png"),
        Sample(image=b"<html>", target="dog", split="test", title="dog/page.png"),
    ]
    page = page_of(samples, ("cat", "dog"), "multiclass")
    text = text_of(page)
    assert "7 images, 2 classes, one class per image" in text
    assert "1 of 7 files cannot be read." in text
    assert "class train test cat 3 0 dog 2 2 images 5 2" in text
    assert "6 of 6 readable images" in text
    assert "32 to 63 6" in text
    assert "wide 6" in text
    assert "dog/page.png: an HTML page" in text
    assert "cat/0.png cat · train dog/copy.png dog · test" in text
    assert "labelled cat and dog" in text
    # 6 samples and one pair: the same two images are not shown once more for another finding
    assert len(images_of(page)) == 8


@pytest.mark.parametrize("kind", ["detection", "segmentation"])
def test_boxes_and_masks_are_drawn(kind: str) -> None:
    grey = np.full((60, 80, 3), 90, dtype=np.uint8)
    codes = np.zeros((60, 80), dtype=np.uint8)
    codes[10:40, 20:60] = 1
    target = (
        Boxes(corners=((20.0, 10.0, 60.0, 40.0),), labels=("leaf",))
        if kind == "detection"
        else Mask(source=codes, palette=PALETTE, present=("background", "leaf"))
    )
    classes = ("leaf",) if kind == "detection" else PALETTE.names
    page = page_of([Sample(image=grey, target=target, title="a.png")], classes, kind)
    (drawn,) = images_of(page)
    pixels = np.asarray(drawn.convert("RGB")).astype(int)
    assert drawn.size == (400, 300)
    colourful = np.ptp(pixels, axis=2) > 40
    assert colourful[50:200, 100:300].any()
    assert not colourful[220:].any()  # below the object
    assert ("Objects in an image" in page) == (kind == "detection")
    if kind == "detection":
        assert "class objects leaf 1 images 1" in text_of(page)
        assert "medium 1" in text_of(page)


def test_several_labels_and_images_without_any() -> None:
    samples = [
        Sample(image=view(i), target=labels, title=f"{i}.png")
        for i, labels in enumerate([("sun", "sea"), ("sea",), ()])
    ]
    text = text_of(page_of(samples, ("sea", "sun"), "multilabel"))
    assert "label images sea 2 sun 1 images 3 of these without a label 1" in text


def test_names_are_escaped_and_nothing_is_loaded() -> None:
    samples = [Sample(image=view(i), target=HOSTILE, title=HOSTILE + str(i)) for i in range(2)]
    samples.append(Sample(image=b"junk", target=HOSTILE, title=HOSTILE))
    page = page_of(samples, (HOSTILE,), "multiclass")
    assert HOSTILE not in page
    assert "&lt;script&gt;" in page
    assert "<script" not in page
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    assert "default-src 'none'" in page


def test_the_size_is_bounded_for_100_000_images() -> None:
    names = [f"class {i}" for i in range(3000)]
    samples = tuple(
        Sample(image=NOISE, target=names[i % 3000], title=f"photos/{i}/{'long name' * 5}.jpg")
        for i in range(100_000)
    )
    records = [ImageRecord(digest=str(i), width=80, height=60, format="PNG") for i in range(98_000)]
    records += [ImageRecord(digest="", problem="damaged data")] * 2000
    findings = [
        Finding(
            kind="near-duplicate",
            severity="warning",
            message=f"nearly the same image 2 times: {samples[i].name}, {samples[i + 1].name}",
            paths=(samples[i].name, samples[i + 1].name),
        )
        for i in range(0, 60_000, 2)
    ]
    data = Dataset(samples=samples, classes=tuple(names), name="large")
    started_at = time.perf_counter()
    page = render_data_page(data, records, findings)
    assert time.perf_counter() - started_at < 20
    assert len(page) < 5e6
    text = text_of(page)
    for total in ("96 of 98,000 readable", "24 of 30,000 sets", "27,000 more are not shown"):
        assert total in text
    assert "2,000 more classes are not shown" in text
    assert "1,500 more are not shown" in text


def test_an_unreadable_image_of_a_box_and_a_missing_mask_leave_the_page_whole() -> None:
    boxes = Boxes(corners=((0.0, 0.0, 4.0, 2.0),), labels=("leaf",))
    page = page_of([Sample(image=b"junk", target=boxes, title="a.png")], ("leaf",), "detection")
    assert "0 of 0 readable images" in text_of(page)
    mask = Mask(source=Path("none.png"), palette=PALETTE, present=("leaf",))
    page = page_of([Sample(image=NOISE, target=mask)], PALETTE.names, "segmentation")
    assert "image not available" in page


def test_a_histogram_counts_every_value_once() -> None:
    values = np.random.default_rng(0).integers(0, 200, 500)
    rows = histogram(values, (10, 50, 100))
    expected = [((values >= low) & (values < high)).sum() for low, high in
                ((0, 10), (10, 50), (50, 100), (100, 999))]  # fmt: skip
    assert [count for _, count in rows] == expected
    assert histogram([], (10,)) == []
