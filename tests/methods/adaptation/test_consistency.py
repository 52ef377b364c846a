"""Mean teacher and FixMatch: what is trained towards what, and what is kept."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from headstart.data.transforms.augment import Augmentation
from headstart.errors import UsageError
from headstart.methods.adaptation.consistency import FixMatch, MeanTeacher
from headstart.methods.adaptation.contract import Domains
from headstart.methods.adaptation.paired_training import DomainBatch, _Teacher
from headstart.training.losses.consistency import (
    confident_label_loss,
    consistency_loss,
    ramp_up,
    teacher_decay,
)


def outputs(seed: int) -> Any:
    draw = torch.Generator().manual_seed(seed)
    return SimpleNamespace(logits=3 * torch.randn(6, 3, generator=draw))


def loss_of(method: Any, *, plain: Any) -> float:
    parts = method.describe_training(None, Domains(target=()))
    assert not parts.views.is_off
    return float(
        parts.loss(
            DomainBatch(target=outputs(0), target_rows=np.arange(6), progress=0.1, plain=plain)
        )
    )


def test_the_losses_are_those_of_strong_and_plain_views() -> None:
    strong, plain = outputs(0).logits, outputs(1).logits
    wanted = 5 * ramp_up(0.1) * float(consistency_loss(strong, plain))
    assert loss_of(MeanTeacher(weight=5.0), plain=outputs(1)) == pytest.approx(wanted)
    wanted = 2 * float(confident_label_loss(plain, strong, threshold=0.6))
    assert wanted > 0
    assert loss_of(FixMatch(weight=2.0, threshold=0.6), plain=outputs(1)) == pytest.approx(wanted)
    with pytest.raises(UsageError, match="without augmentation"):
        loss_of(FixMatch(), plain=None)


class Weights:
    """A network of one number in the backbone and one in the head."""

    def __init__(self, value: float) -> None:
        self.backbone, self.layer = torch.nn.Linear(1, 1, bias=False), torch.nn.BatchNorm1d(1)
        torch.nn.init.constant_(self.backbone.weight, value)

    def constant_copy(self) -> Any:
        return Weights(self.backbone.weight.item())


def test_the_teacher_is_the_running_average_of_the_weights() -> None:
    student = Weights(1.0)
    teacher = _Teacher(student, 0.75)  # type: ignore[arg-type]
    wanted = 1.0
    for step, value in enumerate((1.0, 3.0, -2.0, 5.0, 4.0)):
        torch.nn.init.constant_(student.backbone.weight, value)
        student.layer.num_batches_tracked.fill_(step)
        for _ in range(2):  # a step may have several parts
            teacher.follow(student, step)  # type: ignore[arg-type]
        if step:
            decay = teacher_decay(step, 0.75)
            wanted = decay * wanted + (1 - decay) * value
        assert teacher.network.backbone.weight.item() == pytest.approx(wanted)
        assert float(teacher.values.value0) == pytest.approx(wanted)  # what a checkpoint holds
    assert int(teacher.network.layer.num_batches_tracked) == 4
    teacher.values.load_state_dict({**teacher.values.state_dict(), "value0": torch.ones(1, 1)})
    assert teacher.network.backbone.weight.item() == 1


@pytest.mark.parametrize(
    ("method", "values"),
    [
        (MeanTeacher, {"decay": 1.0}),
        (MeanTeacher, {"augmentation": Augmentation()}),
        (FixMatch, {"threshold": -0.1}),
        (FixMatch, {"augmentation": Augmentation()}),
    ],
)
def test_values_out_of_range_are_refused(method: Any, values: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(values))):
        method(**values)
