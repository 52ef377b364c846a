"""Detection of out-of-distribution images: AUROC of several distances.

Each embedded set is split into training images (four fifths, without one class) and test images.
Images of the class left out, or of another set, are out-of-distribution. AUROC is the probability
that such an image has a larger distance than a test image of the training classes. Printed is the
mean over all classes that are left out, and over all other sets.

    python benchmarks/out_of_distribution.py [digits symbols textures]
"""

import argparse

import numpy as np
from sklearn.metrics import roc_auc_score

from headstart.backbones.catalog import resolve
from headstart.backbones.frozen import FrozenBackbone
from headstart.backbones.weights import locate
from headstart.cache import Cache
from headstart.data.demo.classification import load
from headstart.data.splits import kfold
from headstart.features.extractor import Extractor
from headstart.metrics.outliers import METHODS, OutlierDetector

DISTANCES = {**{name: {"method": name} for name in METHODS}, "knn, k=5": {"method": "knn", "k": 5}}


def auroc(training, inside, outside, options):
    """AUROC of out-of-distribution images (``outside``) against others (``inside``)."""
    features, targets, groups = training
    outliers = OutlierDetector.fit(features, targets, groups=groups, **options)
    scores = np.concatenate([outliers.scores(inside), outliers.scores(outside)])
    return roc_auc_score(np.repeat([0, 1], [len(inside), len(outside)]), scores)


def main():
    """Print a line for each set and distance."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("sets", nargs="*", default=["digits", "symbols", "textures"])
    names = parser.parse_args().sets
    spec = resolve("embedded/efficientnet_lite0", offline=True)
    backbone = FrozenBackbone.read(spec, locate(spec, offline=True))
    extractor = Extractor(cache=Cache(), engine="fp32", device="cpu")
    sets = {name: load(name) for name in names}
    features = {name: extractor.features(backbone, sets[name].samples).values for name in names}
    for name, data in sets.items():
        targets, groups = data.targets(), data.groups()
        train, test = kfold(targets, 5, blocks=groups, seed=0)[0]
        for distance, options in DISTANCES.items():
            left_out_class = []
            for label in np.unique(targets):
                rows, inside = train[targets[train] != label], test[targets[test] != label]
                training = (
                    features[name][rows],
                    targets[rows],
                    None if groups is None else groups[rows],
                )
                outside = features[name][targets == label]
                left_out_class.append(auroc(training, features[name][inside], outside, options))
            training = (
                features[name][train],
                targets[train],
                None if groups is None else groups[train],
            )
            other_sets = [
                auroc(training, features[name][test], features[other], options)
                for other in names
                if other != name
            ]
            print(
                f"{name}: {distance}: left-out class {np.mean(left_out_class):.3f}, "
                f"other sets {np.mean(other_sets):.3f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
