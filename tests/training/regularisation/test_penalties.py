import dataclasses
import math

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax

from headstart.errors import UsageError
from headstart.training.regularisation.penalties import (
    Regularisation,
    bss,
    co_tuning,
    delta,
    lwf,
    relation,
)

WEIGHTS = ("l2_sp", "l2_sp_head", "delta", "bss", "co_tuning", "ewc", "lwf")


def normal(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


def slope(loss, at):
    return torch.autograd.grad(loss, at)[0]


# ------------------------------------------------------------------------------------ DELTA


def test_delta_is_its_formula():
    new = [normal(5, 4, 3, 3), normal(5, 6, 2, 2, seed=1)]
    old = [normal(5, 4, 3, 3, seed=2), normal(5, 6, 2, 2, seed=3)]
    worth = [normal(4, seed=4).softmax(dim=0), normal(6, seed=5).softmax(dim=0)]
    expected = 0.0
    for a, b, c in zip(new, old, worth, strict=True):
        for image in range(5):
            for channel in range(a.shape[1]):
                gap = (a[image, channel] - b[image, channel]).numpy()
                expected += c[channel].item() * np.linalg.norm(gap) ** 2 / 5
    assert delta(new, old, worth).item() == pytest.approx(expected, rel=1e-12)


def test_delta_weights_channels_equally_by_default():
    new, old = [normal(2, 4, 3)], [normal(2, 4, 3, seed=1)]
    even = delta(new, old, [torch.full((4,), 0.25, dtype=torch.float64)])
    assert delta(new, old).item() == pytest.approx(even.item(), rel=1e-12)


def test_delta_does_not_move_the_source():
    new, old = normal(2, 4, 3).requires_grad_(), normal(2, 4, 3, seed=1).requires_grad_()
    loss = delta([new], [old])
    actual = torch.autograd.grad(loss, [new, old], allow_unused=True)
    assert actual[1] is None
    torch.testing.assert_close(actual[0], (2 * (new - old) / 4 / 2).detach())


def test_delta_of_vectors_and_half_precision():
    new = torch.full((2, 3), 1e-4, dtype=torch.float16)
    assert delta([new], [torch.zeros_like(new)]).item() == pytest.approx(1e-8, rel=1e-2)


@pytest.mark.parametrize(
    ("new", "old", "worth"),
    [
        ([], [], None),
        ([(2, 4, 3)], [(2, 4, 2)], None),
        ([(2, 4, 3)], [(2, 4, 3), (2, 4, 3)], None),
        ([(2, 4, 3)], [(2, 4, 3)], [(3,)]),
        ([(2, 4, 3)], [(2, 4, 3)], []),
    ],
)
def test_delta_refuses_layers_that_do_not_fit(new, old, worth):
    zeros = [None if s is None else [torch.zeros(shape) for shape in s] for s in (new, old, worth)]
    with pytest.raises(UsageError, match="Expected"):
        delta(*zeros)


# -------------------------------------------------------------------------------------- BSS


@pytest.mark.parametrize("shape", [(4, 9), (9, 4)], ids=["few images", "many images"])
@pytest.mark.parametrize("k", [1, 3])
def test_bss_is_the_tail_of_the_spectrum(shape, k):
    # With fewer images than features the covariance has zeros that are no singular values.
    features = normal(*shape)
    gram = (
        features.numpy() @ features.numpy().T if shape[0] < 9 else (features.T @ features).numpy()
    )
    expected = np.sort(np.linalg.eigvalsh(gram))[:k].sum()
    assert expected > 0
    assert bss(features, k).item() == pytest.approx(expected, rel=1e-9)


def test_the_gradient_of_bss_is_the_weakest_direction():
    features = normal(4, 9).requires_grad_()
    left, values, right = np.linalg.svd(features.detach().numpy(), full_matrices=False)
    expected = 2 * values[-1] * np.outer(left[:, -1], right[-1])
    np.testing.assert_allclose(slope(bss(features), features).numpy(), expected, atol=1e-10)


def test_bss_of_equal_images_has_a_finite_gradient():
    features = torch.ones(4, 9, requires_grad=True)
    assert torch.isfinite(slope(bss(features, 2), features)).all()


def test_bss_takes_half_precision():
    features = normal(4, 9)
    assert bss(features.to(torch.bfloat16)).item() == pytest.approx(bss(features).item(), rel=0.1)


@pytest.mark.parametrize(("shape", "k"), [((4, 9), 5), ((4, 9), 0), ((4, 9, 1), 1), ((0, 9), 1)])
def test_bss_refuses_what_has_no_such_spectrum(shape, k):
    with pytest.raises(UsageError, match="singular values"):
        bss(torch.zeros(shape), k)


# -------------------------------------------------------------------------------- Co-Tuning


def test_a_relation_is_the_mean_answer_by_class():
    answers, targets = normal(12, 5).softmax(dim=1), torch.arange(12) % 3
    expected = [answers.numpy()[targets.numpy() == c].mean(axis=0) for c in range(3)]
    actual = relation(answers, targets, 3)
    np.testing.assert_allclose(actual.numpy(), expected, rtol=1e-12)
    np.testing.assert_allclose(actual.numpy().sum(axis=1), 1, rtol=1e-12)


@pytest.mark.parametrize(
    ("answers", "targets", "match"),
    [
        (torch.zeros(2, 3), torch.tensor([0, 1]), "with sum 1"),
        (torch.tensor([[1.5, -0.5], [0.5, 0.5]]), torch.tensor([0, 1]), "with sum 1"),
        (torch.full((2, 2), 0.5), torch.tensor([0, 0]), r"classes \[1\]"),
        (torch.full((2, 2), 0.5), torch.tensor([0, 2]), "from 0 to 1"),
        (torch.full((2, 2), 0.5), torch.tensor([0, -1]), "from 0 to 1"),
        (torch.full((2, 2), 0.5), torch.tensor([0]), "targets"),
        (torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64), r"classes \[0, 1\]"),
    ],
)
def test_a_relation_of_something_else_is_refused(answers, targets, match):
    with pytest.raises(UsageError, match=match):
        relation(answers, targets, 2)


