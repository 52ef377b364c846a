"""What the training engine costs over a bare PyTorch loop that takes the same steps.

Bare: gather the batch, zero_grad, forward, backward, clip, set the rate, step; nothing else. The
engine's side is all of ``training.engine.train`` with inputs in memory: Accelerate, the finite
check, seeds for each step, threads that fetch, the best epoch's copy. Nothing is judged on either
side. Both take turns and end with the same weights, which is checked.

    python benchmarks/engine_overhead.py [--rounds 5] [--quick]
"""

import argparse
import time
from statistics import median

from headstart.runtime import cores, prepare

prepare()  # as the command line does, before torch is imported

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn.functional import cross_entropy  # noqa: E402

from headstart.training.engine import train  # noqa: E402
from headstart.training.job import Job, Score  # noqa: E402
from headstart.training.optim import Training, rate_at  # noqa: E402
from headstart.training.samplers import epoch_order  # noqa: E402

BATCH, CLASSES, RATE = 32, 10, 1e-4


def layer4():
    """ResNet-18 behind layer3, on maps of 14 x 14, with a head; inference-mode BatchNorm."""
    from torchvision.models import resnet18

    whole = resnet18()
    return nn.Sequential(
        whole.layer4, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, CLASSES)
    ).eval()


def mlp():
    """Small enough that the engine's own work shows."""
    return nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, CLASSES))


CASES = {
    "ResNet-18's layer4": (layer4, (256, 14, 14), 10),
    "a small MLP": (mlp, (512,), 200),
}
"""Network, shape of one input, steps an epoch."""


def order(n):
    return lambda epoch: epoch_order(n, seed=0, epoch=epoch)


def bare(module, inputs, targets, settings):
    """Seconds of the plain loop."""
    x_all, y_all = torch.from_numpy(inputs), torch.from_numpy(targets)
    rows_of, per_epoch = order(len(inputs)), settings.steps_per_epoch(len(inputs))
    begin = time.perf_counter()
    matrices = [p for p in module.parameters() if p.ndim > 1]
    vectors = [p for p in module.parameters() if p.ndim <= 1]
    optimiser = torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": settings.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ],
        lr=RATE,
    )
    parameters, step = [*matrices, *vectors], 0
    for epoch in range(1, settings.epochs + 1):
        for rows in np.array_split(rows_of(epoch), per_epoch):
            rate = RATE * rate_at(settings, step, per_epoch)
            for group in optimiser.param_groups:
                group["lr"] = rate
            chosen = torch.from_numpy(rows)
            optimiser.zero_grad()
            cross_entropy(module(x_all[chosen]), y_all[chosen]).backward()
            nn.utils.clip_grad_norm_(parameters, settings.clip)
            optimiser.step()
            step += 1
    return time.perf_counter() - begin


def engine(module, inputs, targets, settings):
    """Seconds of the same steps through the one loop."""
    y_all, judged = torch.from_numpy(targets), iter(range(10_000))

    def loss(rows, batch, step):
        return cross_entropy(module(torch.from_numpy(batch)), y_all[torch.from_numpy(rows)])

    begin = time.perf_counter()
    job = Job(
        module=module,
        groups=[{"params": list(module.parameters()), "lr": RATE}],
        n=len(inputs),
        order=order(len(inputs)),
        fetch=lambda epoch, rows: inputs[rows],
        loss=loss,
        score=lambda: Score(float(next(judged)), 0.0),  # the last epoch is the best
        enter=lambda epoch: None,
    )
    train(job, settings)
    return time.perf_counter() - begin


def measure(name, epochs, rounds):
    make, shape, per_epoch = CASES[name]
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((BATCH * per_epoch, *shape), dtype=np.float32)
    targets = rng.integers(0, CLASSES, len(inputs))
    settings = Training(epochs=epochs, batch_size=BATCH, patience=10_000)
    seconds = {bare: [], engine: []}
    for number in range(rounds + 1):  # the first warms up
        ends = []
        for side in (bare, engine) if number % 2 else (engine, bare):
            torch.manual_seed(0)
            module = make()
            seconds[side].append(side(module, inputs, targets, settings))
            ends.append(torch.cat([p.detach().flatten() for p in module.parameters()]))
    # Adam makes much of little: where a gradient is next to nothing, rounding decides its sign.
    torch.manual_seed(0)
    begun = torch.cat([p.detach().flatten() for p in make().parameters()])
    apart = float((ends[0] - ends[1]).norm() / (ends[0] - begun).norm())
    if apart > 0.1:
        raise SystemExit(f"Expected both loops to go the same way, got {apart:.1%} apart.")
    middle = {side: median(each[1:]) for side, each in seconds.items()}
    steps = epochs * per_epoch
    each = {side: f"{1000 * middle[side] / steps:.2f}" for side in middle}
    paired = [e / b - 1 for e, b in zip(seconds[engine][1:], seconds[bare][1:], strict=True)]
    over = middle[engine] / middle[bare] - 1
    spread = f"{min(paired):+.1%} to {max(paired):+.1%}"
    return f"| {name} | {steps} | {each[bare]} | {each[engine]} | **{over:+.1%}** | {spread} |"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="1 epoch, 1 round")
    arguments = parser.parse_args()
    epochs, rounds = (1, 1) if arguments.quick else (arguments.epochs, arguments.rounds)
    print(f"{cores()} cores, medians of {rounds} rounds\n")
    print("| network | steps | bare, ms a step | engine, ms a step | overhead | per round |")
    print("|---|---:|---:|---:|---:|---|")
    for name in CASES:
        print(measure(name, epochs, rounds), flush=True)


if __name__ == "__main__":
    main()
