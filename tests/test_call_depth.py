"""The way from `fit` to the gradient is short: count the package's own frames on the call stack."""

import sys
from pathlib import Path

import numpy as np

import headstart
from headstart.cache import Cache
from headstart.data.dataset import Dataset, Sample
from headstart.methods.pretraining import SMALL_ARCHITECTURE

PACKAGE = Path(headstart.__file__).parent
MOST_FRAMES = 6


def own_frames() -> list[str]:
    """Functions of the package on the call stack, the outermost first."""
    frames, frame = [], sys._getframe(1)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if PACKAGE in path.parents:
            frames.append(f"{path.relative_to(PACKAGE)}: {frame.f_code.co_qualname}")
        frame = frame.f_back
    return frames[::-1]


def test_fit_reaches_backward_in_six_frames(tmp_path, monkeypatch) -> None:
    import torch

    from headstart.methods.pretraining import random_backbone
    from headstart.workflows import resolve

    stacks = []
    backward = torch.Tensor.backward

    def watched(self, *arguments, **options):
        stacks.append(own_frames())
        return backward(self, *arguments, **options)

    monkeypatch.setattr(torch.Tensor, "backward", watched)
    monkeypatch.setattr(resolve, "locate", lambda *_, **__: None)
    monkeypatch.setattr(
        resolve.FrozenBackbone, "read", classmethod(lambda *_: random_backbone(SMALL_ARCHITECTURE))
    )
    rng = np.random.default_rng(0)
    samples = tuple(
        Sample(image=rng.integers(0, 255, (32, 32, 3), dtype=np.uint8), target="ab"[i % 2])
        for i in range(24)
    )
    data = Dataset(samples=samples, classes=("a", "b"), name="noise")
    method = headstart.Finetune(training=headstart.Training(epochs=1))
    recipe = headstart.Recipe(
        backbone=SMALL_ARCHITECTURE, method=method, engine="fp32", device="cpu"
    )
    headstart.fit(data, recipe, out=tmp_path / "run", cache=Cache(tmp_path / "cache"))
    print(*stacks[0], sep="\n")  # noqa: T201 - `pytest -s` shows the stack
    assert stacks[0][0] == "workflows/fit.py: fit"
    assert len(stacks[0]) <= MOST_FRAMES
