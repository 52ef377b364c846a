"""Data sets written in other formats and read again: nothing that a format can hold changes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import headstart
from headstart.data.dataset import Boxes, Dataset, Mask, Palette, Sample
from headstart.data.images import decode
from headstart.data.masks import decode_mask, mask_orientation
from headstart.errors import DataError, UnknownNameError, UsageError
from headstart.workflows.convert import convert_data

PALETTE = Palette(codes=((0, "background"), (1, "leaf"), (2, "stem")))


def draw(seed: int, size: tuple[int, int] = (40, 30), orientation: int = 1) -> bytes:
    import io

    pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", exif=exif)
    return file.getvalue()


def content_of(sample: Sample) -> bytes:
    return decode(sample.image).tobytes()


def target_of(sample: Sample, classes: tuple[str, ...]) -> Any:
    """A target in a form that can be compared."""
    target = sample.target
    if isinstance(target, Mask):
        indices = decode_mask(target, classes, orientation=mask_orientation(target, sample.image))
        return np.array([*classes, *["?"] * (255 - len(classes)), "ignored"])[indices].tolist()
    if isinstance(target, Boxes):
        rows = zip(target.corners, target.labels, target.is_hard().tolist(), strict=True)
        return [(label, hard, *np.round(corners, 3)) for corners, label, hard in rows]
    return target


def facts(data: Dataset, *, groups: bool = True) -> dict[bytes, Any]:
    """Target, split and group of each image, by its pixels."""
    found = {
        content_of(s): (target_of(s, data.classes), s.split, s.group if groups else None)
        for s in data.samples
    }
    assert len(found) == len(data)
    return found


def write_photos(root: Path, *, splits: bool) -> Path:
    seed = 0
    for split in ("train", "test") if splits else ("",):
        for name in ("cat", "dog"):
            folder = root / split / name / "ann"
            folder.mkdir(parents=True)
            for i in range(3):
                (folder / f"{i}.png").write_bytes(draw(seed := seed + 1))
    return root


def make_boxes(root: Path, *, hard: bool = True) -> Dataset:
    """Boxes with fractions of pixels, a crowd, groups, splits, a rotated image and a negative."""
    root.mkdir(parents=True, exist_ok=True)
    samples = []
    for i, (split, orientation) in enumerate(
        [("train", 1), ("train", 6), ("val", 3), ("test", 8), ("test", 1)]
    ):
        (root / f"{i}.png").write_bytes(draw(i, orientation=orientation))
        boxes = Boxes(
            corners=((1.25, 2.5, 20.125, 17.0), (3.0, 4.0, 7.5, 29.999)),
            labels=("zebra", "ant"),
            hard=(False, hard and i == 0),
        )
        target = Boxes() if i == 4 else boxes
        samples.append(
            Sample(image=root / f"{i}.png", target=target, split=split, group=f"video {i // 2}")
        )
    return Dataset(samples=tuple(samples), classes=("zebra", "ant"), kind="detection", name="zoo")


def make_masks(root: Path) -> Dataset:
    root.mkdir(parents=True, exist_ok=True)
    samples = []
    for i, orientation in enumerate((1, 6, 1, 1)):
        (root / f"{i}.png").write_bytes(draw(i, orientation=orientation))
        shape = (40, 30) if orientation == 6 else (30, 40)
        codes = np.random.default_rng(i).choice([0, 1, 2, 255], shape).astype(np.uint8)
        mask = Mask(source=codes, palette=PALETTE, present=PALETTE.names)
        split = "train" if i < 3 else "test"
        samples.append(Sample(image=root / f"{i}.png", target=mask, split=split))
    return Dataset(samples=tuple(samples), classes=PALETTE.names, kind="segmentation")


def convert(source: object, out: Path, to: str, **settings: Any) -> Dataset:
    convert_data(source, out, to=to, progress=False, **settings)
    return headstart.read_dataset(out)


@pytest.mark.parametrize("splits", [True, False])
def test_classes_go_to_folders_to_parquet_and_back(tmp_path: Path, splits: bool) -> None:
    data = headstart.read_dataset(write_photos(tmp_path / "photos", splits=splits))
    folders = convert(data, tmp_path / "a", "folders")
    parquet = convert(tmp_path / "a", tmp_path / "b", "parquet")
    again = convert(tmp_path / "b", tmp_path / "c", "folders")
    assert facts(data) == facts(folders) == facts(parquet) == facts(again)
    assert data.classes == folders.classes == parquet.classes == again.classes
    names = {path.name for path in (tmp_path / "a").rglob("*.png")}
    assert "ann_0.png" in names  # a folder that is no class stays in the name


def test_groups_and_several_labels_go_to_parquet(tmp_path: Path) -> None:
    samples = tuple(
        Sample(image=draw(i), target=labels, split=split, group=f"patient {i % 2}", title=f"{i}")
        for i, (labels, split) in enumerate(
            [(("sea", "sun"), "train"), (("sun",), "train"), ((), "test"), (("sea",), "test")]
        )
    )
    data = Dataset(samples=samples, classes=("sea", "sun"), kind="multilabel")
    again = convert(data, tmp_path / "out", "parquet")
    assert facts(data) == facts(again)
    assert (again.kind, again.classes) == ("multilabel", data.classes)


def test_parquet_is_what_the_library_datasets_reads(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    samples = tuple(
        Sample(image=draw(i), target=name, title=f"{i}.png", weight=1.0 + i)
        for i, name in enumerate(["dog", "cat", "dog"])
    )
    data = Dataset(samples=samples, classes=("dog", "cat"))
    convert_data(data, tmp_path / "out", to="parquet", progress=False)
    table = datasets.Dataset.from_parquet(
        str(tmp_path / "out" / "data.parquet"), cache_dir=str(tmp_path / "cache")
    )
    assert table.features["label"].names == ["dog", "cat"]
    assert table["label"] == [0, 1, 0]
    assert table["weight"] == [1.0, 2.0, 3.0]
    assert np.array_equal(np.asarray(table[1]["image"]), decode(samples[1].image))


def test_boxes_go_to_coco_to_yolo_and_back(tmp_path: Path) -> None:
    data = make_boxes(tmp_path / "zoo", hard=False)
    coco = convert(data, tmp_path / "a", "coco")
    yolo = convert(tmp_path / "a", tmp_path / "b", "yolo")
    again = convert(tmp_path / "b", tmp_path / "c", "coco")
    assert facts(data) == facts(coco)  # groups, too
    assert facts(data, groups=False) == facts(yolo) == facts(again)
    assert data.classes == coco.classes == yolo.classes == again.classes == ("zebra", "ant")
    for before, after in zip(data.samples, coco.samples, strict=False):
        assert before.split == after.split or before.image.name != after.image.name


def test_crowds_stay_crowds_in_coco_and_are_left_out_of_yolo(tmp_path: Path) -> None:
    data = make_boxes(tmp_path / "zoo")
    assert facts(convert(data, tmp_path / "a", "coco")) == facts(data)
    converted = convert_data(data, tmp_path / "b", to="yolo", progress=False)
    assert converted.not_kept == (
        "3 groups: YOLO has no place for groups. Pass --group-by when you train.",
        "1 difficult or crowd object: YOLO cannot mark it, so it is left out.",
    )
    assert headstart.read_dataset(tmp_path / "b").counts() == {"zebra": 4, "ant": 3}


def test_coco_is_what_pycocotools_reads(tmp_path: Path) -> None:
    coco = pytest.importorskip("pycocotools.coco")
    data = make_boxes(tmp_path / "zoo")
    convert_data(data, tmp_path / "a", to="coco", progress=False)
    read = coco.COCO(str(tmp_path / "a" / "annotations" / "instances_train.json"))
    assert [read.cats[i]["name"] for i in sorted(read.cats)] == ["zebra", "ant"]
    first = read.loadAnns(read.getAnnIds(imgIds=[1]))
    assert [each["bbox"] for each in first] == [[1.25, 2.5, 18.875, 14.5], [3, 4, 4.5, 25.999]]
    assert [each["iscrowd"] for each in first] == [0, 1]
    # Image 1 is rotated by EXIF: its displayed size is written.
    assert [(each["width"], each["height"]) for each in read.imgs.values()] == [(40, 30), (30, 40)]


def test_masks_go_to_folders_and_back(tmp_path: Path) -> None:
    data = make_masks(tmp_path / "leaves")
    folders = convert(data, tmp_path / "a", "folders")
    again = convert(tmp_path / "a", tmp_path / "b", "folders")
    assert facts(data) == facts(folders) == facts(again)
    assert folders.classes == data.classes


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_masks_as_run_lengths_are_those_of_pycocotools(tmp_path: Path) -> None:
    coco = pytest.importorskip("pycocotools.coco")
    data = make_masks(tmp_path / "leaves")
    converted = convert_data(data, tmp_path / "a", to="coco", progress=False)
    assert "ignored pixels: COCO cannot mark them" in converted.not_kept[0]
    read = coco.COCO(str(tmp_path / "a" / "annotations" / "instances_train.json"))
    for number, sample in enumerate(data.samples[:3], start=1):
        shown = np.zeros(sample.target.source.shape, np.uint8)
        for each in read.loadAnns(read.getAnnIds(imgIds=[number])):
            name = read.cats[each["category_id"]]["name"]
            shown[read.annToMask(each) == 1] = PALETTE.names.index(name)
        codes = sample.target.source
        assert np.array_equal(shown, np.where(codes == 255, 0, codes))


def test_masks_of_another_size_are_scaled_with_their_image(tmp_path: Path) -> None:
    data = make_masks(tmp_path / "leaves")
    mask = replace(data.samples[0].target, source=np.ones((15, 20), np.uint8))
    sample = replace(data.samples[0], target=mask)
    again = convert(replace(data, samples=(sample, data.samples[3])), tmp_path / "a", "folders")
    assert facts(again)[content_of(sample)][0] == [["leaf"] * 40] * 30
    wrong = replace(mask, source=np.ones((15, 30), np.uint8))
    with pytest.raises(DataError, match=r"30 x 15 pixels, but the image has 40 x 30"):
        convert_data(
            replace(data, samples=(replace(sample, target=wrong),)), tmp_path / "b",
            to="folders", progress=False,
        )  # fmt: skip
    assert not (tmp_path / "b").exists()


def test_names_are_safe_unique_and_nothing_leaves_the_folder(tmp_path: Path) -> None:
    titles = ["../../up.png", "..", "a/b.png", "A/B.png", "CON", "x" * 400, "line\nend", "a_b.png"]
    samples = tuple(
        Sample(image=draw(i), target=name, title=title)
        for i, title in enumerate(titles)
        for name in [("../up", "a/b", "a_b")[i % 3]]
    )
    data = Dataset(samples=samples, classes=("../up", "a/b", "a_b"))
    converted = convert_data(data, tmp_path / "in" / "out", to="folders", progress=False)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == len(titles)
    assert all(path.is_relative_to(tmp_path / "in" / "out") for path in files)
    lower = [str(path).lower() for path in files]
    assert len(set(lower)) == len(lower)
    assert "'a_b' as 'a_b-2'" in converted.not_kept[0]


@pytest.mark.parametrize("name", ["train", "images", ".hidden"])
def test_classes_that_would_become_something_else_are_refused(tmp_path: Path, name: str) -> None:
    other = {"train": "test", "images": "masks", ".hidden": "dog"}[name]
    samples = tuple(Sample(image=draw(i), target=t) for i, t in enumerate([name, other] * 2))
    data = Dataset(samples=samples, classes=(name, other))
    if name == ".hidden":
        assert convert(data, tmp_path / "out", "folders").classes == ("dog", "hidden")
        return
    with pytest.raises(DataError, match=r"would not be read as classes.*--to parquet"):
        convert_data(data, tmp_path / "out", to="folders", progress=False)
    assert list(tmp_path.iterdir()) == []


def test_links_are_the_same_files(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", splits=False)
    convert_data(photos, tmp_path / "out", to="folders", link=True, progress=False)
    written = sorted((tmp_path / "out").rglob("*.png"))
    assert len(written) == 6
    assert all(path.stat().st_nlink == 2 for path in written)


def test_nothing_is_overwritten_and_a_failure_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = write_photos(tmp_path / "photos", splits=False)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match="nothing is overwritten"):
        convert_data(photos, tmp_path / "full", to="folders", progress=False)
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["mine.txt"]

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("headstart.workflows.convert.copy_images", stop)
    with pytest.raises(KeyboardInterrupt):
        convert_data(photos, tmp_path / "new", to="folders", progress=False)
    assert {path.name for path in tmp_path.iterdir()} == {"photos", "full"}


REFUSED: dict[str, tuple[Callable[[Path], Any], dict[str, Any], type[Exception], str]] = {
    "boxes as folders": (make_boxes, {"to": "folders"}, UsageError, "boxes. Pass --to coco or"),
    "masks as yolo": (make_masks, {"to": "yolo"}, UsageError, "--to coco or --to folders"),
    "an unknown format": (make_boxes, {"to": "cocoo"}, UnknownNameError, "'coco'"),
    "links in Parquet": (
        lambda root: write_photos(root, splits=False),
        {"to": "parquet", "link": True},
        UsageError,
        "--to parquet holds the images themselves",
    ),
    "an unknown task": (make_boxes, {"to": "coco", "task": "box"}, UnknownNameError, "'box'"),
    "an unknown setting": (
        make_boxes,
        {"to": "coco", "grup_by": "x"},
        UnknownNameError,
        "group_by",
    ),
    "a missing image": (
        lambda root: (make_boxes(root), (root / "1.png").unlink())[0],
        {"to": "coco"},
        DataError,
        "1 of 5 images do not exist",
    ),
    "half of the splits": (
        lambda root: replace(
            (data := make_boxes(root)),
            samples=(replace(data.samples[0], split=None), *data.samples[1:]),
        ),
        {"to": "coco"},
        DataError,
        "1 of 5 images have no split",
    ),
    "no label": (
        lambda root: Dataset(samples=(Sample(image=draw(0)),), classes=("cat",)),
        {"to": "folders"},
        DataError,
        "1 of 1 images have no label",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_written_is_refused(name: str, tmp_path: Path) -> None:
    make, arguments, error, text = REFUSED[name]
    source = make(tmp_path / "source")
    with pytest.raises(error) as raised:
        convert_data(source, tmp_path / "out", progress=False, **arguments)
    assert text in str(raised.value)
    assert not (tmp_path / "out").exists()


def test_what_is_not_kept_is_reported_before_writing(tmp_path: Path) -> None:
    data = make_boxes(tmp_path / "zoo")
    data = replace(
        data,
        samples=tuple(replace(s, split="train", weight=2.0) for s in data.samples),
        classes=(*data.classes, "none"),
    )
    events: list[str] = []

    def observe(event: object) -> None:
        events.append(getattr(event, "text", type(event).__name__))

    convert_data(data, tmp_path / "out", to="yolo", observer=observe, progress=False)
    texts = [text for text in events if text.startswith("Not kept")]
    assert len(texts) == 5
    assert events.index(texts[-1]) < events.index("Progressed")
    for part in ("3 groups", "weights of 5 images", "1 difficult", "'train'", "'none'"):
        assert any(part in text for text in texts)
