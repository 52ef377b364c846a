"""What a run has to say, as a page, as numbers, and as a model card.

The page is one file: style, drawings and small images are inside it, and it opens from disk
without a network. Whatever the number of images and classes, its size is bounded; what was
left out is said.
"""

from __future__ import annotations

import math
import os
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from headstart.data.checks.images import Finding
from headstart.data.dataset import SPLITS, SplitName
from headstart.data.prepare import Prepared
from headstart.data.splits import evenly
from headstart.evaluation.classification import AnyEvaluation, Evaluation
from headstart.evaluation.forgetting import Forgetting, sentences
from headstart.evaluation.insight import Diagnostics
from headstart.metrics.confidence_intervals import Interval
from headstart.models.transfer_model import TransferModel
from headstart.reports import charts
from headstart.reports.classification import class_extras, class_page, class_values
from headstart.reports.dense import dense_extras, dense_page, dense_values
from headstart.reports.insight import insight_extras, insight_page
from headstart.reports.page import LIMITS, page_template

__all__ = ["Facts", "render_card", "render_html", "render_json"]

SPLIT_TITLES = {"train": "training", "val": "validation", "test": "test"}


@dataclass(frozen=True, kw_only=True, eq=False)
class Facts:
    """Everything that a report says.

    Parameters
    ----------
    name : str
        What was learned, such as the data set's name.
    prepared : Prepared
    model : TransferModel
    evaluation : Evaluation, BoxEvaluation or MaskEvaluation
        Of ``prepared.test``.
    verdict : tuple of str
        Sentences, the most important first.
    seconds : mapping of str to float
        By step.
    command : str
        How the run was started.
    insight : Insight, optional
        What its features tell beside the numbers.
    """

    name: str
    prepared: Prepared
    model: TransferModel
    evaluation: AnyEvaluation
    verdict: tuple[str, ...]
    seconds: Mapping[str, float]
    command: str
    insight: Diagnostics | None = None


def render_html(facts: Facts) -> str:
    """Render the page for a person: HTML that refers to nothing outside itself.

    Examples
    --------
    >>> Path("report.html").write_text(render_html(facts))  # doctest: +SKIP
    """
    seen = [record for record in facts.prepared.records if record.width]
    return page_template("report.html.j2").render(
        **_shared(facts),
        **_page(facts),
        **insight_page(facts.insight, facts.prepared, facts.model.record),
        findings=_findings(facts.prepared),
        epochs=_epochs(facts.model.record),
        root=_root(facts.prepared),
        formats=Counter(record.format for record in seen).most_common(4),
        sizes=[(record.width, record.height) for record in seen],
        charts=charts,
    )


def render_json(facts: Facts) -> dict[str, Any]:
    """Give every number as values that JSON knows: NaN and infinities are None.

    Above 20 classes the confusion matrix is None; ``confusions`` has a classifier's wrong cells
    by name.
    """
    evaluation, model, prepared = facts.evaluation, facts.model, facts.prepared
    spec, task = model.backbone.spec, model.task
    numbers = evaluation.as_dict()
    if len(task.classes) > LIMITS["classes_in_table"]:
        numbers["confusion"] = None
    found: dict[str, Any] = {
        "name": facts.name,
        "verdict": facts.verdict,
        "command": facts.command,
        "seconds": facts.seconds,
        "data": {
            "name": prepared.data.name,
            "images": len(prepared.data),
            "kind": prepared.data.kind,
            "notes": prepared.data.notes,
            "parts": {name: prepared.data.split(name).counts() for name in _splits(prepared)},
            "findings": [asdict(finding) for finding in prepared.findings],
        },
        "model": {
            "task": task.as_dict(),
            "backbone": {**spec.as_dict(), "origin": dict(model.backbone.origin)},
            "engine": model.engine,
            "record": {k: v for k, v in model.record.items() if k != "learned_from"},
        },
        "evaluation": numbers,
        **_extras(facts),
        **insight_extras(facts.insight),
    }
    plain: dict[str, Any] = _plain(found)
    return plain


def render_card(facts: Facts) -> str:
    """Write the model card, in Markdown: what it is, from what, how good, its limits."""
    return page_template("card.md.j2").render(**_shared(facts))


def _shared(facts: Facts) -> dict[str, Any]:
    """What both the page and the card speak of."""
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
        "classes": _class_counts(facts.prepared),
        "splits": _splits(facts.prepared),
        "limits": LIMITS,
        "plan": _plan(model.record),
        "kept": _kept(model.record),
        **values,
    }


