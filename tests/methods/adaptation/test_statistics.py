"""AdaBN: the statistics are those of the target, and undo a change of contrast."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from headstart.backbones.backbone import Backbone
from headstart.backbones.frozen import FrozenBackbone
from headstart.cache import Cache
from headstart.data.dataset import Sample
from headstart.errors import UsageError
from headstart.features.extractor import Extractor
from headstart.methods.adaptation.contract import Domains
from headstart.methods.adaptation.statistics import AdaBN, MixedBN, mix_statistics
from headstart.models.heads.linear import LinearHead
from headstart.models.tasks import ClassificationTask
from headstart.models.transfer_model import TransferModel

LOOK = {"size": 12, "crop": 1.0}


def model_of(*parts: nn.Module) -> TransferModel:
    torch.manual_seed(0)
    backbone = FrozenBackbone.of(Backbone.from_module(nn.Sequential(*parts), preprocess=LOOK))
    head = LinearHead.random(backbone.width, 2, seed=0)
    return TransferModel(backbone=backbone, task=ClassificationTask(classes=("a", "b")), head=head)


@pytest.fixture
def extractor(tmp_path) -> Extractor:
    return Extractor(cache=Cache(tmp_path), engine="fp32", device="cpu", workers=1)


def images(n: int, factor: float = 1.0, light: float = 0.0) -> tuple[Sample, ...]:
    pixels = np.random.default_rng(0).integers(0, 50, (n, 12, 12, 3)) * 2
    return tuple(Sample(image=p.astype(np.uint8)) for p in pixels * factor + light)


def test_another_contrast_and_brightness_change_no_feature(extractor: Extractor) -> None:
    model = model_of(nn.Conv2d(3, 4, 3, 2, bias=False), nn.BatchNorm2d(4), nn.ReLU())
    plain, other = images(40), images(40, 0.5, 80)
    adapted = [
        AdaBN().adapt(model, Domains(target=target), extractor=extractor).model
        for target in (plain, other)
    ]
    features = [
        extractor.features(m.backbone, target).values
        for m, target in zip(adapted, (plain, other), strict=True)
    ]
    assert features[0] == pytest.approx(features[1], abs=2e-3)
    source = extractor.features(model.backbone, other).values
    assert np.abs(source - features[0]).max() > 0.1
    assert np.array_equal(adapted[0].linear_head().weight, model.linear_head().weight)


def test_a_backbone_without_batch_norm_is_refused(extractor: Extractor) -> None:
    model = model_of(nn.Conv2d(3, 4, 3, 2), nn.ReLU())
    with pytest.raises(UsageError, match=r"has none\. Pass --method shot"):
        AdaBN().adapt(model, Domains(target=images(9)), extractor=extractor)
    assert replace(AdaBN()) == AdaBN()


def test_mixed_statistics_lie_between_those_of_both_domains(extractor: Extractor) -> None:
    model = model_of(nn.Conv2d(3, 4, 3, 2, bias=False), nn.BatchNorm2d(4), nn.ReLU())
    domains = Domains(target=images(40, 0.5, 80))
    alone = AdaBN().adapt(model, domains, extractor=extractor).model.backbone.state
    start = model.backbone.state
    for prior in (0, 40, 120):
        mixed = MixedBN(prior=prior).adapt(model, domains, extractor=extractor).model
        share = 40 / (prior + 40)
        assert mixed.record["adaptation"]["target_share"] == share
        for name, value in mixed.backbone.state.items():
            wanted = start[name].double()
            if name.endswith(("mean", "var")):
                wanted = (1 - share) * wanted + share * alone[name].double()
            assert value.numpy() == pytest.approx(wanted.numpy(), rel=1e-5, abs=1e-6)
    assert mix_statistics(start, alone, 0.0).keys() == start.keys()
    with pytest.raises(UsageError, match=r"prior.*-1"):
        MixedBN(prior=-1)
    plain = model_of(nn.Conv2d(3, 4, 3, 2), nn.ReLU())
    with pytest.raises(UsageError, match="Method mixed-bn needs BatchNorm"):
        MixedBN().adapt(plain, domains, extractor=extractor)
