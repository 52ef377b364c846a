from pathlib import Path

import pytest

from headstart.data.readers import read_dataset
from headstart.errors import HeadstartError, LeakError


def make(root: Path, **files: str) -> Path:
    """Images a/1.jpg, a/2.jpg, b/3.jpg, "b/4 (1).jpg", and text files."""
    for name in ("a/1.jpg", "a/2.jpg", "b/3.jpg", "b/4 (1).jpg"):
        (root / "pics" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "pics" / name).touch()
    for name, text in files.items():
        (root / f"{name}.txt").write_text(text)
    return root


@pytest.mark.parametrize(
    ("lines", "labels"),
    [
        ("pics/a/1.jpg 0\npics/b/3.jpg 1\n", ["0", "1"]),
        ("pics/a/1.jpg\tgolden retriever\npics/b/3.jpg\tpug\n", ["golden retriever", "pug"]),
        ("pics/a/1.jpg,cat\r\npics/b/3.jpg,dog\r\n", ["cat", "dog"]),
        ("pics/a/1.jpg, cat\n\npics/b/3.jpg, dog", ["cat", "dog"]),
        ("pics/a/1.jpg;cat\npics/b/3.jpg;dog", ["cat", "dog"]),
        ('"pics/a/1.jpg" cat\n"pics/b/3.jpg" dog', ["cat", "dog"]),
        ("pics\\a\\1.jpg cat\npics\\b\\3.jpg dog", ["cat", "dog"]),
        ("/elsewhere/pics/a/1.jpg cat\n/elsewhere/pics/b/3.jpg dog", ["cat", "dog"]),
        ("./pics/a/1.jpg cat\n./pics/b/3.jpg dog", ["cat", "dog"]),
        ("a/1.jpg cat\nb/3.jpg dog", ["cat", "dog"]),
        ("1.jpg cat\n4 (1).jpg dog", ["cat", "dog"]),
        ("\ufeff1.jpg cat\n3.jpg dog", ["cat", "dog"]),
        ("1.jpg  cat\n3.jpg   dog", ["cat", "dog"]),
    ],
)
def test_one_path_and_one_label_in_a_line(tmp_path: Path, lines: str, labels: list[str]) -> None:
    make(tmp_path, all=lines)
    data = read_dataset(tmp_path)
    assert [sample.target for sample in data.samples] == labels
    assert [Path(str(sample.image)).parent.name for sample in data.samples] == ["a", "b"]
    assert read_dataset(tmp_path / "all.txt").counts() == data.counts()


def test_splits_and_class_names(tmp_path: Path) -> None:
    make(tmp_path, train="a/1.jpg 0\nb/3.jpg 1\n", test="a/2.jpg 0\n", classes="cat\ndog\nbird\n")
    data = read_dataset(tmp_path)
    assert [(s.target, s.split) for s in data.samples] == [
        ("cat", "test"),
        ("cat", "train"),
        ("dog", "train"),
    ]
    (tmp_path / "classes.txt").write_text("1 dog\n0 cat\n")
    assert read_dataset(tmp_path).counts() == {"cat": 2, "dog": 1}
    (tmp_path / "splits").mkdir()
    for name in ("train.txt", "test.txt", "classes.txt"):
        (tmp_path / name).rename(tmp_path / "splits" / name)
    assert read_dataset(tmp_path).counts() == {"cat": 2, "dog": 1}
    assert read_dataset(tmp_path / "splits/train.txt").counts() == {"cat": 1, "dog": 1}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"all": "a/1.jpg 0\nb/3.jpg 1 0 1\n"}, "line 2 .*got '1 0 1'.*several values"),
        ({"all": "a/1.jpg 0 0 1 1,2\nb/3.jpg 5,6,7,8,9\n"}, "line 1 .*several values"),
        ({"all": "a/1.jpg 0\n" * 20 + "b/3.jpg\n"}, "line 21 of .*got 'b/3.jpg'"),
        ({"all": "a/1.jpg golden retriever\n"}, "by a tab if it contains blanks"),
        ({"all": "a/1.jpg 0\nb/9.jpg 1\n"}, "1 of the 2 images in the lists .*9.jpg"),
        ({"all": "a/1.jpg 1\nb/3.jpg 2\n", "classes": "cat\ndog"}, "got '2'.*seem to start at 1"),
        ({"all": "a/1.jpg 0\nb/3.jpg 7\n", "classes": "cat\ndog"}, "2 classes, from 0.*got '7'"),
        ({"all": "a/1.jpg 0\n", "classes": "cat\ndog\ncat"}, "'cat' several times"),
        (
            {"all": "a/1.jpg 0\n", "more": "b/3.jpg 1\n"},
            "named after splits.*'all.txt', 'more.txt'",
        ),
        ({"all": "a/1.jpg 0\na/1.jpg 1\n"}, "one label, group and weight per image"),
    ],
)
def test_lines_that_are_not_certain(tmp_path: Path, files: dict[str, str], message: str) -> None:
    with pytest.raises(HeadstartError, match=message):
        read_dataset(make(tmp_path, **files))


def test_a_name_in_two_folders_and_an_image_in_two_splits(tmp_path: Path) -> None:
    make(tmp_path, all="1.jpg x\n3.jpg y\n")
    (tmp_path / "pics/b/1.jpg").touch()
    with pytest.raises(HeadstartError, match=r"one image for '1.jpg'.*'pics/a/1.jpg', 'pics/b/1"):
        read_dataset(tmp_path)
    make(tmp_path, train="a/1.jpg x\n", test="a/1.jpg x\n")
    (tmp_path / "all.txt").unlink()
    with pytest.raises(LeakError, match="in one split"):
        read_dataset(tmp_path)


@pytest.mark.parametrize("text", ["a/1.jpg\nb/3.jpg\n", "a/1.jpg a/1.png\n", "a text 5\n", "1 2 3"])
def test_other_texts_are_no_lists(tmp_path: Path, text: str) -> None:
    make(tmp_path, all=text)
    assert read_dataset(tmp_path / "pics").counts() == {"a": 2, "b": 2}
    with pytest.raises(HeadstartError, match="at least 2 classes"):
        read_dataset(tmp_path)
