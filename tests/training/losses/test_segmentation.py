import itertools

import numpy as np
import pytest
import torch
from segmentation_models_pytorch import losses as smp
from torch.nn import functional

from headstart.errors import UsageError
from headstart.training.losses.segmentation import (
    MaskLoss,
    cross_entropy_loss,
    dice_loss,
    focal_loss,
    jaccard_loss,
    lovasz_loss,
    mask_loss,
)

LOSSES = [cross_entropy_loss, dice_loss, focal_loss, jaccard_loss, lovasz_loss]
KINDS = ["ce", "dice", "focal", "lovasz", "jaccard", "ce+dice"]
named = pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.__name__)


def case(seed, *, n_classes=4, ignored=0.2, shape=(3, 5, 7)):
    """Random logits and a truth that shows every class."""
    rng = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(shape[0], n_classes, *shape[1:], generator=rng, dtype=torch.float64)
    truth = torch.randint(0, n_classes, shape, generator=rng)
    truth[torch.rand(shape, generator=rng) < ignored] = 255
    truth[0, 0, :n_classes] = torch.arange(n_classes)
    return logits, truth


def confident(truth, n_classes, strength=200.0):
    labels = truth.masked_fill(truth == 255, 0)
    return strength * functional.one_hot(labels, n_classes).movedim(-1, 1).double()


# --------------------------------------------------------------------- against other libraries


@pytest.mark.parametrize("seed", range(5))
def test_cross_entropy_is_torchs_without_weights(seed):
    logits, truth = case(seed)
    reference = functional.cross_entropy(logits, truth, ignore_index=255, label_smoothing=0.1)
    torch.testing.assert_close(cross_entropy_loss(logits, truth, label_smoothing=0.1), reference)


def test_weights_multiply_the_plain_mean_over_valid_pixels():
    logits, truth = case(1)
    weights = torch.tensor([0.5, 2.0, 0.0, 1.0])
    p = np.exp(logits.numpy()) / np.exp(logits.numpy()).sum(axis=1, keepdims=True)
    terms = [
        -weights[k].item() * np.log(p[i, k, r, c])
        for (i, r, c), k in np.ndenumerate(truth.numpy())
        if k != 255
    ]
    value = cross_entropy_loss(logits, truth, class_weights=weights)
    assert value.item() == pytest.approx(np.mean(terms))


@pytest.mark.parametrize("seed", range(5))
def test_dice_is_that_of_segmentation_models(seed):
    logits, truth = case(seed)
    theirs = smp.DiceLoss("multiclass", ignore_index=255)
    torch.testing.assert_close(dice_loss(logits, truth), theirs(logits, truth))


@pytest.mark.parametrize("seed", range(3))
def test_jaccard_is_that_of_segmentation_models(seed):
    logits, truth = case(seed, ignored=0)
    torch.testing.assert_close(
        jaccard_loss(logits, truth), smp.JaccardLoss("multiclass")(logits, truth)
    )


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_two_classes_have_the_binary_focal_loss(gamma):
    logits, truth = case(2, n_classes=2)
    valid = truth != 255
    binary = (logits[:, 1] - logits[:, 0])[valid]
    reference = smp.FocalLoss("binary", gamma=gamma)(binary, truth[valid].double())
    torch.testing.assert_close(focal_loss(logits, truth, gamma=gamma), reference)


def test_focal_without_gamma_is_cross_entropy():
    logits, truth = case(3)
    weights = torch.tensor([0.5, 2.0, 3.0, 1.0])
    value = focal_loss(logits, truth, gamma=0.0, class_weights=weights)
    torch.testing.assert_close(value, cross_entropy_loss(logits, truth, class_weights=weights))


# ----------------------------------------------------------------------------- the Lovasz hull


def test_lovasz_is_the_jaccard_loss_where_answers_are_sure():
    """At vertices of the cube of errors the extension is the set function itself."""
    rng = np.random.default_rng(0)
    for truth, answer in rng.integers(0, 3, (20, 2, 1, 2, 4)):
        present = np.unique(truth)
        both = [
            ((truth == k) & (answer == k)).sum() / ((truth == k) | (answer == k)).sum()
            for k in present
        ]
        value = lovasz_loss(confident(torch.from_numpy(answer), 3), torch.from_numpy(truth))
        assert value.item() == pytest.approx(1 - np.mean(both))


def test_lovasz_is_the_integral_over_thresholds():
    """The Lovasz extension of F at e is the mean over t in 0..1 of F({pixels with e > t})."""
    logits, truth = case(4, n_classes=2, ignored=0, shape=(1, 3, 4))
    shares = logits.softmax(dim=1)[0].numpy()
    expected = []
    for k in (0, 1):
        is_class = truth[0].numpy() == k
        errors = np.abs(is_class - shares[k])
        edges = np.unique(np.concatenate([[0.0], errors.ravel(), [1.0]]))
        total = 0.0
        for low, high in itertools.pairwise(edges):
            wrong = errors > low
            total += (high - low) * wrong.sum() / (is_class | wrong).sum()
        expected.append(total)
    assert lovasz_loss(logits, truth).item() == pytest.approx(np.mean(expected))


# --------------------------------------------------------------------------------- all of them


@named
def test_gradients_are_those_of_the_value(loss):
    logits, truth = case(5, n_classes=3, shape=(2, 2, 3))
    # The Lovasz loss is computed in float32, which needs wider steps.
    coarse = {"eps": 1e-3, "atol": 1e-3} if loss is lovasz_loss else {}
    assert torch.autograd.gradcheck(lambda x: loss(x, truth), logits.requires_grad_(), **coarse)


