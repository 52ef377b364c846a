"""The record of forgetting survives JSON, and its words say what its numbers say."""

import json
import math
from dataclasses import replace

import pytest

from headstart.errors import UsageError
from headstart.evaluation.baselines import format_percent
from headstart.evaluation.forgetting import (
    Forgetting,
    SourceChange,
    StageDrift,
    summarise_forgetting,
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
    assert "nan" not in " ".join(summarise_forgetting(again))


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
    with pytest.raises(UsageError, match="record of forgetting"):
        Forgetting.from_dict(FULL.as_dict() | damage)


def test_sentences_say_gain_loss_and_place():
    gain = Interval(value=0.021, low=0.001, high=0.041, method="")
    target, agreement, accuracy, stages = summarise_forgetting(FULL, gain)
    assert target == "Transfer gain over the linear probe: +2.1 points [0.1, 4.1]."
    count = round(100 * FULL.source.agreement.value)
    assert f"gives the same answer for {count} of 100 images" in agreement
    assert accuracy.startswith("Its accuracy changes by -20.0 points [")
    assert "not significant" not in accuracy
    before, after = format_percent(FULL.source.before), format_percent(FULL.source.after)
    assert f"{before} before, {after} after" in accuracy
    assert stages.endswith("Unchanged: stem.")
    assert "layer2 (CKA 0.600, cosine 0.700, weights changed by 25.0 %)" in stages


def test_a_loss_within_chance_is_called_so():
    told = summarise_forgetting(replace(FULL, source=source(80, 79)))
    assert "(not significant)" in told[1]


def test_without_a_classifier_the_reason_is_given():
    assert summarise_forgetting(BARE) == (
        "No classifier is there.",
        "No stage of the backbone has changed.",
    )


def test_where_every_stage_moved_none_is_called_unmoved():
    told = summarise_forgetting(Forgetting(stages=(LAYER1, LAYER2), source=None, images=1))
    assert len(told) == 1
    assert told[0].startswith("Changed most: layer2")


def test_unknown_bounds_of_the_gain_are_unknown():
    gain = Interval(value=0.5, low=math.nan, high=math.nan, method="")
    assert summarise_forgetting(FULL, gain)[0].endswith("+50.0 points [unknown].")


def test_a_record_of_an_older_folder_is_read():
    record = FULL.as_dict()
    change = record["source"]["change"]
    change["distinguishable"] = change.pop("significant")
    assert Forgetting.from_dict(record) == FULL
