import math

import pytest
import torch

from headstart.errors import UsageError
from headstart.training.optim import OPTIMISERS, Training, make_optimiser, rate_at


def test_cosine_equals_torchs():
    settings = Training(epochs=5, batch_size=8, warm_up=0.0)
    model = torch.nn.Linear(1, 1)
    reference = torch.optim.SGD(model.parameters(), lr=1.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(reference, T_max=20)
    for step in range(20):
        assert rate_at(settings, step, 4) == pytest.approx(schedule.get_last_lr()[0], abs=1e-9)
        reference.step()
        schedule.step()


def test_warm_up_is_linear_and_constant_stays():
    settings = Training(epochs=10, warm_up=0.5, schedule="constant")
    rates = [rate_at(settings, step, 1) for step in range(10)]
    assert rates == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1, 1, 1, 1, 1])


def torchs_rates(make, steps):
    optimiser = torch.optim.SGD(torch.nn.Linear(1, 1).parameters(), lr=1.0)
    schedule = make(optimiser)
    last_rates = []
    for _ in range(steps):
        last_rates.append(schedule.get_last_lr()[0])
        optimiser.step()
        schedule.step()
    return last_rates


def test_one_cycle_and_step_equal_torchs():
    rates = [
        rate_at(Training(epochs=5, schedule="one-cycle", warm_up=0.3), s, 4) for s in range(20)
    ]
    reference = torchs_rates(
        lambda o: torch.optim.lr_scheduler.OneCycleLR(o, max_lr=1.0, total_steps=20, pct_start=0.3),
        20,
    )
    assert rates == pytest.approx(reference, abs=1e-9)
    rates = [rate_at(Training(epochs=3, schedule="step", warm_up=0.0), s, 4) for s in range(12)]
    reference = torchs_rates(lambda o: torch.optim.lr_scheduler.StepLR(o, 4, 0.1), 12)
    assert rates == pytest.approx(reference)


@pytest.mark.parametrize("n", [1, 31, 32, 33, 100])
def test_every_image_has_a_batch(n):
    assert Training(batch_size=32).steps_per_epoch(n) == math.ceil(n / 32)


@pytest.mark.parametrize(
    ("n", "epochs", "batch_size"),
    [(10, 150, 16), (50, 40, 16), (200, 20, 16), (1000, 9, 32), (50_000, 5, 32)],
)
def test_what_is_not_said_follows_from_the_number_of_images(n, epochs, batch_size):
    settings = Training().for_images(n)
    assert (settings.epochs, settings.batch_size) == (epochs, batch_size)
    assert Training(epochs=3, batch_size=7).for_images(n) == Training(epochs=3, batch_size=7)


def test_groups_keep_their_rates_and_vectors_do_not_decay():
    linear, norm = torch.nn.Linear(1, 1), torch.nn.BatchNorm1d(3)
    groups = [
        {"params": [*linear.parameters()], "lr": 0.1},
        {"params": [*norm.parameters()], "lr": 1},
    ]
    for name in OPTIMISERS:
        param_groups = make_optimiser(
            Training(optimiser=name, weight_decay=0.5), groups
        ).param_groups
        assert [(g["lr"], g["base_lr"]) for g in param_groups] == [(0.1, 0.1), (0.1, 0.1), (1, 1)]
        assert [g["weight_decay"] for g in param_groups] == [0.5, 0, 0]


@pytest.mark.parametrize(
    "change",
    [
        {"optimiser": "adamv"},
        {"schedule": "cosin"},
        {"precision": "fp8"},
        {"epochs": -1},
        {"batch_size": -1},
        {"warm_up": 1.0},
        {"patience": -1},
        {"weight_decay": -1.0},
        {"clip": -1.0},
        {"ema": 1.0},
        {"soup": -1},
        {"accumulate": 0},
        {"clip": float("nan")},
    ],
)
def test_settings_that_cannot_be_meant_are_refused(change):
    with pytest.raises(UsageError):
        Training(**change)
