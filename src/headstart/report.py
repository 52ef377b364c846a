"""What a run has to say, as a page, as numbers, and as a model card.

The page is one file: style, drawings and small pictures are inside it, and it opens from disk
without a network. Whatever the number of pictures and classes, its size is bounded; what was
left out is said.
"""

from __future__ import annotations

import base64
import io
import math
import os
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from headstart import charts
from headstart.data.checks import Finding
from headstart.data.images import decode
from headstart.data.prepare import Prepared
from headstart.data.samples import SPLITS, Dataset, Sample, SplitName, labels_of
from headstart.errors import UnreadableImageError
from headstart.evaluation import TITLES, Evaluation
from headstart.forgetting import Forgetting, sentences
from headstart.intervals import Interval
from headstart.model import TransferModel
from headstart.runtime import cores

if TYPE_CHECKING:
    from jinja2 import Template

__all__ = ["Facts", "render_card", "render_html", "render_json"]

ERRORS = ("log_loss", "brier", "ece")
"""Metrics that are better when lower."""

LIMITS = {
    "classes_in_table": 20,  # of the confusion matrix; above, the pairs confused most
    "classes_in_full": 30,  # above, classes are sorted and the rest is folded away
    "classes_at_all": 1000,
    "examples": 40,
    "examples_each": 8,
    "epochs": 200,
    "mistakes": 24,
    "mistakes_in_json": 200,
    "findings_each": 20,
    "paths_each": 4,
}
"""How much the page shows: its size is bounded whatever the number of pictures and classes."""

