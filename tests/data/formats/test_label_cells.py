"""Labels in cells: lists, separators, indicators, missing labels; names of classes stay whole."""

import csv
import json
import sys

import pytest
from PIL import Image

from headstart.data.formats.label_cells import is_missing
from headstart.data.readers import read_dataset
from headstart.errors import DataError, UsageError

pd = pytest.importorskip("pandas")


def read(folder, cells, column="label", **options):
    """Read a table with one image for each cell."""
    for i in range(len(cells)):
        Image.new("RGB", (8, 8)).save(folder / f"{i}.png")
    with (folder / "t.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", column])
        writer.writerows([f"{i}.png", cell] for i, cell in enumerate(cells))
    return read_dataset(folder / "t.csv", **{"min_classes": 1, **options})


LISTS = [
    "['a', 'b']",
    '["a", "b"]',
    "('a', 'b')",
    "{'a', 'b'}",
    "['a' 'b']",
    "['a'\n 'b']",
    '["a","b"]',
    "{a,b}",
    "[a, b]",
    "['b', 'a', 'a']",
    "['a', 'b', None]",
    "a|b",
    "a;b",
    "a | b",
]


@pytest.mark.parametrize("cell", LISTS)
def test_lists_are_several_labels(tmp_path, cell):
    other = {"|": "b|", ";": "b;"}.get(next((s for s in "|;" if s in cell), ""), "['b']")
    data = read(tmp_path, [cell, other, cell])
    assert (data.kind, data.classes) == ("multilabel", ("a", "b"))
    assert [sample.target for sample in data.samples] == [("a", "b"), ("b",), ("a", "b")]


def test_lists_of_numbers_are_names(tmp_path):
    data = read(tmp_path, ["[16, 0]", "[7]", "[]", "[0 7]"])
    assert [sample.target for sample in data.samples] == [("0", "16"), ("7",), (), ("0", "7")]


ASKED = [
    ("label", ["a,b", "b", "a"], ","),
    ("labels", ["a,b", "c"], ","),
    ("tags", ["haze primary", "primary"], " "),
    ("Target", ["16 0", "7 1 2", "3"], " "),
    ("Target", ["16,0", "7,1,2", "3"], ","),
    ("label", ["a, b", "b, c", "a, c"], ","),
    ("label", ["rust/scab", "scab", "rust"], "/"),
    ("label", ["rust+scab", "scab", "rust"], "+"),
    ("label", ["rust & scab", "scab", "rust"], "&"),
    ("label", ["red", "blue", "red blue"], " "),
    ("tags", ["clear primary", "clear primary water", "haze primary", "haze water"], " "),
]


@pytest.mark.parametrize(("column", "cells", "separator"), ASKED)
def test_combinations_of_labels_are_never_classes(tmp_path, column, cells, separator):
    with pytest.raises(DataError, match=r"look like several labels") as caught:
        read(tmp_path, cells, column)
    assert f'--label-separator "{separator}"' in str(caught.value)
    data = read(tmp_path, cells, column, label_separator=separator)
    expected = [{part.strip() for part in cell.split(separator)} for cell in cells]
    assert [set(sample.target) for sample in data.samples] == expected
    whole = read(tmp_path, cells, column, label_separator="none")
    assert (whole.kind, set(whole.classes)) == ("multiclass", set(cells))


WHOLE_NAMES = [
    ["red fox", "kit fox"],
    ["apple rust", "apple healthy", "grape rust", "grape healthy"],
    ["Black footed Albatross", "Laysan Albatross", "Sooty Albatross"],
    ["cat", "wild cat"],
    ["tench, Tinca tinca", "goldfish, Carassius auratus", "crane"],
    ["Washington, D.C.", "New York"],
    ["AC/DC", "Queen"],
    ["C++", "C"],
    ["black & white", "colour"],
    ["(other)", "cat"],
    ["[unknown]", "cat"],
    ["none", "crack"],
    ["apple___scab", "apple___rust"],
    ["0", "1", "10"],
    ["-1", "1"],
    ["null_background", "nano"],
]


@pytest.mark.parametrize("cells", WHOLE_NAMES)
def test_names_with_signs_stay_one_class(tmp_path, cells):
    data = read(tmp_path, cells)
    assert (data.kind, set(data.classes)) == ("multiclass", set(cells))


