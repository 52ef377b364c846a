import numpy as np
import pytest

from headstart.backbones.freezing import fingerprint, freeze
from headstart.cache import Cache
from headstart.errors import MissingExtraError, SetupError, UnknownNameError
from headstart.features import engines
from headstart.features.engines import (
    available_engines,
    choose_engine,
    compile_engine,
    engine_measuring_pays,
    measuring_pays,
    recall_choice,
    runnable_engine,
)


@pytest.fixture(scope="module")
def backbone():
    from dataclasses import replace

    from headstart.backbones.backbone import load
    from headstart.backbones.catalog import resolve

    spec = resolve("torchvision/resnet18")
    small = replace(spec.preprocess, resize=32, crop=32)
    return freeze(load(replace(spec, preprocess=small), pretrained=False))


def pixels(n=4):
    return np.random.default_rng(0).integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)


def relative(a, b):
    return np.linalg.norm(a - b) / np.linalg.norm(b)


@pytest.mark.parametrize("engine", engines.ENGINES)
def test_every_engine_gives_the_networks_features(backbone, engine):
    if engine not in available_engines("cpu"):
        with pytest.raises(SetupError):
            compile_engine(backbone, engine, device="cpu")
        return
    import torch

    batch = backbone.spec.preprocess.normalise(torch.from_numpy(pixels()).permute(0, 3, 1, 2))
    with torch.inference_mode():
        expected = backbone.pooled(batch).numpy()
    features = compile_engine(backbone, engine, device="cpu")(pixels())
    assert features.dtype == np.float32
    assert relative(features, expected) < (0.05 if engine.endswith("bf16") else 1e-4)


@pytest.mark.parametrize("engine", engines.ENGINES)
def test_an_images_bits_do_not_depend_on_the_images_beside_it(backbone, engine):
    if engine not in available_engines("cpu"):
        pytest.skip("this machine has no such engine")
    run, several = compile_engine(backbone, engine, device="cpu"), pixels(11)
    together = run(several)
    assert together.shape == (11, backbone.width)
    np.testing.assert_array_equal(run(several[:1]), together[:1])
    np.testing.assert_array_equal(run(several[5:8]), together[5:8])
    np.testing.assert_array_equal(run(several[::-1]), together[::-1])


def test_compiling_leaves_the_backbone_in_float32(backbone):
    if "bf16" not in available_engines("cpu"):
        pytest.skip("this processor has no bf16 instructions")
    before = fingerprint(backbone.state_dict())
    compile_engine(backbone, "bf16", device="cpu")(pixels())
    assert fingerprint(backbone.state_dict()) == before


def test_a_quick_engine_that_is_wrong_is_not_chosen(backbone, tmp_path, monkeypatch):
    right = np.ones((4, 3), dtype=np.float32)
    answers = {"fp32": right, "bf16": right * 1.5, "openvino": right * 1.01}
    delays = {"fp32": 0.02, "bf16": 0.0, "openvino": 0.005}

    def fake(backbone, engine, *, device):
        import time

        def forward(batch):
            time.sleep(delays[engine])
            return answers[engine]

        return engines.CompiledEngine(forward=forward)

    monkeypatch.setattr(engines, "available_engines", lambda device: tuple(answers))
    monkeypatch.setattr(engines, "compile_engine", fake)
    cache = Cache(tmp_path)
    settings = {"device": "cpu", "cache": cache, "engines": tuple(answers)}
    choice = choose_engine(backbone, pixels(), **settings)
    assert choice.engine == "openvino"
    assert choice.distances["bf16"] == pytest.approx(0.5)
    remembered = recall_choice(backbone.spec.name, **settings)
    assert remembered.engine == "openvino"
    assert remembered.remembered
    assert "remembered" in remembered.describe()


def test_features_that_are_not_finite_are_wrong():
    reference = np.ones((2, 2), dtype=np.float32)
    assert engines._largest_distance(np.full((2, 2), np.nan, dtype=np.float32), reference) == np.inf


def test_nothing_is_remembered_for_another_backbone(tmp_path):
    settings = {"device": "cpu", "cache": Cache(tmp_path), "engines": ("fp32",)}
    assert recall_choice("torchvision/resnet18", **settings) is None


def test_few_images_do_not_wait_for_a_compiler(monkeypatch):
    monkeypatch.setattr(engines, "available_engines", lambda device: ("fp32", "bf16", "openvino"))
    assert engines.candidate_engines("cpu", 499) == ("fp32", "bf16")
    assert engines.candidate_engines("cpu", 500) == ("fp32", "bf16", "openvino")


def test_an_unknown_engine_gets_the_nearest_name(backbone):
    with pytest.raises(UnknownNameError, match="Did you mean 'bf16'"):
        compile_engine(backbone, "bf1", device="cpu")


def test_an_engine_that_is_not_installed_says_how_to_get_it(backbone, monkeypatch):
    monkeypatch.setattr(engines, "_has_openvino", lambda: False)
    with pytest.raises(MissingExtraError, match=r"headstart\[openvino\]"):
        compile_engine(backbone, "openvino", device="cpu")


def test_a_model_from_another_machine_falls_back_to_float32(monkeypatch):
    monkeypatch.setattr(engines, "available_engines", lambda device: ("fp32",))
    assert runnable_engine("bf16", device="cpu") == "fp32"
    assert runnable_engine("fp32", device="cpu") == "fp32"
    assert runnable_engine("auto", device="cpu") == "auto"


@pytest.mark.parametrize("n_engines", [2, 3, 4])
def test_engines_are_measured_where_that_costs_a_tenth_of_what_it_can_save(n_engines):
    """With ten images a second and core: cost and saving in seconds, written out."""
    for images in (100, 1_000, 2_000, 5_000):
        cost = n_engines * 3 * 8 / 10
        saving = images / (10 * 2) * 2 / 3
        assert engine_measuring_pays(images, n_engines, 2) == (cost <= saving / 10)
    assert not engine_measuring_pays(10**6, 1, 2)
    assert not measuring_pays(1.0, 0.0)
