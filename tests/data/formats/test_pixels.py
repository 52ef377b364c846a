"""Images in memory: which forms are taken as they are, and which are refused."""

import numpy as np
import pytest
import torch
from PIL import Image

from headstart.data.formats.pixels import image_bytes, split_stack, to_image
from headstart.errors import UsageError

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((8, 9), (8, 9)),
        ((8, 9, 3), (8, 9, 3)),
        ((3, 8, 9), (8, 9, 3)),
        ((1, 8, 9), (8, 9, 1)),
        ((4, 9, 3), (4, 9, 3)),  # an array has its channels last if it can
    ],
)
def test_channels_of_an_array(shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    assert to_image(np.zeros(shape, dtype=np.uint8), "image 0", "the list").shape == expected


def test_channels_of_a_tensor_are_first() -> None:
    pixels = torch.zeros((3, 8, 3), dtype=torch.uint8)
    assert to_image(pixels, "image 0", "the list").shape == (8, 3, 3)


def test_floats_become_the_bytes_they_were() -> None:
    pixels = RNG.integers(0, 256, (8, 9, 3), dtype=np.uint8)
    for scaled in (pixels / 255, (pixels / 255).astype(np.float32), torch.from_numpy(pixels) / 255):
        np.testing.assert_array_equal(to_image(scaled, "image 0", "the list"), pixels)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "bool"])
def test_other_pixels_stay_as_they_are(dtype: str) -> None:
    pixels = RNG.integers(0, 2, (4, 4)).astype(dtype)
    assert to_image(pixels, "image 0", "the list") is pixels


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        (np.zeros((8, 9, 5), dtype=np.uint8), r"got \(8, 9, 5\)"),
        (np.zeros((2, 2, 2, 3), dtype=np.uint8), r"got \(2, 2, 2, 3\)"),
        (np.zeros((0, 4), dtype=np.uint8), r"shape \(0, 4\)"),
        (np.full((4, 4), 255.0), "astype"),
        (np.full((4, 4), 1000), "Divide by the value of white"),
        (np.full((4, 4), -0.5), "normalised"),
        (np.full((4, 4), np.nan), "nan"),
        (3.5, "got float"),
        ({"path": "1.jpg"}, "got dict"),
    ],
)
def test_refusals(cell: object, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        to_image(cell, "image 3", "the list")


def test_a_stack_keeps_its_memory() -> None:
    stack = RNG.integers(0, 256, (3, 3, 8, 9), dtype=np.uint8)
    assert all(np.shares_memory(image, stack) for image in split_stack(stack, "the arrays"))
    with pytest.raises(UsageError, match="got str"):
        split_stack("photos", "the arrays")


def test_memory_of_an_image() -> None:
    assert image_bytes(Image.new("RGB", (4, 5))) == 60
    assert image_bytes(torch.zeros(3, 4, 5)) == 60
    assert image_bytes({"bytes": b"GIF89a", "path": None}) == 6
    assert image_bytes({"bytes": None, "path": "1.gif"}) == image_bytes(3) == 0
