"""Losses against torch.nn.functional, torchvision's focal loss and closed forms."""

import itertools

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, one_hot
from torchvision.ops import sigmoid_focal_loss

from headstart.errors import UnknownNameError, UsageError
from headstart.training.losses.classification import (
    Loss,
    balanced_weights,
    classification_loss,
    log_priors,
)

N, K = 7, 4


def batch(kind: str = "multiclass"):
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn((N, K), generator=generator, dtype=torch.float64)
    if kind == "multilabel":
        return logits, torch.randint(0, 2, (N, K), generator=generator)
    return logits, torch.randint(0, K, (N,), generator=generator)


def soft_rows() -> torch.Tensor:
    rows = torch.rand((N, K), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return rows / rows.sum(dim=1, keepdim=True)


WEIGHTS = torch.tensor([0.5, 2.0, 1.0, 4.0], dtype=torch.float64)


# ----------------------------------------------------------------------------- multiclass


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.7])
@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["plain", "weighted"])
def test_multiclass_is_torchs_cross_entropy(smoothing, weights):
    logits, targets = batch()
    ours = classification_loss(
        logits, targets, kind="multiclass", label_smoothing=smoothing, class_weights=weights
    )
    expected = cross_entropy(
        logits, targets, weight=weights, label_smoothing=smoothing, reduction="sum"
    ) / len(logits)
    torch.testing.assert_close(ours, expected)
    rows = one_hot(targets, K).double()
    soft = classification_loss(
        logits, rows, kind="multiclass", label_smoothing=smoothing, class_weights=weights
    )
    torch.testing.assert_close(soft, expected)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_soft_targets_are_torchs(smoothing):
    logits, _ = batch()
    ours = classification_loss(logits, soft_rows(), kind="multiclass", label_smoothing=smoothing)
    torch.testing.assert_close(ours, cross_entropy(logits, soft_rows(), label_smoothing=smoothing))


def test_weighted_soft_targets_are_the_weighted_sum_of_their_parts():
    logits, _ = batch()
    log_p, rows = logits.log_softmax(dim=1), soft_rows()
    parts = [(WEIGHTS[c] * rows[i, c], -log_p[i, c]) for i in range(N) for c in range(K)]
    expected = sum(w * loss for w, loss in parts) / N
    ours = classification_loss(logits, rows, kind="multiclass", class_weights=WEIGHTS)
    torch.testing.assert_close(ours, expected)


def test_mixed_targets_give_the_mixture_of_losses():
    """The identity that mixing rests on (Zhang et al., section 2)."""
    logits, first_labels = batch()
    second_labels, share = first_labels.flip(0), 0.3
    mixed = share * one_hot(first_labels, K) + (1 - share) * one_hot(second_labels, K).double()
    ours = classification_loss(logits, mixed, kind="multiclass")
    expected = share * cross_entropy(logits, first_labels) + (1 - share) * cross_entropy(
        logits, second_labels
    )
    torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0, 5.0])
def test_focal_is_equation_4(gamma):
    logits, targets = batch()
    p = logits.softmax(dim=1)[torch.arange(N), targets]
    ours = classification_loss(logits, targets, kind="multiclass", focal_gamma=gamma)
    torch.testing.assert_close(ours, (-((1 - p) ** gamma) * p.log()).mean())


def test_logit_adjustment_is_equation_10():
    logits, targets = batch()
    priors = torch.tensor([0.7, 0.1, 0.15, 0.05], dtype=torch.float64)
    ours = classification_loss(
        logits, targets, kind="multiclass", logit_adjustment=1.3 * priors.log()
    )
    scores = priors**1.3 * logits.exp()
    expected = -(scores[torch.arange(N), targets] / scores.sum(dim=1)).log().mean()
    torch.testing.assert_close(ours, expected)


def test_adjusted_training_on_priors_alone_leaves_logits_alike():
    """Without features the best adjusted logits are equal: that is what it is for."""
    targets = torch.tensor([0] * 8 + [1] * 3 + [2])
    adjustment = torch.from_numpy(log_priors(targets.numpy(), n_classes=3))
    logits = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)
    loss = classification_loss(
        logits.expand(12, 3), targets, kind="multiclass", logit_adjustment=adjustment
    )
    (gradient,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient))