@pytest.mark.parametrize("loss", [dice_loss, jaccard_loss])
def test_few_pixels_among_many_keep_their_weight(loss):
    rng = torch.Generator().manual_seed(0)
    truth = torch.zeros(1, 1024, 1024, dtype=torch.int64)
    truth[0, 0, :50] = 1
    logits = torch.randn(1, 2, 1024, 1024, generator=rng)
    logits[:, 1] += 10 * truth - 8
    torch.testing.assert_close(
        loss(logits, truth).double(), loss(logits.double(), truth), rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@named
def test_autocast_changes_nothing(loss, dtype):
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 2, 256, 256, generator=rng)  # more pixels than float16 can count
    truth = torch.randint(0, 2, (4, 256, 256), generator=rng)
    with torch.autocast("cpu", dtype):
        value = loss(logits, truth)
    torch.testing.assert_close(value, loss(logits, truth))


@named
def test_perfect_answers_cost_nothing_and_worst_ones_most(loss):
    _, truth = case(6)
    assert loss(confident(truth, 4), truth).item() == pytest.approx(0, abs=1e-9)
    worst = loss(confident((truth + 1) % 4, 4), truth).item()
    assert (
        worst == pytest.approx(1) if loss in {dice_loss, jaccard_loss, lovasz_loss} else worst > 100
    )


@named
def test_ignored_pixels_do_not_count(loss):
    logits, truth = case(7)
    other = torch.where((truth == 255)[:, None], torch.randn_like(logits), logits)
    torch.testing.assert_close(loss(logits, truth), loss(other, truth))
    grown = functional.pad(logits, (0, 3), value=5.0), functional.pad(truth, (0, 3), value=255)
    torch.testing.assert_close(loss(*grown), loss(logits, truth))


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_without_valid_pixels_is_nothing(kind):
    logits = torch.randn(2, 3, 4, 4, requires_grad=True)
    truth = torch.full((2, 4, 4), 255)
    smoothing = 0.1 if kind in {"ce", "ce+dice"} else 0.0
    value = mask_loss(logits, truth, MaskLoss(kind=kind, label_smoothing=smoothing))
    (slope,) = torch.autograd.grad(value, logits)
    assert value.item() == 0
    torch.testing.assert_close(slope, torch.zeros_like(slope))


@pytest.mark.parametrize("loss", [dice_loss, jaccard_loss, lovasz_loss])
def test_classes_that_are_not_there_are_left_out(loss):
    logits, truth = case(8, n_classes=2)
    padded = torch.cat([logits, torch.full_like(logits, -1e3)], dim=1)
    torch.testing.assert_close(loss(padded, truth), loss(logits, truth))


@pytest.mark.parametrize("loss", [dice_loss, jaccard_loss, lovasz_loss])
def test_overlaps_stay_between_0_and_1(loss):
    for seed in range(20):
        logits, truth = case(seed, n_classes=2, shape=(1, 4, 4))
        for strength in (0.0, 1.0, 50.0):
            for sure in (logits * strength, confident(truth, 2, strength)):
                assert 0 <= loss(sure.float(), truth).item() <= 1 + 1e-6


def test_16_bits_are_summed_in_32():
    logits, truth = case(9, shape=(1, 64, 64))
    half = logits.to(torch.bfloat16)
    value = mask_loss(half, truth, MaskLoss())
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, mask_loss(half.float(), truth, MaskLoss()))


# ------------------------------------------------------------------------------------ settings


def test_the_sum_is_the_sum():
    logits, truth = case(10)
    weights = torch.tensor([1.0, 2.0, 0.5, 1.0])
    settings = MaskLoss(class_weights="balanced", label_smoothing=0.1)
    parts = cross_entropy_loss(
        logits, truth, class_weights=weights, label_smoothing=0.1
    ) + dice_loss(logits, truth)
    torch.testing.assert_close(mask_loss(logits, truth, settings, class_weights=weights), parts)


def test_balanced_classes_weigh_alike():
    counts = np.array([900, 90, 10, 0])
    weights = MaskLoss(class_weights="balanced").weights(counts)
    np.testing.assert_allclose((weights * counts)[:3], counts.sum() / 3)
    assert weights[3] == 0
    assert MaskLoss().weights(counts) is None


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"kind": "dise"}, "Did you mean 'dice'"),
        ({"class_weights": "inverse"}, "class_weights"),
        ({"label_smoothing": 1.0}, "below 1"),
        ({"focal_gamma": -1.0}, "focal_gamma"),
        ({"kind": "dice", "class_weights": "balanced"}, "does not use class weights"),
        ({"kind": "lovasz", "label_smoothing": 0.1}, "label_smoothing"),
    ],
)
def test_settings_without_a_meaning_are_refused(settings, complaint):
    with pytest.raises(UsageError, match=complaint):
        MaskLoss(**settings)


@named
@pytest.mark.parametrize(
    ("logits", "truth", "complaint"),
    [
        (torch.zeros(1, 2, 3), torch.zeros(1, 3, dtype=torch.int64), "floats of shape"),
        (torch.zeros(1, 2, 3, 3), torch.zeros(1, 3, 4, dtype=torch.int64), "int64 of shape"),
        (torch.zeros(1, 2, 3, 3), torch.zeros(1, 3, 3), "int64 of shape"),
        (torch.zeros(1, 2, 3, 3), torch.full((1, 3, 3), 2), "palette"),  # masks of 0 and 255: no
        (torch.zeros(1, 2, 3, 3), torch.full((1, 3, 3), -1), "palette"),
    ],
)
def test_what_does_not_fit_is_refused(loss, logits, truth, complaint):
    with pytest.raises(UsageError, match=complaint):
        loss(logits, truth)


def test_weights_of_other_classes_are_refused():
    logits, truth = case(0)
    with pytest.raises(UsageError, match="class_weights"):
        cross_entropy_loss(logits, truth, class_weights=torch.ones(3))
