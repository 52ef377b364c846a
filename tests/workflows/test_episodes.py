"""Episodes of classes that a model does not know."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import headstart
from headstart.cli import app as cli
from headstart.errors import DataError, UnknownNameError
from headstart.training.few_shot_heads import HEADS

BACKBONE = "embedded/efficientnet_lite0?crop=64&resize=64"


def write(folder: Path, colours: dict[str, tuple[int, int, int]], n: int) -> Path:
    rng = np.random.default_rng(0)
    for name, colour in colours.items():
        (folder / name).mkdir(parents=True)
        for i in range(n):
            pixels = np.clip(np.asarray(colour) + rng.integers(-50, 51, (64, 64, 3)), 0, 255)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("episodes")
    data = write(folder / "known", {"red": (200, 60, 60), "green": (60, 200, 60)}, 6)
    run = headstart.fit(
        data, method="linear-probe", backbone=BACKBONE, engine="fp32", out=folder / "run",
        cache=False, progress=False,
    )  # fmt: skip
    return run.folder


@pytest.fixture(scope="module")
def novel(tmp_path_factory):
    colours = {"blue": (60, 60, 200), "grey": (120, 120, 120), "white": (240, 240, 240)}
    return write(tmp_path_factory.mktemp("novel") / "new", colours, 18)


def test_every_head_has_a_mean_with_its_interval(model, novel):
    scores = headstart.evaluate_episodes(model, novel, episodes=20, ways=3, shots=2, cache=False)
    assert set(scores) == set(HEADS)
    assert all(score.low <= score.value <= score.high for score in scores.values())
    assert max(score.value for score in scores.values()) > 0.8  # colours are easy
    again = headstart.evaluate_episodes(model, novel, episodes=20, ways=3, shots=2, cache=False)
    assert again == scores


def test_classes_of_the_model_are_refused(model, novel, tmp_path):
    folder = write(tmp_path / "mixed", {"red": (200, 60, 60), "blue": (60, 60, 200)}, 17)
    with pytest.raises(DataError, match=r"trained on 1 of these 2 classes \('red'\)"):
        headstart.evaluate_episodes(model, folder, ways=2, cache=False)


def test_too_few_images_and_unknown_settings_are_named(model, novel):
    with pytest.raises(DataError, match="4 ways and 1 shots need 4 classes"):
        headstart.evaluate_episodes(model, novel, ways=4, cache=False)
    with pytest.raises(UnknownNameError, match="Did you mean 'ways'"):
        headstart.evaluate_episodes(model, novel, way=4, cache=False)


@pytest.mark.parametrize("as_json", [True, False])
def test_the_command_prints_the_same_scores(model, novel, monkeypatch, capsys, as_json):
    arguments = [str(model), str(novel), "--episodes", "20", "--ways", "3", "--shots", "2"]
    flags = ["--no-cache", *(["--json"] if as_json else [])]
    monkeypatch.setattr(sys, "argv", ["headstart", "evaluate", *arguments, *flags])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    printed = capsys.readouterr().out
    scores = headstart.evaluate_episodes(model, novel, episodes=20, ways=3, shots=2, cache=False)
    if as_json:
        values = json.loads(printed)
        assert values["accuracy"]["lda"][0] == pytest.approx(scores["lda"].value)
        assert (values["episodes"], values["ways"], values["shots"]) == (20, 3, 2)
    else:
        assert f"{scores['cosine'].value:.3f}" in printed
