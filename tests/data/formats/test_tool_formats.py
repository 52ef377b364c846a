"""Annotation tools: one scene in every format, and what is refused by name."""

import base64
import io
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from headstart.data.dataset import Boxes
from headstart.data.readers import read_dataset
from headstart.errors import DataError, HeadstartError, LayoutError

# The scene: 40 x 20 pixels; a rectangle "car" and a triangle "tree".
CAR = (4.0, 2.0, 12.0, 8.0)
TREE = [[20.0, 4.0], [30.0, 4.0], [25.0, 14.0]]
TREE_BOX = (20.0, 4.0, 30.0, 14.0)


def photo(path: Path, width: int = 40, height: int = 20) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((height, width, 3), dtype=np.uint8)).save(path)


def write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value))


def png(pixels: list[list[int]]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.array(pixels, dtype=np.uint8) * 255).save(buffer, "PNG")
    return buffer.getvalue()


# ------------------------------------------------------------------------------------- the formats


def labelme(shapes: list[dict[str, Any]], image: str = "1.png", **more: Any) -> dict[str, Any]:
    return {
        "version": "5.4.1",
        "flags": {},
        "shapes": shapes,
        "imagePath": image,
        "imageData": None,
        "imageHeight": 20,
        "imageWidth": 40,
        **more,
    }


def labelme_shape(kind: str, points: list[Any], label: str = "car", **more: Any) -> dict[str, Any]:
    return {"label": label, "shape_type": kind, "points": points, "group_id": None, **more}


def write_labelme(root: Path) -> None:
    photo(root / "1.png")
    photo(root / "2.png")
    shapes = [
        labelme_shape("rectangle", [[12, 8], [4, 2]]),
        labelme_shape("polygon", TREE, "tree", flags={}),
    ]
    write(root / "1.json", labelme(shapes))


CVAT = """<?xml version="1.0" encoding="utf-8"?>
<annotations><version>1.1</version><meta><task><labels>
<label><name>car</name></label><label><name>tree</name></label></labels></task></meta>
{images}</annotations>"""


def cvat(content: str, name: str = "1.png") -> str:
    image = f'<image id="0" name="{name}" width="40" height="20">{content}</image>'
    return CVAT.format(images=image)


def write_cvat(root: Path) -> None:
    photo(root / "images/1.png")
    photo(root / "images/2.png")
    points = ";".join(f"{x:.2f},{y:.2f}" for x, y in TREE)
    content = (
        '<box label="car" occluded="0" xtl="4.00" ytl="2.00" xbr="12.00" ybr="8.00"/>'
        f'<polygon label="tree" points="{points}"/>'
    )
    empty = '<image id="1" name="2.png" width="40" height="20"></image></annotations>'
    write(root / "annotations.xml", cvat(content).replace("</annotations>", empty))


def via_region(shape: dict[str, Any], **attributes: Any) -> dict[str, Any]:
    return {"shape_attributes": shape, "region_attributes": attributes}


VIA_CAR = {"name": "rect", "x": 4, "y": 2, "width": 8, "height": 6}
VIA_TREE = {"name": "polygon", "all_points_x": [20, 30, 25], "all_points_y": [4, 4, 14]}


def via(regions: Any, image: str = "1.png") -> dict[str, Any]:
    return {f"{image}99": {"filename": image, "size": 99, "regions": regions}}


def write_via(root: Path) -> None:
    photo(root / "1.png")
    photo(root / "2.png")
    entries = via([via_region(VIA_CAR, kind="car"), via_region(VIA_TREE, kind="tree")])
    project = {"_via_settings": {}, "_via_img_metadata": entries | via([], "2.png")}
    write(root / "via_project.json", project)


def write_via_csv(root: Path) -> None:
    photo(root / "1.png")
    photo(root / "2.png")
    rows = [("1.png", 0, VIA_CAR, "car"), ("1.png", 1, VIA_TREE, "tree"), ("2.png", 0, {}, "")]
    lines = ["filename,file_size,file_attributes,region_count,region_id,"]
    lines[0] += "region_shape_attributes,region_attributes"
    for file, number, shape, name in rows:
        cells = [json.dumps(cell).replace('"', '""') for cell in (shape, {"kind": name})]
        cells[1] = cells[1] if shape else "{}"
        lines.append(f'{file},9,"{{}}",2,{number},"{cells[0]}","{cells[1]}"')
    write(root / "via_export_csv.csv", "\n".join(lines) + "\n")


