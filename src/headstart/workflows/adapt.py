"""Adapt a saved classifier to unlabelled images of another domain, or keep it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headstart.cache import Cache, open_cache
from headstart.data.dataset import Dataset, Sample
from headstart.data.prepare import readable_samples, to_samples
from headstart.errors import DataError, TrainingError, UnknownNameError, UsageError
from headstart.evaluation.classification import evaluate as evaluate_dataset
from headstart.evaluation.domain_change import (
    ClassMove,
    DomainMap,
    class_gaps,
    find_moves,
    map_domains,
)
from headstart.features.extractor import Extractor
from headstart.files import output_path, write_whole
from headstart.methods.adaptation import ADAPTATIONS
from headstart.methods.adaptation.contract import Adapted, Domains, require_adaptable
from headstart.metrics.confidence_intervals import Interval
from headstart.metrics.domain_distance import frechet_distance, mmd, proxy_a_distance
from headstart.metrics.target_free import (
    EmbeddedRisk,
    deep_embedded_validation,
    density_ratios,
    describe_collapse,
    effective_classes,
)
from headstart.metrics.validation import Floats, json_text
from headstart.models.saving import load
from headstart.models.tasks import ClassificationTask
from headstart.models.transfer_model import TransferModel
from headstart.models.writing import save
from headstart.reports.adaptation import (
    render_adaptation,
    render_adaptation_card,
    render_adaptation_text,
)
from headstart.selection.adaptation_choice import (
    TargetScores,
    choose_adapted,
    information_gain,
    list_objections,
    score_target,
)
from headstart.training.interruption import StopRequest
from headstart.training.job import Epoch, Session
from headstart.training.trainer import held_out
from headstart.workflows.adaptation import (
    SOURCE,
    Adaptation,
    AdaptationResult,
    AdaptSettings,
)
from headstart.workflows.evaluate import labelled_part
from headstart.workflows.events import EpochDone, Noted, Observer, progress_of, shown
from headstart.workflows.run_folder import (
    checkpoint_folder,
    delete_checkpoint,
    explain_write_errors,
    locked,
    publish_folder,
    temporary_folder,
)

__all__ = ["adapt"]

AUTO = ("adabn", "coral", "shot", "dann")
"""Methods of ``auto``, the cheap ones first; the last one trains against a discriminator."""

CHECKPOINT_DELETED = (
    "Deleted the checkpoints in {folder}, and started again. Pass --resume to continue from them."
)

MOST_FOR_DISTANCE = 500
MEASURE = "mutual information"


def adapt(
    model: TransferModel | str | Path,
    target: object,
    *,
    source: object = None,
    method: str = "auto",
    evaluate_on: object = None,
    out: str | Path | None = None,
    cache: Cache | bool | None = None,
    progress: bool | None = None,
    **settings: Any,
) -> Adaptation:
    """Adapt a classifier to unlabelled target images, as ``headstart adapt`` on the command line.

    Labels of the target are never read. The model is returned unchanged if no method gives better
    label-free scores.

    Parameters
    ----------
    model : TransferModel, str or Path
        A model, or the folder of a saved one.
    target : path, images, or a sequence of these
        Unlabelled images of the new domain, as for ``TransferModel.predict``.
    source : str, Path, Dataset or object, optional
        Labelled images of the model's own domain, as for `headstart.fit`.
    method : str
        ``auto``, or one or more of ``ADAPTATIONS``, separated by commas.
    evaluate_on : str, Path, Dataset or object, optional
        Labelled images of the target, to show the accuracy of every model. Never used to choose.
    out : str or Path, optional
        Folder to write the model and the report to; by default nothing is written.
    cache : Cache or bool, optional
        By default the user's; False for an empty one.
    progress : bool, optional
        Show progress; None does so in a terminal and in a notebook only.
    **settings
        Fields of `AdaptSettings`: ``budget``, ``train_from``, ``learning_rate``, ``epochs``,
        ``batch_norm``, ``bad_files``, ``device``, ``seed`` and ``resume``; ``observer`` and
        ``no_cache``, as for `headstart.fit`.

    Raises
    ------
    UnknownNameError
        If there is no such method or setting.
    DataError
        If there are too few images, or a method needs source images and there are none.
    UsageError
        If the model is no classifier, or a value is invalid.

    Examples
    --------
    >>> adapted = adapt("runs/photos", "unlabeled/", source="photos/")  # doctest: +SKIP
    >>> adapted.is_better  # doctest: +SKIP
    True
    """
    observer, no_cache = settings.pop("observer", None), settings.pop("no_cache", False)
    names = [field.name for field in fields(AdaptSettings)]
    for name in settings:
        if name not in names:
            raise UnknownNameError("setting", name, names)
    chosen = AdaptSettings(**settings)
    methods = _parse_methods(method, chosen)
    if chosen.resume and out is None:
        raise UsageError(
            f"`resume` is {chosen.resume}, but `out` is {out}: the checkpoints are beside the "
            "output folder. Pass the folder of the stopped run as --out."
        )
    loaded = model if isinstance(model, TransferModel) else load(model)
    with open_cache(cache, no_cache=no_cache) as store, shown(progress, observer) as notify:
        run = _AdaptRun(loaded, chosen, store, notify)
        with _checkpoints(out, chosen, methods, notify) as folder:
            run.read(target, source, evaluate_on)
            tried = run.try_methods(methods, folder, is_auto=method == "auto")
            adaptation = run.finish(tried, out)
            _delete_checkpoints(folder, methods)
    return adaptation


@contextmanager
def _checkpoints(
    out: str | Path | None, settings: AdaptSettings, methods: Sequence[Any], notify: Observer
) -> Iterator[Path | None]:
    """Lock the folder of checkpoints beside the output; without --resume delete older ones."""
    if out is None:
        yield None
        return
    folder = checkpoint_folder(Path(out))
    with locked(folder):
        if not settings.resume and _delete_checkpoints(folder, methods):
            notify(Noted(text=CHECKPOINT_DELETED.format(folder=folder)))
        try:
            yield folder
        finally:  # an empty folder of a method says nothing
            for method in methods:
                with suppress(OSError):
                    (folder / method.name).rmdir()


def _delete_checkpoints(folder: Path | None, methods: Sequence[Any]) -> bool:
    """Delete the checkpoints of all methods; return whether there were any."""
    if folder is None:
        return False
    deleted = [delete_checkpoint(folder / method.name) for method in methods]
    return any(deleted)


def _parse_methods(text: str, settings: AdaptSettings) -> list[Any]:
    names = AUTO if text == "auto" else [part.strip() for part in text.split(",") if part.strip()]
    if not names or len(set(names)) < len(names):
        raise UsageError(
            f"--method must be auto or different names, got {text!r}. Pass each name once."
        )
    return [settings.method(name) for name in names]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Tried:
    """An adapted model with its scores."""

    model: TransferModel
    scores: TargetScores
    result: AdaptationResult


class _AdaptRun:
    """Images, the source model and its scores."""

    def __init__(
        self, model: TransferModel, settings: AdaptSettings, cache: Cache, notify: Observer
    ) -> None:
        self.model, self.settings, self.notify, self.cache = model, settings, notify, cache
        self.started_at = time.perf_counter()
        self.computed: dict[TransferModel, tuple[NDArray[Any], NDArray[Any]]] = {}
        self.extractor = Extractor(
            cache=cache, engine="fp32", device=settings.device, progress=progress_of(notify)
        )

    def read(self, target: object, source: object, evaluate_on: object) -> None:
        """Read the images, and score the source model."""
        bad_files = self.settings.bad_files
        self.model.linear_head()  # refuse boxes and masks before the images are read
        progress_of(self.notify)("reading the images", 0, 0)
        images = readable_samples(to_samples(target), cache=self.cache, bad_files=bad_files)
        samples: Sequence[Sample] = [replace(sample, target=None) for sample in images]
        self.val: Dataset | None = None
        train: Dataset | None = None
        if source is not None:
            train, self.val = held_out(self._read_labelled(source, "train"), self.settings.seed)
        self.domains = Domains(target=tuple(samples), source=train)
        self.oracle = None if evaluate_on is None else self._read_labelled(evaluate_on, "test")
        require_adaptable(self.model, self.domains, ADAPTATIONS["adabn"])
        self.start = self._score(self.model)

    def _read_labelled(self, source: object, part: str) -> Dataset:
        task = self.model.require_task(ClassificationTask)
        data = labelled_part(
            source, task.kind, part, cache=self.cache, bad_files=self.settings.bad_files
        )
        unknown = sorted(set(data.classes) - set(task.classes))
        if unknown:
            raise DataError(
                f"{data.name!r} has the classes {unknown[:5]}, which the model does not know. "
                "Pass images of the model's classes."
            )
        return self.model.align_classes(data)

    def try_methods(
        self, methods: Sequence[Any], checkpoints: Path | None, *, is_auto: bool
    ) -> list[_Tried]:
        """Adapt by each method, until the budget is used up."""
        deadline = self.started_at + self.settings.seconds
        tried: list[_Tried] = []
        with StopRequest(self.notify, always_ends="Stopping; no model was written.") as stop:
            for method in methods:
                if is_auto and method.needs_source and self.domains.source is None:
                    self.notify(Noted(text=f"Skipped: {method.name} needs --source."))
                    continue
                if tried and time.perf_counter() > deadline:
                    text = (
                        f"Skipped: {method.name}; the budget of {self.settings.budget} is used up."
                    )
                    self.notify(Noted(text=text))
                    continue
                session = self._session(method, checkpoints, deadline, stop)
                try:
                    tried.append(self._try_method(method, session))
                except UsageError as error:  # such as a backbone without BatchNorm
                    if not is_auto or (session.folder is not None and session.resume):
                        raise  # also a checkpoint of another run
                    self.notify(Noted(text=f"Skipped: {method.name}. {error}"))
                except TrainingError as error:
                    self.notify(Noted(text=f"Failed: {method.name}. {error}"))
        return tried

    def _session(
        self, method: Any, checkpoints: Path | None, deadline: float, stop: StopRequest
    ) -> Session:
        folder = None
        if checkpoints is not None and method.resumes:
            folder = checkpoints / method.name
            with explain_write_errors(folder):
                folder.mkdir(parents=True, exist_ok=True)
        return Session(
            on_epoch=self._report_epoch,
            folder=folder,
            resume=self.settings.resume,
            deadline=deadline,
            stop=stop,
        )

    def _report_epoch(self, epoch: Epoch, n_epochs: int) -> None:
        self.notify(EpochDone(epoch=epoch, n_epochs=n_epochs, measure=MEASURE))

    def _try_method(self, method: Any, session: Session) -> _Tried:
        started_at = time.perf_counter()
        progress_of(self.notify)(f"adapting by {method.name}", 0, 0)
        adapted = method.adapt(self.model, self.domains, extractor=self.extractor, session=session)
        if adapted.history is not None and adapted.history.interrupted:
            raise KeyboardInterrupt  # nothing is written: a half adapted model was not chosen
        scores = self._score(adapted.model)
        gain = information_gain(self.start, scores, seed=self.settings.seed)
        result = AdaptationResult(
            method=method.name,
            scores=scores.as_dict(),
            gain=gain,
            objections=self._objections(adapted, scores, gain),
            seconds=time.perf_counter() - started_at,
            oracle=self._oracle(adapted.model),
        )
        text = " ".join(result.objections) or "accepted"
        self.notify(Noted(text=f"{method.name}: {text}"))
        return _Tried(model=adapted.model, scores=scores, result=result)

    def _objections(
        self, adapted: Adapted, scores: TargetScores, gain: Interval
    ) -> tuple[str, ...]:
        before = effective_classes(self.start.probabilities)
        collapse = adapted.collapse or describe_collapse(scores.probabilities, before)
        objections = list_objections(self.start, scores, gain)
        return (collapse, *objections) if collapse else objections

    def _score(self, model: TransferModel) -> TargetScores:
        """Label-free scores of a model."""
        features = self.extractor.features(model.backbone, self.domains.target).values
        probabilities = _probabilities(model, features)
        risk: EmbeddedRisk | None = None
        if self.val is not None and self.domains.source is not None:
            backbone = self._for_source(model).backbone
            train, val = (
                self.extractor.features(backbone, data.samples).values
                for data in (self.domains.source, self.val)
            )
            wrong = _probabilities(model, val).argmax(axis=1) != self.val.targets()
            ratios = density_ratios(train, features, val)
            risk = deep_embedded_validation(wrong.astype(np.float64), ratios)
        return score_target(probabilities, features, risk)

    def _for_source(self, model: TransferModel) -> TransferModel:
        """Return the model as it applies to source images.

        BatchNorm statistics of the target do not fit source images: there the model has statistics
        of the source training images, so that features of both domains are comparable.
        """
        if self.domains.source is None or not _statistics_differ(self.model, model):
            return model
        images = Domains(target=self.domains.source.samples)
        adapted: Adapted = ADAPTATIONS["adabn"]().adapt(model, images, extractor=self.extractor)
        return adapted.model

    def _oracle(self, model: TransferModel) -> Interval | None:
        """Accuracy on the labelled target images, which never decides anything."""
        if self.oracle is None:
            return None
        evaluation = evaluate_dataset(
            model, self.oracle, extractor=self.extractor, seed=self.settings.seed
        )
        return evaluation.metrics["accuracy"]

    def finish(self, tried: Sequence[_Tried], out: str | Path | None) -> Adaptation:
        """Choose a model, describe the choice, and write the folder."""
        accepted = [entry for entry in tried if not entry.result.objections]
        best = accepted[choose_adapted([e.scores for e in accepted])] if accepted else None
        model = self.model if best is None else best.model
        source = AdaptationResult(
            method=SOURCE, scores=self.start.as_dict(), oracle=self._oracle(self.model)
        )
        adaptation = Adaptation(
            model=model,
            chosen=SOURCE if best is None else best.result.method,
            results=(source, *(entry.result for entry in tried)),
            distances=self._distances(model),
            summary=(),
            moves=self._moves(model),
            maps=self._maps(model),
            seconds=time.perf_counter() - self.started_at,
        )
        adaptation = replace(adaptation, summary=_summarise(adaptation))
        record = dict(model.record)
        values = record.get("adaptation", {}) if best is not None else {}
        record["adaptation"] = {**values, "decision": adaptation.as_dict()}
        adaptation = replace(adaptation, model=replace(model, record=record))
        return adaptation if out is None else _write(adaptation, Path(out))

    def _distances(self, model: TransferModel) -> dict[str, dict[str, float]]:
        """Distances of source validation images and target, before and after."""
        if self.val is None:
            return {}
        distances = {"before": self._distance(self.model)}
        if model is not self.model:
            distances["after"] = self._distance(model)
        return distances

    def _moves(self, model: TransferModel) -> tuple[ClassMove, ...]:
        """Compare the predictions on the target before and after."""
        if model is self.model:
            return ()
        names, gaps, predicted = model.task.classes, [], []
        for each in (self.model, model):
            source, target = self._features(each)
            predicted.append(_probabilities(each, target).argmax(axis=1))
            if self.val is not None:
                rows = self.val.targets(), predicted[-1]
                gaps.append(class_gaps((source, target), rows, len(names)))
        return find_moves(names, (predicted[0], predicted[1]), (gaps[0], gaps[1]) if gaps else None)

    def _maps(self, model: TransferModel) -> dict[str, DomainMap]:
        """Map both domains before and after."""
        if self.val is None:
            return {}
        moments = {"before": self.model} | ({} if model is self.model else {"after": model})
        labels, maps = [str(sample.target) for sample in self.val.samples], {}
        for moment, each in moments.items():
            features = self._features(each)
            predicted = _probabilities(each, features[1]).argmax(axis=1)
            names = [each.task.classes[number] for number in predicted]
            maps[moment] = map_domains(features, (labels, names), self.settings.seed)
        return {moment: each for moment, each in maps.items() if each.points}

    def _features(self, model: TransferModel) -> tuple[NDArray[Any], NDArray[Any]]:
        """Features of the source validation images and of the target, as the model applies."""
        if model not in self.computed:
            val = () if self.val is None else self.val.samples
            backbones = self._for_source(model).backbone, model.backbone
            source, target = (
                self.extractor.features(backbone, samples).values
                for backbone, samples in zip(backbones, (val, self.domains.target), strict=True)
            )
            self.computed[model] = source, target
        return self.computed[model]

    def _distance(self, model: TransferModel) -> dict[str, float]:
        parts = [values[_evenly(len(values))] for values in self._features(model)]
        return {
            "proxy_a_distance": proxy_a_distance(*parts, seed=self.settings.seed).value,
            "mmd": mmd(*parts),
            "frechet_distance": frechet_distance(*parts),
        }


def _statistics_differ(first: TransferModel, second: TransferModel) -> bool:
    """Whether the means or variances of BatchNorm layers are different."""
    state = second.backbone.state
    return any(
        not bool((value == state[name]).all())
        for name, value in first.backbone.state.items()
        if name.endswith((".running_mean", ".running_var"))
    )


def _evenly(n: int) -> NDArray[np.intp]:
    """At most 500 of n rows, evenly spaced."""
    return np.linspace(0, n - 1, min(n, MOST_FOR_DISTANCE)).round().astype(np.intp)


def _probabilities(model: TransferModel, features: Any) -> Floats:
    """Probabilities at temperature 1: the source's temperature says nothing about the target."""
    task = replace(model.require_task(ClassificationTask), temperature=1.0)
    return task.probabilities(model.linear_head().logits(features))


