"""Commands that list and report: evaluate, backbones and compare."""

import json
import socket
import sys

import numpy as np
import pytest
from PIL import Image

from headstart.cli import app as cli
from headstart.workflows.recipe import Recipe


def run(capsys, *arguments):
    """Exit code, standard output with single spaces, and standard error of one command."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["headstart", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
    captured = capsys.readouterr()
    return stop.value.code, captured.out, " ".join(captured.err.split())


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Two classes, and a third of the dark images in the folder of the bright ones."""
    root = tmp_path_factory.mktemp("reports") / "photos"
    rng = np.random.default_rng(0)
    for kind, base in (("bright", 128), ("dark", 0)):
        (root / kind).mkdir(parents=True)
        for i in range(12):
            is_wrong = kind == "bright" and i < 4
            pixels = rng.integers(0, 128, (40, 40, 3)) + (0 if is_wrong else base)
            Image.fromarray(pixels.astype(np.uint8)).save(root / kind / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    from headstart.cache import Cache
    from headstart.methods.linear_probe import LinearProbe
    from headstart.workflows.fit import fit

    root = tmp_path_factory.mktemp("reports-run")
    rng = np.random.default_rng(1)
    for kind, base in (("bright", 128), ("dark", 0)):
        (root / "photos" / kind).mkdir(parents=True)
        for i in range(10):
            pixels = rng.integers(base, base + 128, (40, 40, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(root / "photos" / kind / f"{i}.png")
    recipe = Recipe(engine="fp32", device="cpu", method=LinearProbe())
    return fit(root / "photos", recipe, out=root / "run", cache=Cache(root / "cache")).folder


def test_evaluate_prints_confusions_and_the_worst_images(model, photos, capsys):
    code, out, err = run(capsys, "evaluate", model, photos)
    assert (code, err) == (0, "")
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert "4 of 12 images of bright: predicted as dark" in lines
    worst = lines[lines.index("Worst images") + 1 :]
    assert len(worst) == 4
    assert {line.partition(":")[0] for line in worst} == {f"bright/{i}.png" for i in range(4)}
    assert all(line.endswith("labelled bright") for line in worst)


def test_evaluate_writes_the_page_of_fit(model, photos, capsys, tmp_path):
    target = tmp_path / "evaluation"
    code, out, err = run(capsys, "evaluate", model, photos, "--out", target)
    assert (code, err) == (0, "")
    files = {"report.html", "report.json", "predictions.csv"}
    assert {path.name for path in target.iterdir()} == files
    assert all(name in out for name in files)
    document = json.loads((target / "report.json").read_text())
    assert document["evaluation"]["images"] == 24
    assert document["data"]["parts"] == {"test": {"bright": 12, "dark": 12}}
    page = (target / "report.html").read_text()
    assert "bright/0.png" in page
    code, out, _ = run(capsys, "evaluate", model, photos, "--out", target, "--json")
    assert code == 0
    assert json.loads(out)["folder"] == f"{target}-2"  # nothing is overwritten
    assert len((target / "predictions.csv").read_text().splitlines()) == 25


def test_evaluate_checks_the_folder_first(model, photos, capsys, monkeypatch):
    monkeypatch.setattr("headstart.workflows.evaluate.evaluate_model", lambda *a, **k: 1 / 0)
    code, _, err = run(capsys, "evaluate", model, photos, "--out", "..")
    assert code == 1
    assert "--out '..'" in err


def test_backbones_is_a_table_of_80_columns(capsys, monkeypatch, tmp_path):
    def refuse(*arguments, **options):
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    checkpoints = tmp_path / "hub" / "checkpoints"
    checkpoints.mkdir(parents=True)
    (checkpoints / "resnet18-f37072fd.pth").touch()
    code, out, _ = run(capsys, "backbones")
    assert code == 0
    assert all(len(line.rstrip()) <= 80 for line in out.splitlines())
    rows = {line.split()[0]: line.split() for line in out.splitlines() if line.strip()}
    assert rows["embedded/efficientnet_lite0"][1:6] == ["224", "19", "–", "yes", "Apache-2.0"]
    assert rows["torchvision/resnet18"][1:6] == ["224", "45", "69.8", "yes", "BSD-3"]
    assert rows["torchvision/vgg16"][4] == "no"
    _, out, _ = run(capsys, "backbones", "--json")
    documents = {row["name"]: row for row in json.loads(out)}
    assert documents["torchvision/resnet18"] == {
        "name": "torchvision/resnet18",
        "trained_on": "ImageNet-1k",
        "licence": "BSD-3-Clause",
        "source": "torchvision",
        "input": [224, 224],
        "megabytes": 44.7,
        "imagenet_top1": 69.758,
        "on_disk": True,
    }


def compare(capsys, photos, out, *more):
    given = ("--methods", "probe,auto", "--folds", "0", "--budget", "0", "--offline")
    return run(capsys, "compare", photos, "--out", out, *given, *more)


def test_compare_says_how_much_it_will_train(photos, capsys, tmp_path):
    code, out, _ = compare(capsys, photos, tmp_path / "c", "--seeds", "2")
    text = " ".join(out.split())
    assert code == 0
    assert "Note 4 trainings will run: a new split per seed, 20% test images, 2 seeds." in text
    assert "Too few seeds: 2." in text
    assert "--seeds 3" in text
    assert text.index("trainings will run") < text.index("1/4")


def test_compare_is_quiet_on_request(photos, capsys, tmp_path):
    code, out, _ = compare(capsys, photos, tmp_path / "c", "--seeds", "3", "--quiet")
    titles = [line.split()[0] for line in out.splitlines() if not line.startswith(" ")]
    assert code == 0
    assert titles == ["Summary", "Written:"]
