"""Accuracy by trained stages and by number of training images, as a table and a plot.

Datasets x backbones x images per class x methods x seeds. All methods have the same training
images, which the seed selects, and the same test images: the test part of the dataset, or a
stratified fifth. All methods with gradient descent have the same image size, number of epochs and
limit of steps. Every run has an empty cache; seconds are those of the training. A line of JSON is
appended after each run, so a stopped benchmark continues where it stopped.

    python benchmarks/strategies.py DATA [--out runs.jsonl] [--only cats_dogs//25/probe/0]
    python benchmarks/strategies.py --out runs.jsonl --table --plot accuracy.svg

DATA (by default HEADSTART_BENCH_DATA) has ``classification/<set>`` and
``weights/resnet18_in1k_vq.pth``. ``--only`` is set/backbone/n/method/seed; empty parts mean any.
"""

import argparse
import json
import os
import tempfile
import time
from dataclasses import replace
from itertools import groupby, product
from pathlib import Path
from statistics import mean

from headstart.runtime import prepare

prepare()  # as the command line does, before torch is imported

import accelerate  # noqa: E402, F401 - imports of many seconds are not part of a training
import numpy as np  # noqa: E402
import torch._dynamo  # noqa: E402, F401 - as above: the first optimiser would

from headstart.backbones.frozen import FrozenBackbone  # noqa: E402
from headstart.cache import Cache  # noqa: E402
from headstart.data.images import digest  # noqa: E402
from headstart.data.readers import read_dataset  # noqa: E402
from headstart.data.splits import holdout  # noqa: E402
from headstart.features.extractor import Extractor  # noqa: E402
from headstart.methods.finetune import Finetune  # noqa: E402
from headstart.methods.linear_probe import LinearProbe  # noqa: E402
from headstart.methods.scratch import Scratch  # noqa: E402
from headstart.metrics.confidence_intervals import paired_proportion_difference, proportion_interval  # noqa: E402
from headstart.models.tasks import ClassificationTask  # noqa: E402
from headstart.models.transfer_model import TransferModel  # noqa: E402
from headstart.training.optim import Training  # noqa: E402

SETS = ("ants_bees", "cats_dogs", "chest_xray")
BACKBONES = {
    "lite0": "embedded/efficientnet_lite0",
    "resnet18": "file:{data}/weights/resnet18_in1k_vq.pth@torchvision/resnet18",
}
METHODS = ("scratch", "probe", "last-stage", "lp-ft", "full")
NUMBERS = ("25", "100", "all")
AXES = ("set", "backbone", "n", "method", "seed")
TRAIN_SHARE = 0.85
"""Share of the images that is trained on; the rest is for early stopping."""


