"""YOLO labels are read wherever tools put them, and ids that do not fit are refused."""

from pathlib import Path

import pytest

from headstart.data.dataset import Boxes
from headstart.data.formats.layouts import list_folder
from headstart.data.formats.yolo import read_yolo
from headstart.errors import DataError

ROW = "0 0.5 0.5 0.2 0.4\n"
YAML = "nc: 2\nnames: [cat, dog]\n"


def put(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(text.encode() if isinstance(text, str) else text)
    return root


def read(root, files):
    return read_yolo(list_folder(put(root, files)))


def found(annotations):
    return {item.key: (len(item.boxes.labels), item.split) for item in annotations.items}


def test_centres_become_corners_and_ids_names(tmp_path):
    files = {
        "images/a.jpg": "",
        "images/b.jpg": "",
        "images/c.jpg": "",
        "classes.txt": "cat\ndog\n",
    }
    files |= {"labels/a.txt": "1 0.5 0.25 0.5 0.25\n\n0.0 1 1 0 0\n", "labels/b.txt": "\n"}
    annotations = read(tmp_path, files)
    first, *rest = annotations.items
    assert first.boxes == Boxes(
        corners=((0.25, 0.125, 0.75, 0.375), (1.0, 1.0, 1.0, 1.0)), labels=("dog", "cat")
    )
    assert [item.boxes for item in rest] == [Boxes(), Boxes()]
    assert annotations.relative
    assert annotations.names == ("cat", "dog")
    assert any("1 images have no label file: 'images/c.jpg'" in n for n in annotations.notes)


def test_an_outline_gives_the_box_around_it(tmp_path):
    files = {"images/a.jpg": "", "labels/a.txt": "0 0.1 0.5 0.3 0.2 0.2 0.9\n"}
    annotations = read(tmp_path, files)
    assert annotations.items[0].boxes.corners == ((0.1, 0.2, 0.3, 0.9),)
    assert any("1 objects are outlines" in note for note in annotations.notes)
    assert annotations.names == ("0",)
    assert "the ids are used as names" in annotations.notes[0]


@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("images/{}/1.jpg", "labels/{}/1.txt"),
        ("{}/images/1.jpg", "{}/labels/1.txt"),
        ("images/{}2017/1.jpg", "labels/{}2017/1.txt"),
        ("deep/images/{}/1.jpg", "deep/labels/{}/1.txt"),
        ("{}/1.jpg", "{}/1.txt"),
        ("{}/1.jpg", "labels/{}/1.txt"),
        ("{}/1.jpg", "{}/labels/1.txt"),
    ],
)
def test_places_of_labels_and_parts(tmp_path, image, label):
    files = {}
    for part in ("train", "valid", "test"):
        files |= {image.format(part): "", label.format(part): ROW}
    annotations = read(tmp_path, files | {"data.yaml": YAML, "README.dataset.txt": "words"})
    assert found(annotations) == {
        image.format("train"): (1, "train"),
        image.format("valid"): (1, "val"),
        image.format("test"): (1, "test"),
    }


@pytest.mark.parametrize(
    ("yaml", "splits"),
    [
        ("train: images/a\nval: ../x/images/b\n", ["train", "val"]),
        ("path: /far/away\ntrain: [images/a]\ntest: images/b\n", ["train", "test"]),
        ("train: images\nval: images/b\n", ["train", "val"]),
        ("train: images\nval: images\n", [None, None]),
        ("train: one.txt\nval: two.txt\n", ["train", "val"]),
        ("", [None, None]),
    ],
)
def test_parts_of_data_yaml(tmp_path, yaml, splits):
    files = {f"images/{name}/1.jpg": "" for name in "ab"}
    files |= {f"labels/{name}/1.txt": ROW for name in "ab"}
    files |= {"one.txt": "./images/a/1.jpg\n", "two.txt": "/old/images/b/1.jpg\n"}
    annotations = read(tmp_path, files | {"data.yaml": yaml + YAML})
    assert [item.split for item in annotations.items] == splits


@pytest.mark.parametrize(
    ("name", "text", "names"),
    [
        ("data.yaml", "names: [no, 1]", ("no", "1")),
        ("sub/set.yml", "names:\n  1: dog\n  0: cat\n", ("cat", "dog")),
        ("labels/classes.txt", "cat\r\n\r\ndog\r\n", ("cat", "dog")),
        ("obj.names", "\ufeffcat\ndog", ("cat", "dog")),
        ("data.yaml", "names: [background, cat]", ("cat",)),
    ],
)
def test_names(tmp_path, name, text, names):
    files = {"images/a.jpg": "", "labels/a.txt": ROW.replace("0", "1", 1), name: text}
    annotations = read(tmp_path, files | {"other.yaml": "x: 1"})
    assert annotations.names == names
    assert annotations.items[0].boxes.labels == (names[-1],)


