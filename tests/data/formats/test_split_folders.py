from pathlib import Path

import pytest

from headstart.data.formats.split_folders import split_and_rest
from headstart.data.readers import read_dataset
from headstart.errors import HeadstartError, LayoutError


def make(root: Path, *folders: str) -> Path:
    """Write two images (empty files) to each folder; a folder that ends in / stays empty."""
    for folder in folders:
        (root / folder).mkdir(parents=True, exist_ok=True)
        for name in () if folder.endswith("/") else ("1.jpg", "2.jpg"):
            (root / folder / name).touch()
    return root


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("train", ("train", "")),
        ("Validation", ("val", "")),
        ("train2017", ("train", "")),
        ("val_2012", ("val", "")),
        ("training_set", ("train", "")),
        ("test-images", ("test", "")),
        ("TestSet", ("test", "")),
        ("testset", ("test", "")),
        ("TRAIN", ("train", "")),
        ("seg_train", ("train", "seg")),
        ("Chest Xray Test", ("test", "chest xray")),
        ("test_tube", ("test", "tube")),
        ("train_val", (None, "")),
        ("trains", (None, "trains")),
        ("protest", (None, "protest")),
        ("valve", (None, "valve")),
        ("device", (None, "device")),
    ],
)
def test_names(name: str, expected: tuple[str | None, str]) -> None:
    assert split_and_rest(name) == expected


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("train", "test"),
        ("training_set", "test_set"),
        ("train_images", "test_images"),
        ("train2017", "test2017"),
        ("seg_train", "seg_test"),
        ("seg_train/seg_train", "seg_test/seg_test"),
        ("training_set/training_set", "test_set/test_set"),
        ("train/train", "test"),
        ("train/training", "test/test"),
        ("trainset", "testset"),
        ("TrainData", "TestData"),
        ("flowers-train", "flowers-test"),
        ("Training 2019", "Testing 2020"),
        ("my data train", "my data test"),
        ("imgs.train", "imgs.test"),
    ],
)
def test_splits_are_never_classes(tmp_path: Path, train: str, test: str) -> None:
    make(tmp_path, *(f"{split}/{label}" for split in (train, test) for label in ("sea", "wood")))
    data = read_dataset(tmp_path)
    assert data.counts() == {"sea": 4, "wood": 4}
    assert len(data.split("train")) == len(data.split("test")) == 4


@pytest.mark.parametrize(
    "classes",
    [
        ("bus", "car", "train"),
        ("beaker", "test_tube"),
        ("test_tube", "train"),
        ("mask", "no mask", "person"),
        ("test tube", "train ticket", "valid id"),
        ("dev", "prod"),
        ("trains", "tests"),
        ("valve", "vale"),
        ("device", "testament"),
        ("car", "training shoe"),
        ("crash_test", "crash"),
        ("set", "data"),
        ("1", "2"),
    ],
)
def test_classes_that_sound_like_splits(tmp_path: Path, classes: tuple[str, ...]) -> None:
    data = read_dataset(make(tmp_path, *classes, *(f"{name}/more" for name in classes)))
    assert data.counts() == dict.fromkeys(data.classes, 4)
    assert set(data.classes) == set(classes)
    assert {sample.split for sample in data.samples} == {None}


@pytest.mark.parametrize(
    "folders",
    [
        ("train_images", "test_images"),
        ("train", "test"),
        ("train2017", "val2017"),
        ("training_set", "test_set"),
        ("seg_train", "seg_test"),
        ("seg_train/seg_train", "seg_test/seg_test"),
        ("TrainSet", "TestSet"),
        ("train/images", "test/images", "train/"),
        ("training", "validation", "testing"),
        ("flowers_train", "flowers_valid", "flowers_test"),
    ],
)
def test_splits_without_class_folders(tmp_path: Path, folders: tuple[str, ...]) -> None:
    with pytest.raises(Exception, match=r"Expected labelled images|at least 2 classes"):
        read_dataset(make(tmp_path, *folders))


@pytest.mark.parametrize(
    "folder",
    [
        "@eaDir",
        "$RECYCLE.BIN",
        "lost+found",
        ".ipynb_checkpoints",
        "__MACOSX",
        "System Volume Information",
        "#recycle",
        "@Recently-Snapshot",
        "__pycache__",
        ".Trash-1000",
        "cat/@eaDir",
        "dog/.ipynb_checkpoints",
    ],
)
def test_system_folders_are_ignored(tmp_path: Path, folder: str) -> None:
    assert read_dataset(make(tmp_path, "cat", "dog", folder)).counts() == {"cat": 2, "dog": 2}


def test_a_doubled_root_counts_once(tmp_path: Path) -> None:
    make(tmp_path, "photos/photos/cat", "photos/photos/dog")
    assert read_dataset(tmp_path / "photos").counts() == {"cat": 2, "dog": 2}
    make(tmp_path, "photos/cat", "photos/dog")
    with pytest.raises(LayoutError, match=r"'photos' in .* once more: 'cat', 'dog'"):
        read_dataset(tmp_path / "photos")


def test_a_third_folder_without_classes_is_left_out(tmp_path: Path) -> None:
    inner = (f"seg_{split}/seg_{split}/{label}" for split in ("train", "test") for label in "ab")
    data = read_dataset(make(tmp_path, *inner, "seg_pred/seg_pred"))
    assert data.counts() == {"a": 4, "b": 4}
    assert any("2 images outside class folders left out" in note for note in data.notes)


def folder_set(root, *patterns, classes=("cat", "dog"), splits=("train", "test")):
    for pattern in patterns:
        for c in classes:
            for s in splits:
                for i in range(2):
                    path = root / pattern.format(c=c, s=s, i=i)
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.touch()
    return root


