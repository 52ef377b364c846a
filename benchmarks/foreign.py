"""Which distance tells foreign images from those that are like the ones learned from?

Of each embedded set four fifths of the images of all classes but one are learned from. The
others are judged: those of the class left out, or of another set, are foreign. AUROC is the
chance that a foreign image is farther off than one that is not; the mean over all classes that
are left out, and over all other sets.

    python benchmarks/foreign.py [digits symbols textures]
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
from headstart.metrics.outliers import METHODS, Outliers

WAYS = {**{name: {"method": name} for name in METHODS}, "knn, k=5": {"method": "knn", "k": 5}}


def auroc(learned, own, foreign, options):
    """How well foreign images are told from own ones."""
    values, targets, groups = learned
    fitted = Outliers.fit(values, targets, groups=groups, **options)
    scores = np.concatenate([fitted.scores(own), fitted.scores(foreign)])
    return roc_auc_score(np.repeat([0, 1], [len(own), len(foreign)]), scores)


def main():
    """Print a line for each set and distance."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("sets", nargs="*", default=["digits", "symbols", "textures"])
    names = parser.parse_args().sets
    spec = resolve("embedded/efficientnet_lite0", offline=True)
    backbone = FrozenBackbone.read(spec, locate(spec, offline=True))
    extractor = Extractor(cache=Cache(), engine="fp32", device="cpu")
    sets = {name: load(name) for name in names}
    values = {name: extractor.features(backbone, sets[name].samples).values for name in names}
    for name, data in sets.items():
        targets, groups = data.targets(), data.groups()
        train, test = kfold(targets, 5, blocks=groups, seed=0)[0]
        near = {way: [] for way in WAYS}
        far = {way: [] for way in WAYS}
        for way, options in WAYS.items():
            for out in np.unique(targets):
                rows, own = train[targets[train] != out], test[targets[test] != out]
                learned = (
                    values[name][rows],
                    targets[rows],
                    None if groups is None else groups[rows],
                )
                left_out = values[name][targets == out]
                near[way].append(auroc(learned, values[name][own], left_out, options))
            learned = values[name][train], targets[train], None if groups is None else groups[train]
            for other in names:
                if other != name:
                    far[way].append(auroc(learned, values[name][test], values[other], options))
            means = f"left-out class {np.mean(near[way]):.3f}, other sets {np.mean(far[way]):.3f}"
            print(f"{name}: {way}: {means}", flush=True)


if __name__ == "__main__":
    main()
