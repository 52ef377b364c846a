"""Images to pixels, in threads: in order, bounded, stopped when nobody listens any more."""

import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256

import numpy as np
import pytest
from PIL import Image

from headstart.data.dataset import IGNORED, Boxes, Mask, Palette, Sample
from headstart.data.loader import (
    BoxTruth,
    digest_of,
    load_batch,
    load_boxes,
    load_canvas,
    load_mask,
    load_pixels,
    load_view,
    load_views,
    map_bounded,
    view_of,
)
from headstart.data.transforms.augment import Augmentation, augment
from headstart.data.transforms.preprocess import Preprocess
from headstart.errors import DataError, UnknownNameError, UnreadableImageError, UsageError

SMALL = Preprocess(
    resize=40, crop=32, interpolation="bilinear", mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3)
)


STRONG = Augmentation(
    flip=True, rotation=20, brightness=0.3, contrast=0.3, crop=0.4, policy="randaugment"
)


@pytest.fixture
def image(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    return tmp_path / "a.png", pixels


def test_pixels_are_those_of_the_file(image):
    path, pixels = image
    expected = pixels[4:36, 4:36]  # 40 pixels need no resizing: only the centre is cut
    for pil_image in (path, path.read_bytes(), pixels, Image.open(path)):
        np.testing.assert_array_equal(load_pixels(Sample(image=pil_image), SMALL), expected)


def test_a_batch_is_its_images_in_order(image):
    path, pixels = image
    batch = load_batch([Sample(image=path), Sample(image=255 - pixels)], SMALL)
    assert batch.dtype == np.uint8
    np.testing.assert_array_equal(batch[1], 255 - batch[0])


def test_the_digest_is_the_files_and_is_not_computed_twice(image):
    path, _ = image
    assert digest_of(Sample(image=path)) == sha256(path.read_bytes()).hexdigest()
    assert digest_of(Sample(image=path, digest="known")) == "known"


def test_a_file_that_stays_as_it_was_is_loaded(image):
    path, _ = image
    scanned = Sample(image=path, digest=sha256(path.read_bytes()).hexdigest())
    assert load_pixels(scanned, SMALL).shape == (32, 32, 3)


def test_a_file_that_changes_after_the_scan_is_refused(image):
    path, pixels = image
    scanned = Sample(image=path, digest=sha256(path.read_bytes()).hexdigest())
    Image.fromarray(255 - pixels).save(path)
    with pytest.raises(DataError, match=r"a\.png to be unchanged since it was scanned") as caught:
        load_pixels(scanned, SMALL)
    assert not isinstance(caught.value, UnreadableImageError)


def test_an_array_that_changes_after_the_scan_is_refused(image):
    _, pixels = image
    scanned = Sample(image=pixels, digest=digest_of(Sample(image=pixels)))
    pixels[0, 0] ^= 1
    with pytest.raises(DataError, match="to be unchanged since it was scanned"):
        load_pixels(scanned, SMALL)


@pytest.mark.parametrize("content", [b"", b"no image", b"\xff\xd8\xff\xe0 cut"])
def test_an_unreadable_file_is_named(tmp_path, content):
    path = tmp_path / "broken.jpg"
    path.write_bytes(content)
    with pytest.raises(UnreadableImageError, match=r"broken\.jpg"):
        load_pixels(Sample(image=path), SMALL)


def test_a_file_that_is_gone_is_named(tmp_path):
    with pytest.raises(UnreadableImageError, match=r"gone\.jpg.*no such file"):
        load_pixels(Sample(image=tmp_path / "gone.jpg"), SMALL)


def test_without_augmentation_a_view_is_the_batch_of_prediction(image):
    path, pixels = image
    samples = [Sample(image=path), Sample(image=np.tile(pixels, (2, 3, 1)))]
    for view in (0, 5):
        views = load_views(samples, SMALL, Augmentation(views=3), seed=1, view=view)
        np.testing.assert_array_equal(views, load_batch(samples, SMALL))


def test_a_view_is_cut_from_the_whole_image_resized(image):
    sample = Sample(image=np.tile(image[1], (2, 3, 1)))
    canvas = load_canvas(sample, SMALL)
    assert canvas.shape == (40, 60, 3)
    identity = digest_of(sample)
    expected = augment(
        canvas,
        to=32,
        interpolation="bilinear",
        augmentation=STRONG,
        rng=np.random.default_rng([3, 7, int(identity, 16)]),
    )
    ours = load_view(sample, SMALL, STRONG, seed=3, view=7)
    np.testing.assert_array_equal(ours, expected)
    again = view_of(canvas, SMALL, STRONG, seed=3, view=7, image=identity)
    np.testing.assert_array_equal(again, expected)


def test_views_are_the_same_in_any_order_and_thread(image):
    images = [np.roll(image[1], shift, axis=0) for shift in range(6)]
    jobs = [(Sample(image=p), seed, view) for p in images for seed in (0, 1) for view in (0, 1)]

    def draw(job):
        return load_view(job[0], SMALL, STRONG, seed=job[1], view=job[2])

    forwards = [draw(job) for job in jobs]
    assert len({view.tobytes() for view in forwards}) == len(jobs)
    backwards = [draw(job) for job in reversed(jobs)][::-1]
    with ThreadPoolExecutor(4) as executor:
        threaded = list(executor.map(draw, jobs))
    np.testing.assert_array_equal(forwards, backwards)
    np.testing.assert_array_equal(forwards, threaded)


def test_views_are_the_same_in_another_process(image):
    path, _ = image
    code = (
        "import sys; from pathlib import Path\n"
        "from headstart.data.transforms.augment import Augmentation\n"
        "from headstart.data.loader import load_view; from headstart.data.dataset import Sample\n"
        "from headstart.data.transforms.preprocess import Preprocess\n"
        "sample = Sample(image=Path(sys.argv[1]))\n"
        f"view = load_view(sample, {SMALL!r}, {STRONG!r}, seed=2, view=4)\n"
        "sys.stdout.buffer.write(view.tobytes())"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, check=True)
    ours = load_view(Sample(image=path), SMALL, STRONG, seed=2, view=4)
    assert done.stdout == ours.tobytes()


def test_an_image_has_the_same_views_wherever_it_lies_and_in_any_company(image, tmp_path):
    path, pixels = image
    copy = tmp_path / "another name.png"
    copy.write_bytes(path.read_bytes())
    scanned = Sample(image=path, digest=digest_of(Sample(image=path)))
    samples = [Sample(image=255 - pixels), Sample(image=copy), scanned]
    views = load_views(samples, SMALL, STRONG, seed=0, view=0)
    alone = load_view(Sample(image=path), SMALL, STRONG, seed=0, view=0)
    np.testing.assert_array_equal(views[1], alone)
    np.testing.assert_array_equal(views[2], alone)


def test_views_name_unreadable_and_changed_files(image, tmp_path):
    path, pixels = image
    with pytest.raises(UnreadableImageError, match=r"gone\.jpg"):
        load_view(Sample(image=tmp_path / "gone.jpg"), SMALL, STRONG, seed=0, view=0)
    scanned = Sample(image=path, digest=digest_of(Sample(image=path)))
    Image.fromarray(255 - pixels).save(path)
    with pytest.raises(DataError, match=r"a\.png to be unchanged since it was scanned"):
        load_view(scanned, SMALL, STRONG, seed=0, view=0)


@pytest.mark.parametrize(("seed", "view"), [(-1, 0), (0, -1)])
def test_negative_seeds_and_views_are_refused(image, seed, view):
    with pytest.raises(UsageError, match="`seed` and `view` to be 0 or more"):
        load_view(Sample(image=image[1]), SMALL, STRONG, seed=seed, view=view)


def test_results_come_in_order_whatever_finishes_first():
    def slow(i):
        time.sleep(0.002 * (7 - i % 8))
        return i * i

    with ThreadPoolExecutor(4) as executor:
        assert list(map_bounded(slow, range(40), executor, 8)) == [i * i for i in range(40)]


@pytest.mark.parametrize("ahead", [1, 3, 8])
def test_no_more_than_ahead_are_begun_and_not_taken(ahead):
    begun, taken, most = 0, 0, 0

    def items():
        nonlocal begun, most
        for i in range(50):
            begun += 1
            most = max(most, begun - taken)
            yield i

    with ThreadPoolExecutor(4) as executor:
        for _ in map_bounded(lambda i: i, items(), executor, ahead):
            taken += 1
    assert taken == 50
    assert most == ahead


def test_nothing_is_begun_before_somebody_asks():
    with ThreadPoolExecutor(1) as executor:
        map_bounded(pytest.fail, ["ran"], executor, 4)
        assert executor.submit(int).result() == 0


def test_no_items_give_no_results():
    with ThreadPoolExecutor(1) as executor:
        assert list(map_bounded(abs, [], executor, 4)) == []


def test_whoever_stops_early_leaves_no_work_and_no_thread_behind():
    before, ran, gate = threading.active_count(), [], threading.Event()

    def work(i):
        ran.append(i)
        if i:
            gate.wait(5)
        return i

    with ThreadPoolExecutor(2) as executor:
        results = map_bounded(work, range(1000), executor, 10)
        assert next(results) == 0
        results.close()
        gate.set()
    assert len(ran) <= 3  # the one taken and those that the two threads had in hand
    assert threading.active_count() == before


def test_an_error_comes_at_its_place_and_stops_the_rest():
    ran = []

    def work(i):
        ran.append(i)
        if i == 3:
            raise UnreadableImageError("number 3")
        return i

    taken = []
    with ThreadPoolExecutor(2) as executor:
        results = map_bounded(work, range(1000), executor, 6)
        taken += [next(results) for _ in range(3)]
        with pytest.raises(UnreadableImageError, match="number 3"):
            next(results)
    assert taken == [0, 1, 2]
    assert max(ran) < 3 + 6


# ------------------------------------------------- boxes and masks move with the pixels

CLASSES = ("red", "green", "blue")
PAINT = Palette(
    codes=(
        ((0, 0, 0), "ground"),
        ((250, 20, 20), "red"),
        ((20, 250, 20), "green"),
        ((20, 20, 250), "blue"),
    )
)
PLACES = [  # image, canvas: smaller, larger, upright, beyond 8 to 1
    ((150, 240), (96, 160)),
    ((60, 70), (128, 160)),
    ((200, 130), (160, 96)),
    ((60, 720), (96, 480)),
]
STRAIGHT = Augmentation(flip=True, flip_vertical=True, crop=0.5)
TURNED = Augmentation(flip=True, crop=0.6, rotation=15)


def on(canvas) -> Preprocess:
    return Preprocess(
        resize=32, crop=32, interpolation="bilinear", mean=(0,) * 3, std=(1,) * 3, canvas=canvas
    )


def painted(size: tuple[int, int], seed: int) -> tuple[Sample, Sample]:
    """The same image with boxes around its three colours, and with itself as a mask."""
    rng, (height, width) = np.random.default_rng(seed), size
    pixels, corners = np.zeros((*size, 3), np.uint8), []
    for i, (colour, _) in enumerate(PAINT.codes[1:]):
        left = i * width // 3 + rng.integers(1, 3)
        right = left + rng.integers(width // 6, width // 3 - 4)
        top = rng.integers(1, height // 3)
        bottom = top + rng.integers(height // 3, height // 2)
        pixels[top:bottom, left:right] = colour
        corners.append(tuple(float(v) for v in (left, top, right, bottom)))
    boxes = Boxes(corners=tuple(corners), labels=CLASSES, hard=(False, True, False))
    mask = Mask(source=pixels, palette=PAINT)
    return Sample(image=pixels, target=boxes), Sample(image=pixels, target=mask)


def seen(pixels: np.ndarray) -> np.ndarray:
    """Which colour is bright: 1, 2, 3 for red, green, blue; 0 where all are dark."""
    return np.where(pixels.max(axis=2) > 125, pixels.argmax(axis=2) + 1, 0)


def overlap(box: np.ndarray, where: np.ndarray) -> float:
    y, x = np.nonzero(where)
    if not len(y):
        return 0.0
    other = np.array([x.min(), y.min(), x.max() + 1, y.max() + 1])
    sides = np.clip(np.minimum(box[2:], other[2:]) - np.maximum(box[:2], other[:2]), 0, None)
    areas = [(b[2:] - b[:2]).prod() for b in (box, other)]
    return sides.prod() / (sum(areas) - sides.prod())


@pytest.mark.parametrize(("size", "canvas"), PLACES, ids=str)
@pytest.mark.parametrize(("how", "least"), [(STRAIGHT, 0.8), (TURNED, 0.5)], ids=["", "turned"])
def test_boxes_of_a_view_are_where_its_pixels_are(size, canvas, how, least):
    expects, n, left_behind = on(canvas), 0, []
    for view in range(15):
        sample, _ = painted(size, view)
        colours = seen(load_view(sample, expects, how, seed=1, view=view))
        boxes, labels, hard = load_boxes(sample, expects, CLASSES, how, seed=1, view=view)
        np.testing.assert_array_equal(hard, labels == 1)
        for box, label in zip(boxes, labels, strict=True):
            # Of a box that is turned and cut, the corner that made it so wide may be out of sight.
            cut = how.rotation and (box.min() <= 0 or (box[2:] >= canvas[::-1]).any())
            assert overlap(box, colours == label + 1) > (0.3 if cut else least)
        still = load_boxes(sample, expects, CLASSES)
        left_behind += [overlap(still.boxes[label], colours == label + 1) for label in labels]
        n += len(boxes)
    assert n > 15
    assert min(left_behind) < 0.2  # boxes that do not move do not pass


@pytest.mark.parametrize(("size", "canvas"), PLACES, ids=str)
@pytest.mark.parametrize("how", [Augmentation(), STRAIGHT, TURNED], ids=["off", "", "turned"])
def test_masks_of_a_view_are_where_its_pixels_are(size, canvas, how):
    expects, names = on(canvas), PAINT.names
    for view in range(10):
        _, sample = painted(size, view)
        colours = seen(load_view(sample, expects, how, seed=1, view=view))
        mask = load_mask(sample, expects, names, how, seed=1, view=view)
        assert mask.shape == canvas
        flat = [np.roll(mask, (y, x), axis=(0, 1)) == mask for y in (-1, 0, 1) for x in (-1, 0, 1)]
        inside = np.all(flat, axis=0) & (mask != IGNORED)
        assert inside.mean() > 0.2
        assert (colours == mask)[inside].mean() > 0.97
        if how.is_off:  # nothing of the image is ignored, and all of the filling is
            place = expects.placement(*size)
            assert (mask != IGNORED).sum() == place.rows * place.columns


def test_truths_of_a_view_are_the_same_in_any_order():
    boxed, masked = painted((150, 240), 0)
    expects = on((96, 160))

    def truth(view: int) -> tuple[np.ndarray, ...]:
        seen = {"seed": 3, "view": view}
        boxes = load_boxes(boxed, expects, CLASSES, TURNED, **seen)
        return *boxes, load_mask(masked, expects, PAINT.names, TURNED, **seen)

    forward = [truth(view) for view in range(4)]
    backward = [truth(view) for view in reversed(range(4))][::-1]
    for one, other in zip(forward, backward, strict=True):
        for part, again in zip(one, other, strict=True):
            np.testing.assert_array_equal(part, again)
    assert any((forward[0][3] != later[3]).any() for later in forward[1:])


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_a_large_jpeg_lies_where_its_boxes_and_mask_do(orientation, tmp_path):
    """It is decoded smaller, and turned by EXIF, but boxes and masks are of its shown size."""
    boxed, _ = painted((901, 1203), 0)
    stored = Image.fromarray(np.rot90(boxed.image, {1: 0, 3: 2, 6: 1, 8: 3}[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(path := tmp_path / "large.jpg", exif=exif, quality=95)
    Image.fromarray(boxed.image).save(mask := tmp_path / "mask.png")
    target = Mask(source=mask, palette=PAINT)
    expects = on((64, 96))
    colours = seen(load_pixels(Sample(image=path), expects))
    truth = load_boxes(Sample(image=path, target=boxed.target), expects, CLASSES)
    for box, label in zip(truth.boxes, truth.labels, strict=True):
        assert overlap(box, colours == label + 1) > 0.9
    there = load_mask(Sample(image=path, target=target), expects, PAINT.names)
    assert (there == colours)[there != IGNORED].mean() > 0.97


def test_without_views_every_box_with_an_area_is_given():
    thin = Boxes(corners=((0, 0, 1, 50), (5, 5, 5, 9), (9, 9, 40, 40)), labels=("red",) * 3)
    sample = Sample(image=np.zeros((200, 200)), target=thin)
    truth = load_boxes(sample, on((100, 100)), CLASSES)
    assert isinstance(truth, BoxTruth)
    np.testing.assert_allclose(truth.boxes, [[0, 0, 0.5, 25], [4.5, 4.5, 20, 20]])
    none = load_boxes(Sample(image=np.zeros((9, 9)), target=Boxes()), on((32, 32)), CLASSES)
    assert none.boxes.shape == (0, 4)
    assert [part.dtype for part in none] == [np.float32, np.int64, bool]


def test_refuses_truths_that_do_not_fit():
    boxed, masked = painted((150, 240), 0)
    expects = on((96, 160))
    with pytest.raises(DataError, match="to have Boxes, got Mask"):
        load_boxes(masked, expects, CLASSES)
    with pytest.raises(DataError, match="to have Mask, got Boxes"):
        load_mask(boxed, expects, PAINT.names)
    with pytest.raises(UnknownNameError, match="blue"):
        load_boxes(boxed, expects, CLASSES[:2])
    with pytest.raises(UsageError, match="`canvas` to be set"):
        load_boxes(boxed, SMALL, CLASSES)
    with pytest.raises(UsageError, match="policy"):
        load_view(boxed, expects, STRONG, seed=0, view=0)
    with pytest.raises(UsageError, match="0 or more"):
        load_boxes(boxed, expects, CLASSES, STRAIGHT, seed=-1)
    with pytest.raises(UsageError, match="same preprocessing"):
        view_of(boxed.image, expects, STRAIGHT, seed=0, view=0, image="0")
    other = Sample(image=np.zeros((150, 241), np.uint8), target=masked.target)
    with pytest.raises(DataError, match="241 x 150, got 240 x 150"):
        load_mask(other, expects, PAINT.names)
    lost = Sample(image=b"no image", target=boxed.target, title="lost.png")
    with pytest.raises(UnreadableImageError, match=r"lost\.png"):
        load_boxes(lost, expects, CLASSES)
