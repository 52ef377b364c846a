from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from headstart.data.dataset import Dataset, Mask
from headstart.data.formats.layouts import Listing, list_folder
from headstart.data.formats.mask_pairs import find_mask_pairs
from headstart.data.formats.masks import read_mask_pairs
from headstart.data.masks import decode_mask
from headstart.errors import DataError, LayoutError, UnreadableImageError

GRID = np.array([[0, 1], [2, 1]], dtype=np.uint8)


def pairs(*names: str) -> dict[str, str] | None:
    mask_pairs = find_mask_pairs(Listing(root=Path("p"), images=tuple(sorted(names))))
    return None if mask_pairs is None else mask_pairs.masks


def make(root: Path, masks: Mapping[str, np.ndarray], **files: str) -> Dataset:
    """Masks under masks/, a grey image for each, and text files."""
    for folder in ("images", "masks"):
        (root / folder).mkdir(exist_ok=True)
    for stem, values in masks.items():
        Image.fromarray(np.full((2, 2, 3), 7, np.uint8)).save(root / "images" / f"{stem}.jpg")
        Image.fromarray(values).save(root / "masks" / f"{stem}.png")
    for name, text in files.items():
        (root / name.replace("_txt", ".txt")).write_text(text)
    return read(root)


def read(root: Path, *, labels_required: bool = True) -> Dataset:
    listing = list_folder(root)
    mask_pairs = find_mask_pairs(listing)
    assert mask_pairs is not None
    return read_mask_pairs(listing, mask_pairs, labels_required=labels_required)[0]


def target(data: Dataset, at: int = 0) -> Mask:
    mask = data.samples[at].target
    assert isinstance(mask, Mask)
    return mask


class TestFinding:
    @pytest.mark.parametrize("word", ["masks", "labels", "annotations", "masks_png", "gt", "Mask"])
    @pytest.mark.parametrize(
        "image", ["{}/1.jpg", "{}/train/1.jpg", "train/{}/1.jpg", "{}/a/b/1.jpg"]
    )
    def test_mirrored_folders(self, word: str, image: str) -> None:
        mask = image.format(word).replace("jpg", "png")
        assert pairs(image.format("images"), mask) == {image.format("images"): mask}

    def test_voc(self) -> None:
        names = ("VOC/JPEGImages/1.jpg", "VOC/JPEGImages/2.jpg", "VOC/SegmentationClass/1.png")
        assert pairs(*names, "VOC/SegmentationObject/1.png") == {names[0]: names[2]}

    def test_siblings_of_parts(self) -> None:
        assert pairs("train/1.jpg", "val/1.jpg", "trainannot/1.png", "valannot/1.png") == {
            "train/1.jpg": "trainannot/1.png",
            "val/1.jpg": "valannot/1.png",
        }
        assert pairs("test/a.png", "test_labels/a_L.png") == {"test/a.png": "test_labels/a_L.png"}

    @pytest.mark.parametrize("suffix", ["_mask", "_label", "_L", "_gt", "_labelIds", "-mask"])
    def test_suffixes(self, suffix: str) -> None:
        mask = f"masks/1{suffix}.png"
        assert pairs("images/1.jpg", mask) == {"images/1.jpg": mask}

    def test_cityscapes(self) -> None:
        stem = "train/aachen/aachen_000_019"
        others = (f"gtFine/{stem}_gtFine_color.png", f"gtFine/{stem}_gtFine_instanceIds.png")
        image, mask = f"leftImg8bit/{stem}_leftImg8bit.png", f"gtFine/{stem}_gtFine_labelIds.png"
        assert pairs(image, mask, *others) == {image: mask}

    def test_the_same_stem_in_two_parts_is_no_confusion(self) -> None:
        names = ("images/train/1.jpg", "images/val/1.jpg", "masks/train/1.png", "masks/val/1.png")
        assert pairs(*names) == {names[0]: names[2], names[1]: names[3]}

    @pytest.mark.parametrize(
        "names",
        [
            ("cat/1.jpg", "dog/1.jpg"),
            ("with_mask/1.jpg", "without_mask/1.jpg"),  # people, with and without
            ("face/1.jpg", "face_mask/1.jpg"),
            ("train/mask/1.jpg", "train/no_mask/1.jpg"),
            ("images/1.jpg", "labels/other.png"),
            ("trained/1.jpg", "trainedannot/1.jpg"),
        ],
    )
    def test_class_folders_are_none(self, names: tuple[str, ...]) -> None:
        assert pairs(*names) is None

    def test_two_masks_of_an_image(self) -> None:
        with pytest.raises(DataError, match=r"one mask for 'images/1\.jpg'"):
            pairs("images/1.jpg", "masks/1_mask.png", "masks/1_label.png")

    def test_what_has_no_partner(self) -> None:
        names = ("images/1.jpg", "images/2.jpg", "masks/1.png", "masks/3.png", "test/images/9.jpg")
        mask_pairs = find_mask_pairs(Listing(root=Path("p"), images=names))
        assert mask_pairs is not None
        assert (mask_pairs.missing, mask_pairs.unused) == (("images/2.jpg",), ("masks/3.png",))
        assert mask_pairs.unlabelled == ("test/images/9.jpg",)


