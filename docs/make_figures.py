"""Make the figures of the concept pages from real runs.

    python docs/make_figures.py [--weights FOLDER] [NAME ...]

Without names, all figures are made: some minutes on one core. A small network is trained on drawn
symbols first; this is the pretraining. Then it is transferred to other drawn images. Everything
is seeded, and nothing is downloaded. Each figure is an SVG file in docs/images/concepts/; the
numbers in it are in docs/images/concepts/numbers.json.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from figure_tools import (  # first: it prepares the process before torch is imported
    FOLDER,
    Lab,
    change_pixels,
    draw_intervals,
    images,
    label,
    panels,
    source_test,
)

from headstart.cache import Cache
from headstart.data.demo import regimes
from headstart.methods.finetune import Finetune
from headstart.methods.linear_probe import LinearProbe
from headstart.methods.scratch import Scratch
from headstart.metrics.classification import (
    expected_calibration_error,
    log_loss,
    reliability_curve,
)
from headstart.metrics.confidence_intervals import (
    Interval,
    paired_proportion_difference,
    proportion_interval,
    wilson_interval,
)
from headstart.metrics.domain_distance import proxy_a_distance
from headstart.reports.comparison import COLOURS
from headstart.training.optim import Training
from headstart.training.regularisation.penalties import Regularisation

if TYPE_CHECKING:
    from headstart.backbones.frozen import FrozenBackbone
    from headstart.data.dataset import Dataset

RATES = {"learning_rate": 3e-4, "head_learning_rate": 3e-4}
FULL = {"train_from": "all", **RATES}
"""Fine-tuning of all stages at a rate that is high enough for the small network."""

Numbers = dict[str, Any]


def draw_objective(lab: Lab) -> Numbers:
    """Distance to the pretrained weights and accuracy, by learning rate and L2-SP penalty."""
    train, test = images("shifted", "train").subset(range(400)), images("shifted", "test")
    backbone = lab.backbone()
    training = Training(epochs=8, patience=100)

    def run(**settings: Any) -> tuple[float, float]:
        method = Finetune(train_from="all", training=training, **settings)
        model = lab.train(method, train, backbone)
        return relative_change(backbone, model.backbone), lab.accuracy(model, test)

    by_rate = {r: run(learning_rate=r, head_learning_rate=r) for r in (1e-5, 1e-4, 3e-4, 1e-2)}
    by_alpha = {
        a: run(**RATES, regularisation=Regularisation(l2_sp=a)) for a in (0.01, 0.1, 1.0, 10.0)
    }
    plot_objective((by_rate, by_alpha))
    return {"learning rate: distance, accuracy": by_rate, "l2_sp: distance, accuracy": by_alpha}


def plot_objective(panels_of: Sequence[dict[float, Sequence[float]]]) -> None:
    """Draw accuracy and distance on two scales, by learning rate and by penalty."""
    titles = ("Without a penalty", "Learning rate 3e-4, with --l2-sp")
    with panels("objective", 2) as both:
        for axes, rows, title in zip(both, panels_of, titles, strict=True):
            distances, accuracies = zip(*rows.values(), strict=True)
            axes.plot(list(rows), accuracies, "s-", color=COLOURS[0], label="test accuracy")
            axes.plot([], [], "o-", color=COLOURS[1], label="distance (right scale)")
            axes.set_xscale("log")
            axes.set_ylim(0, 1.02)
            scale = axes.twinx()
            scale.plot(list(rows), distances, "o-", color=COLOURS[1])
            scale.set_ylim(0, 0.102)
            scale.grid(visible=False)
            scale.tick_params(axis="y", colors=COLOURS[1])
            x = "learning rate" if axes is both[0] else "weight α of the penalty"
            label(axes, title, x, "test accuracy")
        both[0].legend(loc=(0.02, 0.42))


def relative_change(before: FrozenBackbone, after: FrozenBackbone) -> float:
    """||w - w0|| / ||w0|| over all parameters of two backbones."""
    old, new = before.copy(), dict(after.copy().named_parameters())
    change = sum(float((new[n] - w).detach().square().sum()) for n, w in old.named_parameters())
    norm = sum(float(w.detach().square().sum()) for w in old.parameters())
    return float(np.sqrt(change / norm))


def draw_size(lab: Lab) -> Numbers:
    """Learning curves of three methods at three distances to the source."""
    sizes = {"near": (16, 48, 320), "shifted": (32, 160, 800)}
    sizes["hopeless"] = (32, 160, 960)
    numbers: Numbers = {}
    with panels("size_and_distance", 3) as all_axes:
        for axes, (name, counts) in zip(all_axes, sizes.items(), strict=True):
            train = images(name, "train", range(10) if name == "near" else (0,))
            test, backbone = images(name, "test", (0, 1)), lab.backbone(name)
            source = images(regimes.SOURCES[name], "train").subset(range(200))
            distance = proxy_a_distance(
                lab.features(backbone, source), lab.features(backbone, test.subset(range(200)))
            )
            methods = {
                "linear probe": LinearProbe(),
                "fine-tuning": Finetune(**FULL),
                "from scratch": Scratch(),
            }
            numbers[name] = {"proxy A-distance": distance.value}
            for (method, settings), colour in zip(methods.items(), COLOURS, strict=False):
                models = [lab.train(settings, train.subset(range(n)), backbone) for n in counts]
                scores = [proportion_interval(lab.correct(m, test)) for m in models]
                draw_intervals(axes, counts, scores, fmt="o-", color=colour, label=method)
                numbers[name][method] = {n: s.value for n, s in zip(counts, scores, strict=True)}
            axes.set_xscale("log")
            axes.set_xticks(counts, [str(n) for n in counts])
            axes.minorticks_off()
            axes.set_ylim(0, 1.02)
            label(axes, f"{name}: distance {distance.value:.2f}", "training images", "")
        all_axes[0].set_ylabel("test accuracy")
        all_axes[0].legend(loc="lower right")
    return numbers


def draw_batch_norm(lab: Lab) -> Numbers:
    """Error of a batch's statistics by its size, and accuracy of the three policies."""
    train, test = images("shifted", "train").subset(range(320)), images("shifted", "test")
    backbone = lab.backbone()
    sizes, policies = (4, 16, 64), ("frozen", "train", "adapt")
    errors = {n: statistic_errors(backbone, train, n) for n in (2, 4, 8, 16, 32, 64)}

    def run(policy: str, n: int) -> Interval:
        training = Training(batch_size=n, epochs=8, patience=100)
        method = Finetune(**FULL, batch_norm=policy, training=training)
        return proportion_interval(lab.correct(lab.train(method, train, backbone), test))

    scores = {policy: [run(policy, n) for n in sizes] for policy in policies}
    with panels("batch_norm", 2) as (left, right):
        for row, (name, colour) in enumerate((("mean", COLOURS[0]), ("variance", COLOURS[1]))):
            left.plot(
                list(errors), [e[row] for e in errors.values()], "o-", color=colour, label=name
            )
        left.plot(list(errors), np.array(list(errors)) ** -0.5, ":", color="black", label="1/√m")
        left.set_xscale("log", base=2)
        left.set_xticks(list(errors), [str(n) for n in errors])
        left.set_ylim(bottom=0)
        label(left, "Statistics of one batch, last layer", "batch size m", "typical error")
        for shift, (policy, colour) in enumerate(zip(policies, COLOURS, strict=False)):
            places = [i + 0.08 * (shift - 1) for i in range(len(sizes))]
            draw_intervals(right, places, scores[policy], fmt="o", color=colour, label=policy)
        right.set_xticks(range(len(sizes)), [str(n) for n in sizes])
        right.set_ylim(0, 1)
        label(right, "Fine-tuning, 320 training images", "batch size", "test accuracy")
        left.legend()
        right.legend(title="--batch-norm", loc="lower right")
    return {
        "error of mean, of variance": errors,
        "accuracy": {
            p: {n: s.value for n, s in zip(sizes, scores[p], strict=True)} for p in scores
        },
    }


