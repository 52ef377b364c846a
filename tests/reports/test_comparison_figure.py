"""The image of a comparison: its size, and that better is higher."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageColor

from headstart.evaluation.comparison import Comparison, Curve, Point
from headstart.metrics.confidence_intervals import Interval
from headstart.reports.comparison import COLOURS, DPI, draw_comparison


def _comparison(names: tuple[str, ...], sizes: tuple[int, ...]) -> Comparison:
    def at(size: int, k: int) -> Point:
        value = 0.5 + 0.15 * k + size / 1000
        score = Interval(value=value, low=value - 0.05, high=value + 0.05, method="t")
        rules = {"majority $class": 0.52}
        return Point(fraction=size / 200, images=size, score=score, seconds=1.0, rules=rules)

    curves = tuple(
        Curve(name=name, backbone="b", method=name, points=tuple(at(s, k) for s in sizes))
        for k, name in enumerate(names)
    )
    return Comparison(
        name="photos",
        task="classification",
        measure="mean IoU",
        results=(),
        curves=curves,
        effects=(),
        sentences=(),
        test="",
        split="",
        budget="",
        seconds=1.0,
    )


def _height(path: Path, colour: str) -> float:
    """How high the pixels of a colour lie on average, without those of the legend."""
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    near = np.abs(pixels - ImageColor.getrgb(colour)).sum(axis=2) < 12
    rows = np.nonzero(near[:, near.shape[1] * 2 // 3 :])[0]
    assert len(rows) > 50
    return float(-rows.mean())


@pytest.mark.parametrize("sizes", [(20, 60, 200), (200,)])
def test_better_is_higher(tmp_path: Path, sizes: tuple[int, ...]) -> None:
    names = ("scratch", "probe") if len(sizes) > 1 else ("a", "b", "scratch?x=$1$", "$probe")
    path = tmp_path / "compare.png"
    draw_comparison(_comparison(names, sizes), path)
    with Image.open(path) as image:
        assert (image.format, image.size) == ("PNG", (1650, 1080))
        assert image.info["dpi"] == pytest.approx((DPI, DPI), abs=1)
    lower, upper = (COLOURS[k] for k in (len(names) - 2, len(names) - 1))
    if len(sizes) > 1:
        assert _height(path, upper) > _height(path, lower)


def test_settings_of_the_user_have_no_say(tmp_path: Path) -> None:
    import matplotlib

    found = _comparison(("scratch", "probe"), (20, 200))
    draw_comparison(found, tmp_path / "plain.png")
    with matplotlib.rc_context({"lines.linestyle": ":", "figure.facecolor": "red"}):
        draw_comparison(found, tmp_path / "set.png")
        assert matplotlib.rcParams["lines.linestyle"] == ":"
    assert (tmp_path / "plain.png").read_bytes() == (tmp_path / "set.png").read_bytes()
