"""Accuracy of every few-shot head on frozen features, over drawn episodes.

    python benchmarks/fewshot.py FOLDER [FOLDER ...] --episodes 600 --images 100

Each folder is a classification set. Of each class, at most ``--images`` images are drawn by the
seed; their features are computed once. Episodes use all classes (at most 5), 1, 5 and 20 training
images and 15 test images of each class. All heads are tested on the same episodes. Prints a table
in Markdown with 95 % intervals over episodes, in percent.
"""

import argparse
from pathlib import Path

import numpy as np

from headstart.backbones.frozen import FrozenBackbone
from headstart.cache import Cache
from headstart.data.readers import read_dataset
from headstart.evaluation.episodes import QUERIES, evaluate_episodes
from headstart.features.extractor import Extractor
from headstart.training.few_shot_heads import HEADS

SHOTS = (1, 5, 20)


def draw(data, n_images, seed):
    """At most ``n_images`` images of each class."""
    targets, rng = data.targets(), np.random.default_rng(seed)
    rows = [rng.permutation(np.flatnonzero(targets == k))[:n_images] for k in np.unique(targets)]
    return data.subset(np.sort(np.concatenate(rows)).tolist())


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--backbone", default="embedded/efficientnet_lite0")
    parser.add_argument("--episodes", type=int, default=600)
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    backbone = FrozenBackbone.open(arguments.backbone, offline=True)
    print("| set | ways | shots | " + " | ".join(HEADS) + " |")
    print("|" + "---|" * (3 + len(HEADS)))
    for folder in arguments.folders:
        data = draw(read_dataset(folder), arguments.images, arguments.seed)
        extractor = Extractor(cache=Cache(), engine="fp32", device="cpu")
        features = extractor.features(backbone, data.samples).values
        targets = data.targets()
        ways = min(5, len(np.unique(targets)))
        for shots in SHOTS:
            if np.bincount(targets).min() < shots + QUERIES:
                continue
            results = [
                evaluate_episodes(
                    head,
                    features,
                    targets,
                    ways=ways,
                    shots=shots,
                    episodes=arguments.episodes,
                    seed=arguments.seed,
                )
                for head in HEADS
            ]
            cells = [f"{100 * r.value:.1f} ± {50 * (r.high - r.low):.1f}" for r in results]
            print(f"| {folder.name} | {ways} | {shots} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
