"""Objects in pictures, as the objective of a training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from headstart.box_metrics import best_threshold, box_scores, match_boxes
from headstart.cuts import View
from headstart.data.loading import BoxTruth, digest_of, load_boxes, view_of_boxes
from headstart.data.samples import Dataset, Sample
from headstart.data.transforms import Preprocess
from headstart.tasks.detection import Detection
from headstart.training.inputs import Inputs
from headstart.training.job import Rows, Score
from headstart.training.network import Fetch, Network, Outputs
from headstart.training.objective import LossStep, Penalty, on_device
from headstart.training.sampling import epoch_order

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["BoxObjective"]

Found = tuple[NDArray[Any], NDArray[Any], NDArray[Any]]
"""Boxes (n, 4), scores (n,) and labels (n,) of one picture."""

Answers = tuple[list[Found], float]


@dataclass(frozen=True, kw_only=True, eq=False)
class BoxObjective:
    """The head's own loss; judged by the mean average precision on held-out pictures.

    Parameters
    ----------
    train, val : Dataset
        To learn from, and to stop on.
    preprocess : Preprocess
        Says where a picture's boxes lie on the canvas.
    per_epoch : int
        Steps.
    seed : int
        Of the order.
    """

    train: Dataset
    val: Dataset
    preprocess: Preprocess
    per_epoch: int
    seed: int = 0
    starts: bool = False
    _plain: dict[int, BoxTruth] = field(default_factory=dict, repr=False)

    def start(self, network: Network, read: Fetch) -> None:
        """A head for boxes is never solved."""

    def order(self, epoch: int) -> Rows:
        """Every picture once in a random order."""
        return epoch_order(len(self.train), seed=self.seed, epoch=epoch)

    def loss(self, network: Network, inputs: Inputs, penalty: Penalty | None) -> LossStep:
        """Make the loss of a batch; its boxes move as its pixels did."""

        def loss(rows: Rows, batch: NDArray[Any], step: int) -> Tensor:
            x, view = network.tensor(batch), inputs.view(1 + step // self.per_epoch)
            outputs = network.outputs(x)
            truths = [self._truth(self.train.samples[row], view) for row in rows]
            found = _loss(network, outputs, truths)
            return found if penalty is None else found + penalty(x, outputs, rows)

        return loss

    def answers(self, network: Network, read: Fetch) -> Answers:
        """What is found in each held-out picture, on the canvas, and the mean loss."""
        import torch

        found: list[Found] = []
        loss = 0.0
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)  # some heads draw the regions that they judge
            for rows, outputs in network.answers(read, len(self.val)):
                with torch.inference_mode():
                    truths = [self._kept[row] for row in rows]
                    loss += float(_loss(network, outputs, truths)) * len(rows)
                    answers = network.layer.detect(outputs.logits)  # type: ignore[operator]
                for boxes, scores, labels in answers:
                    found.append((boxes.cpu().numpy(), scores.cpu().numpy(), labels.cpu().numpy()))
        return found, loss / len(self.val)

    def score(self, answers: Answers) -> Score:
        """Mean average precision at .50:.95, and the loss between equals."""
        found, loss = answers
        scores = box_scores(self._matches(found), np.ones(len(self.val)))
        return Score(float(np.nan_to_num(scores["map"])), -loss)

    def settled(self, task: Detection, answers: Answers) -> Detection:
        """Set the score from which on objects are named to the one with the best F1."""
        return replace(task, threshold=best_threshold(self._matches(answers[0])))

    def _matches(self, found: list[Found]) -> Any:
        return match_boxes(found, self._kept, len(self.train.classes))

    @cached_property
    def _kept(self) -> list[BoxTruth]:
        return [self._truth(sample, None) for sample in self.val.samples]

    def _truth(self, sample: Sample, view: View | None) -> BoxTruth:
        """A picture's boxes as a view shows them; its file is looked at once."""
        truth = self._plain.get(id(sample))  # the data hold it, so that no other has its id
        if truth is None:
            truth = load_boxes(sample, self.preprocess, self.train.classes)
            self._plain[id(sample)] = truth
        if view is None:
            return truth
        return view_of_boxes(
            truth,
            self.preprocess.shape,
            view.augmentation,
            seed=view.seed,
            view=view.number,
            picture=digest_of(sample),
        )


def _loss(network: Network, outputs: Outputs, truths: Sequence[BoxTruth]) -> Tensor:
    """The head's own terms, added; hard objects are left out, and so count as background."""
    learned = [
        tuple(on_device(part[~truth.hard], network.device) for part in truth[:2])
        for truth in truths
    ]
    terms = network.layer.loss(outputs.logits, learned)  # type: ignore[operator]
    found: Tensor = sum(terms.values())
    return found
