from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from headstart.data.readers import read_dataset
from headstart.errors import LayoutError, UsageError


def make(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def tree(tops: str, inner: str) -> tuple[str, ...]:
    return tuple(f"{top}/{sub}/1.jpg" for top in tops.split("|") for sub in inner.split("|"))


@pytest.mark.parametrize(
    "names",
    [
        tree("color|grayscale|segmented", "apple|corn|grape"),
        tree("P1|P2|P3", "0|1"),
        ("P1/benign/1.jpg", "P2/malignant/1.jpg", "P3/benign/1.jpg", "P4/malignant/1.jpg"),
        tree("site a|site b", "rust|scab|healthy"),
        tree("2019|2020", "cat|dog"),
        tree("fold1|fold2|fold3|fold4|fold5", "cat|dog"),
        tree("camera 1|camera 2", "ok|defect"),
        tree("40X|100X|200X|400X", "benign|malignant"),
        tree("day|night", "car|bus"),
        tree("original|augmented", "rust|scab"),
        (*tree("part1|part2", "cat|dog"), "part1/bird/1.jpg"),
        (*tree("train/a|train/b", "x|y"), *tree("test/a|test/b", "x|y")),
    ],
)
def test_folders_above_classes_are_asked_about(tmp_path: Path, names: tuple[str, ...]) -> None:
    make(tmp_path, *names)
    with pytest.raises(LayoutError, match=r"--class-level 2 .*pass --class-level 1"):
        read_dataset(tmp_path)
    skipped = 1 if names[-1].startswith("test") else 0
    tops = {name.split("/")[skipped] for name in names}
    inner = {name.split("/")[skipped + 1] for name in names}
    assert set(read_dataset(tmp_path, class_level=1).classes) == tops
    assert set(read_dataset(tmp_path, class_level=2).classes) == inner


@pytest.mark.parametrize(
    "names",
    [
        tree("cat|dog", "images"),
        tree("cat|dog", "1|2")[:3],
        (*tree("cat", "indoor|outdoor"), "dog/1.jpg", "bird/1.jpg"),
        (*tree("cat", "a|b"), *tree("dog", "c|d")),
        ("cat/1.jpg", "dog/1.jpg"),
        tree("train|test", "cat|dog"),
        ("cat/a/1.jpg", "dog/b/1.jpg", "bird/c/1.jpg"),
        (*tree("n01|n02", "images"), "n01/boxes/1.jpg"),
        ("train/cat/a/1.jpg", "train/dog/b/1.jpg"),
        ("images/1.jpg", "documents/1.jpg"),
    ],
)
def test_classes_with_folders_of_their_own(tmp_path: Path, names: tuple[str, ...]) -> None:
    assert len(read_dataset(make(tmp_path, *names)).classes) > 1


def picture(path: Path, *, mask: bool) -> None:
    rng = np.random.default_rng(len(str(path)))
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (16, 16) if mask else (16, 16, 3)
    pixels = rng.integers(0, 2 if mask else 256, shape) * (255 if mask else 1)
    Image.fromarray(pixels.astype(np.uint8)).save(path)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("x", "y"),
        ("a", "b"),
        ("scans", "drawn"),
        ("photo", "binary"),
        ("raw", "processed"),
        ("cells", "cells_mask"),
        ("left", "right"),
        ("before", "after"),
        ("train/x", "train/y"),
        ("input_a", "output_a"),
    ],
)
def test_two_folders_of_equal_names_and_few_values(tmp_path: Path, first: str, second: str) -> None:
    for i in range(3):
        picture(tmp_path / first / f"{i}.png", mask=False)
        picture(tmp_path / second / f"{i}.png", mask=True)
    with pytest.raises(LayoutError, match=f"--masks {second.rpartition('/')[2]}"):
        read_dataset(tmp_path)
    assert read_dataset(tmp_path, masks=second.rpartition("/")[2]).kind == "segmentation"
    assert len(read_dataset(tmp_path, class_level=1)) == 6


@pytest.mark.parametrize("masks", [(False, False), (True, True)])
def test_two_classes_of_equal_names(tmp_path: Path, masks: tuple[bool, bool]) -> None:
    for i in range(3):
        picture(tmp_path / f"a/{i}.png", mask=masks[0])
        picture(tmp_path / f"b/{i}.png", mask=masks[1])
    assert read_dataset(tmp_path).counts() == {"a": 3, "b": 3}


@pytest.mark.parametrize("level", [0, -1, 1.5, "2", "x"])
def test_levels_that_are_none(tmp_path: Path, level: object) -> None:
    make(tmp_path, "a/1.jpg", "b/1.jpg")
    with pytest.raises(UsageError, match="`class_level` must be a whole number from 1 on"):
        read_dataset(tmp_path, class_level=level)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "name",
    ["{}_mask", "{}_mask_1", "{}-mask", "{}_gt", "{}_seg", "{}.mask", "{} mask", "{}_MASK",
     "{}_segmentation", "{}_groundtruth"],
)  # fmt: skip
def test_masks_beside_images_are_no_images_of_the_class(tmp_path: Path, name: str) -> None:
    images = [f"{top}/x ({i})" for top in ("benign", "malignant") for i in range(3)]
    make(tmp_path, *(f"{image}.png" for image in images))
    make(tmp_path, *(f"{name.format(image)}.png" for image in images))
    data = read_dataset(tmp_path, class_level=1)
    assert data.counts() == {"benign": 3, "malignant": 3}
    assert any(note.startswith("6 masks beside their images left out") for note in data.notes)


def test_jpeg_masks_of_equal_names(tmp_path: Path) -> None:
    for i in range(3):
        picture(tmp_path / f"a/{i}.jpg", mask=False)
        (tmp_path / "b").mkdir(exist_ok=True)
        mask = np.zeros((64, 64), dtype=np.uint8)
        mask[11:43, 21:50] = 255
        Image.fromarray(mask).save(tmp_path / f"b/{i}.jpg")
    with pytest.raises(LayoutError, match="--masks b"):
        read_dataset(tmp_path)
    assert read_dataset(tmp_path, masks="b", mask_threshold=128).kind == "segmentation"
