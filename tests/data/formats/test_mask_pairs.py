from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from headstart.data.formats.layouts import Listing
from headstart.data.formats.mask_pairs import find_mask_pairs
from headstart.data.readers import read_dataset
from headstart.errors import DataError, LayoutError, UnknownNameError, UsageError

IMAGE = np.random.default_rng(0).integers(0, 255, (8, 8, 3), dtype=np.uint8)
MASK = np.zeros((8, 8), dtype=np.uint8)
MASK[2:5] = 255


def make(root: Path, images: tuple[str, ...] = (), masks: tuple[str, ...] = ()) -> Path:
    for names, pixels in ((images, IMAGE), (masks, MASK)):
        for name in names:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(root / name)
    return root


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("Training_Images/{}.jpg", "Ground_Truth/{}.png"),
        ("img_dir/train/{}.jpg", "ann_dir/train/{}.png"),
        ("inputs/{}.png", "targets/{}.png"),
        ("images_png/{}.png", "masks_png/{}.png"),
        ("imgs/{}.png", "segs/{}.png"),
        ("images/image_{}.png", "masks/mask_{}.png"),
        ("images/IMG-{}.png", "masks/seg-{}.png"),
        ("image/{}_image.png", "label/{}_label.png"),
        ("Original/{}.tif", "Ground Truth/{}.tif"),
        ("P{0}/x{0}.tif", "P{0}/x{0}_mask.tif"),
        ("benign/benign ({}).png", "benign/benign ({})_mask.png"),
        ("{}.jpg", "{}_mask.png"),
        ("{}.jpg", "{}-seg.png"),
        ("photos/{}.jpg", "photos_masks/{}.png"),
        ("ISIC_Training_Input/ISIC_{}.jpg", "ISIC_Training_GroundTruth/ISIC_{}_segmentation.png"),
        ("data/train/rgb/{}.png", "data/train/gt/{}.png"),
        ("Pictures/{}.png", "Annotations Png/{}.png"),
    ],
)
def test_pairs_under_other_names(tmp_path: Path, image: str, mask: str) -> None:
    pairs = {image.format(i): mask.format(i) for i in (1, 2)}
    data = read_dataset(make(tmp_path, tuple(pairs), tuple(pairs.values())))
    assert (data.kind, data.classes) == ("segmentation", ("background", "object"))
    read = {
        Path(str(s.image)).relative_to(tmp_path).as_posix(): s.target.source.relative_to(tmp_path)
        for s in data.samples
    }
    assert {key: value.as_posix() for key, value in read.items()} == pairs


@pytest.mark.parametrize(
    ("images", "masks"),
    [
        (("images/a.png", "images/b.png"), ("masks/7.png", "masks/8.png")),
        (("1/images/1.png",), ("1/masks/a.png", "1/masks/b.png")),
        (("images/21_training.tif",), ("1st_manual/21_manual1.png", "mask/21_training_mask.png")),
        (("images/1.png",), ("masks/1.png", "labels/1.png")),
        (("images/1.png",), ("gt/1.png", "manual/1.png")),
        (("cat/1.png", "cat/2.png", "dog/3.png", "dog/4.png"), ("cat/2_mask.png", "dog/9.png")),
        (("inputs/scan.png",), ("targets/drawing.png",)),
        (("train/imgs/x1.png",), ("train/segs/y2.png",)),
        (("photos/one.png", "photos/two.png"), ("annotations/three.png",)),
        (("Training_Images/one.png",), ("Ground_Truth/uno.png",)),
    ],
)
def test_masks_are_never_classes(
    tmp_path: Path, images: tuple[str, ...], masks: tuple[str, ...]
) -> None:
    with pytest.raises(DataError, match="--masks FOLDER"):
        read_dataset(make(tmp_path, images, masks))


