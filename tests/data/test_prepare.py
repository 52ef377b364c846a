"""What a person points at becomes examples that can be trusted, or is refused in words."""

import io
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from headstart.cache import Cache
from headstart.data.dataset import Dataset, Sample
from headstart.data.prepare import (
    group_duplicates,
    inspect_dataset,
    prepare,
    readable_samples,
    to_samples,
)
from headstart.errors import (
    DataError,
    LayoutError,
    LeakError,
    UnknownNameError,
    UnreadableImageError,
    UsageError,
)


def scene(seed):
    """A smooth random image: like a photograph, it survives JPEG and resizing."""
    rng = np.random.default_rng(seed)
    rough = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
    return rough.resize((64, 64), Image.Resampling.BICUBIC).filter(ImageFilter.GaussianBlur(1))


def put(root, name, seed, **options):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    scene(seed).save(path, **options)
    return path


def class_folders(root, n=10, prefix="", first=0):
    for c, name in enumerate(("cat", "dog")):
        for i in range(n):
            put(root, f"{prefix}{name}/{i:02d}.png", first + 100 * c + i)
    return root


@pytest.fixture
def cache(tmp_path):
    return Cache(tmp_path / "cache")


@pytest.fixture
def photos(tmp_path):
    return class_folders(tmp_path / "photos")


def names(data):
    return {str(Path(sample.image).name) for sample in data.samples}


