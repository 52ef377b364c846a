from pathlib import Path

import pytest

from headstart.data.formats.class_maps import find_class_map, read_class_map, to_palette
from headstart.data.formats.layouts import Listing
from headstart.errors import DataError

COLOURS = (((0, 0, 0), "ground"), ((128, 64, 255), "green leaf"))
NUMBERS = ((0, "ground"), (7, "green leaf"))


@pytest.mark.parametrize(
    ("file", "text", "codes"),
    [
        ("classes.txt", "ground\n\ngreen leaf\n", ((0, "ground"), (1, "green leaf"))),
        ("classes.txt", "\ufeff0 ground\r\n7 green leaf\r\n", NUMBERS),
        ("classes.txt", "# codes\n0: ground\n7: green leaf", NUMBERS),
        ("classes.txt", "0 0 0 ground\n128 64 255 green leaf", COLOURS),
        ("classes.txt", "0,0,0,ground\n128,64,255,green leaf", COLOURS),
        ("classes.txt", "#000000 ground\n#8040ff green leaf", COLOURS),
        ("labelmap.txt", "# label:rgb\nground:0,0,0::\ngreen leaf:128,64,255::", COLOURS),
        ("classes.csv", "name,code\nground,0\ngreen leaf,7\n", NUMBERS),
        ("class_dict.csv", "name,r,g,b\nground,0,0,0\ngreen leaf,128,64,255\n", COLOURS),
        ("classes.csv", "class,colour\nground,#000000\ngreen leaf,#8040ff\n", COLOURS),
        ("classes.csv", "name,order\nground,a\ngreen leaf,b\n", ((0, "ground"), (1, "green leaf"))),
        ("classes.json", '{"0": "ground", "7": "green leaf"}', NUMBERS),
        ("classes.json", '{"#000000": "ground", "#8040ff": "green leaf"}', COLOURS),
        ("classes.json", '{"0,0,0": "ground", "128 64 255": "green leaf"}', COLOURS),
        ("classes.json", '{"ground": 0, "green leaf": 7}', NUMBERS),
        ("classes.json", '{"ground": [0, 0, 0], "green leaf": [128, 64, 255]}', COLOURS),
        ("classes.json", '["ground", "green leaf"]', ((0, "ground"), (1, "green leaf"))),
    ],
)  # fmt: skip
def test_every_way_to_write_one(tmp_path: Path, file: str, text: str, codes: object) -> None:
    (tmp_path / file).write_text(text, encoding="utf-8")
    class_map = read_class_map(tmp_path / file)
    assert class_map.codes == codes
    assert class_map.in_order == (codes == ((0, "ground"), (1, "green leaf")))


@pytest.mark.parametrize(
    ("file", "text", "got"),
    [
        ("classes.txt", "", "no names"),
        ("classes.txt", "0 ground\n0 leaf", "the code 0 occurs twice"),
        ("classes.txt", "0 0 0 ground\nleaf", "and some have none"),
        ("classes.txt", "0 0 300 ground", "the colour 0 0 300"),
        ("classes.csv", "code,r\n0,1\n1,2\n", "none of the columns 'code', 'r' is called 'name'"),
        ("classes.json", "{", "not valid JSON"),
        ("classes.json", "[1, 2]", "1 is not a class name"),
        ("classes.json", '{"a": "b"}', "'a' is neither a whole number"),
    ],
)
def test_what_is_none(tmp_path: Path, file: str, text: str, got: str) -> None:
    (tmp_path / file).write_text(text)
    with pytest.raises(DataError, match=got):
        read_class_map(tmp_path / file)


def test_names_that_mean_no_class() -> None:
    palette = to_palette([(0, "Void"), (1, "sky"), (2, "unlabeled"), (3, "avoid")])
    assert palette.names == ("sky", "avoid")
    assert palette.ignored == (255, 0, 2)


def test_255_is_a_class_only_if_it_is_named() -> None:
    assert to_palette([(0, "ground"), (255, "leaf")]).ignored == ()
    assert to_palette([(0, "ground"), (255, "ignore")]).ignored == (255,)


def test_found_by_name() -> None:
    other_files = (
        "readme.txt",
        "labels/1.txt",
        "deep/classes.txt",
        "class_dict.csv",
        "labelmap.txt",
    )
    listing = Listing(root=Path("p"), other_files=other_files)
    assert find_class_map(listing) == ("class_dict.csv", "labelmap.txt", "deep/classes.txt")
