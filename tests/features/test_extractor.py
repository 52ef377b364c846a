"""The backbone runs once for each image, computes the network's features, and never changes."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from headstart.backbones.backbone import load
from headstart.backbones.catalog import resolve
from headstart.backbones.freezing import fingerprint
from headstart.backbones.frozen import FrozenBackbone
from headstart.cache import Cache
from headstart.data.dataset import Sample
from headstart.data.transforms.preprocess import Preprocess
from headstart.errors import DataError, HeadstartError, SetupError, UnreadableImageError, UsageError
from headstart.features.engines import EngineChoice, compile_engine
from headstart.features.extractor import Extractor, SplitPoint

SMALL = Preprocess(
    resize=40, crop=32, interpolation="bilinear", mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3)
)


def make_backbone(seed=0, preprocess=SMALL):
    spec = replace(resolve("torchvision/resnet18"), preprocess=preprocess)
    state = load(spec, pretrained=False, seed=seed).trunk.state_dict()
    return FrozenBackbone(spec=spec, state=state, origin={"sha256": "", "from": "test", "file": ""})


@pytest.fixture(scope="module")
def backbone():
    return make_backbone()


def make_images(n, seed=0):
    rng = np.random.default_rng(seed)
    return [Sample(image=rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)) for _ in range(n)]


@pytest.fixture
def extractor(tmp_path):
    return Extractor(cache=Cache(tmp_path / "cache"), engine="fp32", device="cpu", workers=2)


def test_features_equal_torchvisions_network(backbone, extractor):
    from torchvision.models import resnet18

    reference = resnet18()
    reference.load_state_dict(backbone.state, strict=False)
    reference.fc = torch.nn.Identity()
    images = make_images(5)
    pixels = np.stack([SMALL.resize_and_crop(sample.image) for sample in images])
    batch = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255.0
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (SMALL.mean, SMALL.std))
    with torch.inference_mode():
        expected = reference.eval()((batch - mean) / std).numpy()
    features = extractor.features(backbone, images)
    np.testing.assert_allclose(features.values, expected, rtol=1e-4, atol=1e-5)


def test_the_second_time_nothing_is_computed(backbone, extractor, monkeypatch):
    images = make_images(20)
    first = extractor.features(backbone, images)
    assert (first.computed, first.reused) == (20, 0)
    monkeypatch.setattr(
        "headstart.features.extractor.compile_engine", lambda *a, **k: pytest.fail("ran")
    )
    again = extractor.features(backbone, images[::-1])
    assert (again.computed, again.reused) == (0, 20)
    np.testing.assert_array_equal(again.values, first.values[::-1])


def test_only_new_images_are_computed(backbone, extractor):
    extractor.features(backbone, make_images(6))
    assert extractor.plan_extraction(backbone, make_images(9))[1] == 3
    features = extractor.features(backbone, make_images(9))
    assert (features.computed, features.reused) == (3, 6)


def test_an_image_that_comes_twice_is_computed_once(backbone, extractor):
    first, second = make_images(2)
    features = extractor.features(backbone, [first, second, first])
    assert features.computed == 2
    np.testing.assert_array_equal(features.values[0], features.values[2])


def test_the_number_of_workers_does_not_change_a_bit(backbone, tmp_path):
    values = [
        Extractor(cache=Cache(tmp_path / str(n)), engine="fp32", device="cpu", workers=n)
        .features(backbone, make_images(40))
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
def test_whatever_changes_the_features_changes_the_identity(backbone, change):
    assert make_backbone(**change).identity != backbone.identity
    assert make_backbone().identity == backbone.identity


def test_another_engine_is_another_entry(backbone, extractor):
    images = make_images(3)
    extractor.features(backbone, images)
    assert replace(extractor, engine="bf16").plan_extraction(backbone, images)[1] == 3


def test_a_running_statistic_changes_the_identity(backbone):
    state = {name: value.clone() for name, value in backbone.state.items()}
    state["bn1.running_mean"] += 1
    assert replace(backbone, state=state).identity != backbone.identity


def test_a_network_that_moves_is_found_out(backbone, extractor, monkeypatch):
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
        replace(extractor, progress=progress).features(backbone, make_images(20))
    assert extractor.cache.stats().kinds == {}  # nothing of it is believed


def test_extraction_leaves_the_network_as_it_was(backbone, extractor):
    before = fingerprint(backbone.module.state_dict())
    extractor.features(backbone, make_images(4, seed=9))
    assert fingerprint(backbone.module.state_dict()) == before
    assert not backbone.module.training


def test_a_file_that_changes_after_the_scan_is_refused(backbone, extractor, tmp_path):
    path = tmp_path / "a.png"
    Image.new("RGB", (40, 40)).save(path)
    scanned = Sample(image=path, digest="0" * 64)
    with pytest.raises(DataError, match=r"a\.png to be unchanged"):
        extractor.features(backbone, [scanned])


def test_an_unreadable_image_is_named_and_the_others_are_kept(backbone, extractor, tmp_path):
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"no image")
    with pytest.raises(UnreadableImageError, match=r"bad\.jpg"):
        extractor.features(backbone, [*make_images(300), Sample(image=bad)])
    assert extractor.features(backbone, make_images(256)).reused == 256


def test_what_was_computed_before_an_error_is_kept(backbone, extractor, tmp_path):
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"no image")
    with pytest.raises(UnreadableImageError):
        extractor.features(backbone, [*make_images(32), Sample(image=bad)])
    assert extractor.features(backbone, make_images(32)).reused == 32


def test_an_interrupted_run_goes_on_where_it_was(backbone, extractor):
    def interrupt(step, done, total):
        if done > 260:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        replace(extractor, progress=interrupt).features(backbone, make_images(300))
    assert extractor.features(backbone, make_images(300)).reused >= 256


def test_no_images_give_no_features(backbone, extractor):
    assert extractor.features(backbone, []).values.shape[0] == 0


@pytest.mark.parametrize("stop", ["layer2", "layer4"])
def test_what_crosses_a_stage_is_what_the_stage_gives(backbone, extractor, stop, monkeypatch):
    images = make_images(6)
    split_point = SplitPoint(engine="fp32", stop=stop)
    activations = extractor.activations(backbone, images, split_point)
    pixels = np.stack([SMALL.resize_and_crop(sample.image) for sample in images])
    batch = SMALL.normalise(torch.from_numpy(pixels).permute(0, 3, 1, 2))
    with torch.inference_mode():
        expected = backbone.module.run(batch, stop=stop).permute(0, 2, 3, 1).numpy()
    order = [4, 0, 4]
    np.testing.assert_allclose(activations.read(order), expected[order], rtol=1e-4, atol=1e-5)
    assert activations.shape == expected.shape[1:]
    run = extractor.runner(backbone, split_point)
    np.testing.assert_array_equal(run(images, None), activations.read(range(6)))
    monkeypatch.setattr(
        "headstart.features.extractor.compile_engine", lambda *a, **k: pytest.fail("ran")
    )
    extractor.activations(backbone, images[::-1], split_point)


def test_a_canvas_that_is_no_square_crosses_the_cut(extractor):
    wide = make_backbone(preprocess=replace(SMALL, canvas=(32, 64)))
    images = make_images(3)
    activations = extractor.activations(wide, images, SplitPoint(engine="fp32", stop="layer2"))
    assert activations.shape == wide.shape_at("layer2") == (4, 8, 128)
    pixels = np.stack([wide.spec.preprocess.resize_and_crop(image.image) for image in images])
    assert pixels.shape == (3, 32, 64, 3)
    batch = wide.spec.preprocess.normalise(torch.from_numpy(pixels).permute(0, 3, 1, 2))
    with torch.inference_mode():
        expected = wide.module.run(batch, stop="layer2").permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(activations.read([0, 1, 2]), expected, rtol=1e-4, atol=1e-5)
    assert wide.identity != make_backbone().identity


def test_cuts_of_one_image_have_keys_of_their_own(backbone):
    image = make_images(1)[0]
    split_points = [
        SplitPoint(engine="fp32"),
        SplitPoint(engine="bf16"),
        SplitPoint(engine="fp32", stop="layer1"),
        SplitPoint(engine="fp32", stop="layer2"),
    ]
    assert len({split_point.key(backbone, image) for split_point in split_points}) == 4


def test_what_was_evicted_is_an_error_and_not_another_images(backbone, extractor):
    images = make_images(4)
    activations = extractor.activations(backbone, images, SplitPoint(engine="fp32", stop="layer3"))
    values = activations.read([0, 3, 0])
    extractor.cache.clear()  # a damaged cache is replaced by an empty one, too
    np.testing.assert_array_equal(activations.read([0, 3, 0]), values)
    extractor.cache.clear()
    with pytest.raises(SetupError, match="2 of 2 images were evicted"):
        activations.read([0, 3, 0])


def test_one_run_gives_the_features_of_several_ends(backbone, extractor, tmp_path):
    images = [*make_images(5), make_images(1)[0]]
    features, computed = extractor.stage_features(backbone, images, ["layer2", "layer3", ""])
    assert computed == 5
    other = Extractor(cache=Cache(tmp_path / "other"), engine="fp32", device="cpu", workers=2)
    for end, values in features.items():
        part = backbone.until(end) if end else backbone
        # alone, elsewhere: the same bits
        assert np.array_equal(other.features(part, images).values, values)
        # here: found again by the name of the backbone that ends there
        assert extractor.features(part, images).computed == 0
    named = FrozenBackbone(
        spec=backbone.until("layer3").spec, state=backbone.until("layer3").state, origin={}
    )
    assert named.identity != backbone.identity
    assert extractor.features(named, images).reused == 5


def test_ends_are_completed_where_some_are_kept(backbone, extractor):
    images = make_images(4)
    extractor.features(backbone, images)
    _, computed = extractor.stage_features(backbone, images[:2], ["layer3", ""])
    assert computed == 2
    _, computed = extractor.stage_features(backbone, images, ["layer3", ""])
    assert computed == 2
    _, computed = extractor.stage_features(backbone, images, ["layer3"])
    assert computed == 0


@pytest.mark.parametrize("stage", ["layer9", "layer4"])
def test_an_end_that_is_none_is_refused(backbone, stage):
    with pytest.raises(UsageError, match=stage):
        backbone.until(stage).backbone  # noqa: B018


def test_openvino_gives_the_ends_too(backbone, tmp_path):
    pytest.importorskip("openvino")
    with_torch = Extractor(cache=Cache(tmp_path / "a"), engine="fp32", device="cpu")
    compiled = Extractor(cache=Cache(tmp_path / "b"), engine="openvino", device="cpu")
    expected, _ = with_torch.stage_features(backbone, make_images(3), ["layer2", ""])
    features, _ = compiled.stage_features(backbone, make_images(3), ["layer2", ""])
    for end, values in expected.items():
        np.testing.assert_allclose(features[end], values, rtol=1e-2, atol=1e-3)


def test_one_extractor_chooses_once_for_a_backbone(backbone, tmp_path, monkeypatch):
    from headstart.features import extractor as module

    asked = []

    def choose(backbone, images, *, device, cache):
        asked.append(images)
        return EngineChoice(engine="fp32")

    monkeypatch.setattr(module, "choose_engine", choose)
    extractor = Extractor(cache=Cache(tmp_path), device="cpu")
    extractor.plan_extraction(backbone, make_images(4))
    extractor.features(backbone, make_images(2))
    extractor.features(backbone.until("layer2"), make_images(3))
    assert asked == [4, 3]