def statistic_errors(backbone: FrozenBackbone, data: Dataset, size: int) -> tuple[float, float]:
    """Root mean square error of a batch's mean (in standard deviations) and relative variance.

    The values are the inputs of the last BatchNorm layer; the errors are those from the mean and
    variance over all images, over 50 batches and all channels.
    """
    import torch

    module, kept = backbone.copy(), []
    last = [m for m in module.modules() if isinstance(m, torch.nn.BatchNorm2d)][-1]
    last.register_forward_hook(lambda _module, inputs, _output: kept.append(inputs[0].detach()))
    preprocess = backbone.spec.preprocess
    pixels = np.stack([preprocess.resize_and_crop(np.asarray(s.image)) for s in data.samples])
    mean, std = (np.asarray(v, dtype=np.float32) for v in (preprocess.mean, preprocess.std))
    x = torch.from_numpy(((pixels / np.float32(255) - mean) / std).transpose(0, 3, 1, 2))
    with torch.no_grad():
        module(x)
    maps = kept[0]
    whole_mean, whole_var = maps.mean((0, 2, 3)), maps.var((0, 2, 3))
    rng = np.random.default_rng(0)
    batches = [maps[rng.choice(len(maps), size, replace=False)] for _ in range(50)]
    means = torch.stack([(b.mean((0, 2, 3)) - whole_mean) / whole_var.sqrt() for b in batches])
    variances = torch.stack([b.var((0, 2, 3)) / whole_var - 1 for b in batches])
    return float(means.square().mean().sqrt()), float(variances.square().mean().sqrt())