def method_of(name, seed, n_images, arguments):
    """Return the method of a column of the table."""
    if name == "probe":
        return LinearProbe(seed=seed)
    n_train = round(TRAIN_SHARE * n_images)
    training = Training(epochs=arguments.epochs, precision=arguments.precision)
    training = training.for_images(n_train)
    max_epochs = max(1, arguments.most_steps // training.steps_per_epoch(n_train))
    training = replace(training, epochs=min(training.epochs, max_epochs))
    if name == "scratch":
        return Scratch(training=training, seed=seed)
    options = {
        "last-stage": {"train_from": "last:1", "start": "random", "head_learning_rate": 1e-3},
        "lp-ft": {"train_from": "last:2", "start": "probe"},
        "full": {"train_from": "all", "start": "probe", "layer_decay": 0.7},
    }[name]
    return Finetune(learning_rate=1e-4, training=training, seed=seed, **options)


def backbone_of(name, arguments):
    """Open a backbone with images of ``--size`` pixels."""
    backbone = FrozenBackbone.open(BACKBONES[name].format(data=arguments.data), offline=True)
    default, side = backbone.spec.preprocess, arguments.size
    preprocess = replace(default, crop=side, resize=round(side * default.resize / default.crop))
    return replace(backbone, spec=replace(backbone.spec, preprocess=preprocess))


def parts_of(name, data_folder):
    """Return the training part and the test part, which is the same for all seeds."""
    data = read_dataset(Path(data_folder) / "classification" / name)
    samples = tuple(replace(s, digest=digest(s.image.read_bytes())) for s in data.samples)
    data = replace(data, samples=samples)
    for part in ("test", "val"):
        test = data.split_indices(part)
        if len(test):
            return data.split("train"), data.subset(test)
    train, test = holdout(data.targets(), fraction=0.2, seed=0)
    return data.subset(train), data.subset(test)


def sample_per_class(train, n, seed, limit):
    """Select ``n`` images per class, or all of them up to ``limit`` if ``n`` is "all"."""
    targets, rows = train.targets(), []
    for label in np.unique(targets):
        of_class = np.flatnonzero(targets == label)
        k = min(len(of_class), limit if n == "all" else int(n))
        rows.extend(np.random.default_rng(seed).permutation(of_class)[:k])
    return train.subset(sorted(rows))


def run(combination, train, test, backbone, arguments):
    """Train and test one combination; return a line of the file."""
    name, seed = combination["method"], combination["seed"]
    data = sample_per_class(train, combination["n"], seed, arguments.most)
    method = method_of(name, seed, len(data), arguments)
    model = TransferModel(backbone=backbone, task=ClassificationTask(classes=train.classes))
    engine = "bf16" if arguments.precision == "bf16" else "fp32"
    with tempfile.TemporaryDirectory() as folder, Cache(Path(folder)) as cache:
        extractor = Extractor(cache=cache, engine=engine)
        started_at = time.perf_counter()
        fitted = method.fit(model, data, extractor=extractor)
        seconds = time.perf_counter() - started_at
        predictions = fitted.predict_probabilities(test.samples, extractor=extractor).argmax(1)
    correct = predictions == test.targets()
    record = {key: fitted.record[key] for key in ("best_epoch", "steps") if key in fitted.record}
    return {
        **combination,
        "settings": settings_of(arguments),
        "images": len(data),
        "seconds": round(seconds, 2),
        "accuracy": float(correct.mean()),
        "right": "".join("01"[int(hit)] for hit in correct),
        **record,
        "wall": round(time.perf_counter() - started_at, 2),
    }


def settings_of(arguments):
    return {k: getattr(arguments, k) for k in ("size", "epochs", "most_steps", "most", "precision")}


def combinations(arguments):
    """Yield the combinations to run, seed by seed: a stopped benchmark has complete seeds."""
    filters = (arguments.only.split("/") + [""] * len(AXES))[: len(AXES)]
    axes = (range(arguments.seeds), SETS, BACKBONES, NUMBERS, METHODS)
    for seed, *rest in product(*axes):
        combination = dict(zip(AXES, (*rest, seed), strict=True))
        values = map(str, combination.values())
        if all(pattern in ("", value) for pattern, value in zip(filters, values, strict=True)):
            yield combination


def read(path):
    lines = path.read_text().splitlines() if path.exists() else []
    rows = [json.loads(line) for line in lines if line.endswith("}")]  # the last may be cut off
    n_settings = len({json.dumps(row["settings"]) for row in rows})
    if n_settings > 1:
        raise SystemExit(
            f"Expected runs with the same settings in {path}, got {n_settings} settings. Pass "
            "another file with --out."
        )
    return rows


def estimate_seconds(todo, done):
    """Estimate the remaining time from the runs that are most similar to each combination."""

    def estimate(combination):
        for keys in (("set", "backbone", "n", "method"), ("n", "method"), ("method",), ()):
            similar = [
                row["wall"] for row in done if all(row[key] == combination[key] for key in keys)
            ]
            if similar:
                return mean(similar)
        return 0.0

    return sum(estimate(combination) for combination in todo)


def run_all(arguments):
    done = read(arguments.out)
    if done and done[0]["settings"] != settings_of(arguments):
        raise SystemExit(
            f"{arguments.out} has runs with the settings {done[0]['settings']}, which differ from "
            f"{settings_of(arguments)}. Pass the same settings, or another file with --out."
        )
    if arguments.out.exists() and not arguments.out.read_bytes().endswith(b"\n"):
        with arguments.out.open("a") as file:  # the last line was cut off: start a new one after it
            file.write("\n")
    finished = {tuple(row[axis] for axis in AXES) for row in done}
    todo = [
        combination
        for combination in combinations(arguments)
        if tuple(combination[axis] for axis in AXES) not in finished
    ]
    parts, backbones = {}, {}
    while todo:
        combination = todo.pop(0)
        name, backbone = combination["set"], combination["backbone"]
        parts[name] = parts.get(name) or parts_of(name, arguments.data)
        backbones[backbone] = backbones.get(backbone) or backbone_of(backbone, arguments)
        train, test = parts[name]
        row = run(combination, train, test, backbones[backbone], arguments)
        with arguments.out.open("a") as file:
            file.write(json.dumps(row) + "\n")
        done.append(row)
        label = "/".join(str(combination[axis]) for axis in AXES)
        minutes = estimate_seconds(todo, done) / 60
        result = f"{row['accuracy']:.3f}, {row['seconds']:.1f} s"
        print(f"{label}: {result}; {len(todo)} left, {minutes:.1f} min", flush=True)


def pool_seeds(rows):
    """Return for all seeds whether each prediction is correct, and the row of its image."""
    correct = np.concatenate([[digit == "1" for digit in row["right"]] for row in rows])
    return correct, np.concatenate([np.arange(len(row["right"])) for row in rows])


def summary(done):
    """Yield for each set, backbone and number the first run, and the runs of each method."""

    def sort_key(row):
        order = SETS.index(row["set"]), list(BACKBONES).index(row["backbone"])
        return *order, NUMBERS.index(row["n"]), METHODS.index(row["method"]), row["seed"]

    for _, group in groupby(sorted(done, key=sort_key), key=lambda row: sort_key(row)[:3]):
        rows = list(group)
        yield (
            rows[0],
            {method: [row for row in rows if row["method"] == method] for method in METHODS},
        )


def format_runs(rows, probe):
    """Format accuracy, interval, range over seeds, seconds, and the comparison with the probe."""
    if not rows:
        return "-"
    correct, image = pool_seeds(rows)
    accuracies = [row["accuracy"] for row in rows]
    interval = proportion_interval(correct, image)
    text = f"{interval}, {min(accuracies):.3f}-{max(accuracies):.3f}"
    mark, seeds = "", {row["seed"] for row in probe}
    if probe and rows is not probe and seeds == {row["seed"] for row in rows}:
        difference = paired_proportion_difference(correct, pool_seeds(probe)[0], image)
        if difference.significant:
            mark = " **+**" if difference.interval.value > 0 else " **-**"
    return f"{text}{mark}, {mean(row['seconds'] for row in rows):.1f} s"


def table(done):
    lines = ["| set, backbone | per class | " + " | ".join(METHODS) + " |"]
    lines.append("|---|---|" + "---|" * len(METHODS))
    for first, runs in summary(done):
        head = f"| {first['set']}, {first['backbone']} | {first['n']} ({first['images']})"
        lines.append(
            " | ".join([head, *(format_runs(runs[m], runs["probe"]) for m in METHODS)]) + " |"
        )
    note = (
        f"Settings: {json.dumps(done[0]['settings'])}. Mean accuracy [95 %], lowest-highest seed, "
        "seconds of a training with an empty cache. The interval is Wilson's, of all seeds' "
        "predictions, clustered by test image: it shows the variation over test images, the range "
        "shows the variation over training images. **+** or **-**: better or worse than the probe "
        "on the same test images; the paired interval excludes 0."
    )
    return "\n".join([*lines, "", note])


WIDE, HIGH, EDGE, TOP = 270, 200, 44, 48
COLOURS = ("#8a8f98", "#d97706", "#2f8fe0", "#17a673", "#c0509f")
STYLE = (
    ".back{fill:#fff}text{font:12px sans-serif;fill:#24292f}.grid{stroke:#d0d7de}"
    "@media (prefers-color-scheme:dark){.back{fill:#0d1117}text{fill:#e6edf3}"
    ".grid{stroke:#3d444d}}"
)


def panel(x0, y0, title, groups, low):
    """Draw the axes, and for each method a line with intervals over the images per class."""

    def y_of(share):
        return y0 + HIGH * (1 - (share - low) / (1 - low))

    step = WIDE / len(NUMBERS)
    parts = [f'<text x="{x0}" y="{y0 - 8}" font-weight="bold">{title}</text>']
    for k in range(5):
        share = low + (1 - low) * k / 4
        y = y_of(share)
        parts.append(f'<path class="grid" d="M{x0} {y:.1f}h{WIDE}"/>')
        parts.append(f'<text x="{x0 - 6}" y="{y + 4:.1f}" text-anchor="end">{share:.2f}</text>')
    for i, n in enumerate(NUMBERS):
        x = x0 + (i + 0.5) * step
        parts.append(f'<text x="{x:.1f}" y="{y0 + HIGH + 16}" text-anchor="middle">{n}</text>')
    for rank, (method, colour) in enumerate(zip(METHODS, COLOURS, strict=True)):
        points = []
        for n, runs in groups:
            if runs[method]:
                interval = proportion_interval(*pool_seeds(runs[method]))
                x = x0 + (NUMBERS.index(n) + 0.5) * step + 8 * (rank - 2)
                ends = [y_of(max(low, v)) for v in (interval.value, interval.low, interval.high)]
                points.append(f"{x:.1f},{ends[0]:.1f}")
                whisker = f"M{x:.1f} {ends[1]:.1f}V{ends[2]:.1f}"
                parts.append(f'<path d="{whisker}" stroke="{colour}" stroke-width="1.5"/>')
                parts.append(f'<circle cx="{x:.1f}" cy="{ends[0]:.1f}" r="3.5" fill="{colour}"/>')
        line = " ".join(points)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
    return parts


def plot(done):
    """Return an SVG with a row for each backbone and a column for each set."""
    summaries = list(summary(done))
    width, height = len(SETS) * (WIDE + EDGE + 12) + 12, TOP + len(BACKBONES) * (HIGH + 66)
    body = []
    for i, (method, colour) in enumerate(zip(METHODS, COLOURS, strict=True)):
        x = EDGE + 110 * i
        body.append(f'<path d="M{x} 18h22" stroke="{colour}" stroke-width="3"/>')
        body.append(f'<text x="{x + 28}" y="22">{method}</text>')
    caption = "accuracy by images per class; bars: 95 %"
    body.append(f'<text x="{width - 12}" y="22" text-anchor="end">{caption}</text>')
    for column, name in enumerate(SETS):
        accuracies = [row["accuracy"] for row in done if row["set"] == name]
        low = max(0.0, 0.1 * int(10 * min(accuracies, default=0.5) - 0.5))
        for line, backbone in enumerate(BACKBONES):
            groups = [
                (first["n"], runs)
                for first, runs in summaries
                if (first["set"], first["backbone"]) == (name, backbone)
            ]
            x0, y0 = EDGE + column * (WIDE + EDGE + 12), TOP + 22 + line * (HIGH + 62)
            body += panel(x0, y0, f"{name}, {backbone}", groups, low)
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">',
            "<title>Accuracy against images per class, by method</title>",
            f'<style>{STYLE}</style><rect class="back" width="{width}" height="{height}"/>',
            *body,
            "</svg>\n",
        ]
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", nargs="?", default=os.environ.get("HEADSTART_BENCH_DATA"))
    parser.add_argument("--out", type=Path, default=Path("strategies.jsonl"))
    parser.add_argument("--only", default="", help="set/backbone/n/method/seed")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--size", type=int, default=128, help="side of the images, in pixels")
    parser.add_argument("--epochs", type=int, default=0, help="0: depends on the number of images")
    parser.add_argument("--most-steps", type=int, default=150)
    parser.add_argument(
        "--most", type=int, default=400, help="maximum of images per class in `all`"
    )
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--table", action="store_true", help="print the table, run nothing")
    parser.add_argument("--plot", type=Path, help="draw the SVG, run nothing")
    arguments = parser.parse_args()
    if arguments.table or arguments.plot:
        done = read(arguments.out)
        if not done:
            raise SystemExit(
                f"{arguments.out} has no runs. Run the benchmark without --table first."
            )
        if arguments.table:
            print(table(done))
        if arguments.plot:
            arguments.plot.write_text(plot(done))
        return
    if not arguments.data or not (Path(arguments.data) / "classification").is_dir():
        print("Skipped. Set HEADSTART_BENCH_DATA to a folder with classification/.")
        return
    run_all(arguments)


if __name__ == "__main__":
    main()
