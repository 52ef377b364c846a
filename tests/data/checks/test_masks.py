from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from headstart.cache import Cache
from headstart.data.checks.images import Finding
from headstart.data.dataset import Dataset, Mask, Palette, Sample
from headstart.data.prepare import inspect_dataset, prepare
from headstart.data.readers import read_dataset
from headstart.errors import DataError

SHAPE = (24, 30)
CLASSES = "background\nleaf\nsoil\n"


def grid(*values: int) -> np.ndarray:
    """A mask of these values in equal stripes."""
    return np.repeat(np.asarray(values, dtype=np.uint8), 720 // len(values)).reshape(SHAPE)


def make(
    root: Path, masks: Mapping[str, np.ndarray], *, classes: str | None = CLASSES, exif: int = 1
) -> Path:
    tags = Image.Exif()
    tags[0x0112] = exif
    for folder in ("images", "masks"):
        (root / folder).mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    for stem, values in masks.items():
        pixels = rng.integers(0, 256, size=(*SHAPE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / f"images/{stem}.png", exif=tags)
        Image.fromarray(values).save(root / f"masks/{stem}.png")
    if classes is not None:
        (root / "classes.txt").write_text(classes)
    return root


GOOD = {f"good{i}": grid(0, 1, 2) for i in range(12)}


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


def audit(root: Path, cache: Cache) -> dict[str, Finding]:
    findings = inspect_dataset(root, cache=cache)[1]
    return {f.kind: f for f in findings if f.kind != "rare-class"}


def test_nothing_to_say(tmp_path: Path, cache: Cache) -> None:
    assert audit(make(tmp_path, GOOD), cache) == {}


class TestErrors:
    def mistake(self, root: Path, kind: str) -> None:
        make(root, {**GOOD, "bad": grid(0, 1)})
        if kind == "mask-size":
            Image.fromarray(grid(0, 1)[:, :-1]).save(root / "masks/bad.png")
        if kind == "mask-values":
            Image.fromarray(grid(0, 77)).save(root / "masks/bad.png")
        if kind == "mask-unreadable":
            (root / "masks/bad.png").write_bytes(b"<html>")
        if kind == "mask-missing":
            (root / "masks/bad.png").unlink()

    @pytest.mark.parametrize(
        ("kind", "reason"),
        [
            ("mask-size", "30 x 24 pixels, its mask 29 x 24"),
            ("mask-values", "77 (360 pixels)"),
            ("mask-unreadable", "HTML page"),
            ("mask-missing", "an image without a mask"),
        ],
    )
    def test_named_refused_or_left_out(
        self, tmp_path: Path, cache: Cache, kind: str, reason: str
    ) -> None:
        self.mistake(tmp_path, kind)
        found = audit(tmp_path, cache)
        assert list(found) == [kind]
        assert found[kind].severity == "error"
        assert "bad.png" in found[kind].message
        assert reason in found[kind].message
        assert found[kind].paths[0] == str(tmp_path / "images/bad.png")
        with pytest.raises(DataError, match=r"(?s)got 1 that cannot be used.*bad\.png"):
            prepare(tmp_path, cache=cache)
        prepared = prepare(tmp_path, cache=cache, bad_files="skip")
        assert len(prepared.data) == len(prepared.records) == len(GOOD)
        assert kind in [finding.kind for finding in prepared.findings]

    @pytest.mark.parametrize("wrong", ["values", "size", "missing"])
    def test_arrays_without_a_name_are_left_out_one_by_one(self, cache: Cache, wrong: str) -> None:
        rng, palette = np.random.default_rng(0), Palette(codes=((0, "soil"), (1, "leaf")))
        masks = [grid(0, 1)] * 13
        masks[5] = {"values": grid(0, 77), "size": grid(0, 1)[:, :-1], "missing": None}[wrong]
        samples = [
            Sample(
                image=rng.integers(0, 256, size=(*SHAPE, 3), dtype=np.uint8),
                target=None if mask is None else Mask(source=mask, palette=palette),
            )
            for mask in masks
        ]
        samples[2] = replace(samples[2], image=b"no image")  # rows move up behind it
        data = Dataset(samples=tuple(samples), classes=palette.names, kind="segmentation")
        with pytest.raises(DataError):
            prepare(data, cache=cache)
        kept = prepare(data, cache=cache, bad_files="skip").data.samples
        expected = [id(s.image) for i, s in enumerate(samples) if i not in {2, 5}]
        assert sorted(id(sample.image) for sample in kept) == sorted(expected)

    def test_all_bad(self, tmp_path: Path, cache: Cache) -> None:
        make(tmp_path, {"a": grid(0, 77), "b": grid(1, 77)})
        with pytest.raises(DataError, match="2 that cannot be used"):
            prepare(tmp_path, cache=cache, bad_files="skip")


class TestTurned:
    @pytest.mark.parametrize("exif", [1, 3, 6])
    @pytest.mark.parametrize("turned", [False, True])
    def test_sizes_of_turned_images(
        self, tmp_path: Path, cache: Cache, exif: int, turned: bool
    ) -> None:
        masks = {n: np.ascontiguousarray(m.T) if turned else m for n, m in GOOD.items()}
        found = audit(make(tmp_path, masks, exif=exif), cache)
        wrong = turned and exif != 6  # as shown, or as stored: both are right for 6
        expected = {"mask-size"} if wrong else {"mask-turned"} if exif == 3 else set()
        assert set(found) == expected


class TestWarnings:
    def test_a_mask_without_an_image(self, tmp_path: Path, cache: Cache) -> None:
        make(tmp_path, {**GOOD, "bad": grid(0, 1)})
        (tmp_path / "images/bad.png").unlink()
        (tmp_path / "masks/._good1.png").touch()  # as one system writes them
        (tmp_path / "masks/good1_color.png").touch()
        found = audit(tmp_path, cache)
        assert list(found) == ["mask-spare"]
        assert found["mask-spare"].paths == (str(tmp_path / "masks/bad.png"),)

    def test_ignored_as_a_whole(self, tmp_path: Path, cache: Cache) -> None:
        found = audit(make(tmp_path, {**GOOD, "bad": grid(255)}), cache)
        assert list(found) == ["mask-ignored"]
        assert found["mask-ignored"].paths == (str(tmp_path / "images/bad.png"),)

    @pytest.mark.parametrize(("count", "severity"), [(1, "note"), (13, "warning")])
    def test_background_only(self, tmp_path: Path, cache: Cache, count: int, severity: str) -> None:
        empty = {f"empty{i}": grid(0) for i in range(count)}
        found = audit(make(tmp_path, {**GOOD, **empty}), cache)["mask-background"]
        assert (len(found.paths), found.severity) == (count, severity)

    def test_a_class_that_is_never_there(self, tmp_path: Path, cache: Cache) -> None:
        make(tmp_path, GOOD, classes=CLASSES + "snow\n")
        found = audit(tmp_path, cache)
        assert list(found) == ["empty-class"]
        assert "snow" in found["empty-class"].message
        assert found["empty-class"].severity == "warning"
        assert len(prepare(tmp_path, cache=cache).data) == len(GOOD)

    def test_one_class_nearly_everywhere(self, tmp_path: Path, cache: Cache) -> None:
        rare = grid(0)
        rare[0, :5] = 1, 1, 2, 2, 2
        found = audit(make(tmp_path, dict.fromkeys(GOOD, rare)), cache)
        assert "99.3%" in found["mask-dominant"].message

    def test_near_duplicates_may_show_other_classes(self, tmp_path: Path, cache: Cache) -> None:
        make(tmp_path, GOOD)
        pixels = np.asarray(Image.open(tmp_path / "images/good0.png")).copy()
        pixels[0, 0] = 0
        Image.fromarray(pixels).save(tmp_path / "images/twin.png")
        Image.fromarray(grid(0, 1)).save(tmp_path / "masks/twin.png")
        assert list(audit(tmp_path, cache)) == ["near-duplicate"]


class TestBinary:
    def test_0_and_255(self, tmp_path: Path, cache: Cache) -> None:
        make(tmp_path, {name: grid(0, 255) for name in GOOD}, classes=None)
        found = audit(tmp_path, cache)
        assert found["mask-binary"].message == "0/255 read as background and object"
        assert found["mask-binary"].severity == "note"
        assert read_dataset(tmp_path).counts() == {"background": 12, "object": 12}

    def test_255_where_the_object_has_another_code(self, tmp_path: Path, cache: Cache) -> None:
        masks = {name: grid(0, 255) for name in GOOD}
        make(tmp_path, masks, classes="0 background\n1 object\n")
        found = audit(tmp_path, cache)
        assert found["mask-binary"].severity == "warning"
        assert "as a line '255 name'" in found["mask-binary"].message
