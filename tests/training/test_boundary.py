"""What is kept is what a count of the work says is quickest, of what fits."""

from dataclasses import replace

import pytest

from headstart.errors import SetupError
from headstart.freezing import FreezePlan, StageRow
from headstart.training.boundary import MEMORY_SHARE, Demand, Room, decide, options
from headstart.training.costs import Measured, StageCost

MB = 1_000_000
ROOMY = Room(memory=10**15, disk=10**15, budget=10**15)


def make_plan(constant, moving):
    rows = [StageRow(stage=name, parameters=9) for name in constant]
    rows += [StageRow(stage=name, parameters=9, trainable=9) for name in moving]
    return FreezePlan(rows=tuple(rows))


LAST = make_plan(["a", "b"], ["c"])
HEAD = make_plan(["a", "b", "c"], [])
ALL = make_plan([], ["a", "b", "c"])


def make_measured(seconds=(0.02, 0.02, 0.01), sizes=(MB, MB // 4, MB // 8), **changes):
    stages = [
        StageCost(name=name, seconds=time, bytes=size)
        for name, time, size in zip("abc", seconds, sizes, strict=True)
    ]
    given = {"stages": tuple(stages), "learn": 0.03, "update": 0.5, "pixels": 0.01, "width": 16}
    return Measured(**{**given, **changes})


def count(plan, measured, demand, stop):
    """Do the training picture by picture, on paper; stop: nothing, a stage, or pooled."""
    names = [stage.name for stage in measured.stages]
    time = {stage.name: stage.seconds for stage in measured.stages}
    size = {stage.name: stage.bytes for stage in measured.stages} | {"pooled": 4 * measured.width}
    constant = [row.stage for row in plan.rows if not row.trains]
    kept = names if stop == "pooled" else names[: names.index(stop) + 1] if stop else []
    total = 0.0
    looks = {None: 1, 0: None}.get(demand.views, demand.views)
    stored = set()
    passes = [("train", epoch) for epoch in range(demand.epochs)]
    passes += [("plain", 0)] * demand.solves + [("judge", 0)] * (demand.epochs + 2)
    for kind, epoch in passes:
        n = demand.judged if kind == "judge" else demand.pictures
        look = (epoch % looks if demand.views else 0) if kind == "train" else kind
        look = 0 if demand.views is None and kind == "plain" else look
        if stop and (kind == "judge", look) not in stored:
            stored.add((kind == "judge", look))
            total += n * (measured.pixels + sum(time[s] for s in kept) + size[stop] / 300e6)
            total += n * size[stop] / 600e6
        if stop:
            total += n * size[stop] / 5e9
        else:
            total += n * measured.pixels
        total += n * sum(time[s] for s in constant if s not in kept)
        if kind == "train":
            total += n * measured.learn + -(-n // demand.batch_size) * measured.update
        else:
            total += n * sum(time[s] for s in names if s not in constant)
    return total


DEMANDS = [
    Demand(pictures=100, epochs=10),
    Demand(pictures=100, judged=20, epochs=10, solves=True),
    Demand(pictures=90, judged=10, epochs=8, views=4, solves=True, batch_size=32),
    Demand(pictures=90, epochs=3, views=4),
]


@pytest.mark.parametrize("demand", DEMANDS)
@pytest.mark.parametrize("plan", [LAST, HEAD])
def test_expected_seconds_are_those_of_a_count(plan, demand):
    measured = make_measured()
    for option in options(plan, measured, demand, ROOMY):
        stop = option.stop or "pooled"
        assert option.seconds_cached == pytest.approx(count(plan, measured, demand, stop))
        assert option.seconds_plain == pytest.approx(count(plan, measured, demand, None))


@pytest.mark.parametrize(
    ("change", "stop"),
    [
        ({}, "b"),
        ({"sizes": (1000, 3000 * MB, 1)}, "a"),  # reading 3 GB a picture takes longer than b
        ({"sizes": (1000, MB, 1), "seconds": (0.02, 0.0, 0.01)}, "a"),  # b costs nothing to run
    ],
)
def test_the_cut_is_the_quickest_of_the_constant_stages(change, stop):
    found = decide(LAST, make_measured(**change), Demand(pictures=50, epochs=10), ROOMY)
    assert found.cached
    assert found.stop == stop


def test_pooled_features_are_kept_where_only_the_head_moves():
    found = decide(HEAD, make_measured(), Demand(pictures=50, epochs=10), ROOMY)
    assert (found.cached, found.stop, found.bytes) == (True, None, 50 * 16 * 4)
    assert found.sentence().startswith("pooled features: ")


def test_what_is_kept_already_costs_nothing_again():
    demand = Demand(pictures=50, epochs=1)
    assert not decide(LAST, make_measured(), demand, ROOMY).cached
    again = decide(LAST, make_measured(), replace(demand, missing={"b": 0.0}), ROOMY)
    assert (again.cached, again.stop) == (True, "b")


@pytest.mark.parametrize(
    ("plan", "demand", "room", "reason"),
    [
        (ALL, {}, ROOMY, "every stage moves"),
        (LAST, {"epochs": 1}, ROOMY, "there is one epoch"),
        (LAST, {"views": 0}, ROOMY, "new views"),
        (LAST, {}, replace(ROOMY, budget=MB), "budget"),
        (LAST, {}, replace(ROOMY, disk=MB), "free disk"),
    ],
)
def test_it_declines_in_words(plan, demand, room, reason):
    wanted = Demand(**{"pictures": 50, "epochs": 10, **demand})
    found = decide(plan, make_measured(), wanted, room)
    assert not found.cached
    assert reason in found.reason
    assert found.sentence().startswith("nothing: ")


def test_a_learning_part_that_dwarfs_the_rest_is_not_worth_the_disk():
    found = decide(LAST, make_measured(learn=10.0), Demand(pictures=50, epochs=10), ROOMY)
    assert not found.cached
    assert "would not pay" in found.reason


def test_a_smaller_stage_is_taken_where_the_best_does_not_fit():
    measured = make_measured(sizes=(1000, MB, 1))
    demand = Demand(pictures=50, epochs=10)
    assert decide(LAST, measured, demand, ROOMY).stop == "b"
    found = decide(LAST, measured, demand, replace(ROOMY, budget=40 * MB))
    assert (found.cached, found.stop) == (True, "a")


def test_a_quarter_of_free_memory_is_the_most_that_is_held():
    demand = Demand(pictures=50, epochs=10)
    size = decide(LAST, make_measured(), demand, ROOMY).bytes
    assert size == 50 * MB // 4
    enough = int(size / MEMORY_SHARE)
    for memory, where in ((enough, "memory"), (enough - 5, "disk")):
        found = decide(LAST, make_measured(), demand, replace(ROOMY, memory=memory))
        assert found.where == where


def test_a_person_can_overrule_it():
    once = Demand(pictures=50, epochs=1)
    assert decide(LAST, make_measured(), once, ROOMY, wanted="on").cached
    often = Demand(pictures=50, epochs=10)
    off = decide(LAST, make_measured(), often, ROOMY, wanted="off")
    assert not off.cached
    assert off.sentence() == "nothing: switched off"
    with pytest.raises(SetupError, match="HEADSTART_CACHE_BUDGET"):
        decide(LAST, make_measured(), often, replace(ROOMY, budget=MB), wanted="on")
