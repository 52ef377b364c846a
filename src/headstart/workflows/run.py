"""Result of ``fit``: the model, its evaluation and the folder."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from pathlib import Path
from textwrap import shorten

from headstart.data.dataset import brief
from headstart.data.prepare import PreparedData
from headstart.data.splits import evenly_spaced
from headstart.evaluation.classification import AnyEvaluation
from headstart.evaluation.insight import Diagnostics
from headstart.models.transfer_model import TransferModel
from headstart.reports.page import thumbnails
from headstart.workflows.recipe import Recipe

__all__ = ["Run"]

CLASSES_SHOWN = 20
"""Most class names in a notebook."""

IMAGES_SHOWN = 6
"""Most test images in a notebook."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Run:
    """Result of a run.

    Parameters
    ----------
    folder : Path
    model : TransferModel
    evaluation : Evaluation, BoxEvaluation or MaskEvaluation
    prepared : PreparedData
    recipe : Recipe
        With the settings that the data decided.
    summary : tuple of str
        Sentences about the evaluation, the most important first.
    seconds : dict of str to float
        By step.
    diagnostics : Diagnostics, optional
        Likely label errors, unusual images and weak subgroups; only the main process has them, and
        not after Ctrl-C.
    interrupted : bool
        Whether Ctrl-C ended the race, the training or the evaluation; the model is the best one
        until then.
    """

    folder: Path
    model: TransferModel
    evaluation: AnyEvaluation
    prepared: PreparedData
    recipe: Recipe
    summary: tuple[str, ...]
    seconds: dict[str, float]
    diagnostics: Diagnostics | None = None
    interrupted: bool = False

    def __repr__(self) -> str:
        sentences = "".join(f"\n  {shorten(sentence, 200)}" for sentence in self.summary[:3])
        return f"Run({brief(str(self.folder))}, {self.model!r}){sentences}"

    def _repr_html_(self) -> str:
        """Return the summary, the classes, test images and the report's link, for a notebook."""
        sentences = "".join(f"<li>{escape(sentence)}</li>" for sentence in self.summary)
        classes = escape(", ".join(self.model.task.classes[:CLASSES_SHOWN]))
        n_more = len(self.model.task.classes) - CLASSES_SHOWN
        rest = f" and {n_more} more" if n_more > 0 else ""
        report = escape(str(self.report))
        return (
            f"<b>{escape(self.prepared.data.name)}</b><ul>{sentences}</ul>"
            f"<p>Classes: {classes}{rest}</p>{_image_strip(self.prepared)}"
            f'<p>Report: <a href="{report}">{report}</a></p>'
        )

    @property
    def report(self) -> Path:
        """Path of the report, report.html in the run's folder."""
        return self.folder / "report.html"


def _image_strip(prepared: PreparedData) -> str:
    """Return some test images as HTML, each with its name; without those that are gone."""
    samples = prepared.test.samples
    chosen = [samples[i] for i in evenly_spaced(len(samples), IMAGES_SHOWN)]
    images = "".join(
        f'<img src="{uri}" alt="{escape(sample.name)}" title="{escape(sample.name)}" height="96"> '
        for sample, uri in zip(chosen, thumbnails(chosen), strict=True)
        if uri
    )
    return f"<p>{images}</p>" if images else ""
