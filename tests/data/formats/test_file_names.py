from pathlib import Path

import pytest

from headstart.data.readers import read_dataset
from headstart.errors import HeadstartError, UsageError

PETS = ("american_bulldog_12.jpg", "pug_1.jpg", "Abyssinian_100.jpg")


def make(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


@pytest.mark.parametrize(
    ("names", "pattern", "labels"),
    [
        (PETS, r"(.+)_\d+\.jpg$", ["Abyssinian", "american_bulldog", "pug"]),
        (PETS, r"(?P<label>[A-Za-z_]+)_(\d)", ["Abyssinian", "american_bulldog", "pug"]),
        (PETS, r"_(\d)(?:\d*)\.jpg", ["1", "1", "1"]),
        (("x/cat.1.jpg", "x/dog.2.jpg"), r"([a-z]+)\.\d", ["cat", "dog"]),
        (("p1/a-benign.png", "p1/b-malignant.png"), r"-(\w+)\.", ["benign", "malignant"]),
        (("s1/cat/1.jpg", "s2/dog/1.jpg"), r"^[^/]+/([^/]+)/", ["cat", "dog"]),
        (("train/a_1.jpg", "test/b_2.jpg"), r"/(\w)_", ["b", "a"]),
        (("a 1.jpg", "a2.jpg"), r"^(.+?)\d", ["a", "a"]),
        (("1__M_Left.BMP", "2__F_Left.BMP"), r"__(?P<label>[MF])_", ["M", "F"]),
        (("images/1.jpg", "masks/1.png"), r"^(images|masks)", ["images", "masks"]),
    ],
)
def test_the_class_is_in_the_path(
    tmp_path: Path, names: tuple[str, ...], pattern: str, labels: list[str]
) -> None:
    data = read_dataset(make(tmp_path, *names), label_from=pattern, min_classes=1)
    assert [sample.target for sample in data.samples] == labels
    splits = ["test", "train"] if "train/a_1.jpg" in names else [None] * len(names)
    assert [sample.split for sample in data.samples] == splits


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"label_from": "(b)_"},
            r"no class in 4 of the 5 images: 'a_1.jpg', 'c_3.jpg', 'd_4.jpg' and 1",
        ),
        ({"label_from": "[a-z]_"}, "a group around the class.*'\\[a-z\\]_'"),
        ({"label_from": "(a"}, "regular expression for --label-from, got '\\(a'"),
        ({"label_from": "(a)?"}, "no class in 4 of the 5"),
        ({"label_from": 3}, "`label_from` must be a text"),
        ({"label_from": "(.)", "masks": "gt"}, "does not fit --masks"),
        ({"label_from": "(.)", "class_level": 1}, "does not fit --class-level"),
        ({"label_from": "(.)", "task_kind": "detection"}, "the task is detection"),
    ],
)
def test_expressions_that_do_not_fit(
    tmp_path: Path, options: dict[str, object], message: str
) -> None:
    make(tmp_path, "a_1.jpg", "b_2.jpg", "c_3.jpg", "d_4.jpg", "e_5.jpg")
    with pytest.raises(HeadstartError, match=message):
        read_dataset(tmp_path, **options)  # type: ignore[arg-type]


def test_it_needs_a_folder_with_images(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"label_from='.*' needs a folder of images"):
        read_dataset("demo:digits", label_from="(.)")
    with pytest.raises(HeadstartError, match=r"no-such' does not exist"):
        read_dataset(tmp_path / "no-such", label_from="(.)")
    with pytest.raises(HeadstartError, match="Expected images in"):
        read_dataset(tmp_path, label_from="(.)")
