"""Pascal VOC annotations are read as their authors counted, and damaged ones are refused."""

from pathlib import Path

import pytest

from headstart.data.dataset import Boxes
from headstart.data.formats.layouts import list_folder
from headstart.data.formats.voc import read_voc, read_voc_file
from headstart.errors import DataError, LeakError

ONE = """  <object>
    <name>{name}</name>
    <difficult>{hard}</difficult>
    <bndbox><xmin>{0}</xmin><ymin>{1}</ymin><xmax>{2}</xmax><ymax>{3}</ymax></bndbox>
    <part><name>head</name><bndbox><xmin>1</xmin></bndbox></part>
  </object>
"""


def xml(*boxes, size=(20, 10), filename="x.jpg", name="cat", hard=0):
    objects = "".join(ONE.format(*box, name=name, hard=hard) for box in boxes)
    return (
        f"<annotation>\n  <filename>{filename}</filename>\n"
        f"  <size><width>{size[0]}</width><height>{size[1]}</height></size>\n{objects}</annotation>"
    )


def put(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    return root


def read(root, files):
    return read_voc(list_folder(put(root, files)))


def found(annotations):
    return {item.key: (len(item.boxes.labels), item.split) for item in annotations.items}


def test_one_based_inclusive_corners_become_edges(tmp_path):
    put(tmp_path, {"a.xml": xml((1, 1, 20, 10), (3, 4, 5.5, 6), hard=1)})
    boxes, name = read_voc_file(tmp_path / "a.xml")
    assert boxes == Boxes(
        corners=((0.0, 0.0, 20.0, 10.0), (2.0, 3.0, 5.5, 6.0)),
        labels=("cat", "cat"),
        hard=(True, True),
        size=(20, 10),
    )
    assert name == "x.jpg"


def test_a_size_of_zero_is_not_known(tmp_path):
    put(tmp_path, {"a.xml": xml(size=(0, 0)), "b.xml": "<annotation/>"})
    assert read_voc_file(tmp_path / "a.xml") == (Boxes(), "x.jpg")
    assert read_voc_file(tmp_path / "b.xml") == (Boxes(), "")


BOMB = '<!DOCTYPE bomb [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;">]>\n<annotation>&b;</annotation>'
OUTSIDE = '<!DOCTYPE x [<!ENTITY f SYSTEM "file:///etc/passwd">]>\n<annotation>&f;</annotation>'


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
@pytest.mark.parametrize("text", [BOMB, OUTSIDE, '<!DOCTYPE x SYSTEM "x.dtd"><annotation/>'])
def test_entities_are_refused_before_they_unfold(tmp_path, text, encoding):
    (tmp_path / "a.xml").write_bytes(text.encode(encoding))
    with pytest.raises(DataError, match=r"a\.xml.*got a DOCTYPE"):
        read_voc_file(tmp_path / "a.xml")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("<annotation>\n<object>\n</annotation>", "mismatched tag in line 3"),
        ("", "no element found in line 1"),
        ("<html/>", "<html> in line 1"),
        ("<annotation>\n<object/></annotation>", "no <bndbox> in object 1, line 2"),
        (xml((1, 1, 2, 2), (1, 1, "x", 2)), r"a box of '1', '1', 'x', '2' in object 2, line 10"),
        (xml((1, 1, "nan", 2)), "a box of '1', '1', 'nan', '2' in object 1, line 4"),
        (xml((1, 1, "inf", 2)), "a box of"),
        (xml((1, 1, 2, "")), "no <ymax> in object 1"),
        (xml((1, 1, 2, 2), name=" "), "no <name> in object 1"),
        ('<?xml version="1.0" encoding="utf-99"?><annotation/>', "unknown encoding"),
        ("<annotation>\x00</annotation>", "in line 1"),
    ],
)
def test_damage_is_named_with_file_and_line(tmp_path, text, words):
    put(tmp_path, {"a.xml": text})
    with pytest.raises(DataError, match=rf"a\.xml' to be a Pascal VOC annotation, got .*{words}"):
        read_voc_file(tmp_path / "a.xml")


