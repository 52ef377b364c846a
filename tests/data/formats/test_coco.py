"""COCO files are read as they say, wherever their images lie, and damaged ones are refused."""

import json
from pathlib import Path

import pytest

from headstart.data.dataset import Boxes
from headstart.data.formats.coco import read_coco
from headstart.data.formats.layouts import list_folder
from headstart.errors import DataError, LeakError

CATS = [{"id": 1, "name": "cat"}, {"id": 7, "name": "dog"}]


def image(number, name, **fields):
    return {"id": number, "file_name": name, "width": 20, "height": 10, **fields}


def box(number, of, bbox=(1, 2, 3, 4), **fields):
    annotation = {
        "id": number,
        "image_id": of,
        "category_id": 1,
        "bbox": list(bbox),
        "iscrowd": 0,
    }
    return annotation | fields


def coco(images, annotations=(), categories=CATS):
    return {"images": images, "annotations": list(annotations), "categories": categories}


def put(root: Path, files) -> Path:
    for name, value in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(value if isinstance(value, str) else json.dumps(value))
    return root


def read(root, files):
    listing = list_folder(put(root, files))
    return read_coco(listing, [name for name in listing.other_files if name.endswith(".json")])


def found(annotations):
    return {item.key: (len(item.boxes.labels), item.split) for item in annotations.items}


def test_boxes_classes_crowds_negatives_and_groups(tmp_path):
    value = coco(
        [image(3, "a.jpg", video_id=5), image(9, "b.jpg")],
        [box(1, 3, (1, 2, 3.5, 4)), box(2, 3, category_id=7, iscrowd=1)],
    )
    first, second = read(tmp_path, {"all.json": value, "a.jpg": "", "b.jpg": "", "c.jpg": ""}).items
    assert first.boxes == Boxes(
        corners=((1.0, 2.0, 4.5, 6.0), (1.0, 2.0, 4.0, 6.0)),
        labels=("cat", "dog"),
        hard=(False, True),
        size=(20, 10),
    )
    assert first.group == "5"
    assert (second.key, second.boxes, second.group) == ("b.jpg", Boxes(size=(20, 10)), None)


def test_images_of_no_file_are_left_out_and_named(tmp_path):
    annotations = read(tmp_path, {"x.json": coco([image(1, "a.jpg")]), "a.jpg": "", "c.jpg": ""})
    assert found(annotations) == {"a.jpg": (0, None)}
    assert any(note.endswith("left out: 'c.jpg'") for note in annotations.notes)


def test_annotations_folder_beside_folders_of_the_same_names(tmp_path):
    files = {f"{part}2017/{i}.jpg": "" for part in ("train", "val") for i in range(2)}
    for part in ("train", "val"):
        value = coco([image(i, f"{i}.jpg") for i in range(2)], [box(1, 0)])
        files[f"annotations/instances_{part}2017.json"] = value
        captions = [{"id": 1, "image_id": 0, "caption": "a cat"}]
        files[f"annotations/captions_{part}2017.json"] = coco([image(0, "0.jpg")], captions)
    annotations = read(tmp_path, files)
    assert found(annotations) == {
        "train2017/0.jpg": (1, "train"),
        "train2017/1.jpg": (0, "train"),
        "val2017/0.jpg": (1, "val"),
        "val2017/1.jpg": (0, "val"),
    }
    assert any("2 JSON files without boxes" in note for note in annotations.notes)


def test_a_file_beside_the_images_of_each_part(tmp_path):
    files = {f"{part}/1.jpg": "" for part in ("train", "valid", "test")}
    for part in ("train", "valid", "test"):
        files[f"{part}/_annotations.coco.json"] = coco([image(0, "1.jpg")], [box(0, 0)])
    assert found(read(tmp_path, files)) == {
        "train/1.jpg": (1, "train"),
        "valid/1.jpg": (1, "val"),
        "test/1.jpg": (1, "test"),
    }


