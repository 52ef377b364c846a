"""The graph of the preprocessing, against the preprocessing of the model."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image

from headstart.data.transforms.preprocess import Preprocess
from headstart.exports.pixel_graph import pixel_graph

SIZES = [(7, 300), (300, 7), (64, 64), (73, 73), (73, 90), (97, 161), (333, 334), (640, 479)]
SIZES += [(1, 1), (1, 50), (9, 1), (20, 33), (12, 1000), (8, 64), (8, 65), (65, 8)]
FITS: list[dict[str, Any]] = [{"fit": "crop"}, {"fit": "squash"}, {"canvas": (96, 160)}]


def _session(preprocess: Preprocess) -> onnxruntime.InferenceSession:
    content = pixel_graph(preprocess, "pixels", opset=20, ir_version=10).SerializeToString()
    return onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize(
    ("interpolation", "fit"), list(itertools.product(["bilinear", "bicubic"], FITS))
)
def test_pixels_are_within_two_grey_levels(interpolation: Any, fit: dict[str, Any]) -> None:
    std = (0.229, 0.224, 0.225)
    preprocess = Preprocess(
        resize=73, crop=64, interpolation=interpolation, mean=(0.485, 0.456, 0.406), std=std, **fit
    )
    session, rng = _session(preprocess), np.random.default_rng(0)
    for height, width in SIZES:
        noise = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        few = Image.fromarray(rng.integers(0, 256, (6, 7, 3), dtype=np.uint8))
        for pixels in (noise, np.asarray(few.resize((width, height), Image.Resampling.BICUBIC))):
            batch = torch.from_numpy(preprocess.resize_and_crop(pixels)).permute(2, 0, 1)[None]
            outputs = session.run(None, {"image": pixels})
            differences = np.abs(outputs[0] - preprocess.normalise(batch).numpy())
            levels = differences * 255 * np.array(std).reshape(1, 3, 1, 1)
            assert levels.max() < 2.01, (height, width)
            if preprocess.canvas is not None:
                place = preprocess.placement(height, width)
                assert outputs[1].tolist() == [place.rows, place.columns]


def test_an_image_of_the_networks_size_is_not_changed() -> None:
    preprocess = Preprocess(
        resize=32, crop=32, interpolation="bicubic", mean=(0.0,) * 3, std=(1 / 255,) * 3
    )
    pixels = np.random.default_rng(1).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    (output,) = _session(preprocess).run(None, {"image": pixels})
    assert np.abs(output[0].transpose(1, 2, 0) - pixels).max() < 1e-4
