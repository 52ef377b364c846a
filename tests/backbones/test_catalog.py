"""The table of backbones against the libraries' own, and the grammar of names."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from headstart.backbones.catalog import names, published_accuracy, resolve
from headstart.backbones.spec import BackboneSpec
from headstart.errors import UnknownNameError, UsageError

GOLDEN = Path(__file__).parents[1] / "golden" / "backbones.json"
REQUIRED_TORCHVISION_NAMES = """
resnet18 resnet50 resnet101 resnet152 vgg16 vgg19 efficientnet_b0 efficientnet_b1 efficientnet_b2
efficientnet_b3 efficientnet_b4 inception_v3 mobilenet_v2 mobilenet_v3_large mobilenet_v3_small
densenet121 convnext_tiny regnet_y_1_6gf vit_b_16
"""


def tracker_names(source):
    return [name for name in names() if name.startswith(f"{source}/")]


def test_the_table_is_unchanged():
    """Saved models depend on weights, preprocessing and stages: change them only on purpose.

    To accept one: json.dumps({name: resolve(name).as_dict() ...}, indent=1) into the file.
    """
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    assert golden == {name: resolve(name).as_dict() for name in names()}


def test_the_table_has_the_documented_backbones():
    assert {f"torchvision/{name}" for name in REQUIRED_TORCHVISION_NAMES.split()} <= set(names())
    assert "embedded/efficientnet_lite0" in names()
    assert all(resolve(name).stages and resolve(name).width for name in names())


@pytest.mark.parametrize("name", tracker_names("torchvision"))
def test_rows_of_torchvision_match_its_records(name):
    from torchvision.models import get_model_weights

    spec = resolve(name)
    published = get_model_weights(spec.architecture.removeprefix("torchvision/"))
    entry = published.IMAGENET1K_V1 if spec.tag == "v1" else published.DEFAULT
    theirs, ours = entry.transforms(), spec.preprocess
    assert entry.url.rpartition("/")[2] == spec.file
    assert spec.file == f"{spec.file.rpartition('-')[0]}-{spec.sha256}.pth"
    assert len(spec.sha256) == 8
    assert (theirs.resize_size, theirs.crop_size) == ([ours.resize], [ours.crop])
    assert theirs.interpolation.value == ours.interpolation
    assert (tuple(theirs.mean), tuple(theirs.std)) == (ours.mean, ours.std)
    assert entry.meta["_file_size"] == pytest.approx(spec.megabytes, abs=0.06)


@pytest.mark.parametrize("name", tracker_names("timm"))
def test_rows_of_timm_match_its_records(name):
    import timm
    from timm.data import create_transform, resolve_data_config

    spec = resolve(name)
    config = timm.get_pretrained_cfg(name.removeprefix("timm/"))
    assert (config.hf_hub_id, config.license) == (spec.repo, spec.licence.lower())
    assert config.crop_mode == "center"
    data = resolve_data_config(pretrained_cfg=config.to_dict())
    resize, crop = create_transform(**data).transforms[:2]
    assert (resize.size, crop.size[0]) == (spec.preprocess.resize, spec.preprocess.crop)
    assert data["interpolation"] == spec.preprocess.interpolation
    assert (data["mean"], data["std"]) == (spec.preprocess.mean, spec.preprocess.std)


@pytest.mark.parametrize("name", [*names(), "file:a@b.pth@resnet18?crop=96"])
def test_names_and_descriptions_round_trip(name):
    spec = resolve(name)
    assert spec.name == name
    assert BackboneSpec.from_dict(json.loads(json.dumps(spec.as_dict()))) == spec


@pytest.mark.parametrize(
    ("short", "full"),
    [
        ("resnet18", "torchvision/resnet18"),
        ("resnet50.v1", "torchvision/resnet50.v1"),
        ("efficientnet_lite0", "embedded/efficientnet_lite0"),
        ("mobilenetv2_100", "timm/mobilenetv2_100"),
        ("timm/resnet50.a1_in1k", "timm/resnet50"),
        ("test_resnet", "timm/test_resnet"),
    ],
)
def test_short_names_and_synonyms(short, full):
    assert resolve(short).name == full


def test_any_model_of_timm_is_known():
    spec = resolve("timm/resnet18.a1_in1k")
    assert (spec.repo, spec.file, spec.tag) == (
        "timm/resnet18.a1_in1k",
        "model.safetensors",
        "a1_in1k",
    )
    assert spec.architecture == "timm/resnet18"
    assert (spec.preprocess.resize, spec.preprocess.crop) == (235, 224)
    assert resolve("timm/regnetz_005").file == ""  # it has no published weights


TIMM_MODELS = (
    "resnet18.a1_in1k",
    "convnext_base.fb_in22k_ft_in1k_384",
    "swin_tiny_patch4_window7_224",
)


@pytest.mark.parametrize("name", TIMM_MODELS)
def test_preprocessing_of_timm_models_is_timms(name):
    from timm import get_pretrained_cfg
    from timm.data import create_transform, resolve_data_config

    data = resolve_data_config(pretrained_cfg=get_pretrained_cfg(name).to_dict())
    size = create_transform(**data).transforms[0].size
    ours = resolve(f"timm/{name}").preprocess
    squash = not isinstance(size, int)
    assert squash == (name == TIMM_MODELS[1])
    assert ours.fit == ("squash" if squash else "crop")
    assert ours.resize == (size[0] if squash else size)


def test_files_carry_the_preprocessing_of_their_architecture():
    spec = resolve("file:my/w.pth@torchvision/inception_v3")
    like = resolve("torchvision/inception_v3")
    assert (spec.source, spec.file, spec.sha256) == ("file", "my/w.pth", "")
    assert (spec.preprocess, spec.stages) == (like.preprocess, like.stages)
    assert spec.architecture == like.architecture
    assert spec.licence == ""


def test_options_change_preprocessing_or_the_network():
    spec = resolve("file:w@mobilenetv2_100?pad_type=same&mean=0.5&std=0.1,0.2,0.3&rate=2&on=true")
    assert spec.preprocess.mean == (0.5, 0.5, 0.5)
    assert spec.preprocess.std == (0.1, 0.2, 0.3)
    assert spec.model_options == (("on", True), ("pad_type", "same"), ("rate", 2))
    larger = resolve("resnet18?crop=448")
    assert (larger.preprocess.crop, larger.preprocess.resize) == (448, 512)
    assert larger.stages == resolve("resnet18").stages
    assert resolve(larger.name) == larger
    both = resolve("resnet18?crop=128&resize=128&interpolation=bicubic").preprocess
    assert (both.crop, both.resize, both.interpolation) == (128, 128, "bicubic")
    uncropped = resolve("resnet18?canvas=96,160")
    assert uncropped.preprocess.shape == uncropped.preprocess.canvas == (96, 160)
    assert resolve(uncropped.name) == uncropped


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("resnet81", "resnet18"),
        ("torchvision/resnet51", "torchvision/resnet5"),
        ("timm/mobilenetv2_10", "mobilenetv2_1"),
        ("embeded/efficientnet_lite0", "embedded/efficientnet_lite0"),
    ],
)
def test_unknown_names_get_the_nearest(name, nearest):
    with pytest.raises(UnknownNameError, match=f"Did you mean '.*{nearest}"):
        resolve(name)


@pytest.mark.parametrize("name", ["nope", "nope/nope"])
def test_unknown_names_with_nothing_near_get_the_list(name):
    with pytest.raises(UnknownNameError, match="Run `headstart backbones`") as caught:
        resolve(name)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    "name",
    [
        "file:weights.pth",
        "file:@resnet18",
        "file:weights.pth@",
        "resnet18?crop=big",
        "resnet18?mean=0.1,0.2",
        "resnet18?canvas=96",
        "resnet18?canvas=96,a",
        "resnet18?crop=300&resize=256",
        "resnet18?interpolation=nearest",
    ],
)
def test_names_that_cannot_be_read(name):
    with pytest.raises(UsageError, match="Expected"):
        resolve(name)


@pytest.mark.parametrize(
    "damage", [{"stages": 3}, {"width": None, "extra": 1}, {"preprocess": {}}, {"stages": [["a"]]}]
)
def test_damaged_descriptions_are_refused(damage):
    with pytest.raises(UsageError, match="Expected"):
        BackboneSpec.from_dict(resolve("resnet18").as_dict() | damage)
    with pytest.raises(UsageError, match="Expected"):
        BackboneSpec.from_dict({})


def test_the_table_imports_no_library():
    code = (
        "import sys; from headstart.backbones.catalog import names, resolve\n"
        "[resolve(name) for name in names()]\n"
        "assert not {'torch', 'torchvision', 'timm'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_name_can_end_the_network_early():
    spec = resolve("resnet18?crop=64&until=layer2")
    assert spec.until == "layer2"
    assert spec.width == 128
    assert spec.preprocess.crop == 64
    assert resolve(spec.name) == spec
    assert BackboneSpec.from_dict(spec.as_dict()) == spec
    assert spec.ending_at("layer1").name == "torchvision/resnet18?crop=64&until=layer1"
    with pytest.raises(UnknownNameError, match="layer3"):
        resolve("resnet18?until=layre3")
    file = resolve("file:a/w.pth@torchvision/resnet18?until=layer3")
    assert file.file == "a/w.pth"
    assert file.width == 256


def test_an_end_without_a_stage_is_refused():
    with pytest.raises(UsageError, match="until"):
        resolve("resnet18?until=")


@pytest.mark.parametrize("name", tracker_names("torchvision"))
def test_the_accuracy_is_the_one_that_torchvision_publishes(name):
    from torchvision.models import get_model_weights

    spec = resolve(name)
    published = get_model_weights(spec.architecture.removeprefix("torchvision/"))
    weights = next(entry for entry in published if entry.url.endswith(spec.file))
    assert published_accuracy(name) == weights.meta["_metrics"]["ImageNet-1K"]["acc@1"]


def test_no_accuracy_is_made_up():
    stated = [name for name in names() if published_accuracy(name) is not None]
    assert stated == [name for name in names() if name.startswith("torchvision/")]