def test_lists_give_the_parts_and_leave_out_what_they_do_not_name(tmp_path):
    files = {f"JPEGImages/{i}.jpg": "" for i in range(6)}
    files |= {f"Annotations/{i}.xml": xml((1, 1, 5, 5)) for i in range(4)}
    lists = {"train": "0\n4\n\n", "val": "1\n", "test": "2\n", "trainval": "0\n1\n4"}
    files |= {f"ImageSets/Main/{name}.txt": text for name, text in lists.items()}
    files |= {"ImageSets/Main/cat_train.txt": "3 1", "SegmentationClass/0.png": ""}
    annotations = read(tmp_path, files)
    assert found(annotations) == {
        "JPEGImages/0.jpg": (1, "train"),
        "JPEGImages/4.jpg": (0, "train"),
        "JPEGImages/1.jpg": (1, "val"),
        "JPEGImages/2.jpg": (1, "test"),
    }
    assert annotations.names == ("cat",)
    notes = "; ".join(annotations.notes)
    assert "2 images in no list left out: 'JPEGImages/3.jpg', 'JPEGImages/5.jpg'" in notes
    assert "1 images have no annotation file: 'JPEGImages/4.jpg'" in notes


def test_trainval_stands_for_a_missing_train(tmp_path):
    files = {"JPEGImages/0.jpg": "", "JPEGImages/1.jpg": "", "Annotations/0.xml": xml()}
    files |= {"ImageSets/Main/trainval.txt": "0 1\n", "ImageSets/Main/test.txt": "1\n2\n"}
    annotations = read(tmp_path, files)
    assert found(annotations) == {
        "JPEGImages/0.jpg": (0, "train"),
        "JPEGImages/1.jpg": (0, "test"),
        "JPEGImages/2.jpg": (0, "test"),  # does not exist: the scan says so
    }


def test_an_image_in_two_lists_is_a_leak(tmp_path):
    files = {"JPEGImages/0.jpg": "", "Annotations/0.xml": xml()}
    files |= {f"ImageSets/Main/{name}.txt": "0\n" for name in ("train", "test")}
    with pytest.raises(LeakError, match=r"JPEGImages/0\.jpg.*train and test"):
        read(tmp_path, files)


def test_xml_beside_images_in_folders_of_parts(tmp_path):
    files = {"train/1.jpg": "", "train/1.xml": xml((1, 1, 2, 2)), "train/2.jpg": ""}
    files |= {"valid/1.jpg": "", "valid/1.xml": xml(), "cover.png": "", "site.xml": "<map/>"}
    annotations = read(tmp_path, files)
    assert found(annotations) == {
        "train/1.jpg": (1, "train"),
        "train/2.jpg": (0, "train"),
        "valid/1.jpg": (0, "val"),
    }
    assert any("1 other XML files not read: 'site.xml'" in note for note in annotations.notes)


def test_parallel_trees_of_the_same_names(tmp_path):
    files = {f"images/{part}/1.jpg": "" for part in ("train", "test")}
    files |= {"annotations/train/1.xml": xml((1, 1, 2, 2)), "annotations/test/1.xml": xml()}
    assert found(read(tmp_path, files)) == {
        "images/train/1.jpg": (1, "train"),
        "images/test/1.jpg": (0, "test"),
    }


def test_the_stated_name_finds_an_image_of_another_stem(tmp_path):
    files = {"images/cat one.jpg": "", "boxes/1.xml": xml((1, 1, 2, 2), filename="cat one.jpg")}
    assert found(read(tmp_path, files)) == {"images/cat one.jpg": (1, None)}


def test_an_annotation_without_image_is_kept_for_the_scan_to_name(tmp_path):
    files = {"JPEGImages/0.jpg": "", "Annotations/0.xml": xml(filename="0.jpg")}
    files |= {"Annotations/7.xml": xml((1, 1, 2, 2), filename="C:\\pics\\..\\7.png")}
    assert found(read(tmp_path, files))["JPEGImages/7.png"] == (1, None)


def test_two_annotations_of_one_image_and_background(tmp_path):
    files = {"p/0.jpg": "", "a/0.xml": xml(), "b/0.xml": xml()}
    with pytest.raises(DataError, match=r"one annotation for.*p/0\.jpg.*a/0\.xml.*b/0\.xml"):
        read(tmp_path / "two", files)
    files = {"0.jpg": "", "0.xml": xml((1, 1, 2, 2), name="__background__")}
    with pytest.raises(DataError, match=r"0\.xml.*'__background__', which means background"):
        read(tmp_path / "background", files)
