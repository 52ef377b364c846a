"""Several masks of an image are united where it is clear to which image they belong."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from headstart.data.formats.mask_parts import are_numbered, merge_masks, parts_by_place
from headstart.data.masks import read_raw_mask
from headstart.data.readers import read_dataset
from headstart.errors import DataError, LayoutError

SIDE = 12


def put(path: Path, values=None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(len(str(path)))
    pixels = rng.integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8) if values is None else values
    Image.fromarray(pixels).save(path)


def spot(column: int, value: int = 255) -> np.ndarray:
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[2:5, column] = value
    return mask


LAYOUTS = {
    "nuclei of DSB 2018": ("{i}/images/{i}.png", "{i}/masks/{h}.png"),
    "letters": ("{i}/images/{i}.png", "{i}/masks/{l}.png"),
    "numbers": ("{i}/images/{i}.png", "{i}/masks/{k}.png"),
    "image beside its masks": ("case{i}/scan.png", "case{i}/masks/{k}.png"),
    "in splits": ("train/{i}/images/{i}.png", "train/{i}/masks/{h}.png"),
    "folder of the image's name": ("images/{i}.png", "masks/{i}/{l}.png"),
    "the same in splits": ("train/images/{i}.png", "train/masks/{i}/{k}.png"),
    "other names": ("imgs/x{i}.png", "segs/x{i}/object_{k}.png"),
    "numbered files": ("images/p{i}.png", "masks/p{i}_{k}.png"),
    "numbered with a dash": ("images/p{i}.png", "masks/p{i}-{k}.png"),
    "instances": ("{i}/images/{i}.png", "{i}/masks/instance_{k}.png"),
    "beside the image (BUSI)": ("benign/benign ({i}).png", "benign/benign ({i})_mask_{k}.png"),
    "masks with numbers": ("images/{i}a.png", "masks/{i}a_mask_{k}.png"),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_masks_of_an_image_are_united(tmp_path, name):
    image, mask = LAYOUTS[name]
    for i in range(3):
        put(tmp_path / image.format(i=i))
        for k in range(i + 1):  # one, two, three
            fields = {"i": i, "k": k, "l": "abc"[k], "h": f"{hash((i, k)) & 0xFFFFFFFF:08x}"}
            put(tmp_path / mask.format(**fields), spot(2 * k))
    data = read_dataset(tmp_path)
    assert (data.kind, data.classes, len(data)) == ("segmentation", ("background", "object"), 3)
    assert "5 masks of 2 images merged" in data.notes
    for i, sample in enumerate(data.samples):
        assert Path(sample.name).relative_to(tmp_path).as_posix() == image.format(i=i)
        values = read_raw_mask(sample.target.source).values
        expected = np.max([spot(2 * k) for k in range(i + 1)], axis=0)
        np.testing.assert_array_equal(values, expected)


def test_a_first_mask_without_a_number(tmp_path):
    for i in range(4):
        put(tmp_path / f"malignant/malignant ({i}).png")
        put(tmp_path / f"malignant/malignant ({i})_mask.png", spot(0))
    put(tmp_path / "malignant/malignant (2)_mask_1.png", spot(6, 1))
    data = read_dataset(tmp_path)
    assert (data.kind, len(data)) == ("segmentation", 4)
    sums = [int((read_raw_mask(s.target.source).values == 255).sum()) for s in data.samples]
    assert sums == [3, 3, 6, 3]  # also 1 and 255 in one set


@pytest.mark.parametrize(
    ("image", "masks"),
    [
        ("{i}/images/{i}.png", ("{i}/masks/liver.png", "{i}/masks/kidney.png")),  # classes
        ("images/{i}.png", ("masks/{i}/liver.png", "masks/{i}/kidney.png")),
        ("images/{i}.png", ("masks/{i}_mask.png", "masks/{i}_gt.png")),
        ("images/{i}.png", ("masks/q{i}.png", "masks/r{i}.png")),  # no names in common
        ("images/{i}.png", ("masks/{i}_liver.png", "masks/{i}_kidney.png")),
        ("images/{i}.png", ("masks/all/{i}b.png", "masks/all/{i}c.png")),
        ("images/{i}.png", ("masks/x/a.png", "masks/y/b.png")),
        ("{i}/images/{i}.png", ("{i}/masks/road.png", "{i}/masks/sky.png")),
        ("a{i}.png", ("a{i}_mask.png", "a{i}_seg.png")),
        ("{i}/images/{i}.png", ("{i}/masks/tumor core.png", "{i}/masks/edema.png")),
    ],
)
def test_masks_that_may_be_classes_are_refused(tmp_path, image, masks):
    for i in range(3):
        put(tmp_path / image.format(i=i))
        for k, mask in enumerate(masks):
            put(tmp_path / mask.format(i=i), spot(k))
    with pytest.raises((LayoutError, DataError), match=r"--masks FOLDER|--class-level"):
        read_dataset(tmp_path)


@pytest.mark.parametrize(
    ("masks", "threshold", "words"),
    [
        ([spot(0), spot(3)], None, None),
        ([spot(0, 7), spot(3, 1)], None, None),  # numbers of instances
        ([spot(0), np.zeros((SIDE, SIDE), np.uint8)], None, None),  # an empty one
        ([np.repeat(spot(0)[..., None], 3, axis=2), spot(3)], None, None),  # white in colour
        ([spot(0) | spot(1, 3), spot(3)], None, "got 3 values in"),
        ([spot(0) | spot(1, 3), spot(3)], 128, None),
        ([spot(0, 100), spot(3)], 128, None),
        ([spot(0), spot(3)[:, :9]], None, "masks of one size, got 9 x 12"),
        ([], None, "got none"),
    ],
)
def test_the_union_of_masks(tmp_path, masks, threshold, words):
    paths = [tmp_path / f"{i}.png" for i in range(len(masks))]
    for path, mask in zip(paths, masks, strict=True):
        put(path, mask)
    if words:
        with pytest.raises(DataError, match=words):
            merge_masks(paths, threshold)
        return
    grey = [mask.max(axis=2) if mask.ndim == 3 else mask for mask in masks]
    expected = np.max([np.where(mask >= (threshold or 1), 255, 0) for mask in grey], axis=0)
    np.testing.assert_array_equal(merge_masks(paths, threshold), expected)


def test_damaged_parts_are_named_by_the_checks(tmp_path):
    from headstart.cache import Cache
    from headstart.data.prepare import inspect_dataset

    for i in range(3):
        put(tmp_path / f"{i}/images/{i}.png")
        for k in range(2):
            put(tmp_path / f"{i}/masks/{k}.png", spot(k))
    (tmp_path / "1/masks/1.png").write_bytes(b"<html>")
    _, findings = inspect_dataset(tmp_path, cache=Cache())
    (finding,) = [finding for finding in findings if finding.kind == "mask-unreadable"]
    assert "1/masks/1.png" in finding.message


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ((), {}),
        (("images/1.png", "masks/1.png"), {}),  # one each
        (("1/images/1.png", "1/masks/a.png", "1/masks/b.png"), {}),  # a single image
        (("images/1.png", "images/2.png", "masks/1_0.png", "masks/3_0.png"), {}),  # of no image
        (("cat/1.png", "cat/1_1.png", "cat/1_2.png"), {}),  # no masks
    ],
)
def test_nothing_is_united_without_need(names, expected):
    assert parts_by_place(names) == expected


def test_numbers_at_the_end():
    assert are_numbered(["1_mask", "1_mask_1", "1_mask (2)"])
    assert are_numbered(["a_1.png", "a_12.png"])
    assert not are_numbered(["a_mask.png", "b_mask.png"])
