"""The verb that writes the page of a data set."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import headstart
from headstart.errors import UnknownNameError, UsageError


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(3):
            pixels = rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{i}.png")
    return tmp_path / "photos"


def test_a_page_has_its_path_or_the_next_free_name(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert headstart.view_data(photos) == Path("runs/data-photos.html")
    assert headstart.view_data(photos) == Path("runs/data-photos-2.html")
    data = headstart.read_dataset(photos)
    page = headstart.view_data(data, "new/page.html", cache=False)
    assert "6 images, 2 classes" in page.read_text("utf-8")


def test_settings_of_reading_are_used(photos: Path, tmp_path: Path) -> None:
    page = headstart.view_data(photos, tmp_path / "a.html", group_by=r"(\d)\.png")
    assert "3 groups" in page.read_text("utf-8")


def test_nothing_is_overwritten_and_wrong_arguments_are_named(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.html").write_text("mine")
    with pytest.raises(UsageError, match=r"mine.html' exists already.*Pass another --out"):
        headstart.view_data(photos, tmp_path / "mine.html")
    assert (tmp_path / "mine.html").read_text() == "mine"
    with pytest.raises(UsageError, match=r"no HTML file. Pass a file name, such as --out '.*html'"):
        headstart.view_data(photos, tmp_path / "folder")
    with pytest.raises(UnknownNameError, match="group_by"):
        headstart.view_data(photos, tmp_path / "b.html", groupby="x")
    assert not (tmp_path / "b.html").exists()
