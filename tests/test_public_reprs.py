"""Every public value prints as a few lines, whatever it contains."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

import headstart
from headstart.backbones.backbone import load
from headstart.backbones.catalog import resolve
from headstart.backbones.frozen import FrozenBackbone
from headstart.cache import Cache
from headstart.data.checks.images import Finding
from headstart.data.dataset import brief, fingerprint_of
from headstart.data.prepare import PreparedData
from headstart.evaluation.classification import evaluate_probabilities
from headstart.evaluation.detection import BoxEvaluation
from headstart.evaluation.segmentation import MaskEvaluation
from headstart.models.heads.detection import BoxHead
from headstart.models.heads.linear import LinearHead
from headstart.models.heads.segmentation import MaskHead
from headstart.models.tasks import ClassificationTask, DetectionTask, SegmentationTask
from headstart.runtime import versions

LONGEST = 2000
LONGEST_HTML = 150_000
CLASSES = tuple(f"class number {i} with a long name {'x' * 200}" for i in range(300))


def images(n=400):
    return tuple(
        headstart.Sample(image=Path("folder" * 40) / f"{i}.jpg", target=CLASSES[i % 300])
        for i in range(n)
    )


def backbone():
    spec = resolve("timm/test_resnet")
    state = load(spec, pretrained=False).trunk.state_dict()
    return FrozenBackbone(spec=spec, state=state, origin={"from": "a test"})


def model():
    return headstart.TransferModel(
        backbone=backbone(),
        task=ClassificationTask(classes=CLASSES),
        head=LinearHead(weight=np.zeros((300, 96)), bias=np.zeros(300)),
        record={"learned_from": ["0" * 16] * 5000, "versions": versions()},
    )


def exported_model():
    return headstart.ExportedModel(
        path=Path("runs") / ("x" * 200) / "model.onnx",
        task=ClassificationTask(classes=CLASSES),
        preprocess=backbone().spec.preprocess,
        takes_images=True,
        record={"learned_from": ["0" * 16] * 5000},
        description={"classes": CLASSES},
        run=abs,
    )


def evaluation():
    probabilities = np.full((400, 300), 1 / 300)
    targets = np.arange(400) % 300
    names = tuple(sample.name for sample in images())
    return evaluate_probabilities(
        ClassificationTask(classes=CLASSES), probabilities, targets, names=names
    )


def run():
    prepared = PreparedData(data=dataset(), records=(), findings=())
    return headstart.Run(
        folder=Path("runs") / ("x" * 500),
        model=model(),
        evaluation=evaluation(),
        prepared=prepared,
        recipe=headstart.Recipe(method=headstart.Finetune()),
        summary=("A <long> sentence. " * 100,) * 20,
        seconds={},
    )


def dataset():
    return headstart.Dataset(samples=images(), classes=CLASSES, name="n" * 1000)


def head(kind, tensors=50):
    arrays = {f"layer.{i}.weight": np.zeros((64, 64)) for i in range(tensors)}
    return kind(taps=("layer2", "layer3"), shape=SimpleShape(), tensors=arrays)


@dataclasses.dataclass
class SimpleShape:
    kind: str = "some"


def palette():
    return headstart.Palette(codes=tuple((i, name) for i, name in enumerate(CLASSES[:250])))


BOX = (0.0, 1.0, 2.5, 3.5)
VALUES = {
    "Backbone": lambda: backbone().module,
    "Augmentation": headstart.Augmentation,
    "Boxes": lambda: headstart.Boxes(corners=(BOX,) * 900, labels=(CLASSES * 3)[:900]),
    "Dataset": dataset,
    "Detections": lambda: headstart.Detections(
        name="d" * 900,
        size=(640, 480),
        boxes=np.zeros((900, 4), np.float32),
        scores=np.linspace(1, 0, 900, dtype=np.float32),
        labels=np.zeros(900, np.intp),
    ),
    "Evaluation": evaluation,
    "ExportedModel": exported_model,
    "FewShot": headstart.FewShot,
    "Finetune": headstart.Finetune,
    "ImageClassifier": headstart.ImageClassifier,
    "ImageSegmenter": headstart.ImageSegmenter,
    "LinearProbe": headstart.LinearProbe,
    "Loss": headstart.Loss,
    "Mask": lambda: headstart.Mask(source=np.zeros((500, 500)), palette=palette()),
    "ObjectDetector": headstart.ObjectDetector,
    "Palette": palette,
    "Prediction": lambda: headstart.Prediction(
        name="p" * 900,
        label=CLASSES,
        probability=0.5,
        probabilities=dict.fromkeys(CLASSES, 0.5),
    ),
    "Recipe": lambda: headstart.Recipe(method=headstart.Finetune(), group_by="g" * 100),
    "Regularisation": headstart.Regularisation,
    "Run": run,
    "Sample": lambda: headstart.Sample(
        image=np.zeros((900, 900, 3), np.uint8), target=CLASSES, group="g" * 900
    ),
    "Scratch": headstart.Scratch,
    "Segmentation": lambda: headstart.Segmentation(name="s" * 900, mask=np.zeros((900, 900), "u1")),
    "Training": headstart.Training,
    "TransferModel": model,
}
INSIDE = {
    "BoxHead": lambda: head(BoxHead),
    "DetectionTask": lambda: DetectionTask(classes=CLASSES),
    "FrozenBackbone": backbone,
    "LinearHead": lambda: model().head,
    "MaskHead": lambda: head(MaskHead),
    "PreparedData": lambda: run().prepared,
    "SegmentationTask": lambda: SegmentationTask(classes=CLASSES),
}


def test_no_public_class_is_forgotten(tmp_path):
    names = {
        name
        for name in headstart.__all__
        if isinstance(getattr(headstart, name), type) and not name.endswith("Error")
    }
    assert set(VALUES) | {"Cache"} == names
    with Cache(tmp_path) as cache:
        assert len(repr(cache)) < LONGEST


@pytest.mark.parametrize("name", [*VALUES, *INSIDE])
def test_a_value_prints_as_a_few_lines(name):
    value = (VALUES | INSIDE)[name]()
    text = repr(value)
    assert type(value).__name__ == name
    assert text.startswith(f"{name}(")
    assert len(text) < LONGEST
    assert text.count("\n") < 5


def test_evaluations_of_boxes_and_masks_are_short():
    for kind in (BoxEvaluation, MaskEvaluation):
        values = {field.name: (0,) * 9000 for field in dataclasses.fields(kind)}
        values |= {"task": DetectionTask(classes=CLASSES), "metrics": {"map": 0.5}}
        values["findings"] = (Finding(kind="leak", severity="error", message="a leak"),) * 900
        text = repr(kind(**values))
        assert "300 classes" in text
        assert "map 0.5" in text
        assert "error: a leak" in text
        assert "and 897 more" in text
        assert len(text) < LONGEST


def test_the_short_texts_say_what_matters():
    assert "multiclass: 400 images, 300 classes: ('class number 0 " in repr(dataset())
    assert "head linear, 300 classes" in repr(model())
    assert "no head (not fitted)" in repr(dataclasses.replace(model(), head=None))
    prediction = headstart.Prediction(
        name="a.jpg", label="cat", probability=0.75, probabilities={"dog": 0.25, "cat": 0.75}
    )
    assert repr(prediction) == (
        "Prediction(name='a.jpg', label='cat', probability=0.75, "
        "probabilities={'cat': 0.75, 'dog': 0.25})"
    )


def test_a_short_text_is_never_an_identity():
    """Targets that print the same have different fingerprints."""
    many = [headstart.Boxes(corners=(BOX,) * 8, labels=("a",) * 7 + (last,)) for last in "bc"]
    assert repr(many[0]) == repr(many[1])
    assert fingerprint_of(many[0]) != fingerprint_of(many[1])
    masks = [
        headstart.Mask(source=np.zeros((2, 2), "u1"), palette=headstart.Palette(codes=codes))
        for codes in (tuple((i, "a") for i in range(n)) for n in (8, 9))
    ]
    assert brief(masks[0].palette.codes) == brief(masks[1].palette.codes)
    assert fingerprint_of(masks[0]) != fingerprint_of(masks[1])


def test_the_fingerprints_are_those_of_older_releases():
    """Checkpoints of a training that was stopped store them."""
    boxes = headstart.Boxes(corners=((0.0, 0.0, 1.0, 1.0),), labels=("a",))
    assert fingerprint_of(boxes) == (
        "Boxes(corners=((0.0, 0.0, 1.0, 1.0),), labels=('a',), hard=(), size=None)"
    )


def test_a_notebook_shows_escaped_text_and_the_way_to_the_report():
    html = run()._repr_html_()
    assert "A &lt;long&gt; sentence." in html
    assert "<long>" not in html
    assert "and 280 more" in html
    assert f'href="{run().report}"' in html
    assert run().report == run().folder / "report.html"


def test_a_notebook_shows_a_strip_of_test_images():
    name = '"><script>alert(1)</script>'
    rng = np.random.default_rng(0)
    samples = tuple(
        headstart.Sample(
            image=rng.integers(0, 255, (300, 900, 3), dtype=np.uint8),
            target=name,
            split="test",
            title=f"{name}{i}",
        )
        for i in range(30)
    )
    data = headstart.Dataset(samples=samples, classes=(name,), name=name)
    prepared = PreparedData(data=data, records=(), findings=())
    html = dataclasses.replace(run(), prepared=prepared, summary=(name,))._repr_html_()
    assert html.count("<img src=") == 6
    assert "<script" not in html
    assert html.count("&lt;script&gt;") == 2 + 2 * 6  # name, sentence; alt and title of an image
    assert len(html) < LONGEST_HTML
    gone = dataclasses.replace(
        run(), prepared=PreparedData(data=dataset(), records=(), findings=())
    )
    assert "<img" not in gone._repr_html_()


SCRIPT = '"><script>alert(1)</script>'


@pytest.mark.parametrize("name", [*VALUES, "Cache"])
def test_html_for_a_notebook_is_short_whatever_a_value_contains(name, tmp_path):
    if name == "Cache":
        with Cache(tmp_path / SCRIPT.replace("/", "")) as cache:
            html = cache._repr_html_()
    else:
        html = VALUES[name]()._repr_html_()
    assert len(html) < LONGEST_HTML
    if name in {"ImageClassifier", "ImageSegmenter", "ObjectDetector"}:
        return  # scikit-learn's diagram, with a script of its own
    assert "<script" not in html
    if name != "Run":
        assert len(html) < 10_000
        assert html.startswith("<b>")


NAMED = {
    "Boxes": lambda: headstart.Boxes(corners=(BOX,), labels=(SCRIPT,)),
    "Dataset": lambda: headstart.Dataset(
        samples=(headstart.Sample(image=b"", target=SCRIPT),), classes=(SCRIPT,), name=SCRIPT
    ),
    "Detections": lambda: headstart.Detections(
        name=SCRIPT, size=(4, 4), boxes=np.zeros((1, 4)), scores=np.ones(1), labels=np.zeros(1, int)
    ),
    "Mask": lambda: headstart.Mask(
        source=Path(SCRIPT), palette=headstart.Palette(codes=((0, SCRIPT),)), present=(SCRIPT,)
    ),
    "Palette": lambda: headstart.Palette(codes=((0, SCRIPT),)),
    "Prediction": lambda: headstart.Prediction(
        name=SCRIPT, label=SCRIPT, probability=1.0, probabilities={SCRIPT: 1.0}
    ),
    "Recipe": lambda: headstart.Recipe(group_by=SCRIPT),
    "Sample": lambda: headstart.Sample(image=b"", target=SCRIPT, group=SCRIPT, title=SCRIPT),
    "Segmentation": lambda: headstart.Segmentation(name=SCRIPT, mask=np.zeros((2, 2), np.uint8)),
    "TransferModel": lambda: dataclasses.replace(
        model(), task=ClassificationTask(classes=(SCRIPT, "b"))
    ),
}


@pytest.mark.parametrize("name", NAMED)
def test_html_for_a_notebook_escapes_names(name):
    html = NAMED[name]()._repr_html_()
    assert "<script" not in html
    assert "&quot;&gt;&lt;script&gt;alert(1)" in html


def test_html_for_a_notebook_shows_the_content():
    samples = tuple(headstart.Sample(image=b"", target=name) for name in "aab")
    data = headstart.Dataset(samples=samples, classes=("a", "b"), name="pets")
    assert data._repr_html_() == (
        "<b>pets: 3 images, multiclass, 2 classes</b><table><tr><th>a</th><td>2</td></tr>"
        "<tr><th>b</th><td>1</td></tr></table>"
    )
    assert "<p>and 280 more classes</p>" in dataset()._repr_html_()
    assert "<th>backbone</th><td>timm/test_resnet</td>" in model()._repr_html_()
    mask = headstart.Segmentation(name="m", mask=np.array([[0, 0], [0, 3]], np.uint8))
    assert "<b>m: 2 x 2 pixels</b>" in mask._repr_html_().replace("&#x27;", "")
    assert "<th>class 3</th><td>25.0%</td>" in mask._repr_html_()
    assert "<th>train_from</th><td>layer4</td>" in (
        headstart.Finetune(train_from="layer4")._repr_html_()
    )


def test_html_for_evaluations_of_boxes_and_masks():
    for kind in (BoxEvaluation, MaskEvaluation):
        values = {field.name: (0,) * 9000 for field in dataclasses.fields(kind)}
        values |= {"task": DetectionTask(classes=CLASSES), "metrics": {SCRIPT: 0.5}}
        values["findings"] = (Finding(kind="leak", severity="error", message=SCRIPT),)
        html = kind(**values)._repr_html_()
        assert "9000 test images, 300 classes" in html
        assert "<script" not in html
        assert "<td>0.5</td>" in html


def test_a_notebook_shows_scores_and_classes():
    names = ("<b>cat</b>", "dog")
    html = evaluate_probabilities(
        ClassificationTask(classes=names), np.eye(2), np.array([0, 1]), names=("1", "2")
    )._repr_html_()
    assert "&lt;b&gt;cat&lt;/b&gt;" in html
    assert "balanced accuracy" in html
    assert "and 280 more classes" in evaluation()._repr_html_()
