"""The loop against a plain one, what it keeps, and what it survives."""

import itertools
import os
import signal
import time

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from headstart.errors import SetupError, TrainingError, UsageError
from headstart.training import checkpoint
from headstart.training.engine import train
from headstart.training.job import Job, Score, Session
from headstart.training.optim import Training, rate_at


def problem(n=50, d=6):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, d, generator=generator)
    return x, (x[:, 0] > 0).long()


def linear(d=6):
    torch.manual_seed(1)
    return torch.nn.Sequential(torch.nn.Dropout(0.2), torch.nn.Linear(d, 2))


def rising():
    """Every epoch is better than the one before, so that the last is kept."""
    count = itertools.count()
    return lambda: Score(float(next(count)), 0.0)


def make_job(module, x, y, **changes):
    def loss(rows, batch, step):
        logits = module(torch.from_numpy(batch))
        return torch.nn.functional.cross_entropy(logits, y[torch.from_numpy(rows)])

    given = {
        "module": module,
        "groups": [{"params": [*module.parameters()], "lr": 0.05}],
        "n": len(x),
        "order": lambda epoch: np.random.default_rng([0, epoch]).permutation(len(x)),
        "fetch": lambda epoch, rows: x[rows].numpy(),
        "loss": loss,
        "score": rising(),
        "start_epoch": lambda epoch: module.train(),
        "identity": {"method": "test"},
    }
    return Job(**{**given, **changes})


def weights(module):
    return module[1].weight.detach().clone()


SGD = {"optimiser": "sgd", "weight_decay": 0.01, "batch_size": 16}


def test_the_steps_are_those_of_a_plain_loop():
    x, y = problem()
    settings = Training(**SGD, epochs=3)
    ours, scores = linear(), iter([0.0, 1.0, 2.0, 3.0])
    ours[0].p = 0.0
    history = train(make_job(ours, x, y, score=lambda: Score(next(scores), 0)), settings)

    plain = linear()[1]
    groups = [
        {"params": [plain.weight], "weight_decay": 0.01},
        {"params": [plain.bias], "weight_decay": 0},
    ]
    optimiser = torch.optim.SGD(groups, lr=0.05, momentum=0.9, nesterov=True)
    step = 0
    for epoch in (1, 2, 3):
        order = np.random.default_rng([0, epoch]).permutation(50)
        for rows in np.array_split(order, 4):
            for group in optimiser.param_groups:
                group["lr"] = 0.05 * rate_at(settings, step, 4)
            optimiser.zero_grad()
            loss = torch.nn.functional.cross_entropy(plain(x[rows]), y[rows])
            loss.backward()
            torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
            optimiser.step()
            step += 1
    assert history.steps == step == 12
    torch.testing.assert_close(ours[1].weight, plain.weight, rtol=0, atol=1e-7)


def test_accumulation_takes_the_same_steps():
    x, y = problem()
    found = []
    for parts in (1, 3):
        module = linear()
        module[0].p = 0.0
        train(make_job(module, x, y), Training(**SGD, epochs=2, accumulate=parts))
        found.append(weights(module))
    torch.testing.assert_close(*found, rtol=0, atol=1e-6)


def test_the_best_epoch_is_kept_and_the_start_is_a_candidate():
    x, y = problem()
    for scores, best in [([0.1, 0.5, 0.9, 0.7, 0.8], 2), ([0.9, 0.5, 0.6, 0.7, 0.8], 0)]:
        states, module, values = [], linear(), iter(scores)

        def score(module=module, states=states, values=values):
            states.append(weights(module))
            return Score(next(values), 0.0)

        history = train(make_job(module, x, y, score=score), Training(**SGD, epochs=4, patience=9))
        assert history.best == best
        assert torch.equal(weights(module), states[best])
        assert [epoch.score for epoch in history.epochs] == scores
        places = range(1, len(scores) + 1)
        assert [epoch.best for epoch in history.epochs] == [
            scores.index(max(scores[:place])) for place in places
        ]


