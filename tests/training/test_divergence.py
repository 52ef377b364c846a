"""Divergence: what is one, and the second try at a tenth of the learning rates."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from headstart.training.divergence import LossTrace, describe_divergence
from headstart.training.engine import train
from headstart.training.job import Epoch, Job, Score, Session
from headstart.training.lr_finder import find_learning_rate
from headstart.training.optim import Training

SETTINGS = Training(
    optimiser="sgd", batch_size=8, epochs=4, clip=0, weight_decay=0, schedule="constant", warm_up=0
)


def series(*pairs):
    """Epochs of these scores and validation losses, the start first."""
    return [
        Epoch(number=n, loss=None, score=score, held_out_loss=loss, seconds=0.0, best=0)
        for n, (score, loss) in enumerate(pairs)
    ]


@pytest.mark.parametrize(
    ("epochs", "is_diverged"),
    [
        ([(0.9, 0.4), (0.5, 80.0)], True),
        ([(0.9, 0.4), (0.5, float("nan"))], True),
        ([(0.9, 0.4), (0.9, 80.0), (0.3, 5.0)], True),
        ([(0.9, 0.4), (0.95, 0.2), (0.3, 50.0)], True),
        ([(0.9, 0.4), (0.5, 80.0), (0.92, 0.5)], False),  # it has recovered
        ([(0.9, 0.4), (0.92, 3.0)], False),  # overconfident, but better
        ([(0.9, 0.4), (0.8, 0.5)], False),  # no better, but bounded
        ([(1.0, 0.001), (1.0, 0.05)], False),
        ([(0.9, 0.4)], False),
        ([], False),
    ],
)
def test_a_divergence_is_recognised(epochs, is_diverged):
    text = describe_divergence(series(*epochs), 0)
    assert bool(text) is is_diverged
    assert not text or ("diverged: the start was kept" in text and "--learning-rate" in text)


def test_losses_of_steps_are_a_divergence_only_far_above_the_first_ones():
    cases = [
        ([2.3, 2.2, 2.1] * 20, False),  # as usual
        ([0.01] * 5 + [0.6] * 30, False),  # a fitted head and a new augmentation
        ([0.7] * 5 + [2.4] * 30, False),  # a fitted head, unlearned at first; it recovers
        ([0.01] * 5 + [3.5] * 30, True),  # worse than guessing among 30 classes
        ([4.6] * 5 + [16.0] * 30, False),
        ([4.6] * 5 + [18.0] * 30, True),
        ([2.0] * 30 + [80.0] * 5, True),  # later, too
        ([1.0] * 9 + [15.0] + [1.0] * 30, False),  # one bad batch
        ([1.0, 300.0, 900.0] + [500.0] * 10, True),  # at once
        ([-5.0] * 5 + [7.0] * 30, False),  # a loss of the user's own
        ([-5.0] * 5 + [9.0] * 30, True),
        ([0.4, float("nan")], True),
        ([0.4, float("inf"), 0.4], True),
        ([100.0] * 9, False),
    ]
    for losses, expected in cases:
        trace = LossTrace()
        seen = []
        for loss in losses:
            trace.add(loss)
            seen.append(trace.has_diverged)
        assert any(seen) is expected, losses


class Bowl(torch.nn.Module):
    """A quadratic loss: rates above 2 / curvature diverge, lower ones converge."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.full((4,), 1.0))
        self.register_buffer("seen", torch.zeros(1))


def bowl_job(module, rate, *, value=lambda loss, step, rate: loss, die_at=None, **changes):
    steps = iter(range(10_000))

    def loss(rows, batch, step):
        if next(steps) == die_at:
            raise KeyError("killed")
        module.seen += 1
        return value(10 * module.weight.square().sum(), step, rate)

    def score():
        loss = 10 * float(module.weight.detach().square().sum())
        return Score(-loss if math.isfinite(loss) else -1e30, -loss)

    given = {
        "module": module,
        "groups": [{"params": [module.weight], "lr": rate}],
        "n": 64,
        "order": lambda epoch: np.arange(64),
        "fetch": lambda epoch, rows: np.zeros((len(rows), 1), dtype=np.float32),
        "loss": loss,
        "score": score,
        "start_epoch": lambda epoch: module.train(),
        "identity": {"method": "test"},
    }
    return Job(**{**given, **changes})


