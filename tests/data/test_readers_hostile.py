"""Files that nobody meant end in a sentence: soon, in little memory, and in a short message."""

import json
import os
import resource
import time

import numpy as np
import pytest
from PIL import Image

from headstart.cache import Cache
from headstart.data.checks.scan import scan
from headstart.data.readers import read_dataset
from headstart.errors import MOST_CHARACTERS, HeadstartError

SECONDS, MEGABYTES = 5, 200
GIGABYTES = 3 * 2**30
SPLITS = "path: .\ntrain: images/train\nval: images/val\n"


def draw(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(len(str(path))).integers(0, 255, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def sparse(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.truncate(GIGABYTES)


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def within_limits(action):
    """Run an action; return its error, or None. Time is the processor's: machines are busy."""
    start, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    error = None
    try:
        action()
    except HeadstartError as raised:
        error = raised
    assert time.process_time() - start < SECONDS
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MEGABYTES * 1024
    if error is not None:
        assert max(map(len, str(error).splitlines())) <= MOST_CHARACTERS
        assert len(str(error)) <= 2 * MOST_CHARACTERS  # the list of layouts has several lines
    return error


def alias_bomb():
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    for before, name in zip("abcdefgh", "bcdefghi", strict=True):
        lines.append(f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]")
    return "\n".join([*lines, "names: *i", SPLITS])


YAML = {
    "aliases that stand for gigabytes": alias_bomb(),
    "four megabytes": f"{SPLITS}names: [cell]\nx: [{','.join(['1'] * 2_000_000)}]\n",
    "an id of 5,000 digits": f"{SPLITS}names: {{{'9' * 5000}: cell}}\n",
    "nested 2,000 times": f"{SPLITS}names: {'[' * 2000}{']' * 2000}\n",
    "a number that is none": f"{SPLITS}names: [cell]\nnc: .nan\n",
    "names that are a number": f"{SPLITS}names: 3\n",
    "bytes": bytes(range(256)) * 4,
    "utf-16": f"{SPLITS}names: [cell]\n".encode("utf-16")[:-1],
    "tabs": "names:\n\t- cell\n",
    "an open quote": f'{SPLITS}names: ["cell]\n',
}


@pytest.mark.parametrize("kind", YAML)
def test_odd_yaml_is_refused(kind, tmp_path):
    for split in ("train", "val"):
        for number in range(2):
            draw(tmp_path / "images" / split / f"{number}.png")
            write(tmp_path / "labels" / split / f"{number}.txt", "0 0.5 0.5 0.2 0.2\n")
    write(tmp_path / "data.yaml", YAML[kind])
    error = within_limits(lambda: read_dataset(tmp_path))
    assert error is not None
    assert "data.yaml" in str(error)


def coco(**changes):
    value = {
        "images": [{"id": i, "file_name": f"{i}.png", "width": 16, "height": 16} for i in range(3)],
        "annotations": [
            {"id": i, "image_id": i, "category_id": 1, "bbox": [1, 1, 5, 5]} for i in range(3)
        ],
        "categories": [{"id": 1, "name": "cell"}],
    }
    for place, change in changes.items():
        value[place] = change if isinstance(change, str | list) else value[place]
        if isinstance(change, dict):
            value[place][0] |= change
    return json.dumps(value)


JSON = {
    "an id of 5,000 digits": coco().replace('"id": 0', f'"id": {"9" * 5000}', 1),
    "nested 100,000 times": "[" * 100_000 + "]" * 100_000,
    "a list as id": coco(images={"id": [1]}),
    "images that are a text": coco(images="0.png"),
    "a path out of the folder": coco(images={"file_name": "../../../etc/passwd"}),
    "a byte of 0 in a path": coco(images={"file_name": "0.png\0x"}),
    "a box of infinite size": coco(annotations={"bbox": [1e308, 1, 1e308, 5]}),
    "a box of texts": coco(annotations={"bbox": ["x", None, {}, []]}),
    "a box of a megabyte": coco(annotations={"bbox": "9" * 10**6}),
    "annotations of texts": coco(annotations=["x"] * 3),
    "a category without a name": coco(categories=[{"id": 1}]),
    "half a file": coco()[:200],
}


@pytest.mark.parametrize("kind", JSON)
def test_odd_json_is_refused(kind, tmp_path):
    for number in range(3):
        draw(tmp_path / f"{number}.png")
    write(tmp_path / "annotations.json", JSON[kind])
    assert within_limits(lambda: read_dataset(tmp_path)) is not None


ROWS = "".join(f"{number}.png,{'ab'[number % 2]}\n" for number in range(6))
TABLES = {
    "bytes of 0": f"image,label\n{ROWS}\0\0,a\n",
    "a cell of 300,000 characters": f"image,label\n{ROWS}{'x' * 300_000}.png,a\n",
    "a path over 255 bytes": f"image,label\n{ROWS}{'x' * 300}.png,a\n",
    "a path over 4,096 bytes": f"image,label\n{ROWS}{'x/' * 3000}1.png,a\n",
    "an open quote": f'image,label\n{ROWS}"abc,def\n',
    "200,000 columns": f"image,label{',' * 200_000}\n{ROWS}",
    "random bytes": np.random.default_rng(0).bytes(20_000),
    "utf-16": f"image,label\n{ROWS}".encode("utf-16"),
    "nothing": "",
    "a line of a megabyte": "x" * 10**6,
}


@pytest.mark.parametrize("kind", TABLES)
def test_an_odd_table_is_refused(kind, tmp_path):
    for number in range(6):
        draw(tmp_path / f"{number}.png")
    write(tmp_path / "labels.csv", TABLES[kind])
    assert within_limits(lambda: read_dataset(tmp_path / "labels.csv")) is not None


def entities():
    lines = ['<!ENTITY e0 "lol">']
    lines += [f'<!ENTITY e{i} "{f"&e{i - 1};" * 10}">' for i in range(1, 10)]
    return f"<!DOCTYPE x [{''.join(lines)}]><annotation><filename>&e9;</filename></annotation>"


def voc(corner):
    box = f"<xmin>{corner}</xmin><ymin>1</ymin><xmax>5</xmax><ymax>5</ymax>"
    return f"<annotation><object><name>c</name><bndbox>{box}</bndbox></object></annotation>"


XML = {
    "entities that stand for gigabytes": entities(),
    "an external entity": '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]>'
    "<annotation><filename>&x;</filename></annotation>",
    "5,000 digits": voc("9" * 5000 + "x"),
    "not a number": voc("nan"),
    "infinity": voc("inf"),
    "half a file": voc("1")[:60],
    "an unknown encoding": f'<?xml version="1.0" encoding="nix"?>{voc("1")}',
    "bytes": b"<annotation>\xff\xfe</annotation>",
    "another namespace and no end": "<annotation><a:b></annotation>",
    "two roots": voc("1") * 2,
}


@pytest.mark.parametrize("kind", XML)
def test_odd_xml_is_refused(kind, tmp_path):
    for number in range(3):
        draw(tmp_path / "JPEGImages" / f"{number}.jpg")
        write(tmp_path / "Annotations" / f"{number}.xml", voc("1"))
    write(tmp_path / "Annotations" / "0.xml", XML[kind])
    error = within_limits(lambda: read_dataset(tmp_path))
    assert error is not None
    assert "0.xml" in str(error)


SPECIAL = {
    "a pipe": os.mkfifo,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a sparse file of gigabytes": sparse,
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a link to nothing": lambda path: path.symlink_to("nothing"),
    "an empty file": lambda path: path.touch(),
    "a folder": lambda path: path.mkdir(),
}


@pytest.mark.parametrize("kind", SPECIAL)
@pytest.mark.parametrize("name", ["labels.csv", "data.yaml", "annotations.json", "a/0.xml"])
def test_a_special_file_beside_images_never_hangs(kind, name, tmp_path):
    for number in range(3):
        draw(tmp_path / "a" / f"{number}.png")
        draw(tmp_path / "b" / f"{number}.png")
    SPECIAL[kind](tmp_path / name)
    within_limits(lambda: read_dataset(tmp_path))
    if name == "labels.csv":
        assert within_limits(lambda: read_dataset(tmp_path / name)) is not None


@pytest.mark.parametrize("kind", [kind for kind in SPECIAL if kind != "a folder"])
def test_a_special_file_with_an_images_name_is_found(kind, tmp_path):
    for folder in "ab":
        for number in range(3):
            draw(tmp_path / "photos" / folder / f"{number}.png")
    SPECIAL[kind](tmp_path / "photos" / "a" / "odd.png")
    found = []

    def read_and_scan():
        data = read_dataset(tmp_path / "photos")
        found.extend(scan(data.samples, cache=Cache(tmp_path / "cache")))

    error = within_limits(read_and_scan)
    assert error is not None or [bool(record.problem) for record in found].count(True) == 1
