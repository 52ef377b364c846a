"""Domain adaptation: a source model, every method and ``auto`` on a pair of domains.

    python benchmarks/adaptation.py [--seeds 5] [--epochs 20] [--methods coral,mcc]
    python benchmarks/adaptation.py --data ../shared/data/domain_adaptation --pair mnist-usps
    python benchmarks/adaptation.py --data ../shared/data/domain_adaptation --pair amazon-webcam
    python benchmarks/adaptation.py --data ../shared/data/domain_adaptation --pair office

Without ``--pair``: for every seed, half of the 1,797 digits of scikit-learn are the labelled
source. The other half are rotated by 20 degrees and noisy, the target.

With ``mnist-usps`` or ``usps-mnist``: the training parts of subsets of MNIST and USPS. For these
and for the digits, a small network is trained on the source.

With two of amazon, caltech, dslr and webcam: Office-Caltech10, a linear probe on the embedded
weights; the methods train from their last stage on. ``office`` is all twelve pairs in turn.

The labels of the target give the accuracies and are never used to choose. The printed gain over
the source model has a 95 % interval (t) over the seeds, paired. The regret is what the choice of
``auto`` is below the best of all models of the same seed.
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from scipy import ndimage, stats
from sklearn.datasets import load_digits
from torch import nn

from headstart import (
    Backbone,
    Cache,
    Dataset,
    LinearProbe,
    Sample,
    Scratch,
    Training,
    adapt,
    read_dataset,
)
from headstart.backbones.frozen import FrozenBackbone
from headstart.features.extractor import Extractor
from headstart.methods.adaptation import ADAPTATIONS
from headstart.models.tasks import ClassificationTask
from headstart.models.transfer_model import TransferModel
from headstart.training.trainer import held_out

CLASSES = tuple("0123456789")
OFFICE = ("amazon", "caltech", "dslr", "webcam")
ANGLE, NOISE = 20, 40


def to_dataset(pixels, labels):
    """Images of 16 x 16 pixels with their classes."""
    large = np.kron(np.clip(pixels, 0, 255), np.ones((1, 2, 2))).astype(np.uint8)
    samples = (
        Sample(image=np.repeat(image[..., None], 3, axis=2), target=str(label))
        for image, label in zip(large, labels, strict=True)
    )
    return Dataset(samples=tuple(samples), classes=CLASSES)


def draw_domains(seed):
    """Return the source, and the rotated and noisy target."""
    digits = load_digits()
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(digits.target))
    pixels, labels = digits.images[order] * (255 / 16), digits.target[order]
    half = len(order) // 2
    rotated = ndimage.rotate(pixels[half:], ANGLE, axes=(1, 2), reshape=False, order=1)
    rotated = rotated + rng.normal(0, NOISE, rotated.shape)
    return to_dataset(pixels[:half], labels[:half]), to_dataset(rotated, labels[half:])


def read_part(root, name):
    """Labelled images of one domain."""
    if name in OFFICE:
        return read_dataset(root / "office_caltech10" / name)
    return read_dataset(root / "digits" / name / "train")


def read_pair(options, pair, seed):
    """Return source and target; the halves of the seed for the digits of scikit-learn."""
    if not pair:
        return draw_domains(seed)
    return tuple(read_part(options.data, name) for name in pair.split("-"))


def pairs_of(text):
    """Names of the pairs."""
    if text != "office":
        return [text]
    return [f"{first}-{second}" for first in OFFICE for second in OFFICE if first != second]


def settings_of(pair, options):
    """Settings of the adaptation: the small network trains as a whole."""
    if pair.partition("-")[0] in OFFICE:
        return {"epochs": options.epochs}
    values = {"train_from": "all", "batch_norm": "train", "learning_rate": 1e-3}
    return {**values, "epochs": options.epochs}


def small_network():
    """Return three convolutions with BatchNorm."""
    parts = []
    for channels, width in ((3, 16), (16, 32), (32, 64)):
        parts += [nn.Conv2d(channels, width, 3, 2, 1), nn.BatchNorm2d(width), nn.ReLU()]
    look = {"size": 16, "crop": 1.0}
    return FrozenBackbone.of(Backbone.from_module(nn.Sequential(*parts), preprocess=look))


def train_source(source, pair, seed, extractor):
    """Train on the source alone: the small network, or a linear probe on the embedded weights."""
    if pair.partition("-")[0] in OFFICE:
        backbone = FrozenBackbone.open("embedded/efficientnet_lite0")
        empty = TransferModel(backbone=backbone, task=ClassificationTask(classes=source.classes))
        train, _ = held_out(source, seed)
        return LinearProbe(seed=seed).fit(empty, train, extractor=extractor)
    empty = TransferModel(backbone=small_network(), task=ClassificationTask(classes=CLASSES))
    train, val = held_out(source, seed)
    training = Training(epochs=30, batch_size=32, patience=0)
    method = Scratch(training=training, learning_rate=3e-3, seed=seed)
    return method.fit(empty, train, val, extractor=extractor)


def run_seed(options, pair, seed, rows):
    """Adapt by every method and by ``auto``, and add the accuracies to the rows."""
    with TemporaryDirectory() as folder:
        cache = Cache(Path(folder))
        source, target = read_pair(options, pair, seed)
        extractor = Extractor(cache=cache, engine="fp32", device="cpu")
        model = train_source(source, pair, seed, extractor)
        unlabelled = [replace(sample, target=None) for sample in target.samples]
        best = 0.0
        for text in (options.methods, "auto"):
            started_at = time.perf_counter()
            adapted = adapt(
                model,
                unlabelled,
                source=source,
                method=text,
                evaluate_on=target,
                cache=cache,
                progress=False,
                budget="1h",
                seed=seed,
                **settings_of(pair, options),
            )
            seconds = time.perf_counter() - started_at
            accuracies = {r.method: 100 * r.oracle.value for r in adapted.results}
            best = max(best, *accuracies.values())
            print(f"seed {seed} {text}: chosen {adapted.chosen}", flush=True)
            for result in adapted.results:
                reasons = " ".join(result.objections)
                print(f"  {result.method} {accuracies[result.method]:.1f} {reasons}", flush=True)
            chosen = accuracies[adapted.chosen]
            if text == "auto":
                rows.setdefault("auto", []).append((chosen, seconds))
                rows.setdefault("regret of auto", []).append((best - chosen, 0.0))
                continue
            rows.setdefault("chosen of all", []).append((chosen, 0.0))
            for result in adapted.results:
                entry = accuracies[result.method], result.seconds
                rows.setdefault(result.method, []).append(entry)


def print_rows(pair, rows):
    """Print accuracies and gains with intervals, a row for each model."""
    print(pair or "digits, clean to rotated and noisy")
    baseline = np.array([value for value, _ in rows["source"]])
    regret = np.array([value for value, _ in rows.pop("regret of auto")])
    for name, values in rows.items():
        accuracy, seconds = np.array(values).T
        gain = accuracy - baseline
        interval = ""
        if len(gain) > 1:
            error = stats.t.ppf(0.975, len(gain) - 1) * gain.std(ddof=1) / np.sqrt(len(gain))
            interval = f" [{gain.mean() - error:+.1f}, {gain.mean() + error:+.1f}]"
        print(
            f"{name:<14} {accuracy.mean():5.1f} %  gain {gain.mean():+5.1f}{interval}  "
            f"{seconds.mean():.0f} s"
        )
    print(f"regret of auto {regret.mean():5.1f} points", flush=True)


def main():
    """Print a table for each pair."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--methods", default=",".join(ADAPTATIONS))
    parser.add_argument("--pair", default="", help="SOURCE-TARGET, or office for twelve pairs")
    parser.add_argument("--data", type=Path, default=Path("../shared/data/domain_adaptation"))
    options = parser.parse_args()
    for pair in pairs_of(options.pair):
        rows = {}
        for seed in range(options.seeds):
            run_seed(options, pair, seed, rows)
        print_rows(pair, rows)


if __name__ == "__main__":
    main()
