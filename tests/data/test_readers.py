import os
import random
import shutil
import sys
import unicodedata
from pathlib import Path

import pytest

from headstart.data.dataset import Dataset
from headstart.data.readers import list_images, read_dataset
from headstart.errors import (
    DataError,
    LayoutError,
    LeakError,
    MissingExtraError,
    UnknownNameError,
    UsageError,
)


def make(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        if name.endswith("/"):
            path.mkdir(parents=True, exist_ok=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    return root


def table(root: Path, text: str, name: str = "labels.csv", encoding: str = "utf-8") -> Path:
    root.mkdir(exist_ok=True)
    (root / name).write_bytes(text.encode(encoding))
    return root / name


def note(data: Dataset, word: str) -> str:
    notes = [text for text in data.notes if word in text]
    assert len(notes) == 1, data.notes
    return notes[0]


def relative(data: Dataset, root: Path) -> list[str]:
    return [Path(s.image).relative_to(root).as_posix() for s in data.samples]


class TestClassFolders:
    def test_labels_order_and_notes(self, tmp_path: Path) -> None:
        make(tmp_path, "dog/2.JPG", "dog/1.png", "cat/deep/er/3.TIFF", "cat/.hidden.jpg")
        make(tmp_path, "cat/Thumbs.db", "__MACOSX/cat/1.jpg", ".git/x.png", "cat/._4.jpg")
        data = read_dataset(str(tmp_path))
        assert relative(data, tmp_path) == ["cat/deep/er/3.TIFF", "dog/1.png", "dog/2.JPG"]
        assert [s.target for s in data.samples] == ["cat", "dog", "dog"]
        assert data.classes == ("cat", "dog")
        assert {s.split for s in data.samples} == {None}
        assert data.kind == "multiclass"
        assert data.notes == (
            "class folders, no splits",
            "task: multiclass because each image has one label",
        )

    def test_classes_in_natural_order(self, tmp_path: Path) -> None:
        make(tmp_path, *(f"class{n}/a.jpg" for n in (10, 2, 1)))
        assert read_dataset(tmp_path).classes == ("class1", "class2", "class10")

    def test_a_class_missing_in_one_split_shifts_nothing(self, tmp_path: Path) -> None:
        make(tmp_path, "train/a/1.jpg", "train/b/1.jpg", "train/c/1.jpg")
        make(tmp_path, "valid/b/2.jpg", "testing/c/3.jpg", "testing/z/4.jpg")
        data = read_dataset(tmp_path)
        assert data.classes == ("a", "b", "c", "z")
        for sample in data.samples:
            assert sample.target == Path(sample.image).parent.name
        assert [s.split for s in data.samples] == ["test", "test", "train", "train", "train", "val"]
        assert "'a', 'c', 'z'" in note(data, "val has no images")
        assert "1 classes: 'z'" in note(data, "train has no images")
        assert "train/val/test" in note(data, "class folders")

    @pytest.mark.parametrize("names", [("train", "car", "bus"), ("test_tube", "train")])
    def test_a_class_may_be_called_train(self, tmp_path: Path, names: tuple[str, ...]) -> None:
        make(tmp_path, *(f"{name}/kind/1.jpg" for name in names))
        data = read_dataset(tmp_path)
        assert set(data.classes) == set(names)
        assert {s.split for s in data.samples} == {None}

    def test_empty_class_folder_stays(self, tmp_path: Path) -> None:
        make(tmp_path, "a/1.jpg", "b/", "c/1.jpg", "notes/read.txt")
        data = read_dataset(tmp_path)
        assert data.counts() == {"a": 1, "b": 0, "c": 1}
        assert "'b'" in note(data, "empty folder")

    def test_nothing_is_dropped_silently(self, tmp_path: Path) -> None:
        make(tmp_path, "a/1.jpg", "b/1.jpg", "b/readme.txt", "a/1.npy", "stray.png")
        data = read_dataset(tmp_path)
        assert note(data, "are not images") == (
            "2 files that are not images left out: 'a/1.npy', 'b/readme.txt'"
        )
        assert "'stray.png'" in note(data, "outside class folders")

    def test_images_of_wrong_content_are_left_to_the_checks(self, tmp_path: Path) -> None:
        make(tmp_path, "a/1.jpg", "b/1.jpg")
        (tmp_path / "a/1.jpg").write_text("no image")
        assert len(read_dataset(tmp_path)) == 2

    def test_order_does_not_depend_on_the_file_system(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        make(tmp_path, *(f"{c}/{n}.jpg" for c in "zma" for n in range(5)))
        first = read_dataset(tmp_path)
        real = os.scandir

        class Shuffled:
            def __init__(self, path: Path) -> None:
                self.path = path

            def __enter__(self) -> list[os.DirEntry[str]]:
                with real(self.path) as entries:
                    shuffled = list(entries)
                random.Random(3).shuffle(shuffled)
                return shuffled

            def __exit__(self, *_: object) -> None: ...

        monkeypatch.setattr(os, "scandir", Shuffled)
        assert read_dataset(tmp_path) == first
        assert relative(first, tmp_path) == sorted(relative(first, tmp_path))

    def test_case_collisions_are_noted(self, tmp_path: Path) -> None:
        make(tmp_path, "Cat/1.jpg", "cat/1.jpg")
        if len(list(tmp_path.iterdir())) < 2:
            pytest.skip("a file system that ignores case")
        data = read_dataset(tmp_path)
        assert len(data.classes) == 2
        assert "'Cat', 'cat'" in note(data, "only in upper and lower case")

    def test_composed_and_decomposed_names_are_one_class(self, tmp_path: Path) -> None:
        composed = "caf\u00e9"
        make(tmp_path, f"train/{composed}/1.jpg", "train/b/1.jpg")
        make(tmp_path, f"val/{unicodedata.normalize('NFD', composed)}/2.jpg")
        assert read_dataset(tmp_path).counts() == {"b": 1, composed: 2}

    @pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
    def test_links_are_followed_and_loops_are_not(self, tmp_path: Path) -> None:
        pool = make(tmp_path / "pool", "1.jpg", "2.jpg")
        root = make(tmp_path / "photos", "dog/1.jpg")
        (root / "cat").symlink_to(pool)
        for name in ("loop", "again"):
            (root / "dog" / name).symlink_to(root)
        data = read_dataset(root)
        assert data.counts() == {"cat": 2, "dog": 1}
        assert "2 links" in note(data, "not followed")

    def test_multilabel_on_request(self, tmp_path: Path) -> None:
        data = read_dataset(make(tmp_path, "a/1.jpg", "b/1.jpg"), task_kind="multilabel")
        assert data.targets().tolist() == [[1, 0], [0, 1]]

    def test_unlabelled_test_folder_is_left_out_with_a_note(self, tmp_path: Path) -> None:
        make(tmp_path, "train/a/1.jpg", "train/b/1.jpg", "test/1.jpg", "test/2.jpg")
        data = read_dataset(tmp_path)
        assert {s.split for s in data.samples} == {"train"}
        assert "2 images" in note(data, "outside class folders")
        everything = read_dataset(tmp_path, labels_required=False)
        assert [s.target for s in everything.split("test").samples] == [None, None]

    def test_single_class(self, tmp_path: Path) -> None:
        make(tmp_path, "cat/1.jpg", "dog/")
        with pytest.raises(DataError, match=r"Expected at least 2 classes.*got 1 \('cat'\)"):
            read_dataset(tmp_path)
        assert len(read_dataset(tmp_path, min_classes=1)) == 1

    def test_a_folder_too_high(self, tmp_path: Path) -> None:
        make(tmp_path, "photos/cat/1.jpg", "photos/dog/1.jpg")
        with pytest.raises(
            DataError, match=r"Did you mean '.*photos', which contains 'cat', 'dog'"
        ):
            read_dataset(tmp_path)

    def test_classes_that_hold_the_same_folders_are_refused(self, tmp_path: Path) -> None:
        make(tmp_path, *(f"{site}/{kind}/1.jpg" for site in "xy" for kind in ("cat", "dog")))
        with pytest.raises(LayoutError, match=r"'cat', 'dog'\. If .*--class-level 2"):
            read_dataset(tmp_path)

    def test_unreadable_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        make(tmp_path, "a/1.jpg")

        def refuse(path: Path) -> None:
            raise PermissionError(13, "Permission denied", str(path))

        monkeypatch.setattr(os, "scandir", refuse)
        with pytest.raises(DataError, match=r"read the folder .*Permission denied"):
            read_dataset(tmp_path)


class TestGroups:
    def test_regex_on_the_relative_path(self, tmp_path: Path) -> None:
        make(tmp_path, "a/patient_7_1.jpg", "a/patient_12_1.jpg", "b/patient_7_2.jpg", "b/x.jpg")
        data = read_dataset(tmp_path, group_by=r"patient_(\d+)")
        assert [s.group for s in data.samples] == ["12", "7", "7", None]
        assert "1 paths do not match" in note(data, "do not match")
        data = read_dataset(tmp_path, group_by=r"patient_\d+")
        assert data.samples[0].group == "patient_12"

    def test_no_match(self, tmp_path: Path) -> None:
        make(tmp_path, "a/1.jpg", "b/1.jpg")
        with pytest.raises(UsageError, match=r"such as 'a/1.jpg'.*'video_.*none of 2"):
            read_dataset(tmp_path, group_by=r"video_(\d+)")

    def test_damaged_regex(self, tmp_path: Path) -> None:
        make(tmp_path, "a/1.jpg", "b/1.jpg")
        with pytest.raises(UsageError, match="regular expression"):
            read_dataset(tmp_path, group_by="(")

    def test_column_before_regex(self, tmp_path: Path) -> None:
        make(tmp_path, "p1.jpg", "p2.jpg")
        path = table(tmp_path, "path,label,Scanner ID\np1.jpg,a,S\np2.jpg,b,T\n")
        by_column = read_dataset(path, group_by="scanner_id")
        assert [s.group for s in by_column.samples] == ["S", "T"]
        by_path = read_dataset(path, group_by=r"p\d")
        assert [s.group for s in by_path.samples] == ["p1", "p2"]


class TestManifests:
    @pytest.mark.parametrize("mark", [",", ";", "\t", "|"])
    @pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
    def test_delimiters_bom_and_quotes(self, tmp_path: Path, mark: str, encoding: str) -> None:
        make(tmp_path, "im/1.jpg", "im/a,b.jpg")
        text = mark.join(["File Name", "CLASS"]) + f'\nim/1.jpg{mark}cat\n\n"im/a,b.jpg"{mark}dög\n'
        data = read_dataset(table(tmp_path, text, encoding=encoding))
        assert relative(data, tmp_path) == ["im/1.jpg", "im/a,b.jpg"]
        assert [s.target for s in data.samples] == ["cat", "dög"]

    @pytest.mark.parametrize("image", ["path", "image", "file", "filename", "filepath"])
    @pytest.mark.parametrize("label", ["label", "class", "target", "category"])
    @pytest.mark.parametrize("group", ["group", "patient", "patient_id"])
    def test_usual_names(self, tmp_path: Path, image: str, label: str, group: str) -> None:
        make(tmp_path, "1.jpg", "2.jpg")
        data = read_dataset(table(tmp_path, f"{group},{label},{image}\n7,b,1.jpg\n8,a,2.jpg\n"))
        assert [(s.target, s.group) for s in data.samples] == [("b", "7"), ("a", "8")]
        assert data.classes == ("a", "b")

    def test_given_names(self, tmp_path: Path) -> None:
        make(tmp_path, "1.jpg", "2.jpg")
        path = table(tmp_path, "where,what,label\n1.jpg,x,0\n2.jpg,y,0\n")
        data = read_dataset(path, image_column="where", label_column="what")
        assert data.classes == ("x", "y")
        with pytest.raises(UnknownNameError, match=r"label_column.*Did you mean 'what'"):
            read_dataset(path, image_column="where", label_column="whta")
        with pytest.raises(LayoutError, match="column of paths"):
            read_dataset(path)

    def test_splits_are_normalised(self, tmp_path: Path) -> None:
        words = ["Train", "training", "valid", "validation", "DEV", "val", "test", "testing"]
        make(tmp_path, *(f"{word}.jpg" for word in words))
        rows = "".join(f"{w}.jpg,{'ab'[i % 2]},{w}\n" for i, w in enumerate(words))
        data = read_dataset(table(tmp_path, "path,label,split\n" + rows))
        assert [s.split for s in data.samples] == ["train"] * 2 + ["val"] * 4 + ["test"] * 2

    def test_unknown_split(self, tmp_path: Path) -> None:
        make(tmp_path, "1.jpg", "2.jpg")
        path = table(tmp_path, "path,label,split\n1.jpg,a,train\n2.jpg,b,tets\n")
        with pytest.raises(DataError, match=r"'tets' in 1 rows\. Did you mean 'test'"):
            read_dataset(path)

    def test_windows_and_absolute_paths(self, tmp_path: Path) -> None:
        make(tmp_path / "set", "im/1.jpg")
        other = make(tmp_path, "elsewhere/2.jpg") / "elsewhere/2.jpg"
        path = table(tmp_path / "set", f"path,label\nim\\1.jpg,a\n{other},b\n")
        data = read_dataset(path)
        assert [s.image for s in data.samples] == [tmp_path / "set/im/1.jpg", other]

    def test_missing_files_in_one_error(self, tmp_path: Path) -> None:
        make(tmp_path, "im/0.jpg", "in/0.jpg", "1.jpg")
        rows = "".join(f"{n}.jpg,a\n" for n in range(10))
        with pytest.raises(DataError) as error:
            read_dataset(table(tmp_path, "path,label\n" + rows))
        assert "9 of the 10 images" in str(error.value)
        assert "'0.jpg', '2.jpg', '3.jpg', '4.jpg', '5.jpg' and 4 more" in str(error.value)
        assert "'0.jpg' exists in 'im/'" in str(error.value)

    def test_empty_labels(self, tmp_path: Path) -> None:
        make(tmp_path, "1.jpg", "2.jpg", "3.jpg")
        path = table(tmp_path, "path,label\n1.jpg,a\n2.jpg,\n3.jpg,  \n")
        with pytest.raises(DataError, match=r"in 2 of 3 rows \(lines 3, 4\)"):
            read_dataset(path)
        data = read_dataset(path, labels_required=False)
        assert [s.target for s in data.samples] == ["a", None, None]

    def test_no_label_column(self, tmp_path: Path) -> None:
        make(tmp_path, "1.jpg")
        path = table(tmp_path, "path\n1.jpg\n")
        with pytest.raises(LayoutError, match=r"column of labels.*got the columns 'path'"):
            read_dataset(path)
        assert read_dataset(path, labels_required=False).samples[0].target is None

    @pytest.mark.parametrize("mark", ["|", ";"])
    def test_multilabel(self, tmp_path: Path, mark: str) -> None:
        make(tmp_path, "1.jpg", "2.jpg", "3.jpg")
        rows = f"path,labels\n1.jpg,sun{mark} sea\n2.jpg,sea\n3.jpg,\n"
        data = read_dataset(table(tmp_path, rows))
        assert data.kind == "multilabel"
        assert [s.target for s in data.samples] == [("sea", "sun"), ("sea",), ()]
        assert "because 1 of 3" in note(data, "task:")
        assert "none of the classes" in note(data, "1 images have no label")

    def test_forced_multiclass_does_not_cut_labels(self, tmp_path: Path) -> None:
        make(tmp_path, "1.jpg", "2.jpg")
        path = table(tmp_path, "path,label\n1.jpg,a;b\n2.jpg,c\n")
        assert read_dataset(path, task_kind="multiclass").classes == ("a;b", "c")

    def test_repeated_rows(self, tmp_path: Path) -> None:
        make(tmp_path, "1.jpg", "2.jpg")
        data = read_dataset(table(tmp_path, "path,label\n1.jpg,a\n./1.jpg,a\n2.jpg,b\n"))
        assert len(data) == 2
        assert note(data, "repeated").startswith("1 repeated")

    @pytest.mark.parametrize(
        ("rows", "kind", "message"),
        [
            ("path,label\n1.jpg,a\n2.jpg,b\n1.jpg,b\n", DataError, "one label.*1 rows.*: '1.jpg'"),
            (
                "path,label,group\n1.jpg,a,p\n2.jpg,b,q\n1.jpg,a,q\n",
                DataError,
                "group and weight per image",
            ),
            ("path,label,split\n1.jpg,a,train\n2.jpg,b,test\n1.jpg,a,test\n", LeakError, "one sp"),
            ("path,label\n1.jpg,a\n2.jpg,b,c\n", DataError, r"another number in 1 rows \(lines 3"),
            ("path,path\n1.jpg,a\n", LayoutError, "column name once.*'path' several"),
            ("path,label\n", DataError, "only a header"),
            ("", LayoutError, "empty file"),
            ("path,label\n,a\n2.jpg,b\n", DataError, r"a path in column 'path'.*lines 2"),
            ("path,label\n1.jpg,a\n2.jpg,a\n", DataError, "Expected at least 2 classes"),
        ],
    )
    def test_contradictions(
        self, tmp_path: Path, rows: str, kind: type[DataError], message: str
    ) -> None:
        make(tmp_path, "1.jpg", "2.jpg")
        with pytest.raises(kind, match=message):
            read_dataset(table(tmp_path, rows))

    def test_repeated_multilabel_rows_are_united(self, tmp_path: Path) -> None:
        make(tmp_path, "1.jpg", "2.jpg")
        path = table(tmp_path, "path,label\n1.jpg,a\n2.jpg,b\n1.jpg,b\n")
        data = read_dataset(path, task_kind="multilabel")
        assert [s.target for s in data.samples] == [("a", "b"), ("b",)]

    def test_not_utf8(self, tmp_path: Path) -> None:
        make(tmp_path, "1.jpg")
        with pytest.raises(LayoutError, match="UTF-8"):
            read_dataset(table(tmp_path, "path,label\n1.jpg,dög\n", encoding="latin-1"))

    def test_folder_with_one_manifest(self, tmp_path: Path) -> None:
        make(tmp_path, "images/1.jpg", "images/2.jpg")
        table(tmp_path, "path,label\nimages/1.jpg,a\nimages/2.jpg,b\n")
        data = read_dataset(tmp_path)
        assert data.classes == ("a", "b")
        assert "labels.csv" in note(data, "manifest")

    def test_folder_with_two_manifests(self, tmp_path: Path) -> None:
        make(tmp_path, "1.jpg")
        table(tmp_path, "path,label\n1.jpg,a\n", "x.csv")
        table(tmp_path, "path\tlabel\n1.jpg\tb\n", "y.tsv")
        with pytest.raises(LayoutError, match=r"one manifest.*'x.csv', 'y.tsv'"):
            read_dataset(tmp_path)

    def test_other_tables_beside_class_folders(self, tmp_path: Path) -> None:
        make(tmp_path, "a/1.jpg", "b/1.jpg")
        table(tmp_path, "when,who\n1,2\n", "log.csv")
        data = read_dataset(tmp_path)
        assert data.classes == ("a", "b")
        assert "no columns for paths and labels" in note(data, "log.csv' not read")

    def test_parquet(self, tmp_path: Path) -> None:
        pa = pytest.importorskip("pyarrow")
        import pyarrow.parquet as pq

        make(tmp_path, "1.jpg", "2.jpg", "3.jpg")
        paths = ["1.jpg", "2.jpg", "3.jpg"]

        def read(labels: list[object]) -> Dataset:
            columns = {"image": paths, "label": labels, "bytes": [b"x"] * 3, "fold": [0, 1, 2]}
            pq.write_table(pa.table(columns), tmp_path / "set.parquet")
            return read_dataset(tmp_path / "set.parquet")

        assert [s.target for s in read(["x", "y", "x"]).samples] == ["x", "y", "x"]
        assert [s.target for s in read([2, 10, 2]).samples] == ["2", "10", "2"]
        assert read([2.0, 10.0, 2.0]).classes == ("2", "10")
        many = read([["x"], [], ["y", "x"]])
        assert [s.target for s in many.samples] == [("x",), (), ("x", "y")]
        with pytest.raises(DataError, match="one label"):
            read(["x", None, "y"])
        (tmp_path / "set.parquet").write_bytes(b"no parquet")
        with pytest.raises(LayoutError, match="Parquet"):
            read_dataset(tmp_path / "set.parquet")

    def test_parquet_without_pyarrow(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "pyarrow", None)
        (tmp_path / "set.parquet").touch()
        with pytest.raises(MissingExtraError, match=r"headstart\[data\]"):
            read_dataset(tmp_path / "set.parquet")

    def test_a_missing_null_list_is_no_label(self, tmp_path: Path) -> None:
        pa = pytest.importorskip("pyarrow")
        import pyarrow.parquet as pq

        make(tmp_path, "1.jpg", "2.jpg")
        columns = {"image": ["1.jpg", "2.jpg"], "label": [["a", "b"], None]}
        pq.write_table(pa.table(columns), tmp_path / "set.parquet")
        with pytest.raises(DataError, match="one label"):
            read_dataset(tmp_path / "set.parquet")


class TestRefusals:
    def test_images_without_classes(self, tmp_path: Path) -> None:
        make(tmp_path, "1.jpg", "2.jpg")
        with pytest.raises(LayoutError) as error:
            read_dataset(tmp_path)
        text = str(error.value)
        assert "images without class folders" in text
        assert "photos/train/cat/1.jpg" in text
        assert "path,label" in text
        assert "2 .jpg" in text
        assert "'1.jpg', '2.jpg'" in text
        assert len(read_dataset(tmp_path, labels_required=False)) == 2

    @pytest.mark.parametrize("others", [(), ("trainnotes/1.jpg", "testnotes/2.jpg")])
    def test_splits_without_classes(self, tmp_path: Path, others: tuple[str, ...]) -> None:
        make(tmp_path, "train/1.jpg", "test/2.jpg", *others)
        with pytest.raises(LayoutError, match="folders that are not class folders"):
            read_dataset(tmp_path)

    @pytest.mark.parametrize("names", [(), ("a/b/c.txt",), ("empty/",)])
    def test_no_images(self, tmp_path: Path, names: tuple[str, ...]) -> None:
        with pytest.raises(LayoutError, match="no images"):
            read_dataset(make(tmp_path, *names))

    def test_nothing_there(self, tmp_path: Path) -> None:
        make(tmp_path, "photos/a/1.jpg")
        with pytest.raises(LayoutError, match=r"fotos' does not exist\. Did you mean '.*photos'\?"):
            read_dataset(tmp_path / "fotos")
        with pytest.raises(LayoutError, match=r"Did you mean '.*photos'\?"):
            read_dataset(tmp_path / "phots" / "train")

    @pytest.mark.parametrize(
        ("name", "word"),
        [("x.zip", "Unpack it"), ("cat.jpg", "Pass the folder"), ("model.onnx", "Pass the folder")],
    )
    def test_wrong_files(self, tmp_path: Path, name: str, word: str) -> None:
        make(tmp_path, name)
        with pytest.raises(LayoutError, match=word):
            read_dataset(tmp_path / name)

    def test_columns_without_manifest(self, tmp_path: Path) -> None:
        make(tmp_path, "a/1.jpg", "b/1.jpg")
        with pytest.raises(UsageError, match="without one"):
            read_dataset(tmp_path, label_column="species")

    @pytest.mark.parametrize(
        ("names", "file", "text", "word"),
        [
            (
                ("train/1.jpg", "val/2.jpg"),
                "annotations/all.json",
                '{"images": [{"file_name": "1.jpg"}], "annotations": [{"image_id": 1}]}',
                "COCO",
            ),
            (
                ("JPEGImages/1.jpg", "SegmentationClass/1.png"),
                "Annotations/1.xml",
                "<annotation><object/></annotation>",
                "VOC",
            ),
            (
                ("images/train/1.jpg", "images/val/2.jpg"),
                "labels/train/1.txt",
                "0 0.5 0.5 0.2 0.3\n1 0.1 0.1 0.1 0.1\n",
                "YOLO",
            ),
        ],
    )
    def test_other_tasks_are_named(
        self, tmp_path: Path, names: tuple[str, ...], file: str, text: str, word: str
    ) -> None:
        make(tmp_path, *names, file)
        (tmp_path / file).write_text(text)
        with pytest.raises(LayoutError, match=rf"{word}.*Remove --task"):
            read_dataset(tmp_path, task_kind="multiclass")

    def test_masks_beside_images(self, tmp_path: Path) -> None:
        from PIL import Image

        (tmp_path / "meta.csv").write_text("name,r\na,1\nb,2\n")
        for folder in ("images", "masks"):
            (tmp_path / folder).mkdir()
            for i in (1, 2):
                Image.linear_gradient("L").point(lambda v: v // 128).save(
                    tmp_path / folder / f"patient{i}_1.png"
                )
        data = read_dataset(tmp_path, group_by=r"patient\d")
        assert (data.kind, data.classes, len(data)) == ("segmentation", ("0", "1"), 2)
        assert [sample.group for sample in data.samples] == ["patient1", "patient2"]
        assert read_dataset(tmp_path, task_kind="segmentation").classes == data.classes
        with pytest.raises(LayoutError, match="segmentation data"):
            read_dataset(tmp_path, task_kind="multiclass")

    def test_voc_has_boxes_and_masks(self, tmp_path: Path) -> None:
        from PIL import Image

        for folder in ("JPEGImages", "SegmentationClass", "Annotations", "ImageSets/Segmentation"):
            (tmp_path / folder).mkdir(parents=True)
        for stem in ("1", "2", "3"):
            Image.new("RGB", (8, 8)).save(tmp_path / f"JPEGImages/{stem}.jpg")
            (tmp_path / f"Annotations/{stem}.xml").write_text(
                "<annotation><object><name>car</name><bndbox><xmin>1</xmin><ymin>1</ymin>"
                "<xmax>4</xmax><ymax>4</ymax></bndbox></object></annotation>"
            )
        for stem, split in (("1", "train"), ("2", "val")):
            mask = Image.linear_gradient("L").resize((8, 8)).point(lambda v: v // 128)
            mask.save(tmp_path / f"SegmentationClass/{stem}.png")
            (tmp_path / f"ImageSets/Segmentation/{split}.txt").write_text(f"{stem}\n")
        data = read_dataset(tmp_path)
        assert (data.kind, len(data)) == ("detection", 3)
        assert any("pass --task segmentation" in note for note in data.notes)
        data = read_dataset(tmp_path, task_kind="segmentation")
        assert (data.kind, data.classes) == ("segmentation", ("0", "1"))
        assert [sample.split for sample in data.samples] == ["train", "val"]

    def test_masks_that_are_asked_for_and_not_there(self, tmp_path: Path) -> None:
        make(tmp_path, "a/1.jpg", "b/1.jpg")
        with pytest.raises(LayoutError, match=r"masks of the same names.*images/1\.jpg"):
            read_dataset(tmp_path, task_kind="segmentation")

    def test_other_json_and_text_files_do_no_harm(self, tmp_path: Path) -> None:
        make(tmp_path, "a/1.jpg", "a/1.txt", "b/1.jpg")
        (tmp_path / "a/1.txt").write_text("a cat on a mat")
        (tmp_path / "meta.json").write_text('{"images": 2, "annotations": "by hand"}')
        assert len(read_dataset(tmp_path)) == 2


class TestDemo:
    def test_by_name(self) -> None:
        assert len(read_dataset("demo:shapes").classes) == 3

    def test_wrong_name(self) -> None:
        with pytest.raises(UnknownNameError, match="Did you mean 'digits'"):
            read_dataset("demo:digit")

    def test_brings_its_own_groups(self) -> None:
        with pytest.raises(UsageError, match=r"group_by='x'.*Remove these arguments"):
            read_dataset("demo:digits", group_by="x")


class TestListImages:
    def test_files_and_folders(self, tmp_path: Path) -> None:
        make(tmp_path, "f/b.jpg", "f/deep/a.PNG", "f/note.txt", "z.jpg", "raw")
        images = list_images([tmp_path / "z.jpg", str(tmp_path / "f"), tmp_path / "raw"])
        names = ["z.jpg", "f/b.jpg", "f/deep/a.PNG", "raw"]
        assert images == tuple(tmp_path / name for name in names)
        assert list_images(tmp_path / "z.jpg") == (tmp_path / "z.jpg",)
        assert list_images([]) == ()

    def test_a_file_given_twice_is_listed_twice(self, tmp_path: Path) -> None:
        make(tmp_path, "a.jpg")
        assert len(list_images([tmp_path / "a.jpg"] * 2)) == 2

    def test_refusals(self, tmp_path: Path) -> None:
        make(tmp_path, "cats.jpg", "note.txt", "empty/")
        with pytest.raises(LayoutError, match=r"Did you mean '.*cats.jpg'"):
            list_images([tmp_path / "cat.jpg"])
        with pytest.raises(LayoutError, match="Expected an image"):
            list_images([tmp_path / "note.txt"])
        with pytest.raises(LayoutError, match="got none among its 0 files"):
            list_images([tmp_path / "empty"])


def test_relative_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path / "photos", "a/1.jpg", "b/1.jpg")
    monkeypatch.chdir(tmp_path / "photos")
    data = read_dataset(".")
    assert data.name == "photos"
    assert all(Path(s.image).is_file() for s in data.samples)
    shutil.rmtree(tmp_path / "photos")
