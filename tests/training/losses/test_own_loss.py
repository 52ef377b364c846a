"""A loss of the user's own: tried at once, recorded by name, checked when a training resumes."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch
from torch.nn import functional

import headstart
from headstart.errors import DataError, UsageError
from headstart.methods.method import described
from headstart.training.losses.classification import Loss, balanced_weights, classification_loss
from headstart.training.losses.own_loss import OwnLoss
from headstart.workflows.config import read_recipe
from headstart.workflows.events import EpochDone, Noted
from headstart.workflows.recipe import make_recipe


def margins(logits, targets):
    """One number per image."""
    return functional.multi_margin_loss(logits, targets, reduction="none")


def other(logits, targets):
    return 2 * functional.cross_entropy(logits, targets)


class Scaled:
    def __init__(self, factor: float) -> None:
        self.factor = factor

    def __repr__(self) -> str:
        return f"Scaled({self.factor})"

    def __call__(self, logits, targets):
        return self.factor * functional.cross_entropy(logits, targets)


def test_the_cross_entropy_as_own_loss_is_the_named_one() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, targets = torch.randn(9, 3, generator=generator), torch.arange(9) % 3
    own = OwnLoss.of(lambda x, y: functional.cross_entropy(x, y, reduction="none"))
    weights = torch.tensor([2.0, 1.0, 0.5])
    for class_weights in (None, weights):
        expected = classification_loss(
            logits, targets, kind="multiclass", class_weights=class_weights
        )
        torch.testing.assert_close(own.mean(logits, targets, class_weights), expected)
        rows = functional.one_hot(targets, 3).float()
        torch.testing.assert_close(own.mean(logits, rows, class_weights), expected)
    whole = OwnLoss.of(functional.cross_entropy)
    torch.testing.assert_close(
        whole.mean(logits, targets, weights), functional.cross_entropy(logits, targets)
    )


def test_training_with_it_gives_the_bits_of_the_named_loss(tmp_path) -> None:
    def weights(**settings):
        values = {"epochs": 2, "train_from": "head", "device": "cpu", "start": "random"}
        run = headstart.fit(
            "demo:symbols",
            out=tmp_path / f"run{len(list(tmp_path.iterdir()))}",
            method="finetune",
            **values,
            **settings,
        )
        return run.model.head.weight, run

    named, _ = weights()
    own, run = weights(loss=torch.nn.CrossEntropyLoss())
    np.testing.assert_allclose(own, named, rtol=1e-4, atol=1e-6)
    margin, _ = weights(loss=margins)
    assert np.abs(margin - named).max() > 1e-4
    recorded = run.model.record["method"]["loss"]
    assert recorded["function"] == "torch.nn.modules.loss.CrossEntropyLoss"
    saved = json.loads((run.folder / "model.json").read_text())["record"]["method"]["loss"]
    assert saved == recorded
    with pytest.raises(UsageError, match=r"a Python function, which no file can hold\. Train from"):
        read_recipe(run.folder)


@pytest.mark.parametrize("method", ["finetune", "scratch"])
def test_it_is_a_field_of_the_gradient_methods(method) -> None:
    kind = {"finetune": headstart.Finetune, "scratch": headstart.Scratch}[method]
    made = kind(loss=margins)
    assert made.loss == Loss(function=margins)
    named = make_recipe({"method": method, "loss": margins}).method
    assert (type(named), named.loss) == (kind, made.loss)
    assert described(made)["loss"]["function"] == f"{__name__}.margins"
    assert "function" not in described(kind())["loss"]
    assert make_recipe({"loss": margins}).method.name == "finetune"
    weighted = make_recipe({"loss": margins, "imbalance": "balanced", "epochs": 3}).method
    assert weighted.loss.imbalance == "balanced"
    assert weighted.training.epochs == 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss": "focal"}, "`loss` must be a function of logits and targets, got 'focal'"),
        ({"loss": torch.nn.CrossEntropyLoss}, "got the class CrossEntropyLoss"),
        ({"loss": margins, "method": "linear-probe"}, "method linear-probe takes no loss"),
        ({"loss": margins, "method": "auto"}, "method auto takes no loss"),
        ({"loss": margins, "focal": 2.0}, "`focal` 2 belongs to the cross-entropy"),
        ({"loss": margins, "label_smoothing": 0.1}, "`label_smoothing` 0.1 belongs to"),
    ],
)
def test_wrong_settings_are_refused_when_they_are_given(settings, message) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        headstart.fit("no/such/folder", **settings)


def no_gradient(logits, targets):
    return functional.cross_entropy(logits.detach(), targets)


def constant(logits, targets):
    return (logits * 0).sum()


def not_finite(logits, targets):
    return functional.cross_entropy(logits, targets) / 0


@pytest.mark.parametrize(
    ("function", "changes", "message"),
    [
        (lambda x, y: 0.5, {}, "returned 0.5 for 6 images. Make it return a tensor"),
        (lambda x, y: x, {}, "returned (6, 4) for 6 images"),
        (lambda x: x.mean(), {}, "failed on logits of shape (6, 4) and targets torch.int64"),
        (no_gradient, {}, "gives the logits no usable gradient"),
        (constant, {}, "gives the logits no usable gradient"),
        (not_finite, {}, "gives the logits no usable gradient"),
        (margins, {"soft": True}, "failed on logits of shape (6, 4) and targets torch.float32"),
        (margins, {"kind": "multilabel"}, "failed on logits"),
        (other, {"balanced": True}, "returns one number for the batch"),
    ],
)
def test_a_loss_is_tried_on_a_small_batch(function, changes, message) -> None:
    values = {"n_classes": 4, "kind": "multiclass", "soft": False, "balanced": False} | changes
    with pytest.raises(UsageError, match=re.escape(message)):
        OwnLoss.of(function).require_valid(**values)


def test_the_trial_comes_before_the_training(tmp_path) -> None:
    events = []
    with pytest.raises(UsageError, match="no usable gradient"):
        headstart.fit("demo:symbols", loss=constant, observer=events.append, out=tmp_path / "run")
    assert not [event for event in events if isinstance(event, EpochDone)]
    with pytest.raises(UsageError, match="loss cannot be used for detection"):
        headstart.fit("demo:boxes", method="finetune", loss=margins, out=tmp_path / "boxes")


def test_the_weights_of_the_classes_apply_to_single_losses() -> None:
    targets = np.array([0, 0, 0, 1])
    weights = torch.tensor(balanced_weights(targets, n_classes=2, kind="multiclass")).float()
    logits = torch.zeros(4, 2)
    own = OwnLoss.of(lambda x, y: x[:, 0] + y.float())
    assert own.mean(logits, torch.tensor(targets), None).item() == pytest.approx(1 / 4)
    assert own.mean(logits, torch.tensor(targets), weights).item() == pytest.approx(2 / 4)


def test_a_run_says_what_is_stored(tmp_path) -> None:
    notes = []

    def note(event):
        if isinstance(event, Noted):
            notes.append(event.text)

    settings = {"method": "scratch", "epochs": 1, "device": "cpu", "observer": note}
    headstart.fit("demo:symbols", loss=margins, out=tmp_path / "one", **settings)
    headstart.fit(
        "demo:symbols", loss=lambda x, y: 2 * margins(x, y), out=tmp_path / "two", **settings
    )
    assert any("margins is stored by name only" in text for text in notes)
    assert any("<lambda> has no name that can be imported" in text for text in notes)


def test_a_resumed_training_needs_the_same_loss(tmp_path) -> None:
    def stop(event):
        return isinstance(event, EpochDone) and event.epoch.number == 1

    def train(loss, **settings):
        return headstart.fit(
            "demo:symbols",
            method="finetune",
            train_from="head",
            epochs=3,
            device="cpu",
            loss=loss,
            **settings,
        )

    def fail(event):
        if stop(event):
            raise KeyError("stop here")

    with pytest.raises(KeyError):
        train(margins, out=tmp_path / "run", callbacks=[fail])
    for loss in (other, Scaled(2.0)):
        with pytest.raises((UsageError, DataError), match="settings"):
            train(loss, out=tmp_path / "run", resume=True)
    assert not train(margins, out=tmp_path / "run", resume=True).interrupted
    assert OwnLoss.of(Scaled(2.0)) == OwnLoss.of(Scaled(2.0))
    assert OwnLoss.of(Scaled(2.0)) != OwnLoss.of(Scaled(3.0))
