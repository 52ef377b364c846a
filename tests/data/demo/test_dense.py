from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from headstart.data.dataset import IGNORED, Boxes, Dataset, Mask, Sample
from headstart.data.demo import classification as demo
from headstart.data.masks import decode_mask
from headstart.data.readers import read_dataset
from headstart.data.splits import assign_splits
from headstart.errors import UsageError

NAMES = ("boxes", "masks")


def pixels(sample: Sample) -> NDArray[np.uint8]:
    return np.asarray(sample.image)


def boxes_of(sample: Sample) -> Boxes:
    assert isinstance(sample.target, Boxes)
    return sample.target


def mask_of(sample: Sample) -> Mask:
    assert isinstance(sample.target, Mask)
    return sample.target


def written(name: str, root: Path) -> Dataset:
    demo.write(name, root / "set")
    return read_dataset(root / "set")


@pytest.mark.parametrize("name", NAMES)
class TestBoth:
    def test_images(self, name: str) -> None:
        data = read_dataset(f"demo:{name}")
        assert len(data) == 120
        assert len({pixels(sample).tobytes() for sample in data.samples}) == 120
        shapes = np.asarray([pixels(sample).shape[:2] for sample in data.samples])
        assert 80 < shapes.min() < shapes.max() < 190
        ratio = shapes[:, 1] / shapes[:, 0]
        assert ratio.min() < 0.75
        assert ratio.max() > 1.3
        assert all(pixels(s).dtype == np.uint8 for s in data.samples)
        assert not any(pixels(s).flags.writeable for s in data.samples)

    def test_every_class_can_be_learned_and_judged(self, name: str) -> None:
        data = assign_splits(demo.load(name))
        assert abs(len(data.split("test")) / len(data) - 0.2) < 0.03
        assert min(data.counts().values()) >= 60
        assert min(data.split("test").counts().values()) >= 10

    def test_the_same_every_time(self, name: str) -> None:
        before = demo.load(name)
        demo._generate.cache_clear()
        np.random.seed(7)  # noqa: NPY002 - the global state must not matter
        after = demo.load(name)
        for one, other in zip(before.samples, after.samples, strict=True):
            assert (pixels(one) == pixels(other)).all()
            if name == "boxes":
                assert one.target == other.target
            else:
                assert np.array_equal(
                    np.asarray(mask_of(one).source), np.asarray(mask_of(other).source)
                )

    def test_brings_its_own_task(self, name: str) -> None:
        with pytest.raises(UsageError, match=r"task_kind=.*Remove these arguments"):
            read_dataset(f"demo:{name}", task_kind="multiclass")

    def test_examples_may_lie_on_disk(self, name: str, tmp_path: Path) -> None:
        data = demo.load(name, folder=tmp_path / "set")
        for sample, held in list(zip(data.samples, demo.load(name).samples, strict=True))[::40]:
            assert isinstance(sample.image, Path)
            assert (np.asarray(Image.open(sample.image)) == pixels(held)).all()
            if name == "masks":
                assert mask_of(sample).source == tmp_path / "set/masks" / sample.image.name

    def test_what_is_written_reads_back(self, name: str, tmp_path: Path) -> None:
        data, read = demo.load(name), written(name, tmp_path)
        assert (read.kind, read.classes) == (data.kind, data.classes)
        assert len(read) == len(data)
        for one, other in zip(data.samples, read.samples, strict=True):
            assert other.name == str(tmp_path / "set" / one.name)
            if name == "boxes":
                np.testing.assert_array_equal(boxes_of(one).array(), boxes_of(other).array())
                assert boxes_of(one).labels == boxes_of(other).labels
                assert not boxes_of(other).is_hard().any()
            else:
                assert mask_of(one).present == mask_of(other).present
                back = decode_mask(mask_of(other), read.classes)
                np.testing.assert_array_equal(back, decode_mask(mask_of(one), data.classes))


class TestBoxes:
    def test_lie_around_what_was_painted(self) -> None:
        """Outside its boxes an image is a photograph; inside it has the colour of a symbol."""
        for sample in demo.load("boxes").samples:
            height, width = pixels(sample).shape[:2]
            assert boxes_of(sample).size == (width, height)
            for left, top, right, bottom in boxes_of(sample).corners:
                assert 0 <= left < right <= width
                assert 0 <= top < bottom <= height
                assert 15 < right - left < 70
                centre = pixels(sample)[int(top + bottom) // 2, int(left + right) // 2]
                assert centre.max() / 255 > 0.55
                assert centre.min() < 0.5 * centre.max()

    def test_some_images_show_nothing(self) -> None:
        counts = [len(boxes_of(sample).labels) for sample in demo.load("boxes").samples]
        assert 0.1 < counts.count(0) / len(counts) < 0.25
        assert max(counts) == 4


class TestMasks:
    def test_cover_the_image(self) -> None:
        data = demo.load("masks")
        assert data.classes == ("background", "cross", "disc", "triangle")
        for sample in data.samples:
            classes = decode_mask(mask_of(sample), data.classes)
            assert classes.shape == pixels(sample).shape[:2]
            seen = [n for i, n in enumerate(data.classes) if (classes == i).any()]
            assert mask_of(sample).present == tuple(seen)

    def test_agree_with_the_colours(self) -> None:
        """A symbol's pixels are one colour, which a photograph's are not."""
        samples = demo.load("masks").samples
        for sample in samples[:40]:
            classes = np.asarray(mask_of(sample).source)
            for index in (1, 2, 3):
                inside = pixels(sample)[classes == index].astype(float)
                if len(inside):
                    hue = inside.mean(0).argmax()
                    assert hue == {1: 2, 2: 0, 3: 1}[index]

    def test_some_images_have_an_ignored_region(self) -> None:
        shares = [
            (np.asarray(mask_of(s).source) == IGNORED).mean() for s in demo.load("masks").samples
        ]
        assert np.mean(np.asarray(shares) > 0) == 0.25
        assert max(shares) < 0.2

    def test_masks_can_be_looked_at(self, tmp_path: Path) -> None:
        """A mask is indexed, so that it shows colours, but its codes are the indices."""
        demo.write("masks", tmp_path / "set")
        image = Image.open(tmp_path / "set/masks/n_0001.png")
        assert image.mode == "P"
        assert np.asarray(image.convert("RGB")).max() == 230
        assert 0 < np.asarray(image).max() <= 3
        assert (tmp_path / "set/classes.txt").read_text().split()[0] == "background"
