"""Report of a run: report.html, report.json and the model card.

The page is one file with its style, charts and thumbnails, and opens without a network. Its size is
bounded for any number of images and classes; where it shows a part only, it prints the total.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from headstart.data.dataset import SPLITS, SplitName
from headstart.data.prepare import PreparedData
from headstart.data.splits import evenly_spaced
from headstart.evaluation.classification import AnyEvaluation, Evaluation
from headstart.evaluation.domain_shift import REFERENCE
from headstart.evaluation.forgetting import Forgetting, summarise_forgetting
from headstart.evaluation.insight import Diagnostics
from headstart.metrics.confidence_intervals import Interval
from headstart.metrics.validation import to_jsonable
from headstart.models.transfer_model import TransferModel
from headstart.reports import charts
from headstart.reports.classification import class_extras, class_page, class_values
from headstart.reports.data_page import common_folder, group_findings
from headstart.reports.dense import dense_extras, dense_page, dense_values
from headstart.reports.first_screen import LINKS, N_WORST, headline, worst_confusion
from headstart.reports.glossary import add_terms
from headstart.reports.insight import insight_extras, insight_page
from headstart.reports.next_steps import Step, next_steps
from headstart.reports.page import LIMITS, page_template

__all__ = ["Facts", "render_card", "render_html", "render_json"]

SPLIT_TITLES = {"train": "training", "val": "validation", "test": "test"}


@dataclass(frozen=True, kw_only=True, eq=False)
class Facts:
    """Everything that a report is rendered from.

    Parameters
    ----------
    name : str
        Title of the report, such as the name of the dataset.
    prepared : PreparedData
    model : TransferModel
    evaluation : Evaluation, BoxEvaluation or MaskEvaluation
        Of ``prepared.test``.
    summary : tuple of str
        Sentences, the most important first.
    seconds : mapping of str to float
        By step.
    command : str
        Command line of the run.
    diagnostics : Diagnostics, optional
        Likely label errors, out-of-distribution images, subgroups and other diagnostics.
    """

    name: str
    prepared: PreparedData
    model: TransferModel
    evaluation: AnyEvaluation
    summary: tuple[str, ...]
    seconds: Mapping[str, float]
    command: str
    diagnostics: Diagnostics | None = None


def render_html(facts: Facts) -> str:
    """Render report.html, which loads nothing from outside.

    Examples
    --------
    >>> Path("report.html").write_text(render_html(facts))  # doctest: +SKIP
    """
    decoded = [record for record in facts.prepared.records if record.width]
    page = page_template("report.html.j2").render(
        **_common_values(facts),
        **_page_values(facts),
        **insight_page(facts.diagnostics, facts.prepared, facts.model.record),
        headline=headline(facts.evaluation),
        confusion=worst_confusion(facts.evaluation),
        n_first=N_WORST,
        links=LINKS,
        steps=_next_steps(facts),
        findings=group_findings(facts.prepared.findings),
        epochs=_epoch_values(facts.model.record),
        root=common_folder(facts.prepared.data.samples),
        formats=Counter(record.format for record in decoded).most_common(4),
        sizes=[(record.width, record.height) for record in decoded],
        charts=charts,
    )
    return add_terms(page)


def render_json(facts: Facts) -> dict[str, Any]:
    """Return the content of report.json; NaN and infinities become None.

    With more than 20 classes the confusion matrix is None; ``confusions`` lists the wrong
    predictions of a classifier by class names.
    """
    evaluation, model, prepared = facts.evaluation, facts.model, facts.prepared
    spec, task = model.backbone.spec, model.task
    numbers = evaluation.as_dict()
    if len(task.classes) > LIMITS["classes_in_table"]:
        numbers["confusion"] = None
    document: dict[str, Any] = {
        "name": facts.name,
        "summary": facts.summary,
        "next_steps": [asdict(step) for step in _next_steps(facts)],
        "command": facts.command,
        "seconds": facts.seconds,
        "data": {
            "name": prepared.data.name,
            "images": len(prepared.data),
            "kind": prepared.data.kind,
            "notes": prepared.data.notes,
            "parts": {name: prepared.data.split(name).counts() for name in _split_titles(prepared)},
            "findings": [asdict(finding) for finding in prepared.findings],
        },
        "model": {
            "task": task.as_dict(),
            "backbone": {**spec.as_dict(), "origin": dict(model.backbone.origin)},
            "engine": model.engine,
            "record": {
                name: value
                for name, value in model.record.items()
                if name not in {"learned_from", "training_descriptors", REFERENCE}
            },
        },
        "evaluation": numbers,
        **_extra_numbers(facts),
        **insight_extras(facts.diagnostics),
    }
    values: dict[str, Any] = to_jsonable(document)
    return values


def render_card(facts: Facts) -> str:
    """Render the model card in Markdown: model, data, scores, limits, licence and usage."""
    return page_template("card.md.j2").render(**_common_values(facts))


def _common_values(facts: Facts) -> dict[str, Any]:
    """Values for both the page and the model card."""
    evaluation, model = facts.evaluation, facts.model
    if isinstance(evaluation, Evaluation):
        values = class_values(evaluation, model)
    else:
        values = dense_values(evaluation, model)
    return {
        "facts": facts,
        "task": model.task,
        "backbone": model.backbone,
        "record": model.record,
        "evaluation": evaluation,
        "prepared": facts.prepared,
        "classes": _count_classes(facts.prepared),
        "splits": _split_titles(facts.prepared),
        "limits": LIMITS,
        "plan": _plan_values(model.record),
        "forgetting": _forgetting_values(model.record),
        **values,
    }


def _next_steps(facts: Facts) -> tuple[Step, ...]:
    return next_steps(
        facts.evaluation,
        record=facts.model.record,
        findings=facts.prepared.findings,
        diagnostics=facts.diagnostics,
        command=facts.command,
    )


def _page_values(facts: Facts) -> dict[str, Any]:
    """Values for the page alone, by task."""
    evaluation = facts.evaluation
    if isinstance(evaluation, Evaluation):
        return class_page(evaluation, facts.model, facts.prepared)
    return dense_page(evaluation, facts.model, facts.prepared)


def _extra_numbers(facts: Facts) -> dict[str, Any]:
    """Values of report.json in addition to the evaluation's own numbers, by task."""
    if isinstance(facts.evaluation, Evaluation):
        return class_extras(facts.evaluation, facts.prepared)
    return dense_extras(facts.evaluation)


