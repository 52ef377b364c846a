"""How much of a pretrained network should learn, for how many images: the table and the plot.

Data sets x backbones x images per class x methods x seeds. All methods of a cell learn from the
same images (a seed draws them) and answer the same test images: the data's own test part, or
a fifth, by class. One budget for all that trains by gradient: image side, epochs, at most so
many steps. Every run has an empty cache of its own; seconds are those of the training. A line of
JSON is appended for each run at once, so a run that was stopped goes on where it was.

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
from headstart.data.splits import holdout, per_class  # noqa: E402
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
LEARNS = 0.85
"""Share that is learned from; the rest stops the training."""


def method_of(name, seed, images, arguments):
    """What each column of the table means."""
    if name == "probe":
        return LinearProbe(seed=seed)
    learned = round(LEARNS * images)
    training = Training(epochs=arguments.epochs, precision=arguments.precision)
    training = training.for_images(learned)
    most = max(1, arguments.most_steps // training.steps_per_epoch(learned))
    training = replace(training, epochs=min(training.epochs, most))
    if name == "scratch":
        return Scratch(training=training, seed=seed)
    options = {
        "last-stage": {"train_from": "last:1", "start": "random", "head_learning_rate": 1e-3},
        "lp-ft": {"train_from": "last:2", "start": "probe"},
        "full": {"train_from": "all", "start": "probe", "layer_decay": 0.7},
    }[name]
    return Finetune(learning_rate=1e-4, training=training, seed=seed, **options)


def backbone_of(module, arguments):
    """The module, reading images of another side."""
    backbone = FrozenBackbone.open(BACKBONES[module].format(data=arguments.data), offline=True)
    usual, side = backbone.spec.preprocess, arguments.size
    look = replace(usual, crop=side, resize=round(side * usual.resize / usual.crop))
    return replace(backbone, spec=replace(backbone.spec, preprocess=look))


def parts_of(name, data_folder):
    """What may be learned from, and the test part, which no seed changes."""
    data = read_dataset(Path(data_folder) / "classification" / name)
    named = tuple(replace(s, digest=digest(s.image.read_bytes())) for s in data.samples)
    data = replace(data, samples=named)
    for own in ("test", "val"):
        tested = data.split_indices(own)
        if len(tested):
            return data.split("train"), data.subset(tested)
    learned, tested = holdout(data.targets(), fraction=0.2, seed=0)
    return data.subset(learned), data.subset(tested)


def drawn(train, n, seed, most):
    """So many of each class, or all that a class has, at most ``most``."""
    targets, rows = train.targets(), []
    for label in np.unique(targets):
        of_class = np.flatnonzero(targets == label)
        k = min(len(of_class), most if n == "all" else int(n))
        rows.extend(of_class[per_class(np.zeros(len(of_class), int), k, seed=seed)])
    return train.subset(sorted(rows))


def run(cell, train, test, backbone, arguments):
    """One line of the file."""
    name, seed = cell["method"], cell["seed"]
    chosen = drawn(train, cell["n"], seed, arguments.most)
    method = method_of(name, seed, len(chosen), arguments)
    blank = TransferModel(backbone=backbone, task=ClassificationTask(classes=train.classes))
    engine = "bf16" if arguments.precision == "bf16" else "fp32"
    with tempfile.TemporaryDirectory() as folder, Cache(Path(folder)) as cache:
        extractor = Extractor(cache=cache, engine=engine)
        begin = time.perf_counter()
        model = method.fit(blank, chosen, extractor=extractor)
        seconds = time.perf_counter() - begin
        found = model.predict_probabilities(test.samples, extractor=extractor).argmax(1)
    right = found == test.targets()
    kept = {key: model.record[key] for key in ("best_epoch", "steps") if key in model.record}
    return {
        **cell,
        "settings": settings_of(arguments),
        "images": len(chosen),
        "seconds": round(seconds, 2),
        "accuracy": float(right.mean()),
        "right": "".join("01"[int(r)] for r in right),
        **kept,
        "wall": round(time.perf_counter() - begin, 2),
    }


def settings_of(arguments):
    return {k: getattr(arguments, k) for k in ("size", "epochs", "most_steps", "most", "precision")}


def cells(arguments):
    """All that is wanted, a whole seed after the other: a file cut short is a table with fewer."""
    wanted = (arguments.only.split("/") + [""] * len(AXES))[: len(AXES)]
    axes = (range(arguments.seeds), SETS, BACKBONES, NUMBERS, METHODS)
    for seed, *rest in product(*axes):
        cell = dict(zip(AXES, (*rest, seed), strict=True))
        if all(w in ("", str(v)) for w, v in zip(wanted, cell.values(), strict=True)):
            yield cell


def read(path):
    lines = path.read_text().splitlines() if path.exists() else []
    found = [json.loads(line) for line in lines if line.endswith("}")]  # a kill may cut the last
    if len({json.dumps(row["settings"]) for row in found}) > 1:
        raise SystemExit(f"Expected runs of one setting in {path}, got several.")
    return found


def left_seconds(todo, done):
    """From runs of the same kind, else of the same method and number, else of any."""

    def guess(cell):
        for keys in (("set", "backbone", "n", "method"), ("n", "method"), ("method",), ()):
            alike = [r["wall"] for r in done if all(r[k] == cell[k] for k in keys)]
            if alike:
                return mean(alike)
        return 0.0

    return sum(guess(cell) for cell in todo)


def run_all(arguments):
    done = read(arguments.out)
    if done and done[0]["settings"] != settings_of(arguments):
        raise SystemExit(f"Expected {arguments.out} to have these settings, got others.")
    if arguments.out.exists() and not arguments.out.read_bytes().endswith(b"\n"):
        with arguments.out.open("a") as file:  # what a kill has cut stays a line of its own
            file.write("\n")
    had = {tuple(row[a] for a in AXES) for row in done}
    todo = [cell for cell in cells(arguments) if tuple(cell[a] for a in AXES) not in had]
    parts, backbones = {}, {}
    while todo:
        cell = todo.pop(0)
        name, backbone = cell["set"], cell["backbone"]
        parts[name] = parts.get(name) or parts_of(name, arguments.data)
        backbones[backbone] = backbones.get(backbone) or backbone_of(backbone, arguments)
        row = run(cell, *parts[name], backbones[backbone], arguments)
        with arguments.out.open("a") as file:
            file.write(json.dumps(row) + "\n")
        done.append(row)
        label = "/".join(str(cell[a]) for a in AXES)
        rest = left_seconds(todo, done) / 60
        told = f"{row['accuracy']:.3f}, {row['seconds']:.1f} s"
        print(f"{label}: {told}; {len(todo)} left, {rest:.1f} min", flush=True)


def pooled(rows):
    """Every answer of every seed, and the image that it belongs to."""
    right = np.concatenate([[c == "1" for c in row["right"]] for row in rows])
    return right, np.concatenate([np.arange(len(row["right"])) for row in rows])


def summary(done):
    """By set, backbone and number: for each method its runs."""

    def place(row):
        order = SETS.index(row["set"]), list(BACKBONES).index(row["backbone"])
        return *order, NUMBERS.index(row["n"]), METHODS.index(row["method"]), row["seed"]

    for _, cell in groupby(sorted(done, key=place), key=lambda r: place(r)[:3]):
        rows = list(cell)
        yield rows[0], {m: [r for r in rows if r["method"] == m] for m in METHODS}


def told(rows, probe):
    """Mean accuracy, interval, range over seeds, seconds, and whether it is not the probe's."""
    if not rows:
        return "-"
    right, image = pooled(rows)
    each = [row["accuracy"] for row in rows]
    text = f"{proportion_interval(right, image)}, {min(each):.3f}-{max(each):.3f}"
    mark, seeds = "", {row["seed"] for row in probe}
    if probe and rows is not probe and seeds == {row["seed"] for row in rows}:
        gap = paired_proportion_difference(right, pooled(probe)[0], image)
        if gap.distinguishable:
            mark = " **+**" if gap.interval.value > 0 else " **-**"
    return f"{text}{mark}, {mean(row['seconds'] for row in rows):.1f} s"


