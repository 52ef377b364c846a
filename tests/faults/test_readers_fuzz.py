"""Damaged files end in a sentence: structural changes of one small file of every format.

A change tries 2,000 inputs a format, ``make faults`` over 100,000. A failure names its seed.
"""

import json
import os
import random
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from headstart.backbones.catalog import resolve
from headstart.backbones.weights import locate, read_state
from headstart.cache import open_cache
from headstart.data.readers import read_dataset
from headstart.errors import MOST_CHARACTERS, HeadstartError
from headstart.files import write_whole
from headstart.models.saving import load
from headstart.training import checkpoint
from headstart.workflows.config import read_recipe
from headstart.workflows.evaluate import labelled_part

GOLDEN = Path(__file__).parents[1] / "golden" / "saved"
QUICK, LONG = 2_000, 11_000
SECONDS = 5
ODD = (
    None,
    True,
    -1,
    0,
    1.5,
    1e308,
    "",
    "\0",
    "../x",
    "a" * 300,
    [],
    {},
    [[]],
    [1],
    {"a": 1},
    10**30,
)
"""Values that replace one value of a document."""
TEXTS = (
    b"",
    b"\0",
    b"\xff\xfe",
    b",",
    b"\n",
    b'"',
    b"<",
    b"&amp;",
    b"{",
    b"]",
    b"-",
    b"9" * 400,
    b"nan",
)
"""Bytes that are inserted into a file."""


def draw(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8, 3), len(str(path)) % 255, np.uint8)).save(path)


def images(root, folder="images"):
    for number in range(4):
        draw(root / folder / f"{number}.png")


def table(root):
    images(root)
    rows = "".join(f"images/{n}.png,{'ab'[n % 2]},{'train' if n else 'test'}\n" for n in range(4))
    write_whole(root / "labels.csv", f"image,label,split\n{rows}")
    return root / "labels.csv"


def coco(root):
    images(root)
    document = {
        "images": [
            {"id": n, "file_name": f"images/{n}.png", "width": 8, "height": 8} for n in range(4)
        ],
        "categories": [{"id": 1, "name": "cell"}, {"id": 2, "name": "dust"}],
        "annotations": [
            {"id": n, "image_id": n, "category_id": 1 + n % 2, "bbox": [1, 1, 4, 4], "area": 16}
            for n in range(4)
        ],
    }
    write_whole(root / "annotations.json", json.dumps(document))
    return root / "annotations.json"


def voc(root):
    images(root, "JPEGImages")
    for number in range(4):
        box = "<xmin>1</xmin><ymin>1</ymin><xmax>5</xmax><ymax>5</ymax>"
        size = "<size><width>8</width><height>8</height><depth>3</depth></size>"
        text = (
            f"<annotation><filename>{number}.png</filename>{size}"
            f"<object><name>cell</name><bndbox>{box}</bndbox></object></annotation>"
        )
        (root / "Annotations").mkdir(exist_ok=True)
        write_whole(root / "Annotations" / f"{number}.xml", text)
    return root / "Annotations" / "0.xml"


def yolo(root):
    images(root, "images/train")
    (root / "labels" / "train").mkdir(parents=True)
    for number in range(4):
        write_whole(root / "labels" / "train" / f"{number}.txt", "0 0.5 0.5 0.25 0.25\n")
    write_whole(
        root / "data.yaml", "path: .\ntrain: images/train\nval: images/train\nnames: [cell]\n"
    )
    return root / "labels" / "train" / "0.txt"


def yolo_yaml(root):
    yolo(root)
    return root / "data.yaml"


def masks(root):
    images(root)
    for number in range(4):
        path = root / "masks" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.eye(8, dtype=np.uint8) * (number % 2)).save(path)
    write_whole(root / "classes.txt", "background\nleaf\n")
    return root / "masks" / "0.png"


def class_names(root):
    masks(root)
    return root / "classes.txt"


def read_folder(root):
    data = read_dataset(root)
    assert data.classes


def read_masks(root):
    """Read a folder and decode its images and masks."""
    with open_cache(no_cache=True) as cache:
        labelled_part(root, "segmentation", "test", cache=cache)


def first_image(root):
    masks(root)
    return root / "images" / "0.png"


def saved_model(name):
    def make(root):
        shutil.copytree(GOLDEN / "probe", root, dirs_exist_ok=True)
        return root / name

    return make