def _summarise(adaptation: Adaptation) -> tuple[str, ...]:
    """Describe the choice in sentences."""
    tried = adaptation.results[1:]
    if not adaptation.is_better:
        reasons = [f"{result.method}: {result.objections[0]}" for result in tried]
        return ("Not better: the source model is kept.", *reasons)
    chosen = next(result for result in tried if result.method == adaptation.chosen)
    sentences = [f"Adapted by {chosen.method}; chosen without labels of the target."]
    if chosen.gain is not None:
        sentences.append(
            f"Mutual information of images and predictions: {chosen.gain.value:+.3f} "
            f"[{chosen.gain.low:+.3f}, {chosen.gain.high:+.3f}] nats over the source model."
        )
    refused = [result.method for result in tried if result.objections]
    if refused:
        sentences.append(f"Not accepted: {', '.join(refused)}.")
    return tuple(sentences)


def _write(adaptation: Adaptation, target: Path) -> Adaptation:
    """Write the model, the reports and the model card into a new folder."""
    document = {
        **adaptation.as_dict(),
        "maps": {moment: each.as_dict() for moment, each in adaptation.maps.items()},
    }
    oracles = [str(result.oracle or "") for result in adaptation.results]
    values, model = {**document, "oracles": oracles}, adaptation.model
    with temporary_folder(target) as folder:
        with explain_write_errors(target):
            save(adaptation.model, folder)
            for name, text in {
                "report.json": json_text(document, indent=1),
                "report.html": render_adaptation(values, model),
                "report.md": render_adaptation_text(values, model),
                "card.md": render_adaptation_card(values, model),
            }.items():
                write_whole(output_path(folder, name), text)
        return replace(adaptation, folder=publish_folder(folder, target))
