"""Drift against direct formulas, against the library's own network, and against known moves."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from headstart.backbones.backbone import load
from headstart.backbones.catalog import resolve
from headstart.backbones.frozen import FrozenBackbone
from headstart.data.dataset import Sample
from headstart.data.transforms.preprocess import Preprocess
from headstart.errors import DataError, UsageError
from headstart.evaluation.drift import linear_cka, mean_cosine, measure_drift

SMALL = Preprocess(
    resize=40, crop=32, interpolation="bilinear", mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3)
)

# ------------------------------------------------------------------------------ similarities


def features(n, d, seed=0):
    return np.random.default_rng(seed).normal(size=(n, d)) + 3


def direct_cka(a, b):
    """CKA by its definition: HSIC of two kernels with a centring matrix, eq. 2 and 3."""
    n = len(a)
    centring = np.eye(n) - 1 / n

    def hsic(k, m):
        return np.trace(k @ centring @ m @ centring) / (n - 1) ** 2

    k, m = a @ a.T, b @ b.T
    return hsic(k, m) / np.sqrt(hsic(k, k) * hsic(m, m))


SHAPES = [(50, 6, 6), (50, 6, 9), (8, 20, 30), (20, 5, 40), (2, 3, 3)]


@pytest.mark.parametrize(("n", "d", "e"), SHAPES)
def test_cka_is_its_definition_with_many_and_few_images(n, d, e):
    a, b = features(n, d), features(n, e, seed=1)
    b[:, : min(d, e)] += a[:, : min(d, e)]
    assert linear_cka(a, b) == pytest.approx(direct_cka(a, b), abs=1e-9)
    assert linear_cka(a, b) == pytest.approx(linear_cka(b, a), abs=1e-12)


@pytest.mark.parametrize(("n", "d"), [(50, 6), (8, 20)])
def test_cka_does_not_see_rotation_scale_and_shift_but_a_stretch(n, d):
    a, b = features(n, d), features(n, d, seed=1)
    turn, _ = np.linalg.qr(features(d, d, seed=2) - 3)
    assert linear_cka(a, a) == pytest.approx(1, abs=1e-12)
    assert linear_cka(a, -2.5 * a @ turn + 7) == pytest.approx(1, abs=1e-9)
    assert linear_cka(3 * a @ turn - 1, b) == pytest.approx(linear_cka(a, b), abs=1e-9)
    assert linear_cka(a * np.linspace(1, 30, d), a) < 0.99


def test_cka_of_what_does_not_vary_is_not_a_number():
    assert np.isnan(linear_cka(np.ones((5, 2)), features(5, 2)))
    assert np.isnan(linear_cka(features(1, 2), features(1, 2)))


def test_mean_cosine_is_scikit_learns():
    from sklearn.metrics.pairwise import cosine_similarity

    a, b = features(30, 7) - 3, features(30, 7, seed=1) - 3
    assert mean_cosine(a, b) == pytest.approx(np.diag(cosine_similarity(a, b)).mean())
    assert mean_cosine(a, 5 * a) == pytest.approx(1)
    assert mean_cosine(a, -a) == pytest.approx(-1)


def test_rows_without_direction_are_left_out_of_the_cosine():
    a = np.array([[1.0, 0.0], [0.0, 0.0], [1.0, 1.0]])
    b = np.array([[1.0, 0.0], [1.0, 1.0], [1.0, -1.0]])
    assert mean_cosine(a, b) == pytest.approx(0.5)
    assert np.isnan(mean_cosine(np.zeros((2, 3)), np.ones((2, 3))))


@pytest.mark.parametrize("similarity", [linear_cka, mean_cosine])
@pytest.mark.parametrize(
    ("a", "b"),
    [(np.ones(3), np.ones(3)), (np.ones((3, 2)), np.ones((4, 2))), (np.ones((0, 2)),) * 2],
)
def test_features_of_other_images_are_refused(similarity, a, b):
    with pytest.raises(UsageError, match="same n"):
        similarity(a, b)


def test_cosine_needs_the_same_width():
    with pytest.raises(UsageError, match="shape of `a`"):
        mean_cosine(np.ones((3, 2)), np.ones((3, 4)))


# -------------------------------------------------------------------------------- backbones


def make_backbone(name="timm/test_resnet", seed=0, head=None):
    spec = replace(resolve(name), preprocess=SMALL, data="ImageNet")
    state = load(spec, pretrained=False, seed=seed).trunk.state_dict()
    return FrozenBackbone(spec=spec, state=state | (head or {}), origin={})


def linear(prefix, width, classes=10, seed=0):
    made = torch.Generator().manual_seed(seed)
    weight = torch.randn(classes, width, generator=made)
    return {f"{prefix}.weight": weight, f"{prefix}.bias": torch.randn(classes, generator=made)}


def moved(backbone, prefixes, scale=1.0):
    """The backbone with the parameters below some paths moved along one fixed direction."""
    made = torch.Generator().manual_seed(1)
    state = {}
    for name, tensor in backbone.state.items():
        noise = torch.randn(tensor.shape, generator=made)
        move = name.startswith(prefixes) and name.endswith(("weight", "bias"))
        state[name] = tensor + 0.3 * scale * tensor.std() * noise if move else tensor.clone()
    return replace(backbone, state=state)


def images(n=12):
    rng = np.random.default_rng(0)
    # Images of one colour each, with noise: of noise alone all features are nearly the same.
    shades = rng.integers(0, 200, (n, 1, 1, 3)) + rng.integers(0, 56, (n, 40, 40, 3))
    return [Sample(image=shade.astype(np.uint8)) for shade in shades]


RESNET = make_backbone(head=linear("fc", 96))


def numbers(stage):
    return stage.cka, stage.cosine, stage.relative_weight_change


NAMES = ("timm/test_resnet", "timm/test_efficientnet", "timm/test_vit", "torchvision/resnet18")


@pytest.mark.parametrize("name", NAMES)
def test_equal_backbones_have_not_drifted(name, monkeypatch):
    backbone = make_backbone(name)
    assert backbone.module.stages
    monkeypatch.setattr("headstart.evaluation.drift.load_batch", lambda *a: pytest.fail("ran"))
    found = measure_drift(backbone, moved(backbone, prefixes=("nothing",)), images(3))
    assert [one.stage for one in found.stages] == [s.name for s in backbone.module.stages]
    assert {numbers(one) for one in found.stages} == {(1.0, 1.0, 0.0)}


LAST = {
    "timm/test_resnet": "layer4",
    "timm/test_efficientnet": ("conv_head", "bn2"),
    "torchvision/resnet18": "layer4",
}


@pytest.mark.parametrize("name", LAST)
def test_only_the_stage_that_moved_has_drifted(name):
    backbone = make_backbone(name)
    found = measure_drift(backbone, moved(backbone, LAST[name]), images())
    *earlier, last = map(numbers, found.stages)
    assert set(earlier) == {(1.0, 1.0, 0.0)}
    assert last[0] < 1
    assert last[1] < 1
    assert last[2] > 0


def test_what_comes_behind_a_moved_stage_drifts_without_moving():
    found = measure_drift(RESNET, moved(RESNET, "layer2"), images())
    stages = {one.stage: one for one in found.stages}
    assert numbers(stages["layer1"]) == (1, 1, 0)
    assert stages["layer2"].relative_weight_change > 0
    assert stages["layer3"].relative_weight_change == 0
    assert stages["layer4"].cosine < 1


def test_statistics_alone_make_drift_but_no_change_of_weights():
    state = {
        k: v * torch.linspace(1, 9, len(v)) if k.endswith("running_var") else v
        for k, v in RESNET.state.items()
    }
    last = measure_drift(RESNET, replace(RESNET, state=state), images()).stages[-1]
    assert last.relative_weight_change == 0
    assert last.cosine < 0.999


def test_a_counter_of_batches_is_no_drift():
    counted = {k: v + 1 if k.endswith("tracked") else v for k, v in RESNET.state.items()}
    found = measure_drift(RESNET, replace(RESNET, state=counted), images(2))
    assert {numbers(one) for one in found.stages} == {(1.0, 1.0, 0.0)}


def test_larger_moves_drift_further():
    scales = (0, 0.5, 1, 2)
    last = [
        measure_drift(RESNET, moved(RESNET, "layer4", scale), images()).stages[-1]
        for scale in scales
    ]
    assert numbers(last[0]) == (1, 1, 0)
    for nearer, farther in pairwise(last):
        assert farther.cosine < nearer.cosine - 1e-4
        assert farther.relative_weight_change > nearer.relative_weight_change
    assert last[2].relative_weight_change == pytest.approx(2 * last[1].relative_weight_change)


def test_the_change_of_weights_is_its_formula():
    after = moved(RESNET, "layer4")
    names = [k for k in RESNET.state if k.startswith("layer4") and k.endswith(("weight", "bias"))]
    old = torch.cat([RESNET.state[k].flatten() for k in names])
    new = torch.cat([after.state[k].flatten() for k in names])
    last = measure_drift(RESNET, after, images(2)).stages[-1]
    assert last.relative_weight_change == pytest.approx(float((new - old).norm() / old.norm()))


def hand_made(backbone, samples):
    """Features behind every ResNet stage, averaged over places, and its own classifier's logits."""
    import timm

    model = timm.create_model("test_resnet", num_classes=10)
    model.load_state_dict(dict(backbone.state))
    pixels = np.stack([SMALL.resize_and_crop(sample.image) for sample in samples])
    batch = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255.0
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (SMALL.mean, SMALL.std))
    kept = []
    for name in ("maxpool", "layer1", "layer2", "layer3", "layer4"):
        model.get_submodule(name).register_forward_hook(
            lambda _module, _inputs, y: kept.append(y.mean(dim=(2, 3)).numpy())
        )
    with torch.inference_mode():
        logits = model.eval()((batch - mean) / std)
    return kept, logits.numpy()


