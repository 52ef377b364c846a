"""Tables with ids for images, as in competitions, and sources that are no files here."""

from pathlib import Path

import pandas as pd
import pytest

from headstart.data.readers import read_dataset
from headstart.errors import HeadstartError, LayoutError


def make(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


LAYOUTS = [
    ("train/{}.jpg", "train.csv", "id"),
    ("train/{}.png", "labels.csv", "Id"),
    ("train/{}.tif", "train_labels.csv", "id"),
    ("{}.jpg", "labels.csv", "id"),
    ("images/{}.jpeg", "train.csv", "image_id"),
    ("train_images/{}.jpg", "train.csv", "image"),
    ("train/train/{}.jpg", "train.csv", "id"),
    ("data/train/{}.webp", "train.csv", "filename"),
    ("train/{}.JPG", "train.csv", "ID"),
    ("all/{}.bmp", "labels.tsv", "image_name"),
]


@pytest.mark.parametrize(("place", "table", "column"), LAYOUTS)
def test_ids_without_suffix(place, table, column, tmp_path):
    ids = [f"{i:03}ab" for i in range(6)]
    make(tmp_path, *[place.format(name) for name in ids])
    if "train" in place:
        make(tmp_path, *[f"test/{name}.jpg" for name in ids[:2]], "test/zzz.jpg")
    frame = pd.DataFrame({column: ids, "label": ["cat", "dog"] * 3})
    frame.to_csv(tmp_path / table, index=False, sep="\t" if table.endswith("tsv") else ",")
    pd.DataFrame({"id": ["zzz"], "label": ["cat"]}).to_csv(
        tmp_path / "sample_submission.csv", index=False
    )
    for source in (tmp_path, tmp_path / table):
        data = read_dataset(source)
        expected = dict(zip(frame[column], frame["label"], strict=True))
        assert {sample.image.stem: sample.target for sample in data.samples} == expected
        assert all(
            sample.image == tmp_path / place.format(sample.image.stem) for sample in data.samples
        )


@pytest.mark.parametrize(
    "files",
    [
        ("train/1.jpg",),  # 2 is missing
        ("a/1.jpg", "b/1.jpg", "a/2.jpg"),  # 1 is ambiguous
        ("train/1.jpg", "train/2.txt"),
        ("train/1.jpg", "train/x2.jpg"),
        ("train/a/1.jpg", "train/b/1.jpg", "train/2.jpg"),
    ],
)
def test_ids_without_one_image_each_are_refused(files, tmp_path):
    make(tmp_path, *files)
    (tmp_path / "train.csv").write_text("id,label\n1,a\n2,b\n")
    with pytest.raises(HeadstartError):
        read_dataset(tmp_path / "train.csv")


def test_numbered_rows_beside_class_folders_are_not_images(tmp_path):
    make(tmp_path, "cat/1.jpg", "dog/2.jpg")
    (tmp_path / "notes.csv").write_text("id,label\n1,good\n2,bad\n")
    assert read_dataset(tmp_path).classes == ("cat", "dog")


@pytest.mark.parametrize(
    "address",
    [
        "https://example.org/photos.zip",
        "http://example.org/photos/",
        "s3://bucket/photos",
        "gs://bucket/photos",
        "ftp://example.org/a.tar.gz",
        "hf://datasets/a/b",
        "file:///photos",
    ],
)
def test_addresses_are_refused_with_a_sentence(address):
    with pytest.raises(LayoutError, match="only files on this machine"):
        read_dataset(address)


@pytest.mark.parametrize("suffix", [".zip", ".tar", ".tar.gz", ".tgz", ".7z", ".rar"])
def test_archives_are_refused_with_a_sentence(suffix, tmp_path):
    make(tmp_path, f"photos{suffix}")
    with pytest.raises(LayoutError, match="Unpack it and pass the folder"):
        read_dataset(tmp_path / f"photos{suffix}")


ROWS = "id,label\n0,cat\n1,dog\n2,cat\n3,dog\n"
TRAIN = tuple(f"train/{i}.jpg" for i in range(4))
TEST = ("test/10.jpg", "test/11.jpg")
KAGGLE = {
    "one folder and its ids": (TRAIN, {"train.csv": ROWS}),
    "labels of one folder": (TRAIN, {"train_labels.csv": ROWS}),
    "another name of the table": (TRAIN, {"trainLabels.csv": ROWS}),
    "another name of the folder": (
        tuple(name.replace("train", "images") for name in TRAIN),
        {"data.csv": ROWS},
    ),
    "a table of the test images": (
        TRAIN + TEST,
        {"train.csv": ROWS, "test.csv": "id\n10\n11\n"},
    ),
    "test images and a sample submission": (
        TRAIN + TEST,
        {
            "train.csv": ROWS,
            "test.csv": "id\n10\n11\n",
            "sample_submission.csv": "id,label\n10,x\n",
        },
    ),
    "names with suffix": (
        TRAIN + TEST,
        {"train.csv": ROWS.replace(",", ".jpg,").replace("id.jpg", "id")},
    ),
    "names with suffix and a table of the test images": (
        tuple(name.replace("train", "train_images") for name in TRAIN) + TEST,
        {
            "train.csv": ROWS.replace(",", ".jpg,").replace("id.jpg", "image_id"),
            "test.csv": "image_id\n10.jpg\n11.jpg\n",
        },
    ),
    "a table of something else": (
        TRAIN,
        {"train.csv": ROWS, "classes.csv": "number,name\n0,cat\n1,dog\n"},
    ),
    "a table of an external set": (
        TRAIN,
        {"train.csv": ROWS, "extra.csv": "id,label\n99,cat\n98,dog\n"},
    ),
    "columns of classes": (
        TRAIN + TEST,
        {"train.csv": "id,cat,dog\n0,1,0\n1,0,1\n2,1,0\n3,0,1\n", "test.csv": "id\n10\n11\n"},
    ),
    "one folder of columns of classes": (
        tuple(f"images/{name[6:]}" for name in TRAIN + TEST),
        {
            "train.csv": "image_id,cat,dog\n0,1,0\n1,0,1\n2,1,0\n3,0,1\n",
            "test.csv": "image_id\n10\n",
        },
    ),
}


@pytest.mark.parametrize("name", KAGGLE)
def test_the_labelled_table_of_a_competition_is_read(name, tmp_path):
    files, tables = KAGGLE[name]
    make(tmp_path, *files)
    for table, text in tables.items():
        (tmp_path / table).write_text(text)
    data = read_dataset(tmp_path)
    found = {sample.image.stem: sample.target for sample in data.samples}
    assert found == {"0": "cat", "1": "dog", "2": "cat", "3": "dog"}
    assert data.kind == "multiclass"
    others = set(tables) - {"sample_submission.csv"} - {next(iter(tables))}
    assert all(any("not read" in note and other in note for note in data.notes) for other in others)


@pytest.mark.parametrize(
    ("tables", "text"),
    [
        ({"train.csv": ROWS, "more.csv": ROWS}, "got 2: 'more.csv', 'train.csv'. Pass the path"),
        ({"train.csv": ROWS.replace("label", "level")}, "or pass --label-column NAME"),
        ({"train.csv": ROWS + "4,cat\n"}, "1 of the 5 images in"),
        ({"train.csv": ROWS, "other.csv": "path,label\n0.jpg,x\n"}, "got 2: 'other.csv'"),
    ],
)
def test_tables_that_are_not_certain_are_refused(tables, text, tmp_path):
    make(tmp_path, *TRAIN)
    for table, content in tables.items():
        (tmp_path / table).write_text(content)
    with pytest.raises(HeadstartError) as raised:
        read_dataset(tmp_path)
    assert text in str(raised.value)
