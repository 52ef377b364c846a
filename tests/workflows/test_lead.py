"""The requirement that a model is better than every baseline."""

from types import SimpleNamespace

import pytest

from headstart.errors import LeadError
from headstart.workflows.lead import check_lead


def lead(value: float, *, significant: bool) -> SimpleNamespace:
    return SimpleNamespace(significant=significant, interval=SimpleNamespace(value=value))


def evaluation(**leads: SimpleNamespace) -> SimpleNamespace:
    baselines = [SimpleNamespace(name=name, lead=value) for name, value in leads.items()]
    return SimpleNamespace(baselines=baselines, task=SimpleNamespace(kind="detection"))


def test_a_lead_is_significant_and_positive() -> None:
    check_lead(evaluation(majority=lead(0.3, significant=True)))
    for value, is_significant in ((0.3, False), (-0.3, True)):
        other = lead(value, significant=is_significant)
        with pytest.raises(LeadError, match="better than: pixels") as caught:
            check_lead(evaluation(majority=lead(0.3, significant=True), pixels=other))
        assert caught.value.exit_code == 4
    with pytest.raises(LeadError, match="no baseline for detection"):
        check_lead(evaluation())