@pytest.mark.parametrize("batch", [5, 64])
def test_measured_is_what_the_librarys_own_network_gives(batch):
    after, samples = moved(RESNET, ("layer3", "layer4"), 2), images(13)
    (kept0, logits0), (kept1, logits1) = hand_made(RESNET, samples), hand_made(after, samples)
    before_class, after_class = logits0.argmax(1), logits1.argmax(1)
    labels = [int(c) for c in np.where(np.arange(13) < 9, before_class, (before_class + 1) % 10)]
    found = measure_drift(RESNET, after, samples, labels=labels, batch=batch)
    for one, a, b in zip(found.stages, kept0, kept1, strict=True):
        assert one.cka == pytest.approx(direct_cka(*map(np.float64, (a, b))), abs=1e-4)
        assert one.cosine == pytest.approx(mean_cosine(a, b), abs=1e-4)
    source = found.source
    assert (source.name, source.images, found.images, found.note) == ("ImageNet", 13, 13, "")
    agreeing = (before_class == after_class).mean()
    assert 0 < agreeing < 1
    assert source.agreement.value == pytest.approx(agreeing)
    assert source.before.value == pytest.approx(9 / 13)
    assert source.after.value == pytest.approx((after_class == labels).mean())
    lost = source.after.value - source.before.value
    assert source.change.interval.value == pytest.approx(lost)


