"""RandAugment and TrivialAugment: pixels against torchvision's, draws against their tables."""

from collections import Counter

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from torchvision.transforms import InterpolationMode, v2

from headstart.data.transforms.augment import (
    MAX_STRENGTH,
    POLICIES,
    apply_operation,
    apply_policy,
    draw_operations,
)
from headstart.errors import UnknownNameError

FILL = [10.0, 120.0, 240.0]
SIDE = 224
OPERATIONS = {
    "identity": "Identity",
    "autocontrast": "AutoContrast",
    "equalize": "Equalize",
    "rotate": "Rotate",
    "shear_x": "ShearX",
    "shear_y": "ShearY",
    "translate_x": "TranslateX",
    "translate_y": "TranslateY",
    "brightness": "Brightness",
    "colour": "Color",
    "contrast": "Contrast",
    "sharpness": "Sharpness",
    "posterize": "Posterize",
    "solarize": "Solarize",
}


def image() -> torch.Tensor:
    y, x = np.mgrid[:SIDE, :SIDE]
    waves = 127 + 90 * np.sin(x / 7) * np.cos(y / 11)
    squares = 60 + 130 * ((x // 16 + y // 16) % 2)
    slope = 20 + (x + 2 * y) / 4
    return torch.from_numpy(np.stack([waves, squares, slope]).astype(np.uint8))


def theirs(policy: str) -> v2.Transform:
    made = {"randaugment": v2.RandAugment, "trivialaugment": v2.TrivialAugmentWide}[policy]
    return made(interpolation=InterpolationMode.BILINEAR, fill=FILL)


def torchvisions(policy: str, name: str, strength: int, sign: int) -> torch.Tensor:
    transform = theirs(policy)
    scale, signed = transform._AUGMENTATION_SPACE[OPERATIONS[name]]
    magnitudes = scale(MAX_STRENGTH + 1, SIDE, SIDE)
    amount = 0.0 if magnitudes is None else float(magnitudes[strength]) * (sign if signed else 1)
    return transform._apply_image_or_video_transform(
        image(), OPERATIONS[name], amount, InterpolationMode.BILINEAR, {torch.Tensor: FILL}
    )


def differing(ours: torch.Tensor, reference: torch.Tensor) -> float:
    """Share of values more than one grey level apart; both round, in places differently."""
    return ((ours.int() - reference.int()).abs() > 1).float().mean().item()


def drawn(policy: str, times: int) -> list[tuple[str, float]]:
    rng = np.random.default_rng(0)
    return [found for _ in range(times) for found in draw_operations(policy, rng)]


@pytest.mark.parametrize("policy", ["randaugment", "trivialaugment"])
def test_what_is_drawn_last_is_of_torchvisions_reach(policy):
    """The largest amount of each operation does what torchvision's same strength does."""
    furthest = {}
    for name, amount in drawn(policy, 3000):
        furthest[name] = max(furthest.get(name, amount), amount, key=abs)
    assert set(furthest) == set(OPERATIONS)
    strength = {"randaugment": 9, "trivialaugment": MAX_STRENGTH}[policy]
    for name, amount in furthest.items():
        ours = apply_operation(image(), name, amount, FILL)
        reference = torchvisions(policy, name, strength, 1 if amount >= 0 else -1)
        assert differing(ours, reference) < 0.001, name


@pytest.mark.parametrize("name", OPERATIONS)
def test_the_other_strengths_are_torchvisions(name):
    reach = max((abs(amount) for other, amount in drawn("trivialaugment", 3000) if other == name))
    for strength in (3, 12, 21):
        ours = apply_operation(image(), name, reach * strength / MAX_STRENGTH, FILL)
        assert differing(ours, torchvisions("trivialaugment", name, strength, 1)) < 0.001


def test_operations_are_drawn_alike_often_and_signs_too():
    found = drawn("trivialaugment", 7000)
    times = Counter(name for name, _ in found)
    assert chisquare(list(times.values())).pvalue > 1e-3
    rotations = np.array([amount for name, amount in found if name == "rotate"])
    assert abs(np.mean(rotations > 0) - 0.5) < 0.1
    assert set(np.round(np.abs(rotations) / 135 * MAX_STRENGTH, 6)) == set(range(MAX_STRENGTH + 1))
    assert min(amount for name, amount in found if name == "posterize") == 0


def test_randaugment_draws_two_of_one_strength():
    rng = np.random.default_rng(3)
    assert {len(draw_operations("randaugment", rng)) for _ in range(20)} == {2}
    angles = {abs(amount) for name, amount in drawn("randaugment", 300) if name == "rotate"}
    assert angles == {30 * 9 / 30}


@pytest.mark.parametrize("name", sorted(set(OPERATIONS) - {"autocontrast", "equalize"}))
def test_nothing_is_changed_by_an_amount_of_nothing(name):
    assert torch.equal(apply_operation(image(), name, 0.0, FILL), image())


def test_a_policy_is_its_draws_in_order_and_leaves_the_image_alone():
    tensor = image()
    expected = tensor
    for name, amount in draw_operations("randaugment", np.random.default_rng(5)):
        expected = apply_operation(expected, name, amount, FILL)
    ours = apply_policy(tensor, "randaugment", fill=FILL, rng=np.random.default_rng(5))
    assert torch.equal(ours, expected)
    assert torch.equal(tensor, image())
    assert not torch.equal(ours, tensor)
    assert apply_policy(tensor, "none", fill=FILL, rng=np.random.default_rng(5)) is tensor


@pytest.mark.parametrize("policy", POLICIES)
def test_chance_comes_from_the_generator_alone(policy):
    state = torch.get_rng_state()
    one = apply_policy(image(), policy, fill=FILL, rng=np.random.default_rng(1))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    again = apply_policy(image(), policy, fill=FILL, rng=np.random.default_rng(1))
    torch.set_rng_state(state)
    assert torch.equal(one, again)


def test_unknown_names_are_refused():
    with pytest.raises(UnknownNameError, match="Did you mean 'randaugment'"):
        draw_operations("randaugmnt", np.random.default_rng(0))
    with pytest.raises(UnknownNameError, match="Did you mean 'rotate'"):
        apply_operation(image(), "rotat", 1.0, FILL)
