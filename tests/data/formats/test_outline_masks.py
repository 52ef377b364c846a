import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from headstart.data.checks.masks import check_masks
from headstart.data.checks.scan import scan
from headstart.data.dataset import Dataset, Mask, fingerprint_of
from headstart.data.masks import decode_mask, mask_orientation
from headstart.data.readers import read_dataset
from headstart.errors import DataError, HeadstartError, LayoutError

SQUARE = [[2, 1], [8, 1], [8, 5], [2, 5]]  # in an image of 20 x 10 pixels
EXPECTED = np.zeros((10, 20), dtype=np.uint8)
EXPECTED[1:5, 2:8] = 1


def photo(path: Path, orientation: int = 1, size: tuple[int, int] = (20, 10)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", size, (90, 120, 60)).save(path, exif=exif)


def write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value))


def indices(data: Dataset, position: int = 0) -> np.ndarray:
    target = data.samples[position].target
    assert isinstance(target, Mask)
    return decode_mask(target, data.classes)


def coco(root: Path, annotations: list[dict[str, Any]], **image: Any) -> None:
    photo(root / "1.png")
    names = ("cat", "dog")
    entry = {"id": 1, "file_name": "1.png", "width": 20, "height": 10, **image}
    value = {
        "images": [entry],
        "categories": [{"id": i, "name": name} for i, name in enumerate(names, 1)],
        "annotations": [
            {"id": i, "image_id": 1, "category_id": 1, "bbox": [0, 0, 9, 9], **annotation}
            for i, annotation in enumerate(annotations)
        ],
    }
    write(root / "annotations.json", value)


def flat(points: list[list[int]]) -> list[float]:
    return [float(side) for point in points for side in point]


def packed(pixels: np.ndarray) -> dict[str, Any]:
    value = coco_mask.encode(np.asfortranarray(pixels.astype(np.uint8)))
    return {"size": value["size"], "counts": value["counts"].decode()}


def write_yolo(root: Path) -> None:
    photo(root / "images/1.png")
    points = " ".join(f"{x / 20} {y / 10}" for x, y in SQUARE)
    write(root / "labels/1.txt", f"0 {points} 0.1 0.3\n")  # a fifth point on the left edge
    write(root / "data.yaml", "names: [cat]\n")


def write_labelme(root: Path) -> None:
    photo(root / "1.png")
    shape = {"label": "cat", "shape_type": "polygon", "points": SQUARE}
    value = {"shapes": [shape], "imagePath": "1.png", "imageWidth": 20, "imageHeight": 10}
    write(root / "1.json", value)


def write_cvat(root: Path) -> None:
    photo(root / "1.png")
    points = ";".join(f"{x},{y}" for x, y in SQUARE)
    image = f'<image name="1.png" width="20" height="10"><polygon label="cat" points="{points}"/>'
    write(root / "a.xml", f"<annotations><version>1.1</version>{image}</image></annotations>")


def write_via(root: Path) -> None:
    photo(root / "1.png")
    xs, ys = ([point[i] for point in SQUARE] for i in (0, 1))
    shape = {"name": "polygon", "all_points_x": xs, "all_points_y": ys}
    region = {"shape_attributes": shape, "region_attributes": {"type": "cat"}}
    write(root / "via.json", {"1.png9": {"filename": "1.png", "regions": [region]}})


def write_studio(root: Path) -> None:
    photo(root / "1.png")
    points = [[5 * x, 10 * y] for x, y in SQUARE]
    result = {"type": "polygonlabels", "from_name": "a", "to_name": "b", "original_width": 20}
    result |= {"original_height": 10, "value": {"points": points, "polygonlabels": ["cat"]}}
    task = {"data": {"image": "1.png"}, "annotations": [{"result": [result]}]}
    write(root / "s.json", [task])


def write_sly(root: Path) -> None:
    photo(root / "img/1.png")
    # Points of Supervisely are centres of pixels: the border of the square lies between them.
    points = {"exterior": [[1.5, 0.5], [7.5, 0.5], [7.5, 4.5], [1.5, 4.5]], "interior": []}
    entry = {"classTitle": "cat", "geometryType": "polygon", "points": points}
    value = {"size": {"width": 20, "height": 10}, "objects": [entry], "tags": []}
    write(root / "ann/1.png.json", value)


def write_coco(root: Path) -> None:
    coco(root, [{"segmentation": [flat(SQUARE)]}])


def write_coco_runs(root: Path) -> None:
    coco(root, [{"segmentation": packed(EXPECTED)}])


WRITERS = [
    write_coco,
    write_coco_runs,
    write_yolo,
    write_labelme,
    write_cvat,
    write_via,
    write_studio,
    write_sly,
]


@pytest.mark.parametrize("writer", WRITERS)
def test_the_same_mask_of_every_format(tmp_path: Path, writer: Any) -> None:
    writer(tmp_path)
    data = read_dataset(tmp_path, task_kind="segmentation")
    assert (data.kind, data.classes) == ("segmentation", ("background", "cat"))
    assert (indices(data) == EXPECTED).all()
    target = data.samples[0].target
    assert isinstance(target, Mask)
    assert target.present == ("background", "cat")
    assert any("masks drawn from 1 outlines" in note for note in data.notes)
    assert [f for f in check_masks(data, scan(data.samples)) if f.severity == "error"] == []


