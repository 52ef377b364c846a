"""What an evaluation means, in words; where two cannot be told apart, it says so."""

from __future__ import annotations

from headstart.baselines import PROBE
from headstart.evaluation import Evaluation

__all__ = ["verdict"]


def verdict(evaluation: Evaluation) -> tuple[str, ...]:
    """Say in words how good the model is and what can be told apart.

    Returns
    -------
    tuple of str
        Sentences for a person, the most important first.

    Examples
    --------
    >>> import numpy as np
    >>> from headstart.evaluation import evaluate_probabilities
    >>> from headstart.tasks.classification import Classification
    >>> task = Classification(classes=("cat", "dog"))
    >>> chances, targets = np.full((20, 2), 0.5), np.zeros(20, dtype=int)
    >>> verdict(evaluate_probabilities(task, chances, targets, names=("a.png",) * 20))[0]
    'Accuracy 1.000 [0.839, 1.000] on 20 held-out pictures (95 % interval).'
    """
    accuracy, n = evaluation.metrics["accuracy"], len(evaluation.names)
    what = "All labels right" if evaluation.task.kind == "multilabel" else "Accuracy"
    groups = "" if evaluation.n_groups is None else f" in {evaluation.n_groups} groups"
    sentences = [f"{what} {accuracy} on {n} held-out pictures{groups} (95 % interval)."]
    for baseline in evaluation.baselines:
        lead = baseline.lead.interval
        told = f"{lead.value:+.3f} [{lead.low:+.3f}, {lead.high:+.3f}]"
        if not baseline.lead.distinguishable:
            judged = "cannot be distinguished from it on this many pictures"
            if lead.low > 0 or lead.high < 0:
                judged += " (their answers differ on too few of them)"
        elif lead.value > 0:
            judged = "is better"
        elif baseline.name == PROBE:
            judged = "IS WORSE: the probe wins, do use --method linear-probe"
        else:
            judged = "IS WORSE: look at the data and the labels before using it"
        sentences.append(
            f"{baseline.name.capitalize()}: {baseline.accuracy}; "
            f"the model's lead is {told}, it {judged}."
        )
    width = accuracy.high - accuracy.low
    if width > 0.1:
        sentences.append(
            f"The interval is {100 * width:.0f} points wide: do not rank models by smaller "
            "differences unless they are compared on the same pictures, paired."
        )
    unseen = [row.name for row in evaluation.per_class if row.count == 0]
    if unseen:
        shown = ", ".join(map(repr, unseen[:5])) + (", ..." if len(unseen) > 5 else "")
        sentences.append(f"Nothing can be said about {shown}: no held-out picture shows it.")
    return tuple(sentences)
