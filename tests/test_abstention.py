import math
from dataclasses import replace

import numpy as np
import pytest

from headstart.abstention import judge_abstention
from headstart.intervals import proportion_interval, wilson_interval
from headstart.selective import threshold_for_risk


@pytest.fixture
def chosen():
    sure = np.linspace(0, 1, 1000)
    return threshold_for_risk(sure, sure > 0.3, max_risk=0.05)


def test_coverage_and_risk_are_counted_on_what_is_at_least_as_sure(chosen):
    sure = np.array([0.0, chosen.threshold, 0.8, 0.9])
    right = np.array([False, False, True, True])
    found = judge_abstention(chosen, sure, right)
    assert found.coverage == wilson_interval(3, 4)
    assert found.risk == wilson_interval(1, 3)


def test_groups_make_the_intervals_wider(chosen):
    rng = np.random.default_rng(0)
    sure = np.repeat(rng.random(40), 5)
    right = np.repeat(rng.random(40) > 0.2, 5)
    names = np.repeat(np.arange(40), 5)
    found = judge_abstention(chosen, sure, right, names)
    kept = sure >= chosen.threshold
    assert found.risk == proportion_interval(~right[kept], names[kept])
    blind = judge_abstention(chosen, sure, right)
    assert found.risk.high - found.risk.low > blind.risk.high - blind.risk.low


def test_nothing_wanted_is_nothing_said():
    assert judge_abstention(None, np.array([0.5]), np.array([True])) is None


def test_what_could_not_be_chosen_is_said():
    none = threshold_for_risk([0.5] * 10, np.ones(10, bool), max_risk=0.01)
    found = judge_abstention(none, np.array([0.5]), np.array([True]))
    assert found.sentence() == none.sentence()
    assert found.as_dict()["coverage"] is None


@pytest.mark.parametrize(
    ("wrong", "said"),
    [(0, "that is kept"), (20, "neither confirm nor refute"), (100, "that is MORE")],
)
def test_the_words_say_whether_the_wish_is_kept(chosen, wrong, said):
    found = judge_abstention(chosen, np.ones(500), np.arange(500) >= wrong)
    assert said in found.sentence()
    assert "at most 0.05 was wanted" in found.sentence()


def test_where_nothing_is_answered_nothing_can_be_said(chosen):
    found = judge_abstention(chosen, np.zeros(5), np.ones(5, bool))
    assert math.isnan(found.risk.value)
    assert found.as_dict()["risk"]["value"] is None
    assert "none of these pictures" in found.sentence()


def test_a_threshold_of_minus_infinity_reads_as_nothing(chosen):
    found = judge_abstention(
        replace(chosen, threshold=-math.inf), np.linspace(0, 1, 9), np.ones(9, bool)
    )
    assert found.coverage.value == 1
    assert "below 0.000" in found.sentence()