def test_a_head_that_is_given_comes_before_the_one_in_the_weights():
    after, other = moved(RESNET, "layer4", 2), linear("fc", 96, classes=2, seed=5)
    mine = measure_drift(RESNET, after, images())
    given = measure_drift(RESNET, after, images(), old_head=other)
    swapped = measure_drift(replace(RESNET, state=dict(RESNET.state) | other), after, images())
    assert given == swapped != mine
    no_bias = {"fc.weight": other["fc.weight"]}
    zero = no_bias | {"fc.bias": torch.zeros(2)}
    assert measure_drift(RESNET, after, images(), old_head=no_bias) == measure_drift(
        RESNET, after, images(), old_head=zero
    )


def test_a_backbone_that_has_not_moved_is_asked_only_where_the_truth_is_known():
    agreed = measure_drift(RESNET, RESNET, images()).source
    assert (agreed.agreement.value, agreed.before, agreed.change) == (1.0, None, None)
    _, logits = hand_made(RESNET, images())
    labels = logits.argmax(1).tolist()
    told = measure_drift(RESNET, RESNET, images(), labels=labels).source
    assert told.before.value == told.after.value == 1.0
    assert told.change.interval.value == 0.0


def test_images_of_one_group_count_as_one():
    after = moved(RESNET, "layer4", 0.01)
    alone = measure_drift(RESNET, after, images()).source.agreement
    twins = [replace(sample, group=f"{i // 6}") for i, sample in enumerate(images())]
    together = measure_drift(RESNET, after, twins).source.agreement
    assert together.value == alone.value
    assert together.low < alone.low


