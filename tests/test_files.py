"""No name leads a file out of the output folder, and no write leaves half a file."""

import csv
import io
import os
import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from headstart.data.dataset import Boxes, Dataset, Mask, Palette, Sample
from headstart.errors import UsageError
from headstart.evaluation.explain import Explanation
from headstart.files import csv_text, file_stems, hold_lock, output_path, safe_part, write_whole
from headstart.models.inference import Detections, Segmentation
from headstart.models.prediction_files import FORMATS, write_predictions
from headstart.models.transfer_model import Prediction
from headstart.reports.explanations import write_explanations
from headstart.workflows.convert import convert_data
from headstart.workflows.run_folder import slug
from headstart.workflows.view import view_data

BAD = [
    "<..",
    "..",
    "a/<../<../<../victim.png",
    ">..<",
    "x/..|/..?/victim.png",
    "<../victim.png",
    "...",
    ".",
    "",
    "a" * 255 + ".png",
    "ä" * 127 + ".png",
    "7" * 5000,
    "/".join(["deep" * 20] * 60) + "/1.png",
    "not-utf8-\udcff.png",
    "line\nbreak.png",
    "esc\x1b]0;owned\x07.png",
    "<img src=x onerror=alert(1)>.png",
    "back\\..\\..\\victim.png",
    "nul\0byte.png",
    "CON.png",
    "aux",
    "=cmd|' /C calc'!A0.png",
    ".hidden.png",
    "trailing. ",
    "日本🍕.png",
    "D:\\photos\\victim.png",
    "~/victim.png",
    "$HOME/victim.png",
    "-rf.png",
]


def tree(folder):
    return {
        path.relative_to(folder): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


def assert_safe(name, *, top=True):
    assert name not in {"", ".", ".."}
    assert len(name.encode()) <= 255
    assert not any(unicodedata.category(c) in {"Cc", "Cs"} or c in '<>:"|?*\\' for c in name)
    assert "/" not in name if top else True


@given(st.text() | st.sampled_from(BAD))
@settings(max_examples=300, deadline=None)
def test_a_cleaned_part_is_one_file_name(part):
    cleaned = safe_part(part)
    assert_safe(cleaned)
    assert safe_part(cleaned) == cleaned


@given(st.lists(st.text(max_size=30) | st.sampled_from(BAD), min_size=1, max_size=6))
@settings(max_examples=200, deadline=None)
def test_stems_are_safe_and_differ(names):
    stems = file_stems(names)
    assert len({stem.casefold() for stem in stems}) == len(names)
    for stem in stems:
        for part in stem.split("/"):
            assert_safe(part)
        assert len(stem.encode()) <= 1100


@pytest.mark.parametrize("names", [["/"], ["/", "/"], ["//", "a"], [""], ["", "."]])
def test_names_without_a_last_part_get_one(names):
    stems = file_stems(names)
    assert len(set(stems)) == len(names)
    for part in "/".join(stems).split("/"):
        assert_safe(part)


def test_ordinary_names_stay_as_they_are():
    names = ["a/leaf 1.jpg", "a/b/größe-2.png", "a/b/it's (3).tif"]
    assert file_stems(names) == ("leaf 1", "b/größe-2", "b/it's (3)")


def test_a_folder_is_not_in_the_way_of_a_file():
    stems = file_stems(["a/1.png/2.jpg", "a/1.jpg", "a/1.TXT/3.jpg"])
    assert {f"{stem}.png" for stem in stems} == {"1_png/2.png", "1.png", "1_TXT/3.png"}


def prediction(task, name):
    if task == "detection":
        return Detections(
            name=name,
            size=(8, 8),
            boxes=np.array([[1, 1, 5, 5]], np.float32),
            scores=np.array([0.9], np.float32),
            labels=np.array([0]),
        )
    if task == "segmentation":
        return Segmentation(name=name, mask=np.zeros((8, 8), np.uint8))
    return Prediction(name=name, label="a", probability=0.9, probabilities={"a": 0.9, "b": 0.1})


def png():
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, format="PNG")
    return file.getvalue()


FILE_FORMATS = [(task, f) for task, formats in FORMATS.items() for f in formats if f != "table"]


@pytest.mark.parametrize(("task", "output_format"), FILE_FORMATS)
def test_no_prediction_leaves_the_output_folder(task, output_format, tmp_path):
    """Every bad name beside the others, then alone: alone the common folder is its own parent."""
    outside = tmp_path / "outside"
    (outside / "run").mkdir(parents=True)
    for victim in ("victim.png", "victim.txt", "run/victim.png", "model.json"):
        (outside / victim).write_text("the user's file")
    before = tree(outside)
    classes = ("<..", "new\nline \udcff")
    groups = [BAD, *([name] for name in BAD)]
    for number, names in enumerate(groups):
        pairs = [(Sample(image=png()), prediction(task, name)) for name in names]
        out = outside / "run" / f"out{number}"
        written = write_predictions(out, output_format, pairs, classes)
        files = [path for path in written.rglob("*") if path.is_file()]
        assert files
        new = {path for path in tree(outside) if not path.is_relative_to(f"run/out{number}")}
        assert new == set(before)
        for path in written.rglob("*"):
            assert_safe(path.name)
        shutil.rmtree(out)
    assert tree(outside) == before


