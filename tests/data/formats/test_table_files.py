from pathlib import Path

import pytest
from PIL import Image

from headstart.data.readers import read_dataset
from headstart.errors import DataError, LayoutError

ARCHIVES = (
    "zip",
    "tar",
    "tar.gz",
    "tgz",
    "tar.bz2",
    "tbz2",
    "tar.xz",
    "txz",
    "tar.zst",
    "7z",
    "rar",
)


@pytest.mark.parametrize("suffix", ARCHIVES)
def test_archives_are_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"photos.{suffix}"
    path.write_bytes(b"PK\x03\x04")
    with pytest.raises(LayoutError, match=rf"photos\.{suffix}'\. Unpack it and pass the folder"):
        read_dataset(path)


@pytest.mark.parametrize(
    "address",
    [
        "https://example.com/photos.zip",
        "http://example.com/photos",
        "ftp://example.com/photos.tar",
        "s3://bucket/photos/",
        "gs://bucket/photos.tar.gz",
        "hf://datasets/owner/name",
    ],
)
def test_addresses_are_refused(address: str) -> None:
    with pytest.raises(
        LayoutError, match=r"is an address.*Download it, unpack it if it is an arch"
    ):
        read_dataset(address)


def _write_tables(folder: Path, tables: dict[str, str]) -> Path:
    (folder / "images").mkdir(parents=True)
    for i in range(12):
        Image.new("RGB", (32, 32), (20 * i, 9, 9)).save(folder / "images" / f"{i}.png")
    for name, text in tables.items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def _rows(first: int, end: int, header: str = "path,label") -> str:
    lines = [f"images/{i}.png,{'ab'[i % 2]}" for i in range(first, end)]
    return "\n".join([header, *lines]) + "\n"


@pytest.mark.parametrize(
    "names",
    [
        ("train.csv", "test.csv"),
        ("train.csv", "val.csv"),
        ("Train.csv", "Validation.csv"),
        ("training.csv", "testing.csv"),
        ("train_labels.csv", "test_labels.csv"),
        ("labels_train.csv", "labels_val.csv"),
        ("train2017.csv", "val2017.csv"),
        ("TrainSet.csv", "TestSet.csv"),
        ("train.tsv", "test.csv"),
    ],
)
def test_tables_of_splits_are_joined(tmp_path: Path, names: tuple[str, str]) -> None:
    texts = {names[0]: _rows(0, 8), names[1]: _rows(8, 12)}
    if names[0].endswith(".tsv"):
        texts[names[0]] = texts[names[0]].replace(",", "\t")
    data = read_dataset(_write_tables(tmp_path / "d", texts))
    parts = [sample.split for sample in data.samples]
    assert parts.count("train") == 8
    assert len(set(parts)) == 2
    assert [sample.target for sample in data.samples][:2] in (["a", "b"], ["b", "a"])
    assert data.classes == ("a", "b")


OWN_SPLITS = "path,label,split\nimages/0.png,a,train\nimages/1.png,b,test\n"


@pytest.mark.parametrize(
    "tables",
    [
        {"train.csv": _rows(0, 8), "more.csv": _rows(8, 12)},  # no split
        {"train.csv": _rows(0, 8), "training.csv": _rows(8, 12)},  # the same split twice
        {"train.csv": _rows(0, 8), "test.csv": _rows(8, 12, "path,class")},  # other columns
        {"train_cats.csv": _rows(0, 8), "test_dogs.csv": _rows(8, 12)},  # other subjects
        {"train.csv": OWN_SPLITS, "test.csv": OWN_SPLITS.replace("images/0", "images/8")},
        {"train.csv": _rows(0, 4), "val.csv": _rows(4, 8), "x.csv": _rows(8, 12)},
        {"a.csv": _rows(0, 8), "b.csv": _rows(8, 12)},
    ],
)
def test_other_tables_side_by_side_are_refused(tmp_path: Path, tables: dict[str, str]) -> None:
    with pytest.raises(LayoutError, match=r"Pass the path of one|Expected labelled"):
        read_dataset(_write_tables(tmp_path / "d", tables))


def test_a_wrong_row_is_named_with_its_table(tmp_path: Path) -> None:
    texts = {"train.csv": _rows(0, 8), "test.csv": "path,label\nimages/99.png,a\n"}
    with pytest.raises(DataError, match=r"99\.png"):
        read_dataset(_write_tables(tmp_path / "d", texts))
