"""Ranking backbones end to end, through the Python call and the command line."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from sklearn.metrics import accuracy_score
from typer.testing import CliRunner

from headstart.backbones.frozen import FrozenBackbone
from headstart.cache import Cache
from headstart.cli.app import app
from headstart.cli.tables import show_ranking
from headstart.data.dataset import Dataset, Sample
from headstart.data.prepare import prepare
from headstart.data.splits import kfold
from headstart.errors import DataError, UnknownNameError, UsageError, WeightsNotFoundError
from headstart.features.extractor import Extractor
from headstart.metrics.confidence_intervals import (
    Difference,
    Interval,
    paired_proportion_difference,
)
from headstart.selection.ranking import RankedBackbone, Ranking, rank_backbones, summarise_ranking
from headstart.selection.scores import DEFAULTS, Features, Score
from headstart.training.penalty_search import Problem, search_penalty
from headstart.workflows.rank import rank
from headstart.workflows.recipe import Recipe

RECIPE = Recipe(engine="fp32", device="cpu", offline=True)


@pytest.fixture(scope="module")
def backbones(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A tiny network, and the same with all weights zero."""
    from safetensors.torch import save_file

    from headstart.backbones.backbone import load
    from headstart.backbones.catalog import resolve

    folder, names = tmp_path_factory.mktemp("weights"), []
    for name, scale in (("seeing", 1.0), ("blind", 0.0)):
        backbone = load(resolve("timm/test_resnet"), pretrained=False, seed=1)
        state = {k: (v * scale).contiguous() for k, v in backbone.trunk.state_dict().items()}
        save_file(state, folder / f"{name}.safetensors")
        names.append(f"file:{folder / name}.safetensors@timm/test_resnet")
    return names[0], names[1]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("data") / "photos"
    for shade, name in ((60, "dark"), (190, "light")):
        (folder / name).mkdir(parents=True)
        for k in range(40):
            pixels = rng.integers(shade - 50, shade + 50, (40, 40, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{k}.png")
    return folder


@pytest.fixture(scope="module")
def ranking_and_cache(
    backbones: tuple[str, str], photos: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Ranking, Cache]:
    cache = Cache(tmp_path_factory.mktemp("cache"))
    return rank(photos, backbones[::-1], recipe=RECIPE, cache=cache), cache


def test_the_backbone_that_sees_comes_first(
    ranking_and_cache: tuple[Ranking, Cache], backbones: tuple[str, str]
) -> None:
    ranking, _ = ranking_and_cache
    first, last = ranking.rows
    assert (first.backbone, last.backbone) == backbones
    assert first.behind is None
    assert last.behind is not None
    assert last.behind.significant
    assert first.scores["linear-probe"].interval.value > 0.95
    assert last.scores["linear-probe"].interval.value < 0.7
    for name in DEFAULTS:
        better, worse = (row.scores[name].interval for row in ranking.rows)
        if better is not None and name not in {"leep", "nce"}:  # whose source classes are random
            assert better.value > worse.value, name
    assert "significantly better than all others" in ranking.sentences[1]


def test_only_training_images_are_looked_at(
    ranking_and_cache: tuple[Ranking, Cache], photos: Path
) -> None:
    ranking, cache = ranking_and_cache
    train = prepare(photos, cache=cache, test_fraction=0.2, seed=0).train
    assert ranking.images == ranking.available == len(train) == 64
    assert ranking.rows[0].computed + ranking.rows[0].reused == 64


def test_the_probes_number_is_its_accuracy_out_of_fold(
    ranking_and_cache: tuple[Ranking, Cache], backbones: tuple[str, str], photos: Path
) -> None:
    ranking, cache = ranking_and_cache
    train = prepare(photos, cache=cache).train
    backbone = FrozenBackbone.open(backbones[1], offline=True)
    features = Extractor(cache=cache, engine="fp32", device="cpu").features(backbone, train.samples)
    targets = train.targets()
    folds = kfold(targets, 5, blocks=train.groups(), seed=0)
    problem = Problem.of(targets, n_classes=2, kind="multiclass")
    held_out = search_penalty(features.values, problem, folds).held_out
    accuracy = accuracy_score(targets, held_out.argmax(axis=1))
    assert ranking.rows[1].scores["linear-probe"].interval.value == pytest.approx(accuracy)


def test_the_probe_weights_no_classes_because_accuracy_weights_none(
    backbones: tuple[str, str], photos: Path, tmp_path: Path
) -> None:
    """With weights for rare classes, a blind probe would score below the most frequent class."""
    for name, count in (("dark", 8), ("light", 40)):
        (tmp_path / "rare" / name).mkdir(parents=True)
        for k in range(count):
            image = (photos / name / f"{k}.png").read_bytes()
            (tmp_path / "rare" / name / f"{k}.png").write_bytes(image)
    cache = Cache(tmp_path / "cache")
    measures = ["linear-probe"]
    ranking = rank(tmp_path / "rare", backbones, recipe=RECIPE, measure=measures, cache=cache)
    interval = ranking.rows[1].scores["linear-probe"].interval
    assert interval is not None
    train = prepare(tmp_path / "rare", cache=cache).train
    assert interval.value == pytest.approx(np.mean(train.targets() == 1))
    assert ranking.sentences[-1] == (
        f"Always predicting 'light', the most frequent class, would reach {interval.value:.3f}."
    )
    by_log_me = rank(tmp_path / "rare", backbones, recipe=RECIPE, measure=["log-me"], cache=cache)
    assert "Always predicting" not in " ".join(by_log_me.sentences)


def test_kept_features_do_not_look_like_a_quick_backbone(
    ranking_and_cache: tuple[Ranking, Cache], backbones: tuple[str, str], photos: Path
) -> None:
    ranking, cache = ranking_and_cache
    again = rank(photos, backbones[:1], recipe=RECIPE, measure=["knn"], cache=cache).rows[0]
    assert (again.computed, again.reused) == (0, 64)
    assert again.milliseconds > 0.1 * ranking.rows[0].milliseconds
    numbers = [row.scores["knn"].interval for row in (again, ranking.rows[0])]
    assert numbers[0] == numbers[1]


def test_some_images_are_enough(
    ranking_and_cache: tuple[Ranking, Cache], backbones: tuple[str, str], photos: Path
) -> None:
    few = rank(
        photos,
        backbones,
        recipe=RECIPE,
        measure=["log-me"],
        max_images=20,
        cache=ranking_and_cache[1],
    )
    assert (few.images, few.available) == (20, 64)
    assert few.rows[0].backbone == backbones[0]
    assert few.as_dict()["rows"][0]["scores"]["log-me"]["method"] == "block jackknife"


def test_what_cannot_be_ranked_is_refused(
    backbones: tuple[str, str], photos: Path, tmp_path: Path
) -> None:
    with pytest.raises(UnknownNameError, match="resnet18"):
        rank(photos, ["torchvision/resnet81"], recipe=RECIPE)
    with pytest.raises(UnknownNameError, match="Did you mean 'log-me'"):
        rank(photos, backbones, recipe=RECIPE, measure=["logme"])
    with pytest.raises(UsageError, match="must be one or more different names, got file:"):
        rank(photos, [backbones[0], backbones[0]], recipe=RECIPE)
    with pytest.raises(UsageError, match=r"--backbones must .* got none"):
        rank(photos, [], recipe=RECIPE)
    with pytest.raises(UsageError, match=r"--max-images must be .* got 3"):
        rank(photos, backbones, recipe=RECIPE, max_images=3)
    with pytest.raises(WeightsNotFoundError):
        rank(photos, [f"file:{tmp_path}/none.pth@timm/test_resnet"], recipe=RECIPE)
    with pytest.raises(DataError):
        rank(tmp_path / "nowhere", backbones, recipe=RECIPE)
    with pytest.raises(DataError, match="nowhere"):  # before weights are fetched
        rank(tmp_path / "nowhere", [f"file:{tmp_path}/none.pth@timm/test_resnet"], recipe=RECIPE)
    lonely = tmp_path / "lonely" / "dark"
    lonely.mkdir(parents=True)
    for path in sorted((photos / "dark").iterdir())[:12]:
        (lonely / path.name).write_bytes(path.read_bytes())
    with pytest.raises(DataError, match="class"):
        rank(tmp_path / "lonely", backbones, recipe=RECIPE)


def test_a_first_measure_that_no_backbone_has_is_refused() -> None:
    bare = {"leep": Score(measure="leep", missing="no source classes")}
    with pytest.raises(UsageError, match=r"no source classes\. Pass another .*linear-probe"):
        rank_backbones([_row("a", bare)], "leep", _shared())


def test_a_class_of_one_patient_has_no_probe_and_is_told_why(
    backbones: tuple[str, str], photos: Path, tmp_path: Path
) -> None:
    for name in ("dark", "light"):
        for k, path in enumerate(sorted((photos / name).iterdir())[:16]):
            part = "val" if k > 12 else "train"
            patient = k if name == "light" else part
            to = tmp_path / "p" / part / name / f"{patient}_{k}.png"
            to.parent.mkdir(parents=True, exist_ok=True)
            to.write_bytes(path.read_bytes())
    recipe = Recipe(engine="fp32", device="cpu", offline=True, group_by=r"([a-z0-9]+)_\d+\.png")
    source = tmp_path / "p"
    ranking = rank(source, backbones, recipe=recipe, measure=["log-me", "linear-probe"])
    assert ranking.groups == 14
    first = ranking.rows[0].scores
    assert np.isnan(first["log-me"].interval.low)  # no blocks to leave out either
    assert "class" in first["linear-probe"].missing
    with pytest.raises(UsageError, match="linear-probe: Expected"):
        rank(source, backbones, recipe=recipe, measure=["linear-probe"])


def test_several_labels_an_image_are_ranked_by_the_probe(
    backbones: tuple[str, str], tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    samples = []
    for k in range(60):
        is_light, is_red = k % 2, k // 2 % 2
        pixels = rng.integers(0, 60, (32, 32, 3)).astype(np.uint8) + np.uint8(120 * is_light)
        pixels[..., 0] += np.uint8(70 * is_red)
        labels = ("light",) * is_light + ("red",) * is_red
        samples.append(Sample(image=pixels, target=labels))
    data = Dataset(samples=tuple(samples), classes=("light", "red"), kind="multilabel")
    ranking = rank(data, backbones[::-1], recipe=RECIPE, cache=Cache(tmp_path))
    first = ranking.rows[0]
    assert first.backbone == backbones[0]
    assert first.scores["linear-probe"].interval.value > 0.8
    assert all("one class" in first.scores[name].missing for name in DEFAULTS[1:])
    json.dumps(ranking.as_dict(), allow_nan=False)


def _shared() -> Features:
    return Features(values=np.zeros((4, 0)), targets=np.asarray([0, 0, 1, 1]))


def _interval(value: float) -> Interval:
    return Interval(value=value, low=value - 0.05, high=value + 0.05, method="t")


def _row(name: str, scores: dict[str, Score], **changes: Any) -> RankedBackbone:
    defaults: dict[str, Any] = {
        "milliseconds": 12.34,
        "engine": "fp32",
        "seconds": 2.5,
        "computed": 10,
        "reused": 0,
        "megabytes": 18.8,
        "width": 1280,
    }
    return RankedBackbone(backbone=name, scores=scores, **{**defaults, **changes})


def _scores(probe: float, gbc: float) -> dict[str, Score]:
    return {
        "linear-probe": Score(measure="linear-probe", interval=_interval(probe)),
        "gbc": Score(measure="gbc", interval=_interval(gbc)),
        "leep": Score(measure="leep", missing="no source classes"),
    }


def _ranking() -> Ranking:
    gap = Interval(value=0.01, low=-0.02, high=0.04, method="newcombe-paired")
    rows = (
        _row("timm/a_rather_long_name_of_a_network.with_a_tag_in22k", _scores(0.97, -0.2)),
        _row(
            "embedded/[b]",
            _scores(0.96, -1e-7),
            behind=Difference(interval=gap, significant=False),
            milliseconds=3.2,
            computed=0,
            reused=10,
        ),
    )
    return Ranking(
        name="photos [x]",
        task="classification",
        measure="linear-probe",
        images=200,
        available=900,
        groups=70,
        rows=rows,
        sentences=summarise_ranking(rows, ["linear-probe", "gbc", "leep"]),
        seconds=3.0,
    )


def test_sentences_say_who_is_as_good_and_quicker_and_who_dissents() -> None:
    sentences = _ranking().sentences
    assert sentences[0].startswith("timm/a_rather")
    assert sentences[1] == "Not significantly different from it on these images: embedded/[b]."
    fastest = "embedded/[b] is the fastest of them: 3.2 ms per image, compared with 12.3 ms"
    assert fastest in sentences[2]
    assert sentences[3] == "embedded/[b] would be best by gbc."


def test_each_difference_is_at_the_level_of_all_pairs() -> None:
    rng = np.random.default_rng(0)
    image_scores = [(rng.random(80) < share).astype(float) for share in (0.9, 0.8, 0.7)]
    rows = [
        _row(f"{i}", {"knn": Score(measure="knn", interval=_interval(s.mean()), image_scores=s)})
        for i, s in enumerate(image_scores)
    ]
    shared = Features(values=np.zeros((80, 0)), targets=np.arange(80) % 2)
    ranked = rank_backbones(rows[::-1], "knn", shared)
    assert [row.backbone for row in ranked] == ["0", "1", "2"]
    for row, scores in zip(ranked[1:], image_scores[1:], strict=True):
        level = 1 - 0.05 / 3
        difference = paired_proportion_difference(image_scores[0] > 0, scores > 0, level=level)
        assert row.behind == difference


def test_backbones_without_a_number_come_last() -> None:
    image_scores = np.asarray([1.0, 1.0, 0.0, 1.0])
    score = Score(measure="leep", interval=_interval(-0.3), image_scores=image_scores)
    none = Score(measure="leep", missing="no source classes")
    rows = rank_backbones(
        [_row("none", {"leep": none}), _row("some", {"leep": score})], "leep", _shared()
    )
    assert [row.backbone for row in rows] == ["some", "none"]
    assert rows[1].behind is None


def test_the_table_fits_80_columns() -> None:
    text = io.StringIO()
    show_ranking(Console(file=text, width=80, emoji=False), _ranking())
    table = text.getvalue()
    assert max(map(len, table.splitlines()[1:])) <= 80
    for part in (
        "photos [x]", "200 of 900", "70 groups", "0.970 [0.920, 1.020]", "12.3",
        "+0.010 [-0.020, +0.040] =", "cached", "18.8", "1280", "-1.0e-07*", "–",
        "embedded/[b]", "= not significantly different",
    ):  # fmt: skip
        assert part in table


def test_the_verb_prints_a_table_and_json(
    backbones: tuple[str, str], photos: Path, ranking_and_cache: tuple[Ranking, Cache]
) -> None:
    arguments = [str(photos), "--backbones", ",".join(backbones), "--offline", "--engine", "fp32"]
    command = ["rank", *arguments, "--measure", "knn,log-me", "--max-images", "30"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert "Ranking" in result.output
    assert "ms/image" in result.output
    result = CliRunner().invoke(app, [*command, "--json"])
    document = json.loads(result.stdout)
    assert document["measure"] == "knn"
    assert document["images"] == 30
    assert [row["backbone"] for row in document["rows"]] == list(backbones)
    assert document["rows"][1]["behind"]["significant"] is True
    assert set(document["rows"][0]["scores"]) == {"knn", "log-me"}


@pytest.mark.parametrize("source", ["demo:boxes", "demo:masks"])
def test_objects_and_regions_are_ranked(
    backbones: tuple[str, str], source: str, tmp_path: Path
) -> None:
    recipe = Recipe(device="cpu", offline=True, size=64)
    arguments: dict[str, Any] = {
        "recipe": recipe,
        "measure": ["knn", "log-me", "leep"],
        "max_images": 40,
    }
    ranking = rank(source, backbones[::-1], cache=Cache(tmp_path), **arguments)
    first = ranking.rows[0]
    assert first.backbone == backbones[0]
    assert ranking.regions > ranking.images >= 30
    assert ranking.groups <= ranking.images  # regions of an image are not independent
    assert first.scores["log-me"].interval.low < first.scores["log-me"].interval.value
    assert "whole images" in first.scores["leep"].missing
    assert first.milliseconds > 0
    assert first.width == 96
    text = io.StringIO()
    show_ranking(Console(file=text, width=80, emoji=False), ranking)
    assert f"{ranking.regions} {'objects' if 'boxes' in source else 'regions'}" in text.getvalue()


def test_what_is_for_boxes_or_for_classes_only_is_refused(
    backbones: tuple[str, str], photos: Path
) -> None:
    with pytest.raises(UsageError, match="fp32"):
        rank("demo:boxes", backbones, recipe=Recipe(engine="bf16", device="cpu", offline=True))
    with pytest.raises(UsageError, match="crop"):
        rank(photos, backbones, recipe=Recipe(size=64, device="cpu", offline=True))