def draw_lp_ft(lab: Lab) -> Numbers:
    """Accuracy on bright and on dark images after training on bright ones, by the start."""
    backbone, new = lab.backbone(), images("symbols", "train", [1, 2])
    brightness = np.array([np.mean(np.asarray(sample.image)) for sample in new.samples])
    bright, dark = (new.subset(np.flatnonzero(r)) for r in (brightness > 140, brightness < 110))
    train, target = bright.subset(range(160)), bright.subset(range(160, len(bright)))
    other = dark
    rates, training = (3e-5, 1e-4, 3e-4, 1e-3), Training(epochs=12, patience=100)
    probe = lab.train(LinearProbe(), train, backbone)
    rows: dict[str, list[tuple[float, float, float]]] = {}
    for start in ("random", "probe"):
        for rate in rates:
            rates_of = {"learning_rate": rate, "head_learning_rate": rate}
            method = Finetune(train_from="all", start=start, training=training, **rates_of)
            model = lab.train(method, train, backbone)
            before, after = (lab.features(b, other) for b in (backbone, model.backbone))
            change = float(np.linalg.norm(after - before) / np.linalg.norm(before))
            scores = lab.accuracy(model, target), lab.accuracy(model, other)
            rows.setdefault(start, []).append((*scores, change))
    flat = lab.accuracy(probe, target), lab.accuracy(probe, other)
    with panels("lp_ft", 3) as all_axes:
        titles = ("Bright images, as in training", "Dark images", "Features of the dark images")
        for column, (axes, title) in enumerate(zip(all_axes, titles, strict=True)):
            for (start, values), colour in zip(rows.items(), COLOURS[1::-1], strict=False):
                name = "fitted head (LP-FT)" if start == "probe" else "random head"
                axes.plot(rates, [v[column] for v in values], "o-", color=colour, label=name)
            if column < 2:
                axes.axhline(flat[column], color=COLOURS[2], linestyle="--", label="linear probe")
                axes.set_ylim(0.7, 1.01)
            axes.set_xscale("log")
            label(axes, title, "learning rate", "test accuracy" if column < 2 else "change")
        all_axes[2].set_ylim(bottom=0)
        all_axes[0].legend(loc="lower left")
    return {
        "images: train, bright, dark": (len(train), len(target), len(other)),
        "linear probe: bright, dark": flat,
        **{
            f"{start} head: bright, dark, change": dict(zip(map(str, rates), values, strict=True))
            for start, values in rows.items()
        },
    }