def test_of_equal_scores_the_smaller_loss_wins():
    x, y = problem()
    values = iter([Score(1.0, -0.5), Score(1.0, -0.2), Score(1.0, -0.3)])
    history = train(make_job(linear(), x, y, score=lambda: next(values)), Training(**SGD, epochs=2))
    assert history.best == 1


def test_training_stops_when_nothing_gets_better_but_not_after_a_few_steps():
    x, y = problem()
    told = []
    session = Session(on_epoch=lambda epoch, most: told.append((epoch, most)))
    settings = Training(optimiser="sgd", epochs=50, batch_size=5, patience=3)
    level = make_job(linear(), x, y, score=lambda: Score(0.5, 0.0))
    history = train(level, settings, session=session)
    assert history.steps == 100  # ten epochs of ten: the first from which on it may stop
    assert told == [(epoch, 50) for epoch in history.epochs]
    level = make_job(linear(), x, y, score=lambda: Score(0.5, 0.0))
    assert len(train(level, Training(**SGD, epochs=9, patience=1)).epochs) == 10


def test_a_loss_that_is_not_finite_leaves_the_batch_in_a_file(tmp_path):
    x, y = problem()
    x[3] = float("nan")
    with pytest.raises(TrainingError, match="epoch 1") as raised:
        train(make_job(linear(), x, y), Training(**SGD, epochs=2), session=Session(folder=tmp_path))
    captured = load_file(tmp_path / "batch-not-finite.safetensors")
    assert str(tmp_path) in str(raised.value)
    assert 3 in captured["rows"]
    replayed = linear()
    replayed.load_state_dict(
        {k.removeprefix("weights."): v for k, v in captured.items() if "weights" in k}
    )
    assert torch.isnan(replayed(captured["inputs"])).any()


def test_a_seed_gives_the_same_bits():
    x, y = problem()
    found = []
    for seed, noise in ((0, 1), (0, 2), (1, 1)):
        module = linear()
        torch.manual_seed(noise)  # nothing outside the training matters
        before = torch.get_rng_state()
        train(make_job(module, x, y), Training(**SGD, epochs=2), seed=seed)
        assert torch.equal(torch.get_rng_state(), before)
        found.append(weights(module))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])  # other dropout


class Killed(BaseException):
    """As a kill -9 would end it: nothing is cleaned up."""


@pytest.mark.parametrize(
    "settings",
    [
        Training(**SGD, epochs=5),
        Training(epochs=5, batch_size=16, ema=0.9, soup=3),
        Training(epochs=5, batch_size=16, ema=0.9, patience=0),
    ],
    ids=["sgd", "adamw-ema-soup", "adamw-ema-last"],
)
@pytest.mark.parametrize("at", [1, 4, 5, 11, 17])
def test_a_killed_training_ends_with_the_same_bits(tmp_path, settings, at, monkeypatch):
    x, y = problem()
    monkeypatch.setattr("headstart.training.engine.CHECKPOINT_SECONDS", -1)  # after every step

    def job(module, die_at=None):
        def loss(rows, batch, step):
            if step == die_at:
                raise Killed
            return make_job(module, x, y).loss(rows, batch, step)

        def score():
            with torch.no_grad():
                module.train(mode=False)
                return Score(float((module(x).argmax(1) == y).float().mean()), 0.0)

        return make_job(module, x, y, loss=loss, score=score)

    straight, resumed = linear(), linear()
    expected = train(job(straight), settings)
    with pytest.raises(Killed):
        train(job(resumed, die_at=at), settings, session=Session(folder=tmp_path))
    resumed = linear()
    told = []
    session = Session(folder=tmp_path, resume=True, on_epoch=lambda e, _: told.append(e.number))
    found = train(job(resumed), settings, session=session)
    assert torch.equal(weights(straight), weights(resumed))
    assert [e.score for e in found.epochs] == [e.score for e in expected.epochs]
    assert (found.best, found.steps, found.soup) == (expected.best, expected.steps, expected.soup)
    assert [e.best for e in found.epochs] == [e.best for e in expected.epochs]
    assert told[0] == 1 + at // 4  # what was done is not done again


