"""What training the backbone gained is measured against the backbone as it was, paired."""

from dataclasses import replace

import numpy as np
import pytest

from headstart.backbones.backbone import load
from headstart.backbones.catalog import resolve
from headstart.backbones.frozen import FrozenBackbone
from headstart.cache import Cache
from headstart.data.dataset import Dataset, Sample
from headstart.evaluation.baselines import PROBE
from headstart.evaluation.classification import evaluate
from headstart.evaluation.transfer_gain import evaluate_with_transfer_gain
from headstart.features.extractor import Extractor
from headstart.methods.linear_probe import LinearProbe
from headstart.metrics.confidence_intervals import paired_proportion_difference
from headstart.models.heads.linear import LinearHead
from headstart.models.tasks import ClassificationTask
from headstart.models.transfer_model import TransferModel


def images(seed, n=12):
    rng = np.random.default_rng(seed)
    samples = []
    for i in range(n):
        pixels = rng.integers(0, 128, (32, 32, 3)) + 100 * (i % 2)
        samples.append(Sample(image=pixels.astype(np.uint8), target="ab"[i % 2]))
    return Dataset(samples=tuple(samples), classes=("a", "b"))


@pytest.fixture(scope="module")
def source():
    spec = resolve("timm/test_resnet")
    state = load(spec, pretrained=False, seed=0).trunk.state_dict()
    backbone = FrozenBackbone(
        spec=spec, state=state, origin={"sha256": "", "from": "here", "file": ""}
    )
    return TransferModel(backbone=backbone, task=ClassificationTask(classes=("a", "b")))


@pytest.fixture
def extractor(tmp_path):
    return Extractor(cache=Cache(tmp_path), engine="fp32", device="cpu")


def moved(source, origin="here"):
    state = {k: v * 1.5 if "layer4" in k else v for k, v in source.backbone.state.items()}
    backbone = replace(
        source.backbone.with_parameters(state), origin={**source.backbone.origin, "from": origin}
    )
    head = LinearHead.random(backbone.width, 2, seed=0)
    return replace(source, backbone=backbone, head=head, engine="fp32")


def test_the_lead_is_that_over_a_probe_on_the_source(source, extractor):
    train, test = images(0), images(1)
    model, evaluation = evaluate_with_transfer_gain(
        source, moved(source), (train, test), extractor=extractor, seed=2
    )
    probe = LinearProbe(seed=2).fit(source, train, extractor=extractor)
    alone = evaluate(probe, test, extractor=extractor, train=train)
    majority, neighbours, compared = evaluation.baselines
    assert compared.name == PROBE
    assert compared.accuracy == alone.metrics["accuracy"]
    assert compared.lead == paired_proportion_difference(evaluation.correct, alone.correct)
    assert (majority.accuracy, neighbours.accuracy) == tuple(b.accuracy for b in alone.baselines)
    assert model.record["target_gain"] == compared.lead.interval.as_dict()


def test_what_was_forgotten_is_told_by_stage(source, extractor):
    model, _ = evaluate_with_transfer_gain(
        source, moved(source), (images(0), images(1)), extractor=extractor
    )
    stages = {s["stage"]: s["relative_weight_change"] for s in model.record["forgetting"]["stages"]}
    assert stages["layer3"] == 0
    assert stages["layer4"] == pytest.approx(0.5)


def test_random_weights_have_nothing_to_forget(source, extractor):
    other = moved(source, origin="random weights")
    model, evaluation = evaluate_with_transfer_gain(
        source, other, (images(0), images(1)), extractor=extractor
    )
    assert "forgetting" not in model.record
    assert evaluation.baselines[-1].name == PROBE


def test_a_backbone_that_has_not_moved_has_forgotten_nothing(source, extractor):
    """As after training the head alone: another backbone, the same numbers."""
    model = moved(source)
    state = {k: v.clone() for k, v in source.backbone.state.items()}
    model = replace(
        model,
        backbone=replace(source.backbone.with_parameters(state), origin=source.backbone.origin),
    )
    told, evaluation = evaluate_with_transfer_gain(
        source, model, (images(0), images(1)), extractor=extractor
    )
    assert "forgetting" not in told.record
    assert "target_gain" in told.record
    assert evaluation.baselines[-1].name == PROBE


def test_a_model_on_the_backbone_as_it_was_is_judged_as_ever(source, extractor):
    train, test = images(0), images(1)
    probe = LinearProbe().fit(source, train, extractor=extractor)
    model, evaluation = evaluate_with_transfer_gain(
        source, probe, (train, test), extractor=extractor
    )
    assert model is probe
    assert [b.name for b in evaluation.baselines] == ["majority class", "5-nearest neighbours"]


@pytest.mark.parametrize(
    ("value", "words"), [(-1, "WORSE than a linear probe"), (1, "Better than a linear probe")]
)
def test_the_summary_compares_with_the_probe(source, extractor, value, words):
    from headstart.evaluation.baselines import Baseline
    from headstart.evaluation.summary import summarise
    from headstart.metrics.confidence_intervals import proportion_interval

    alone = evaluate(moved(source), images(1), extractor=extractor)
    ours, theirs = np.ones(40) * (value > 0), np.ones(40) * (value < 0)
    lead = paired_proportion_difference(ours.astype(bool), theirs.astype(bool))
    baseline = Baseline(name=PROBE, accuracy=proportion_interval(theirs.astype(bool)), lead=lead)
    said = " ".join(summarise(replace(alone, baselines=(baseline,))))
    assert words in said