def studio(kind: str, value: dict[str, Any], **more: Any) -> dict[str, Any]:
    size = {"original_width": 40, "original_height": 20, "image_rotation": 0}
    names = {"from_name": "label", "to_name": "image", "id": json.dumps(value)[:40]}
    return {**names, **size, "type": kind, "value": value, **more}


def studio_task(results: list[Any], image: str = "/data/upload/1/8d6b3c4a-1.png") -> dict[str, Any]:
    annotation = {"id": 1, "was_cancelled": False, "result": results}
    return {"id": 1, "annotations": [annotation], "data": {"image": image}, "predictions": []}


STUDIO_CAR = {
    "x": 10,
    "y": 10,
    "width": 20,
    "height": 30,
    "rotation": 0,
    "rectanglelabels": ["car"],
}


def write_studio(root: Path) -> None:
    photo(root / "1.png")
    photo(root / "2.png")
    points = [[100 * x / 40, 100 * y / 20] for x, y in TREE]
    tree = studio("polygonlabels", {"points": points, "polygonlabels": ["tree"], "closed": True})
    tasks = [studio_task([studio("rectanglelabels", STUDIO_CAR), tree]), studio_task([], "2.png")]
    write(root / "project-1.json", tasks)


def sly(objects: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    return {
        "description": "",
        "tags": [],
        "size": {"height": 20, "width": 40},
        "objects": objects,
        **more,
    }


def sly_object(kind: str, exterior: list[Any], label: str = "car", **more: Any) -> dict[str, Any]:
    points = {"exterior": exterior, "interior": []}
    return {"classTitle": label, "geometryType": kind, "points": points, "tags": [], **more}


def write_sly(root: Path) -> None:
    photo(root / "ds0/img/1.png")
    photo(root / "ds0/img/2.png")
    write(root / "meta.json", {"classes": [{"title": "tree"}, {"title": "car"}], "tags": []})
    # Pixels: the last one belongs to the object.
    car = sly_object("rectangle", [[4, 2], [11, 7]])
    tree = sly_object("polygon", [[20, 4], [29, 4], [25, 13]], "tree")
    write(root / "ds0/ann/1.png.json", sly([car, tree]))
    write(root / "ds0/ann/2.png.json", sly([]))


FORMATS: dict[str, Callable[[Path], None]] = {
    "LabelMe": write_labelme,
    "CVAT": write_cvat,
    "VIA": write_via,
    "VIA CSV": write_via_csv,
    "Label Studio": write_studio,
    "Supervisely": write_sly,
}


@pytest.mark.parametrize("name", FORMATS)
def test_one_scene_in_every_format(tmp_path: Path, name: str) -> None:
    FORMATS[name](tmp_path)
    data = read_dataset(tmp_path)
    assert data.kind == "detection"
    assert data.classes == (("tree", "car") if name == "Supervisely" else ("car", "tree"))
    first, second = data.samples
    assert [Path(str(sample.image)).name for sample in data.samples] == ["1.png", "2.png"]
    assert isinstance(first.target, Boxes)
    assert first.target.corners == (CAR, TREE_BOX)
    assert first.target.labels == ("car", "tree")
    assert second.target.labels == ()  # type: ignore[union-attr]
    assert any("1 objects are outlines" in note for note in data.notes)
    assert any(name.removesuffix(" CSV") in note for note in data.notes)


@pytest.mark.parametrize("name", FORMATS)
def test_annotations_are_no_classes(tmp_path: Path, name: str) -> None:
    FORMATS[name](tmp_path)
    with pytest.raises(LayoutError, match=r"annotations without classes of images.*--class-level"):
        read_dataset(tmp_path, task_kind="multiclass")


@pytest.mark.parametrize("name", ["CVAT", "VIA", "VIA CSV", "Label Studio"])
def test_a_file_is_a_source(tmp_path: Path, name: str) -> None:
    FORMATS[name](tmp_path)
    file = next(path for path in tmp_path.iterdir() if path.suffix in {".json", ".xml", ".csv"})
    assert read_dataset(file).counts() == {"car": 1, "tree": 1}


def test_two_formats_are_ambiguous(tmp_path: Path) -> None:
    write_labelme(tmp_path)
    (tmp_path / "1.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    with pytest.raises(LayoutError, match=r"one format.*LabelMe \('1.json'\), YOLO \('1.txt'\)"):
        read_dataset(tmp_path)


# ------------------------------------------------------------------------------------------ shapes


def labelme_case(kind: str, points: list[Any], **more: Any) -> tuple[str, Any]:
    return "1.json", labelme([labelme_shape(kind, points, **more)])


def studio_case(kind: str, value: dict[str, Any]) -> tuple[str, Any]:
    return "s.json", [studio_task([studio(kind, value)])]


def via_case(shape: dict[str, Any], **attributes: Any) -> tuple[str, Any]:
    return "via.json", via([via_region(shape, **attributes)])


SHAPES = [
    (labelme_case("circle", [[10, 10], [13, 14]]), (5, 5, 15, 15)),
    (labelme_case("oriented_rectangle", [[4, 2], [8, 2], [8, 4], [4, 4]]), (4, 2, 8, 4)),
    (
        labelme_case(
            "mask", [[3, 2], [5, 3]], mask=base64.b64encode(png([[0, 1], [0, 1]])).decode()
        ),
        (4, 2, 5, 4),
    ),
    (("1.xml", cvat('<ellipse label="car" cx="10" cy="8" rx="4" ry="2"/>')), (6, 6, 14, 10)),
    (
        ("1.xml", cvat('<box label="car" xtl="8" ytl="6" xbr="12" ybr="14" rotation="90"/>')),
        (6, 8, 14, 12),
    ),
    (
        ("1.xml", cvat('<mask label="car" rle="1, 2, 3" left="5" top="4" width="3" height="2"/>')),
        (6, 4, 8, 5),
    ),
    (via_case({"name": "circle", "cx": 9, "cy": 8, "r": 3}, kind="car"), (6, 5, 12, 11)),
    (
        via_case(
            {"name": "ellipse", "cx": 9, "cy": 8, "rx": 4, "ry": 2, "theta": 0}, label="car", id=1
        ),
        (5, 6, 13, 10),
    ),
    (via_case(VIA_CAR, type={"car": True, "bus": False}), CAR),
    (studio_case("rectangle", {**STUDIO_CAR, "labels": ["car"]}), CAR),
    (studio_case("labels", {**STUDIO_CAR, "labels": ["car"]}), CAR),
    (
        studio_case(
            "ellipselabels",
            {"x": 50, "y": 50, "radiusX": 10, "radiusY": 20, "ellipselabels": ["car"]},
        ),
        (16, 6, 24, 14),
    ),
    # Rotated by 90 degrees around the top left corner (20, 10): 8 wide, 4 high.
    (
        studio_case(
            "rectanglelabels",
            {
                "x": 50,
                "y": 50,
                "width": 20,
                "height": 20,
                "rotation": 90,
                "rectanglelabels": ["car"],
            },
        ),
        (16, 10, 20, 18),
    ),
    (
        (
            "ann/1.png.json",
            sly(
                [
                    {
                        "classTitle": "car",
                        "geometryType": "bitmap",
                        "bitmap": {
                            "origin": [7, 3],
                            "data": base64.b64encode(zlib.compress(png([[1, 1], [0, 0]]))).decode(),
                        },
                    }
                ]
            ),
        ),
        (7, 3, 9, 4),
    ),
]


@pytest.mark.parametrize(("file", "box"), SHAPES)
def test_every_shape_that_is_read(tmp_path: Path, file: tuple[str, Any], box: Any) -> None:
    photo(tmp_path / "1.png")
    write(tmp_path / file[0], file[1])
    target = read_dataset(tmp_path).samples[0].target
    assert isinstance(target, Boxes)
    assert target.labels == ("car",)
    assert np.allclose(target.corners[0], box, atol=0.01)


BIG = "9" * 5000
REFUSED = [
    (labelme_case("linestrip", [[1, 1], [3, 3]]), "got 'linestrip' of class 'car'"),
    (labelme_case("point", [[1, 1]]), "got 'point' of class 'car'"),
    (labelme_case("polygon", [[1, 1], [3, 3]]), "at least 3 points .*got 2"),
    (labelme_case("rectangle", [[1, 1]]), "two corners .*got 1 points"),
    (labelme_case("polygon", [[1, 1], [3, "x"], [2, 2]]), "finite numbers .*'x'"),
    (labelme_case("polygon", [[1, 1], [3, 1e300], [2, 2]]), "finite numbers"),
    (labelme_case("polygon", [1, 2]), "a list of points"),
    (labelme_case("polygon", TREE, label=""), "class of every object .*got ''"),
    (labelme_case("polygon", TREE, label="background"), "got 'background'"),
    (labelme_case("mask", [[1, 1], [2, 2]], mask="???"), "a bitmap as base64"),
    (("1.json", '{"shapes": 3, "imagePath": "1.png"}'), "a list of objects as `shapes`"),
    (("1.json", '{"shapes": [], "imagePath": "1.png"'), "Expected JSON .*line 1"),
    (("1.json", f'{{"shapes": [], "imagePath": "1.png", "x": {BIG}}}'), "Expected JSON"),
    (("x.json", labelme([], "9.png", imageData="aGk=")), "only a copy inside"),
    (("1.xml", cvat('<polyline label="car" points="1,1;2,2"/>')), "got 'polyline'"),
    (("1.xml", cvat('<points label="car" points="1,1"/>')), "got 'points'"),
    (("1.xml", cvat('<cuboid label="car"/>')), "got 'cuboid'"),
    (("1.xml", cvat('<box label="car" xtl="a"/>')), "finite numbers"),
    (("1.xml", cvat('<box label="car" xtl="1e999" ytl="1" xbr="2" ybr="2"/>')), "finite numbers"),
    (("1.xml", cvat('<polygon label="car" points="1,1;2"/>')), "a list of points"),
    (
        ("1.xml", cvat('<mask label="car" rle="9" left="1" top="1" width="3" height="2"/>')),
        "run lengths that add up to",
    ),
    (
        (
            "1.xml",
            cvat(f'<mask label="car" rle="1" left="1" top="1" width="{"9" * 8}" height="99"/>'),
        ),
        "a mask of 1 to",
    ),
    (("1.xml", CVAT.format(images='<track id="0" label="car"/>')), "tracks of a video"),
    (("1.xml", cvat("<box>")), "a CVAT annotation, got mismatched tag in line"),
    (
        ("1.xml", '<!DOCTYPE a [<!ENTITY b "c">]>' + cvat("").split("?>")[1]),
        r"got a DOCTYPE \(a\)",
    ),
    (via_case({"name": "polyline", "all_points_x": [1]}, kind="car"), "got 'polyline'"),
    (via_case({"name": "point", "cx": 1, "cy": 1}, kind="car"), "got 'point'"),
    (via_case({"name": "rect", "x": 1, "y": 1, "width": None, "height": 2}), "finite numbers"),
    (via_case({**VIA_TREE, "all_points_y": [1]}, kind="car"), "as many x as y"),
    (via_case(VIA_CAR, kind="car", colour="red"), "the attributes 'kind', 'colour'"),
    (via_case(VIA_CAR, kind={"car": True, "bus": True}), "class of every object"),
    (
        ("v.json", {"project": {}, "config": {}, "metadata": {}, "_via_": 3}),
        "a project of VIA 3",
    ),
    (("v.json", {"1.png": {"regions": [{"shape_attributes": {}}]}}), "`filename` and `regions`"),
    (("v.csv", "filename,region_shape_attributes\n1.png,{\n"), "a CSV table with JSON cells"),
    (
        studio_case("brushlabels", {"format": "rle", "rle": [1], "brushlabels": ["car"]}),
        "'brushlabels'",
    ),
    (
        studio_case("keypointlabels", {"x": 1, "y": 1, "keypointlabels": ["car"]}),
        "'keypointlabels'",
    ),
    (
        studio_case("rectanglelabels", {**STUDIO_CAR, "rectanglelabels": ["a", "b"]}),
        "one class for",
    ),
    (studio_case("rectanglelabels", {**STUDIO_CAR, "rectanglelabels": []}), "class of every"),
    (studio_case("rectanglelabels", {"rectanglelabels": ["a"]}), "finite numbers"),
    (
        ("s.json", [studio_task([studio("rectanglelabels", STUDIO_CAR, original_width=None)])]),
        "`original_width` and `original_height`",
    ),
    (
        ("s.json", [studio_task([studio("rectanglelabels", STUDIO_CAR)], "text")]),
        "name of an image",
    ),
    (("s.json", {"from_name": 1, "to_name": 2}), "a list of tasks"),
    (("ann/1.png.json", sly([sly_object("line", [[1, 1], [2, 2]])])), "got 'line'"),
    (("ann/1.png.json", sly([sly_object("polygon", [[1, 1], [2]])])), "a list of points"),
    (
        ("ann/1.png.json", sly([{"classTitle": "a", "geometryType": "bitmap", "bitmap": {}}])),
        "`data` and `origin`",
    ),
    (("ann/1.png.json", '{"objects": {"classTitle": 1}}'), "a list of `objects`"),
]


@pytest.mark.parametrize(("file", "message"), REFUSED)
def test_what_is_not_read_is_named(tmp_path: Path, file: tuple[str, Any], message: str) -> None:
    photo(tmp_path / "1.png")
    write(tmp_path / file[0], file[1])
    with pytest.raises(DataError, match=message) as caught:
        read_dataset(tmp_path)
    assert len(str(caught.value)) < 700


def test_a_small_bitmap_may_not_fill_the_memory(tmp_path: Path) -> None:
    photo(tmp_path / "1.png")
    bomb = base64.b64encode(zlib.compress(bytes(200_000_000), 1)).decode()
    entry = {
        "classTitle": "a",
        "geometryType": "bitmap",
        "bitmap": {"origin": [0, 0], "data": bomb},
    }
    write(tmp_path / "ann/1.png.json", sly([entry]))
    with pytest.raises(DataError, match="more than 100,000,000 bytes"):
        read_dataset(tmp_path)


# ---------------------------------------------------------------------------------- names and tags


def test_parts_of_a_group_are_one_object(tmp_path: Path) -> None:
    photo(tmp_path / "1.png")
    parts = [
        labelme_shape("polygon", [[1, 1], [4, 1], [1, 5]], group_id=1),
        labelme_shape("polygon", [[10, 2], [14, 2], [10, 9]], group_id=1),
        labelme_shape("polygon", [[20, 2], [24, 2], [20, 9]], group_id=2),
        labelme_shape("rectangle", [[1, 1], [2, 2]], group_id=1),
    ]
    write(tmp_path / "1.json", labelme(parts))
    target = read_dataset(tmp_path).samples[0].target
    assert isinstance(target, Boxes)
    assert target.corners == ((1, 1, 14, 9), (20, 2, 24, 9), (1, 1, 2, 2))


@pytest.mark.parametrize(
    "stated",
    [
        "1.png",
        "../photos/1.png",
        "photos/1.png",
        "..\\photos\\1.png",
        "D:\\sets\\photos\\1.png",
        "/elsewhere/photos/1.png",
        "https://example.com/photos/1.png?X-Amz=1",
        "s3://bucket/photos/1.png",
        "/data/local-files/?d=photos/1.png",
        "/data/upload/3/8d6b3c4a-1.png",
    ],
)
def test_images_are_found_by_the_end_of_their_path(tmp_path: Path, stated: str) -> None:
    photo(tmp_path / "photos/1.png")
    write(
        tmp_path / "labels/s.json", [studio_task([studio("rectanglelabels", STUDIO_CAR)], stated)]
    )
    data = read_dataset(tmp_path)
    assert [sample.image for sample in data.samples] == [tmp_path / "photos/1.png"]


def test_names_that_leave_the_folder_or_mean_two_images(tmp_path: Path) -> None:
    photo(tmp_path / "secret.png")
    root = tmp_path / "data"
    photo(root / "a/1.png")
    task = studio_task([studio("rectanglelabels", STUDIO_CAR)], "../secret.png")
    write(root / "s.json", [task])
    with pytest.raises(DataError, match=r"None of the 1 images .*'secret.png'"):
        read_dataset(root)
    photo(root / "b/1.png")
    write(root / "s.json", [studio_task([studio("rectanglelabels", STUDIO_CAR)], "1.png")])
    with pytest.raises(DataError, match=r"one image for '1.png'.*'a/1.png', 'b/1.png'"):
        read_dataset(root)


def test_choices_and_tags_are_classes(tmp_path: Path) -> None:
    for name in ("1.png", "2.png", "3.png"):
        photo(tmp_path / name)
    choices = [studio("choices", {"choices": [name]}) for name in ("cat", "dog")]
    tasks = [studio_task([choice], f"{i}.png") for i, choice in enumerate(choices, 1)]
    tasks.append({"data": {"image": "3.png"}, "annotations": [], "from_name": 1, "to_name": 1})
    write(tmp_path / "s.json", tasks)
    data = read_dataset(tmp_path)
    assert (data.kind, data.counts()) == ("multiclass", {"cat": 1, "dog": 1})
    assert any("1 tasks without an annotation" in note for note in data.notes)
    write(tmp_path / "s.json", [*tasks, studio_task(choices, "3.png")])
    data = read_dataset(tmp_path)
    assert (data.kind, data.samples[2].target) == ("multilabel", ("cat", "dog"))
    with pytest.raises(HeadstartError, match=r"one class for the image '3.png'.*'cat', 'dog'"):
        read_dataset(tmp_path, task_kind="multiclass")


def test_tags_of_cvat_and_subsets(tmp_path: Path) -> None:
    for name in ("1.png", "2.png"):
        photo(tmp_path / "images" / name)
    images = [
        f'<image name="{i}.png" width="40" height="20" subset="{split}">'
        f'<tag label="{tag}"/>{box}</image>'
        for i, split, tag, box in (
            (1, "Train", "day", '<box label="car" xtl="1" ytl="1" xbr="3" ybr="3"/>'),
            (2, "Validation", "night", ""),
        )
    ]
    write(tmp_path / "a.xml", CVAT.format(images="".join(images)))
    data = read_dataset(tmp_path)
    assert (data.kind, [sample.split for sample in data.samples]) == ("detection", ["train", "val"])
    assert any("classes of 2 images not read" in note for note in data.notes)
    data = read_dataset(tmp_path, task_kind="multiclass")
    assert data.counts() == {"day": 1, "night": 1}


def test_regions_without_attributes_are_of_one_class(tmp_path: Path) -> None:
    photo(tmp_path / "1.png")
    write(tmp_path / "via.json", via({"0": via_region(VIA_CAR), "1": via_region(VIA_TREE)}))
    data = read_dataset(tmp_path)
    assert data.counts() == {"object": 2}
    assert any("no attribute: one class, 'object'" in note for note in data.notes)


def test_half_annotated_and_missing_images(tmp_path: Path) -> None:
    write_labelme(tmp_path)
    assert read_dataset(tmp_path).warnings[0].startswith("1 of 2 images (50 %) has no annotation")
    (tmp_path / "1.png").unlink()
    with pytest.raises(DataError, match=r"None of the 1 images in the LabelMe files .*'1.png'"):
        read_dataset(tmp_path)


def test_an_image_with_two_files(tmp_path: Path) -> None:
    photo(tmp_path / "1.png")
    for name in ("1.json", "copy.json"):
        write(tmp_path / name, labelme([labelme_shape("rectangle", [[1, 1], [3, 3]])]))
    with pytest.raises(DataError, match=r"every image once .*'1.png' twice"):
        read_dataset(tmp_path)


def test_labelme_is_read_as_supervision_reads_it(tmp_path: Path) -> None:
    supervision = pytest.importorskip("supervision")
    write_labelme(tmp_path)
    theirs = supervision.DetectionDataset.from_labelme(str(tmp_path), str(tmp_path))
    path, _, boxes = next(iter(theirs))
    ours = read_dataset(tmp_path).samples[0].target
    assert Path(path).name == "1.png"
    assert isinstance(ours, Boxes)
    assert [theirs.classes[i] for i in boxes.class_id] == list(ours.labels)
    assert np.allclose(boxes.xyxy, ours.array())


@pytest.mark.parametrize("name", FORMATS)
def test_damaged_texts_are_refused_by_a_sentence(tmp_path: Path, name: str) -> None:
    FORMATS[name](tmp_path)
    suffixes = {".json", ".xml", ".csv"}
    files = (path for path in tmp_path.rglob("*") if path.suffix in suffixes)
    file = max(files, key=lambda path: path.stat().st_size)
    text, rng = file.read_text(), np.random.default_rng(0)
    parts = ["null", "{}", "[]", "1e999", "-5", "NaN", '"x"', "9" * 20, "", "\0", "<", ","]
    messages = []
    for _ in range(60):
        start = int(rng.integers(len(text)))
        end = start + int(rng.integers(8))
        file.write_text(text[:start] + str(rng.choice(parts)) + text[end:])
        try:
            read_dataset(tmp_path, task_kind=("segmentation", None)[rng.integers(2)])
        except HeadstartError as error:
            messages.append(str(error))
    assert len(messages) > 5
    assert max(map(len, messages)) < 1500