@pytest.mark.parametrize("changes", [{}, {"patience": 0}, {"ema": 0.5}, {"soup": 2}])
def test_a_training_that_diverges_begins_again_at_a_tenth_and_says_so(changes):
    settings = Training(**{**vars(SETTINGS), **changes})
    module, told = Bowl(), []
    session = Session(on_epoch=lambda epoch, _: told.append(epoch.number))
    history = train(bowl_job(module, 0.2), settings, session=session)
    assert history.rate_scale == 0.1
    assert history.best == 4
    assert told == [0, 1, 1, 2, 3, 4]  # the first try ended within its second epoch
    assert [epoch.number for epoch in history.epochs] == [0, 1, 2, 3, 4]
    assert history.epochs[-1].held_out_loss < history.epochs[0].held_out_loss / 2
    (note,) = history.notes
    assert note.startswith("The training diverged at step ")
    assert note.endswith("It was tried again from the start, at a tenth of its learning rates.")


def test_the_second_try_is_the_training_at_a_tenth():
    first, second = Bowl(), Bowl()
    train(bowl_job(first, 0.2), SETTINGS)
    history = train(bowl_job(second, 0.02), SETTINGS)
    assert torch.equal(first.weight, second.weight)
    assert history.notes == []
    assert history.rate_scale == 1


def test_a_loss_that_is_not_finite_begins_again_too():
    def value(loss, step, rate):
        return loss * (float("nan") if step == 3 and next(tries) else 1)

    tries = iter([True, False])
    module = Bowl()
    history = train(bowl_job(module, 0.02, value=value), SETTINGS)
    assert history.rate_scale == 0.1
    assert "diverged at step 4 of epoch 1: the loss became nan. It was tried" in history.notes[0]
    assert torch.isfinite(module.weight).all()


def test_it_is_tried_again_only_once():
    module = Bowl()
    history = train(bowl_job(module, 1.0), replace(SETTINGS, epochs=2))
    assert history.best == 0
    assert torch.equal(module.weight, torch.ones(4))
    assert len(history.notes) == 2
    assert "tried again" in history.notes[0]
    assert "diverged: the start was kept" in history.notes[1]


def test_without_time_it_is_not_tried_again_and_says_so():
    module = Bowl()
    history = train(bowl_job(module, 0.2), SETTINGS, session=Session(deadline=0.0))
    assert torch.equal(module.weight, torch.ones(4))
    assert (history.best, history.rate_scale) == (0, 1)
    assert "No time was left to try it again" in history.notes[-1]


@pytest.mark.parametrize("die_at", [5, 20, 33])
def test_a_killed_training_continues_with_the_same_bits(tmp_path, monkeypatch, die_at):
    """Killed before the divergence, and in the second try."""
    monkeypatch.setattr("headstart.training.engine.CHECKPOINT_SECONDS", 0.0)
    straight, killed, resumed = Bowl(), Bowl(), Bowl()
    expected = train(bowl_job(straight, 0.2), SETTINGS)
    with pytest.raises(KeyError):
        train(bowl_job(killed, 0.2, die_at=die_at), SETTINGS, session=Session(folder=tmp_path))
    session = Session(folder=tmp_path, resume=True)
    found = train(bowl_job(resumed, 0.2), SETTINGS, session=session)
    assert torch.equal(straight.weight, resumed.weight)
    assert found.notes == expected.notes
    assert found.rate_scale == expected.rate_scale == 0.1
    assert [e.score for e in found.epochs] == [e.score for e in expected.epochs]


def test_a_search_for_the_rate_is_not_a_training_that_diverged():
    found = find_learning_rate(bowl_job(Bowl(), 0.01), SETTINGS, lowest=1e-4, highest=10.0)
    assert found.losses[-1] > 10 * min(found.losses)
    assert 1e-4 < found.suggested < 0.07