def test_the_scale_of_fp16_is_taken_up(tmp_path, monkeypatch):
    """On a CPU, by giving Accelerate the scaler that it would make on a GPU."""
    import accelerate

    x, y = problem()
    scalers, score = [], rising()

    class Scaled(accelerate.Accelerator):
        def __init__(self, **options):
            super().__init__(**options)
            self.scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=3)
            scalers.append(self.scaler)

    def loss(rows, batch, step):
        if step == 6 and len(scalers) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return make_job(module, x, y).loss(rows, batch, step)

    monkeypatch.setattr(accelerate, "Accelerator", Scaled)
    settings = Training(**SGD, epochs=3)
    module = linear()
    train(make_job(module, x, y, score=score), settings)
    expected = weights(module)
    module = linear()
    train(
        make_job(module, x, y, loss=loss, score=score), settings, session=Session(folder=tmp_path)
    )
    module = linear()
    train(
        make_job(module, x, y, score=score), settings, session=Session(folder=tmp_path, resume=True)
    )
    straight, stopped, resumed = (scaler.state_dict() for scaler in scalers)
    assert (stopped["scale"], stopped["_growth_tracker"]) == (16.0, 1)  # after seven steps
    assert straight == resumed
    assert straight["scale"] == 64.0
    assert torch.equal(weights(module), expected)


def test_another_run_is_not_taken_up(tmp_path):
    x, y = problem()
    settings = Training(**SGD, epochs=1)
    train(make_job(linear(), x, y), settings, session=Session(folder=tmp_path))
    other = make_job(linear(), x, y, identity={"method": "another"})
    with pytest.raises(UsageError, match="method"):
        train(other, settings, session=Session(folder=tmp_path, resume=True))


def test_ctrl_c_ends_with_the_best_so_far():
    x, y = problem()
    module, states, values = linear(), [], iter([0.1, 0.5, 0.3, 0.0])

    def score():
        states.append(weights(module))
        return Score(next(values), 0.0)

    def loss(rows, batch, step):
        if step == 9:
            raise KeyboardInterrupt
        return make_job(module, x, y).loss(rows, batch, step)

    history = train(make_job(module, x, y, loss=loss, score=score), Training(**SGD, epochs=9))
    assert history.interrupted
    assert "Stopped by hand after 9 steps" in history.notes[0]
    assert torch.equal(weights(module), states[1])


def saved_at(monkeypatch):
    """Epoch and step of every checkpoint from now on."""
    places, write = [], checkpoint.write

    def noted(folder, state):
        places.append((state.epoch, state.step))
        write(folder, state)

    monkeypatch.setattr(checkpoint, "write", noted)
    return places


def test_epochs_of_a_moment_leave_one_checkpoint_the_last(tmp_path, monkeypatch):
    x, y = problem()
    places, straight, again = saved_at(monkeypatch), linear(), linear()
    settings = Training(**SGD, epochs=5)
    train(make_job(straight, x, y), settings, session=Session(folder=tmp_path))
    assert places == [(6, 0)]
    told = []
    session = Session(folder=tmp_path, resume=True, on_epoch=lambda e, _: told.append(e))
    train(make_job(again, x, y), settings, session=session)  # as if its evaluation had failed
    assert not told
    assert torch.equal(weights(straight), weights(again))


def test_early_stopping_leaves_a_checkpoint_of_its_end(tmp_path, monkeypatch):
    x, y = problem()
    places = saved_at(monkeypatch)
    level = make_job(linear(), x, y, score=lambda: Score(0.5, 0.0))
    settings = Training(optimiser="sgd", epochs=50, batch_size=5, patience=3)
    train(level, settings, session=Session(folder=tmp_path))
    assert places == [(11, 0)]


