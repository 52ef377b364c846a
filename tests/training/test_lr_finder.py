"""The finder against a bowl whose best rates are known."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from headstart.errors import TrainingError, UsageError
from headstart.training.engine import train
from headstart.training.job import Job, Score
from headstart.training.lr_finder import find_learning_rate, suggest_rate
from headstart.training.optim import Training

SGD = Training(
    optimiser="sgd", batch_size=4, epochs=10, weight_decay=0, clip=0, schedule="constant"
)


def bowl(curvature, start=3.0, lr=1.0):
    """Half the curvature times the square: rates from 2 / curvature on diverge."""
    module = torch.nn.BatchNorm1d(1)  # a parameter, and running statistics that are to stay
    with torch.no_grad():
        module.weight.fill_(start)

    def loss(rows, batch, step):
        module.running_mean += 1
        return curvature / 2 * module.weight.pow(2).sum() + module.bias.sum() * 0 + 0.01

    return Job(
        module=module,
        groups=[{"params": [module.weight], "lr": lr}, {"params": [module.bias], "lr": lr / 10}],
        n=16,
        order=lambda epoch: np.arange(16),
        fetch=lambda epoch, rows: np.zeros((len(rows), 1), dtype=np.float32),
        loss=loss,
        score=lambda: Score(0.0, -float(module.weight.detach().pow(2).sum())),
        start_epoch=lambda epoch: None,
    )


def sweep(job, **changes):
    return find_learning_rate(job, SGD, **{"lowest": 1e-5, "highest": 10.0, **changes})


@pytest.mark.parametrize("curvature", [1.0, 10.0, 100.0])
def test_the_rate_is_below_divergence_and_far_above_standing_still(curvature):
    result = sweep(bowl(curvature))
    assert 0.005 < result.suggested * curvature < 1
    ends = []
    for factor in (0.01, 1, 300):
        job = bowl(curvature, lr=result.suggested * factor)
        watched = []
        job = replace(job, watch=lambda step, loss, losses=watched: losses.append(loss) or False)
        train(job, SGD)
        ends.append(watched[-1] if math.isfinite(watched[-1]) else math.inf)
    assert ends[1] < 0.1 * ends[0]
    assert ends[1] < ends[2]


def test_the_rate_follows_the_curvature():
    flat, steep = sweep(bowl(1.0)), sweep(bowl(100.0))
    step = flat.rates[1] / flat.rates[0]
    assert 100 / step**3 < flat.suggested / steep.suggested < 100 * step**3


def test_it_stops_when_the_loss_explodes():
    result = sweep(bowl(100.0))
    assert len(result.losses) == len(result.rates) < 100
    assert result.losses[-1] > 4 * min(result.losses)
    assert result.rates[-1] < 10


def test_a_loss_that_is_not_finite_ends_it_quietly():
    job = bowl(1.0)
    sound = job.loss

    def loss(rows, batch, step):
        return sound(rows, batch, step) * (float("nan") if step == 80 else 1)

    result = sweep(replace(job, loss=loss))
    assert len(result.losses) == 81
    assert math.isnan(result.losses[-1])
    assert math.isfinite(result.suggested)
    assert job.module.weight.item() == 3.0


def test_the_module_is_left_as_it_was():
    job = bowl(10.0)
    before = {k: v.clone() for k, v in job.module.state_dict().items()}
    random = torch.get_rng_state()
    sweep(job)
    assert all(torch.equal(v, before[k]) for k, v in job.module.state_dict().items())
    assert all(parameter.grad is None for parameter in job.module.parameters())
    assert torch.equal(torch.get_rng_state(), random)


def test_groups_keep_their_ratios():
    first, second = sweep(bowl(10.0, lr=1.0)), sweep(bowl(10.0, lr=1e-4))
    assert first.losses == pytest.approx(second.losses, rel=1e-4)
    assert first.suggested == pytest.approx(second.suggested)
    assert second.scale == pytest.approx(second.suggested / 1e-4)


def test_rates_grow_by_equal_factors():
    rates = sweep(bowl(1.0), lowest=1e-4, highest=1e-1, steps=31).rates
    assert rates[0] == pytest.approx(1e-4)
    assert rates[-1] == pytest.approx(1e-1)
    np.testing.assert_allclose(np.divide(rates[1:], rates[:-1]), 10**0.1)


def test_where_the_loss_never_falls_nothing_is_suggested():
    job = bowl(1.0, start=0.0)
    rising = replace(job, loss=lambda *a: job.loss(*a) + a[2])
    with pytest.raises(TrainingError, match="Pass a number, such as --learning-rate"):
        sweep(rising)
    with pytest.raises(TrainingError):
        suggest_rate([0.1, 0.2], [math.nan, math.nan])


def test_ctrl_c_goes_through():
    job = bowl(1.0)

    def loss(rows, batch, step):
        if step == 5:
            raise KeyboardInterrupt
        return job.module.weight.sum()

    with pytest.raises(KeyboardInterrupt):
        sweep(replace(job, loss=loss))
    assert job.module.weight.item() == 3.0


@pytest.mark.parametrize("change", [{"lowest": 0}, {"lowest": 20.0}, {"steps": 1}])
def test_ranges_that_cannot_be_meant_are_refused(change):
    with pytest.raises(UsageError, match=next(iter(change))):
        sweep(bowl(1.0), **change)
