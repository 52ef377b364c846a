"""Views: exact without augmentation, of the asked range with it, and functions of their seed."""

import dataclasses
import itertools
from collections import Counter

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from headstart.data.transforms.augment import PRESETS, Augmentation, augment
from headstart.data.transforms.preprocess import Preprocess
from headstart.errors import UnknownNameError, UsageError

EACH = {
    "flip": True,
    "flip_vertical": True,
    "rotation": 20.0,
    "brightness": 0.3,
    "contrast": 0.3,
    "crop": 0.5,
    "policy": "randaugment",
}


def image(height: int = 72, width: int = 96) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    waves = 127 + 100 * np.sin(x / 7) * np.cos(y / 11)
    squares = 20 + 200 * ((x // 16 + y // 16) % 2)
    return np.stack([waves, squares, 2 * y + x / 2], axis=-1).astype(np.uint8)


def view(canvas: np.ndarray, seed: int = 0, to: int = 64, **settings) -> np.ndarray:
    return augment(
        canvas,
        to=to,
        interpolation=settings.pop("interpolation", "bilinear"),
        augmentation=Augmentation(**settings),
        rng=np.random.default_rng(seed),
    )


def centre(pixels: np.ndarray, to: int = 64) -> np.ndarray:
    return v2.CenterCrop([to])(torch.from_numpy(pixels).permute(2, 0, 1)).permute(1, 2, 0).numpy()


# ----------------------------------------------------------------------------- without any


@pytest.mark.parametrize("fit", ["crop", "squash"])
@pytest.mark.parametrize("shape", [(300, 401), (401, 300), (31, 64), (90, 700)], ids=str)
def test_off_is_what_prediction_sees(shape, fit):
    expects = Preprocess(
        resize=72, crop=64, interpolation="bicubic", mean=(0.5,) * 3, std=(1.0,) * 3, fit=fit
    )
    canvas = expects.resize_only(image(*shape))
    np.testing.assert_array_equal(view(canvas), expects.resize_and_crop(image(*shape)))


def test_a_flip_alone_is_the_centre_or_its_mirror():
    canvas = image()
    for settings, mirror in (
        ({"flip": True}, np.s_[:, ::-1]),
        ({"flip_vertical": True}, np.s_[::-1]),
    ):
        seen = Counter()
        for seed in range(100):
            ours = view(canvas, seed, **settings)
            mirrored = np.array_equal(ours, centre(canvas)[mirror])
            assert mirrored != np.array_equal(ours, centre(canvas))
            seen[mirrored] += 1
        assert 30 < seen[True] < 70


# -------------------------------------------------------------------------- one at a time


def test_a_crop_is_torchvisions_for_the_box_that_is_drawn():
    """The place's index is painted into the image, so that the view tells its own box."""
    y, x = np.mgrid[:128, :128]
    canvas = np.stack([x, y, np.zeros_like(x)], axis=-1).astype(np.uint8)
    shares, aspects = [], []
    for seed in range(300):
        ours = view(canvas, seed, to=64, crop=0.3).astype(float)
        # Of a linear ramp the slope survives resizing: box side = slope * (to - 1), about.
        wide = (ours[32, 48, 0] - ours[32, 16, 0]) / 32 * 64
        high = (ours[48, 32, 1] - ours[16, 32, 1]) / 32 * 64
        shares.append(wide * high / 128**2)
        aspects.append(wide / high)
    assert 0.26 < min(shares) < 0.36
    assert 0.9 < max(shares) <= 1.02
    assert 0.68 < min(aspects) < 0.82
    assert 1.2 < max(aspects) < 1.45
    assert 0.9 < np.exp(np.mean(np.log(aspects))) < 1.1


@pytest.mark.parametrize("shape", [(64, 512), (512, 64), (64, 64)], ids=str)
def test_crops_of_long_images_stay_nearly_square(shape):
    y, x = np.mgrid[: shape[0], : shape[1]]
    canvas = np.stack([x // 4, y // 4, 0 * x], axis=-1).astype(np.uint8)
    starts = set()
    for seed in range(40):
        ours = view(canvas, seed, to=64, crop=0.9).astype(float) * 4
        wide, high = ours[:, -1, 0].max() - ours[:, 0, 0].min(), np.ptp(ours[..., 1])
        assert high > 50
        assert wide <= 4 / 3 * 64 + 8
        starts.add((ours[0, 0, 0], ours[0, 0, 1]))
    if shape != (64, 64):
        assert len(starts) > 10  # any place of the long side


def test_a_rotation_is_torchvisions_then_the_centre():
    canvas = image(96, 96)
    fill = [float(v) for v in canvas.reshape(-1, 3).mean(axis=0)]
    angles = []
    for seed in range(12):
        angle = np.random.default_rng(seed).uniform(-25, 25)
        reference = v2.functional.rotate(
            torch.from_numpy(canvas).permute(2, 0, 1),
            angle,
            v2.InterpolationMode.BILINEAR,
            fill=fill,
        )
        expected = centre(reference.permute(1, 2, 0).numpy())
        np.testing.assert_array_equal(view(canvas, seed, rotation=25), expected)
        angles.append(angle)
    assert min(angles) < -10 < 10 < max(angles)


@pytest.mark.parametrize("name", ["brightness", "contrast"])
def test_light_is_torchvisions_within_the_asked_range(name):
    canvas = image()
    adjust = getattr(v2.functional, f"adjust_{name}")
    tensor = torch.from_numpy(centre(canvas)).permute(2, 0, 1)
    for seed in range(12):
        factor = 1 + np.random.default_rng(seed).uniform(-0.4, 0.4)
        reference = adjust(tensor, factor).permute(1, 2, 0).int().numpy()
        ours = view(canvas, seed, **{name: 0.4})
        assert np.abs(ours - reference).max() <= 1


# -------------------------------------------------------------------------------- contract


@pytest.mark.parametrize("settings", [{k: v} for k, v in EACH.items()] + [EACH], ids=str)
def test_a_view_is_a_function_of_canvas_settings_and_seed(settings):
    canvas = image()
    canvas.flags.writeable = False
    views = [view(canvas, seed, **settings) for seed in range(6)]
    assert len({v.tobytes() for v in views}) > 1
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1 if before > 1 else 2)
        torch.manual_seed(1)
        again = [view(canvas, seed, **settings) for seed in reversed(range(6))][::-1]
    finally:
        torch.set_num_threads(before)
    for one, other in zip(views, again, strict=True):
        np.testing.assert_array_equal(one, other)
        assert one.shape == (64, 64, 3)
        assert one.dtype == np.uint8
        assert one.flags.c_contiguous
        assert one.flags.writeable
    np.testing.assert_array_equal(canvas, image())


@pytest.mark.parametrize("settings", [{}, EACH, {"flip": True}], ids=str)
def test_a_view_has_memory_of_its_own(settings):
    canvas = image(64, 64)
    for seed in range(4):
        assert not np.shares_memory(view(canvas, seed, **settings), canvas)


def test_strided_canvases_are_read():
    canvas = image(96, 96)
    np.testing.assert_array_equal(
        view(canvas[:, ::-1], 3, **EACH), view(canvas[:, ::-1].copy(), 3, **EACH)
    )


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_the_interpolation_is_the_asked_one(interpolation):
    canvas = image(128, 128)
    ours = view(canvas, 4, crop=0.999, interpolation=interpolation)
    reference = v2.functional.resize(
        torch.from_numpy(canvas).permute(2, 0, 1), [64, 64], v2.InterpolationMode(interpolation)
    )
    difference = np.abs(ours.astype(int) - reference.permute(1, 2, 0).numpy())
    other = view(
        canvas, 4, crop=0.999, interpolation={"bilinear": "bicubic"}.get(interpolation, "bilinear")
    )
    assert difference.mean() < np.abs(ours.astype(int) - other).mean()


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_what_they_are_called(name):
    preset = Augmentation.named(name)
    assert preset.is_off == (name == "none")
    assert preset == Augmentation(**PRESETS[name])
    assert preset.views == 0


def test_presets_change_more_and_more():
    canvas = image(96, 96)

    def change(name: str) -> float:
        rng = np.random.default_rng(0)
        one = {"to": 64, "interpolation": "bilinear", "augmentation": Augmentation.named(name)}
        views = [augment(canvas, **one, rng=rng) for _ in range(60)]
        return float(np.mean([np.abs(v - centre(canvas).astype(float)).mean() for v in views]))

    changes = [change(name) for name in ("none", "light", "medium")]
    assert changes == sorted(changes)
    assert changes[0] == 0 < changes[1] < changes[2]


def test_fingerprint_changes_with_every_setting_but_views():
    assert set(EACH) | {"views"} == {f.name for f in dataclasses.fields(Augmentation)}
    variants = [Augmentation(), *(Augmentation(**{k: v}) for k, v in EACH.items())]
    for one, other in itertools.combinations(variants, 2):
        assert one.fingerprint() != other.fingerprint()
    for one in variants:
        assert one.fingerprint() == dataclasses.replace(one, views=3).fingerprint()
        assert one.is_off == dataclasses.replace(one, views=3).is_off
    assert Augmentation(rotation=10).fingerprint() == Augmentation(rotation=10.0).fingerprint()


# --------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    "settings",
    [
        {"rotation": -1},
        {"rotation": 181},
        {"rotation": float("nan")},
        {"brightness": -0.1},
        {"brightness": 1.1},
        {"contrast": 2},
        {"crop": 0},
        {"crop": 1.01},
        {"crop": float("nan")},
        {"views": -1},
    ],
    ids=str,
)
def test_values_that_cannot_be_meant_are_refused(settings):
    with pytest.raises(UsageError, match=f"Expected `{next(iter(settings))}`"):
        Augmentation(**settings)


def test_unknown_names_are_refused():
    with pytest.raises(UnknownNameError, match="Did you mean 'trivialaugment'"):
        Augmentation(policy="trivialaugmnt")
    with pytest.raises(UnknownNameError, match="Did you mean 'medium'"):
        Augmentation.named("mediun")


@pytest.mark.parametrize(
    "canvas",
    [
        np.zeros((64, 64, 3), dtype=np.float32),
        np.zeros((64, 64), dtype=np.uint8),
        np.zeros((64, 64, 4), dtype=np.uint8),
        np.zeros((63, 80, 3), dtype=np.uint8),
    ],
    ids=lambda a: f"{a.dtype}{a.shape}",
)
def test_a_canvas_that_does_not_fit_is_refused(canvas):
    for settings in ({}, EACH):
        with pytest.raises(UsageError, match=r"Expected `(canvas|to)`"):
            view(canvas, **settings)
