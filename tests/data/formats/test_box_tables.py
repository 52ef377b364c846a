"""Tables of boxes: several rows for an image, in the columns that people use."""

import pytest
from PIL import Image

from headstart.data.readers import read_dataset
from headstart.errors import DataError, LayoutError

CORNERS = "{},{},{},{}"


def read(folder, text, **options):
    for i in range(3):
        Image.new("RGB", (40, 20)).save(folder / f"{i}.png")
    (folder / "t.csv").write_text(text)
    return read_dataset(folder / "t.csv", min_classes=1, **options)


FORMS = [
    ("xmin,ymin,xmax,ymax", "4,2,12,8"),
    ("x_min,y_min,x_max,y_max", "4,2,12,8"),
    ("XMin,YMin,XMax,YMax", "4,2,12,8"),
    ("xmin,xmax,ymin,ymax", "4,12,2,8"),
    ("x1,y1,x2,y2", "4,2,12,8"),
    ("x0,y0,x1,y1", "4,2,12,8"),
    ("left,top,right,bottom", "4.0,2.0,12.0,8.0"),
    ("bbox_x,bbox_y,bbox_width,bbox_height", "4,2,8,6"),
    ("x,y,w,h", "4,2,8,6"),
    ("x,y,width,height", "4,2,8,6"),
    ("left,top,width,height", "4,2,8,6"),
    ("width,height,xmin,ymin,xmax,ymax", "40,20,4,2,12,8"),
    ("XMin,XMax,YMin,YMax", "0.1,0.3,0.1,0.4"),
]


@pytest.mark.parametrize(("names", "cells"), FORMS)
def test_columns_of_boxes_are_boxes(tmp_path, names, cells):
    rows = f"0.png,{cells},cat\n0.png,{cells},dog\n1.png,{cells},cat\n"
    data = read(tmp_path, f"filename,{names},class\n{rows}")
    assert (data.kind, data.classes, len(data)) == ("detection", ("cat", "dog"), 2)
    boxes = data.samples[0].target
    assert boxes.labels == ("cat", "dog")
    assert boxes.corners == (pytest.approx((4, 2, 12, 8)),) * 2


def test_rows_without_a_box_are_negatives_and_splits_are_kept(tmp_path):
    rows = "0.png,4,2,12,8,cat,0\n0.png,5,2,12,8,cat,0\n1.png,,,,,,1\n"
    data = read(tmp_path, f"image,x1,y1,x2,y2,label,is_valid\n{rows}", task_kind="detection")
    assert [len(sample.target.labels) for sample in data.samples] == [2, 0]
    assert [sample.split for sample in data.samples] == ["train", "val"]


REFUSED = [
    ("image,bbox,label", '0.png,"[4, 2, 8, 6]",cat', LayoutError, "four columns xmin"),
    ("image,bbox", '0.png,"[4, 2, 8, 6]"', LayoutError, "four columns xmin"),
    ("image,x1,y1,x2,y2", "0.png,4,2,12,8", LayoutError, "--label-column NAME"),
    ("image,x1,y1,x2,y2,label", "0.png,4,2,x,8,cat", DataError, "in line 2"),
    ("image,x1,y1,x2,y2,label", "0.png,4,2,,8,cat", DataError, "in line 2"),
    ("image,x1,y1,x2,y2,label", "0.png,4,2,inf,8,cat", DataError, "in line 2"),
    ("image,x1,y1,x2,y2,label", "0.png,4,2,12,8,", DataError, "class of an object in line 2"),
    ("image,x1,y1,x2,y2,label", "0.png,4,2,12,8,nan", DataError, "got 'nan'"),
    ("image,x1,y1,x2,y2,label", "0.png,4,2,12,8,background", DataError, "'background'"),
    ("image,x1,y1,x2,y2,label", "9.png,4,2,12,8,cat", DataError, "do not exist"),
    ("image,x1,y1,x2,y2,label", "\n".join(["0.png,12,8,4,2,cat"] * 3), DataError, "swapped"),
]


@pytest.mark.parametrize(("header", "row", "error", "words"), REFUSED)
def test_boxes_that_are_not_certain_are_refused(tmp_path, header, row, error, words):
    with pytest.raises(error, match=words):
        read(tmp_path, f"{header}\n{row}\n")


@pytest.mark.parametrize("header", ["image,label,box", "image,label,x1", "image,label,left,right"])
def test_other_columns_are_no_boxes(tmp_path, header):
    row = ",".join(["7"] * (header.count(",") - 1))
    data = read(tmp_path, f"{header}\n0.png,a,{row}\n1.png,b,{row}\n")
    assert data.kind == "multiclass"
    with pytest.raises(LayoutError, match="Expected boxes for detection"):
        read_dataset(tmp_path / "t.csv", task_kind="detection")
