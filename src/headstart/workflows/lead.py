"""Requirement that a model is significantly better than every baseline."""

from __future__ import annotations

from headstart.errors import LeadError
from headstart.evaluation.classification import AnyEvaluation

__all__ = ["check_lead"]


def check_lead(evaluation: AnyEvaluation) -> None:
    """Require that the model is significantly better than every baseline.

    Raises
    ------
    LeadError
        If it is not, or if there is no baseline for its task.
    """
    leads = {baseline.name: baseline.lead for baseline in evaluation.baselines}
    not_beaten = [
        name for name, lead in leads.items() if not lead.significant or lead.interval.value < 0
    ]
    if not leads:
        kind = evaluation.task.kind
        raise LeadError(f"--require-lead: there is no baseline for {kind}. Leave the flag out.")
    if not_beaten:
        raise LeadError(
            f"--require-lead: the model is not significantly better than: {', '.join(not_beaten)}. "
            "Add images, or leave the flag out."
        )
