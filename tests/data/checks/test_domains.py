"""Images like chest X-rays: the statistics by loops, and drawn images with and without them."""

import numpy as np
import pytest

from headstart.data.checks.domains import REFERENCES, find_image_domain, sketch_statistics
from headstart.data.checks.scan import ImageRecord, scan
from headstart.data.dataset import Sample


def draw(rng: np.random.Generator) -> np.ndarray:
    """Dark corners above two shoulders, bright spine and belly, two darker lungs, some noise."""
    y, x = np.mgrid[:32, :32] / 31
    left = np.minimum(x, 1 - x)
    grey = 150 - 75 * np.exp(-(((left - 0.02) / 0.14) ** 2 + (y / 0.3) ** 2))
    grey -= 62 * np.exp(-(((left - 0.29) / 0.1) ** 2 + ((y - 0.36) / 0.24) ** 2))
    grey += 75 * np.exp(-(((left - 0.5) / 0.12) ** 2)) * (0.4 + 0.6 * y) + 35 * (y - 0.5)
    noise = np.kron(rng.normal(0, 20, (8, 8)), np.ones((4, 4)))
    return np.clip(grey + noise + rng.normal(0, 6, (32, 32)), 0, 255).astype(np.uint8)


def records_of(images: list[np.ndarray]) -> list[ImageRecord]:
    return [ImageRecord(digest="", sketch=image.tobytes()) for image in images]


def test_drawn_radiographs_are_recognised() -> None:
    rng = np.random.default_rng(0)
    records = records_of([draw(rng) for _ in range(30)])
    found = find_image_domain(records)
    assert found is not None
    reference, share = found
    assert (reference.name, reference.prefix) == ("chest X-rays", "xray/")
    assert share >= 0.6
    assert find_image_domain(records[:19]) is None
    assert find_image_domain([*records[:19], ImageRecord(digest="")]) is None  # unreadable


@pytest.mark.parametrize("kind", ["noise", "upside down", "negative", "plain", "shifted"])
def test_other_images_are_not(kind: str) -> None:
    rng = np.random.default_rng(1)
    images = [draw(rng) for _ in range(30)]
    others = {
        "noise": [rng.integers(0, 255, (32, 32), np.uint8) for _ in images],
        "upside down": [np.ascontiguousarray(image[::-1]) for image in images],
        "negative": [255 - image for image in images],
        "plain": [np.full((32, 32), 150, np.uint8) for _ in images],
        "shifted": [np.roll(image, 12, axis=1) for image in images],
    }
    assert find_image_domain(records_of(others[kind])) is None


def test_statistics_are_those_of_loops() -> None:
    grey = np.random.default_rng(2).integers(0, 255, (3, 32, 32), np.uint8)
    for image, found in zip(grey, sketch_statistics(grey), strict=True):
        blocks = image.astype(float)
        cells = np.array(
            [
                [blocks[4 * i : 4 * i + 4, 4 * j : 4 * j + 4].mean() for j in range(8)]
                for i in range(8)
            ]
        )
        z = (cells - cells.mean()) / cells.std()
        half = [
            np.mean([z[i, j] + z[i, 7 - j] for i in (2 * r, 2 * r + 1) for j in (2 * c, 2 * c + 1)])
            / 2
            for r in range(4)
            for c in range(2)
        ]
        assert found[:8] == pytest.approx(half, abs=1e-6)
        assert found[8] == pytest.approx(np.corrcoef(z.ravel(), z[:, ::-1].ravel())[0, 1], abs=1e-6)
        assert found[9] == pytest.approx(np.log(cells.std()), abs=1e-6)
        assert found[11] == pytest.approx(image.mean() / 255)
        steps = (
            np.square(np.diff(blocks, axis=0)).mean() + np.square(np.diff(blocks, axis=1)).mean()
        )
        assert found[10] == pytest.approx(np.log(steps + 1))


def test_references_fit_the_statistics_and_the_scan_keeps_the_levels() -> None:
    (record,) = scan([Sample(image=np.random.default_rng(3).integers(0, 255, (64, 64), np.uint8))])
    assert len(record.sketch) == 1024
    for reference in REFERENCES:
        assert (
            len(reference.mean)
            == len(reference.spread)
            == sketch_statistics(np.zeros((1, 32, 32), np.uint8)).shape[1]
        )
        assert min(reference.spread) > 0
