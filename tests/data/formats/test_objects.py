"""Python objects become the same data set as a folder with the same images."""

import io
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torchvision.datasets import ImageFolder
from torchvision.transforms import ToTensor

from headstart.data import readers
from headstart.data.checks.scan import scan
from headstart.data.formats import objects, pixels
from headstart.data.formats.objects import is_collection, object_name
from headstart.data.images import decode
from headstart.data.prepare import to_samples
from headstart.data.readers import read_dataset
from headstart.errors import DataError, HeadstartError, UnknownNameError, UsageError

NAMES = ["cat", "dog"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for number, name in enumerate(NAMES * 3):
        (root / name).mkdir(exist_ok=True)
        pixels = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / name / f"{number}.png")
    return root


class Pairs(torch.utils.data.Dataset):
    """Images as torch users have them: float, channels first."""

    classes = NAMES

    def __init__(self, root: Path) -> None:
        self.folder = ImageFolder(root, transform=ToTensor())

    def __len__(self) -> int:
        return len(self.folder)

    def __getitem__(self, i: int):
        return self.folder[i]


def forms(root: Path) -> dict[str, object]:
    data = read_dataset(root)
    paths = [sample.image for sample in data.samples]
    labels = [sample.target for sample in data.samples]
    numbers = [NAMES.index(label) for label in labels]
    pixels = np.stack([decode(path) for path in paths])
    pictures = [Image.fromarray(image) for image in pixels]
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)}
    )
    hugging_face = datasets.Dataset.from_dict(
        {"image": [str(path) for path in paths], "label": numbers}, features=features
    )
    in_memory = datasets.Dataset.from_dict({"image": pictures, "label": numbers}, features=features)
    folder = ImageFolder(root)
    return {
        "frame of paths": pd.DataFrame({"file": map(str, paths), "class": labels}),
        "frame of images": pd.DataFrame({"image": pictures, "label": pd.Categorical(labels)}),
        "frame of arrays": pd.DataFrame({"image": list(pixels), "label": labels}),
        "frame of bytes": pd.DataFrame(
            {"image": [{"bytes": p.read_bytes(), "path": None} for p in paths], "label": labels}
        ),
        "pairs of paths": list(zip(paths, labels, strict=True)),
        "pairs of images": list(zip(pictures, labels, strict=True)),
        "pairs of arrays": [[image, label] for image, label in zip(pixels, labels, strict=True)],
        "pairs of tensors": [
            (torch.from_numpy(i.transpose(2, 0, 1)), n) for i, n in zip(pixels, labels, strict=True)
        ],
        "dictionaries": [{"image": i, "label": n} for i, n in zip(paths, labels, strict=True)],
        "arrays": (pixels, np.array(labels)),
        "arrays, channels first": (pixels.transpose(0, 3, 1, 2), labels),
        "arrays of floats": (pixels / np.float64(255), labels),
        "tensors": (torch.from_numpy(pixels), labels),
        "one-hot labels": {"images": pixels, "labels": np.eye(2)[numbers], "classes": NAMES},
        "named numbers": {"images": pixels, "labels": np.array(numbers), "classes": NAMES},
        "list of images": (pictures, labels),
        "torch": Pairs(root),
        "subset of torch": torch.utils.data.Subset(Pairs(root), range(6)),
        "ImageFolder": folder,
        "subset of a subset": torch.utils.data.Subset(
            torch.utils.data.Subset(folder, range(6)), np.arange(6)
        ),
        "Hugging Face": hugging_face,
        "Hugging Face in memory": in_memory,
        "Hugging Face as numpy": in_memory.with_format("numpy"),
    }


@pytest.mark.parametrize(
    "form",
    [
        "frame of paths",
        "frame of images",
        "frame of arrays",
        "frame of bytes",
        "pairs of paths",
        "pairs of images",
        "pairs of arrays",
        "pairs of tensors",
        "dictionaries",
        "arrays",
        "arrays, channels first",
        "arrays of floats",
        "tensors",
        "one-hot labels",
        "named numbers",
        "list of images",
        "torch",
        "subset of torch",
        "ImageFolder",
        "subset of a subset",
        "Hugging Face",
        "Hugging Face in memory",
        "Hugging Face as numpy",
    ],
)
def test_every_form_is_the_same_data(photos: Path, form: str) -> None:
    expected = read_dataset(photos)
    data = read_dataset(forms(photos)[form])
    assert (data.classes, data.kind) == (expected.classes, "multiclass")
    assert [s.target for s in data.samples] == [s.target for s in expected.samples]
    for sample, other in zip(data.samples, expected.samples, strict=True):
        np.testing.assert_array_equal(decode(sample.image), decode(other.image))
    # Files keep their path as name and their content as identity.
    if isinstance(data.samples[0].image, Path):
        assert [s.name for s in data.samples] == [s.name for s in expected.samples]
    else:
        noun = "row" if "frame" in form else "image"
        assert [s.name for s in data.samples] == [f"{noun} {i}" for i in range(6)]
        assert any("named by their position" in note for note in data.notes)
    digests = {record.digest for record in scan(data.samples)}
    assert len(digests) == 6
    if form in {
        "frame of paths",
        "pairs of paths",
        "ImageFolder",
        "frame of bytes",
        "Hugging Face",
    }:
        assert digests == {record.digest for record in scan(expected.samples)}


