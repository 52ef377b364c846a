from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, List, Value
from PIL import Image

from headstart.data.dataset import Boxes
from headstart.data.formats import pixels
from headstart.data.images import decode
from headstart.data.readers import read_dataset
from headstart.errors import DataError, HeadstartError

NAMES = ["cat", "dog"]


def picture(value: int) -> Image.Image:
    return Image.fromarray(np.full((20, 30, 3), value, dtype=np.uint8))


def write(path: Path, classes: list[Any], **columns: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    features = {"image": datasets.Image(), "label": ClassLabel(names=NAMES)}
    features |= {name: feature for name, (feature, _) in columns.items()}
    cells = {"image": [picture(10 * i) for i in range(len(classes))], "label": classes}
    cells |= {name: values for name, (_, values) in columns.items()}
    data = datasets.Dataset.from_dict(cells, features=datasets.Features(features))
    data.to_parquet(str(path))


def test_shards_and_splits(tmp_path: Path) -> None:
    write(tmp_path / "data/train-00000-of-00002.parquet", [0, 1])
    write(tmp_path / "data/train-00001-of-00002.parquet", [1])
    write(tmp_path / "data/test-00000-of-00001.parquet", [0])
    (tmp_path / "README.md").write_text("a data set")
    data = read_dataset(tmp_path)
    assert data.classes == ("cat", "dog")
    assert [(s.target, s.split) for s in data.samples] == [
        ("cat", "test"),
        ("cat", "train"),
        ("dog", "train"),
        ("dog", "train"),
    ]
    assert decode(data.samples[2].image)[0, 0].tolist() == [10, 10, 10]
    assert data.samples[2].name == "data/train-00000-of-00002.parquet row 1"
    theirs = datasets.load_dataset(
        "parquet",
        data_files={
            split: str(tmp_path / f"data/{split}-*.parquet") for split in ("train", "test")
        },
        cache_dir=str(tmp_path.parent / "cache"),
    )
    for split in ("train", "test"):
        ours = [s for s in data.samples if s.split == split]
        assert [s.target for s in ours] == [NAMES[label] for label in theirs[split]["label"]]
        for sample, row in zip(ours, theirs[split], strict=True):
            assert (decode(sample.image) == np.asarray(row["image"])).all()


def test_one_file_is_a_source(tmp_path: Path) -> None:
    path = tmp_path / "photos.parquet"
    write(path, [0, 1, 1])
    assert read_dataset(path).counts() == {"cat": 1, "dog": 2}
    assert {s.split for s in read_dataset(path).samples} == {None}


@pytest.mark.parametrize("as_list", [False, True])
def test_objects_with_class_names(tmp_path: Path, as_list: bool) -> None:
    kind = ClassLabel(names=["car", "bus"])
    box: Any = List(Value("float32"))
    if as_list:
        objects = (List({"bbox": box, "category": kind}), [[{"bbox": [1, 2, 4, 8], "category": 1}]])
    else:
        objects = (
            {"bbox": List(box), "category": List(kind)},
            [{"bbox": [[1, 2, 4, 8]], "category": [1]}],
        )
    write(tmp_path / "train.parquet", [0], objects=objects)
    data = read_dataset(tmp_path)
    assert data.kind == "detection"
    assert data.samples[0].target == Boxes(corners=((1.0, 2.0, 5.0, 10.0),), labels=("bus",))
    assert read_dataset(tmp_path, task_kind="multiclass", min_classes=1).counts() == {"cat": 1}


def test_bytes_without_features(tmp_path: Path) -> None:
    content = [Path(__file__).read_bytes()[:3], b"GIF89a"]  # not decoded here
    table = pa.table({"image": content, "label": ["a", "b"], "image_path": ["1.jpg", "2.jpg"]})
    pq.write_table(table, tmp_path / "x.parquet")
    data = read_dataset(tmp_path)
    assert [sample.image for sample in data.samples] == content
    assert data.counts() == {"a": 1, "b": 1}


def struct(root: Path, cells: list[Any], **columns: Any) -> None:
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({"image": pa.array(cells, kind), **columns})
    pq.write_table(table, root / "train.parquet")


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ({"bytes": None, "path": "../x.jpg"}, r"got the path '\.\./x\.jpg'"),
        ({"bytes": None, "path": "/etc/passwd"}, "got the path '/etc/passwd'"),
        ({"bytes": None, "path": "no.jpg"}, "'no.jpg'"),
        ({"bytes": None, "path": None}, "an image in column 'image'"),
        (None, "an image in column 'image'"),
    ],
)
def test_images_that_are_not_in_the_file(tmp_path: Path, cell: Any, message: str) -> None:
    struct(tmp_path, [{"bytes": b"GIF89a", "path": "1.gif"}, cell], label=["a", "b"])
    with pytest.raises(DataError, match=message):
        read_dataset(tmp_path)


