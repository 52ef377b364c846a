"""The adversaries: their inputs, weights and penalties, and the reversed gradient."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, softplus

from headstart.backbones.backbone import Backbone
from headstart.backbones.frozen import FrozenBackbone
from headstart.errors import UsageError
from headstart.methods.adaptation.adversarial import (
    Adda,
    Bsp,
    Cdan,
    CdanE,
    Dann,
    Mcd,
    Mdd,
    _describe_discriminator,
)
from headstart.methods.adaptation.contract import Domains
from headstart.methods.adaptation.paired_training import DomainBatch
from headstart.models.heads.linear import LinearHead
from headstart.models.tasks import ClassificationTask
from headstart.models.transfer_model import TransferModel
from headstart.training.losses.adversarial import (
    classifier_discrepancy,
    domain_loss,
    reversal_factor,
)
from headstart.training.losses.alignment import batch_spectral_penalty
from headstart.training.network import Outputs

WIDTH, PROGRESS = 6, 0.3


def model_with(n_classes: int) -> TransferModel:
    module = nn.Sequential(nn.Conv2d(3, WIDTH, 3), nn.ReLU())
    backbone = Backbone.from_module(module, preprocess={"size": 8, "crop": 1.0})
    classes = tuple(f"c{i}" for i in range(n_classes))
    return TransferModel(
        backbone=FrozenBackbone.of(backbone),
        task=ClassificationTask(classes=classes),
        head=LinearHead.random(WIDTH, n_classes, seed=0),
    )


def outputs(n: int, seed: int) -> Any:
    draw = torch.Generator().manual_seed(seed)
    pooled = torch.randn(n, WIDTH, generator=draw).requires_grad_()
    logits = 2 * torch.randn(n, 3, generator=draw)
    return Outputs(maps=pooled[:, :, None, None], pooled=pooled, logits=logits)


def loss_of(method: Any) -> tuple[float, torch.Tensor, Any]:
    """Loss of one batch, its gradient in the features of the target, and the adversary."""
    parts = method.describe_training(model_with(3), Domains(target=()))
    source, target = outputs(5, 0), outputs(7, 1)
    batch = DomainBatch(
        source=source, target=target, target_rows=np.arange(7), progress=PROGRESS, labels=None
    )
    value = parts.loss(batch)
    (gradient,) = torch.autograd.grad(value, target.pooled)
    return float(value.detach()), gradient, parts.discriminator


def test_the_discriminator_of_cdan_sees_products_and_weights_confident_images() -> None:
    assert loss_of(Dann())[2][0].in_features == WIDTH
    assert loss_of(Cdan())[2][0].in_features == 3 * WIDTH
    values = [loss_of(method)[0] for method in (Dann(), Cdan(), CdanE())]
    assert len(set(values)) == 3


def test_a_perfect_discriminator_is_a_problem() -> None:
    assert _describe_discriminator([0.7] * 99 + [0.001] * 49)() == ""
    assert "without error" in _describe_discriminator([0.7] * 9 + [0.001] * 50)()


@pytest.mark.parametrize("method", [Dann(), Cdan(), CdanE(), Bsp(), Mdd()])
def test_an_adversary_has_no_batch_norm(method: Any) -> None:
    layers = list(loss_of(method)[2])
    assert not any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in layers)


def test_too_wide_a_discriminator_is_refused() -> None:
    with pytest.raises(UsageError, match=r"132000 inputs.*--method dann"):
        Cdan().describe_training(model_with(22_000), Domains(target=()))


def test_bsp_is_dann_and_the_penalty() -> None:
    plain, none, one = (loss_of(m)[0] for m in (Dann(), Bsp(spectral_weight=0), Bsp()))
    penalty = batch_spectral_penalty(outputs(5, 0).pooled, outputs(7, 1).pooled)
    assert none == plain
    assert one == pytest.approx(plain + 1e-4 * float(penalty.detach()), rel=1e-6)


@pytest.mark.parametrize("method", [Dann(), Mdd(strength=1.0)])
def test_the_gradient_of_the_features_is_reversed(
    method: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    reversed_gradient = loss_of(method)[1]
    monkeypatch.setattr(
        "headstart.methods.adaptation.adversarial.reverse_gradient", lambda x, factor: x
    )
    direct = loss_of(method)[1]
    assert direct.abs().max() > 0
    assert torch.allclose(reversed_gradient, -reversal_factor(PROGRESS) * direct, atol=1e-7)


def test_the_adversary_of_mdd_has_an_output_for_each_class() -> None:
    assert loss_of(Mdd())[2][-1].out_features == 3


def test_adda_trains_the_discriminator_on_labels_and_the_backbone_on_inverted_ones() -> None:
    parts = Adda(weight=2.0).describe_training(model_with(3), Domains(target=()))
    assert parts.is_source_constant
    assert not parts.trains_head
    source, target = outputs(5, 0), outputs(7, 1)
    batch = DomainBatch(source=source, target=target, target_rows=np.arange(7), progress=PROGRESS)
    adversary: Any = parts.discriminator
    weights = list(adversary.parameters())
    wanted = torch.autograd.grad(
        domain_loss(adversary(source.pooled), adversary(target.pooled)), weights
    )
    (inverted,) = torch.autograd.grad(2 * softplus(-adversary(target.pooled)).mean(), target.pooled)
    found = torch.autograd.grad(parts.loss(batch), [*weights, target.pooled])
    for ours, theirs in zip(found, [*wanted, inverted], strict=True):
        assert ours.abs().max() > 0
        assert torch.allclose(ours, theirs, atol=1e-7)
    with pytest.raises(UsageError, match="never trains the head"):
        Adda(train_from="head")


def test_mcd_makes_the_classifiers_disagree_and_the_features_agree() -> None:
    model = model_with(3)
    parts = Mcd(weight=3.0).describe_training(model, Domains(target=()))
    first, second = model.linear_head().module(), parts.discriminator
    assert second is not None
    source, target, labels = outputs(5, 0), outputs(7, 1), torch.tensor([0, 1, 2, 0, 1])
    batch = DomainBatch(
        source=source,
        target=target,
        target_rows=np.arange(7),
        progress=PROGRESS,
        labels=labels,
        classify=first,
    )
    weights = [*first.parameters(), *second.parameters()]
    assert not torch.equal(weights[0], weights[2])
    gap = 3 * classifier_discrepancy(first(target.pooled), second(target.pooled))
    named = cross_entropy(second(source.pooled), labels)
    wanted = torch.autograd.grad(named - gap, weights, retain_graph=True)  # step B
    (closer,) = torch.autograd.grad(gap, target.pooled)  # step C
    found = torch.autograd.grad(parts.loss(batch), [*weights, target.pooled])
    factor = reversal_factor(PROGRESS)
    for ours, theirs in zip(found, [*wanted, factor * closer], strict=True):
        assert torch.allclose(ours, theirs, atol=1e-6)


@pytest.mark.parametrize(
    ("method", "values"),
    [
        (Dann, {"hidden": 0}),
        (Bsp, {"spectral_weight": -1.0}),
        (Bsp, {"spectral_weight": float("nan")}),
        (Mdd, {"margin": 0.0}),
        (Mdd, {"strength": -0.1}),
        (Adda, {"hidden": 0}),
        (Mcd, {"noise": 0.0}),
    ],
)
def test_values_out_of_range_are_refused(method: Any, values: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=next(iter(values))):
        method(**values)