def test_a_label_without_image_is_kept_for_the_scan_to_name(tmp_path):
    files = {"images/a.png": "", "labels/a.txt": "", "labels/b.txt": ROW, "cover.jpg": ""}
    annotations = read(tmp_path, files)
    assert found(annotations) == {"images/a.png": (0, None), "images/b.png": (1, None)}
    assert any("1 images outside the image folders" in note for note in annotations.notes)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("cat 0.5 0.5 0.2 0.2", "a class id .* in line 2"),
        ("0 0.5 0.5 0.2", "a class id .* in line 2"),
        ("0 0.5 0.5 0.2 0.2 0.9", "a class id .* in line 2"),
        ("0.5 0.5 0.5 0.2 0.2", "a class id .* in line 2"),
        ("-1 0.5 0.5 0.2 0.2", "a class id .* in line 2"),
        ("inf 0.5 0.5 0.2 0.2", "a class id .* in line 2"),
        ("0 0.5 nan 0.2 0.2", "a class id .* in line 2"),
        ("0", "a class id .* in line 2"),
        ("0 320 240 10 10", "fractions .*0 to 1, in line 2.*Divide pixels"),
        (b"\xff\xfe\x00", "text in UTF-8"),
    ],
)
def test_damaged_lines_are_named(tmp_path, row, words):
    text = ROW.encode() + (row if isinstance(row, bytes) else row.encode())
    with pytest.raises(DataError, match=rf"Expected {words}") as caught:
        read(tmp_path, {"images/a.jpg": "", "labels/a.txt": text})
    assert "a.txt'" in str(caught.value)


@pytest.mark.parametrize(
    ("ids", "names", "words"),
    [
        (
            [0, 5],
            "names: [cat, dog]",
            r"ids of the 2 classes of 'data\.yaml' .*labels/1\.txt.*id 5",
        ),
        (
            [1, 2],
            "names: [cat, dog]",
            "ids 1 to 2 and never 0.*start at 1.*Subtract 1 from every id",
        ),
        ([1, 3], "names: [cat, dog]", "got the class id 3"),
        ([0], "names: [background, dog]", "the class id 0, 'background', which means background"),
        ([0], "nc: 3\nnames: [cat, dog]", "`nc` .*nc 3 and 2 names.*background is not a class"),
        ([0], "names: [cat, cat]", "every class name once.*'cat' several"),
        ([0], "names: {a: cat}", "whole numbers"),
        ([0], "names: [[cat]]", "a list or table of texts"),
        ([0], "names:", "a list or table of texts"),
        ([0], "names: [cat\nx: y", "YAML.*in line 2"),
    ],
)
def test_ids_and_names_that_do_not_fit(tmp_path, ids, names, words):
    files = {"data.yaml": names}
    for i, identity in enumerate(ids):
        files |= {f"images/{i}.jpg": "", f"labels/{i}.txt": f"{identity} 0.5 0.5 0.1 0.1"}
    with pytest.raises(DataError, match=words):
        read(tmp_path, files)


BOX = "0 0.75 0.75 0.2 0.2"
POSES = [
    f"{BOX} 0.70 0.70 0.80 0.70 0.75 0.82",
    f"{BOX} 0.70 0.70 2 0.80 0.70 2",
    f"{BOX} 0.70 0.70 2 0.80 0.70 1 0.75 0.82 2",
    f"{BOX} 0.70 0.70 2 0 0 0",
    f"{BOX} 0 0 0.80 0.70",
    f"{BOX} 0.70 0.70",
    f"{BOX} 0.66 0.66 0.84 0.84",
    f"{BOX} 0.75 0.75 2",
    f"{BOX} 0.70 0.70 2 0.80 0.70 1 0.75 0.82 2 0.7 0.8 0",
    f"{BOX} 0.70 0.70 0.80 0.70 0.75 0.82 0.70 0.80",
]


@pytest.mark.parametrize("row", POSES)
def test_a_pose_is_its_box(tmp_path, row):
    files = {"images/a.jpg": "", "labels/a.txt": f"{row}\n{row}\n"}
    annotations = read(tmp_path, files)
    corners = annotations.items[0].boxes.corners
    assert corners == (pytest.approx((0.65, 0.65, 0.85, 0.85)),) * 2
    assert any("2 objects have key points" in note for note in annotations.notes)


OUTLINES = [
    "0 0.1 0.1 0.9 0.1 0.9 0.9 0.1 0.9",
    "0 0.5 0.1 0.9 0.9 0.1 0.9",
    "0 0.2 0.3 0.4 0.1 0.6 0.3 0.4 0.5",
    "0 0.1 0.2 0.3 0.2 0.3 0.4 0.1 0.4 0.05 0.3",
    "0 0.6 0.6 0.8 0.6 0.8 0.7 0.6 0.7",
    "0 0 0 1 0 1 1 0 1",
]


@pytest.mark.parametrize("row", OUTLINES)
def test_an_outline_stays_an_outline(tmp_path, row):
    values = [float(cell) for cell in row.split()[1:]]
    annotations = read(tmp_path, {"images/a.jpg": "", "labels/a.txt": row})
    sides = (min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2]))
    assert annotations.items[0].boxes.corners == (sides,)


def test_kpt_shape_decides_and_its_count_is_checked(tmp_path):
    row = "0 0.2 0.3 0.4 0.1 0.6 0.3 0.4 0.5"
    files = {"images/a.jpg": "", "labels/a.txt": row}
    yaml = "names: [hand]\nkpt_shape: [2, 2]\n"
    item = read(tmp_path, files | {"data.yaml": yaml}).items[0]
    assert item.boxes.corners == (pytest.approx((0.0, 0.25, 0.4, 0.35)),)
    with pytest.raises(DataError, match=r"kpt_shape \['3', '2'\] in line 1.*8 numbers"):
        read(tmp_path, {"data.yaml": yaml.replace("[2,", "[3,")})
    (tmp_path / "data.yaml").unlink()
    with pytest.raises(DataError, match=r"in line 1.*7 numbers.*kpt_shape"):
        read(tmp_path, {"labels/a.txt": "0 0.1 0.1 0.9 0.1 0.9 0.9 0.1"})