@pytest.mark.parametrize("place", ["fetch", "loss", "score", "told"])
@pytest.mark.parametrize(
    "settings",
    [Training(**SGD, epochs=5), Training(epochs=5, batch_size=16, ema=0.9, soup=3)],
    ids=["sgd", "adamw-ema-soup"],
)
def test_ctrl_c_costs_no_step_and_no_bit(tmp_path, settings, place):
    x, y = problem()

    def job(module, stop=lambda place: None):
        def fetch(epoch, rows):
            stop("fetch")
            return x[rows].numpy()

        def loss(rows, batch, step):
            stop("loss")
            return make_job(module, x, y).loss(rows, batch, step)

        def score():
            stop("score")
            with torch.no_grad():
                module.train(mode=False)
                return Score(float((module(x).argmax(1) == y).float().mean()), 0.0)

        return make_job(module, x, y, fetch=fetch, loss=loss, score=score)

    calls = itertools.count(1)

    def ctrl_c(where):
        if where == place and next(calls) == (3 if place in {"score", "told"} else 7):
            os.kill(os.getpid(), signal.SIGINT)

    straight, resumed = linear(), linear()
    expected = train(job(straight), settings)
    session = Session(folder=tmp_path, on_epoch=lambda *_: ctrl_c("told"))
    stopped = train(job(linear(), ctrl_c), settings, session=session)
    assert stopped.interrupted
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    steps = []
    session = Session(folder=tmp_path, resume=True, progress=lambda _, n, m: steps.append(n))
    found = train(job(resumed), settings, session=session)
    assert steps[0] == stopped.steps + 1
    assert torch.equal(weights(straight), weights(resumed))
    assert [e.score for e in found.epochs] == [e.score for e in expected.epochs]
    assert (found.best, found.steps, found.soup) == (expected.best, expected.steps, expected.soup)


def test_a_disk_that_is_full_at_ctrl_c_costs_the_checkpoint_only(tmp_path, monkeypatch):
    x, y = problem()

    def full(folder, state):
        raise SetupError("Expected to keep a checkpoint, got no space.")

    def loss(rows, batch, step):
        if step == 6:
            os.kill(os.getpid(), signal.SIGINT)
        return make_job(module, x, y).loss(rows, batch, step)

    module = linear()
    monkeypatch.setattr(checkpoint, "write", full)
    job = make_job(module, x, y, loss=loss)
    history = train(job, Training(**SGD, epochs=5), session=Session(folder=tmp_path))
    assert history.interrupted
    assert history.best == 1
    assert history.notes[1:] == ["Expected to keep a checkpoint, got no space."]


def test_running_out_of_memory_halves_the_batch_and_takes_the_same_steps():
    x, y = problem()
    found = []
    for most in (99, 5):
        module = linear()
        module[0].p = 0.0

        def loss(rows, batch, step, module=module, most=most):
            if len(rows) > most:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return make_job(module, x, y).loss(rows, batch, step)

        history = train(make_job(module, x, y, loss=loss), Training(**SGD, epochs=2))
        found.append(weights(module))
    torch.testing.assert_close(*found, rtol=0, atol=1e-6)
    assert [note.split(": ")[0] for note in history.notes] == ["Out of memory at step 1"] * 2
    assert "in 4 parts" in history.notes[1]


def test_one_image_that_is_too_large_is_an_error():
    x, y = problem()

    def loss(rows, batch, step):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate")

    with pytest.raises(SetupError, match="smaller backbone"):
        train(make_job(linear(), x, y, loss=loss), Training(**SGD, epochs=1))


def test_what_goes_wrong_in_a_worker_is_said_by_its_own_error():
    x, y = problem()

    def fetch(epoch, rows):
        raise SetupError("Expected an image, got none.")

    with pytest.raises(SetupError, match="Expected an image"):
        train(make_job(linear(), x, y, fetch=fetch), Training(**SGD, epochs=1))


