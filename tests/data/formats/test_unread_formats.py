from pathlib import Path

import pytest

from headstart.data.readers import read_dataset
from headstart.errors import DataError, LayoutError

KITTI = "Car 0.00 0 -1.57 614.24 181.78 727.31 284.77 1.57 1.73 4.15 1.00 1.75 13.22 -1.62\n"


def make(root: Path, file: str, text: str) -> Path:
    for name in ("a/1.jpg", "a/2.jpg", "b/3.jpg", "b/4.jpg", file):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    (root / file).write_text(text)
    return root


@pytest.mark.parametrize(
    ("file", "text", "name"),
    [
        ("min.json", '[{"image": "1.jpg", "rectanglelabels": ["a"]}]', "Label Studio JSON-MIN"),
        ("a/min.json", '[{"image": "1.jpg", "brushlabels": ["a"]}]', "Label Studio JSON-MIN"),
        ("datumaro.json", '{"info": {}, "categories": {}, "items": []}', "Datumaro"),
        ("c.json", '[{"image": "1.jpg", "annotations": [{"coordinates": {}}]}]', "CreateML"),
        ("lb.json", '[{"Labeled Data": "1.jpg"}]', "Labelbox"),
        ("bdd.json", '[{"labels": [{"box2d": {}}]}]', "BDD100K"),
        (
            "imglab.xml",
            "<dataset><images><image><box top='1'/></image></images></dataset>",
            "Imglab",
        ),
        ("city.json", '{"imgHeight": 9, "objects": [{"polygon": []}]}', "Cityscapes"),
        ("labels/1.txt", KITTI, "KITTI"),
        ("labels/1.txt", "1 1 9 1 9 9 1 9 plane 0\n", "DOTA"),
        ("labels/1.txt", "684,8,273,116,0,0,0,0\n", "VisDrone"),
        ("data.tfrecord", "x", "TFRecord"),
        ("a/boxes.csv", "file;x1;y1;x2;y2;name\n", "a table of boxes"),
        ("a/masks.csv", "ImageId,EncodedPixels\n", "run lengths"),
    ],
)
def test_formats_are_named(tmp_path: Path, file: str, text: str, name: str) -> None:
    make(tmp_path, file, text)
    with pytest.raises(LayoutError, match=name):
        read_dataset(tmp_path)
    assert read_dataset(tmp_path, class_level=1).classes[:2] == ("a", "b")


def test_one_unknown_file_per_image_is_refused(tmp_path: Path) -> None:
    for i in range(1, 5):
        make(tmp_path, f"notes/{i}.json", '{"who": "me"}')
    with pytest.raises(DataError, match="unknown format, one file per image"):
        read_dataset(tmp_path)


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("meta.json", '{"images": 2, "annotations": "by hand"}'),
        ("a/1.txt", "a cat on a mat"),
        ("a/1.txt", "3 4"),
        ("readme.txt", KITTI),
        ("config.json", '{"lr": 0.1, "labels": ["a", "b"]}'),
        ("classes.json", '["a", "b"]'),
        ("a/1.xml", "<photo><date>2020</date></photo>"),
        ("class_indices.json", '{"a": 0, "b": 1}'),
        ("a/sizes.csv", "file,width,height\n"),
        ("a/empty.csv", ""),
        ("a/empty.json", ""),
        ("log.txt", "objects: 1"),
    ],
)
def test_other_files_do_no_harm(tmp_path: Path, file: str, text: str) -> None:
    assert read_dataset(make(tmp_path, file, text)).counts() == {"a": 2, "b": 2}
