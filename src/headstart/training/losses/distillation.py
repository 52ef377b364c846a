"""Losses of distillation: a student network learns from the outputs of a teacher.

All are pure functions of one batch. Logits have shape (n, classes), features (n, width), where the
student's width may differ from the teacher's. No gradient flows into the teacher.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from headstart.errors import UsageError
from headstart.training.weight_averaging import at_least_float32

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["dist", "dkd", "kd", "pkt", "rkd"]

BETA = 8.0
"""Weight of the other classes in DKD; the paper's value for most pairs of networks."""

ANGLE_WEIGHT = 2.0
"""Weight of the angles relative to the distances in RKD, as in the paper."""


def kd(student: Tensor, teacher: Tensor, temperature: float = 4.0) -> Tensor:
    """Divergence of the softened predictions: T² KL(softmax(teacher / T) || softmax(student / T)).

    With the factor T² the size of the gradient does not depend on the temperature. The sums are
    in float32 or wider, also under bf16.

    Parameters
    ----------
    student, teacher : tensor, shape (n, classes)
    temperature : float
        T, above 0.

    Returns
    -------
    tensor, scalar
        Mean over the images, 0 or more.

    Raises
    ------
    UsageError
        If the shapes differ, or the temperature is not above 0.

    Reference
    ---------
    Hinton, Vinyals, Dean, "Distilling the knowledge in a neural network", 2015, section 2.

    Examples
    --------
    >>> import torch
    >>> kd(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0]])).abs() < 1e-6
    tensor(True)
    """
    from torch.nn.functional import kl_div

    new, old = _softened(student, teacher, temperature)
    logs = new.log_softmax(dim=1), old.log_softmax(dim=1)
    return kl_div(*logs, log_target=True, reduction="batchmean") * temperature**2


def dkd(student: Tensor, teacher: Tensor, targets: Tensor, temperature: float = 4.0) -> Tensor:
    """Decoupled distillation: T² (KL of the true class against the rest + 8 KL of the others).

    The classical loss weighs the second part by the teacher's doubt, so confident teachers teach
    little about the other classes. Here the weight is constant.

    Parameters
    ----------
    student, teacher : tensor, shape (n, classes)
    targets : tensor of int, shape (n,)
        The true classes.
    temperature : float
        T, above 0.

    Returns
    -------
    tensor, scalar
        Mean over the images, 0 or more.

    Raises
    ------
    UsageError
        If the shapes differ, or the temperature is not above 0.

    Reference
    ---------
    Zhao et al., "Decoupled knowledge distillation", CVPR 2022, equation 7 with alpha 1.

    Examples
    --------
    >>> import torch
    >>> logits = torch.tensor([[1.0, 2.0, 0.0]])
    >>> dkd(logits, logits, torch.tensor([1])).abs() < 1e-6
    tensor(True)
    """
    from torch.nn.functional import kl_div

    new, old = _softened(student, teacher, temperature)
    is_true = targets[:, None] == _indices(new)
    binary, others = [], []
    for logits in (new, old):
        logs = logits.log_softmax(dim=1)
        rest = logs.masked_fill(is_true, -float("inf")).logsumexp(dim=1)
        binary.append(_stack(logs[is_true], rest))
        kept = logits[~is_true].reshape(len(logits), -1)
        others.append(kept.log_softmax(dim=1))
    true_part = kl_div(binary[0], binary[1], log_target=True, reduction="batchmean")
    other_part = kl_div(others[0], others[1], log_target=True, reduction="batchmean")
    return (true_part + BETA * other_part) * temperature**2


def dist(student: Tensor, teacher: Tensor, temperature: float = 4.0) -> Tensor:
    """Distance of correlations: T² (1 - r over the classes of an image + 1 - r over the images).

    It asks for the same order and relations of the predictions, not for the same values, which
    suits a strong teacher of a small student.

    Parameters
    ----------
    student, teacher : tensor, shape (n, classes)
    temperature : float
        T, above 0.

    Returns
    -------
    tensor, scalar
        From 0 to 4 T². The part over the images is 0 for one image.

    Raises
    ------
    UsageError
        If the shapes differ, or the temperature is not above 0.

    Reference
    ---------
    Huang et al., "Knowledge distillation from a stronger teacher", NeurIPS 2022, equations 6 to 10.

    Examples
    --------
    >>> import torch
    >>> logits = torch.tensor([[1.0, 2.0, 0.0], [0.0, 1.0, 3.0]])
    >>> dist(logits, logits).abs() < 1e-5
    tensor(True)
    """
    new, old = (logits.softmax(dim=1) for logits in _softened(student, teacher, temperature))
    between_classes = (1 - _correlations(new, old)).mean()
    if len(new) < 2:
        return between_classes * temperature**2
    return (between_classes + (1 - _correlations(new.T, old.T)).mean()) * temperature**2