def test_overlap_parts_and_crowds(tmp_path: Path) -> None:
    crowd = np.zeros((10, 20), dtype=bool)
    crowd[:, 10:] = True
    coco(
        tmp_path,
        [
            {
                "segmentation": [[4, 2, 6, 2, 6, 4, 4, 4], [12, 2, 14, 2, 14, 4, 12, 4]],
                "category_id": 2,
            },
            {"segmentation": [flat(SQUARE)]},
            {"segmentation": packed(crowd), "iscrowd": 1},
        ],
    )
    expected = EXPECTED.copy()
    expected[:, 10:] = 255
    expected[2:4, 4:6] = expected[2:4, 12:14] = 2
    data = read_dataset(tmp_path, task_kind="segmentation")
    assert (indices(data) == expected).all()
    assert any("1 objects are difficult or crowds: ignored pixels" in note for note in data.notes)
    assert read_dataset(tmp_path).kind == "detection"


def test_a_box_among_outlines(tmp_path: Path) -> None:
    coco(tmp_path, [{"segmentation": [flat(SQUARE)]}, {"bbox": [10, 0, 4, 2], "segmentation": []}])
    data = read_dataset(tmp_path, task_kind="segmentation")
    assert set(indices(data)[:2, 10:14].ravel().tolist()) == {255}
    assert "1 of 2 objects have only a box: ignored pixels" in data.warnings
    write_labelme(tmp_path / "l")
    value = json.loads((tmp_path / "l/1.json").read_text())
    rectangle = {"label": "dog", "shape_type": "rectangle", "points": [[10, 0], [14, 2]]}
    write(tmp_path / "l/1.json", {**value, "shapes": [*value["shapes"], rectangle]})
    data = read_dataset(tmp_path / "l", task_kind="segmentation")
    assert set(indices(data)[:2, 10:14].ravel().tolist()) == {2}
    assert "1 of 2 objects have only a box: drawn as rectangles" in data.warnings


@pytest.mark.parametrize(
    ("annotation", "message"),
    [
        ({}, r"1 objects with boxes only \(COCO\)"),
        ({"segmentation": [[1, 2, 3]]}, "polygons of x, y"),
        ({"segmentation": [[1, 2, 3, 4, 5, 1e300]]}, "finite numbers"),
        ({"segmentation": [["a", 2, 3, 4, 5, 6]]}, "finite numbers"),
        ({"segmentation": [3]}, "polygons of x, y"),
        ({"segmentation": "rle"}, "polygons of x, y"),
        ({"segmentation": {"counts": [1]}}, "`counts` and `size`"),
        ({"segmentation": {"counts": [1], "size": [10**6, 10**6]}}, "`counts` and `size`"),
        ({"segmentation": {"counts": [1], "size": [3, 3]}}, "3 x 3 = 9 pixels, got 1 runs"),
        ({"segmentation": {"counts": "`" * 99, "size": [3, 3]}}, "3 x 3 = 9 pixels"),
    ],
)
def test_damaged_outlines_are_named(
    tmp_path: Path, annotation: dict[str, Any], message: str
) -> None:
    coco(tmp_path, [annotation])
    with pytest.raises(HeadstartError, match=message):
        read_dataset(tmp_path, task_kind="segmentation")


def test_a_stated_size_above_the_limit(tmp_path: Path) -> None:
    coco(tmp_path, [{"segmentation": [flat(SQUARE)]}], width=10**6, height=10**6)
    with pytest.raises(DataError, match=r"stated to have 1000000 x 1000000 pixels"):
        read_dataset(tmp_path, task_kind="segmentation")


def test_boxes_of_voc_are_no_masks(tmp_path: Path) -> None:
    photo(tmp_path / "1.png")
    corners = "<xmin>1</xmin><ymin>1</ymin><xmax>4</xmax><ymax>2</ymax>"
    xml = f"<annotation><object><name>a</name><bndbox>{corners}</bndbox></object></annotation>"
    write(tmp_path / "1.xml", xml)
    with pytest.raises(LayoutError, match=r"boxes only \(Pascal VOC\).*remove --task segmentation"):
        read_dataset(tmp_path, task_kind="segmentation")


def test_files_of_masks_come_first(tmp_path: Path) -> None:
    photo(tmp_path / "images/1.png")
    (tmp_path / "masks").mkdir()
    Image.fromarray(EXPECTED).save(tmp_path / "masks/1.png")
    write(tmp_path / "labels/1.txt", "0 0.1 0.1 0.3 0.1 0.3 0.3\n")
    data = read_dataset(tmp_path, task_kind="segmentation")
    assert data.classes == ("0", "1")


@pytest.mark.parametrize("orientation", [1, 6, 8])
def test_outlines_on_the_stored_image_are_rotated_with_it(tmp_path: Path, orientation: int) -> None:
    coco(tmp_path, [{"segmentation": [flat(SQUARE)]}])
    photo(tmp_path / "1.png", orientation)
    data = read_dataset(tmp_path, task_kind="segmentation")
    sample = data.samples[0]
    assert isinstance(sample.target, Mask)
    turn = mask_orientation(sample.target, Path(str(sample.image)))
    assert turn == orientation
    upright = decode_mask(sample.target, data.classes, orientation=turn)
    assert (upright == np.rot90(EXPECTED, {1: 0, 6: -1, 8: 1}[orientation])).all()


def test_a_moved_point_changes_the_fingerprint(tmp_path: Path) -> None:
    write_labelme(tmp_path)
    first = fingerprint_of(read_dataset(tmp_path, task_kind="segmentation").samples[0].target)
    again = fingerprint_of(read_dataset(tmp_path, task_kind="segmentation").samples[0].target)
    text = (tmp_path / "1.json").read_text()
    (tmp_path / "1.json").write_text(text.replace("[8, 5]", "[8, 6]"))
    moved = fingerprint_of(read_dataset(tmp_path, task_kind="segmentation").samples[0].target)
    assert first == again != moved