def draw_forgetting(lab: Lab) -> Numbers:
    """Accuracy on the source, with the source's classifier, against accuracy on the target."""
    train, test = images("shifted", "train"), images("shifted", "test")
    backbone, source = lab.backbone(), source_test()
    original = lab.train(LinearProbe(), images("symbols", "train").subset(range(800)), backbone)

    def run(**settings: Any) -> tuple[float, float]:
        model = lab.train(Finetune(**settings), train, backbone)
        old_head = replace(original, backbone=model.backbone)
        return lab.accuracy(model, test), lab.accuracy(old_head, source)

    penalties = (0.01, 0.1, 1.0, 10.0)
    curves = {
        "learning rate": {
            str(r): run(train_from="all", learning_rate=r, head_learning_rate=r)
            for r in (1e-5, 3e-5, 1e-4, 3e-4)
        },
        "--l2-sp": {str(a): run(**FULL, regularisation=Regularisation(l2_sp=a)) for a in penalties},
        "--wise-ft": {str(s): run(**FULL, wise_ft=s) for s in (0.25, 0.5, 0.75)},
    }
    probe = lab.accuracy(lab.train(LinearProbe(), train, backbone), test)
    start = probe, lab.accuracy(original, source)
    plot_forgetting(start, curves)
    return {"linear probe: target, source": start, "target, source": curves}


def plot_forgetting(start: Sequence[float], curves: dict[str, dict[str, Any]]) -> None:
    """Draw one curve for each way to limit forgetting."""
    offsets = ((-26, -9), (6, -8), (4, 4))
    with panels("forgetting", 1, height=3.8) as (axes,):
        for row, (name, points) in enumerate(curves.items()):
            x, y = zip(*points.values(), strict=True)
            style = {"color": COLOURS[row], "markersize": 4, "label": name}
            axes.plot(x, y, f"{'os^'[row]}-", **style)
            for text, place in points.items():
                colours = {"color": COLOURS[row], "fontsize": 7}
                axes.annotate(
                    text, place, xytext=offsets[row], textcoords="offset points", **colours
                )
        axes.plot(*start, "*", color="black", markersize=10, label="linear probe")
        label(axes, "", "accuracy on the target", "accuracy on the source, old classifier")
        axes.legend(loc="lower left")


def draw_calibration(lab: Lab) -> Numbers:
    """Reliability diagram of a fine-tuned model, before and after temperature scaling."""
    data = images("shifted", "train")
    test = images("shifted", "test", range(8))
    method = Finetune(**FULL, training=Training(epochs=40, patience=100))
    model = lab.train(method, data.subset(range(320)), lab.backbone())
    logits = model.linear_head().logits(lab.features(model.backbone, test))
    targets = model.align_classes(test).targets()
    tasks = {"T = 1": replace(model.task, temperature=1.0), "fitted T": model.task}
    numbers: Numbers = {"temperature": model.task.temperature}  # type: ignore[union-attr]
    with panels("calibration", 2, height=3.6) as all_axes:
        for axes, (name, task), colour in zip(all_axes, tasks.items(), COLOURS, strict=False):
            probabilities = task.probabilities(logits)  # type: ignore[union-attr]
            bins = reliability_curve(targets, probabilities, 10)
            error = float(expected_calibration_error(targets, probabilities, 10))
            loss = float(log_loss(targets, probabilities))
            axes.plot([0, 1], [0, 1], color="#888888", linewidth=1, linestyle="--")
            bins = replace(bins, accuracy=np.where(bins.weight < 10, np.nan, bins.accuracy))
            axes.bar(np.arange(10) / 10 + 0.05, bins.accuracy, 0.09, color=colour, alpha=0.8)
            axes.plot(bins.confidence, bins.accuracy, "o", color="black", markersize=3)
            axes.set_xlim(0, 1)
            axes.set_ylim(0, 1)
            title = name if name == "T = 1" else f"T = {numbers['temperature']:.2f}, fitted"
            label(axes, f"{title}: ECE {error:.3f}, log-loss {loss:.2f}", "confidence", "accuracy")
            numbers[name] = {"ECE": error, "log-loss": loss}
    accuracy = (logits.argmax(axis=1) == targets).mean()
    return {"images": len(test), "accuracy": float(accuracy), **numbers}


