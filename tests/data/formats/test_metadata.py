import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image

from headstart.data.dataset import Boxes
from headstart.data.readers import read_dataset
from headstart.errors import DataError, HeadstartError, LayoutError


def images(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((20, 30, 3), dtype=np.uint8)).save(root / name)
    return root


def lines(path: Path, *rows: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def labels(root: Path, **options: Any) -> dict[str, tuple[Any, Any]]:
    data = read_dataset(root, **options)
    return {
        Path(str(s.image)).relative_to(root).as_posix(): (s.target, s.split) for s in data.samples
    }


def test_one_file_in_each_split(tmp_path: Path) -> None:
    images(tmp_path, "train/a.png", "train/deep/b.png", "test/a.png", "test/unlisted.png")
    (tmp_path / "train/metadata.csv").write_text("file_name,label\na.png,cat\ndeep/b.png,dog\n")
    lines(tmp_path / "test/metadata.jsonl", {"file_name": "a.png", "label": "dog"})
    assert labels(tmp_path) == {
        "train/a.png": ("cat", "train"),
        "train/deep/b.png": ("dog", "train"),
        "test/a.png": ("dog", "test"),
    }
    notes = read_dataset(tmp_path).notes
    assert any("1 images that the metadata do not list" in note for note in notes)


def test_the_labels_are_those_of_the_library_datasets(tmp_path: Path) -> None:
    images(tmp_path, "train/a.png", "train/b.png", "test/c.png")
    lines(
        tmp_path / "train/metadata.jsonl",
        {"file_name": "a.png", "label": "x"},
        {"file_name": "b.png", "label": "y"},
    )
    lines(tmp_path / "test/metadata.jsonl", {"file_name": "c.png", "label": "x"})
    theirs = datasets.load_dataset(
        "imagefolder", data_dir=str(tmp_path), cache_dir=str(tmp_path.parent / "cache")
    )
    expected = {
        (Path(row["image"].filename).name, row["label"], split)
        for split in theirs
        for row in theirs[split]
    }
    ours = {(Path(key).name, *value) for key, value in labels(tmp_path).items()}
    assert ours == expected


def test_objects_are_boxes(tmp_path: Path) -> None:
    images(tmp_path, "a.png", "b.png", "c.png")
    lines(
        tmp_path / "metadata.jsonl",
        {"file_name": "a.png", "objects": {"bbox": [[1, 2, 10, 5]], "categories": [0]}},
        {"file_name": "b.png", "objects": [{"bbox": [0, 0, 4.5, 8], "category": "car"}]},
        {"file_name": "c.png", "objects": {"bbox": [], "categories": []}},
    )
    data = read_dataset(tmp_path)
    assert data.kind == "detection"
    assert data.counts() == {"0": 1, "car": 1}
    assert [sample.target for sample in data.samples] == [
        Boxes(corners=((1.0, 2.0, 11.0, 7.0),), labels=("0",)),
        Boxes(corners=((0.0, 0.0, 4.5, 8.0),), labels=("car",)),
        Boxes(),
    ]


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("metadata.jsonl", "{]\n", "Expected a JSON object in line 1"),
        ("metadata.jsonl", '{"file_name": "a.png", "label": "x"}\n[1]\n', "line 2 .* a list"),
        ("metadata.jsonl", "1" * 5000 + "\n", "line 1"),
        ("metadata.jsonl", "[" * 100_000 + "\n", "line 1"),
        ("metadata.jsonl", "\n", "an empty file"),
        ("metadata.jsonl", '{"label": "x"}\n', "`file_name` to be the path.*got None in line 1"),
        ("metadata.jsonl", '{"file_name": "../a.png", "label": "x"}\n', r"got '\.\./a\.png'"),
        ("metadata.jsonl", '{"file_name": "/etc/a.png", "label": "x"}\n', "got '/etc/a.png'"),
        ("metadata.csv", "file_name,label\nno.png,x\n", "'no.png'"),
        ("metadata.jsonl", '{"file_name": "a.png", "text": "a cat"}\n', "column of labels"),
        (
            "metadata.jsonl",
            '{"file_name": "a.png", "objects": {"bbox": [[0, 0, 4]], "categories": [0]}}\n',
            r"x, y, width and height.*got \[0, 0, 4\]",
        ),
        (
            "metadata.jsonl",
            '{"file_name": "a.png", "objects": {"bbox": [[0, 0, 4, 4]]}}\n',
            "`bbox` and `categories`",
        ),
        (
            "metadata.jsonl",
            '{"file_name": "a.png", "objects": {"bbox": [[0, 0, 4, 4]], "categories": [0, 1]}}\n',
            "one box for each of the 2 classes",
        ),
        (
            "metadata.jsonl",
            '{"file_name": "a.png", "objects": {"bbox": [[0, 0, 1e99, 4]], "categories": [0]}}\n',
            "1e\\+99",
        ),
    ],
)
def test_damaged_metadata_is_named(tmp_path: Path, file: str, text: str, message: str) -> None:
    images(tmp_path, "a.png", "b.png")
    (tmp_path / file).write_text(text)
    with pytest.raises(HeadstartError, match=message):
        read_dataset(tmp_path)


def test_two_files_in_a_folder_are_ambiguous(tmp_path: Path) -> None:
    images(tmp_path, "a.png")
    (tmp_path / "metadata.csv").write_text("file_name,label\na.png,x\n")
    lines(tmp_path / "metadata.jsonl", {"file_name": "a.png", "label": "y"})
    with pytest.raises(LayoutError, match=r"one metadata file.*'metadata.csv' and 'metadata.jsonl"):
        read_dataset(tmp_path)


def test_captions_beside_class_folders_are_not_read(tmp_path: Path) -> None:
    images(tmp_path, "cat/a.png", "dog/b.png")
    lines(tmp_path / "metadata.jsonl", {"file_name": "cat/a.png", "text": "a cat"})
    data = read_dataset(tmp_path)
    assert data.counts() == {"cat": 1, "dog": 1}
    assert any("'metadata.jsonl' not read" in note for note in data.notes)


def test_rows_of_one_image_must_agree_across_files(tmp_path: Path) -> None:
    images(tmp_path, "train/a.png", "test/b.png")
    lines(tmp_path / "train/metadata.jsonl", {"file_name": "a.png", "label": "x"})
    lines(tmp_path / "test/metadata.jsonl", {"file_name": "../train/a.png", "label": "x"})
    with pytest.raises(DataError, match="in one split, got test and train"):
        read_dataset(tmp_path)


@pytest.mark.parametrize(
    "header",
    ["file_name,label", '"file_name","label"', "\ufefffile_name;label", "File Name\tlabel"],
)
def test_headers_in_other_forms(tmp_path: Path, header: str) -> None:
    images(tmp_path, "train/a.png", "test/b.png")
    delimiter = next(sign for sign in ",;\t" if sign in header)
    for split, name in (("train", "a"), ("test", "b")):
        text = f"{header}\n{name}.png{delimiter}x{name}\n"
        (tmp_path / split / "metadata.csv").write_text(text, encoding="utf-8")
    assert labels(tmp_path) == {"train/a.png": ("xa", "train"), "test/b.png": ("xb", "test")}
