"""Published detectors and segmentation networks by name, offline."""

import hashlib
import os
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models import detection, get_model_weights, segmentation

from headstart.backbones.backbone import load
from headstart.backbones.catalog import resolve
from headstart.backbones.frozen import FrozenBackbone
from headstart.backbones.spec import BackboneSpec
from headstart.data.dataset import Boxes, Dataset, Mask, Palette, Sample
from headstart.errors import (
    UnknownNameError,
    UsageError,
    WeightsMismatchError,
    WeightsNotFoundError,
)
from headstart.models.build import create_model
from headstart.models.heads import pretrained as published
from headstart.models.heads.pretrained import (
    DETECTORS,
    PUBLISHED_HEADS,
    PublishedWeights,
    coco_classes,
    locate_head,
    published_heads,
)
from headstart.models.heads.segmentation import VOC_CLASSES
from headstart.models.inference import detect, segment
from headstart.models.saving import load as load_model
from headstart.models.saving import save

HEIGHT, WIDTH = 64, 96
FASTER, MOBILE = "fasterrcnn_resnet50_fpn", "deeplabv3_mobilenet_v3_large"
CATEGORIES = detection.FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]


def lively(model: nn.Module) -> nn.Module:
    """Random numbers that a deep network carries to its end."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 1e-3)
                module.running_var.uniform_(1e-6, 1e-4)
                module.weight.copy_(0.7 * module.running_var.sqrt())
    return model.eval()


@pytest.fixture(scope="module")
def detector():
    torch.manual_seed(0)
    limits = {"rpn_pre_nms_top_n_test": 300, "rpn_post_nms_top_n_test": 100}
    model = detection.fasterrcnn_resnet50_fpn(
        weights=None,
        weights_backbone=None,
        num_classes=91,
        min_size=HEIGHT,
        max_size=WIDTH,
        box_score_thresh=0.01,
        **limits,
    )
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 0.0  # as the published weights are run
    bias = model.roi_heads.box_predictor.cls_score.bias
    with torch.no_grad():
        bias.normal_(-2, 0.5)
        bias[[i for i, name in enumerate(CATEGORIES) if name == "N/A"]] = -1e4
    return lively(model)


@pytest.fixture(scope="module")
def segmenter():
    torch.manual_seed(0)
    model = getattr(segmentation, MOBILE)(weights=None, weights_backbone=None)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        model.train()(torch.randn(8, 3, HEIGHT, WIDTH))  # statistics of some images
        model.eval()
        out = model(torch.randn(8, 3, HEIGHT, WIDTH))["out"]
        model.classifier[4].bias -= out.mean(dim=(0, 2, 3))  # so that no class is everywhere
    return model


@pytest.fixture(scope="module")
def files(detector, segmenter, tmp_path_factory):
    """Both as files, named as torch.hub keeps them."""
    folder = tmp_path_factory.mktemp("torch") / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    paths = {}
    for name, model in ((FASTER, detector), (MOBILE, segmenter)):
        torch.save(model.state_dict(), folder / "new.pth")
        with (folder / "new.pth").open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        paths[name] = (folder / "new.pth").rename(folder / f"{name}-{sha256[:8]}.pth"), sha256
    return paths


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    for name in list(os.environ):
        if name.startswith("HEADSTART_") or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("HEADSTART_OFFLINE", "1")
    return tmp_path


@pytest.fixture
def in_cache(files, monkeypatch):
    """The table names our files, and they lie where torch keeps its own."""
    for name, (path, _) in files.items():
        rows = (
            published.PUBLISHED_DETECTORS
            if name in published.PUBLISHED_DETECTORS
            else published.PUBLISHED_DECODERS
        )
        monkeypatch.setitem(rows, name, rows[name]._replace(file=path.name))
    monkeypatch.setenv("TORCH_HOME", str(files[FASTER][0].parents[2]))


def bare(backbone: str) -> FrozenBackbone:
    """A backbone of which nothing is needed but its name."""
    return FrozenBackbone(spec=resolve(backbone), state={}, origin={})


def images(n=2):
    rng = np.random.default_rng(3)
    return [rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8) for _ in range(n)]


def boxes_of(classes):
    corners = ((5.0, 5.0, 25.0, 30.0), (40.0, 10.0, 90.0, 60.0))
    samples = [
        Sample(
            image=pixels,
            target=Boxes(corners=corners, labels=(classes[0], classes[-1])),
            title=f"{i}.png",
        )
        for i, pixels in enumerate(images())
    ]
    return Dataset(samples=tuple(samples), classes=tuple(classes), kind="detection")


def masks_of(classes):
    palette = Palette(codes=tuple(enumerate(classes)))
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    samples = [
        Sample(
            image=pixels,
            target=Mask(source=mask, palette=palette, present=(classes[0],)),
            title=f"{i}.png",
        )
        for i, pixels in enumerate(images())
    ]
    return Dataset(samples=tuple(samples), classes=tuple(classes), kind="segmentation")


def model_of(head, classes, backbone="torchvision/resnet50", **options):
    is_mask = "torchvision/deeplab" in head
    data = masks_of(classes) if is_mask else boxes_of(classes)
    return create_model(bare(backbone), data, head=head, size=WIDTH, **options), data


@pytest.mark.usefixtures("in_cache")
def test_a_published_detector_finds_what_torchvisions_finds(detector, files, tmp_path):
    model, data = model_of(f"torchvision/{FASTER}", coco_classes())
    assert model.backbone.spec.preprocess.shape == (HEIGHT, WIDTH)
    detections = detect(model.backbone, model.head, data.samples, device="cpu")
    with torch.no_grad():
        expected = detector([torch.from_numpy(p).permute(2, 0, 1) / 255 for p in images()])
    for ours, theirs in zip(detections, expected, strict=True):
        assert len(ours.boxes) == len(theirs["boxes"]) > 20
        named = np.array([CATEGORIES.index(coco_classes()[i]) for i in ours.labels])
        for box, score, label in zip(
            *(theirs[k][:20].numpy() for k in ("boxes", "scores", "labels")), strict=True
        ):
            near = np.abs(ours.boxes - box).max(axis=1) < 1e-2
            assert (near & (np.abs(ours.scores - score) < 1e-4) & (named == label)).any()
    path, sha256 = files[FASTER]
    assert model.backbone.origin == {"sha256": sha256, "from": "cache", "file": path.name}
    spec = model.backbone.spec
    assert (spec.name, spec.file) == (f"torchvision/{FASTER}", path.name)
    assert spec.licence == "BSD-3-Clause"
    assert "COCO" in spec.data
    assert spec.architecture == "torchvision/resnet50"
    assert BackboneSpec.from_dict(spec.as_dict()) == spec
    assert "anchors_reach" in model.record
    save(model, tmp_path / "saved")  # variances that are lowered below 0 included
    again = load_model(tmp_path / "saved")
    assert again.backbone.fingerprint == model.backbone.fingerprint
    assert again.backbone.spec == spec


def test_a_file_keeps_the_rows_of_equal_names_and_the_proposals_unless_told(detector, files):
    name = f"file:{files[FASTER][0]}@torchvision/{FASTER}"
    old, _ = model_of(f"{name}?proposals=[20,10]", ["blob", "Dog"])
    new, data = model_of(f"{name}?rpn=new", ["blob", "Dog"])
    theirs = {key: value.numpy() for key, value in detector.state_dict().items()}
    score = "box_predictor.cls_score.weight"
    dog = theirs[f"roi_heads.{score}"][CATEGORIES.index("dog")]
    for model in (old, new):
        rows = model.head.tensors[f"roi.{score}"]
        assert rows.shape == (3, 1024)
        assert np.array_equal(rows[2], dog)
        assert not (theirs[f"roi_heads.{score}"] == rows[1]).all(axis=1).any()
        hidden = "box_head.fc6.weight"
        assert np.array_equal(model.head.tensors[f"roi.{hidden}"], theirs[f"roi_heads.{hidden}"])
        assert torch.equal(
            model.backbone.state["layer4.0.conv1.weight"],
            detector.state_dict()["backbone.body.layer4.0.conv1.weight"],
        )
    assert old.head.shape.options["proposals"] == (20, 10)
    assert old.head.shape.sizes == tuple((32.0 * 2**i,) for i in range(5))
    proposals = [key for key in old.head.tensors if key.startswith("rpn_head.")]
    assert proposals
    published_too = {key.removeprefix("rpn.head."): v for key, v in theirs.items()}
    for key in proposals:
        was = published_too[key.removeprefix("rpn_head.")]
        assert np.array_equal(old.head.tensors[key], was)
        if key.endswith("weight"):
            assert not np.array_equal(new.head.tensors[key], was)
    assert new.head.shape.sizes != old.head.shape.sizes  # fitted to the boxes
    assert new.record["anchors_reach"] >= old.record["anchors_reach"]
    assert len(detect(new.backbone, new.head, data.samples, device="cpu")) == len(data)
    assert (old.backbone.origin["from"], old.backbone.spec.licence) == ("path", "")


@pytest.mark.usefixtures("in_cache")
def test_a_published_network_gives_the_masks_of_torchvisions(segmenter, tmp_path):
    needed = PUBLISHED_HEADS["segmentation"][MOBILE].backbone
    model, data = model_of(f"torchvision/{MOBILE}", VOC_CLASSES, needed)
    spec = model.backbone.spec
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (spec.preprocess.mean, spec.preprocess.std))
    preset = get_model_weights(MOBILE).DEFAULT.transforms()
    assert (spec.preprocess.mean, spec.preprocess.std) == (tuple(preset.mean), tuple(preset.std))
    for prediction, pixels in zip(
        segment(model.backbone, model.head, data.samples), images(), strict=True
    ):
        with torch.no_grad():
            x = (torch.from_numpy(pixels).permute(2, 0, 1) / 255 - mean) / std
            logits = segmenter(x[None])["out"][0]
        assert len(np.unique(prediction.mask)) > 1
        assert (prediction.mask == logits.argmax(dim=0).numpy()).mean() > 0.999
    save(model, tmp_path / "saved")
    again = load_model(tmp_path / "saved")
    assert again.backbone.spec == spec
    assert again.backbone.origin == model.backbone.origin
    two, _ = model_of(f"torchvision/{MOBILE}", ("background", "blob", "CAT"), needed)
    rows = two.head.tensors["classifier.weight"]
    theirs = segmenter.state_dict()["classifier.4.weight"]
    assert np.array_equal(rows[[0, 2]], theirs[[0, VOC_CLASSES.index("cat")]].numpy())


# ------------------------------------------------------------------- nothing wrong is taken


@pytest.mark.parametrize(("head", "other_backbone"), [(FASTER, "embedded/efficientnet_lite0"),
                                             (FASTER, "timm/resnet50"),
                                             ("deeplabv3_resnet50", "timm/resnet50")])  # fmt: skip
def test_another_backbone_is_refused_with_what_to_type(head, other_backbone):
    kind = "segmentation" if "deeplab" in head else "detection"
    with pytest.raises(UsageError, match="--backbone") as caught:
        model_of(f"torchvision/{head}", ("background", "dog"), other_backbone)
    needed = str(caught.value).rpartition("--backbone ")[2].strip("'")
    assert needed == PUBLISHED_HEADS[kind][head].backbone
    with pytest.raises(WeightsNotFoundError):  # what it says is enough to come further
        model_of(f"torchvision/{head}", ("background", "dog"), needed)


@pytest.mark.parametrize("kind", PUBLISHED_HEADS)
def test_a_missing_file_says_where_to_put_it(kind, home):
    for name in published_heads(kind):
        with pytest.raises(WeightsNotFoundError) as caught:
            locate_head(name, kind)
        message = str(caught.value)
        assert PUBLISHED_HEADS[kind][name.partition("/")[2]].file in message
        assert str(home / "hub" / "checkpoints") in message
    with pytest.raises(WeightsNotFoundError, match=r"gone\.pth"):
        locate_head(f"file:gone.pth@{name}", kind)


def test_a_mirror_is_asked_and_its_answer_verified(home, monkeypatch):
    content = b"some bytes"
    sha256 = hashlib.sha256(content).hexdigest()
    served = home / "served"
    served.mkdir()
    row = PublishedWeights("torchvision/resnet50", f"good-{sha256[:8]}.pth", 1.0)
    (served / row.file).write_bytes(content)
    (served / "bad-00000000.pth").write_bytes(content)

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(served)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        monkeypatch.setenv("HEADSTART_MIRROR", f"http://127.0.0.1:{server.server_port}")
        name = f"torchvision/{FASTER}"
        monkeypatch.setitem(published.PUBLISHED_DETECTORS, FASTER, row)
        with pytest.raises(WeightsNotFoundError, match="offline"):
            model_of(name, ["dog"])
        weights = locate_head(name, "detection", offline=False)
        assert (weights.origin, weights.sha256, weights.path.read_bytes()) == (
            "mirror",
            sha256,
            content,
        )
        with pytest.raises(WeightsMismatchError, match=row.file):  # no tensors
            model_of(name, ["dog"], offline=False)
        monkeypatch.setitem(
            published.PUBLISHED_DETECTORS, FASTER, row._replace(file="bad-00000000.pth")
        )
        with pytest.raises(WeightsMismatchError, match="sha256"):
            model_of(name, ["dog"], offline=False)
    finally:
        server.shutdown()
        server.server_close()


def test_other_tensors_are_refused(files, tmp_path):
    mobile, faster = files[MOBILE][0], files[FASTER][0]
    with pytest.raises(WeightsMismatchError, match=FASTER):
        model_of(f"file:{mobile}@torchvision/{FASTER}", ["dog"])
    with pytest.raises(WeightsMismatchError, match="DeepLabV3"):
        model_of(
            f"file:{faster}@torchvision/{MOBILE}",
            VOC_CLASSES,
            PUBLISHED_HEADS["segmentation"][MOBILE].backbone,
        )
    with pytest.raises(WeightsMismatchError, match="deeplabv3_resnet50"):  # of a sibling
        model_of(
            f"file:{mobile}@torchvision/deeplabv3_resnet50",
            VOC_CLASSES,
            "timm/resnet50?output_stride=8",
        )
    state = torch.load(mobile, weights_only=True)
    state.pop("backbone.0.0.weight")
    torch.save(state, tmp_path / "holed.pth")
    with pytest.raises(WeightsMismatchError, match="missing"):
        model_of(
            f"file:{tmp_path}/holed.pth@torchvision/{MOBILE}",
            VOC_CLASSES,
            PUBLISHED_HEADS["segmentation"][MOBILE].backbone,
        )


@pytest.mark.parametrize(("head", "option"), [
    (f"torchvision/{FASTER}?channels=64", "channels"),
    (f"torchvision/{FASTER}?sizes=[[8],[16],[32],[64],[128]]", "sizes"),
    (f"torchvision/{FASTER}?rpn=maybe", "rpn"),
    (f"torchvision/{FASTER}?seed=1", "seed"),
    ("torchvision/fcos_resnet50_fpn?rpn=new", "rpn"),
])  # fmt: skip
def test_options_that_would_change_tensors_are_refused(head, option):
    with pytest.raises(UsageError, match=option):
        model_of(head, ["dog"])


@pytest.mark.parametrize("head", [
    "torchvision/fasterrcnn_resnet50", f"file:{FASTER}.pth", f"file:w.pth@{FASTER}",
    f"x@torchvision/{FASTER}", "torchvision/deeplabv3_resnet50"[:-1],
])  # fmt: skip
def test_names_of_nothing_are_refused(head):
    with pytest.raises(UnknownNameError, match="torchvision/"):
        create_model(bare("torchvision/resnet50"), boxes_of(["dog"]), head=head, size=WIDTH)


def test_a_head_is_not_given_for_the_other_task():
    with pytest.raises(UnknownNameError):
        create_model(
            bare("torchvision/resnet50"),
            masks_of(("background", "dog")),
            head=f"torchvision/{FASTER}",
        )


# -------------------------------------------------------------- the table says what is published


def test_the_table_is_torchvisions():
    assert set(published.PUBLISHED_DETECTORS) == set(DETECTORS)
    for rows in PUBLISHED_HEADS.values():
        for name, row in rows.items():
            (entry,) = get_model_weights(name)
            assert entry.url.endswith(f"/{row.file}")
            assert entry.meta["_file_size"] == pytest.approx(row.megabytes, abs=0.06)


def test_the_maps_of_the_named_backbones_are_those_of_the_networks():
    backbone = load(
        PUBLISHED_HEADS["segmentation"]["deeplabv3_mobilenet_v3_large"].backbone, pretrained=False
    )
    assert backbone.stages[-1].stride == 16