def test_splits_and_groups_have_the_words_of_tables(photos: Path) -> None:
    paths = [str(s.image) for s in read_dataset(photos).samples]
    frame = pd.DataFrame(
        {
            "path": paths,
            "label": ["cat"] * 3 + ["dog"] * 3,
            "subset": ["Training", "training", "valid"] * 2,
            "patient": ["p1", "p1", None, 7.0, 7.0, float("nan")],
        }
    )
    data = read_dataset(frame)
    assert [s.split for s in data.samples] == ["train", "train", "val"] * 2
    assert [s.group for s in data.samples] == ["p1", "p1", None, "7", "7", None]
    assert read_dataset(frame, group_by="label").samples[3].group == "dog"
    by_path = read_dataset(frame.drop(columns="patient"), group_by=r"(\d)\.png")
    assert [s.group for s in by_path.samples] == ["0", "2", "4", "1", "3", "5"]


def test_a_dictionary_of_splits(photos: Path) -> None:
    source = forms(photos)["Hugging Face in memory"]
    data = read_dataset(datasets.DatasetDict({"train": source, "validation": source}))
    assert [s.split for s in data.samples] == ["train"] * 6 + ["val"] * 6
    assert (data.samples[0].name, data.samples[6].name) == ("train/image 0", "validation/image 0")
    arrays = forms(photos)["arrays"]
    assert len(read_dataset({"train": arrays, "test": arrays}).split("test")) == 6
    frame = forms(photos)["frame of paths"]
    assert len(read_dataset({"train": frame}).split("train")) == 6
    with pytest.raises(DataError, match="unsupervised"):
        read_dataset(OrderedDict(train=arrays, unsupervised=arrays))


def test_several_labels(photos: Path) -> None:
    pixels = forms(photos)["arrays"][0][:3]
    expected = [("cat", "dog"), (), ("dog",)]
    for labels in (
        [["cat", "dog"], [], ["dog"]],
        [{"dog", "cat"}, set(), ("dog",)],
        ["cat|dog", None, "dog"],
    ):
        data = read_dataset(list(zip(pixels, labels, strict=True)))
        assert (data.kind, [s.target for s in data.samples]) == ("multilabel", expected)
    table = np.array([[1, 1], [0, 0], [0, 1]])
    data = read_dataset({"images": pixels, "labels": table, "classes": NAMES})
    assert (data.kind, [s.target for s in data.samples]) == ("multilabel", expected)
    features = datasets.Features(
        {"image": datasets.Image(), "tags": datasets.List(datasets.ClassLabel(names=NAMES))}
    )
    hugging_face = datasets.Dataset.from_dict(
        {"image": [Image.fromarray(p) for p in pixels], "tags": [[0, 1], [], [1]]},
        features=features,
    )
    assert [s.target for s in read_dataset(hugging_face).samples] == expected


def test_the_column_of_several_can_be_chosen(photos: Path) -> None:
    features = datasets.Features(
        {
            "img": datasets.Image(),
            "fine": datasets.ClassLabel(names=["pug", "tabby"]),
            "coarse": datasets.ClassLabel(names=NAMES),
        }
    )
    images = [Image.new("RGB", (4, 4), (i, i, i)) for i in range(4)]
    source = datasets.Dataset.from_dict(
        {"img": images, "fine": [0, 1, 0, 1], "coarse": [1, 0, 1, 0]}, features=features
    )
    with pytest.raises(DataError, match="'fine', 'coarse'"):
        read_dataset(source)
    assert read_dataset(source, label_column="coarse").counts() == {"cat": 2, "dog": 2}


