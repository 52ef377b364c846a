"""Results use the ids of the user's own COCO file, as pycocotools reads it."""

import contextlib
import io
import json

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from headstart.data.readers import read_dataset
from headstart.errors import DataError, UsageError
from headstart.models.coco_ids import CocoIds, read_coco_ids
from headstart.models.inference import Detections
from headstart.models.prediction_files import write_predictions

NAMES = ["val/a/1.jpg", "val/b/1.jpg", "val/b/2.jpg", "val/c.jpg", "val/turned.jpg"]
IDS = [397133, 7, 52, 11, 88]
CLASSES = [(18, "dog"), (3, "Cell"), (90, "empty"), (1, "cat")]


def coco_file(root):
    """Images with ids in no order, categories with gaps, a crowd, and an image turned by EXIF."""
    rng = np.random.default_rng(0)
    lists = {"images": [], "annotations": [], "categories": []}
    lists["categories"] = [{"id": key, "name": name} for key, name in CLASSES]
    for name, identity in zip(NAMES, IDS, strict=True):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        exif = Image.Exif()
        exif[0x112] = 6 if "turned" in name else 1
        pixels = rng.integers(0, 255, (60, 90, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path, exif=exif)
        entry = {"id": identity, "file_name": name.removeprefix("val/"), "width": 90, "height": 60}
        lists["images"].append(entry)
        for i in range(4):
            box = [*rng.uniform(0, 30, 2).round(2), *rng.uniform(8, 25, 2).round(2)]
            lists["annotations"].append(
                {
                    "id": len(lists["annotations"]) + 1,
                    "image_id": identity,
                    "category_id": (18, 3, 18, 1)[i],
                    "bbox": box,
                    "area": box[2] * box[3],
                    "iscrowd": int(i == 3 and name == NAMES[0]),
                }
            )
    path = root / "annotations" / "instances_val.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(lists))
    return path


def perfect(data):
    """The boxes of a data set as predictions; classes in another order than in the file."""
    classes = tuple(sorted(data.classes, reverse=True))
    pairs = []
    for sample in data.samples:
        with Image.open(sample.image) as image:
            size = image.size[::-1] if image.getexif().get(0x112, 1) > 4 else image.size
        labels = np.asarray([classes.index(label) for label in sample.target.labels])
        found = Detections(
            name=sample.name,
            size=size,
            boxes=sample.target.array(),
            scores=np.linspace(0.9, 0.5, len(labels)).astype(np.float32),
            labels=labels,
        )
        pairs.append((sample, found))
    return pairs[::-1], classes  # in another order, too


def mean_average_precision(truth, results):
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(truth))
        scored = COCOeval(coco, coco.loadRes(str(results)), "bbox")
        scored.evaluate()
        scored.accumulate()
        scored.summarize()
    return scored.stats[0]


def test_perfect_boxes_have_a_precision_of_one_against_the_original_file(tmp_path):
    path = coco_file(tmp_path)
    pairs, classes = perfect(read_dataset(tmp_path))
    ids = read_coco_ids(path)
    written = write_predictions(tmp_path / "found", "coco", pairs, classes, ids)
    assert mean_average_precision(path, written / "results.json") == pytest.approx(1.0, abs=1e-9)
    results = json.loads((written / "results.json").read_text())
    names = dict(zip(IDS, NAMES, strict=True))
    for row in results:
        assert f"val/{row['file_name']}" == names[row["image_id"]]
        assert (row["category_id"], row["category"]) in CLASSES
    document = json.loads((written / "images.json").read_text())
    assert {row["id"] for row in document["images"]} == set(IDS)
    # Without the file, the ids are those of no other file.
    plain = write_predictions(tmp_path / "plain", "coco", pairs, classes)
    first = json.loads((plain / "results.json").read_text())[0]
    assert first["image_id"] == 1
    assert first["file_name"] == pairs[0][0].name


FILES = ["val/a/1.jpg", "val/b/1.jpg", "2.jpg", "C:\\data\\3.jpg", "b/1.jpg", "./x/4.jpg"]


def ids_of(*names, categories=("cell",)):
    return CocoIds(
        path="v.json",
        images=[{"id": i, "file_name": name} for i, name in enumerate(names)],
        categories=[{"id": i, "name": name} for i, name in enumerate(categories)],
    )


@pytest.mark.parametrize(
    ("name", "identity"),
    [
        ("/photos/val/a/1.jpg", 0),
        ("val/a/1.jpg", 0),
        ("photos/val/b/1.jpg", 1),  # the longer of two endings
        ("photos/train/b/1.jpg", 4),
        ("2.jpg", 2),
        ("elsewhere/2.jpg", 2),  # the only one of this name
        ("2.jpeg", None),
        ("my3.jpg", None),
        ("here/3.jpg", 3),
        ("x/4.jpg", 5),
        ("c/1.jpg", None),  # three of this name
        ("1.jpg", None),
        ("", None),
    ],
)
def test_an_image_is_found_by_the_end_of_its_path(name, identity):
    ids = ids_of(*FILES)
    if identity is None:
        with pytest.raises(DataError, match="Pass"):
            ids.image(name)
    else:
        assert ids.image(name)["id"] == identity


def test_two_images_of_one_id_are_refused():
    with pytest.raises(DataError, match="are both image 2 of"):
        ids_of(*FILES).document(["a/2.jpg", "b/2.jpg"], ["cell"])


@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        (["cell"], [0]),
        (["Cell"], [0]),
        (["DOG", "cell"], [1, 0]),
        (["cat", "Cat"], [2, 3]),
        (["CAT"], None),  # two
        (["cow"], None),
        (["cell", "cow"], None),
    ],
)
def test_a_category_is_found_by_its_name(classes, expected):
    ids = ids_of(categories=("cell", "dog", "cat", "Cat"))
    if expected is None:
        with pytest.raises(DataError, match=f"categories '{classes[-1]}', a class of the model"):
            ids.categories_of(classes)
    else:
        assert [row["id"] for row in ids.categories_of(classes)] == expected


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "{}", '{"images": []}', '{"images": [], "categories": [{"id": 1}]}',
        '{"images": [{"file_name": "a.jpg"}], "categories": []}',
        '{"images": [{"id": null, "file_name": "a.jpg"}], "categories": []}',
        '{"images": [{"id": 1, "file_name": 2}], "categories": []}',
        '{"images": {"id": 1}, "categories": []}', '{"images": [1], "categories": []}', "[" * 9999,
    ],
)  # fmt: skip
def test_a_file_without_ids_is_refused(text, tmp_path):
    path = tmp_path / "v.json"
    path.write_text(text)
    with pytest.raises(DataError, match="Expected a COCO file with `images`"):
        read_coco_ids(path)
    with pytest.raises(DataError, match="for --ids"):
        read_coco_ids(tmp_path / "none.json")
    with pytest.raises(UsageError, match="--ids needs the format coco, got 'csv'"):
        read_coco_ids(path, "csv")