@pytest.mark.parametrize(
    ("pattern", "splits"),
    [
        ("{c}/{s}/{i}.jpg", ("train", "test")),
        ("{c}/{s}/{i}.jpg", ("train", "val", "test")),
        ("{c}/{s}/{i}.jpg", ("training_set", "test_set")),
        ("{c}/{s}/{i}.jpg", ("Train2017", "Val2017")),
        ("{c}/{s}/{i}.jpg", ("TrainImages", "TestImages")),
        ("{c}/{c}_{s}/{i}.jpg", ("train", "test")),
        ("{c}/{s}-{c}/{i}.jpg", ("train", "test")),
        ("{c}/images/{s}/{i}.jpg", ("train", "valid")),
        ("{c}/{s}/site a/{i}.jpg", ("train", "test")),
        ("{c}/{s}/{c}/{i}.jpg", ("train", "test")),
        ("{c}_{s}/{i}.jpg", ("train", "test")),
        ("{s}_{c}/{i}.jpg", ("train", "test")),
        ("{c}-{s}/{i}.jpg", ("Training", "Testing")),
        ("{c} {s} set/{i}.jpg", ("train", "val", "test")),
        ("{s}.{c}/deeper/{i}.jpg", ("train", "test")),
    ],
)
def test_splits_inside_classes_and_in_their_names(tmp_path, pattern, splits):
    data = read_dataset(folder_set(tmp_path, pattern, splits=splits))
    assert data.classes == ("cat", "dog")
    for sample in data.samples:
        text = sample.name.removeprefix(str(tmp_path)).lower()
        assert sample.target in text
        assert sample.split is not None
        assert sample.split[:3] in text
    assert len({sample.split for sample in data.samples}) == len(splits)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("cat/train/1.jpg", "cat/test/2.jpg", "dog/3.jpg"), "2 of 3 images are in folders for"),
        (("cat/train/1.jpg", "cat/test/2.jpg", "cat/3.jpg", "dog/4.jpg"), "2 of 4 images"),
        (("cat_train/1.jpg", "cat_test/1.jpg", "dog_train/1.jpg", "cow/1.jpg"), "3 of 4 folders"),
        (("a/train/x/1.jpg", "a/test/y/1.jpg", "b/train/x/1.jpg", "b/test/y/1.jpg"), "same names"),
        (("f1/train/cat/1.jpg", "f1/test/dog/1.jpg", "f2/train/dog/1.jpg", "f2/test/cat/1.jpg"),
         "same names"),
    ],
)  # fmt: skip
def test_half_of_a_split_is_refused(tmp_path, names, words):
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(LayoutError, match=words) as caught:
        read_dataset(tmp_path)
    assert "--class-level 1" in str(caught.value)
    level = read_dataset(tmp_path, class_level=1)
    assert {sample.split for sample in level.samples} == {None}


@pytest.mark.parametrize(
    ("names", "classes"),
    [
        (("road/train/1.jpg", "road/bus/1.jpg", "exam/test/1.jpg"), ("exam", "road")),
        (("test_tube/1.jpg", "train_station/1.jpg"), ("test_tube", "train_station")),
        (("cat/train/1.jpg", "dog/train/1.jpg"), ("cat", "dog")),
        (("model train/1.jpg", "train/1.jpg", "bus/1.jpg"), ("bus", "model train", "train")),
        (("test_a/1.jpg", "test_b/1.jpg", "test_c/1.jpg"), ("test_a", "test_b", "test_c")),
        (("train_red/1.jpg", "train_blue/1.jpg", "test_green/1.jpg"),
         ("test_green", "train_blue", "train_red")),
    ],
)  # fmt: skip
def test_words_that_are_no_splits_stay_classes(tmp_path, names, classes):
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    data = read_dataset(tmp_path)
    assert data.classes == classes
    assert {sample.split for sample in data.samples} == {None}


@pytest.mark.parametrize(
    "names",
    [
        ("train/images/cat/1.jpg", "train/images/dog/2.jpg"),
        ("train/images/cat/1.jpg", "train/images/dog/2.jpg", "test/images/cat/3.jpg"),
        ("train/imgs/cat/1.jpg", "val/imgs/dog/2.jpg", "val/imgs/cat/2.jpg"),
        ("Training/data/cat/1.jpg", "Training/data/dog/1.jpg", "Testing/data/dog/1.jpg"),
        ("train/photos/cat/a/1.jpg", "train/photos/dog/1.jpg", "test/photos/dog/1.jpg"),
        ("train/images/cat/1.jpg", "valid/pictures/dog/1.jpg", "valid/pictures/cat/2.jpg"),
    ],
)
def test_a_folder_of_images_in_each_split_is_no_class(names, tmp_path):
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    data = read_dataset(tmp_path)
    assert data.classes == ("cat", "dog")
    assert [s.split for s in data.samples] == [
        "train" if s.image.relative_to(tmp_path).parts[0].lower().startswith("train")
        else "val" if "val" in s.image.relative_to(tmp_path).parts[0] else "test"
        for s in data.samples
    ]  # fmt: skip


@pytest.mark.parametrize(
    "names",
    [
        ("train/images/1.jpg", "train/cat/1.jpg", "train/dog/1.jpg"),  # images is a class here
        ("train/images/cat/1.jpg", "train/images/2.jpg", "train/masks/cat/1.jpg"),
        ("train/images/cat/1.jpg", "test/cat/2.jpg", "test/dog/2.jpg"),  # one split only
        ("train/fruits/cat/1.jpg", "test/fruits/dog/2.jpg"),
    ],
)
def test_other_folders_in_splits_stay_what_they_are(names, tmp_path):
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    try:
        classes = read_dataset(tmp_path, min_classes=1).classes
    except HeadstartError:
        return
    assert classes != ("cat", "dog")
