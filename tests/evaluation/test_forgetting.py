"""The record of forgetting survives JSON, and its words say what its numbers say."""

import json
import math
from dataclasses import replace

import pytest

from headstart.errors import UsageError
from headstart.evaluation.forgetting import (
    Forgetting,
    SourceChange,
    StageDrift,
    sentences,
)
from headstart.metrics.confidence_intervals import (
    Interval,
    paired_proportion_difference,
    proportion_interval,
)

STEM = StageDrift(stage="stem", cka=1.0, cosine=1.0, relative_weight_change=0.0)
LAYER1 = StageDrift(stage="layer1", cka=0.9, cosine=0.95, relative_weight_change=0.01)
LAYER2 = StageDrift(stage="layer2", cka=0.6, cosine=0.7, relative_weight_change=0.25)


def source(right_before, right_after, n=100):
    before, after = [i < right_before for i in range(n)], [i < right_after for i in range(n)]
    return SourceChange(
        name="ImageNet-1k",
        images=n,
        agreement=proportion_interval([a == b for a, b in zip(before, after, strict=True)]),
        before=proportion_interval(before),
        after=proportion_interval(after),
        change=paired_proportion_difference(after, before),
    )


FULL = Forgetting(stages=(STEM, LAYER1, LAYER2), source=source(80, 60), images=100)
BARE = Forgetting(stages=(STEM,), source=None, images=7, note="No classifier is there.")


@pytest.mark.parametrize("found", [FULL, BARE], ids=["full", "bare"])
def test_the_record_survives_json(found):
    assert Forgetting.from_dict(json.loads(json.dumps(found.as_dict(), allow_nan=False))) == found


def test_numbers_that_are_none_stay_none():
    dead = replace(LAYER1, cka=math.nan, cosine=math.nan)
    agreement = Interval(value=1.0, low=math.nan, high=math.nan, method="")
    change = SourceChange(name="x", images=1, agreement=agreement)
    plain = Forgetting(stages=(dead,), source=change, images=1).as_dict()
    assert plain["stages"][0]["cka"] is plain["source"]["agreement"]["low"] is None
    again = Forgetting.from_dict(json.loads(json.dumps(plain, allow_nan=False)))
    assert math.isnan(again.stages[0].cka)
    assert math.isnan(again.source.agreement.high)
    assert again.as_dict() == plain
    assert "nan" not in " ".join(sentences(again))


@pytest.mark.parametrize(
    "damage",
    [
        {"stages": [{"stage": "a"}]},
        {"stages": 3},
        {"source": {"name": "x"}},
        {"source": FULL.as_dict()["source"] | {"agreement": None}},
        {"source": "everything"},
        {"images": "many"},
    ],
    ids=str,
)
def test_a_damaged_record_is_refused(damage):
    with pytest.raises(UsageError, match="Expected a record of forgetting"):
        Forgetting.from_dict(FULL.as_dict() | damage)


def test_sentences_say_gain_loss_and_place():
    gain = Interval(value=0.021, low=0.001, high=0.041, method="")
    target, agreement, accuracy, stages = sentences(FULL, gain)
    assert target == "Target +0.021 [+0.001, +0.041]."
    assert f"answers {FULL.source.agreement} of 100 images as before" in agreement
    assert accuracy.startswith("Source accuracy -0.200 [")
    assert "not distinguishable" not in accuracy
    assert f"{FULL.source.before} before, {FULL.source.after} after" in accuracy
    assert "Unmoved: stem;" in stages
    assert "layer2, CKA 0.600, cosine 0.700, weights changed by 25.0 %" in stages


def test_a_loss_within_chance_is_called_so():
    told = sentences(replace(FULL, source=source(80, 79)))
    assert "not distinguishable from none" in told[1]


def test_without_a_classifier_the_reason_is_given():
    assert sentences(BARE) == ("No classifier is there.", "No stage of the backbone has moved.")


def test_where_every_stage_moved_none_is_called_unmoved():
    told = sentences(Forgetting(stages=(LAYER1, LAYER2), source=None, images=1))
    assert len(told) == 1
    assert told[0].startswith("Most moved: layer2")


def test_unknown_bounds_of_the_gain_are_unknown():
    gain = Interval(value=0.5, low=math.nan, high=math.nan, method="")
    assert sentences(FULL, gain)[0] == "Target +0.500 [unknown]."