def table(done):
    lines = ["| set, backbone | a class | " + " | ".join(METHODS) + " |"]
    lines.append("|---|---|" + "---|" * len(METHODS))
    for first, by in summary(done):
        head = f"| {first['set']}, {first['backbone']} | {first['n']} ({first['images']})"
        lines.append(" | ".join([head, *(told(by[m], by["probe"]) for m in METHODS)]) + " |")
    note = (
        f"Settings: {json.dumps(done[0]['settings'])}. Mean accuracy [95 %], lowest-highest seed, "
        "seconds of a cold training. Wilson's interval of all seeds' answers, clustered by test "
        "image: it speaks of other images to test on; the range speaks of others to learn "
        "from. **+** or **-**: better or worse than the probe on the same test images, the "
        "paired interval leaving out 0."
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
    """Axes, and for each method its line with intervals; places are numbers per class, by rank."""

    def down(share):
        return y0 + HIGH * (1 - (share - low) / (1 - low))

    step = WIDE / len(NUMBERS)
    parts = [f'<text x="{x0}" y="{y0 - 8}" font-weight="bold">{title}</text>']
    for k in range(5):
        share = low + (1 - low) * k / 4
        y = down(share)
        parts.append(f'<path class="grid" d="M{x0} {y:.1f}h{WIDE}"/>')
        parts.append(f'<text x="{x0 - 6}" y="{y + 4:.1f}" text-anchor="end">{share:.2f}</text>')
    for i, n in enumerate(NUMBERS):
        x = x0 + (i + 0.5) * step
        parts.append(f'<text x="{x:.1f}" y="{y0 + HIGH + 16}" text-anchor="middle">{n}</text>')
    for rank, (method, colour) in enumerate(zip(METHODS, COLOURS, strict=True)):
        points = []
        for n, by in groups:
            if by[method]:
                found = proportion_interval(*pooled(by[method]))
                x = x0 + (NUMBERS.index(n) + 0.5) * step + 8 * (rank - 2)
                ends = [down(max(low, v)) for v in (found.value, found.low, found.high)]
                points.append(f"{x:.1f},{ends[0]:.1f}")
                whisker = f"M{x:.1f} {ends[1]:.1f}V{ends[2]:.1f}"
                parts.append(f'<path d="{whisker}" stroke="{colour}" stroke-width="1.5"/>')
                parts.append(f'<circle cx="{x:.1f}" cy="{ends[0]:.1f}" r="3.5" fill="{colour}"/>')
        line = " ".join(points)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
    return parts


def plot(done):
    """SVG: a row for each backbone, a column for each set."""
    found = list(summary(done))
    width, height = len(SETS) * (WIDE + EDGE + 12) + 12, TOP + len(BACKBONES) * (HIGH + 66)
    body = []
    for i, (method, colour) in enumerate(zip(METHODS, COLOURS, strict=True)):
        x = EDGE + 110 * i
        body.append(f'<path d="M{x} 18h22" stroke="{colour}" stroke-width="3"/>')
        body.append(f'<text x="{x + 28}" y="22">{method}</text>')
    ending = "accuracy by images per class; bars: 95 %"
    body.append(f'<text x="{width - 12}" y="22" text-anchor="end">{ending}</text>')
    for column, name in enumerate(SETS):
        of_set = [row for row in done if row["set"] == name]
        low = max(0.0, 0.1 * int(10 * min((r["accuracy"] for r in of_set), default=0.5) - 0.5))
        for line, backbone in enumerate(BACKBONES):
            mine = [
                (f["n"], by) for f, by in found if (f["set"], f["backbone"]) == (name, backbone)
            ]
            x0, y0 = EDGE + column * (WIDE + EDGE + 12), TOP + 22 + line * (HIGH + 62)
            body += panel(x0, y0, f"{name}, {backbone}", mine, low)
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
    parser.add_argument("--epochs", type=int, default=0, help="0: as the number of images says")
    parser.add_argument("--most-steps", type=int, default=150)
    parser.add_argument("--most", type=int, default=400, help="images a class in `all`")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--table", action="store_true", help="print the table, run nothing")
    parser.add_argument("--plot", type=Path, help="draw the SVG, run nothing")
    arguments = parser.parse_args()
    if arguments.table or arguments.plot:
        done = read(arguments.out)
        if not done:
            raise SystemExit(f"Expected runs in {arguments.out}, got none.")
        if arguments.table:
            print(table(done))
        if arguments.plot:
            arguments.plot.write_text(plot(done))
        return
    if not arguments.data or not (Path(arguments.data) / "classification").is_dir():
        print("Skipped: set HEADSTART_BENCH_DATA to a folder with classification/.")
        return
    run_all(arguments)


if __name__ == "__main__":
    main()