def test_an_average_is_scored_and_saved():
    x, y = problem()
    module = linear()
    module[0].p = 0.0
    values = iter([0.0, 1.0])
    job = make_job(module, x, y, score=lambda: Score(next(values), 0))
    train(job, Training(**SGD, epochs=1, ema=0.5))
    plain = linear()
    plain[0].p = 0.0
    average, states = weights(plain), []

    def loss(rows, batch, step):
        states.append(weights(plain))
        return make_job(plain, x, y).loss(rows, batch, step)

    values = iter([0.0, 1.0])
    job = make_job(plain, x, y, loss=loss, score=lambda: Score(next(values), 0))
    train(job, Training(**SGD, epochs=1))
    for step, state in enumerate([*states[1:], weights(plain)], 1):
        decay = min(0.5, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * state
    torch.testing.assert_close(weights(module), average, rtol=0, atol=1e-6)


@pytest.mark.parametrize("ema", [0.0, 0.5])
def test_without_patience_all_epochs_train_and_the_last_is_kept(ema):
    """A falling score neither stops the training nor chooses an earlier epoch."""
    x, y = problem()
    scores, states = iter(range(60, 0, -1)), []
    module = linear()

    def score():
        states.append(weights(module))  # of the average, if there is one
        return Score(float(next(scores)), 0.0)

    settings = Training(**SGD, epochs=40, patience=0, ema=ema)
    history = train(make_job(module, x, y, score=score), settings)
    assert (len(history.epochs), history.best) == (41, 40)
    assert torch.equal(weights(module), states[-1])
    assert not torch.equal(states[-1], states[-2])


def test_without_patience_a_training_that_ends_early_keeps_its_best_epoch():
    """In the middle of the schedule the rate is high: the last epoch need not be a good one."""
    x, y = problem()
    values = iter([0.5, 0.1])
    settings = Training(**SGD, epochs=4, patience=0)
    job = make_job(linear(), x, y, score=lambda: Score(next(values), 0.0))
    assert train(job, settings, session=Session(deadline=0.0)).best == 0


def test_no_epoch_begins_after_the_deadline_but_one_is_trained():
    x, y = problem()
    settings = Training(**SGD, epochs=4, patience=9)
    late = train(make_job(linear(), x, y), settings, session=Session(deadline=0.0))
    assert [epoch.number for epoch in late.epochs] == [0, 1]
    assert late.notes == [
        "The time budget was used up after 1 of 4 epochs; the best epoch so far is kept."
    ]
    assert not late.interrupted
    in_time = train(make_job(linear(), x, y), settings, session=Session(deadline=float("inf")))
    assert len(in_time.epochs) == 5
    assert in_time.notes == []


@pytest.mark.parametrize("patience", [0, 10])
def test_a_finite_divergence_keeps_the_start_and_says_so(patience):
    """Without patience the last epoch is kept, but never of a training that diverged."""
    x, y = problem()
    module = linear()
    start = weights(module)

    def score():
        logits = module(x).detach()
        loss = float(torch.nn.functional.cross_entropy(logits, y))
        return Score(float((logits.argmax(1) == y).float().mean()), -loss)

    def rise(rows, batch, step):
        logits = module(torch.from_numpy(batch))
        return -torch.nn.functional.cross_entropy(logits, y[torch.from_numpy(rows)])

    groups = [{"params": [*module.parameters()], "lr": 0.5}]  # a tenth diverges, too
    job = make_job(module, x, y, score=score, loss=rise, groups=groups)
    history = train(job, Training(**SGD, epochs=12, patience=patience))
    assert history.best == 0
    assert torch.equal(weights(module), start)
    assert [note for note in history.notes if "diverged: the start was kept" in note]


def test_a_training_that_goes_well_has_no_note():
    x, y = problem()
    assert train(make_job(linear(), x, y), Training(**SGD, epochs=3)).notes == []


def test_an_epoch_that_the_deadline_cuts_is_dropped():
    """From the second on: its steps after the deadline are not taken, its weights are not kept."""
    x, y = problem()
    module, taken = linear(), []
    sound = make_job(module, x, y)
    deadline = time.perf_counter() + 0.5

    def loss(rows, batch, step):
        taken.append(step)
        if step == sound.n // 16 + 2:  # within the second epoch
            time.sleep(max(0.0, deadline - time.perf_counter()) + 0.01)
        return sound.loss(rows, batch, step)

    job = make_job(module, x, y, loss=loss)
    history = train(job, Training(**SGD, epochs=50), session=Session(deadline=deadline))
    assert [epoch.number for epoch in history.epochs] == [0, 1]
    assert taken[-1] < 2 * -(-sound.n // 16)
    assert any("The time budget was used up after 1 of 50 epochs" in n for n in history.notes)
