"""Copies of an image are found whatever was done to them, and other images are not."""

import io

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from headstart.cache import Cache
from headstart.data.checks import copies as module
from headstart.data.checks.copies import find_copies, find_known_copies, pack_descriptors
from headstart.data.checks.images import check, is_frame
from headstart.data.checks.scan import ImageRecord, scan
from headstart.data.dataset import Dataset, Sample
from headstart.data.prepare import prepare

SIZE = (160, 120)


def drawing(seed: int) -> Image.Image:
    """Shapes of random greys on a gradient."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: SIZE[1], : SIZE[0]]
    slopes = rng.uniform(-0.4, 0.4, 2)
    pixels = np.repeat((90 + slopes[0] * x + slopes[1] * y)[..., None], 3, axis=2)
    for _ in range(25):
        centre, radii = rng.uniform(0, SIZE), rng.uniform(5, 28, 2)
        inside = ((x - centre[0]) / radii[0]) ** 2 + ((y - centre[1]) / radii[1]) ** 2 < 1
        pixels[inside] = rng.uniform(0, 170, 3)
    return Image.fromarray(np.uint8(np.clip(pixels, 0, 255)))


def crop(share, place):
    def change(image):
        width, height = (round(side * (1 - share)) for side in image.size)
        left = round(place[0] * (image.width - width))
        top = round(place[1] * (image.height - height))
        return image.crop((left, top, left + width, top + height))

    return change


CHANGES = {
    "crop 5 %": (crop(0.05, (0, 1)), "cropped"),
    "crop 8 %": (crop(0.08, (0.3, 0.7)), "cropped"),
    "crop 12 %": (crop(0.12, (0.5, 0.5)), "cropped"),
    "crop 16 %": (crop(0.16, (0.9, 0.2)), "cropped"),
    "crop 20 %": (crop(0.2, (0.25, 0.6)), "cropped"),
    "mirrored": (ImageOps.mirror, "mirrored"),
    "upside down": (ImageOps.flip, "mirrored upside down"),
    "rotated 90": (lambda i: i.transpose(Image.Transpose.ROTATE_90), "rotated by 90 degrees"),
    "rotated 180": (lambda i: i.transpose(Image.Transpose.ROTATE_180), "rotated by 180 degrees"),
    "rotated 270": (lambda i: i.transpose(Image.Transpose.ROTATE_270), "rotated by 90 degrees"),
    "transposed": (
        lambda i: i.transpose(Image.Transpose.TRANSPOSE), "mirrored and rotated by 90 degrees"
    ),
    "transversed": (
        lambda i: i.transpose(Image.Transpose.TRANSVERSE), "mirrored and rotated by 90 degrees"
    ),
    "brighter": (lambda i: ImageEnhance.Brightness(i).enhance(1.5), ""),
    "darker": (lambda i: ImageEnhance.Brightness(i).enhance(0.6), ""),
    "smaller": (lambda i: i.resize((80, 64)), ""),
}  # fmt: skip


def encoded(image, quality=85) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def originals():
    return [drawing(seed) for seed in range(30)]


@pytest.mark.parametrize("name", CHANGES)
def test_every_change_is_found_and_named(originals, name):
    change, title = CHANGES[name]
    images = [*originals, *(change(image) for image in originals[:6])]
    found = find_copies(scan([Sample(image=encoded(image)) for image in images]))
    pairs = {(copy.copy, copy.original): copy.change for copy in found}
    assert {tuple(sorted(pair)) for pair in pairs} == {(i, 30 + i) for i in range(6)}
    assert set(pairs.values()) == {title}
    if title == "cropped":
        assert set(pairs) == {(30 + i, i) for i in range(6)}  # the crop shows less


def test_different_images_and_identical_files_are_no_copies(originals):
    samples = [Sample(image=encoded(image)) for image in [*originals, originals[0]]]
    assert find_copies(scan(samples)) == []
    assert find_copies([]) == []
    assert find_copies([ImageRecord(digest="", problem="empty")] * 3) == []


@pytest.mark.parametrize(
    "image",
    [
        np.full((100, 100), 128, np.uint8),
        np.tile(np.linspace(0, 255, 100).astype(np.uint8), (100, 1)),  # a gradient
        np.pad(np.full((6, 6), 255, np.uint8), 50),  # a spot on black
        np.random.default_rng(0).integers(0, 255, (28, 28), np.uint8),  # too small
        np.repeat(np.repeat(np.eye(2, dtype=np.uint8) * 255, 60, 0), 60, 1),  # two squares
    ],
)
def test_images_with_few_details_match_nothing(image):
    rows = [image, image[:, ::-1], np.ascontiguousarray(image.T), image // 2 + 10]
    records = scan([Sample(image=np.ascontiguousarray(row)) for row in rows])
    assert all(copy.match < 1 or copy.change for copy in find_copies(records))
    if min(image.shape) < 64 or image.std() < 6:
        assert find_copies(records) == []


@pytest.mark.parametrize("side", [4, 6, 8])
def test_enlarged_images_of_few_pixels_match_nothing(side):
    rng = np.random.default_rng(side)
    drawn = rng.integers(0, 255, (side, side))
    variants = [np.clip(drawn + rng.normal(0, 6, drawn.shape), 0, 255) for _ in range(6)]
    images = [Image.fromarray(one.astype(np.uint8)).resize((96, 96)) for one in variants]
    records = scan([Sample(image=encoded(image)) for image in images])
    assert find_copies(records) == []


def test_clusters_find_what_the_comparison_of_all_pairs_finds(originals, monkeypatch):
    changed = [change(originals[i]) for i, (change, _) in enumerate(CHANGES.values())]
    records = scan([Sample(image=encoded(image)) for image in [*originals, *changed]])
    every = {(copy.copy, copy.original) for copy in find_copies(records)}
    assert len(every) == len(CHANGES)
    monkeypatch.setattr(module, "CLUSTER_SIZE", 20)
    monkeypatch.setattr(module, "BLOCK", 7)
    clustered = {(copy.copy, copy.original) for copy in find_copies(records)}
    assert len(clustered & every) >= 0.9 * len(every)


def findings(images, names, **fields):
    samples = tuple(
        Sample(image=encoded(image), title=name, target=name.split("/")[0], **fields)
        for image, name in zip(images, names, strict=True)
    )
    data = Dataset(samples=samples, classes=("cat", "dog"))
    kinds = {"near-duplicate", "same-subject", "leak", "duplicate"}
    return [f for f in check(data, scan(data.samples)) if f.kind in kinds]


def test_the_finding_names_both_files_and_the_change(originals):
    crop_image = CHANGES["crop 12 %"][0](originals[1])
    images = [*originals[:3], ImageOps.mirror(originals[0]), crop_image]
    names = ["cat/a.jpg", "cat/b.jpg", "dog/c.jpg", "dog/a.jpg", "dog/x.jpg"]
    messages = {finding.message for finding in findings(images, names)}
    mirrored = {"dog/a.jpg is cat/a.jpg, mirrored", "cat/a.jpg is dog/a.jpg, mirrored"}
    assert len(messages & mirrored) == 1
    assert "dog/x.jpg is a crop of cat/b.jpg" in messages
    assert findings(images, names, group="one subject") == []  # they stay together anyway


def frame(seed, step):
    """A scene in which an object moves, seen from a place that moves."""
    image = drawing(seed)
    image.paste((5, 200, 5), (60 + 4 * step, 40, 90 + 4 * step, 70))
    return image.crop((step, 0, 140 + step, 120))


@pytest.mark.parametrize(
    ("names", "is_advised"),
    [
        (["cat/p1_{:03}.jpg"], True),
        (["cat/p1/{}.jpg"], True),
        (["cat/p1/slice{:04}.png"], True),
        (["cat/frame-{}.jpg"], True),
        (["cat/IM{:06}"], True),
        (["cat/{}_left.jpg"], True),
        (["cat/p1_{:03}.jpg", "dog/p1_{:03}.jpg"], False),  # another folder
        (["cat/p1_a{}.jpg", "cat/p1_b{}.jpg"], False),
        (["cat/p{0}.jpg", "cat/p{0}99.jpg"], False),  # no neighbours
        (["cat/a.jpg", "cat/b.jpg", "cat/c.jpg"], False),
    ],
)
def test_neighbouring_frames_get_the_advice_to_group(names, is_advised):
    images = [frame(7, step) for step in range(3)] + [drawing(i) for i in range(20, 25)]
    titles = [names[i % len(names)].format(i) for i in range(3)]
    found = findings(images, [*titles, *(f"dog/other{'abcde'[i]}.jpg" for i in range(5))])
    kinds = {finding.kind for finding in found}
    assert kinds == ({"same-subject"} if is_advised else {"near-duplicate"})
    if is_advised:
        assert len(found) == 1
        assert "--group-by" in found[0].message
        assert set(found[0].paths) <= set(titles)


@pytest.mark.parametrize("change", ["crop 12 %", "mirrored", "rotated 90", "brighter"])
def test_copies_stay_in_one_split(tmp_path, originals, change):
    for i, image in enumerate(originals):
        folder = tmp_path / "photos" / ("cat" if i % 2 else "dog")
        folder.mkdir(parents=True, exist_ok=True)
        image.save(folder / f"scene {chr(97 + i)}.png")
        if i < 12:
            CHANGES[change][0](image).save(folder / f"twin {chr(97 + i)}.png")
    cache = Cache(tmp_path / "cache")
    for seed in range(3):
        data = prepare(tmp_path / "photos", cache=cache, seed=seed, test_fraction=0.4).data
        split = {sample.image.name: sample.split for sample in data.samples}
        assert len(set(split.values())) == 2
        for name in [name for name in split if name.startswith("twin")]:
            assert split[name] == split[name.replace("twin", "scene")]


def test_only_numbered_names_are_frames():
    copy = module.Copy(copy=0, original=1, change="", match=0.9)
    assert is_frame(("a/1.jpg", "a/31.jpg"), copy)
    assert not is_frame(("a/1.jpg", "a/32.jpg"), copy)
    assert not is_frame(("a/1.jpg", "a/2.png"), copy)
    mirrored = module.Copy(copy=0, original=1, change="mirrored", match=0.9)
    assert not is_frame(("a/1.jpg", "a/2.jpg"), mirrored)
    same = module.Copy(copy=0, original=1, change="", match=0.99)
    assert not is_frame(("a/1.jpg", "a/2.jpg"), same)


@pytest.mark.parametrize(
    ("name", "is_known"),
    [
        ("smaller", True), ("mirrored", True), ("upside down", True), ("rotated 90", True),
        ("rotated 180", True), ("rotated 270", True), ("transposed", True), ("transversed", True),
        ("crop 5 %", True), ("crop 8 %", True), ("crop 12 %", True), ("crop 16 %", True),
        (None, False),
    ],
)  # fmt: skip
def test_copies_of_known_images_are_recognised(originals, name, is_known):
    training = scan([Sample(image=encoded(image)) for image in originals[:20]])
    looks = pack_descriptors(training)
    assert len(looks) == 20 * 84
    change = CHANGES[name][0] if name else lambda image: image
    tested = [*originals[24:], *(map(change, originals[:4]) if is_known else ())]
    found = find_known_copies(scan([Sample(image=encoded(image, 60)) for image in tested]), looks)
    assert found == ([6, 7, 8, 9] if is_known else [])


def test_a_smooth_image_has_the_frequencies_that_it_was_made_from():
    known = np.random.default_rng(0).normal(size=(5, 63)).astype(np.float32)
    known /= np.linalg.norm(known, axis=1, keepdims=True)
    again = module._unit(module._frequencies(module._smooth_images(known), module.FULL))
    assert (again * known).sum(axis=1).min() > 0.995


def test_crops_of_images_that_are_all_alike_need_more_to_match(originals):
    """Of radiographs, the lowest frequencies are the same in all of them."""
    common, rng = np.random.default_rng(0).normal(size=63), np.random.default_rng(1)
    known = (common + 0.3 * rng.normal(size=(40, 63))).astype(np.float32)
    known /= np.linalg.norm(known, axis=1, keepdims=True)
    others = (common + 0.3 * rng.normal(size=(40, 63))).astype(np.float32)
    assert not module._are_crops_of(module._smooth_images(others), known).any()
    assert module._are_crops_of(module._smooth_images(known), known).all()


@pytest.mark.parametrize("looks", ["", "AAAA", "A" * 84, "x"])
def test_damaged_looks_match_nothing(originals, looks):
    records = scan([Sample(image=encoded(originals[0]))])
    assert find_known_copies(records, looks) == []


def test_images_that_are_all_alike_are_not_copies_of_each_other() -> None:
    """Blurred outlines of the same two ellipses, as of radiographs: each correlates with many."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:96, :96]
    images = []
    for _ in range(60):
        grey = np.full((96, 96), float(rng.integers(150, 190)))
        for centre in (28, 68):
            inside = ((columns - centre) / 14) ** 2 + ((rows - 48) / 34) ** 2
            grey -= 110 / (1 + np.exp(8 * (inside - 1)))
        noisy = grey + rng.normal(0, 12, grey.shape)
        images.append(np.clip(noisy, 0, 255).astype(np.uint8))
    assert find_copies(scan([Sample(image=image) for image in images])) == []