THUMBNAIL = 112
"""Height in pixels; pages show it at 96 or less."""

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
    evaluation : Evaluation
        Of ``prepared.test``.
    verdict : tuple of str
        Sentences, the most important first.
    seconds : mapping of str to float
        By step.
    command : str
        How the run was started.
    """

    name: str
    prepared: Prepared
    model: TransferModel
    evaluation: Evaluation
    verdict: tuple[str, ...]
    seconds: Mapping[str, float]
    command: str


def render_html(facts: Facts) -> str:
    """Render the page for a person: HTML that refers to nothing outside itself.

    Examples
    --------
    >>> Path("report.html").write_text(render_html(facts))  # doctest: +SKIP
    """
    evaluation = facts.evaluation
    examples, mistakes = _illustrated(facts)
    is_multilabel = facts.model.task.kind == "multilabel"
    candidates = [(c["penalty"], c["log_loss"]) for c in facts.model.record.get("candidates", ())]
    seen = [record for record in facts.prepared.records if record.width]
    # The cells of one picture, and the pictures of one group, are not independent.
    independent = not is_multilabel and evaluation.n_groups is None
    return _template("report.html.j2").render(
        **_shared(facts),
        examples=examples,
        mistakes=mistakes,
        n_wrong=int((~evaluation.correct).sum()),
        findings=_findings(facts.prepared),
        counts=None if is_multilabel else evaluation.confusion,
        per_class=_per_class(evaluation),
        plot=charts.reliability_plot(evaluation.reliability, independent=independent),
        penalties=charts.curve(candidates) if len(candidates) > 1 else None,
        epochs=_epochs(facts.model.record),
        root=_root(facts.prepared),
        formats=Counter(record.format for record in seen).most_common(4),
        sizes=[(record.width, record.height) for record in seen],
        charts=charts,
    )


def render_json(facts: Facts) -> dict[str, Any]:
    """Give every number as values that JSON knows: NaN and infinities are None.

    Above 20 classes the confusion matrix is None; ``confusions`` has its wrong cells by name.
    """
    evaluation, model, prepared = facts.evaluation, facts.model, facts.prepared
    spec, task = model.trunk.spec, model.task
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
            "pictures": len(prepared.data),
            "kind": prepared.data.kind,
            "notes": prepared.data.notes,
            "parts": {name: prepared.data.split(name).counts() for name in _splits(prepared)},
            "findings": [asdict(finding) for finding in prepared.findings],
        },
        "model": {
            "task": task.as_dict(),
            "backbone": {**spec.as_dict(), "origin": dict(model.trunk.origin)},
            "engine": model.engine,
            "record": {k: v for k, v in model.record.items() if k != "learned_from"},
        },
        "evaluation": numbers,
        "reliability": asdict(evaluation.reliability),
    }
    if task.kind == "multiclass":
        found["confusions"] = [
            {"truth": task.classes[p.truth], "answer": task.classes[p.answer], "pictures": p.count}
            for p in charts.confused_pairs(evaluation.confusion)
        ]
        found["mistakes"] = [
            {key: value for key, value in mistake.items() if key != "sample"}
            for mistake in _mistakes(facts, LIMITS["mistakes_in_json"])
        ]
    plain: dict[str, Any] = _plain(found)
    return plain


def render_card(facts: Facts) -> str:
    """Write the model card, in Markdown: what it is, from what, how good, its limits."""
    return _template("card.md.j2").render(**_shared(facts))


def _shared(facts: Facts) -> dict[str, Any]:
    """What both the page and the card speak of."""
    return {
        "facts": facts,
        "task": facts.model.task,
        "trunk": facts.model.trunk,
        "head": facts.model.linear_head(),
        "record": facts.model.record,
        "evaluation": facts.evaluation,
        "prepared": facts.prepared,
        "numbers": _numbers(facts.evaluation),
        "classes": _class_counts(facts.prepared),
        "splits": _splits(facts.prepared),
        "limits": LIMITS,
        "plan": _plan(facts.model.record),
        "kept": _kept(facts.model.record),
    }


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
    shown = {every[i]["number"] for i in charts.evenly(len(every), LIMITS["epochs"])}
    rows = [one for one in every if one["number"] in {*shown, best, every[-1]["number"]}]
    curves = {
        name: charts.epoch_curve([(one["number"], one[name]) for one in rows], best)
        for name in ("loss", "score")
    }
    return {"rows": rows, "curves": curves, "best": best, "count": len(every)}


def _splits(prepared: Prepared) -> dict[SplitName, str]:
    """Parts that have pictures, and what to call them."""
    present = {sample.split for sample in prepared.data.samples}
    found = {name: SPLIT_TITLES[name] for name in SPLITS if name in present}
    judge = "test" if "test" in found else "val"
    return {name: "held out" if name == judge else title for name, title in found.items()}


def _numbers(evaluation: Evaluation) -> dict[str, Any]:
    """Metrics in the order shown: scores on an axis to 1, errors on an axis of their own."""
    scores = {k: v for k, v in evaluation.metrics.items() if k not in {"accuracy", *ERRORS}}
    errors = {k: v for k, v in evaluation.metrics.items() if k in ERRORS}
    rules = {baseline.name: baseline.accuracy for baseline in evaluation.baselines}
    return {
        "against": {"this model": evaluation.metrics["accuracy"], **rules},
        "scores": {TITLES.get(k, k): v for k, v in scores.items()},
        "errors": {TITLES.get(k, k): (v, charts.axis_end(v)) for k, v in errors.items()},
    }


def _class_counts(prepared: Prepared) -> dict[str, Any]:
    parts = {name: prepared.data.split(name).counts() for name in _splits(prepared)}
    rows = [(name, [part[name] for part in parts.values()]) for name in prepared.data.classes]
    totals = [len(prepared.data.split_indices(name)) for name in parts]
    if len(rows) > LIMITS["classes_in_full"]:
        rows.sort(key=lambda row: sum(row[1]))
    return {"rows": rows, "totals": totals, "top": max((max(row[1]) for row in rows), default=0)}


def _illustrated(facts: Facts) -> tuple[list[Any], list[dict[str, Any]]]:
    """Examples by class, as (name, picture), and mistakes, with a small picture each."""
    examples, mistakes = _examples(facts.prepared.data), _mistakes(facts, LIMITS["mistakes"])
    wanted = [sample for _, samples in examples for sample in samples]
    wanted += [mistake["sample"] for mistake in mistakes if mistake["sample"]]
    with ThreadPoolExecutor(cores()) as executor:
        made = executor.map(_thumbnail, wanted)
        shown = [(name, [(s.name, next(made)) for s in samples]) for name, samples in examples]
        return shown, [m | {"thumbnail": next(made) if m["sample"] else None} for m in mistakes]


def _examples(data: Dataset) -> list[tuple[str, list[Sample]]]:
    """Some pictures of some classes, evenly spread over the data, always the same ones."""
    by_class: dict[str, list[Sample]] = defaultdict(list)
    for sample in data.samples:
        for label in labels_of(sample.target):
            by_class[label].append(sample)
    filled = [name for name in data.classes if by_class[name]]
    chosen = [filled[i] for i in charts.evenly(len(filled), LIMITS["examples"])]
    each = min(LIMITS["examples_each"], LIMITS["examples"] // max(len(chosen), 1))
    return [(n, [by_class[n][i] for i in charts.evenly(len(by_class[n]), each)]) for n in chosen]


def _thumbnail(sample: Sample) -> str | None:
    from PIL import Image

    try:
        pixels = decode(sample.image, at_least=THUMBNAIL)
    except UnreadableImageError:
        return None
    picture = Image.fromarray(pixels)
    longest = 2 * THUMBNAIL  # of a panorama only the middle is shown
    width = min(max(round(picture.width * THUMBNAIL / picture.height), THUMBNAIL // 3), longest)
    part = picture.width if width < longest else round(picture.height * longest / THUMBNAIL)
    left = (picture.width - part) // 2
    small = picture.resize(
        (width, THUMBNAIL),
        Image.Resampling.BILINEAR,
        box=(left, 0, left + part, picture.height),
        reducing_gap=2.0,
    )
    file = io.BytesIO()
    small.save(file, "JPEG", quality=75, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode("ascii")


def _findings(prepared: Prepared) -> list[dict[str, Any]]:
    """Findings of one kind and severity together, the gravest first."""
    groups: dict[tuple[str, str], list[Finding]] = defaultdict(list)
    for finding in prepared.findings:
        groups[finding.severity, finding.kind].append(finding)
    order = ("error", "warning", "note")
    found = sorted(groups.items(), key=lambda group: order.index(group[0][0]))
    return [{"severity": one[0], "kind": one[1], "found": members} for one, members in found]


def _per_class(evaluation: Evaluation) -> list[Any]:
    """All classes in their order, or, when there are many, those found least often first."""
    rows = list(evaluation.per_class)
    if len(rows) > LIMITS["classes_in_full"]:
        rows.sort(key=lambda row: math.inf if math.isnan(row.recall.value) else row.recall.value)
    return rows


def _mistakes(facts: Facts, limit: int) -> list[dict[str, Any]]:
    """Wrong answers, the most confident first; multilabel has no one answer to be wrong."""
    evaluation, task = facts.evaluation, facts.model.task
    if task.kind == "multilabel":
        return []
    predicted = evaluation.predicted
    samples: Sequence[Sample] = facts.prepared.test.samples
    if tuple(sample.name for sample in samples) != evaluation.names:
        samples = ()
    return [
        {
            "picture": evaluation.names[row],
            "truth": task.classes[evaluation.targets[row]],
            "answer": task.classes[predicted[row]],
            "probability": float(evaluation.probabilities[row].max()),
            "probability_of_truth": float(evaluation.probabilities[row, evaluation.targets[row]]),
            "sample": samples[row] if samples else None,
        }
        for row in evaluation.mistakes(limit)
    ]


def _root(prepared: Prepared) -> str:
    """The folder that all pictures are below, said once instead of before every path."""
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


@cache
def _template(name: str) -> Template:
    from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

    environment = Environment(
        loader=PackageLoader("headstart"),
        autoescape=select_autoescape(["html.j2"]),  # Markdown has a filter of its own
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        markdown=charts.markdown,
        unbroken=charts.unbroken,
        percent=charts.percent,
        count=lambda number: f"{number:,}",
    )
    return environment.get_template(name)
