"""One class a picture, or any number of labels, as the objective of a training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from headstart.data.samples import Dataset
from headstart.heads.pooled import LinearHead
from headstart.metrics import log_loss, macro_f1_score
from headstart.tasks.classification import Classification
from headstart.training.inputs import Inputs
from headstart.training.job import Rows, Score
from headstart.training.losses import Loss, classification_loss
from headstart.training.mixing import cutmix, mixup
from headstart.training.network import Fetch, Network
from headstart.training.objective import LossStep, Penalty, on_device
from headstart.training.sampling import epoch_order

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["TEMPERATURE_SPREAD", "ClassObjective", "Solve"]

TEMPERATURE_SPREAD = 0.25
"""Of the logarithm of the temperature around 0: the held-out part is often a few dozen pictures."""

Solve = Callable[[NDArray[np.float32]], LinearHead]
"""From the pooled features of the training pictures as they are to a head."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ClassObjective:
    """Cross-entropy and its relatives; judged by the macro F1 of held-out pictures.

    Parameters
    ----------
    train, val : Dataset
        To learn from, and to stop on.
    wanted : Loss
    mixup, cutmix : float
        Beta's parameter; 0 for none.
    seed : int
        Of the order and of what is mixed.
    solve : callable, optional
        Makes the first head.
    """

    train: Dataset
    val: Dataset
    wanted: Loss
    mixup: float = 0.0
    cutmix: float = 0.0
    seed: int = 0
    solve: Solve | None = None

    @property
    def starts(self) -> bool:
        """Whether the head is solved before anything moves."""
        return self.solve is not None

    def start(self, network: Network, read: Fetch) -> None:
        """Solve the head on the pooled features of the training pictures."""
        if self.solve is not None:
            _, pooled = network.judge(read, len(self.train))
            network.load(network.state(), self.solve(pooled))

    def order(self, epoch: int) -> Rows:
        """Every picture once in a random order, or by class in equal shares."""
        targets, kind = self._targets, self.train.kind
        how = self.wanted.resolved(targets, n_classes=len(self.train.classes), kind=kind)
        return epoch_order(
            len(self.train),
            seed=self.seed,
            epoch=epoch,
            targets=targets if how == "sampling" else None,
            balanced=how == "sampling",
        )

    def loss(self, network: Network, inputs: Inputs, penalty: Penalty | None) -> LossStep:
        """Make the loss of a batch, its pictures mixed if that is wanted."""
        wanted, device, kind = self.wanted, network.device, self.train.kind
        n_classes, observed = len(self.train.classes), self._targets
        is_mixed = bool(self.mixup or self.cutmix)
        one_hot = is_mixed and kind != "multilabel"
        targets = on_device(np.eye(n_classes)[observed] if one_hot else observed, device)
        targets = targets.float() if targets.ndim == 2 else targets

        def known(values: NDArray[Any] | None) -> Tensor | None:
            return None if values is None else on_device(values, device).float()

        balance = known(wanted.weights(observed, n_classes=n_classes, kind=kind))
        adjustment = known(wanted.adjustment(observed, n_classes=n_classes, kind=kind))

        def loss(rows: Rows, batch: NDArray[Any], step: int) -> Tensor:
            x, truth = network.tensor(batch), targets[on_device(rows, device)]
            if is_mixed:
                rng = np.random.default_rng([self.seed, step, 1])
                mix, alpha = (mixup, self.mixup) if self.mixup else (cutmix, self.cutmix)
                x, truth = mix(x, truth, alpha=alpha, rng=rng)
            outputs = network.outputs(x)
            found = classification_loss(
                outputs.logits,
                truth,
                kind=kind,
                label_smoothing=wanted.label_smoothing,
                class_weights=balance,
                focal_gamma=wanted.focal,
                logit_adjustment=adjustment,
            )
            return found if penalty is None else found + penalty(x, outputs, rows)

        return loss

    def answers(self, network: Network, read: Fetch) -> NDArray[np.float64]:
        """Logits of the held-out pictures."""
        return network.judge(read, len(self.val))[0]

    def score(self, answers: NDArray[np.float64]) -> Score:
        """Macro F1, and the log-loss between equals."""
        task = Classification(classes=self.train.classes, kind=self.train.kind)
        chances, targets = task.probabilities(answers), self.val.targets()
        value = macro_f1_score(targets, task.predicted(chances))
        return Score(float(value), -float(log_loss(targets, chances)))

    def settled(self, task: Classification, answers: NDArray[np.float64]) -> Classification:
        """Fit the temperature (and thresholds) to the held-out logits."""
        blank = replace(task, temperature=1.0, thresholds=())
        return blank.calibrated(
            answers, self.val.targets(), spread=TEMPERATURE_SPREAD, groups=self.val.groups()
        )

    @cached_property
    def _targets(self) -> NDArray[np.intp]:
        return self.train.targets()