def listing(root):
    return {
        path: (path.stat().st_mtime_ns, path.stat().st_mode, path.read_bytes())
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


# ---------------------------------------------------------------- splits of ours


def test_images_are_read_scanned_and_split(photos, cache):
    prepared = prepare(photos, cache=cache)
    assert prepared.data.classes == ("cat", "dog")
    assert prepared.train.counts() == {"cat": 8, "dog": 8}
    assert prepared.test.counts() == {"cat": 2, "dog": 2}
    assert prepared.val is None
    assert len(prepared.records) == len(prepared.data) == 20
    for sample, record in zip(prepared.data.samples, prepared.records, strict=True):
        assert sample.digest == record.digest
        assert len(sample.digest) == 64


def test_one_seed_gives_one_split(photos, cache):
    def tested(seed):
        return [sample.image for sample in prepare(photos, cache=cache, seed=seed).test.samples]

    assert tested(3) == tested(3)
    assert any(tested(3) != tested(seed) for seed in range(4, 8))


def test_duplicates_never_end_on_both_sides_of_our_split(photos, cache):
    twins = {}
    for c, name in enumerate(("cat", "dog")):
        for i in range(10):
            original = photos / name / f"{i:02d}.png"
            if i % 2:  # exact
                twin = photos / name / f"copy{i}.png"
                twin.write_bytes(original.read_bytes())
            else:  # near: smaller and through JPEG
                twin = photos / name / f"near{i}.jpg"
                scene(100 * c + i).resize((56, 56)).save(twin, quality=60)
            twins[original] = twin
    for seed in range(5):
        prepared = prepare(photos, cache=cache, seed=seed)
        part = {sample.image: sample.split for sample in prepared.data.samples}
        assert all(part[one] == part[other] for one, other in twins.items())
        assert len(prepared.test) >= 4
        group = {sample.image: sample.group for sample in prepared.data.samples}
        assert all(group[one] == group[other] is not None for one, other in twins.items())
    kinds = Counter(finding.kind for finding in prepared.findings)
    assert kinds["duplicate"] == 10
    assert kinds["near-duplicate"] == 10


def test_groups_stay_on_one_side(tmp_path, cache):
    for c, name in enumerate(("cat", "dog")):
        for i in range(12):
            put(tmp_path, f"photos/{name}/p{i // 3}_{i}.png", 100 * c + i)
    for seed in range(5):
        prepared = prepare(tmp_path / "photos", cache=cache, group_by=r"p\d+", seed=seed)
        sides = {}
        for sample in prepared.data.samples:
            patient = Path(sample.image).name.split("_")[0]
            sides.setdefault(patient, set()).add(sample.split)
        assert all(len(parts) == 1 for parts in sides.values())
        assert set().union(*sides.values()) == {"train", "test"}


def test_a_duplicate_joins_two_groups(tmp_path, cache):
    for c, name in enumerate(("cat", "dog")):
        for i in range(12):
            put(tmp_path, f"photos/{name}/{name}{i // 2}_{i}.png", 100 * c + i)
    cats = tmp_path / "photos" / "cat"
    (cats / "cat0_0.png").write_bytes((cats / "cat5_10.png").read_bytes())
    for seed in range(6):
        prepared = prepare(tmp_path / "photos", cache=cache, group_by=r"[a-z]+\d+(?=_)", seed=seed)
        part = {Path(sample.image).stem: sample.split for sample in prepared.data.samples}
        assert len({part[stem] for stem in ("cat0_0", "cat0_1", "cat5_10", "cat5_11")}) == 1


def test_keep_together_leaves_unlinked_examples_alone():
    samples = (
        Sample(image=b"0", group="a"),
        Sample(image=b"1", group="b"),
        Sample(image=b"2"),
        Sample(image=b"3"),
        Sample(image=b"4", group="b"),
    )
    data = Dataset(samples=samples, classes=())
    assert group_duplicates(data, []) is data
    joined = group_duplicates(data, [(0, 1)])
    assert joined.samples[0].group == joined.samples[1].group == joined.samples[4].group
    assert joined.samples[2].group is None
    assert len(set(joined.groups())) == 3


# ---------------------------------------------------------------- splits of the author's


@pytest.fixture
def split(tmp_path):
    class_folders(tmp_path / "split", prefix="train/")
    class_folders(tmp_path / "split", n=3, prefix="test/", first=50)
    return tmp_path / "split"


def test_the_authors_split_is_kept(split, cache):
    prepared = prepare(split, cache=cache)
    assert len(prepared.train) == 20
    assert len(prepared.test) == 6
    assert not [finding for finding in prepared.findings if finding.severity == "error"]


def test_val_is_what_is_judged_where_there_is_no_test(tmp_path, cache):
    class_folders(tmp_path / "a", prefix="train/")
    class_folders(tmp_path / "a", n=3, prefix="val/", first=50)
    two = prepare(tmp_path / "a", cache=cache)
    assert two.val is None
    assert len(two.test) == 6
    class_folders(tmp_path / "a", n=2, prefix="test/", first=70)
    three = prepare(tmp_path / "a", cache=cache)
    assert (len(three.train), len(three.val), len(three.test)) == (20, 6, 4)


@pytest.mark.parametrize("near", [False, True])
def test_the_authors_leak_is_refused_with_both_paths(split, cache, near):
    one, other = split / "train/cat/00.png", split / "test/cat/leak.jpg"
    if near:
        scene(0).resize((56, 56)).save(other, quality=60)
    else:
        other.write_bytes(one.read_bytes())
    with pytest.raises(LeakError) as caught:
        prepare(split, cache=cache)
    assert str(one) in str(caught.value)
    assert str(other) in str(caught.value)
    assert caught.value.exit_code == 2


def test_an_overlap_that_is_allowed_is_reported(split, cache):
    one, other = split / "train/cat/00.png", split / "test/cat/leak.png"
    other.write_bytes(one.read_bytes())
    prepared = prepare(split, cache=cache, allow_overlap=True)
    assert len(prepared.data) == 27
    (leak,) = [finding for finding in prepared.findings if finding.kind == "leak"]
    assert set(leak.paths) == {str(one), str(other)}


def manifest(root, rows):
    lines = [f"{name},{label},{part},{group}" for name, label, part, group in rows]
    (root / "labels.csv").write_text("\n".join(["path,label,split,group", *lines]))


def test_a_group_on_both_sides_of_the_authors_split_is_a_leak(tmp_path, cache):
    rows = []
    for i in range(12):
        put(tmp_path, f"{i}.png", i)
        part = "test" if i > 8 else "train"
        rows.append((f"{i}.png", ("cat", "dog")[i % 2], part, f"patient{i % 11}"))
    manifest(tmp_path, rows)  # image 11 is of patient 0, as image 0 is
    with pytest.raises(LeakError) as caught:
        prepare(tmp_path, cache=cache)
    for word in ("patient0", str(tmp_path / "0.png"), str(tmp_path / "11.png"), "train", "test"):
        assert word in str(caught.value)
    assert "patient1'" not in str(caught.value)
    assert len(prepare(tmp_path, cache=cache, allow_overlap=True).test) == 3
    _, findings = inspect_dataset(tmp_path, cache=cache)
    assert [finding.kind for finding in findings].count("leak") == 1
    assert findings[0].kind == "leak"  # errors first


def test_a_class_that_cannot_be_learned_is_refused(split, cache):
    for i in range(3):
        put(split, f"test/emu/{i}.png", 300 + i)
    with pytest.raises(DataError, match="'emu' has no image in train"):
        prepare(split, cache=cache)


def test_a_class_that_is_not_tested_is_told(split, cache):
    for i in range(3):
        put(split, f"train/emu/{i}.png", 300 + i)
    prepared = prepare(split, cache=cache)
    assert prepared.data.classes == ("cat", "dog", "emu")
    assert "missing-class" in {finding.kind for finding in prepared.findings}
    assert set(prepared.test.targets().tolist()) == {0, 1}  # by name, not by position


# ---------------------------------------------------------------- files that are no images


def damage(photos):
    (photos / "cat" / "03.png").write_bytes(b"")
    (photos / "dog" / "04.png").write_text("<html>not found</html>")
    whole = (photos / "dog" / "05.png").read_bytes()
    (photos / "dog" / "05.png").write_bytes(whole[: len(whole) // 2])


def test_bad_files_are_refused_by_name(photos, cache):
    damage(photos)
    with pytest.raises(DataError) as caught:
        prepare(photos, cache=cache)
    for word in (r"cat/03.png", "dog/04.png", "dog/05.png", "empty", "HTML"):
        assert word in str(caught.value)


def test_bad_files_are_skipped_when_asked(photos, cache):
    damage(photos)
    prepared = prepare(photos, cache=cache, bad_files="skip")
    assert len(prepared.data) == len(prepared.records) == 17
    assert len(prepared.train) + len(prepared.test) == 17
    told = {f.paths[0] for f in prepared.findings if f.kind == "unreadable"}
    assert told == {str(photos / name) for name in ("cat/03.png", "dog/04.png", "dog/05.png")}
    for sample, record in zip(prepared.data.samples, prepared.records, strict=True):
        assert sample.digest == record.digest
        assert record.problem is None


def test_duplicates_are_found_at_their_new_places_after_skipping(photos, cache):
    damage(photos)
    (photos / "dog" / "zz.png").write_bytes((photos / "dog" / "09.png").read_bytes())
    prepared = prepare(photos, cache=cache, bad_files="skip")
    linked = [Path(s.image).name for s in prepared.data.samples if s.group is not None]
    assert linked == ["09.png", "zz.png"]


def test_a_class_without_a_readable_image_is_refused(photos, cache):
    for i in range(3):
        (photos / "emu").mkdir(exist_ok=True)
        (photos / "emu" / f"{i}.png").write_bytes(b"")
    with pytest.raises(DataError, match="'emu' has no readable image"):
        prepare(photos, cache=cache, bad_files="skip")


@pytest.mark.parametrize("policy", ["", "Skip", "ignore"])
def test_an_unknown_policy_is_not_taken_for_another(photos, cache, policy):
    with pytest.raises(UnknownNameError, match="bad_files"):
        prepare(photos, cache=cache, bad_files=policy)
    with pytest.raises(UnknownNameError, match="bad_files"):
        readable_samples([], cache=cache, bad_files=policy)


def test_no_file_is_ever_written_to(photos, cache):
    damage(photos)
    before = listing(photos)
    prepare(photos, cache=cache, bad_files="skip")
    inspect_dataset(photos, cache=cache)
    readable_samples(to_samples(photos), cache=cache, bad_files="skip")
    assert listing(photos) == before


def test_inspect_refuses_nothing(split, cache):
    damage(split / "train")
    other = split / "test/cat/leak.png"
    other.write_bytes((split / "train/cat/00.png").read_bytes())
    data, findings = inspect_dataset(split, cache=cache)
    assert len(data) == 27
    assert {"unreadable", "leak"} <= {finding.kind for finding in findings}


def test_progress_ends_with_all(photos, cache):
    told = []
    prepare(photos, cache=cache, progress=lambda *what: told.append(what))
    assert told[-1] == ("scan", 20, 20)


def test_a_data_set_that_is_read_already_is_prepared(cache):
    samples = tuple(
        Sample(image=np.asarray(scene(i)), target=("cat", "dog")[i % 2]) for i in range(20)
    )
    data = Dataset(samples=samples, classes=("cat", "dog"))
    prepared = prepare(data, cache=cache)
    assert (len(prepared.train), len(prepared.test)) == (16, 4)
    assert data.samples[0].split is None


# ---------------------------------------------------------------- gather and select


def png(seed=0):
    file = io.BytesIO()
    scene(seed).save(file, "PNG")
    return file.getvalue()


def test_gather_keeps_the_order_of_a_mixed_list(photos):
    array = np.zeros((8, 8, 3), dtype=np.uint8)
    image = scene(1)
    found = to_samples([photos / "dog/01.png", str(photos / "cat"), array, image, png()])
    assert found[0].image == photos / "dog/01.png"
    assert [s.image.name for s in found[1:11]] == [f"{i:02d}.png" for i in range(10)]
    assert np.shares_memory(found[11].image, array)
    assert found[12].image is image
    assert found[13].image == png()
    assert len(found) == 14


@pytest.mark.parametrize(
    ("shape", "n"),
    [((8, 9), 1), ((8, 9, 3), 1), ((8, 9, 4), 1), ((5, 8, 9, 3), 5), ((5, 8, 9, 1), 5),
     ((0, 8, 9, 3), 0)],
)  # fmt: skip
def test_gather_reads_the_shape_of_an_array(shape, n):
    assert len(to_samples(np.zeros(shape, dtype=np.uint8))) == n


def test_gather_takes_what_people_have(photos):
    paths = [str(photos / "cat/01.png"), str(photos / "dog/02.png")]
    expected = tuple(Path(path) for path in paths)
    for given in (np.array(paths), np.array(paths, dtype=object), iter(paths), tuple(paths)):
        assert tuple(sample.image for sample in to_samples(given)) == expected
    assert to_samples(np.asarray(paths[0]))[0].image == expected[0]
    assert to_samples(bytearray(png()))[0].image == png()
    assert to_samples(memoryview(png()))[0].image == png()
    sample = Sample(image=png(), target="cat")
    assert to_samples([sample]) == (sample,)
    different = np.empty(2, dtype=object)
    different[:] = [np.zeros((4, 4), np.uint8), np.zeros((6, 5, 3), np.uint8)]
    assert [sample.image.ndim for sample in to_samples(different)] == [2, 3]


@pytest.mark.parametrize("given", [[], (), np.array([]).astype(str)])
def test_gather_of_nothing_is_nothing(given, cache):
    assert to_samples(given) == ()
    assert readable_samples(to_samples(given), cache=cache, bad_files="error") == ()


def test_gather_of_what_is_no_image_is_refused(tmp_path):
    import torch

    (tmp_path / "a.png").write_bytes(png())
    with (tmp_path / "a.png").open("rb") as file:
        for given in (None, 5, 0.5, [1, 2], {"a.png": 1}, {"a.png"}, object(), file,
                      io.BytesIO(png()), torch.zeros(3, 8, 8), [[0, 1], [1, 0]]):  # fmt: skip
            with pytest.raises(UsageError, match="Expected images"):
                to_samples(given)


def test_gather_of_a_wrong_path_names_the_nearest(photos, tmp_path):
    with pytest.raises(LayoutError, match=r"Did you mean.*photos"):
        to_samples(tmp_path / "fotos")
    with pytest.raises(LayoutError, match=r"Did you mean.*01\.png"):
        to_samples([photos / "cat" / "001.png"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(LayoutError, match="images in the folder"):
        to_samples(tmp_path / "empty")
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(LayoutError, match="Expected an image"):
        to_samples(str(tmp_path / "notes.txt"))


@pytest.mark.parametrize("shape", [(4,), (4, 4, 2), (2, 4, 4, 5), (1, 2, 3, 4, 5)])
def test_an_array_of_another_shape_is_refused(shape, cache):
    with pytest.raises(UsageError, match="shape"):
        readable_samples(to_samples(np.zeros(shape, dtype=np.uint8)), cache=cache, bad_files="skip")


def test_select_gives_digests_and_leaves_bad_images_out(photos, cache):
    damage(photos)
    with pytest.raises(DataError, match=r"04\.png"):
        readable_samples(to_samples(photos), cache=cache, bad_files="error")
    kept = readable_samples(to_samples(photos), cache=cache, bad_files="skip")
    assert len(kept) == 17
    assert all(len(sample.digest) == 64 for sample in kept)
    assert [s.image for s in kept] == sorted(s.image for s in kept)


def test_select_of_bad_images_only_is_refused(cache):
    with pytest.raises(DataError) as caught:
        readable_samples(to_samples([b"x", b""]), cache=cache, bad_files="skip")
    assert not isinstance(caught.value, UnreadableImageError)


@pytest.mark.parametrize(
    ("n_images", "test_fraction", "n_training"),
    [(12, 0.2, None), (12, 0.5, 6), (11, 0.2, 9), (10, 0.1, 9), (14, 0.2, None), (9, 0.34, 6)],
)
def test_rare_classes_are_counted_after_the_split(
    tmp_path, cache, n_images, test_fraction, n_training
):
    for c, (name, n) in enumerate((("cat", n_images), ("dog", 40))):
        for i in range(n):
            put(tmp_path, f"photos/{name}/{i}.png", 100 * c + i)
    prepared = prepare(tmp_path / "photos", cache=cache, test_fraction=test_fraction)
    n_cats = prepared.train.counts()["cat"]
    rare = [f.message for f in prepared.findings if f.kind == "rare-class"]
    assert rare == [f"class 'cat' has only {n_cats} images to learn from"] * (n_cats < 10)
    assert n_training in {None, n_cats}
    if test_fraction == 0.2:
        _, findings = inspect_dataset(tmp_path / "photos", cache=cache)
        assert [f.message for f in findings if f.kind == "rare-class"] == rare
