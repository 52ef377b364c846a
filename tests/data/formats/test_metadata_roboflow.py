"""Exports of Roboflow: each layout as its site writes it, with the files that are not data."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from headstart.data.dataset import Boxes
from headstart.data.readers import read_dataset
from headstart.errors import LayoutError

SPLITS = ("train", "valid", "test")
BOX = (10.0, 20.0, 40.0, 60.0)


def name(split: str) -> str:
    return f"IMG_{split}_jpg.rf.0a1b2c3d4e5f60718293a4b5c6d7e8f9.jpg"


def photo(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (100, 80)).save(path)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def coco(root: Path) -> None:
    for split in SPLITS:
        photo(root / split / name(split))
        value: dict[str, Any] = {
            "info": {"year": "2024", "version": "1"},
            "licenses": [{"id": 1, "name": "CC BY 4.0"}],
            "categories": [
                {"id": 0, "name": "cars", "supercategory": "none"},
                {"id": 1, "name": "car", "supercategory": "cars"},
            ],
            "images": [{"id": 0, "file_name": name(split), "height": 80, "width": 100}],
            "annotations": [
                {"id": 0, "image_id": 0, "category_id": 1, "bbox": [10, 20, 30, 40], "iscrowd": 0}
            ],
        }
        write(root / split / "_annotations.coco.json", json.dumps(value))


def yolo(root: Path) -> None:
    for split in SPLITS:
        photo(root / split / "images" / name(split))
        write(root / split / "labels" / f"{name(split)[:-4]}.txt", "0 0.25 0.5 0.3 0.5")
    text = "train: ../train/images\nval: ../valid/images\ntest: ../test/images\n\nnc: 1\n"
    write(root / "data.yaml", text + "names: ['car']\n\nroboflow:\n  version: 1\n")


def voc(root: Path) -> None:
    for split in SPLITS:
        photo(root / split / name(split))
        box = "<xmin>11</xmin><xmax>40</xmax><ymin>21</ymin><ymax>60</ymax>"
        size = "<size><width>100</width><height>80</height><depth>3</depth></size>"
        text = f"<annotation><folder></folder><filename>{name(split)}</filename>{size}"
        text += f"<object><name>car</name><bndbox>{box}</bndbox></object></annotation>"
        write(root / split / f"{name(split)[:-4]}.xml", text)


def boxes_csv(root: Path) -> None:
    for split in SPLITS:
        photo(root / split / name(split))
        header = "filename,width,height,class,xmin,ymin,xmax,ymax"
        write(
            root / split / "_annotations.csv", f"{header}\n{name(split)},100,80,car,10,20,40,60\n"
        )


@pytest.mark.parametrize("writer", [coco, yolo, voc, boxes_csv])
def test_boxes(tmp_path: Path, writer: Callable[[Path], None]) -> None:
    writer(tmp_path)
    write(tmp_path / "README.dataset.txt", "# cars > 2024\nhttps://example.com\n")
    write(tmp_path / "README.roboflow.txt", "\ncars - v1\n\nThe dataset includes 3 images.\n")
    data = read_dataset(tmp_path)
    assert (data.kind, data.classes) == ("detection", ("car",))
    splits = {Path(str(s.image)).name: s.split for s in data.samples}
    assert splits == {name("train"): "train", name("valid"): "val", name("test"): "test"}
    for sample in data.samples:
        assert isinstance(sample.target, Boxes)
        assert sample.target.corners == (pytest.approx(BOX),)


def test_folders_of_classes(tmp_path: Path) -> None:
    for split in SPLITS:
        for label in ("cat", "dog"):
            photo(tmp_path / split / label / name(split))
    write(tmp_path / "README.dataset.txt", "pets")
    data = read_dataset(tmp_path)
    assert data.counts() == {"cat": 3, "dog": 3}
    assert {s.split for s in data.samples} == {"train", "val", "test"}


@pytest.mark.parametrize(("row", "kind"), [("1, 0", "multiclass"), ("1, 1", "multilabel")])
def test_columns_of_classes(tmp_path: Path, row: str, kind: str) -> None:
    for split in SPLITS:
        photo(tmp_path / split / name(split))
        cells = row if split == "train" else "0, 1"
        write(tmp_path / split / "_classes.csv", f"filename, cat, dog\n{name(split)}, {cells}\n")
    data = read_dataset(tmp_path)
    assert (data.kind, data.classes) == (kind, ("cat", "dog"))
    targets = {s.split: s.target for s in data.samples}
    expected = {"multiclass": ("cat", "dog"), "multilabel": (("cat", "dog"), ("dog",))}[kind]
    assert (targets["train"], targets["val"]) == expected


def test_two_exports_in_a_folder(tmp_path: Path) -> None:
    boxes_csv(tmp_path)
    write(tmp_path / "train/_classes.csv", f"filename, cat\n{name('train')}, 1\n")
    with pytest.raises(LayoutError, match=r"one metadata file in each folder"):
        read_dataset(tmp_path)
