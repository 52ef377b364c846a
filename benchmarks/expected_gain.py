"""Simulated choices by expected gain: regret with and without the probe's score on all images.

A probe and a training with known accuracies predict drawn images; the training predicts only a
fifth of them. The regret of a choice is the accuracy that it loses against the better of the two.

    python benchmarks/expected_gain.py
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
from scipy.special import expit, logit
from scipy.stats import norm

from headstart.selection.rules import LEAST_GAIN, NORMAL_QUANTILE, Scorer, shrink_gain

ACCURACIES = 0.5, 0.7, 0.85, 0.93, 0.97, 0.99
SIZES = 100, 268, 800
SPREADS = 0.0, 0.5, 1.0
"""Standard deviations of the difference of the two, on the logit scale."""

Rule = Callable[[Scorer, np.ndarray, np.ndarray], float]


def draw(rng: np.random.Generator, n: int, accuracies: tuple[float, float]) -> np.ndarray:
    """Draw which of n images each of two methods gets right; both find the same images hard."""
    shared = rng.uniform(0.3, 0.9)
    noise = rng.normal(size=(2, n)) * np.sqrt(1 - shared**2) + shared * rng.normal(size=n)
    return (noise < norm.ppf(np.array(accuracies))[:, None]).astype(float)


def paired_alone(scorer: Scorer, values: np.ndarray, against: np.ndarray) -> float:
    """Shrink the difference on the shared images alone."""
    gain = scorer.gain(values, against, level=0.95).interval
    return shrink_gain(gain.value, (gain.high - gain.low) / (2 * NORMAL_QUANTILE))


RULES: dict[str, Rule] = {
    "always the probe": lambda *_: 0.0,
    "always the training": lambda *_: 1.0,
    "shared images alone": paired_alone,
    "with the probe's score": lambda s, v, a: s.expected_gain(v, a),
}


def regrets(n_draws: int, accuracy: float, seed: int = 0) -> dict[str, float]:
    """Return the mean regret of each rule in points, for probes of one accuracy."""
    rng = np.random.default_rng(seed)
    lost: dict[str, list[float]] = {name: [] for name in RULES}
    for n in SIZES:
        scorer = Scorer(kind="multiclass", targets=np.zeros(n, dtype=int))
        for spread in SPREADS:
            for _ in range(n_draws):
                better = float(np.clip(expit(logit(accuracy) + spread * rng.normal()), 0.02, 0.999))
                against, values = draw(rng, n, (accuracy, better))
                values[n // 5 :] = np.nan
                gain = better - accuracy
                for name, rule in RULES.items():
                    is_chosen = rule(scorer, values, against) > LEAST_GAIN
                    lost[name].append(max(gain, 0.0) - gain * is_chosen)
    return {name: 100 * float(np.mean(values)) for name, values in lost.items()}


def main() -> None:
    """Print a table of regrets."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=300)
    n_draws = parser.parse_args().draws
    rows = {str(accuracy): regrets(n_draws, accuracy) for accuracy in ACCURACIES}
    rows["mean"] = {name: float(np.mean([row[name] for row in rows.values()])) for name in RULES}
    print("| probe | " + " | ".join(RULES) + " |\n|---|" + "---:|" * len(RULES))
    for name, row in rows.items():
        print(f"| {name} | " + " | ".join(f"{value:.2f}" for value in row.values()) + " |")


if __name__ == "__main__":
    main()