def rkd(student: Tensor, teacher: Tensor) -> Tensor:
    """Relational distillation: Huber distance of the distances and the angles between images.

    Distances are divided by their mean, so networks of different widths can be compared.

    Parameters
    ----------
    student, teacher : tensor, shape (n, width) each
        Pooled features of the same images.

    Returns
    -------
    tensor, scalar
        0 for fewer than two images, which have no relations.

    Raises
    ------
    UsageError
        If the numbers of images differ.

    Reference
    ---------
    Park et al., "Relational knowledge distillation", CVPR 2019, equations 5 to 9.

    Examples
    --------
    >>> import torch
    >>> x = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0]])
    >>> rkd(3 * x + 1, x).abs() < 1e-6
    tensor(True)
    """
    from torch.nn.functional import smooth_l1_loss

    new, old = _features(student, teacher)
    if len(new) < 2:
        return new.sum() * 0
    distances = smooth_l1_loss(_relative_distances(new), _relative_distances(old))
    return distances + ANGLE_WEIGHT * smooth_l1_loss(_angles(new), _angles(old))


def pkt(student: Tensor, teacher: Tensor) -> Tensor:
    """Probabilistic transfer: KL of the similarities of each image to the others.

    The similarity is (1 + cosine) / 2, normalised to sum 1 for each image.

    Parameters
    ----------
    student, teacher : tensor, shape (n, width) each
        Pooled features of the same images.

    Returns
    -------
    tensor, scalar
        Mean over the images; 0 for fewer than two.

    Raises
    ------
    UsageError
        If the numbers of images differ.

    Reference
    ---------
    Passalis, Tefas, "Learning deep representations with probabilistic knowledge transfer",
    ECCV 2018, equations 3 to 6.

    Examples
    --------
    >>> import torch
    >>> x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    >>> pkt(5 * x, x).abs() < 1e-6
    tensor(True)
    """
    from torch.nn.functional import kl_div

    new, old = _features(student, teacher)
    if len(new) < 2:
        return new.sum() * 0
    return kl_div(
        _log_similarities(new), _log_similarities(old), log_target=True, reduction="batchmean"
    )


def _softened(student: Tensor, teacher: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    if student.shape != teacher.shape or student.ndim != 2:
        raise UsageError(
            "Expected logits of student and teacher with the same shape (n, classes), got "
            f"{tuple(student.shape)} and {tuple(teacher.shape)}. Use a teacher of the same classes."
        )
    if not temperature > 0:
        raise UsageError(f"`temperature` must be above 0, got {temperature}. The usual value is 4.")
    return (
        at_least_float32(student) / temperature,
        at_least_float32(teacher.detach()) / temperature,
    )


def _features(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    if len(student) != len(teacher) or student.ndim != 2 or teacher.ndim != 2:
        raise UsageError(
            "Expected features (n, width) of the same images, got shapes "
            f"{tuple(student.shape)} and {tuple(teacher.shape)}. Pass the same images to both."
        )
    return at_least_float32(student), at_least_float32(teacher.detach())


def _indices(logits: Tensor) -> Tensor:
    import torch

    return torch.arange(logits.shape[1], device=logits.device)[None]


def _stack(first: Tensor, second: Tensor) -> Tensor:
    import torch

    return torch.stack([first, second], dim=1)


def _correlations(new: Tensor, old: Tensor) -> Tensor:
    """Pearson correlation of each row; constant rows have 0."""
    centred = [values - values.mean(dim=1, keepdim=True) for values in (new, old)]
    products = (centred[0] * centred[1]).sum(dim=1)
    norms = centred[0].norm(dim=1) * centred[1].norm(dim=1)
    correlations: Tensor = products / norms.clamp_min(1e-12)
    return correlations


def _relative_distances(features: Tensor) -> Tensor:
    """Distances of all pairs, divided by their mean."""
    from torch.nn.functional import pdist

    distances = pdist(features)
    return distances / (distances.mean() + 1e-8)


def _angles(features: Tensor) -> Tensor:
    """Cosine of the angle at image j between images i and k, shape (n, n, n)."""
    from torch.nn.functional import normalize

    directions = normalize(features[None] - features[:, None], dim=2)
    cosines: Tensor = directions @ directions.transpose(1, 2)
    return cosines


def _log_similarities(features: Tensor) -> Tensor:
    """Logarithm of the normalised similarities, without those of an image to itself."""
    import torch
    from torch.nn.functional import normalize

    unit = normalize(features, dim=1)
    similarity = ((unit @ unit.T + 1) / 2).clamp_min(1e-8)
    off_diagonal = ~torch.eye(len(unit), dtype=torch.bool, device=unit.device)
    values = similarity[off_diagonal].reshape(len(unit), -1)
    return values.log() - values.sum(dim=1, keepdim=True).log()
