"""Maps against their formulas, against plain loops, and against objects planted in a corner."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from headstart.backbones.backbone import load
from headstart.backbones.catalog import resolve
from headstart.backbones.frozen import FrozenBackbone
from headstart.data.dataset import Sample
from headstart.data.transforms.preprocess import Preprocess
from headstart.errors import UnknownNameError, UnreadableImageError, UsageError
from headstart.evaluation.explain import explain, grad_cam, occlusion
from headstart.models.heads.linear import LinearHead
from headstart.models.tasks import ClassificationTask, DetectionTask
from headstart.models.transfer_model import TransferModel

SMALL = Preprocess(
    resize=64, crop=64, interpolation="bilinear", mean=(0.45, 0.45, 0.45), std=(0.2, 0.2, 0.2)
)


# ------------------------------------------------------------------------- Grad-CAM


def test_of_a_linear_head_on_means_it_is_cam():
    maps = torch.randn(3, 5, 4, 6, generator=torch.Generator().manual_seed(0))
    weights = torch.randn(5, generator=torch.Generator().manual_seed(1))
    found = grad_cam(maps, lambda a: a.mean((2, 3)) @ weights + 7)
    cam = np.einsum("k,nkhw->nhw", weights.numpy(), maps.numpy())
    np.testing.assert_allclose(found.numpy(), np.maximum(cam, 0) / 24, atol=1e-6)


def test_weights_are_mean_slopes_found_by_differences():
    maps = torch.randn(2, 3, 2, 2, generator=torch.Generator().manual_seed(2)).double()

    def score(a):
        return (a.sin() * a.roll(1, 1)).sum((1, 2, 3))

    slopes = torch.zeros_like(maps)
    for place in np.ndindex(*maps.shape):
        for sign in (1, -1):
            moved = maps.clone()
            moved[place] += sign * 1e-5
            slopes[place] += sign * score(moved)[place[0]] / 2e-5
    expected = (slopes.mean((2, 3), keepdim=True) * maps).sum(1).clamp(min=0)
    torch.testing.assert_close(grad_cam(maps, score), expected, rtol=1e-6, atol=1e-8)


def test_a_score_that_works_in_place_leaves_the_maps_alone():
    maps = torch.randn(1, 2, 3, 3)
    before = maps.clone()
    grad_cam(maps, lambda a: a.relu_().sum((1, 2, 3)))
    torch.testing.assert_close(maps, before)


# ------------------------------------------------------------------------- occlusion


@pytest.mark.parametrize(("patch", "stride"), [(3, 1), (4, 2), (4, 3), (9, 9), (5, 5)])
def test_every_pixel_has_the_mean_loss_of_the_patches_over_it(patch, stride):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (9, 11, 3), dtype=np.uint8)
    weights = rng.random((9, 11, 3))

    def chance(batch):
        return (np.tanh(batch / 99) * weights).mean((1, 2, 3))

    tops = [y for y in range(9 - patch + 1) if y % stride == 0 or y == 9 - patch]
    lefts = [x for x in range(11 - patch + 1) if x % stride == 0 or x == 11 - patch]
    losses = {}
    for y in tops:
        for x in lefts:
            covered = pixels.copy()
            covered[y : y + patch, x : x + patch] = (9, 8, 7)
            losses[y, x] = chance(pixels[None])[0] - chance(covered[None])[0]
    expected = np.array(
        [
            [
                np.mean([v for (y, x), v in losses.items() if 0 <= r - y < patch > c - x >= 0])
                for c in range(11)
            ]
            for r in range(9)
        ]
    )
    found = occlusion(chance, pixels, patch=patch, stride=stride, fill=(9, 8, 7))
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_what_nobody_looks_at_loses_nothing():
    found = occlusion(
        lambda batch: np.full(len(batch), 0.7), np.zeros((8, 8, 3), np.uint8), patch=3, stride=2
    )
    np.testing.assert_array_equal(found, 0)


@pytest.mark.parametrize(("patch", "stride"), [(0, 0), (3, 4), (9, 1), (3, 0)])
def test_patches_that_leave_places_out_are_refused(patch, stride):
    with pytest.raises(UsageError, match="smaller patch"):
        occlusion(
            lambda batch: np.zeros(len(batch)),
            np.zeros((8, 8, 3), np.uint8),
            patch=patch,
            stride=stride,
        )


# ------------------------------------------------------------------------- whole models


@pytest.fixture(scope="module")
def backbone():
    """The first half of a network that knows photographs; it costs little."""
    whole = FrozenBackbone.open("embedded/efficientnet_lite0", offline=True)
    return replace(whole, spec=replace(whole.spec, preprocess=SMALL)).until("stage4")


CORNERS = {"top left": (0, 0), "top right": (0, 1), "bottom left": (1, 0), "bottom right": (1, 1)}


def planted(corner, seed=0, side=120):
    """Soft noise, and in one corner (None for nowhere) a striped square."""
    rng = np.random.default_rng(seed)
    pixels = 110 + rng.normal(0, 6, (side, side, 3))
    if corner is not None:
        y, x = (round(12 + 66 * end) for end in CORNERS[corner])
        stripes = np.where(np.arange(30) // 5 % 2, 250, 20)
        pixels[y : y + 30, x : x + 30] = stripes[None, :, None]
    return pixels.clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def model(backbone):
    """It says whether there is a striped square, wherever that is."""
    from headstart.cache import Cache
    from headstart.features.extractor import Extractor

    images = [planted(None, seed) for seed in range(4)]
    images += [planted(corner, seed) for seed, corner in enumerate(CORNERS)]
    with Cache() as cache:
        extractor = Extractor(cache=cache, engine="fp32", device="cpu")
        values = extractor.features(backbone, [Sample(image=one) for one in images]).values
    apart = values[4:].mean(axis=0) - values[:4].mean(axis=0)
    apart /= (apart**2).sum() / 8
    middle = -float(apart @ (values[4:].mean(axis=0) + values[:4].mean(axis=0)) / 2)
    head = LinearHead(
        weight=np.stack([-apart, apart]).astype(np.float32) / 2,
        bias=np.array([-middle, middle], np.float32) / 2,
    )
    return TransferModel(
        backbone=backbone,
        task=ClassificationTask(classes=("nothing", "square")),
        head=head,
        engine="fp32",
    )


def told(model, images, **options):
    samples = [Sample(image=one) for one in images]
    return list(explain(model, samples, device_name="cpu", **options))


@pytest.mark.parametrize("method", ["grad-cam", "occlusion"])
def test_the_heat_is_where_the_object_is(model, method):
    corners = list(CORNERS)[method == "occlusion" :: 1 + (method == "occlusion")]  # it is slow
    found = told(model, [planted(corner, 9) for corner in corners], method=method)
    for one, (down, across) in zip(found, map(CORNERS.get, corners), strict=True):
        assert one.prediction == one.label == "square"
        assert one.probability > 0.8
        heat = np.maximum(one.heat, 0)
        rows, columns = heat.shape
        corner = heat[
            (rows // 2) * down : (rows // 2) * (down + 1) + (rows % 2) * down,
            (columns // 2) * across : (columns // 2) * (across + 1) + (columns % 2) * across,
        ]
        assert corner.sum() > 0.6 * heat.sum()
        assert heat.max() == corner.max()


def test_of_a_linear_head_the_whole_way_is_cam(model):
    images = [planted("top left", 3), planted(None, 4)]
    found = told(model, images, label="square")
    x = np.stack([SMALL.resize_and_crop(one) for one in images])
    with torch.no_grad():
        x = SMALL.normalise(torch.from_numpy(x).permute(0, 3, 1, 2))
        maps = model.backbone.module.run(x).numpy()
    cam = np.einsum("k,nkhw->nhw", model.head.weight[1], maps)
    expected = np.maximum(cam, 0) / maps[0, 0].size
    for one, map_ in zip(found, expected, strict=True):
        np.testing.assert_allclose(one.heat, map_, rtol=1e-3, atol=1e-5)


def test_probabilities_are_those_of_predict(model):
    images = [planted(corner, 5) for corner in (*CORNERS, None)]
    said = model.predict(images, engine="fp32", device="cpu")
    for one, other in zip(told(model, images), said, strict=True):
        assert one.prediction == other.label
        assert one.probability == pytest.approx(other.probability, abs=1e-4)


def test_a_class_may_be_named_that_is_not_the_answer(model):
    [one] = told(model, [planted("top left")], label="nothing")
    assert (one.label, one.prediction) == ("nothing", "square")
    assert one.probability < 0.2


def test_a_turned_photograph_is_explained_as_it_is_shown(model):
    """Stored lying, shown upright: the heat lies where a person sees the square."""
    upright = np.concatenate([planted("top left", side=120), planted(None, side=120)])
    file = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.rot90(upright)).save(file, "PNG", exif=exif)
    [turned] = told(model, [file.getvalue()])
    [plain] = told(model, [upright])
    assert turned.part == plain.part == pytest.approx((0, 0.25, 1, 0.75))
    np.testing.assert_allclose(turned.heat, plain.heat, atol=1e-6)


def test_of_several_labels_the_likeliest_is_explained_unless_one_is_named(model):
    several = replace(
        model, task=ClassificationTask(classes=("empty", "square"), kind="multilabel")
    )
    [one] = told(several, [planted("top left")])
    assert one.label == one.prediction == "square"
    [other] = told(several, [planted("top left")], label="empty")
    assert other.probability < 0.5


def test_more_images_than_a_batch_come_in_order(model):
    images = [planted("top left" if i % 3 else None, i) for i in range(19)]
    found = told(model, images)
    assert [one.prediction == "square" for one in found] == [bool(i % 3) for i in range(19)]


def test_tokens_have_no_maps_but_can_be_covered():
    spec = replace(resolve("timm/test_vit"), preprocess=replace(SMALL, resize=160, crop=160))
    module = load(spec, pretrained=False)
    backbone = FrozenBackbone(spec=spec, state=module.trunk.state_dict(), origin={})
    head = LinearHead.random(backbone.width, 2, seed=0)
    vit = TransferModel(backbone=backbone, task=ClassificationTask(classes=("a", "b")), head=head)
    with pytest.raises(UsageError, match="--method occlusion"):
        told(vit, [planted(None)])
    [one] = told(vit, [planted(None)], method="occlusion")
    assert one.heat.shape == (160, 160)


def test_no_images_give_no_maps(model):
    assert told(model, []) == []


def test_what_cannot_be_explained_is_refused(model):
    with pytest.raises(UnknownNameError, match="method"):
        told(model, [planted(None)], method="lime")
    with pytest.raises(UnknownNameError, match="square"):
        told(model, [planted(None)], label="sqare")
    with pytest.raises(UsageError, match="--format overlay"):
        told(replace(model, task=DetectionTask(classes=("a",))), [planted(None)])
    with pytest.raises(UsageError, match="Fit it first"):
        told(replace(model, head=None), [planted(None)])
    with pytest.raises(UnreadableImageError):
        told(model, [b"no image"])
