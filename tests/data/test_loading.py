"""Pictures to pixels, in threads: in order, bounded, stopped when nobody listens any more."""

import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256

import numpy as np
import pytest
from PIL import Image

from headstart.data.augment import Augmentation, augment
from headstart.data.loading import (
    digest_of,
    load_batch,
    load_canvas,
    load_pixels,
    load_view,
    load_views,
    map_bounded,
    view_of,
)
from headstart.data.samples import Sample
from headstart.data.transforms import Preprocess
from headstart.errors import DataError, UnreadableImageError, UsageError

SMALL = Preprocess(
    resize=40, crop=32, interpolation="bilinear", mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3)
)


STRONG = Augmentation(
    flip=True, rotation=20, brightness=0.3, contrast=0.3, crop=0.4, policy="randaugment"
)


@pytest.fixture
def picture(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    return tmp_path / "a.png", pixels


def test_pixels_are_those_of_the_file(picture):
    path, pixels = picture
    expected = pixels[4:36, 4:36]  # 40 pixels need no resizing: only the centre is cut
    for image in (path, path.read_bytes(), pixels, Image.open(path)):
        np.testing.assert_array_equal(load_pixels(Sample(image=image), SMALL), expected)


def test_a_batch_is_its_pictures_in_order(picture):
    path, pixels = picture
    batch = load_batch([Sample(image=path), Sample(image=255 - pixels)], SMALL)
    assert batch.dtype == np.uint8
    np.testing.assert_array_equal(batch[1], 255 - batch[0])


def test_the_digest_is_the_files_and_is_not_computed_twice(picture):
    path, _ = picture
    assert digest_of(Sample(image=path)) == sha256(path.read_bytes()).hexdigest()
    assert digest_of(Sample(image=path, digest="known")) == "known"


def test_a_file_that_stays_as_it_was_is_loaded(picture):
    path, _ = picture
    scanned = Sample(image=path, digest=sha256(path.read_bytes()).hexdigest())
    assert load_pixels(scanned, SMALL).shape == (32, 32, 3)


def test_a_file_that_changes_after_the_scan_is_refused(picture):
    path, pixels = picture
    scanned = Sample(image=path, digest=sha256(path.read_bytes()).hexdigest())
    Image.fromarray(255 - pixels).save(path)
    with pytest.raises(DataError, match=r"a\.png to stay as it was") as caught:
        load_pixels(scanned, SMALL)
    assert not isinstance(caught.value, UnreadableImageError)


def test_an_array_that_changes_after_the_scan_is_refused(picture):
    _, pixels = picture
    scanned = Sample(image=pixels, digest=digest_of(Sample(image=pixels)))
    pixels[0, 0] ^= 1
    with pytest.raises(DataError, match="to stay as it was"):
        load_pixels(scanned, SMALL)


@pytest.mark.parametrize("content", [b"", b"no picture", b"\xff\xd8\xff\xe0 cut"])
def test_an_unreadable_file_is_named(tmp_path, content):
    path = tmp_path / "broken.jpg"
    path.write_bytes(content)
    with pytest.raises(UnreadableImageError, match=r"broken\.jpg"):
        load_pixels(Sample(image=path), SMALL)


def test_a_file_that_is_gone_is_named(tmp_path):
    with pytest.raises(UnreadableImageError, match=r"gone\.jpg.*no such file"):
        load_pixels(Sample(image=tmp_path / "gone.jpg"), SMALL)


def test_without_augmentation_a_view_is_the_batch_of_prediction(picture):
    path, pixels = picture
    samples = [Sample(image=path), Sample(image=np.tile(pixels, (2, 3, 1)))]
    for view in (0, 5):
        views = load_views(samples, SMALL, Augmentation(views=3), seed=1, view=view)
        np.testing.assert_array_equal(views, load_batch(samples, SMALL))


def test_a_view_is_cut_from_the_whole_picture_resized(picture):
    sample = Sample(image=np.tile(picture[1], (2, 3, 1)))
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
    again = view_of(canvas, SMALL, STRONG, seed=3, view=7, picture=identity)
    np.testing.assert_array_equal(again, expected)


def test_views_are_the_same_in_any_order_and_thread(picture):
    pictures = [np.roll(picture[1], shift, axis=0) for shift in range(6)]
    jobs = [(Sample(image=p), seed, view) for p in pictures for seed in (0, 1) for view in (0, 1)]

    def draw(job):
        return load_view(job[0], SMALL, STRONG, seed=job[1], view=job[2])

    forwards = [draw(job) for job in jobs]
    assert len({view.tobytes() for view in forwards}) == len(jobs)
    backwards = [draw(job) for job in reversed(jobs)][::-1]
    with ThreadPoolExecutor(4) as executor:
        threaded = list(executor.map(draw, jobs))
    np.testing.assert_array_equal(forwards, backwards)
    np.testing.assert_array_equal(forwards, threaded)


def test_views_are_the_same_in_another_process(picture):
    path, _ = picture
    code = (
        "import sys; from pathlib import Path; from headstart.data.augment import Augmentation\n"
        "from headstart.data.loading import load_view; from headstart.data.samples import Sample\n"
        "from headstart.data.transforms import Preprocess\n"
        "sample = Sample(image=Path(sys.argv[1]))\n"
        f"view = load_view(sample, {SMALL!r}, {STRONG!r}, seed=2, view=4)\n"
        "sys.stdout.buffer.write(view.tobytes())"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, check=True)
    ours = load_view(Sample(image=path), SMALL, STRONG, seed=2, view=4)
    assert done.stdout == ours.tobytes()


def test_a_picture_has_the_same_views_wherever_it_lies_and_in_any_company(picture, tmp_path):
    path, pixels = picture
    copy = tmp_path / "another name.png"
    copy.write_bytes(path.read_bytes())
    scanned = Sample(image=path, digest=digest_of(Sample(image=path)))
    samples = [Sample(image=255 - pixels), Sample(image=copy), scanned]
    views = load_views(samples, SMALL, STRONG, seed=0, view=0)
    alone = load_view(Sample(image=path), SMALL, STRONG, seed=0, view=0)
    np.testing.assert_array_equal(views[1], alone)
    np.testing.assert_array_equal(views[2], alone)


def test_views_name_unreadable_and_changed_files(picture, tmp_path):
    path, pixels = picture
    with pytest.raises(UnreadableImageError, match=r"gone\.jpg"):
        load_view(Sample(image=tmp_path / "gone.jpg"), SMALL, STRONG, seed=0, view=0)
    scanned = Sample(image=path, digest=digest_of(Sample(image=path)))
    Image.fromarray(255 - pixels).save(path)
    with pytest.raises(DataError, match=r"a\.png to stay as it was"):
        load_view(scanned, SMALL, STRONG, seed=0, view=0)


@pytest.mark.parametrize(("seed", "view"), [(-1, 0), (0, -1)])
def test_negative_seeds_and_views_are_refused(picture, seed, view):
    with pytest.raises(UsageError, match="`seed` and `view` to be 0 or more"):
        load_view(Sample(image=picture[1]), SMALL, STRONG, seed=seed, view=view)


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