def draw_intervals_page(lab: Lab) -> Numbers:
    """Power of unpaired and paired comparisons by simulation, and one real pair of models."""
    sizes = (50, 100, 200, 500, 1000, 2000)
    power = {n: simulate_power(n, 0.90, 0.93) for n in sizes}
    rng = np.random.default_rng(0)
    train, test = (
        change_pixels(data, lambda p: p + rng.normal(0, 12, p.shape))
        for data in (images("near", "train"), images("near", "test", range(10)))
    )
    models = [lab.train(LinearProbe(), train.subset(range(n)), lab.backbone()) for n in (16, 48)]
    order = rng.permutation(len(test))
    first, second = (lab.correct(model, test)[order] for model in models)
    shown = (100, 300, 1000, 3200)
    same = [paired_proportion_difference(second[:n], first[:n]).interval for n in shown]
    separate = [unpaired(int(first[:n].sum()), int(second[:n].sum()), n) for n in shown]
    with panels("intervals", 2) as (left, right):
        for row, name in enumerate(("two separate test sets", "the same test images")):
            left.plot(sizes, [p[row] for p in power.values()], "o-", color=COLOURS[row], label=name)
        left.set_ylim(0, 1.02)
        label(left, "90 % against 93 % (simulated)", "test images", "share found significant")
        for scores, colour, shift in ((separate, COLOURS[0], 0.93), (same, COLOURS[1], 1.07)):
            draw_intervals(right, [n * shift for n in shown], scores, fmt="o", color=colour)
        right.axhline(0, color="black", linewidth=0.8)
        label(right, "Two linear probes (real run)", "test images", "difference in accuracy")
        for axes, ticks in ((left, sizes), (right, shown)):
            axes.set_xscale("log")
            axes.set_xticks(ticks, [str(n) for n in ticks])
            axes.minorticks_off()
        left.legend(loc="upper left")
    return {
        "power: separate, same": power,
        "accuracy": [float(first.mean()), float(second.mean())],
        "difference, separate": {n: bounds(i) for n, i in zip(shown, separate, strict=True)},
        "difference, paired": {n: bounds(i) for n, i in zip(shown, same, strict=True)},
        "wilson 90 of 100": bounds(wilson_interval(90, 100)),
        "wilson 93 of 100": bounds(wilson_interval(93, 100)),
    }


def bounds(interval: Interval) -> tuple[float, float, float]:
    """Return the value and both bounds."""
    return interval.value, interval.low, interval.high


def unpaired(first: int, second: int, n: int) -> Interval:
    """Newcombe's interval for the difference of two accuracies on separate test sets of n images.

    Newcombe (1998), Interval estimation for the difference between independent proportions,
    method 10: it combines the two Wilson intervals.
    """
    one, two = wilson_interval(first, n), wilson_interval(second, n)
    value = two.value - one.value
    low = value - float(np.hypot(two.value - two.low, one.high - one.value))
    high = value + float(np.hypot(two.high - two.value, one.value - one.low))
    return replace(one, value=value, low=low, high=high, method="Newcombe")


def simulate_power(n: int, a: float, b: float, trials: int = 400) -> tuple[float, float]:
    """Share of simulated test sets on which accuracies a < b are significantly different.

    Separate sets: Newcombe's interval. The same images: both models are right on a share
    ``a - 0.02`` of them, so they differ on 7 % of the images.
    """
    rng, found = np.random.default_rng(n), np.zeros(2)
    both = a - 0.02
    for _ in range(trials):
        hits = rng.binomial(n, [a, b])
        apart = unpaired(int(hits[0]), int(hits[1]), n)
        found[0] += apart.low > 0 or apart.high < 0
        u = rng.random(n)
        first, second = u < a, (u < both) | ((u >= a) & (u < a + b - both))
        found[1] += paired_proportion_difference(second, first).significant
    return float(found[0] / trials), float(found[1] / trials)


