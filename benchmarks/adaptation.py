"""Domain adaptation on the digits of scikit-learn: clean to rotated and noisy.

For every seed, half of the 1,797 digits are the labelled source. The other half are rotated by 20
degrees and noisy, the target. A small network is trained on the source, then adapted by every
method and by ``auto``. The labels of the target give the accuracies and are never used to choose.

    python benchmarks/adaptation.py [--seeds 5] [--epochs 20] [--methods coral,mcc]

The printed gain over the source model has a 95 % interval (t) over the seeds, paired.
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

from headstart import Backbone, Cache, Dataset, Sample, Scratch, Training, adapt
from headstart.backbones.frozen import FrozenBackbone
from headstart.features.extractor import Extractor
from headstart.methods.adaptation import ADAPTATIONS
from headstart.models.tasks import ClassificationTask
from headstart.models.transfer_model import TransferModel
from headstart.training.trainer import held_out

CLASSES = tuple("0123456789")
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


def small_network():
    """Return three convolutions with BatchNorm."""
    parts = []
    for channels, width in ((3, 16), (16, 32), (32, 64)):
        parts += [nn.Conv2d(channels, width, 3, 2, 1), nn.BatchNorm2d(width), nn.ReLU()]
    look = {"size": 16, "crop": 1.0}
    return FrozenBackbone.of(Backbone.from_module(nn.Sequential(*parts), preprocess=look))


def train_source(source, seed, extractor):
    """Train the small network on the source alone."""
    empty = TransferModel(backbone=small_network(), task=ClassificationTask(classes=CLASSES))
    train, val = held_out(source, seed)
    training = Training(epochs=30, batch_size=32, patience=0)
    method = Scratch(training=training, learning_rate=3e-3, seed=seed)
    return method.fit(empty, train, val, extractor=extractor)


def main():
    """Print a row for each method."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--methods", default=",".join(ADAPTATIONS))
    options = parser.parse_args()
    rows, choices = {}, []
    for seed in range(options.seeds):
        with TemporaryDirectory() as folder:
            cache = Cache(Path(folder))
            source, target = draw_domains(seed)
            extractor = Extractor(cache=cache, engine="fp32", device="cpu")
            model = train_source(source, seed, extractor)
            unlabelled = [replace(sample, target=None) for sample in target.samples]
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
                    train_from="all",
                    batch_norm="train",
                    learning_rate=1e-3,
                    epochs=options.epochs,
                )
                accuracies = {r.method: 100 * r.oracle.value for r in adapted.results}
                print(f"seed {seed} {text}: chosen {adapted.chosen}", flush=True)
                for result in adapted.results:
                    reasons = " ".join(result.objections)
                    print(
                        f"  {result.method} {accuracies[result.method]:.1f} {reasons}", flush=True
                    )
                if text == "auto":
                    seconds = time.perf_counter() - started_at
                    choices.append(seconds)
                    rows.setdefault("auto", []).append((accuracies[adapted.chosen], seconds))
                    continue
                rows.setdefault("chosen of all", []).append((accuracies[adapted.chosen], 0.0))
                for result in adapted.results:
                    entry = accuracies[result.method], result.seconds
                    rows.setdefault(result.method, []).append(entry)
    baseline = np.array([value for value, _ in rows["source"]])
    for name, values in rows.items():
        accuracy, seconds = np.array(values).T
        gain = accuracy - baseline
        error = 0.0
        if len(gain) > 1:
            error = stats.t.ppf(0.975, len(gain) - 1) * gain.std(ddof=1) / np.sqrt(len(gain))
        print(
            f"{name:<14} {accuracy.mean():5.1f} %  gain {gain.mean():+5.1f} "
            f"[{gain.mean() - error:+.1f}, {gain.mean() + error:+.1f}]  {seconds.mean():.0f} s"
        )


if __name__ == "__main__":
    main()