def test_stored_file_names_are_in_the_names(tmp_path: Path) -> None:
    cells = [{"bytes": b"GIF89a", "path": f"p{i}_1.gif"} for i in (7, 8)]
    struct(tmp_path, cells, label=["a", "b"])
    data = read_dataset(tmp_path, group_by=r"\((p\d)")
    assert [s.name for s in data.samples] == [
        f"train.parquet row {i} (p{i + 7}_1.gif)" for i in (0, 1)
    ]
    assert [s.group for s in data.samples] == ["p7", "p8"]


def test_a_column_of_images_with_any_name(tmp_path: Path) -> None:
    features = datasets.Features(xray=datasets.Image(), label=ClassLabel(names=NAMES))
    cells = {"xray": [picture(0), picture(9)], "label": [0, 1]}
    datasets.Dataset.from_dict(cells, features=features).to_parquet(str(tmp_path / "t.parquet"))
    assert read_dataset(tmp_path).counts() == {"cat": 1, "dog": 1}
    assert read_dataset(tmp_path, image_column="xray").counts() == {"cat": 1, "dog": 1}
    with pytest.raises(HeadstartError, match="image_column"):
        read_dataset(tmp_path, image_column="xrays")


def test_missing_shards_and_other_columns_are_named(tmp_path: Path) -> None:
    write(tmp_path / "train-00000-of-00003.parquet", [0])
    write(tmp_path / "train-00002-of-00003.parquet", [1])
    with pytest.raises(DataError, match=r"3 shards of 'train'.*got 2: number 1 is missing"):
        read_dataset(tmp_path)
    write(tmp_path / "train-00001-of-00003.parquet", [1], more=(Value("int64"), [1]))
    with pytest.raises(DataError, match=r"Expected the columns .*'train-00001-of-00003.parquet'"):
        read_dataset(tmp_path)


def test_several_columns_of_labels_are_asked_about(tmp_path: Path) -> None:
    features = datasets.Features(
        img=datasets.Image(), fine=ClassLabel(names=["a", "b"]), coarse=ClassLabel(names=["c"])
    )
    cells = {"img": [picture(0), picture(1)], "fine": [0, 1], "coarse": [0, 0]}
    datasets.Dataset.from_dict(cells, features=features).to_parquet(str(tmp_path / "t.parquet"))
    with pytest.raises(DataError, match=r"got 'fine', 'coarse'\. Choose one with --label-column"):
        read_dataset(tmp_path)
    assert read_dataset(tmp_path, label_column="fine").counts() == {"a": 1, "b": 1}


def test_missing_and_unknown_classes(tmp_path: Path) -> None:
    write(tmp_path / "t.parquet", [0, -1, 1])
    with pytest.raises(DataError, match=r"one label in every row.*positions 1"):
        read_dataset(tmp_path)
    schema = pq.read_schema(tmp_path / "t.parquet")
    table = pq.read_table(tmp_path / "t.parquet")
    broken = table.set_column(1, "label", pa.array([0, 5, 1])).replace_schema_metadata(
        schema.metadata
    )
    pq.write_table(broken, tmp_path / "t.parquet")
    with pytest.raises(DataError, match=r"labels from 0 to 1.*got 5"):
        read_dataset(tmp_path)


def test_more_than_the_memory_and_damaged_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "t.parquet", [0, 1])
    monkeypatch.setattr(pixels, "available_memory", lambda: 100)
    with pytest.raises(DataError, match=r"need about .* GB of memory"):
        read_dataset(tmp_path)
    content = (tmp_path / "t.parquet").read_bytes()
    (tmp_path / "t.parquet").write_bytes(content[:-30])
    with pytest.raises(HeadstartError, match="as a Parquet file"):
        read_dataset(tmp_path)
