"""What `import headstart` promises: these names, each of them there, and a light import."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import headstart
from headstart.training.job import Stop

ROOT = Path(__file__).parents[1]

# A name is added or removed here, in __init__.py and in CHANGELOG.md, on purpose.
PUBLIC = [
    "STOP",
    "Augmentation",
    "Backbone",
    "Boxes",
    "Cache",
    "DataError",
    "Dataset",
    "Detections",
    "Evaluation",
    "ExportedModel",
    "FewShot",
    "Finetune",
    "HeadstartError",
    "ImageClassifier",
    "ImageSegmenter",
    "LinearProbe",
    "Loss",
    "Mask",
    "ObjectDetector",
    "Palette",
    "Prediction",
    "Recipe",
    "Regularisation",
    "Run",
    "Sample",
    "Scratch",
    "Segmentation",
    "SetupError",
    "Training",
    "TrainingError",
    "TransferModel",
    "UsageError",
    "__version__",
    "adapt",
    "bench",
    "compare",
    "convert_data",
    "distill",
    "evaluate",
    "evaluate_episodes",
    "explain",
    "export",
    "fit",
    "load",
    "plan",
    "predict",
    "rank",
    "read_dataset",
    "save",
    "serve",
    "show_progress",
    "view_data",
    "watch",
]

HEAVY = {"torch", "torchvision", "timm", "sklearn", "scipy", "PIL", "pyarrow", "huggingface_hub"}


def loaded_by(statement: str) -> set[str]:
    code = f"import json, sys\n{statement}\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in json.loads(done.stdout)}


def test_the_public_names_are_the_agreed_ones() -> None:
    assert headstart.__all__ == PUBLIC


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_is_there(name: str) -> None:
    found = getattr(headstart, name)
    assert name in dir(headstart)
    if name == "STOP":
        assert found is Stop.STOP
    elif name != "__version__":
        assert found.__name__ == name
        assert found.__doc__


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'ImageClasifier'"):
        _ = headstart.ImageClasifier


@pytest.mark.parametrize("module", ["headstart", "headstart.cli.app"])
def test_the_import_is_light(module: str) -> None:
    """`import headstart` and `headstart --help` come at once; what is heavy waits for its use."""
    assert loaded_by(f"import {module}") & HEAVY == set()


def test_the_look_at_loaded_modules_can_see_a_heavy_one() -> None:
    assert "PIL" in loaded_by("from PIL import Image") & HEAVY


def test_one_version_everywhere() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    newest = re.search(r"^## \[?([\d.]+)", changelog, re.MULTILINE)
    assert newest is not None
    assert headstart.__version__ == newest[1]
    assert project["project"]["dynamic"] == ["version"]
    version_file = ROOT / project["tool"]["hatch"]["version"]["path"]
    assert f'__version__ = "{newest[1]}"' in version_file.read_text(encoding="utf-8")