def test_a_limit_draws_by_the_seed_alone():
    after, samples = moved(RESNET, "layer4"), images(30)
    np.random.seed(0)  # noqa: NPY002 - must not matter
    first = measure_drift(RESNET, after, samples, limit=6, seed=3)
    np.random.seed(1)  # noqa: NPY002
    assert first == measure_drift(RESNET, after, samples, limit=6, seed=3)
    assert first.images == 6
    assert first != measure_drift(RESNET, after, samples, limit=6, seed=4)
    labels = list(range(10)) * 3
    assert measure_drift(RESNET, after, samples, labels=labels, limit=6).source.before is not None


VGG = {
    "classifier.0.weight": torch.zeros(8, 96),
    "classifier.0.bias": torch.zeros(8),
    "classifier.3.weight": torch.zeros(10, 8),
    "classifier.3.bias": torch.zeros(10),
}


@pytest.mark.parametrize(
    ("head", "reason"),
    [
        ({}, "no original classifier"),
        (VGG, "more than one linear layer"),
        (linear("fc", 95), "more than one linear layer"),
        ({"AuxLogits.fc.weight": torch.zeros(10, 96)}, "no original classifier"),
    ],
    ids=["none", "deep", "wide", "auxiliary"],
)
def test_a_head_that_cannot_be_run_is_said_to_be_so(head, reason):
    found = measure_drift(RESNET, moved(RESNET, "layer4"), images(3), old_head=head)
    assert found.source is None
    assert reason in found.note
    assert found.stages[-1].cosine < 1


def test_the_second_classifier_of_inception_is_not_asked():
    after, head = moved(RESNET, "layer4"), linear("fc", 96)
    aside = {"AuxLogits.fc.weight": torch.zeros(10, 96), "AuxLogits.fc.bias": torch.zeros(10)}
    assert measure_drift(RESNET, after, images(3), old_head=head | aside) == measure_drift(
        RESNET, after, images(3), old_head=head
    )


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"samples": []}, DataError, "at least one image"),
        ({"batch": 0}, UsageError, "`batch` and `limit`"),
        ({"limit": 0}, UsageError, "`batch` and `limit`"),
        ({"labels": [1]}, UsageError, "one label for each of 2"),
        ({"labels": [0, 10]}, UsageError, "from 0 to 9"),
        ({"labels": [-1, 0]}, UsageError, "from 0 to 9"),
        ({"after": make_backbone("timm/test_efficientnet")}, UsageError, "one architecture"),
    ],
    ids=str,
)
def test_what_cannot_be_measured_is_refused(change, error, said):
    arguments = {"before": RESNET, "after": RESNET, "samples": images(2)} | change
    with pytest.raises(error, match=said):
        measure_drift(**arguments)


def test_measuring_changes_neither_backbone():
    after = moved(RESNET, "layer4")
    prints = [backbone.fingerprint for backbone in (RESNET, after)]
    measure_drift(RESNET, after, images(3))
    again = [replace(backbone).fingerprint for backbone in (RESNET, after)]
    assert prints == again