def _plan_values(record: Mapping[str, Any]) -> dict[str, Any] | None:
    """Stages that were trained and frozen; None if the method has no such plan."""
    if "plan" not in record:
        return None
    stages = record["plan"]["stages"]
    return {
        "stages": stages,
        "trained": [row["stage"] for row in stages if row["trains"]],
        "frozen": [_frozen_title(row) for row in stages if not row["trains"]],
        "last_constant_stage": record["plan"].get("boundary"),
        "only": record["plan"].get("only", "all"),
    }


def _frozen_title(row: Mapping[str, Any]) -> str:
    """Name of a stage that is not trained, with its BatchNorm mode if that is not frozen."""
    changes = row["batch_norm"] != "frozen"
    return f"{row['stage']} (but BatchNorm: {row['batch_norm']})" if changes else str(row["stage"])


def _forgetting_values(record: Mapping[str, Any]) -> dict[str, Any] | None:
    """Drift of the stages and sentences about it; None if it was not measured."""
    if "forgetting" not in record:
        return None
    forgetting, gain = Forgetting.from_dict(record["forgetting"]), record.get("target_gain")
    if gain is not None:
        fields: dict[str, Any] = {k: math.nan if v is None else v for k, v in gain.items()}
        gain = Interval(**fields)
    return {"measured": forgetting, "sentences": summarise_forgetting(forgetting, gain)}


def _epoch_values(record: Mapping[str, Any]) -> dict[str, Any] | None:
    """Curves and rows of loss and score; evenly spaced if there are many epochs, and the best."""
    epochs, best = record.get("epochs") or (), record.get("best_epoch")
    if not epochs:
        return None
    numbers = {epochs[i]["number"] for i in evenly_spaced(len(epochs), LIMITS["epochs"])}
    rows = [row for row in epochs if row["number"] in {*numbers, best, epochs[-1]["number"]}]
    curves = {
        name: charts.epoch_curve([(row["number"], row[name]) for row in rows], best)
        for name in ("loss", "score")
    }
    return {"rows": rows, "curves": curves, "best": best, "count": len(epochs)}


def _split_titles(prepared: PreparedData) -> dict[SplitName, str]:
    """Titles of the splits that have images; without a test split, ``val`` is the test split."""
    present = {sample.split for sample in prepared.data.samples}
    titles = {name: SPLIT_TITLES[name] for name in SPLITS if name in present}
    if "val" in titles and "test" not in titles:
        titles["val"] = SPLIT_TITLES["test"]
    return titles


def _count_classes(prepared: PreparedData) -> dict[str, Any]:
    parts = {name: prepared.data.split(name).counts() for name in _split_titles(prepared)}
    rows = [(name, [part[name] for part in parts.values()]) for name in prepared.data.classes]
    totals = [len(prepared.data.split_indices(name)) for name in parts]
    if len(rows) > LIMITS["classes_in_full"]:
        rows.sort(key=lambda row: sum(row[1]))
    return {"rows": rows, "totals": totals, "top": max((max(row[1]) for row in rows), default=0)}