MISSING = ["nan", "NaN", "None", "null", "NULL", "NA", "N/A", "n/a", "<NA>", "#N/A", "", "  "]


@pytest.mark.parametrize("word", MISSING)
def test_missing_labels_are_no_class(tmp_path, word):
    """The words are those that pandas reads as missing."""
    with pytest.raises(DataError, match=r"1 of 3 rows \(lines 2\)"):
        read(tmp_path, [word, "a", "b"])
    data = read(tmp_path, [word, "a|b", "b"])
    assert [sample.target for sample in data.samples] == [(), ("a", "b"), ("b",)]
    assert is_missing(word)
    (tmp_path / "w.csv").write_text(f'x,y\n1,"{word.strip()}"\n')
    assert pd.read_csv(tmp_path / "w.csv").y.isna().all()


def test_missing_groups_are_no_group(tmp_path):
    for i in range(4):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{i}.png")
    rows = "".join(f"{i}.png,{'ab'[i % 2]},{p}\n" for i, p in enumerate(["nan", "NaN", "p", "p"]))
    (tmp_path / "t.csv").write_text(f"image,label,patient\n{rows}")
    groups = [sample.group for sample in read_dataset(tmp_path / "t.csv").samples]
    assert groups == [None, None, "p", "p"]


PARQUET = [
    ([[1, 0, 1], [0, 1, 0], [1, 1, 1]], [("0", "2"), ("1",), ("0", "1", "2")]),
    ([[1, 0, 0], [0, 1, 0], [0, 0, 1]], ["0", "1", "2"]),
    ([["a", "b"], ["b"], []], [("a", "b"), ("b",), ()]),
    ([[16, 0], [7], [0]], [("0", "16"), ("7",), ("0",)]),
    (
        [[True, False, True], [False, True, True], [True] * 3],
        [("0", "2"), ("1", "2"), ("0", "1", "2")],
    ),
]


@pytest.mark.parametrize(("cells", "expected"), PARQUET)
@pytest.mark.parametrize("form", ["parquet", "json text"])
def test_indicators_are_one_value_for_each_class(tmp_path, cells, expected, form):
    if form == "json text":
        data = read(tmp_path, [json.dumps(cell) for cell in cells])
    else:
        pa = pytest.importorskip("pyarrow")
        import pyarrow.parquet as pq

        read(tmp_path, ["a", "b", "c"])
        table = pa.table({"image": ["0.png", "1.png", "2.png"], "label": cells})
        pq.write_table(table, tmp_path / "t.parquet")
        data = read_dataset(tmp_path / "t.parquet")
    assert [sample.target for sample in data.samples] == expected


@pytest.mark.parametrize(
    "cells",
    [
        ["[1, 0]", "[0, 1]"],
        ["['a', 'b']", "b"],
        ["['a', 'b']", "[unclosed"],
    ],
)
def test_ambiguous_lists_are_refused(tmp_path, cells):
    with pytest.raises(DataError, match=r"ambiguous|labels of one form"):
        read(tmp_path, cells)


def test_a_separator_that_no_cell_has_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"Expected ',' between the labels.*--label-separator"):
        read(tmp_path, ["a", "b"], label_separator=",")


def test_flags_that_name_columns_need_a_table(tmp_path):
    for name in ("a/1.png", "b/1.png"):
        (tmp_path / name).parent.mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    with pytest.raises(UsageError, match=r"label_separator=','"):
        read_dataset(tmp_path, label_separator=",")


def test_the_command_line_has_the_flags_of_its_advice(tmp_path, capsys):
    from headstart.cli import app as cli

    def run(*arguments):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["headstart", "data", "check", str(tmp_path), *arguments])
            with pytest.raises(SystemExit):
                cli.main()
        return capsys.readouterr()

    read(tmp_path, ["a", "b", "a"])
    (tmp_path / "t.csv").write_text('shot,kind\n0.png,"a,b"\n1.png,b\n2.png,a\n')
    assert "--image-column NAME" in " ".join(run("--no-cache").err.split())
    given = ("--image-column", "shot", "--label-column", "kind", "--label-separator", ",")
    output = run("--no-cache", "--json", *given)
    assert json.loads(output.out)["classes"] == {"a": 2, "b": 2}
