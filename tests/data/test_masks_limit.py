"""Masks obey the limit of pixels of their images."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from headstart.cache import Cache
from headstart.data.masks import decode_mask
from headstart.data.prepare import inspect_dataset
from headstart.data.readers import read_dataset
from headstart.errors import UnreadableImageError


@pytest.fixture
def streets(tmp_path) -> Path:
    """Four images of 20 x 20 pixels, with masks of 40 x 40."""
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    for i in range(4):
        rng = np.random.default_rng(i)
        image = rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)
        Image.fromarray(image).save(tmp_path / "images" / f"{i}.png")
        mask = rng.integers(0, 3, (40, 40)).astype(np.uint8)
        Image.fromarray(mask).save(tmp_path / "masks" / f"{i}.png")
    return tmp_path


def test_a_mask_above_the_limit_names_the_flag(streets):
    with pytest.raises(UnreadableImageError, match="--max-pixels 1600 allows it"):
        read_dataset(streets, max_pixels=1599)


@pytest.mark.parametrize("max_pixels", [None, 1600, 300_000_000])
def test_the_limit_travels_with_the_mask(streets, max_pixels):
    data = read_dataset(streets, max_pixels=max_pixels)
    assert {sample.target.max_pixels for sample in data.samples} == {max_pixels or 178_956_970}
    assert decode_mask(data.samples[0].target, data.classes).shape == (40, 40)
    _, findings = inspect_dataset(data, cache=Cache())
    assert "mask-unreadable" not in {finding.kind for finding in findings}


def test_one_mask_above_the_limit_is_a_finding(streets):
    mask = Image.open(streets / "masks" / "0.png")
    mask.resize((80, 80), Image.Resampling.NEAREST).save(streets / "masks" / "0.png")
    data = read_dataset(streets, max_pixels=1600)
    _, findings = inspect_dataset(data, cache=Cache())
    (finding,) = [finding for finding in findings if finding.kind == "mask-unreadable"]
    assert "--max-pixels 6400" in finding.message
    _, findings = inspect_dataset(read_dataset(streets, max_pixels=6400), cache=Cache())
    assert "mask-unreadable" not in {finding.kind for finding in findings}