def _page(facts: Facts) -> dict[str, Any]:
    """What depends on the task and is on the page alone."""
    evaluation = facts.evaluation
    if isinstance(evaluation, Evaluation):
        return class_page(evaluation, facts.model, facts.prepared)
    return dense_page(evaluation, facts.model, facts.prepared)


def _extras(facts: Facts) -> dict[str, Any]:
    """What depends on the task and is in report.json beside the evaluation's numbers."""
    if isinstance(facts.evaluation, Evaluation):
        return class_extras(facts.evaluation, facts.prepared)
    return dense_extras(facts.evaluation)


def _plan(record: Mapping[str, Any]) -> dict[str, Any] | None:
    """What trained, as ``FreezePlan.as_dict`` wrote it; None where the method had no plan."""
    if "plan" not in record:
        return None
    stages = record["plan"]["stages"]
    return {
        "stages": stages,
        "trained": [row["stage"] for row in stages if row["trains"]],
        "still": [_still(row) for row in stages if not row["trains"]],
        "boundary": record["plan"].get("boundary"),
        "only": record["plan"].get("only", "all"),
    }


def _still(row: Mapping[str, Any]) -> str:
    """A stage without training, and what moves in it all the same."""
    moving = row["batch_norm"] != "frozen"
    return f"{row['stage']} (but BatchNorm: {row['batch_norm']})" if moving else str(row["stage"])


def _kept(record: Mapping[str, Any]) -> dict[str, Any] | None:
    """Drift of the stages and what it means in words; None where nothing was measured."""
    if "forgetting" not in record:
        return None
    found, gain = Forgetting.from_dict(record["forgetting"]), record.get("target_gain")
    if gain is not None:
        plain: dict[str, Any] = {k: math.nan if v is None else v for k, v in gain.items()}
        gain = Interval(**plain)
    return {"found": found, "sentences": sentences(found, gain)}


def _epochs(record: Mapping[str, Any]) -> dict[str, Any] | None:
    """Loss and score by epoch, drawn and as rows; of very many epochs some, the best included."""
    every, best = record.get("epochs") or (), record.get("best_epoch")
    if not every:
        return None
    shown = {every[i]["number"] for i in evenly(len(every), LIMITS["epochs"])}
    rows = [one for one in every if one["number"] in {*shown, best, every[-1]["number"]}]
    curves = {
        name: charts.epoch_curve([(one["number"], one[name]) for one in rows], best)
        for name in ("loss", "score")
    }
    return {"rows": rows, "curves": curves, "best": best, "count": len(every)}


def _splits(prepared: Prepared) -> dict[SplitName, str]:
    """Parts that have images, and what to call them."""
    present = {sample.split for sample in prepared.data.samples}
    found = {name: SPLIT_TITLES[name] for name in SPLITS if name in present}
    judge = "test" if "test" in found else "val"
    return {name: "held out" if name == judge else title for name, title in found.items()}


def _class_counts(prepared: Prepared) -> dict[str, Any]:
    parts = {name: prepared.data.split(name).counts() for name in _splits(prepared)}
    rows = [(name, [part[name] for part in parts.values()]) for name in prepared.data.classes]
    totals = [len(prepared.data.split_indices(name)) for name in parts]
    if len(rows) > LIMITS["classes_in_full"]:
        rows.sort(key=lambda row: sum(row[1]))
    return {"rows": rows, "totals": totals, "top": max((max(row[1]) for row in rows), default=0)}


def _findings(prepared: Prepared) -> list[dict[str, Any]]:
    """Findings of one kind and severity together, the gravest first."""
    groups: dict[tuple[str, str], list[Finding]] = defaultdict(list)
    for finding in prepared.findings:
        groups[finding.severity, finding.kind].append(finding)
    order = ("error", "warning", "note")
    found = sorted(groups.items(), key=lambda group: order.index(group[0][0]))
    return [{"severity": one[0], "kind": one[1], "found": members} for one, members in found]


def _root(prepared: Prepared) -> str:
    """The folder that all images are below, said once instead of before every path."""
    paths = [str(s.image) for s in prepared.data.samples if isinstance(s.image, Path)]
    if not paths:
        return ""
    try:
        return os.path.commonpath([Path(min(paths)).parent, Path(max(paths)).parent])
    except ValueError:  # some are absolute and some are not
        return ""


def _plain(value: Any) -> Any:
    """Values that JSON knows: NaN and infinities become None, everything unknown a string."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)