def draw_domain(lab: Lab) -> Numbers:
    """Target error of a source classifier against the distance of the target to the source."""
    backbone, source = lab.backbone(), source_test()
    train = images("symbols", "train").subset(range(800))
    model = lab.train(LinearProbe(), train, backbone)
    features = lab.features(backbone, train)
    source_error = 1 - lab.accuracy(model, source)
    points: Numbers = {}
    for name, target in targets_of(source).items():
        there = lab.features(backbone, target)
        distance = proxy_a_distance(features, there)
        both = replace(train, samples=(*train.samples, *target.samples))
        joint = lab.train(LinearProbe(), both, backbone)
        shared = (1 - lab.accuracy(joint, train)) + (1 - lab.accuracy(joint, target))
        points[name] = (distance.value, 1 - lab.accuracy(model, target), shared)
    with panels("domain_bound", 1, height=3.9) as (axes,):
        for name, (distance, error, shared) in points.items():
            bound = min(source_error + distance / 2 + shared, 1.0)
            axes.plot([distance] * 2, [error, bound], "-", color="#cccccc", linewidth=1, zorder=1)
            axes.plot(distance, error, "o", color=COLOURS[0], markersize=5)
            axes.plot(distance, bound, "_", color=COLOURS[1], markersize=9, markeredgewidth=2)
            axes.annotate(
                name, (distance, error), xytext=(5, 3), textcoords="offset points", fontsize=7.5
            )
        axes.plot([], [], "o", color=COLOURS[0], label="measured")
        axes.plot([], [], "_", color=COLOURS[1], markeredgewidth=2, label="estimate of the bound")
        axes.set_xlim(-0.05, 2.5)
        axes.set_ylim(-0.03, 1.03)
        label(axes, "", "proxy A-distance to the source", "error on the target")
        axes.legend(loc="upper left")
    return {"source error": source_error, "distance, target error, joint error": points}


def targets_of(source: Dataset) -> dict[str, Dataset]:
    """Targets at growing distances: the source's images with changed pixels, and other styles."""
    rng = np.random.default_rng(0)
    noises = {f"noise {s}": s for s in (15, 30, 60)}
    noisy = {
        name: change_pixels(source, lambda p, s=s: p + rng.normal(0, s, p.shape))
        for name, s in noises.items()
    }
    return {
        "source": source,
        **noisy,
        "darker": change_pixels(source, lambda p: 0.5 * p),
        "negative": change_pixels(source, lambda p: 255 - p),
        "upside down": change_pixels(source, lambda p: p[::-1]),
        "outlines": images("shifted", "train"),
    }


FIGURES: dict[str, Callable[[Lab], Numbers]] = {
    "objective": draw_objective,
    "size_and_distance": draw_size,
    "batch_norm": draw_batch_norm,
    "lp_ft": draw_lp_ft,
    "forgetting": draw_forgetting,
    "calibration": draw_calibration,
    "intervals": draw_intervals_page,
    "domain_bound": draw_domain,
}


def rounded(value: Any) -> Any:
    """Round the numbers in nested values to four digits."""
    if isinstance(value, dict):
        return {str(key): rounded(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(one) for one in value]
    return value if isinstance(value, int | str) else round(float(value), 4)


def main() -> None:
    """Make the figures with the given names, or all of them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(FIGURES))
    parser.add_argument("--weights", type=Path, help="folder that keeps the pretrained weights")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(FIGURES):
        parser.error(f"Unknown figure: {sorted(unknown)[0]!r}. Choose from {', '.join(FIGURES)}.")
    record = FOLDER / "numbers.json"
    numbers = json.loads(record.read_text(encoding="utf-8")) if record.exists() else {}
    with tempfile.TemporaryDirectory() as folder, Cache(Path(folder) / "cache") as cache:
        lab = Lab(weights=arguments.weights or Path(folder), cache=cache)
        for name in arguments.names or FIGURES:
            started_at = time.perf_counter()
            numbers[name] = rounded(FIGURES[name](lab))
            record.write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")
            sys.stdout.write(f"{name}: {time.perf_counter() - started_at:.0f} s\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