@pytest.mark.parametrize(
    "names",
    [
        ("mask", "no_mask"),
        ("with_mask", "without_mask"),
        ("face", "face_mask"),
        ("surgical mask", "n95 mask", "cloth mask"),
        ("images", "documents"),
        ("gt", "coupe", "suv"),
        ("target", "clutter"),
        ("label", "barcode"),
        ("photo", "drawing"),
        ("frame", "wheel"),
        ("segment", "circle"),
        ("manual", "automatic"),
        ("x", "y", "z"),
        ("test_tube", "mask"),
    ],
)
def test_classes_that_sound_like_masks(tmp_path: Path, names: tuple[str, ...]) -> None:
    data = read_dataset(make(tmp_path, tuple(f"{n}/{i}.png" for n in names for i in (1, 2))))
    assert data.counts() == dict.fromkeys(data.classes, 2)
    assert set(data.classes) == set(names)


@pytest.mark.parametrize(
    ("image", "mask", "options"),
    [
        ("scans/{}.png", "drawn/{}.png", {"masks": "drawn"}),
        ("scans/{}.png", "drawn/{}.png", {"images": "scans"}),
        ("scans/{}.png", "drawn/{}.png", {"masks": "drawn", "images": "scans"}),
        ("x/{}.png", "y/{}.png", {"masks": "y/"}),
        ("scans/a{}.png", "drawn/b{}.png", {"masks": "drawn"}),
        ("images/2{}_training.png", "1st_manual/2{}_manual1.png", {"masks": "1st_manual"}),
        ("train/scans/{}.png", "train/drawn/{}.png", {"masks": "drawn"}),
        ("scans/train/{}.png", "drawn/train/{}.png", {"masks": "drawn"}),
        ("a/b/{}.png", "c/d/e/{}.png", {"masks": "c/d"}),
        ("{}.png", "drawn/{}.png", {"masks": "drawn"}),
        ("images/{}.png", "masks/{}_final.png", {"masks": "masks"}),
    ],
)
def test_named_folders(tmp_path: Path, image: str, mask: str, options: dict[str, str]) -> None:
    pairs = {image.format(i): mask.format(i) for i in (1, 2)}
    data = read_dataset(make(tmp_path, tuple(pairs), tuple(pairs.values())), **options)
    assert (data.kind, len(data)) == ("segmentation", 2)
    assert [s.target.source.relative_to(tmp_path).as_posix() for s in data.samples] == [
        *pairs.values()
    ]


def test_masks_elsewhere(tmp_path: Path) -> None:
    make(tmp_path, ("scans/1.png", "scans/2.png"), ("drawn/1.png", "drawn/2.png"))
    data = read_dataset(tmp_path / "scans", masks=str(tmp_path / "drawn"))
    assert [s.target.source for s in data.samples] == [
        tmp_path / "drawn/1.png",
        tmp_path / "drawn/2.png",
    ]


def test_wrong_folders(tmp_path: Path) -> None:
    make(tmp_path, ("scans/a.png", "scans/b.png"), ("drawn/c.png", "drawn/d.png"))
    with pytest.raises(UsageError, match=r"--masks must name a folder .* got 'gone'.*'drawn'"):
        read_dataset(tmp_path, masks="gone")
    with pytest.raises(LayoutError, match=r"names do not match, such as 'scans/a\.png'"):
        read_dataset(tmp_path, masks="drawn")
    with pytest.raises(UsageError, match="needs data for segmentation"):
        read_dataset(tmp_path, masks="drawn", task_kind="multiclass")
    with pytest.raises(UsageError, match=r"masks='drawn' needs a folder .*Remove --masks"):
        read_dataset("demo:digits", masks="drawn")
    with pytest.raises(UsageError, match="`masks` must be a text, got 3"):
        read_dataset(tmp_path, masks=3)  # type: ignore[arg-type]
    with pytest.raises(UnknownNameError, match="mask"):
        read_dataset(tmp_path, mask="drawn")  # type: ignore[call-arg]


def test_other_renderings_are_no_second_folder() -> None:
    names = ("images/1.jpg", "masks/1.png", "masks_color/1.png", "instance_labels/1.png")
    pairs = find_mask_pairs(Listing(root=Path("p"), images=names))
    assert pairs is not None
    assert pairs.masks == {"images/1.jpg": "masks/1.png"}