def test_names_with_folders_and_back_slashes(tmp_path):
    names = ["sub\\1.jpg", "./sub/2.jpg", "../images/sub/3.jpg"]
    files = {"ann/x.json": coco([image(i, name) for i, name in enumerate(names)])}
    files |= {f"images/sub/{i}.jpg": "" for i in (1, 2, 3)}
    assert list(found(read(tmp_path, files))) == [f"images/sub/{i}.jpg" for i in (1, 2, 3)]


def test_a_missing_image_is_kept_for_the_scan_to_name(tmp_path):
    files = {"x.json": coco([image(1, "1.jpg"), image(2, "2.jpg")]), "images/1.jpg": ""}
    assert list(found(read(tmp_path, files))) == ["images/1.jpg", "images/2.jpg"]
    with pytest.raises(DataError, match=r"None of the 1 images .*such as '9\.jpg'"):
        read(tmp_path / "none", {"x.json": coco([image(1, "9.jpg")]), "a.jpg": ""})


@pytest.mark.parametrize(
    "name",
    ["../1.jpg", "a/../../1.jpg", "/etc/1.jpg", "..\\1.jpg", "C:\\1.jpg", "link/1.jpg", "1.png",
     "a\0.jpg"],
)  # fmt: skip
def test_names_that_lead_out_of_the_folder_are_refused(tmp_path, name):
    inside = put(tmp_path / "data", {"ok.jpg": "", "x.json": coco([image(1, name)])})
    put(tmp_path, {"1.jpg": "", "else/1.jpg": ""})
    (inside / "link").symlink_to(tmp_path / "else")
    (inside / "1.png").symlink_to(tmp_path / "1.jpg")
    with pytest.raises(DataError, match=r"x\.json.*outside that folder"):
        read_coco(list_folder(inside), ["x.json"])


def test_a_folder_may_be_reached_by_a_link_itself(tmp_path):
    put(tmp_path / "data", {"1.jpg": "", "x.json": coco([image(1, "1.jpg")])})
    (tmp_path / "link").symlink_to(tmp_path / "data")
    assert found(read_coco(list_folder(tmp_path / "link"), ["x.json"])) == {"1.jpg": (0, None)}


def test_an_impossible_name_is_a_missing_image(tmp_path):
    value = coco([image(1, "a.jpg"), image(2, "9" * 400 + ".jpg")])
    assert len(read(tmp_path, {"x.json": value, "a.jpg": ""}).items) == 2


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ('{"images": [],\n "annotations": [,]}', "JSON.*Expecting value in line 2"),
        ("\x00", "JSON"),
        ("[" * 100000, "JSON"),
        ("[]", "an object of lists.*a list"),
        (coco({}), "a list of objects as `images`"),
        (coco([1]), "a list of objects as `images`"),
        (coco([{"id": 1}]), r"`id` and `file_name` in images\[0\]"),
        (coco([image([1], "a.jpg")]), r"in images\[0\]"),
        (coco([image(1, "a.jpg"), image(1, "b.jpg")]), "every id of `images` once.*id 1 twice"),
        (
            coco([image(1, "a.jpg")], [box(1, 1, category_id=0), box(2, 1)]),
            r"ids of the 2 classes \('1', '7'\).*id 0 in 1 annotations, first for 'a\.jpg'",
        ),
        (
            coco([image(1, "a.jpg")], [box(1, 1, category_id=[1])]),
            "category ids of the 2 classes.*id None in 1",
        ),
        (
            coco([image(1, "a.jpg")], [box(1, 1)], [{"id": 1, "name": "__background__"}]),
            "classes of objects.*id 1, '__background__', which means background",
        ),
        (coco([image(1, "a.jpg")], [box(4, 1, (1, 2, 3))]), r"annotation 4 of 'a\.jpg'"),
        (coco([image(1, "a.jpg")], [box(4, 1, (1, 2, 3, "4"))]), "annotation 4 of"),
        (coco([image(1, "a.jpg")], [box(4, 1, (1, 2, 3, float("nan")))]), "annotation 4 of"),
        (coco([image(1, "a.jpg")], [box(4, 1, (1, 2, 3, 10**400))]), "annotation 4 of"),
    ],
)
def test_damage_is_named_with_file_and_place(tmp_path, value, words):
    with pytest.raises(DataError, match=f"(?s){words}") as caught:
        read(tmp_path, {"x.json": value, "a.jpg": ""})
    assert "x.json'" in str(caught.value)