class TestClasses:
    def test_named_by_a_class_map(self, tmp_path: Path) -> None:
        data = make(tmp_path, {"a": GRID, "b": GRID * 0}, classes_txt="sky\nroad\nvoid\n")
        assert (data.kind, data.classes) == ("segmentation", ("sky", "road"))
        assert target(data).present == ("sky", "road")
        assert target(data, 1).present == ("sky",)
        assert decode_mask(target(data), data.classes).tolist() == [[0, 1], [255, 1]]
        assert data.counts() == {"sky": 2, "road": 1}
        assert any("ignored" in note and "void" in note for note in data.notes)

    def test_colours(self, tmp_path: Path) -> None:
        table = np.array([[0, 0, 0], [0, 99, 0], [9, 9, 9]], dtype=np.uint8)
        data = make(tmp_path, {"a": table[GRID]}, classes_txt="0 99 0 leaf\n0 0 0 soil\n9 9 9 pot")
        assert data.classes == ("leaf", "soil", "pot")
        assert decode_mask(target(data), data.classes).tolist() == [[1, 0], [2, 0]]

    def test_values_without_a_map(self, tmp_path: Path) -> None:
        data = make(tmp_path, {"a": np.array([[10, 2, 255]], dtype=np.uint8), "b": GRID[:1]})
        assert data.classes == ("0", "1", "2", "10")
        assert target(data).present == ("2", "10")
        notes = " ".join(data.notes)
        assert "write classes.txt" in notes
        assert "255 is ignored" in notes

    def test_colours_without_a_map(self, tmp_path: Path) -> None:
        table = np.array([[0, 0, 0], [0, 99, 0], [9, 9, 9]], dtype=np.uint8)
        data = make(tmp_path, {"a": table[GRID], "b": table[GRID * 0]})
        assert data.classes == ("#000000", "#006300", "#090909")
        assert target(data, 1).present == ("#000000",)

    def test_0_and_255_are_background_and_object(self, tmp_path: Path) -> None:
        binary = (GRID > 0).astype(np.uint8) * 255
        data = make(tmp_path, {"a": binary, "b": binary * 0})
        assert data.classes == ("background", "object")
        assert (decode_mask(target(data), data.classes) == (GRID > 0)).all()
        assert "0/255 read as background and object" in data.notes

    def test_0_and_255_with_two_names(self, tmp_path: Path) -> None:
        binary = (GRID > 0).astype(np.uint8) * 255
        data = make(tmp_path, {"a": binary}, classes_txt="soil\nleaf\n")
        assert target(data).present == ("soil", "leaf")
        assert (decode_mask(target(data), data.classes) == (GRID > 0)).all()

    def test_0_and_255_where_codes_are_said(self, tmp_path: Path) -> None:
        binary = (GRID > 0).astype(np.uint8) * 255
        data = make(tmp_path, {"a": binary}, classes_txt="0 soil\n1 leaf\n")
        assert target(data).present == ("soil",)
        assert set(decode_mask(target(data), data.classes).ravel()) == {0, 255}

    def test_too_many_values(self, tmp_path: Path) -> None:
        noise = np.random.default_rng(0).integers(0, 256, size=(40, 40, 3), dtype=np.uint8)
        with pytest.raises(DataError, match=r"at most 254 values.*got 1600.*PNG without smoothing"):
            make(tmp_path, {"a": noise})

    def test_a_second_map_is_named(self, tmp_path: Path) -> None:
        data = make(tmp_path, {"a": GRID}, classes_txt="a\nb\nc", labels_txt="x\ny\nz")
        assert data.classes == ("a", "b", "c")
        assert "class maps not read: 'labels.txt'" in data.notes


