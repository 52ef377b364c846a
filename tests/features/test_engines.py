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
    measuring_pays,
    preferred_engines,
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


@pytest.fixture
def network():
    """A frozen network with random weights, and fake engines with the given answers."""
    from headstart.backbones.backbone import load
    from headstart.backbones.catalog import resolve
    from headstart.backbones.frozen import FrozenBackbone

    return FrozenBackbone.of(load(resolve("torchvision/resnet18"), pretrained=False))


def fake_engines(monkeypatch, errors):
    """Replace the engines: each answers with the true features, times one plus its error."""
    compiled = []

    def fake(backbone, engine, *, device, cache=None):
        compiled.append(engine)
        if isinstance(errors[engine], Exception):
            raise errors[engine]
        right = np.ones((8, 3), dtype=np.float32) * (1 + errors[engine])
        return engines.CompiledEngine(forward=lambda batch: right[: len(batch)])

    monkeypatch.setattr(engines.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(engines, "available_engines", lambda device: tuple(errors))
    monkeypatch.setattr(engines, "compile_engine", fake)
    return compiled


@pytest.mark.parametrize(
    ("errors", "expected"),
    [
        ({"fp32": 0, "bf16": 0.01, "openvino": 1e-5, "openvino-bf16": 0}, "openvino"),
        ({"fp32": 0, "bf16": 0.01, "openvino": 2e-3}, "bf16"),
        ({"fp32": 0, "bf16": 0.05, "openvino": 2e-3}, "fp32"),
        ({"fp32": 0, "bf16": 0.05, "openvino": float("nan")}, "fp32"),
        ({"fp32": 0, "bf16": 0.05, "openvino": RuntimeError("no rule for aten.x")}, "fp32"),
        ({"fp32": 0, "bf16": 0.01}, "bf16"),
        ({"fp32": 0, "bf16": 0.05}, "fp32"),
        ({"fp32": 0}, "fp32"),
    ],
)
def test_the_first_engine_that_is_exact_enough_is_chosen(
    network, errors, expected, tmp_path, monkeypatch
):
    fake_engines(monkeypatch, errors)
    choice = choose_engine(network, 500, device="cpu", cache=Cache(tmp_path))
    assert choice.engine == expected
    notes = choice.describe()
    assert ("openvino is not installed" in notes) == ("openvino" not in errors)
    assert ("openvino was not used" in notes) == ("openvino" in errors and expected != "openvino")
    if isinstance(errors.get("openvino"), Exception):
        assert "no rule for aten.x" in notes


def test_a_noisy_clock_does_not_change_the_choice(network, tmp_path, monkeypatch):
    """In fourteen empty caches, with times between a nanosecond and a year."""
    fake_engines(monkeypatch, {"fp32": 0, "bf16": 0.01, "openvino": 1e-5})
    rng = np.random.default_rng(0)
    monkeypatch.setattr(engines.time, "perf_counter", lambda: float(10 ** rng.uniform(-9, 7.5)))
    for number in range(14):
        cache = Cache(tmp_path / str(number))
        assert choose_engine(network, 500, device="cpu", cache=cache).engine == "openvino"
        monkeypatch.setattr(engines, "available_engines", lambda device: ("fp32", "bf16"))
        assert choose_engine(network, 500, device="cpu", cache=cache).engine == "bf16"
        monkeypatch.setattr(engines, "available_engines", lambda _: ("fp32", "bf16", "openvino"))


def test_the_check_is_stored_for_this_network_only(network, tmp_path, monkeypatch):
    from dataclasses import replace

    compiled = fake_engines(monkeypatch, {"fp32": 0, "openvino": 1e-5})
    cache = Cache(tmp_path)
    first = choose_engine(network, 500, device="cpu", cache=cache)
    assert compiled == ["fp32", "openvino"]
    assert choose_engine(network, 10_000, device="cpu", cache=cache) == first
    assert compiled == ["fp32", "openvino"]
    tensors = {name: tensor + 1 for name, tensor in network.state.items()}
    choose_engine(replace(network, state=tensors), 500, device="cpu", cache=cache)
    assert compiled == ["fp32", "openvino"] * 2


def test_few_images_run_in_float32_without_a_check(network, tmp_path, monkeypatch):
    compiled = fake_engines(monkeypatch, {"fp32": 0, "openvino": 0})
    choice = choose_engine(network, 499, device="cpu", cache=Cache(tmp_path))
    assert (choice.engine, choice.describe(), compiled) == ("fp32", "fp32", [])


@pytest.mark.parametrize(
    ("machine", "device", "expected"),
    [
        ("x86_64", "cpu", ("openvino", "bf16", "fp32")),
        ("AMD64", "cpu", ("openvino", "bf16", "fp32")),
        ("arm64", "cpu", ("bf16", "fp32")),
        ("x86_64", "cuda", ("bf16", "fp32")),
    ],
)
def test_the_order_depends_on_the_machine(machine, device, expected, monkeypatch):
    monkeypatch.setattr(engines.platform, "machine", lambda: machine)
    assert preferred_engines(device) == expected


def test_the_check_uses_eight_different_photographs():
    photographs = engines.check_photographs((40, 60))
    assert photographs.shape == (8, 40, 60, 3)
    assert len({photograph.tobytes() for photograph in photographs}) == 8
    assert photographs.std() > 40
    np.testing.assert_array_equal(photographs, engines.check_photographs((40, 60)))


def test_features_that_are_not_finite_are_wrong():
    reference = np.ones((2, 2), dtype=np.float32)
    assert engines._largest_distance(np.full((2, 2), np.nan, dtype=np.float32), reference) == np.inf


def test_an_unknown_engine_gets_the_nearest_name(backbone):
    with pytest.raises(UnknownNameError, match="Did you mean 'bf16'"):
        compile_engine(backbone, "bf1", device="cpu")


def test_an_engine_that_is_not_installed_says_how_to_get_it(backbone, monkeypatch):
    monkeypatch.setattr(engines, "has_openvino", lambda: False)
    with pytest.raises(MissingExtraError, match=r"headstart\[openvino\]"):
        compile_engine(backbone, "openvino", device="cpu")


def test_a_model_from_another_machine_falls_back_to_float32(monkeypatch):
    monkeypatch.setattr(engines, "available_engines", lambda device: ("fp32",))
    assert runnable_engine("bf16", device="cpu") == "fp32"
    assert runnable_engine("fp32", device="cpu") == "fp32"
    assert runnable_engine("auto", device="cpu") == "auto"


def test_a_measurement_costs_a_tenth_of_what_it_can_save():
    assert measuring_pays(1.0, 10.0)
    assert not measuring_pays(1.0, 9.9)
    assert not measuring_pays(1.0, 0.0)