IMAGE = np.zeros((8, 8, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (None, "got NoneType. Pass a path"),
        (7, "got int"),
        (IMAGE, "got ndarray. Pass the labels, too"),
        (torch.zeros(2, 3, 4, 4), "Pass the labels, too"),
        ((image for image in [IMAGE]), "got generator. Pass a list of"),
        (SimpleNamespace(dataset=[], batch_size=4), r"loader\.dataset"),
        ([], "got 0"),
        (["1.jpg", "2.jpg"], "a str at position 0"),
        ([(IMAGE, "cat"), (IMAGE, "dog", 3)], "a tuple of 3 values at position 1"),
        ([(3, "cat")], "image 0 of the list, got int"),
        ([(IMAGE, "cat"), (None, "dog")], "got none in 1 of 2 rows"),
        ([(IMAGE, "cat"), (IMAGE, None)], r"none or several in 1 of 2 rows \(positions 1\)"),
        ([(IMAGE, "cat"), ("no-such.png", "dog")], "'no-such.png'.*current folder"),
        ([(IMAGE, "cat")] * 3, "at least 2 classes.*in the list"),
        ((IMAGE[None], ["cat", "dog"]), "got 2. Pass columns of one length"),
        ((np.zeros((2, 64)), [0, 1]), r"got \(2, 64\)"),
        ((np.zeros((2, 3, 3, 3)), [0, 1]), "axis 1 or axis 3"),
        ((np.zeros((2, 8, 8, 5)), [0, 1]), "1, 3 or 4 channels"),
        ((np.full((2, 8, 8), 16.0), [0, 1]), "to 16. If white is 255"),
        ((np.full((2, 8, 8), -1.0), [0, 1]), "before normalisation"),
        ((np.full((2, 8, 8), 3), [0, 1]), "got int64"),
        ([(IMAGE, np.array([0, 1])), (IMAGE, np.array([1, 0]))], "ambiguous"),
        ({"images": [IMAGE], "labels": [5], "classes": NAMES}, "from 0 to 1.*got 5"),
        ({"pixels": [IMAGE], "label": [1]}, "column of images.*'pixels'"),
        ({"image": [IMAGE], "truth": [1]}, "column of labels.*'truth'"),
        (pd.DataFrame({"path": [], "label": []}), "got 0"),
        (pd.DataFrame({"image": [IMAGE], "label": ["a"], "split": ["tset"]}), "tset"),
        (pd.Series([1, 2]), "in the Series, got a int64 at position 0"),
        ([(IMAGE, [{"bbox": [1, 2, 3, 4]}])], "lists of annotations"),
    ],
)
def test_refusals_name_the_value(source: object, words: str) -> None:
    with pytest.raises(HeadstartError, match=words):
        read_dataset(source)


def test_arguments_are_checked(photos: Path) -> None:
    with pytest.raises(UsageError, match="Expected boxes for the task detection"):
        read_dataset([(IMAGE, "cat")], task_kind="detection")
    with pytest.raises(UnknownNameError, match="label"):
        read_dataset({"image": [IMAGE], "label": ["cat"]}, label_column="labell")
    with pytest.raises(UsageError, match="was read already"):
        read_dataset(read_dataset(photos))


def test_a_stream_is_refused(photos: Path) -> None:
    stream = forms(photos)["Hugging Face"].to_iterable_dataset()
    with pytest.raises(UsageError, match="streaming=False"):
        read_dataset(stream)


def test_images_that_do_not_fit_into_memory_are_refused(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Pairs(photos)
    monkeypatch.setattr(objects, "MEASURED", 3)
    read_dataset(source)
    monkeypatch.setattr(pixels, "available_memory", lambda: 2 * 6 * 12 * 16 * 3 - 1)
    with pytest.raises(DataError, match="6 images of the Pairs need about"):
        read_dataset(source)


def test_boxes_and_masks() -> None:
    target = {"boxes": torch.tensor([[0.0, 1, 4, 5]]), "labels": torch.tensor([1])}
    data = read_dataset([(IMAGE, target), (IMAGE, {"boxes": [], "labels": []})])
    assert (data.kind, data.classes) == ("detection", ("1",))
    assert data.samples[0].target.corners == ((0.0, 1.0, 4.0, 5.0),)
    mask = np.zeros((8, 8), dtype=np.int64)
    mask[2:4] = 1
    source = {"images": [IMAGE, IMAGE], "labels": [mask, Image.fromarray(mask.astype("uint8"))]}
    data = read_dataset(source | {"classes": ["ground", "leaf"]})
    assert (data.kind, data.classes) == ("segmentation", ("ground", "leaf"))
    assert data.samples[1].target.present == ("ground", "leaf")
    with pytest.raises(UsageError, match="--task segmentation"):
        read_dataset(source, task_kind="detection")
    with pytest.raises(DataError, match="boxes for every image"):
        read_dataset([(IMAGE, target), (IMAGE, None)])


def test_images_to_predict_are_read_without_labels(photos: Path) -> None:
    frame = forms(photos)["frame of images"]
    assert [s.name for s in to_samples(frame.drop(columns="label"))] == [
        f"row {i}" for i in range(6)
    ]
    samples = to_samples(forms(photos)["Hugging Face"])
    assert [s.target for s in samples] == [None] * 6
    assert len(to_samples(forms(photos)["torch"])) == 6


def test_names_and_kinds_of_objects(photos: Path) -> None:
    assert object_name(forms(photos)["torch"]) == "Pairs"
    assert object_name(forms(photos)["frame of paths"]) == "DataFrame"
    assert not any(map(is_collection, (Path("a"), IMAGE, Image.new("L", (2, 2)), [IMAGE], b"a")))
    assert all(map(is_collection, (forms(photos)["torch"], forms(photos)["Hugging Face"])))
    assert readers.read_dataset(forms(photos)["pairs of paths"]).name == "images"
    stream = io.BytesIO()
    assert not is_collection(stream)