class TestReading:
    def test_damaged_masks_are_left_to_the_audit(self, tmp_path: Path) -> None:
        make(tmp_path, {"a": GRID, "b": GRID})
        (tmp_path / "masks/b.png").write_bytes(b"<html>")
        data = read(tmp_path)
        assert len(data) == 2
        assert target(data, 1).present == ()
        (tmp_path / "masks/a.png").write_bytes(b"<html>")
        with pytest.raises(UnreadableImageError, match=r"a\.png.*HTML"):
            read(tmp_path)

    def test_images_without_masks(self, tmp_path: Path) -> None:
        make(tmp_path, {"a": GRID, "b": GRID})
        (tmp_path / "masks/b.png").unlink()
        (tmp_path / "more").mkdir()
        (tmp_path / "more/c.jpg").touch()
        data = read(tmp_path)
        assert [s.target is None for s in data.samples] == [False, True]
        assert "1 images without masks left out: 'more/c.jpg'" in data.notes
        assert len(read(tmp_path, labels_required=False)) == 3

    def test_parts_by_folders(self, tmp_path: Path) -> None:
        for folder in ("train", "val", "trainannot", "valannot"):
            (tmp_path / folder).mkdir()
            Image.fromarray(GRID).save(tmp_path / folder / "1.png")
        data = read(tmp_path)
        assert [sample.split for sample in data.samples] == ["train", "val"]
        assert data.notes[0] == "2 images with masks, train/val by folders"

    @pytest.mark.parametrize("folder", ["", "ImageSets/Segmentation/"])
    def test_parts_by_lists(self, tmp_path: Path, folder: str) -> None:
        for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation", "ImageSets/Main"):
            (tmp_path / name).mkdir(parents=True)
        for stem in ("a", "b", "c.1"):
            Image.fromarray(GRID).save(tmp_path / f"JPEGImages/{stem}.png")
            Image.fromarray(GRID).save(tmp_path / f"SegmentationClass/{stem}.png")
        Image.fromarray(GRID).save(tmp_path / "JPEGImages/boxes_only.png")
        (tmp_path / f"{folder}train.txt").write_text("a\nc.1\n")
        (tmp_path / f"{folder}val.txt").write_text("JPEGImages/b.png SegmentationClass/b.png\n")
        (tmp_path / "ImageSets/Main/test.txt").write_text("a\n")
        data = read(tmp_path)
        assert [sample.split for sample in data.samples] == ["train", "val", "train"]
        assert "boxes_only" in data.notes[-1]

    def test_lists_that_cannot_be_meant(self, tmp_path: Path) -> None:
        make(tmp_path, {"a": GRID})
        (tmp_path / "train.txt").write_text("a\n")
        (tmp_path / "val.txt").write_text("a\n")
        with pytest.raises(DataError, match="one split"):
            read(tmp_path)
        for name in ("train.txt", "val.txt"):
            (tmp_path / name).write_text("nothing\n")
        with pytest.raises(LayoutError, match="names of images"):
            read(tmp_path)
