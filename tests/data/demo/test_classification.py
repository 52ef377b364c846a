from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score

from headstart.data.demo import classification as demo
from headstart.data.readers import read_dataset
from headstart.data.splits import assign_splits
from headstart.errors import UnknownNameError, UsageError

SIZES = {
    "digits": (600, 10),
    "scenes": (336, 7),
    "shapes": (300, 3),
    "symbols": (480, 8),
    "textures": (400, 5),
}


def pixels(name: str) -> list[np.ndarray]:
    return [np.asarray(sample.image) for sample in demo.load(name).samples]


def test_names() -> None:
    assert demo.names() == tuple(sorted((*SIZES, "boxes", "masks")))


@pytest.mark.parametrize("name", SIZES)
class TestEverySet:
    def test_size_and_balance(self, name: str) -> None:
        data = demo.load(name)
        assert (len(data), len(data.classes)) == SIZES[name]
        counts = list(data.counts().values())
        if data.kind == "multiclass":
            assert len(set(counts)) == 1
        assert min(counts) >= 48
        assert data.name == f"demo:{name}"
        assert data.classes == tuple(sorted(data.classes))

    def test_images(self, name: str) -> None:
        for image in pixels(name):
            assert image.dtype == np.uint8
            assert image.ndim == 3
            assert image.shape[2] == 3
            assert image.std() > 1
            assert not image.flags.writeable

    def test_no_image_twice(self, name: str) -> None:
        assert len({image.tobytes() for image in pixels(name)}) == SIZES[name][0]

    def test_the_same_every_time(self, name: str) -> None:
        before = [image.tobytes() for image in pixels(name)]
        demo._generate.cache_clear()
        np.random.seed(7)  # noqa: NPY002 - the global state must not matter
        assert [image.tobytes() for image in pixels(name)] == before

    def test_what_is_written_reads_back(self, name: str, tmp_path: Path) -> None:
        from PIL import Image

        data = demo.load(name, folder=tmp_path / "set")
        assert data.kind == demo.load(name).kind
        read = read_dataset(
            tmp_path / "set", group_by=r"place\d+" if name in {"scenes", "textures"} else None
        )
        assert (read.classes, read.kind) == (data.classes, data.kind)
        expected = {s.image: (s.target, s.group) for s in data.samples}
        assert {s.image: (s.target, s.group) for s in read.samples} == expected
        for sample, image in list(zip(data.samples, pixels(name), strict=True))[::50]:
            assert isinstance(sample.image, Path)
            assert (np.asarray(Image.open(sample.image)) == image).all()

    def test_can_be_split(self, name: str) -> None:
        data = assign_splits(demo.load(name))
        assert abs(len(data.split("test")) / len(data) - 0.2) < 0.02
        assert min(data.split("test").counts().values()) >= 8


def test_digits_are_those_of_scikit_learn() -> None:
    bunch = load_digits()
    means = {d: bunch.images[bunch.target == d].mean(0) for d in range(10)}
    data = demo.load("digits")
    right = 0
    for sample in data.samples:
        small = np.asarray(sample.image)[..., 0].reshape(8, 8, 8, 8).mean((1, 3)) / 255 * 16
        right += str(min(means, key=lambda d: ((means[d] - small) ** 2).sum())) == sample.target
    # The nearest mean is right about 9 times in 10 on the digits themselves.
    assert right > 0.85 * len(data)


def test_pixels_say_little_about_symbols() -> None:
    small = np.stack([image[::16, ::16].ravel() / 255 for image in pixels("symbols")])
    model = LogisticRegression(C=0.1, max_iter=300)
    score = cross_val_score(model, small, demo.load("symbols").targets(), cv=3).mean()
    assert score < 0.3


def test_shapes_show_none_to_all() -> None:
    sizes = {len(sample.target or ()) for sample in demo.load("shapes").samples}
    assert sizes == {0, 1, 2, 3}


def test_textures_have_groups_of_one_class() -> None:
    data = demo.load("textures")
    labels: dict[str | None, set[object]] = {}
    for sample in data.samples:
        labels.setdefault(sample.group, set()).add(sample.target)
    assert len(labels) == 100
    assert all(len(found) == 1 for found in labels.values())


def test_wrong_name() -> None:
    for call in (demo.load, lambda name: demo.write(name, "nowhere")):
        with pytest.raises(UnknownNameError, match="Did you mean 'symbols'"):
            call("symbol")


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").touch()
    with pytest.raises(UsageError, match="new or empty folder"):
        demo.write("digits", tmp_path)
    with pytest.raises(UsageError, match="new or empty folder"):
        demo.load("digits", folder=tmp_path / "mine.txt")
