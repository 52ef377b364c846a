"""Few-shot method: a closed-form head on frozen features, chosen by leaving images out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from headstart.data.dataset import Dataset, html_fields
from headstart.errors import UnknownNameError, UsageError
from headstart.features.extractor import Extractor
from headstart.methods.method import Outline, described, require_two_of_each
from headstart.metrics.confidence_intervals import Floats, proportion_interval
from headstart.models.heads.linear import LinearHead
from headstart.models.tasks import ClassificationTask
from headstart.models.transfer_model import TransferModel
from headstart.training.few_shot_heads import HEADS, fit_few_shot_head, held_out_logits
from headstart.training.job import Session
from headstart.training.time_estimate import extraction_seconds, probe_seconds

__all__ = ["FewShot"]

FewShotHead = Literal["auto", "cosine", "simple-shot", "euclidean", "shrunken-centroids", "lda"]


@dataclass(frozen=True, kw_only=True)
class FewShot:
    """A head in closed form on frozen features, for classes with very few images.

    Each head is fitted without one training image (or its group) and predicts it. The head with
    the most correct predictions is fitted on all training images, and the same predictions give
    the temperature. Validation images, if the data have any, take part in both. Test images are
    never used.

    Parameters
    ----------
    shots : int or None
        Training images of each class, drawn by the seed; the others are not used. None uses all.
    few_shot_head : str
        Head: auto (chosen by leaving images out), cosine, simple-shot, euclidean,
        shrunken-centroids or lda.
    seed : int
        Decides which images are drawn. Nothing else is random.

    Raises
    ------
    UsageError
        If a value is out of its range.

    Reference
    ---------
    Wang et al., SimpleShot, arXiv:1911.04623; `training/few_shot_heads.py` has one for each head.

    Examples
    --------
    >>> FewShot(shots=5).name
    'few-shot'
    """

    name: ClassVar[str] = "few-shot"
    uses_weights: ClassVar[bool] = True
    resumes: ClassVar[bool] = False

    shots: int | None = None
    few_shot_head: FewShotHead = "auto"
    seed: int = 0

    def _repr_html_(self) -> str:
        return html_fields(self)

    def __post_init__(self) -> None:
        if self.shots is not None and self.shots < 1:
            raise UsageError(
                f"`shots` must be at least 1, got {self.shots}. Pass --shots 5, or leave it out."
            )
        if self.few_shot_head not in {"auto", *HEADS}:
            raise UnknownNameError("few_shot_head", self.few_shot_head, ["auto", *HEADS])

    def check(self, train: Dataset) -> None:
        """Refuse data that has no single class for each image.

        Raises
        ------
        DataError
            If fewer than two classes have images.
        """
        if train.kind != "multiclass":
            raise UsageError(
                f"Method few-shot needs one class for each image, but this data is for "
                f"{train.kind}. Pass --method {'finetune' if train.is_dense else 'linear-probe'}."
            )
        if train.weights() is not None:
            raise UsageError(
                f"The images of {train.name!r} have weights, which method few-shot cannot use. "
                "Pass --method linear-probe."
            )
        require_two_of_each(train, least=1)

    def outline(self, model: TransferModel, train: Dataset, *, extractor: Extractor) -> Outline:
        """Describe what would train."""
        drawn = self._draw_shots(train)
        unused = len(train) - len(drawn)
        return Outline(
            title="few-shot head",
            trains=f"one linear layer in closed form, from {len(drawn)} training images"
            + (f"; {unused} others are not used (--shots {self.shots})" if unused else ""),
        )

    def expected_seconds(
        self,
        model: TransferModel,
        train: Dataset,
        val: Dataset | None = None,
        *,
        extractor: Extractor,
        pace: float = 1.0,
    ) -> float:
        """Estimate how long ``fit`` takes on this machine."""
        drawn = self._draw_shots(train)
        samples = (*drawn.samples, *(val.samples if val is not None else ()))
        seconds = extraction_seconds(model, samples, train, extractor=extractor)
        return seconds + pace * probe_seconds(len(drawn), model.backbone.width, len(train.classes))

    def fit(
        self,
        model: TransferModel,
        train: Dataset,
        val: Dataset | None = None,
        *,
        extractor: Extractor,
        session: Session | None = None,
    ) -> TransferModel:
        """Choose and fit the head on ``train`` and return a new model with it.

        Parameters
        ----------
        model, train, val, extractor, session
            As in the contract of a method.

        Raises
        ------
        DataError
            If fewer than two classes have images.
        """
        self.check(train)
        drawn = self._draw_shots(train)
        samples = (*drawn.samples, *(val.samples if val is not None else ()))
        data = replace(drawn, samples=samples)
        extracted = extractor.features(model.backbone, samples)
        names = tuple(HEADS) if self.few_shot_head == "auto" else (self.few_shot_head,)
        held_out = {name: self._held_out(name, extracted.values, drawn, data) for name in names}
        name, scores = _choose(held_out, data)
        rows = np.isfinite(held_out[name]).all(axis=1)
        targets, groups = data.targets(), data.groups()
        weight, bias = fit_few_shot_head(
            name,
            extracted.values[: len(drawn)],
            drawn.targets(),
            n_classes=len(train.classes),
        )
        max_risk = model.require_task(ClassificationTask).max_risk
        task = ClassificationTask(classes=train.classes, kind=train.kind, max_risk=max_risk)
        if rows.any():
            kept = None if groups is None else [groups[row] for row in np.flatnonzero(rows)]
            task = task.calibrated(held_out[name][rows], targets[rows], groups=kept)
        return replace(
            model,
            head=LinearHead(weight=weight.astype(np.float32), bias=bias.astype(np.float32)),
            task=task,
            engine=extracted.engine.engine,
            record={
                **model.record,
                "method": described(self),
                "engine": extracted.engine.describe(),
                "few_shot": {
                    "head": name,
                    "heads": scores,
                    "held_out_images": int(rows.sum()),
                    "training_images": len(drawn),
                    "unused_images": len(train) - len(drawn),
                },
                "validation_images": len(data) - len(drawn),
            },
        )

    def _draw_shots(self, train: Dataset) -> Dataset:
        """The images that are used: at most ``shots`` of each class."""
        if self.shots is None:
            return train
        targets, rng = train.targets(), np.random.default_rng(self.seed)
        orders = [rng.permutation(np.flatnonzero(targets == k)) for k in range(len(train.classes))]
        rows = np.sort(np.concatenate([order[: self.shots] for order in orders]))
        return replace(train, samples=tuple(train.samples[row] for row in rows))

    def _held_out(
        self, name: str, features: NDArray[np.floating[Any]], drawn: Dataset, data: Dataset
    ) -> Floats:
        """Logits of the drawn images, left out in turn, and of the validation images."""
        n, n_classes = len(drawn), len(drawn.classes)
        logits = held_out_logits(
            name, features[:n], drawn.targets(), n_classes=n_classes, groups=drawn.groups()
        )
        weight, bias = fit_few_shot_head(name, features[:n], drawn.targets(), n_classes=n_classes)
        others = features[n : len(data)].astype(np.float64) @ weight.T + bias
        return np.concatenate([logits, others])


def _choose(held_out: dict[str, Floats], data: Dataset) -> tuple[str, list[dict[str, Any]]]:
    """Name of the head with the most correct predictions (the first of equals), and all scores."""
    targets, groups = data.targets(), data.groups()
    best, best_correct, scores = next(iter(held_out)), -1, list[dict[str, Any]]()
    for name, logits in held_out.items():
        rows = np.flatnonzero(np.isfinite(logits).all(axis=1))
        if not len(rows):  # one image of each class: the first head of the table
            continue
        correct = logits[rows].argmax(axis=1) == targets[rows]
        kept = None if groups is None else [groups[row] for row in rows]
        share = proportion_interval(correct, kept)
        scores.append({"head": name, "accuracy": [share.value, share.low, share.high]})
        if correct.sum() > best_correct:
            best, best_correct = name, int(correct.sum())
    return best, scores
