"""Images of another domain, on features whose distribution is known."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from headstart.evaluation.domain_shift import DomainShift, make_reference, measure_shift

D = 40


def draw(n: int, seed: int, *, shift: float = 0.0) -> Any:
    rng = np.random.default_rng(seed)
    centres = np.abs(np.random.default_rng(99).normal(size=(3, D))) + 1
    return centres[np.arange(n) % 3] + rng.normal(0, 0.3, (n, D)) + shift * np.eye(D)[0]


def backbone(name: bytes = b"first") -> Any:
    return SimpleNamespace(identity=name)


def reference_of(n_train: int = 90, n_test: int = 40, seed: int = 0) -> dict[str, Any]:
    values = draw(n_train + n_test, seed)
    rows = np.arange(n_train + n_test)
    embedded: Any = SimpleNamespace(values=values, train=rows[:n_train], test=rows[n_train:])
    return make_reference(embedded, backbone())


def shift_of(reference: dict[str, Any], features: Any, name: bytes = b"first") -> Any:
    return measure_shift(reference, features, backbone(name))


def test_only_shifted_images_are_of_another_domain() -> None:
    found = [shift_of(reference_of(seed=s), draw(60, 100 + s)) for s in range(20)]
    assert not any(shift.is_other_domain for shift in found)
    assert np.mean([shift.share for shift in found]) == pytest.approx(0.05, abs=0.03)
    assert found[0].expected == pytest.approx(2 / 41)
    far = [shift_of(reference_of(seed=s), draw(60, 100 + s, shift=6.0)) for s in range(20)]
    assert all(shift.is_other_domain and shift.share > 0.5 for shift in far)


def test_a_reference_is_small_and_for_its_weights_only() -> None:
    reference = reference_of(n_train=3000, n_test=900)
    assert len(reference["training"]) + 8 * len(reference["test_distances"]) < 46_000
    assert shift_of(reference, draw(60, 1)) is not None
    assert shift_of(reference, draw(60, 1), b"other") is None


def test_little_or_damaged_says_nothing() -> None:
    assert reference_of(n_train=7) == {}
    assert reference_of(n_test=7) == {}
    assert shift_of(reference_of(), draw(7, 1)) is None
    assert shift_of({}, draw(60, 1)) is None
    for name, value in (("training", "abc"), ("test_distances", ["x"]), ("training", None)):
        assert shift_of({**reference_of(), name: value}, draw(60, 1)) is None


def test_a_significant_share_must_be_clearly_larger_too() -> None:
    assert not DomainShift(share=0.1, expected=0.05, p_value=0.0).is_other_domain
    assert not DomainShift(share=0.9, expected=0.05, p_value=0.01).is_other_domain