# ----------------------------------------------------------------------------- multilabel


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["plain", "weighted"])
def test_multilabel_is_torchs_binary_cross_entropy(smoothing, weights):
    logits, targets = batch("multilabel")
    smoothed = targets.double() * (1 - smoothing) + smoothing / 2
    expected = binary_cross_entropy_with_logits(logits, smoothed, pos_weight=weights)
    for typed_targets in (targets, targets.double()):
        ours = classification_loss(
            logits,
            typed_targets,
            kind="multilabel",
            label_smoothing=smoothing,
            class_weights=weights,
        )
        torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_multilabel_focal_is_torchvisions(gamma):
    logits, targets = batch("multilabel")
    expected = sigmoid_focal_loss(logits, targets.double(), alpha=-1, gamma=gamma).mean()
    ours = classification_loss(logits, targets, kind="multilabel", focal_gamma=gamma)
    torch.testing.assert_close(ours, expected)


# -------------------------------------------------------------------------------- contract


@pytest.mark.parametrize("kind", ["multiclass", "multilabel"])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_gradients_are_right_and_stay_finite(kind, gamma):
    logits, targets = batch(kind)
    settings = {
        "kind": kind,
        "focal_gamma": gamma,
        "label_smoothing": 0.1,
        "class_weights": WEIGHTS,
    }
    assert torch.autograd.gradcheck(
        lambda x: classification_loss(x, targets, **settings), logits.requires_grad_()
    )
    for size in (0.0, 100.0, 1e4):
        sure = (size * torch.sign(batch(kind)[0])).float().requires_grad_()
        loss = classification_loss(sure, targets, **settings)
        (gradient,) = torch.autograd.grad(loss, sure)
        assert torch.isfinite(loss)
        assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("kind", ["multiclass", "multilabel"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(kind, dtype):
    logits, targets = batch(kind)
    half = logits.to(dtype)
    ours = classification_loss(half, targets, kind=kind, class_weights=WEIGHTS)
    assert ours.dtype == torch.float32
    expected = classification_loss(half.float(), targets, kind=kind, class_weights=WEIGHTS)
    assert torch.equal(ours, expected)


def test_a_batch_of_classes_without_weight_costs_nothing():
    logits, _ = batch()
    ours = classification_loss(
        logits,
        torch.zeros(N, dtype=torch.long),
        kind="multiclass",
        class_weights=torch.tensor([0.0, 1, 1, 1]),
    )
    assert ours == 0


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"kind": "multilable"}, "Did you mean 'multilabel'"),
        ({"kind": "multilabel"}, r"a table \(7, 4\)"),
        ({"logits": torch.zeros(N)}, "`logits`"),
        ({"logits": torch.zeros(N, K, dtype=torch.long)}, "`logits`"),
        ({"targets": torch.zeros(N - 1, dtype=torch.long)}, "class indices"),
        ({"targets": torch.zeros(N)}, "class indices"),
        ({"targets": torch.zeros(N, K, dtype=torch.long)}, "class indices"),
        ({"targets": torch.zeros(N, K + 1)}, "class indices"),
        ({"class_weights": torch.ones(K + 1)}, "`class_weights`"),
        ({"logit_adjustment": torch.ones(1)}, "`logit_adjustment`"),
        (
            {"kind": "multilabel", "targets": torch.ones(N, K), "logit_adjustment": torch.ones(K)},
            "`logit_adjustment` .* multilabel",
        ),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused(changes, complaint):
    logits, targets = batch()
    arguments = {"logits": logits, "targets": targets, "kind": "multiclass", **changes}
    with pytest.raises(UsageError, match=complaint):
        classification_loss(**arguments)


# ------------------------------------------------------------------------------ the choice


def test_balanced_weights_are_scikit_learns():
    targets = np.repeat([0, 1, 3], [20, 5, 2])
    ours = balanced_weights(targets, n_classes=4, kind="multiclass")
    expected = compute_class_weight("balanced", classes=np.array([0, 1, 3]), y=targets)
    np.testing.assert_allclose(ours[[0, 1, 3]], expected)
    assert ours[2] == 0
    assert ours[targets].mean() == pytest.approx(1)


