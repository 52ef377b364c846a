"""Evaluate a saved model on labelled images."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from shlex import quote
from time import perf_counter
from typing import Any

from headstart.cache import Cache, open_cache
from headstart.data.checks.boxes import (
    clean_boxes,
    find_boxless,
    keep_boxed,
    require_matching_sizes,
)
from headstart.data.checks.copies import find_known_copies
from headstart.data.checks.images import Finding, keep_readable, scan
from headstart.data.checks.masks import check_masks, keep_usable_masks
from headstart.data.dataset import DENSE, Dataset, Kind, Sample
from headstart.data.loader import digest_of
from headstart.data.pixel_values import DEFAULT_OPTIONS
from headstart.data.prepare import BadFiles, PreparedData
from headstart.data.readers import READ_SETTINGS, read_dataset, with_image_options
from headstart.errors import LeakError, UnknownNameError, UsageError
from headstart.evaluation.classification import AnyEvaluation, evaluate_exported
from headstart.evaluation.classification import evaluate as evaluate_dataset
from headstart.evaluation.domain_shift import REFERENCE, measure_shift
from headstart.evaluation.summary import summarise
from headstart.features.engines import runnable_engine
from headstart.features.extractor import Extractor, Progress
from headstart.models.exported_model import AnyModel, ExportedModel, open_model
from headstart.models.graph_files import suffix_of
from headstart.models.heads.detection_config import SELECTION_SETTINGS
from headstart.models.saving import load
from headstart.models.transfer_model import TransferModel
from headstart.reports.report import Facts
from headstart.workflows.events import Noted, progress_of, shown
from headstart.workflows.run_folder import choose_folder, write_evaluation

__all__ = [
    "EvaluatedModel",
    "evaluate",
    "evaluate_model",
    "labelled_part",
    "require_reportable",
    "short_digest",
    "write_report",
]


@dataclass(frozen=True, kw_only=True, eq=False)
class EvaluatedModel:
    """A saved model, the images that it was evaluated on, and the result.

    Parameters
    ----------
    model : TransferModel or ExportedModel
    prepared : PreparedData
        All images are its test part.
    evaluation : Evaluation, BoxEvaluation or MaskEvaluation
    """

    model: AnyModel
    prepared: PreparedData
    evaluation: AnyEvaluation


OPTIONS = ("allow_overlap", "bad_files", "device", *SELECTION_SETTINGS, *READ_SETTINGS)
"""Settings of an evaluation that decide what is read, and where it runs."""

EPISODE_OPTIONS = ("episodes", "ways", "shots")
"""Flags of the command that are keywords of `headstart.evaluate_episodes`."""


def evaluate(  # noqa: PLR0913 - one argument a flag
    model: AnyModel | str | Path,
    data: object,
    *,
    extractor: Extractor | None = None,
    train: Dataset | None = None,
    seed: int = 0,
    cache: Cache | bool | None = None,
    no_cache: bool = False,
    progress: bool | None = None,
    out: str | Path | None = None,
    **options: Any,
) -> AnyEvaluation:
    """Evaluate a model on labelled images, as ``headstart evaluate`` on the command line.

    Parameters
    ----------
    model : TransferModel, ExportedModel, str or Path
        A model, the folder of a saved one, or an exported file.
    data : str, Path, Dataset or object
        As for `headstart.fit`.
    extractor : Extractor, optional
        Evaluate a dataset with this extractor as it is: nothing is scanned or checked.
    train : Dataset, optional
        Training images, for the baselines; with ``extractor`` only.
    seed : int
        Seed of the bootstrap.
    cache : Cache or bool, optional
        By default the user's; False for an empty one.
    no_cache : bool
        The same as ``cache=False``.
    progress : bool, optional
        Show progress; None does so in a terminal and in a notebook only. An ``extractor`` has its
        own progress, and nothing else is shown.
    out : str or Path, optional
        Folder to write the report and the predictions to; an existing folder is never changed.
    **options
        ``group_by``, ``image_column``, ``label_column``, ``label_separator``, ``masks``,
        ``images``, ``mask_threshold``, ``class_level``, ``label_from``, ``max_pixels``, ``bits``,
        ``window``, ``bands``, ``band_range``, ``no_data``, ``bad_files``, ``allow_overlap``,
        ``device`` and, for boxes, ``nms``, ``class_agnostic_nms`` and ``max_boxes``, as on the
        command line.

    Raises
    ------
    ModelFileError
        If the model's folder is damaged.
    DataError
        If the images cannot be used, or have classes that the model does not know.
    LeakError
        If the model was trained on some of these images.
    UsageError
        If an argument is invalid.

    Examples
    --------
    >>> evaluation = evaluate("runs/photos", "test/")  # doctest: +SKIP
    >>> print(evaluation.metrics["accuracy"])  # doctest: +SKIP
    0.833 [0.746, 0.895]
    """
    _require_options(options)
    if extractor is None:
        if train is not None:
            raise UsageError(
                f"`train` ({len(train)} images) needs `extractor`. Pass extractor=..., or leave "
                "`train` out."
            )
        if out is not None:
            require_reportable(model)
        target, started_at = None if out is None else choose_folder(out, data), perf_counter()
        with open_cache(cache, no_cache=no_cache) as store, shown(progress, None) as notify:
            evaluated = evaluate_model(
                model, data, cache=store, seed=seed, on_progress=progress_of(notify), **options
            )
            for finding in evaluated.prepared.findings:
                notify(Noted(text=f"{finding.severity}: {finding.message}"))
        if target is not None:
            write_report(evaluated, target, perf_counter() - started_at)
        return evaluated.evaluation
    if not isinstance(data, Dataset) or options or out is not None:
        raise UsageError(
            f"`extractor` needs a Dataset and no other settings, got {reprlib.repr(data)} and "
            f"{list(options)}. Leave `extractor` out."
        )
    if isinstance(model, ExportedModel):
        raise UsageError(
            f"`extractor` cannot be used with {model.path}, an exported file, which computes no "
            "features. Leave `extractor` out."
        )
    loaded = model if isinstance(model, TransferModel) else load(model)
    return evaluate_dataset(loaded, data, extractor=extractor, train=train, seed=seed)


def _require_options(options: Mapping[str, Any]) -> None:
    for name, value in options.items():
        if name in EPISODE_OPTIONS:
            raise UsageError(
                f"`{name}`={value!r} is a setting of `headstart.evaluate_episodes`. Use that "
                "function, or remove the setting."
            )
        if name not in OPTIONS:
            raise UnknownNameError(
                "setting", name, (*OPTIONS, "cache", "no_cache", "out", "progress", "seed")
            )


def write_report(
    evaluated: EvaluatedModel, target: Path, seconds: float, *, command: str = ""
) -> Path:
    """Write the report of an evaluation, and return its folder.

    Parameters
    ----------
    evaluated : EvaluatedModel
    target : Path
        If it exists, a folder beside it is written.
    seconds : float
        Duration of the evaluation.
    command : str
        The command line, for the report.

    Raises
    ------
    UsageError
        If the model is an exported file.
    """
    model = evaluated.model
    if isinstance(model, ExportedModel):
        raise _no_report_error(model.path)
    facts = Facts(
        name=evaluated.prepared.data.name,
        prepared=evaluated.prepared,
        model=model,
        evaluation=evaluated.evaluation,
        summary=summarise(evaluated.evaluation),
        seconds={"evaluation": seconds},
        command=command,
    )
    return write_evaluation(target, facts)


def require_reportable(model: object) -> None:
    """Refuse a report of an exported file before anything is evaluated.

    Raises
    ------
    UsageError
        If the model is an exported file, or its path.
    """
    if isinstance(model, ExportedModel):
        raise _no_report_error(model.path)
    if isinstance(model, str | Path) and suffix_of(Path(model)):
        raise _no_report_error(Path(model))


def _no_report_error(path: Path) -> UsageError:
    return UsageError(
        f"A report (--out) cannot be written for {path}, an exported file, which does not hold "
        "the record of the training. Leave --out out, or pass the model folder."
    )


def evaluate_model(
    model: AnyModel | str | Path,
    source: object,
    *,
    cache: Cache,
    bad_files: BadFiles = "error",
    allow_overlap: bool = False,
    device: str = "auto",
    seed: int = 0,
    on_progress: Progress | None = None,
    **settings: Any,
) -> EvaluatedModel:
    """Evaluate a model, or a saved one, on labelled images; with a test part, on that part only.

    Parameters
    ----------
    model, source, cache, bad_files, allow_overlap, device, seed
        As for `evaluate`.
    on_progress : callable, optional
        Called with the step, and the images that are done and in total.
    **settings
        As for `read_dataset`, and the choice of boxes, as `TransferModel.with_selection`.

    Raises
    ------
    ModelFileError
        If the model's folder is damaged.
    DataError
        If the images cannot be used, or have classes that the model does not know.
    LeakError
        If the model was trained on some of these images.
    """
    place = model if isinstance(model, str | Path) else None
    if not isinstance(model, AnyModel):
        model = open_model(model)
    selection = {name: settings.get(name) for name in SELECTION_SETTINGS}
    read_settings = {name: value for name, value in settings.items() if name not in selection}
    model, kind = model.with_selection(**selection), model.task.kind
    if on_progress is not None:
        on_progress("reading the images", 0, 0)
    given = source
    if isinstance(source, Dataset):  # decode the images as in training
        if all(sample.options == DEFAULT_OPTIONS for sample in source.samples):
            source = with_image_options(source, model.image_options)
    else:
        read_settings = {**model.image_options.as_dict(), **_given(read_settings)}
    data = labelled_part(source, kind, "test", cache=cache, bad_files=bad_files, **read_settings)
    if not allow_overlap:
        _require_unseen(model, data.samples)
    if on_progress is not None:
        on_progress(f"evaluating {len(data)} images", 0, 0)
    evaluation = _evaluate_model(model, data, cache, device, seed, on_progress)
    samples = tuple(replace(sample, split="test") for sample in data.samples)
    findings = (
        *_find_seen_copies(model, data.samples, cache),
        *_find_other_domain(model, data.samples, cache, device, (place, given)),
    )
    prepared = PreparedData(data=replace(data, samples=samples), records=(), findings=findings)
    evaluation = replace(evaluation, findings=findings)
    return EvaluatedModel(model=model, prepared=prepared, evaluation=evaluation)


def _evaluate_model(
    model: AnyModel,
    data: Dataset,
    cache: Cache,
    device: str,
    seed: int,
    on_progress: Progress | None,
) -> AnyEvaluation:
    if isinstance(model, ExportedModel):
        model.require_device(device)
        return evaluate_exported(model, data, seed=seed, progress=on_progress)
    engine = runnable_engine(model.engine, device=device)
    extractor = Extractor(cache=cache, engine=engine, device=device, progress=on_progress)
    return evaluate_dataset(model, data, extractor=extractor, seed=seed)


def _given(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if value is not None}


def labelled_part(
    source: object,
    kind: Kind,
    part: str,
    *,
    cache: Cache,
    bad_files: BadFiles = "error",
    **read_settings: Any,
) -> Dataset:
    """Read images with labels of one kind: a part of them, or all if the part is empty.

    Boxes and masks are checked and clipped as in training. The settings are those of
    `read_dataset`.

    Raises
    ------
    DataError
        If the images, boxes or masks cannot be used.
    """
    data = source
    if not isinstance(data, Dataset):
        is_demo = isinstance(data, str) and data.startswith("demo:")  # the name decides its task
        task_kind = kind if kind in DENSE and not is_demo else None
        data = read_dataset(data, **read_settings, min_classes=1, task_kind=task_kind)
    rows = [i for i, sample in enumerate(data.samples) if sample.split == part]
    data = data.subset(rows or range(len(data)))
    data, records = keep_readable(data, scan(data.samples, cache=cache), bad_files=bad_files)
    unclean = data
    data, findings = clean_boxes(data, records)
    require_matching_sizes(findings)
    data, records = keep_boxed(data, records, find_boxless(unclean, data))
    return keep_usable_masks(data, records, check_masks(data, records), bad_files=bad_files)[0]


def short_digest(sample: Sample) -> str:
    """First 64 bits of an image's digest, enough to recognise it.

    >>> short_digest(Sample(image=b"", digest="0123456789abcdef" * 4))
    '0123456789abcdef'
    """
    return digest_of(sample)[:16]


def _find_seen_copies(
    model: AnyModel, samples: Sequence[Sample], cache: Cache
) -> tuple[Finding, ...]:
    """Warn of images that nearly repeat training images; identical ones are an error."""
    known = find_known_copies(
        scan(samples, cache=cache), str(model.record.get("training_descriptors", ""))
    )
    training_digests = set(model.record.get("learned_from", ()))
    rows = [row for row in known if short_digest(samples[row]) not in training_digests]
    if not rows:
        return ()
    names = tuple(samples[row].name for row in rows)
    text = (
        f"{len(rows)} of {len(samples)} images are nearly the same as training images, such as "
        f"{', '.join(names[:3])}. The score may be too high: remove these images."
    )
    return (Finding(kind="near-duplicate", severity="warning", message=text, paths=names),)


def _find_other_domain(
    model: AnyModel,
    samples: Sequence[Sample],
    cache: Cache,
    device: str,
    places: tuple[str | Path | None, object],
) -> tuple[Finding, ...]:
    """Warn of images unlike the training images, and name the command that adapts the model."""
    if isinstance(model, ExportedModel) or REFERENCE not in model.record:
        return ()
    engine = runnable_engine(model.engine, device=device)
    extractor = Extractor(cache=cache, engine=engine, device=device)
    features = extractor.features(model.backbone, samples).values  # cached by the evaluation
    shift = measure_shift(model.record[REFERENCE], features, model.backbone)
    if shift is None or not shift.is_other_domain:
        return ()
    folder = "MODEL" if places[0] is None else quote(str(places[0]))
    is_folder = isinstance(places[1], str | Path) and Path(places[1]).is_dir()
    target = quote(str(places[1])) if is_folder else "FOLDER"
    share, expected = 100 * shift.share, 100 * shift.expected
    text = (
        f"{share:.0f} % of the {len(samples)} images are unlike the training images; of images "
        f"of the same domain {expected:.0f} % would be. These are probably images of another "
        "domain (another camera, light, style or kind of object). Adapt the model to them: "
        f"headstart adapt {folder} --target {target}"
    )
    return (Finding(kind="other-domain", severity="warning", message=text),)


def _require_unseen(model: AnyModel, samples: Sequence[Sample]) -> None:
    training_digests = set(model.record.get("learned_from", ()))
    overlap = [sample.name for sample in samples if short_digest(sample) in training_digests]
    if overlap:
        raise LeakError(
            f"The model was trained on {len(overlap)} of these {len(samples)} images, such as "
            f"{', '.join(overlap[:3])}. Remove them, or pass --allow-overlap to evaluate anyway."
        )
