from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from headstart.cache import Cache
from headstart.data.dataset import Dataset, Mask
from headstart.data.masks import decode_mask
from headstart.data.prepare import inspect_dataset, prepare
from headstart.data.readers import read_dataset
from headstart.errors import DataError, LayoutError, UsageError

SIDE = 64


def square(value: int = 255, side: int = SIDE) -> np.ndarray:
    mask = np.zeros((side, side), dtype=np.uint8)
    mask[side // 4 + 3 : side // 2 + 3, side // 4 + 3 : side // 4 * 3] = value
    return mask


def write(root: Path, masks: list[Image.Image], suffix: str = "png", **options: object) -> Path:
    for folder in ("images", "masks"):
        (root / folder).mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    for i, mask in enumerate(masks):
        pixels = rng.integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / f"images/{i}.png")
        mask.save(root / f"masks/{i}.{suffix}", **options)
    return root


def resized(side: int, filter_: Image.Resampling) -> Image.Image:
    return Image.fromarray(square(side=side)).resize((SIDE, SIDE), filter_)


def target(data: Dataset, at: int = 0) -> Mask:
    mask = data.samples[at].target
    assert isinstance(mask, Mask)
    return mask


SMOOTH = (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS)
ALTERED = {
    **{f"{f.name} {side}": (resized(side, f), "png", {}) for f in SMOOTH for side in (48, 97, 160)},
    "jpeg": (Image.fromarray(square()), "jpg", {}),
    "jpeg, good": (Image.fromarray(square()), "jpg", {"quality": 95}),
    "jpeg, poor": (Image.fromarray(square()), "jpg", {"quality": 30}),
    "jpeg, in colour": (Image.fromarray(square()).convert("RGB"), "jpg", {}),
}


@pytest.mark.parametrize("name", ALTERED)
def test_altered_values_are_refused_with_an_offer(tmp_path: Path, name: str) -> None:
    mask, suffix, options = ALTERED[name]
    write(tmp_path, [mask, mask], suffix, **options)
    with pytest.raises(DataError, match=r"--mask-threshold 128"):
        read_dataset(tmp_path)
    data = read_dataset(tmp_path, mask_threshold=128)
    assert data.classes == ("background", "object")
    assert "values of 128 and above read as object, others as background" in data.notes
    read = decode_mask(target(data), data.classes)
    grey = np.asarray(mask.convert("L"))
    certain = (grey < 90) | (grey > 165)
    assert (read[certain] == (grey[certain] > 127)).all()
    assert set(np.unique(read)) == {0, 1}


@pytest.mark.parametrize(
    "values",
    [
        (0, 255),
        (0, 1),
        (0, 1, 2, 255),
        (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 255),
        (0, 128, 255),
        (0, 100, 200),
        (1, 2, 3),
        (0, 85, 170, 255),
        tuple(range(40)),
        (7, 11, 26, 33),
        (0, 50, 100, 150, 200),
        (0, 254),
    ],
)
def test_values_that_are_classes(tmp_path: Path, values: tuple[int, ...]) -> None:
    mask = np.resize(np.asarray(values, dtype=np.uint8), (SIDE, SIDE))
    mask[: SIDE // 2] = values[0]  # most pixels are of one class
    data = read_dataset(write(tmp_path, [Image.fromarray(mask)]))
    n_classes = len(values) - (255 in values and len(values) > 2)
    assert len(data.classes) == n_classes


def test_jpeg_masks_of_many_values(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 5, (8, 8)).repeat(8, 0).repeat(8, 1) * 50
    write(tmp_path, [Image.fromarray(values.astype(np.uint8))], "jpg")
    with pytest.raises(DataError, match=r"the JPEG .*0\.jpg.*Save the masks as PNG"):
        read_dataset(tmp_path)


def test_two_names_of_a_map(tmp_path: Path) -> None:
    write(tmp_path, [resized(97, SMOOTH[0])])
    (tmp_path / "classes.txt").write_text("soil\nleaf\n")
    with pytest.raises(DataError, match="--mask-threshold 128"):
        read_dataset(tmp_path)
    assert read_dataset(tmp_path, mask_threshold=100).classes == ("soil", "leaf")


@pytest.mark.parametrize("value", [1, 7, 128, 200, 255])
@pytest.mark.parametrize("colour", [0, 255])
@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_classes_in_alpha(tmp_path: Path, mode: str, colour: int, value: int) -> None:
    alpha = Image.fromarray(square(value))
    mask = Image.new(mode, alpha.size, (colour,) * len(mode))
    mask.putalpha(alpha)
    write(tmp_path, [mask])
    with pytest.raises(
        DataError, match=r"masks/0\.png.*2 values of alpha.*alpha channel as a grey"
    ):
        read_dataset(tmp_path)


def test_colours_with_alpha(tmp_path: Path) -> None:
    mask = Image.fromarray(np.stack([square(200)] * 3, axis=2)).convert("RGBA")
    assert read_dataset(write(tmp_path, [mask])).classes == ("0", "200")


@pytest.mark.parametrize(
    ("size", "scaled"),
    [
        ((128, 128), True),
        ((32, 32), True),
        ((63, 63), True),
        ((16, 16), True),
        ((100, 100), True),
        ((200, 200), True),
        ((64, 65), False),
        ((33, 32), True),
        ((64, 32), False),
        ((32, 64), False),
        ((100, 128), False),
        ((128, 100), False),
        ((64, 64), None),
    ],
)
def test_masks_of_another_size(
    tmp_path: Path, size: tuple[int, int], *, scaled: bool | None
) -> None:
    masks = [Image.fromarray(square()).resize(size, Image.Resampling.NEAREST)]
    masks += [Image.fromarray(square())] * 11
    cache = Cache(tmp_path / "cache")
    write(tmp_path, masks)
    findings = {f.kind: f for f in inspect_dataset(tmp_path, cache=cache)[1]}
    assert ("mask-scaled" in findings) == (scaled is True)
    assert ("mask-size" in findings) == (scaled is False)
    if scaled is False:
        return
    data = prepare(tmp_path, cache=cache).data
    read = decode_mask(target(data), data.classes)
    assert read.shape == (SIDE, SIDE)
    assert (read == (square() > 0)).mean() > 0.95
    if scaled:
        message = findings["mask-scaled"].message
        assert "1 of 12 masks have the aspect of their image and another size" in message
        assert f"{size[0]} x {size[1]} for 64 x 64 pixels" in message


def test_wrong_thresholds(tmp_path: Path) -> None:
    write(tmp_path, [Image.fromarray(square())])
    with pytest.raises(UsageError, match="`mask_threshold` must be a whole number"):
        read_dataset(tmp_path, mask_threshold=0)
    with pytest.raises(UsageError, match="--mask-threshold needs data for segmentation"):
        read_dataset(tmp_path, mask_threshold=128, class_level=1)
    (tmp_path / "a").mkdir()
    Image.fromarray(square()).save(tmp_path / "a/1.png")
    with pytest.raises(LayoutError, match="without masks"):
        read_dataset(tmp_path / "a", mask_threshold=128)