def test_balanced_labels_have_two_sides_of_one_weight():
    targets = np.array([[1, 0, 1, 1], [0, 0, 1, 1], [0, 0, 1, 0], [0, 0, 1, 1]])
    weights = balanced_weights(targets, n_classes=4, kind="multilabel")
    np.testing.assert_allclose(weights, [3, 1, 1, 1 / 3])
    for column in (0, 3):
        positive = targets[:, column].sum()
        assert weights[column] * positive == pytest.approx(len(targets) - positive)


def test_priors_are_shares_and_finite():
    ours = np.exp(log_priors(np.repeat([0, 1], [6, 2]), n_classes=3))
    np.testing.assert_allclose(ours, [0.75, 0.25, 0.125])


@pytest.mark.parametrize(
    ("counts", "kind", "settings", "expected"),
    [
        ([30, 10], "multiclass", {}, "balanced"),
        ([29, 10], "multiclass", {}, "none"),
        ([30, 0, 29], "multiclass", {}, "none"),
        ([30, 10], "multilabel", {}, "none"),
        ([30, 10], "multiclass", {"logit_adjustment": 1.0}, "none"),
        ([30, 10], "multiclass", {"imbalance": "none"}, "none"),
        ([30, 10], "multiclass", {"imbalance": "sampling"}, "sampling"),
        ([10, 10], "multiclass", {"imbalance": "balanced"}, "balanced"),
        ([30, 10], "multilabel", {"imbalance": "balanced"}, "balanced"),
    ],
)
def test_auto_is_resolved_from_the_data(counts, kind, settings, expected):
    classes = np.repeat(np.arange(len(counts)), counts)
    targets = np.eye(len(counts), dtype=np.intp)[classes] if kind == "multilabel" else classes
    shape = {"n_classes": len(counts), "kind": kind}
    loss = Loss(**settings)
    assert loss.resolved(targets, **shape) == expected
    weights = loss.weights(targets, **shape)
    assert (weights is not None) == (expected == "balanced")
    if weights is not None:
        np.testing.assert_array_equal(weights, balanced_weights(targets, **shape))
    adjustment = loss.adjustment(targets, **shape)
    assert (adjustment is not None) == ("logit_adjustment" in settings)


def test_the_adjustment_is_tau_log_priors():
    targets = np.repeat([0, 1], [6, 2])
    ours = Loss(logit_adjustment=0.5).adjustment(targets, n_classes=2, kind="multiclass")
    np.testing.assert_allclose(ours, 0.5 * np.log([0.75, 0.25]))


@pytest.mark.parametrize(
    "settings", [{"logit_adjustment": 1.0}, {"imbalance": "sampling"}], ids=str
)
def test_remedies_for_exclusive_classes_are_refused_for_labels(settings):
    for method in (
        Loss(**settings).resolved,
        Loss(**settings).weights,
        Loss(**settings).adjustment,
    ):
        with pytest.raises(UsageError, match="exclude each other"):
            method(np.eye(2, dtype=np.intp), n_classes=2, kind="multilabel")


@pytest.mark.parametrize(
    "settings",
    [
        {"label_smoothing": -0.1},
        {"label_smoothing": 1.0},
        {"label_smoothing": float("nan")},
        {"focal": -1},
        {"focal": float("inf")},
        {"logit_adjustment": -1},
        {"logit_adjustment": float("nan")},
    ],
    ids=str,
)
def test_values_that_cannot_be_meant_are_refused(settings):
    with pytest.raises(UsageError, match=f"`{next(iter(settings))}` must"):
        Loss(**settings)


def test_names_and_double_remedies_are_refused():
    with pytest.raises(UnknownNameError, match="Did you mean 'balanced'"):
        Loss(imbalance="balance")
    for imbalance, tau in itertools.product(("balanced", "sampling"), (0.5, 1.0)):
        with pytest.raises(UsageError, match="both correct for rare classes"):
            Loss(imbalance=imbalance, logit_adjustment=tau)


def test_a_weighted_batch_in_parts_is_the_same_batch():
    logits, targets = batch()
    full_loss = classification_loss(logits, targets, kind="multiclass", class_weights=WEIGHTS)
    parts = [
        classification_loss(logits[at], targets[at], kind="multiclass", class_weights=WEIGHTS)
        * (len(logits[at]) / N)
        for at in (slice(0, 3), slice(3, None))
    ]
    torch.testing.assert_close(sum(parts), full_loss)