def test_no_file_with_boxes(tmp_path):
    with pytest.raises(DataError, match=r"Expected the lists .*'x\.json'"):
        read(tmp_path, {"x.json": {"images": [], "annotations": []}, "a.jpg": ""})


def test_an_unused_background_class_is_noted_and_no_class(tmp_path):
    categories = [{"id": 0, "name": "background"}, *CATS]
    value = coco([image(1, "a.jpg")], [box(1, 1)], categories)
    annotations = read(tmp_path, {"x.json": value, "a.jpg": ""})
    assert annotations.names == ("cat", "dog")
    assert any("'background (id 0)' means background" in note for note in annotations.notes)


def test_annotations_of_unknown_images_are_counted(tmp_path):
    boxes = [box(i, 1) for i in range(98)]
    value = coco([image(1, "a.jpg")], [*boxes, box(98, 5), box(99, None)])
    annotations = read(tmp_path, {"x.json": value, "a.jpg": ""})
    assert found(annotations) == {"a.jpg": (98, None)}
    assert any("2 annotations of images that 'x.json' does not" in n for n in annotations.notes)


@pytest.mark.parametrize(
    ("names", "error"), [(("train", "test"), LeakError), (("one", "two"), DataError)]
)
def test_an_image_of_two_files(tmp_path, names, error):
    files = {f"{name}.json": coco([image(1, "a.jpg")]) for name in names}
    with pytest.raises(error, match=r"every image once .*'a\.jpg'") as caught:
        read(tmp_path, files | {"a.jpg": ""})
    assert type(caught.value) is error


SAME = [
    ("images", "id", "1"),
    ("images", "id", 1.0),
    ("annotations", "image_id", "1"),
    ("annotations", "image_id", 1.0),
    ("annotations", "category_id", "1"),
    ("annotations", "category_id", "cat"),
    ("categories", "id", "1"),
    ("categories", "id", 1.0),
    ("annotations", "iscrowd", "0"),
    ("annotations", "iscrowd", False),
    ("annotations", "iscrowd", None),
    ("annotations", "ignore", "0"),
    ("annotations", "ignore", 0),
    ("images", "file_name", "{root}/sub/a.jpg"),
    ("images", "file_name", "sub\\a.jpg"),
]


@pytest.mark.parametrize(("section", "field", "value"), SAME)
def test_values_written_in_another_form_mean_the_same(tmp_path, section, field, value):
    plain = coco([image(1, "sub/a.jpg")], [box(1, 1)], [{"id": 1, "name": "cat"}])
    expected = read(tmp_path / "plain", {"x.json": plain, "sub/a.jpg": ""}).items[0]
    text = value.format(root=tmp_path / "other") if isinstance(value, str) else value
    plain[section][0][field] = text
    item = read(tmp_path / "other", {"x.json": plain, "sub/a.jpg": ""}).items[0]
    assert (item.key, item.boxes) == (expected.key, expected.boxes)
    assert len(item.boxes.labels) == 1


@pytest.mark.parametrize(
    ("field", "value"),
    [(f, v) for f in ("iscrowd", "ignore") for v in (1, "1", True, "true", 1.0)],
)
def test_crowds_and_ignored_objects_are_hard(tmp_path, field, value):
    given = coco([image(1, "a.jpg")], [box(1, 1, **{field: value}), box(2, 1, (5, 2, 3, 4))])
    assert read(tmp_path, {"x.json": given, "a.jpg": ""}).items[0].boxes.hard == (True, False)


@pytest.mark.parametrize("stray", [2, "2", "x", None, [1], 1.5, -1, True and 7, "01", {"id": 1}])
def test_annotations_of_no_image_are_an_error_beyond_two_percent(tmp_path, stray):
    boxes = [box(i, 1) for i in range(97)] + [box(97 + i, stray) for i in range(3)]
    with pytest.raises(DataError, match=r"3 of 100 annotations with other ids.*`image_id`"):
        read(tmp_path, {"x.json": coco([image(1, "a.jpg")], boxes), "a.jpg": ""})
