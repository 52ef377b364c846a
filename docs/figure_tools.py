"""Tools of make_figures.py: trained networks, drawn images, and panels of a figure."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # several threads are slower for a small network

from headstart.runtime import prepare

prepare()  # as the command line does, before torch is imported

import numpy as np  # noqa: E402

from headstart.backbones.frozen import FrozenBackbone  # noqa: E402
from headstart.cache import Cache  # noqa: E402
from headstart.data.demo import regimes  # noqa: E402
from headstart.features.extractor import Extractor  # noqa: E402
from headstart.methods.method import Method  # noqa: E402
from headstart.methods.pretraining import regime_backbone  # noqa: E402
from headstart.metrics.confidence_intervals import Interval  # noqa: E402
from headstart.models.build import create_model  # noqa: E402

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from headstart.data.dataset import Dataset, Sample
    from headstart.models.transfer_model import TransferModel

FOLDER = Path(__file__).parent / "images" / "concepts"
MAX_BYTES = 150_000


@dataclass(frozen=True, eq=False)
class Lab:
    """Weights of the pretrained networks, and a cache of their features.

    Parameters
    ----------
    weights : Path
        Folder of the pretrained weights; existing files are reused.
    cache : Cache
    """

    weights: Path
    cache: Cache

    @property
    def extractor(self) -> Extractor:
        """Features in fp32 on the CPU: the same numbers on every machine."""
        return Extractor(cache=self.cache, engine="fp32", device="cpu")

    def backbone(self, regime: str = "shifted") -> FrozenBackbone:
        """Open the backbone that was pretrained on the source of a drawn set."""
        return FrozenBackbone.open(regime_backbone(regime, self.weights), offline=True)

    def train(self, method: Method, data: Dataset, backbone: FrozenBackbone) -> TransferModel:
        """Train a method on all images of ``data``."""
        return method.fit(create_model(backbone, data), data, extractor=self.extractor)

    def correct(self, model: TransferModel, data: Dataset) -> np.ndarray[Any, Any]:
        """Whether each image is classified correctly, shape (n,)."""
        probabilities = model.predict_probabilities(data.samples, extractor=self.extractor)
        return np.asarray(probabilities.argmax(axis=1) == model.align_classes(data).targets())

    def accuracy(self, model: TransferModel, data: Dataset) -> float:
        """Share of the images that are classified correctly."""
        return float(self.correct(model, data).mean())

    def features(self, backbone: FrozenBackbone, data: Dataset) -> np.ndarray[Any, Any]:
        """Pooled features, shape (n, width)."""
        return self.extractor.features(backbone, data.samples).values


def images(name: str, part: str, seeds: Sequence[int] = (0,)) -> Dataset:
    """One part of a drawn set; several seeds give more images of the same distribution."""
    parts = [regimes.make(name, seed).split(part) for seed in seeds]  # type: ignore[arg-type]
    return replace(parts[0], samples=tuple(s for one in parts for s in one.samples))


def source_test() -> Dataset:
    """Images of the source that the network was not trained on."""
    return images("symbols", "train", [1]).subset(range(800))


def change_pixels(data: Dataset, change: Callable[[Any], Any]) -> Dataset:
    """Apply a function to the pixels of each image."""

    def changed(sample: Sample) -> Sample:
        pixels = change(np.asarray(sample.image, dtype=np.float64))
        return replace(sample, image=np.clip(pixels, 0, 255).astype(np.uint8))

    return replace(data, samples=tuple(map(changed, data.samples)))


# -------------------------------------------------------------------------------- drawing


@contextmanager
def panels(name: str, count: int, height: float = 3.1) -> Iterator[list[Axes]]:
    """Open a figure with panels side by side, and write it as SVG at the end."""
    import matplotlib as mpl
    from matplotlib.figure import Figure as NewFigure

    style = {
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": "#dddddd",
        "svg.hashsalt": name,
        "legend.frameon": False,
    }
    with mpl.rc_context(style):
        figure: Figure = NewFigure(figsize=(3.9 * count, height), layout="constrained")
        yield list(np.atleast_1d(figure.subplots(1, count)))
        FOLDER.mkdir(parents=True, exist_ok=True)
        path = FOLDER / f"{name}.svg"
        figure.savefig(path, metadata={"Date": None}, facecolor="white")
    if path.stat().st_size > MAX_BYTES:
        sys.exit(f"{path} has {path.stat().st_size} bytes, more than {MAX_BYTES}. Draw less.")


def label(axes: Axes, title: str, x: str, y: str) -> None:
    """Write the title and the names of the axes."""
    axes.set_title(title, fontsize=9.5)
    axes.set_xlabel(x)
    axes.set_ylabel(y)


def draw_intervals(axes: Axes, x: Sequence[float], ys: Sequence[Interval], **style: Any) -> None:
    """Draw values with their intervals, joined by a line."""
    value = np.array([y.value for y in ys])
    errors = [value - [y.low for y in ys], [y.high for y in ys] - value]
    axes.errorbar(x, value, yerr=errors, capsize=2, linewidth=1.3, markersize=4, **style)
