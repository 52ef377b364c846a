"""Preprocess: against torchvision's and timm's own evaluation transforms, and Pillow."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from PIL import Image

from headstart.data.transforms.preprocess import Preprocess, central_square
from headstart.errors import UsageError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SHAPES = [(375, 500), (500, 375), (300, 301), (256, 256), (100, 80), (700, 90), (31, 224), (1, 1)]


def expects(resize=256, crop=224, interpolation="bilinear", **changes) -> Preprocess:
    settings = {"mean": MEAN, "std": STD, **changes}
    return Preprocess(resize=resize, crop=crop, interpolation=interpolation, **settings)


def image(height: int, width: int) -> np.ndarray:
    """Make edges, gradients and some noise: what a wrong filter or offset shows on."""
    rng = np.random.default_rng(height * 1000 + width)
    y, x = np.mgrid[:height, :width]
    waves = 127 + 100 * np.sin(x / 7) * np.cos(y / 11)
    squares = 255 * ((x // 16 + y // 16) % 2)
    noise = rng.integers(0, 256, (height, width))
    return np.stack([waves, squares, noise], axis=-1).astype(np.uint8)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("resize", "crop"), [(256, 224), (232, 224), (64, 64)])
def test_agrees_with_torchvision(shape, interpolation, resize, crop):
    from torchvision.transforms import InterpolationMode, v2

    pixels = image(*shape)
    reference = v2.Compose(
        [
            v2.Resize([resize], interpolation=InterpolationMode(interpolation), antialias=True),
            v2.CenterCrop([crop]),
        ]
    )(torch.from_numpy(pixels).permute(2, 0, 1))
    ours = expects(resize, crop, interpolation).resize_and_crop(pixels)
    np.testing.assert_array_equal(ours, reference.permute(1, 2, 0).numpy())


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("interpolation", "greys"), [("bilinear", 1), ("bicubic", 2)])
def test_agrees_with_timm_on_pillow(shape, interpolation, greys):
    from timm.data import create_transform

    pixels = image(*shape)
    transform = create_transform(
        (3, 224, 224), interpolation=interpolation, mean=MEAN, std=STD, crop_pct=0.875
    )
    reference = transform(Image.fromarray(pixels))[None]
    ours = expects(interpolation=interpolation)
    batch = torch.from_numpy(ours.resize_and_crop(pixels)).permute(2, 0, 1)[None]
    difference = (ours.normalise(batch) - reference).abs() * torch.tensor(STD).view(1, 3, 1, 1)
    assert difference.max() * 255 <= greys + 1e-3
    assert difference.mean() * 255 < 0.25


def test_squash_is_pillow_resize_of_both_sides():
    pixels = image(120, 300)
    ours = expects(96, 96, fit="squash").resize_and_crop(pixels)
    reference = Image.fromarray(pixels).resize((96, 96), Image.Resampling.BILINEAR)
    assert np.abs(ours.astype(int) - np.asarray(reference)).max() <= 1


@pytest.mark.parametrize("shape", [*SHAPES, (40, 800), (1, 60_001)], ids=str)
@pytest.mark.parametrize("canvas", [(96, 160), (160, 96), (64, 64)], ids=str)
def test_canvas_shows_the_whole_image_and_fills_the_rest(shape, canvas):
    pixels, ours = image(*shape), expects(canvas=canvas)
    place, found = ours.placement(*shape), ours.resize_and_crop(pixels)
    assert found.shape == (*ours.shape, 3) == (*canvas, 3)
    resized = Image.fromarray(pixels).resize((place.columns, place.rows), Image.Resampling.BILINEAR)
    inside = found[: place.rows, : place.columns].astype(int)
    assert np.abs(inside - np.asarray(resized)).max() <= 1
    found[: place.rows, : place.columns] = ours.fill
    assert (found == np.array([124, 116, 104])).all()
    assert place.rows == canvas[0] or place.columns == canvas[1]


def test_canvas_of_an_image_that_was_decoded_smaller_follows_its_real_size():
    ours = expects(canvas=(100, 120))
    small = np.zeros((17, 32, 3), dtype=np.uint8)  # 33 x 64 at half the size, rounded up
    shown = ours.resize_only(small, (33, 64))[..., 0] == 0
    place = ours.placement(33, 64)
    assert (shown.any(axis=1).sum(), shown.any(axis=0).sum()) == (place.rows, place.columns)
    assert (place.rows, ours.placement(17, 32).rows) == (62, 64)


def test_canvas_gives_its_own_memory_and_changes_nothing_where_it_is_not_set():
    same = expects(canvas=(80, 100)).resize_and_crop(given := image(80, 100))
    np.testing.assert_array_equal(same, given)
    assert not np.shares_memory(same, given)
    assert "canvas" not in expects().as_dict()
    with pytest.raises(UsageError, match="`canvas` to be set"):
        expects().placement(10, 10)


@pytest.mark.parametrize("shape", [*SHAPES, (1, 60_001)], ids=str)
@pytest.mark.parametrize("fit", ["crop", "squash"])
def test_resizing_and_cutting_is_resizing_then_cutting(shape, fit):
    pixels, ours = image(*shape), expects(72, 64, fit=fit)
    canvas = ours.resize_only(pixels)
    assert min(canvas.shape[:2]) == 72
    assert max(canvas.shape[:2]) == 72 if fit == "squash" else max(canvas.shape[:2]) <= 9 * 72
    np.testing.assert_array_equal(ours.resize_and_crop(pixels), central_square(canvas, 64))


def test_a_strip_costs_little_and_keeps_its_centre():
    strip = np.zeros((1, 60_001, 3), dtype=np.uint8)
    strip[:, 30_000] = 255
    ours = expects().resize_and_crop(strip)
    assert ours.shape == (224, 224, 3)
    assert ours[112, 112].min() > 200
    assert np.abs(ours[112].astype(int) - ours[112, ::-1]).max() <= 12


def test_read_only_and_strided_arrays_are_read_and_left_alone():
    pixels = np.asarray(Image.fromarray(image(300, 400)))
    before = pixels.copy()
    assert not pixels.flags.writeable
    mirrored = expects().resize_and_crop(pixels[:, ::-1])
    np.testing.assert_array_equal(pixels, before)
    np.testing.assert_array_equal(mirrored, expects().resize_and_crop(before[:, ::-1].copy()))
    same = expects(224, 224).resize_and_crop(square := image(224, 224))
    assert not np.shares_memory(same, square)


def test_normalise_is_float32_arithmetic_in_any_type():
    batch = torch.from_numpy(np.stack([image(8, 8)] * 2)).permute(0, 3, 1, 2)
    exact = (batch.double().div(255) - torch.tensor(MEAN, dtype=torch.float64).view(3, 1, 1)).div(
        torch.tensor(STD, dtype=torch.float64).view(3, 1, 1)
    )
    values = expects().normalise(batch)
    assert values.dtype == torch.float32
    assert values.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(values.double(), exact, rtol=1e-5, atol=1e-5)
    assert torch.equal(expects().normalise(batch, torch.bfloat16), values.to(torch.bfloat16))


def test_fingerprint_changes_with_every_setting_and_survives_json():
    base = expects()
    changes = {
        "resize": 257,
        "crop": 223,
        "interpolation": "bicubic",
        "mean": (0.5, 0.5, 0.5),
        "std": (0.5, 0.5, 0.5),
        "fit": "squash",
        "canvas": (224, 256),
    }
    assert set(changes) == {field.name for field in dataclasses.fields(Preprocess)}
    variants = [base, *(dataclasses.replace(base, **{k: v}) for k, v in changes.items())]
    for one, other in itertools.combinations(variants, 2):
        assert one.fingerprint() != other.fingerprint()
    for one in variants:
        assert Preprocess.from_dict(one.as_dict()).fingerprint() == one.fingerprint()


@pytest.mark.parametrize(
    "change",
    [
        {"crop": 300},
        {"crop": 0},
        {"interpolation": "nearest"},
        {"fit": "pad"},
        {"mean": (0.5,)},
        {"std": (0.5, 0.0, 0.5)},
        {"canvas": (224,)},
        {"canvas": (224, 0)},
        {"canvas": (224, 256.0)},
        {"canvas": 224},
    ],
    ids=str,
)
def test_refuses_settings_that_cannot_be_meant(change):
    with pytest.raises(UsageError, match="Expected"):
        expects(**change)
    with pytest.raises(UsageError, match="Expected"):
        Preprocess.from_dict(expects().as_dict() | change)


def test_refuses_missing_and_unknown_values():
    values = expects().as_dict()
    with pytest.raises(UsageError, match="preprocessing"):
        Preprocess.from_dict(values | {"gamma": 2})
    del values["mean"]
    with pytest.raises(UsageError, match="preprocessing"):
        Preprocess.from_dict(values)


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((0, 4, 3), np.uint8),
    ],
    ids=["grey", "rgba", "float", "empty"],
)
def test_refuses_arrays_that_are_no_rgb_image(pixels):
    with pytest.raises(UsageError, match="uint8 of shape"):
        expects().resize_and_crop(pixels)


def test_normalise_refuses_what_is_normalised_already():
    with pytest.raises(UsageError, match="uint8 of shape"):
        expects().normalise(torch.zeros(1, 3, 4, 4))
