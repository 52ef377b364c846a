"""Columns of yes and no are splits or classes, or are named as not used."""

import pytest
from PIL import Image

from headstart.data.readers import read_dataset
from headstart.errors import DataError, LayoutError


def read(folder, header, rows):
    for i in range(len(rows)):
        Image.new("RGB", (8, 8)).save(folder / f"{i}.png")
    lines = [f"{i}.png,{row}" for i, row in enumerate(rows)]
    (folder / "t.csv").write_text("\n".join([f"image,{header}", *lines]) + "\n")
    return read_dataset(folder / "t.csv", min_classes=1)


SPLITS = [
    ("is_valid", ["False", "True"], ["train", "val"]),
    ("is_valid", ["0", "1"], ["train", "val"]),
    ("Is Valid", ["no", "yes"], ["train", "val"]),
    ("is_val", ["0.0", "1.0"], ["train", "val"]),
    ("is_validation", ["FALSE", "TRUE"], ["train", "val"]),
    ("is_test", ["False", "True"], ["train", "test"]),
    ("is_train", ["1", "0"], ["train", "test"]),
    ("is_training_image", ["1", "0"], ["train", "test"]),
    ("train", ["True", "False"], ["train", "test"]),
    ("is_train,is_valid", ["1,0", "0,1", "0,0"], ["train", "val", "test"]),
    ("is_valid,is_test", ["0,0", "1,0", "0,1"], ["train", "val", "test"]),
    ("fold", ["train", "test"], ["train", "test"]),
    ("Usage", ["Training", "Testing"], ["train", "test"]),
    ("split", ["train", "val"], ["train", "val"]),
]


@pytest.mark.parametrize(("names", "cells", "expected"), SPLITS)
def test_flags_are_splits(tmp_path, names, cells, expected):
    data = read(tmp_path, f"label,{names}", [f"a,{cell}" for cell in cells])
    assert [sample.split for sample in data.samples] == expected
    assert any("split = column" in note for note in data.notes)


UNUSED = [
    ("fold", ["0", "1"]),
    ("fold", ["3", "4"]),
    ("kfold", ["0", "1"]),
    ("cv_fold", ["a", "b"]),
    ("is_valid", ["maybe", "yes"]),
    ("is_test", ["", "1"]),
    ("valid", ["1", "0"]),
    ("validation", ["x", "y"]),
    ("holdout", ["1", "0"]),
    ("train", ["x", "y"]),
    ("", ["train", "test"]),
]


@pytest.mark.parametrize(("name", "cells"), UNUSED)
def test_other_values_are_named_as_not_used(tmp_path, name, cells):
    data = read(tmp_path, f"label,{name}", [f"a,{cell}" for cell in cells])
    assert {sample.split for sample in data.samples} == {None}
    assert f"columns not used: {name!r}" in data.notes


def test_flags_that_contradict_each_other_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"test and val.*in line 3"):
        read(tmp_path, "label,is_valid,is_test", ["a,0,0", "a,1,1"])


HOT = [
    ("rust,scab", ["1,0", "0,1"], ["rust", "scab"]),
    ("rust,scab", ["1,1", "0,1"], [("rust", "scab"), ("scab",)]),
    ("rust,scab", ["1.0,0.0", "0.0,1.0"], ["rust", "scab"]),
    ("rust,scab", ["True,False", "True,True"], [("rust",), ("rust", "scab")]),
    ("rust,scab", ["0,0", "0,1"], [(), ("scab",)]),
    ("a,b,c", ["1,0,0", "0,1,0", "0,0,1"], ["a", "b", "c"]),
    ("age,rust,scab", ["71,1,0", "40,0,1"], ["rust", "scab"]),
    ("rust,scab,patient", ["1,0,p1", "0,1,p2"], ["rust", "scab"]),
    ("rust,scab,is_valid", ["1,0,0", "0,1,1"], ["rust", "scab"]),
    ("rust,scab,fold", ["1,0,0", "0,1,1"], ["rust", "scab"]),
    ("label,rust,scab", ["x,1,0", "y,0,1"], ["x", "y"]),
    ("MEL,NV,BCC", ["0.0,1.0,0.0", "1.0,0.0,0.0"], ["NV", "MEL"]),
    ("rust,scab", ["TRUE,FALSE", "FALSE,TRUE"], ["rust", "scab"]),
    ("No Finding,Mass", ["1,0", "0,1", "0,0"], [("No Finding",), ("Mass",), ()]),
    ("rust,scab,group", ["1,0,a", "0,1,b"], ["rust", "scab"]),
    ("a,b,width,height", ["1,0,64,64", "0,1,32,64"], ["a", "b"]),
]


@pytest.mark.parametrize(("names", "cells", "expected"), HOT)
def test_columns_of_0_and_1_are_classes(tmp_path, names, cells, expected):
    data = read(tmp_path, names, cells)
    assert [sample.target for sample in data.samples] == expected


@pytest.mark.parametrize("value", ["", "-1", "nan", "-1.0"])
def test_uncertain_values_of_classes_are_refused(tmp_path, value):
    with pytest.raises(DataError, match=r"Expected 0 or 1.*column 'c', line 3"):
        read(tmp_path, "a,b,c", ["1,0,1", f"0,1,{value}"])


@pytest.mark.parametrize("names", ["cat", "age,weight", "cat,age"])
def test_columns_that_are_no_classes_need_a_name(tmp_path, names):
    row = ",".join(["1", "71"][: names.count(",") + 1])
    with pytest.raises(LayoutError, match="--label-column NAME"):
        read(tmp_path, names, [row, row.replace("71", "40")])


@pytest.mark.parametrize("end", [",", ",,", ",,,"])
def test_empty_columns_at_the_end_are_left_out(tmp_path, end):
    data = read(tmp_path, f"label{end}", [f"a{end}", f"b{end}"])
    assert data.classes == ("a", "b")


@pytest.mark.parametrize("dtype", ["int64", "float64", "bool", "uint8", "str"])
@pytest.mark.parametrize("is_multi", [False, True])
def test_columns_of_classes_in_other_tables(tmp_path, dtype, is_multi):
    """Parquet files and data frames keep the types of their columns."""
    pd = pytest.importorskip("pandas")
    for i in range(3):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{i}.png")
    marks = {"rust": [1, 0, 1 if is_multi else 0], "scab": [0, 1, 1]}
    frame = pd.DataFrame({"image": [f"{i}.png" for i in range(3)], **marks})
    frame = frame.astype(dict.fromkeys(marks, dtype))
    frame.to_parquet(tmp_path / "t.parquet")
    expected = [("rust",), ("scab",), ("rust", "scab")] if is_multi else ["rust", "scab", "scab"]
    frame["image"] = [str(tmp_path / name) for name in frame["image"]]
    for source in (tmp_path, tmp_path / "t.parquet", frame):
        assert [sample.target for sample in read_dataset(source).samples] == expected
