"""Overhead of the training engine over a bare PyTorch loop with the same steps.

Bare: gather the batch, zero_grad, forward, backward, clip, set the rate, step; nothing else. The
engine is ``training.engine.train`` with inputs in memory: Accelerate, the check for finite
losses, a seed for each step, threads that load batches, the copy of the best epoch. Neither
evaluates the model. They run in turns and end with the same weights, which is checked.

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
    """ResNet-18 after layer3, on maps of 14 x 14, with a head; BatchNorm in inference mode."""
    from torchvision.models import resnet18

    network = resnet18()
    return nn.Sequential(
        network.layer4, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, CLASSES)
    ).eval()


def mlp():
    """Build a network that is so small that the engine's own time is visible."""
    return nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, CLASSES))


CASES = {
    "ResNet-18's layer4": (layer4, (256, 14, 14), 10),
    "a small MLP": (mlp, (512,), 200),
}
"""Network, shape of one input, steps per epoch."""


def make_order(n):
    return lambda epoch: epoch_order(n, seed=0, epoch=epoch)


def bare(module, inputs, targets, settings):
    """Run the bare loop; return its seconds."""
    x_all, y_all = torch.from_numpy(inputs), torch.from_numpy(targets)
    rows_of, per_epoch = make_order(len(inputs)), settings.steps_per_epoch(len(inputs))
    started_at = time.perf_counter()
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
            indices = torch.from_numpy(rows)
            optimiser.zero_grad()
            cross_entropy(module(x_all[indices]), y_all[indices]).backward()
            nn.utils.clip_grad_norm_(parameters, settings.clip)
            optimiser.step()
            step += 1
    return time.perf_counter() - started_at


def engine(module, inputs, targets, settings):
    """Run the same steps with the engine; return its seconds."""
    y_all, scores = torch.from_numpy(targets), iter(range(10_000))

    def loss(rows, batch, step):
        return cross_entropy(module(torch.from_numpy(batch)), y_all[torch.from_numpy(rows)])

    started_at = time.perf_counter()
    job = Job(
        module=module,
        groups=[{"params": list(module.parameters()), "lr": RATE}],
        n=len(inputs),
        order=make_order(len(inputs)),
        fetch=lambda epoch, rows: inputs[rows],
        loss=loss,
        score=lambda: Score(float(next(scores)), 0.0),  # the last epoch is the best
        start_epoch=lambda epoch: None,
    )
    train(job, settings)
    return time.perf_counter() - started_at


def measure(name, epochs, rounds):
    build, shape, per_epoch = CASES[name]
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((BATCH * per_epoch, *shape), dtype=np.float32)
    targets = rng.integers(0, CLASSES, len(inputs))
    settings = Training(epochs=epochs, batch_size=BATCH, patience=10_000)
    seconds = {bare: [], engine: []}
    for number in range(rounds + 1):  # the first round is a warm-up
        ends = []
        for side in (bare, engine) if number % 2 else (engine, bare):
            torch.manual_seed(0)
            module = build()
            seconds[side].append(side(module, inputs, targets, settings))
            ends.append(torch.cat([p.detach().flatten() for p in module.parameters()]))
    # Adam scales all gradients to one size, so rounding decides where a gradient is almost 0.
    torch.manual_seed(0)
    initial = torch.cat([p.detach().flatten() for p in build().parameters()])
    difference = float((ends[0] - ends[1]).norm() / (ends[0] - initial).norm())
    if difference > 0.1:
        raise SystemExit(
            "Expected both loops to end with the same weights, but they differ by "
            f"{difference:.1%} of the change. Check that both run the same steps."
        )
    middle = {side: median(values[1:]) for side, values in seconds.items()}
    steps = epochs * per_epoch
    per_step = {side: f"{1000 * middle[side] / steps:.2f}" for side in middle}
    paired = [e / b - 1 for e, b in zip(seconds[engine][1:], seconds[bare][1:], strict=True)]
    overhead = middle[engine] / middle[bare] - 1
    spread = f"{min(paired):+.1%} to {max(paired):+.1%}"
    times = f"{per_step[bare]} | {per_step[engine]}"
    return f"| {name} | {steps} | {times} | **{overhead:+.1%}** | {spread} |"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="1 epoch, 1 round")
    arguments = parser.parse_args()
    epochs, rounds = (1, 1) if arguments.quick else (arguments.epochs, arguments.rounds)
    print(f"{cores()} cores, medians of {rounds} rounds\n")
    print("| network | steps | bare, ms per step | engine, ms per step | overhead | per round |")
    print("|---|---:|---:|---:|---:|---|")
    for name in CASES:
        print(measure(name, epochs, rounds), flush=True)


if __name__ == "__main__":
    main()
