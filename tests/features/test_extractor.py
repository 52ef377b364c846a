"""The trunk runs once per picture, gives what the network gives, and never moves."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from headstart.backbones.backbone import load
from headstart.backbones.catalog import resolve
from headstart.backbones.freezing import fingerprint
from headstart.backbones.trunk import Trunk
from headstart.cache import Cache
from headstart.data.dataset import Sample
from headstart.data.transforms.preprocess import Preprocess
from headstart.errors import DataError, HeadstartError, SetupError, UnreadableImageError, UsageError
from headstart.features.engines import compile_engine
from headstart.features.extractor import Cut, Extractor

SMALL = Preprocess(
    resize=40, crop=32, interpolation="bilinear", mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3)
)


def make_trunk(seed=0, preprocess=SMALL):
    spec = replace(resolve("torchvision/resnet18"), preprocess=preprocess)
    state = load(spec, pretrained=False, seed=seed).trunk.state_dict()
    return Trunk(spec=spec, state=state, origin={"sha256": "", "from": "test", "file": ""})


@pytest.fixture(scope="module")
def trunk():
    return make_trunk()


def make_pictures(n, seed=0):
    rng = np.random.default_rng(seed)
    return [Sample(image=rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)) for _ in range(n)]


@pytest.fixture
def extractor(tmp_path):
    return Extractor(cache=Cache(tmp_path / "cache"), engine="fp32", device="cpu", workers=2)


def test_features_equal_torchvisions_network(trunk, extractor):
    from torchvision.models import resnet18

    reference = resnet18()
    reference.load_state_dict(trunk.state, strict=False)
    reference.fc = torch.nn.Identity()
    pictures = make_pictures(5)
    pixels = np.stack([SMALL.resize_and_crop(sample.image) for sample in pictures])
    batch = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255.0
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (SMALL.mean, SMALL.std))
    with torch.inference_mode():
        expected = reference.eval()((batch - mean) / std).numpy()
    found = extractor.features(trunk, pictures)
    np.testing.assert_allclose(found.values, expected, rtol=1e-4, atol=1e-5)


def test_the_second_time_nothing_is_computed(trunk, extractor, monkeypatch):
    pictures = make_pictures(20)
    first = extractor.features(trunk, pictures)
    assert (first.computed, first.reused) == (20, 0)
    monkeypatch.setattr(
        "headstart.features.extractor.compile_engine", lambda *a, **k: pytest.fail("ran")
    )
    again = extractor.features(trunk, pictures[::-1])
    assert (again.computed, again.reused) == (0, 20)
    np.testing.assert_array_equal(again.values, first.values[::-1])


def test_only_new_pictures_are_computed(trunk, extractor):
    extractor.features(trunk, make_pictures(6))
    assert extractor.outlook(trunk, make_pictures(9))[1] == 3
    found = extractor.features(trunk, make_pictures(9))
    assert (found.computed, found.reused) == (3, 6)


def test_a_picture_that_comes_twice_is_computed_once(trunk, extractor):
    one, two = make_pictures(2)
    found = extractor.features(trunk, [one, two, one])
    assert found.computed == 2
    np.testing.assert_array_equal(found.values[0], found.values[2])


def test_the_number_of_workers_does_not_change_a_bit(trunk, tmp_path):
    values = [
        Extractor(cache=Cache(tmp_path / str(n)), engine="fp32", device="cpu", workers=n)
        .features(trunk, make_pictures(40))
        .values
        for n in (1, 3)
    ]
    np.testing.assert_array_equal(*values)


@pytest.mark.parametrize(
    "change",
    [
        {"preprocess": replace(SMALL, crop=28)},
        {"preprocess": replace(SMALL, interpolation="bicubic")},
        {"preprocess": replace(SMALL, mean=(0.5, 0.5, 0.5))},
        {"seed": 1},
    ],
)
def test_whatever_changes_the_features_changes_the_identity(trunk, change):
    assert make_trunk(**change).identity != trunk.identity
    assert make_trunk().identity == trunk.identity


def test_another_engine_is_another_entry(trunk, extractor):
    pictures = make_pictures(3)
    extractor.features(trunk, pictures)
    assert replace(extractor, engine="bf16").outlook(trunk, pictures)[1] == 3


def test_a_running_statistic_changes_the_identity(trunk):
    state = {name: value.clone() for name, value in trunk.state.items()}
    state["bn1.running_mean"] += 1
    assert replace(trunk, state=state).identity != trunk.identity


def test_a_network_that_moves_is_found_out(trunk, extractor, monkeypatch):
    """What computes is watched, not only the network that it was copied from."""
    started = []

    def remember(*arguments, **options):
        started.append(compile_engine(*arguments, **options))
        return started[-1]

    def progress(step, done, total):
        with torch.no_grad():
            started[-1].module.trunk.bn1.running_mean += 1

    monkeypatch.setattr("headstart.features.extractor.compile_engine", remember)
    with pytest.raises(HeadstartError, match="frozen"):
        replace(extractor, progress=progress).features(trunk, make_pictures(20))
    assert extractor.cache.stats().kinds == {}  # nothing of it is believed


def test_extraction_leaves_the_network_as_it_was(trunk, extractor):
    before = fingerprint(trunk.backbone.state_dict())
    extractor.features(trunk, make_pictures(4, seed=9))
    assert fingerprint(trunk.backbone.state_dict()) == before
    assert not trunk.backbone.training


def test_a_file_that_changes_after_the_scan_is_refused(trunk, extractor, tmp_path):
    path = tmp_path / "a.png"
    Image.new("RGB", (40, 40)).save(path)
    scanned = Sample(image=path, digest="0" * 64)
    with pytest.raises(DataError, match=r"a\.png to stay"):
        extractor.features(trunk, [scanned])


def test_an_unreadable_picture_is_named_and_the_others_are_kept(trunk, extractor, tmp_path):
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"no picture")
    with pytest.raises(UnreadableImageError, match=r"bad\.jpg"):
        extractor.features(trunk, [*make_pictures(300), Sample(image=bad)])
    assert extractor.features(trunk, make_pictures(256)).reused == 256


def test_what_was_computed_before_an_error_is_kept(trunk, extractor, tmp_path):
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"no picture")
    with pytest.raises(UnreadableImageError):
        extractor.features(trunk, [*make_pictures(32), Sample(image=bad)])
    assert extractor.features(trunk, make_pictures(32)).reused == 32


def test_an_interrupted_run_goes_on_where_it_was(trunk, extractor):
    def interrupt(step, done, total):
        if done > 260:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        replace(extractor, progress=interrupt).features(trunk, make_pictures(300))
    assert extractor.features(trunk, make_pictures(300)).reused >= 256


def test_no_pictures_give_no_features(trunk, extractor):
    assert extractor.features(trunk, []).values.shape[0] == 0


@pytest.mark.parametrize("stop", ["layer2", "layer4"])
def test_what_crosses_a_stage_is_what_the_stage_gives(trunk, extractor, stop, monkeypatch):
    pictures = make_pictures(6)
    cut = Cut(engine="fp32", stop=stop)
    kept = extractor.activations(trunk, pictures, cut)
    pixels = np.stack([SMALL.resize_and_crop(sample.image) for sample in pictures])
    batch = SMALL.normalise(torch.from_numpy(pixels).permute(0, 3, 1, 2))
    with torch.inference_mode():
        expected = trunk.backbone.run(batch, stop=stop).permute(0, 2, 3, 1).numpy()
    order = [4, 0, 4]
    np.testing.assert_allclose(kept.read(order), expected[order], rtol=1e-4, atol=1e-5)
    assert kept.shape == expected.shape[1:]
    run = extractor.runner(trunk, cut)
    np.testing.assert_array_equal(run(pictures, None), kept.read(range(6)))
    monkeypatch.setattr(
        "headstart.features.extractor.compile_engine", lambda *a, **k: pytest.fail("ran")
    )
    extractor.activations(trunk, pictures[::-1], cut)


def test_a_canvas_that_is_no_square_crosses_the_cut(extractor):
    wide = make_trunk(preprocess=replace(SMALL, canvas=(32, 64)))
    pictures = make_pictures(3)
    kept = extractor.activations(wide, pictures, Cut(engine="fp32", stop="layer2"))
    assert kept.shape == wide.shape_at("layer2") == (4, 8, 128)
    pixels = np.stack([wide.spec.preprocess.resize_and_crop(one.image) for one in pictures])
    assert pixels.shape == (3, 32, 64, 3)
    batch = wide.spec.preprocess.normalise(torch.from_numpy(pixels).permute(0, 3, 1, 2))
    with torch.inference_mode():
        expected = wide.backbone.run(batch, stop="layer2").permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(kept.read([0, 1, 2]), expected, rtol=1e-4, atol=1e-5)
    assert wide.identity != make_trunk().identity


def test_cuts_of_one_picture_have_keys_of_their_own(trunk):
    picture = make_pictures(1)[0]
    cuts = [
        Cut(engine="fp32"),
        Cut(engine="bf16"),
        Cut(engine="fp32", stop="layer1"),
        Cut(engine="fp32", stop="layer2"),
    ]
    assert len({cut.key(trunk, picture) for cut in cuts}) == 4


def test_what_was_evicted_is_an_error_and_not_another_pictures(trunk, extractor):
    pictures = make_pictures(4)
    kept = extractor.activations(trunk, pictures, Cut(engine="fp32", stop="layer3"))
    extractor.cache.clear()
    with pytest.raises(SetupError, match="2 of 2 pictures evicted"):
        kept.read([0, 3, 0])


def test_one_run_gives_the_features_of_several_ends(trunk, extractor, tmp_path):
    pictures = [*make_pictures(5), make_pictures(1)[0]]
    found, computed = extractor.stage_features(trunk, pictures, ["layer2", "layer3", ""])
    assert computed == 5
    other = Extractor(cache=Cache(tmp_path / "other"), engine="fp32", device="cpu", workers=2)
    for end, values in found.items():
        part = trunk.until(end) if end else trunk
        # alone, elsewhere: the same bits
        assert np.array_equal(other.features(part, pictures).values, values)
        # here: found again by the name of the backbone that ends there
        assert extractor.features(part, pictures).computed == 0
    named = Trunk(spec=trunk.until("layer3").spec, state=trunk.until("layer3").state, origin={})
    assert named.identity != trunk.identity
    assert extractor.features(named, pictures).reused == 5


def test_ends_are_completed_where_some_are_kept(trunk, extractor):
    pictures = make_pictures(4)
    extractor.features(trunk, pictures)
    _, computed = extractor.stage_features(trunk, pictures[:2], ["layer3", ""])
    assert computed == 2
    _, computed = extractor.stage_features(trunk, pictures, ["layer3", ""])
    assert computed == 2
    _, computed = extractor.stage_features(trunk, pictures, ["layer3"])
    assert computed == 0


@pytest.mark.parametrize("stage", ["layer9", "layer4"])
def test_an_end_that_is_none_is_refused(trunk, stage):
    with pytest.raises(UsageError, match=stage):
        trunk.until(stage).backbone  # noqa: B018


def test_openvino_gives_the_ends_too(trunk, tmp_path):
    pytest.importorskip("openvino")
    with_torch = Extractor(cache=Cache(tmp_path / "a"), engine="fp32", device="cpu")
    compiled = Extractor(cache=Cache(tmp_path / "b"), engine="openvino", device="cpu")
    expected, _ = with_torch.stage_features(trunk, make_pictures(3), ["layer2", ""])
    found, _ = compiled.stage_features(trunk, make_pictures(3), ["layer2", ""])
    for end, values in expected.items():
        np.testing.assert_allclose(found[end], values, rtol=1e-2, atol=1e-3)