def a_checkpoint(root):
    state = checkpoint.Checkpoint(
        identity={}, epoch=1, step=2, tensors={"w": torch.ones(9)}, values={"best": 0.5}
    )
    checkpoint.write(root, state)
    return root / checkpoint.NAME


def weights(name, save):
    def make(root):
        state = {"conv.weight": torch.ones(2, 3, 3, 3), "bn.weight": torch.ones(2)}
        state["bn.num_batches_tracked"] = torch.tensor(7)
        save(state, root / name)
        return root / name

    return make


def read_weights(name):
    def read(root):
        spec = resolve(f"file:{root / name}@torchvision/resnet18")
        assert read_state(locate(spec), spec)

    return read


def recipe(root):
    write_whole(root / "resolved.yaml", "backbone: resnet18\nbudget: 60\nseed: 1\ntask: auto\n")
    return root / "resolved.yaml"


FORMATS = {
    "table": (table, read_folder),
    "COCO": (coco, read_folder),
    "VOC": (voc, read_folder),
    "YOLO labels": (yolo, read_folder),
    "YOLO yaml": (yolo_yaml, read_folder),
    "mask": (masks, read_masks),
    "image": (first_image, read_masks),
    "class names": (class_names, read_folder),
    "model.json": (saved_model("model.json"), load),
    "model.safetensors": (saved_model("model.safetensors"), load),
    "checkpoint": (a_checkpoint, lambda root: checkpoint.read(root, identity={})),
    "weights.pth": (weights("w.pth", torch.save), read_weights("w.pth")),
    "weights.safetensors": (weights("w.safetensors", save_file), read_weights("w.safetensors")),
    "resolved.yaml": (recipe, lambda root: read_recipe(root / "resolved.yaml", {})),
}


def mutated(content, rng):
    """Change a file: a value of its document, a line, or some bytes."""
    if content[:1] == b"{" and rng.random() < 0.7:
        return changed_document(json.loads(content), rng)
    lines = content.split(b"\n")
    kind = rng.choice(("flip", "cut", "insert", "drop", "double", "line", "swap"))
    at = (
        rng.randrange(len(content)) if rng.random() < 0.5 else rng.randrange(min(len(content), 300))
    )
    if kind == "flip":
        return content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1 :]
    if kind == "cut":
        return content[:at]
    if kind == "insert":
        return content[:at] + rng.choice(TEXTS) + content[at:]
    if kind == "drop":
        return content[:at] + content[at + rng.randrange(1, 40) :]
    if kind == "double":
        return content + content[at:]
    row, other = rng.randrange(len(lines)), rng.randrange(len(lines))
    if kind == "line":
        lines[row] = rng.choice((b"", lines[row] * 2, *TEXTS))
    else:
        lines[row], lines[other] = lines[other], lines[row]
    return b"\n".join(lines)


def changed_document(document, rng):
    """Replace, remove or double one value, at any depth."""
    places = []

    def collect(value):
        children = value.items() if isinstance(value, dict) else enumerate(value)
        for name, child in list(children):
            places.append((value, name))
            if isinstance(child, dict | list):
                collect(child)

    collect(document)
    parent, name = places[rng.randrange(len(places))]
    action = rng.choice(("replace", "remove", "double"))
    if action == "remove":
        del parent[name]
    elif action == "double" and isinstance(parent, list):
        parent.append(parent[name])
    elif action == "double":
        parent[f"{name}2"] = parent[name]
    else:
        parent[name] = rng.choice(ODD)
    return json.dumps(document).encode()


@pytest.mark.parametrize("name", FORMATS)
def test_a_damaged_file_ends_in_a_sentence(name, counts, is_long, tmp_path):
    make, read = FORMATS[name]
    path = make(tmp_path)
    read(tmp_path)  # the whole file is read
    content = path.read_bytes()
    refused, first = 0, int(os.environ.get("FAULTS_SEED", "0"))
    for seed in range(first, first + (LONG if is_long else QUICK)):
        path.write_bytes(mutated(content, random.Random(seed)))
        start = time.process_time()
        message = ""
        try:
            read(tmp_path)
        except HeadstartError as error:
            message = str(error)
        except Exception as error:
            error.add_note(f"format {name}, seed {seed}")
            raise
        refused += bool(message)
        assert max(map(len, message.splitlines()), default=0) <= MOST_CHARACTERS, (name, seed)
        assert time.process_time() - start < SECONDS, (name, seed)
        counts[f"damaged inputs, {name}"] += 1
    assert refused > 0
