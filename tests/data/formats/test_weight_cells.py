"""A column of weights: from tables and objects to the samples, and what is refused."""

import numpy as np
import pytest

from headstart.data.dataset import Dataset
from headstart.data.readers import read_dataset
from headstart.errors import DataError, UnknownNameError, UsageError

IMAGES = np.zeros((4, 8, 8, 3), dtype=np.uint8)
CLASSES = ("cat", "dog", "cat", "dog")


def table(folder, cells, *, header="file,label,trust", classes=CLASSES):
    for number in range(len(cells)):
        (folder / f"{number}.png").touch()
    rows = [f"{i}.png,{c},{w}" for i, (c, w) in enumerate(zip(classes, cells, strict=True))]
    (folder / "labels.csv").write_text("\n".join([header, *rows]))
    return folder / "labels.csv"


def weights(data: Dataset) -> list[float]:
    return [sample.weight for sample in data.samples]


def test_a_column_of_a_table_is_the_weight_of_each_image(tmp_path) -> None:
    path = table(tmp_path, ("2", "0.5", "1e-3", " 7 "))
    data = read_dataset(path, weight_column="Trust")
    assert weights(data) == [2, 0.5, 0.001, 7]
    assert "weight = column 'trust'" in data.notes[0]
    assert weights(read_dataset(tmp_path, weight_column="trust")) == weights(data)
    assert set(weights(read_dataset(path))) == {1}


def test_images_of_weight_0_are_left_out(tmp_path) -> None:
    path = table(tmp_path, ("0", "1", "2", "0.0", "1"), classes=("bird", *CLASSES))
    data = read_dataset(path, weight_column="trust")
    assert [sample.name[-5:] for sample in data.samples] == ["1.png", "2.png", "4.png"]
    assert data.classes == ("cat", "dog")
    assert "2 images of weight 0 left out" in data.notes


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        (("1", "-1", "1", "1"), r"column 'trust' of '.*labels.csv', got '-1' in line 3\. Correct"),
        (("1", "nan", "inf", "1"), r"got 'nan' in line 3 \(2 such rows in all\)"),
        (("1", "1", "-inf", "1"), r"got '-inf' in line 4"),
        (("1", "1", "", "1"), r"got an empty cell in line 4"),
        (("1", "1", "1", "high"), r"got 'high' in line 5"),
        (("0", "0", "0", "0"), r"Every weight in column 'trust' of '.*labels.csv' is 0"),
    ],
)
def test_wrong_weights_are_refused_with_row_and_value(tmp_path, cells, message) -> None:
    with pytest.raises(DataError, match=message):
        read_dataset(table(tmp_path, cells), weight_column="trust")


def test_a_missing_column_and_a_missing_table_are_refused(tmp_path) -> None:
    with pytest.raises(UnknownNameError, match=r"weight_column: 'trst'. Did you mean 'trust'"):
        read_dataset(table(tmp_path, ("1", "1", "1", "1")), weight_column="trst")
    with pytest.raises(UsageError, match="weight_column='w'"):
        read_dataset("demo:bars", weight_column="w")
    folder = tmp_path / "photos"
    for name in ("cat", "dog"):
        (folder / name).mkdir(parents=True)
        (folder / name / "1.png").touch()
    with pytest.raises(UsageError, match=r"Expected a manifest for weight_column='w'"):
        read_dataset(folder, weight_column="w")


def test_rows_of_one_image_must_have_one_weight(tmp_path) -> None:
    path = table(tmp_path, ("1", "1", "1", "1"))
    path.write_text(path.read_text() + "\n0.png,cat,3")
    with pytest.raises(DataError, match=r"one label, group and weight per image, got 1 rows"):
        read_dataset(path, weight_column="trust")


def test_a_column_of_0_and_1_is_a_weight_and_not_a_class(tmp_path) -> None:
    path = table(tmp_path, ("1,1", "0,1", "1,0", "0,1"), header="file,cat,dog,w", classes="0101")
    data = read_dataset(path, weight_column="w")
    assert (data.classes, len(data)) == (("cat", "dog"), 3)


def test_a_column_that_looks_like_weights_is_named(tmp_path) -> None:
    path = table(tmp_path, ("1", "2", "1", "1"), header="file,label,weight")
    assert "columns not used: 'weight'" in read_dataset(path).notes


def test_python_objects_take_the_column() -> None:
    columns = {"image": IMAGES, "label": CLASSES, "trust": [2, 0, 0.5, np.float32(1)]}
    data = read_dataset(columns, weight_column="trust")
    assert weights(data) == [2, 0.5, 1]
    assert [sample.name for sample in data.samples] == ["image 0", "image 2", "image 3"]
    splits = {"train": columns, "test": {**columns, "trust": [1, 1, 3, 1]}}
    assert weights(read_dataset(splits, weight_column="trust")) == [2, 0.5, 1, 1, 1, 3, 1]
    with pytest.raises(DataError, match=r"of the dictionary, got 'nan' in position 2"):
        read_dataset({**columns, "trust": [1, 1, "nan", 1]}, weight_column="trust")


def test_boxes_and_masks_have_no_weights(tmp_path) -> None:
    boxes = [{"boxes": [[0, 0, 4, 4]], "labels": ["cell"]}] * 4
    with pytest.raises(UsageError, match=r"weight column for boxes and masks, got 'w'"):
        read_dataset({"image": IMAGES, "label": boxes, "w": [1, 2, 3, 4]}, weight_column="w")
    (tmp_path / "1.png").touch()
    path = tmp_path / "boxes.csv"
    path.write_text("file,label,xmin,ymin,xmax,ymax,w\n1.png,cell,1,1,4,4,2")
    with pytest.raises(UsageError, match=r"got 'w' of '.*boxes.csv'. Weights are for classes"):
        read_dataset(path, weight_column="w")
