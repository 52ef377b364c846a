"""Distill: a small student learns from a trained teacher, beside the same student without one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from headstart.cache import Cache, open_cache
from headstart.data.dataset import Dataset
from headstart.errors import UsageError
from headstart.evaluation.classification import Evaluation
from headstart.features.extractor import Extractor
from headstart.files import write_whole
from headstart.metrics.confidence_intervals import Interval, paired_proportion_difference
from headstart.metrics.confidence_intervals import proportion_interval as accuracy_interval
from headstart.metrics.validation import json_text
from headstart.models.transfer_model import TransferModel
from headstart.training.regularisation.teacher import Distillation, open_teacher
from headstart.workflows.evaluate import short_digest
from headstart.workflows.events import Noted, Observer, shown
from headstart.workflows.fit import fit
from headstart.workflows.run import Run
from headstart.workflows.run_folder import choose_folder, slug

__all__ = ["DEFAULT_STUDENT", "Distilled", "distill"]

DEFAULT_STUDENT = "torchvision/mobilenet_v3_small"


@dataclass(frozen=True, kw_only=True, eq=False)
class Distilled:
    """A student that learned from a teacher, and the same student that did not.

    Parameters
    ----------
    run : Run
        Of the distilled student; its folder is the result.
    alone : Run
        Of the student that was fine-tuned without the teacher, on the same images and seed.
    teacher : Interval
        Accuracy of the teacher on the same test images.
    gain : Interval
        Accuracy of the distilled student minus that of the student alone, paired by image.
    megabytes : pair of float
        Size of the teacher's and the student's backbone in float32.
    n_seen : int
        Number of test images that the teacher was trained on.
    """

    run: Run
    alone: Run
    teacher: Interval
    gain: Interval
    megabytes: tuple[float, float]
    n_seen: int = 0

    @property
    def helps(self) -> bool:
        """Whether the interval of the gain is above 0."""
        return self.gain.low > 0

    @property
    def sentences(self) -> tuple[str, ...]:
        """The result in words."""
        accuracy = [run.evaluation.metrics["accuracy"] for run in (self.run, self.alone)]
        verdict = "no significant difference"
        if self.gain.low > 0 or self.gain.high < 0:
            verdict = "significantly " + ("better" if self.helps else "worse")
        n = len(self.run.prepared.test)
        scores = f"student with the teacher {accuracy[0]}, student alone {accuracy[1]}"
        interval = f"[{self.gain.low:+.3f}, {self.gain.high:+.3f}]"
        sizes = f"{self.megabytes[1]:.1f} MB, the teacher's {self.megabytes[0]:.1f} MB"
        seen = (
            f"The teacher was trained on {self.n_seen} of these images: the accuracies may be "
            "too high. Train it on the same data with the same --seed and --test-fraction."
        )
        return (
            f"Accuracy on {n} test images: teacher {self.teacher}, {scores}.",
            f"With the teacher minus alone: {self.gain.value:+.3f} {interval}, {verdict}.",
            f"The student's backbone has {sizes}.",
            *((seen,) if self.n_seen else ()),
        )

    def as_dict(self) -> dict[str, Any]:
        """Return all values as plain types, for JSON."""
        return {
            "folder": str(self.run.folder),
            "alone": str(self.alone.folder),
            "sentences": list(self.sentences),
            "teacher": self.teacher.as_dict(),
            "gain": self.gain.as_dict(),
            "helps": self.helps,
            "megabytes": list(self.megabytes),
            "test_images_seen_by_teacher": self.n_seen,
        }


def distill(  # noqa: PLR0913 - one argument a flag
    teacher: str | Path,
    data: object,
    student: str = DEFAULT_STUDENT,
    *,
    loss: str = "kd",
    temperature: float = 4.0,
    weight: float = 1.0,
    train_from: str = "all",
    out: str | Path | None = None,
    cache: Cache | bool | None = None,
    no_cache: bool = False,
    observer: Observer | None = None,
    progress: bool | None = None,
    **settings: Any,
) -> Distilled:
    """Fine-tune a small network on labels and on the outputs of a trained classifier.

    The student is fine-tuned twice on the same images with the same seed, with the teacher and
    without it, so the gain is known with its interval. Both are runs with a model and a report.

    Parameters
    ----------
    teacher : str or Path
        Folder of a classifier that `headstart.fit` wrote. Train it on the same images with the same
        seed: it then has not seen the test images.
    data : str, Path, Dataset or object
        Labelled images, as for `headstart.fit`.
    student : str
        Name of a backbone.
    loss, temperature, weight
        Fields of `Distillation`: ``teacher_loss``, ``teacher_temperature``, ``teacher_weight``.
    train_from : str
        First stage of the student that trains.
    out : str or Path, optional
        Folder of the distilled run; by default ``runs/<data>-distilled``. The student alone is in
        a folder of the same name with ``-alone``.
    cache, no_cache, observer, progress
        As for `headstart.fit`.
    **settings
        Other settings of `headstart.fit`, such as ``epochs``, ``learning_rate`` and ``seed``.

    Returns
    -------
    Distilled

    Raises
    ------
    DataError
        If the images or labels cannot be used.
    UsageError
        If the teacher is no classifier, or has other classes.

    Examples
    --------
    >>> distilled = distill("runs/large", "photos/")  # doctest: +SKIP
    >>> print(distilled.sentences[1])  # doctest: +SKIP
    With the teacher minus alone: +0.021 [+0.004, +0.038], significantly better.
    """
    if named := {"method", "backbones", "backbone", "budget"} & set(settings):
        raise UsageError(
            f"`distill` always fine-tunes one student, so {min(named)!r} cannot be set. Pass "
            "--student for its backbone."
        )
    if settings.get("resume"):
        raise UsageError(
            f"`resume` is {settings['resume']}, but `distill` starts both trainings. Leave it out."
        )
    target = choose_folder(out, data)
    if out is None:
        target = target.with_name(f"{slug(data)}-distilled")
    teaching = Distillation(
        teacher=str(teacher),
        teacher_loss=loss,  # type: ignore[arg-type] # checked by Distillation
        teacher_temperature=temperature,
        teacher_weight=weight,
    )
    common = {"backbone": student, "method": "finetune", "train_from": train_from, **settings}
    with (
        open_cache(cache, no_cache=no_cache) as store,
        shown(progress, observer) as notify,
    ):
        common |= {"cache": store, "observer": notify, "progress": False}
        run = fit(data, out=target, **vars(teaching), **common)
        notify(Noted(text="The same student is now trained without the teacher, to compare."))
        alone = fit(data, out=target.with_name(f"{target.name}-alone"), **common)
        test = run.prepared.test
        model, order = open_teacher(teaching, test)
        learned_from = set(model.record.get("learned_from", ()))
        correct = _correct(model, order, test, Extractor(cache=store, engine="fp32"))
        distilled = Distilled(
            run=run,
            alone=alone,
            teacher=accuracy_interval(correct, test.groups()),
            gain=_gain(run, alone),
            megabytes=(_megabytes(model), _megabytes(run.model)),
            n_seen=sum(short_digest(sample) in learned_from for sample in test.samples),
        )
        write_whole(run.folder / "distill.json", json_text(distilled.as_dict(), indent=1))
    return distilled


def _correct(
    model: TransferModel, order: list[int], test: Dataset, extractor: Extractor
) -> NDArray[np.bool_]:
    """Which test images the teacher predicts correctly."""
    probabilities = model.predict_probabilities(test.samples, extractor=extractor)[:, order]
    return np.asarray(probabilities.argmax(axis=1) == test.targets())


def _gain(run: Run, alone: Run) -> Interval:
    """Difference of the accuracies on the same test images."""
    first, second = (cast(Evaluation, one.evaluation) for one in (run, alone))
    if first.names != second.names:
        raise UsageError(
            f"The two runs have other test images ({len(first.names)} and {len(second.names)}): "
            "the data changed in between. Run the command again."
        )
    correct = np.asarray(first.predicted == first.targets)
    correct_alone = np.asarray(second.predicted == second.targets)
    groups = run.prepared.test.groups()
    return paired_proportion_difference(correct, correct_alone, groups).interval


def _megabytes(model: TransferModel) -> float:
    return model.backbone.parameters * 4 / 1e6