def test_co_tuning_is_a_cross_entropy_and_so_is_its_gradient():
    logits, rows = normal(6, 5).requires_grad_(), normal(6, 5, seed=1).softmax(dim=1)
    loss = co_tuning(logits, rows)
    z = logits.detach().numpy()
    expected = -(rows.numpy() * log_softmax(z, axis=1)).sum(axis=1).mean()
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    np.testing.assert_allclose(
        slope(loss, logits).numpy(), (softmax(z, axis=1) - rows.numpy()) / 6, atol=1e-12
    )


# -------------------------------------------------------------------------------------- LwF


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
def test_lwf_is_its_formula(temperature):
    new, old = normal(6, 5).numpy(), normal(6, 5, seed=1).numpy()
    p, log_q = softmax(old / temperature, axis=1), log_softmax(new / temperature, axis=1)
    expected = temperature**2 * (p * (np.log(p) - log_q)).sum(axis=1).mean()
    actual = lwf(torch.from_numpy(new), torch.from_numpy(old), temperature)
    assert actual.item() == pytest.approx(expected, rel=1e-9)


def test_the_size_of_lwfs_gradient_does_not_hang_on_the_temperature():
    old = normal(6, 5, seed=1)
    sizes = []
    for temperature in (8.0, 16.0, 32.0):
        new = normal(6, 5).requires_grad_()
        sizes.append(slope(lwf(new, old, temperature), new).norm().item())
    # Without T² the last would be a sixteenth of the first.
    assert max(sizes) < 1.1 * min(sizes)


def test_lwf_is_least_where_nothing_changed_and_does_not_move_the_source():
    old = normal(6, 5).requires_grad_()
    new = old.detach().clone().requires_grad_()
    loss = lwf(new, old)
    assert loss.item() == pytest.approx(0, abs=1e-12)
    actual = torch.autograd.grad(loss, [new, old], allow_unused=True)
    assert actual[0].abs().max() < 1e-12
    assert actual[1] is None


@pytest.mark.parametrize("compare", [co_tuning, lwf])
def test_tables_of_different_shapes_are_refused(compare):
    # (6, 5) and (1, 5) would be broadcast without a word.
    with pytest.raises(UsageError, match="same shape"):
        compare(normal(6, 5), normal(1, 5))


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_lwf_refuses_a_temperature_without_meaning(temperature):
    with pytest.raises(UsageError, match="temperature"):
        lwf(normal(2, 3), normal(2, 3), temperature)


# --------------------------------------------------------------------------- Regularisation


def test_by_default_nothing_holds():
    assert Regularisation().is_off


@pytest.mark.parametrize("name", WEIGHTS)
def test_each_weight_switches_its_penalty_on(name):
    assert not Regularisation(**{name: 0.1}).is_off


@pytest.mark.parametrize("name", [*WEIGHTS, "temperature"])
@pytest.mark.parametrize("value", [-0.1, math.inf, math.nan, "1", True, None])
def test_values_that_are_no_weights_are_refused(name, value):
    with pytest.raises(UsageError, match=f"`{name}`"):
        Regularisation(**{name: value})


@pytest.mark.parametrize("value", [0, -1, 1.0, True, "2"])
def test_a_number_of_singular_values_is_whole_and_positive(value):
    with pytest.raises(UsageError, match="`bss_k`"):
        Regularisation(bss_k=value)


def test_a_temperature_of_0_is_refused():
    with pytest.raises(UsageError, match="`temperature`"):
        Regularisation(temperature=0)


def test_the_weights_are_all_the_fields():
    extra = {"bss_k", "temperature"}
    assert {field.name for field in dataclasses.fields(Regularisation)} == {*WEIGHTS, *extra}