def test_no_heat_map_leaves_the_output_folder(tmp_path):
    (tmp_path / "victim.png").write_text("the user's file")
    pairs = [
        (
            Sample(image=png()),
            Explanation(
                name=name,
                label="a",
                probability=0.9,
                prediction="a",
                method="occlusion",
                heat=np.zeros((2, 2)),
                part=(0.0, 0.0, 1.0, 1.0),
            ),
        )
        for name in BAD
    ]
    rows = write_explanations(tmp_path / "out", pairs, title="<b>", unreadable=BAD)
    assert len(rows) == len(BAD)
    for row in rows:
        assert (tmp_path / "out" / row["file"]).is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "victim.png"]
    page = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert "<img src=x" not in page


def data_of(task, titles, classes):
    """A data set in memory: image i has the title and the class of number i."""
    targets = list(classes)
    if task == "detection":
        corner, whole = ((1.0, 2.0, 7.0, 7.0),), {"hard": (False,), "size": (8, 8)}
        targets = [Boxes(corners=corner, labels=(name,), **whole) for name in classes]
    if task == "segmentation":
        palette = Palette(codes=tuple(enumerate(classes)))
        codes = range(len(classes))
        targets = [Mask(source=np.full((8, 8), code, np.uint8), palette=palette) for code in codes]
    images = np.random.default_rng(0).integers(0, 256, (len(titles), 8, 8, 3), dtype=np.uint8)
    samples = [
        Sample(image=image, title=title, target=target)
        for image, title, target in zip(images, titles, targets, strict=True)
    ]
    kind = "multiclass" if task == "classification" else task
    return Dataset(samples=tuple(samples), classes=classes, kind=kind)


GOOD = tuple(f"n{number}" for number in range(len(BAD)))
BAD_CLASSES = tuple(name or "no name" for name in BAD)
WRITTEN = [
    ("classification", "folders"),
    ("classification", "parquet"),
    ("detection", "coco"),
    ("detection", "yolo"),
    ("segmentation", "coco"),
    ("segmentation", "folders"),
]


@pytest.mark.parametrize(("task", "to"), [*WRITTEN, *((task, "page") for task in FORMATS)])
@pytest.mark.parametrize(("titles", "classes"), [(BAD, GOOD), (GOOD, BAD_CLASSES)])
def test_no_data_set_leaves_the_output_folder(task, to, titles, classes, tmp_path):
    outside = tmp_path / "outside"
    (outside / "run").mkdir(parents=True)
    for victim in ("victim.png", "victim.txt", "run/victim.png", "data.yaml"):
        (outside / victim).write_text("the user's file")
    before, data = tree(outside), data_of(task, titles, classes)
    out = outside / "run" / ("out.html" if to == "page" else "out")
    if to == "page":
        view_data(data, out, no_cache=True, progress=False)
        page = out.read_text(encoding="utf-8")
        assert "<img src=x" not in page
        assert "\x1b" not in page
    else:
        convert_data(data, out, to=to, progress=False)
        for path in out.rglob("*"):
            assert_safe(path.name)
    written = tree(outside)
    assert {path for path in written if path.parts[:2] != ("run", out.name)} == set(before)
    assert {path: written[path] for path in before} == before


@pytest.mark.parametrize("name", [name for name in BAD if "\0" not in name and len(name) < 4000])
def test_the_folder_of_a_run_has_a_safe_name(name):
    assert_safe(slug(name))


@pytest.mark.parametrize("bad", ["..", "../a", "a/../../b", "/etc/passwd", "", "a/.."])
def test_a_path_that_leads_out_is_refused(bad, tmp_path):
    with pytest.raises(UsageError, match="leads out of"):
        output_path(tmp_path, bad)


def test_a_link_that_leads_out_is_refused(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "link").symlink_to(tmp_path)
    with pytest.raises(UsageError, match="leads out of"):
        output_path(tmp_path / "out", "link/victim.png")


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_whole(path, "old")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_whole(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("first", ["=", "+", "-", "@", "\t"])
def test_a_cell_is_never_a_formula(first):
    text = csv_text(["image", "x"], [(f"{first}SUM(A1).png", 1)])
    assert next(iter(list(csv.reader(io.StringIO(text)))[1])) == f"'{first}SUM(A1).png"


def test_a_line_break_in_a_name_does_not_break_the_table():
    rows = list(csv.reader(io.StringIO(csv_text(["image"], [("a\rb",), ("a\nb",)]))))
    assert rows == [["image"], ["a\\rb"], ["a\nb"]]


@pytest.mark.parametrize("number", ["-0.5", "+1", "-1e-3", "-inf", "nan", "0.25"])
def test_a_number_stays_a_number(number):
    assert csv_text(["x"], [(number,), (float(number),)]).splitlines()[1] == number


def test_a_folder_that_disappears_while_it_is_made_is_made_again(tmp_path, monkeypatch):
    """Two processes: one removes its empty folder while the other's mkdir looks at it."""
    real, removals = Path.is_dir, []

    def removed(self, **options):
        if self.name == "run.partial" and not removals:
            removals.append(self)
            self.rmdir()
        return real(self, **options)

    (tmp_path / "run.partial").mkdir()
    monkeypatch.setattr(Path, "is_dir", removed)
    with hold_lock(tmp_path / "run.partial" / "in-use"):
        assert (tmp_path / "run.partial" / "in-use").is_file()
    assert removals


def test_a_file_where_the_folder_of_a_lock_belongs_is_an_error(tmp_path):
    (tmp_path / "run.partial").write_text("mine")
    with (
        pytest.raises((FileExistsError, NotADirectoryError)),
        hold_lock(tmp_path / "run.partial" / "in-use"),
    ):
        pass
    assert (tmp_path / "run.partial").read_text() == "mine"
