"""Keep every test away from the machine it runs on: its caches, its switches, its network."""

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

# Set before anything is imported: huggingface_hub and torch read their folders at import, and
# the examples in src/, which take no fixture, are run in the same process.
_SCRATCH = Path(tempfile.mkdtemp(prefix="headstart-tests-"))
for _name in [name for name in os.environ if name.startswith("HEADSTART_")]:
    if not _name.startswith("HEADSTART_BENCH"):
        del os.environ[_name]
os.environ.update(
    HEADSTART_CACHE=str(_SCRATCH / "cache"),
    HEADSTART_OFFLINE="1",
    HF_HOME=str(_SCRATCH / "hf"),
    TORCH_HOME=str(_SCRATCH / "torch"),
    XDG_CACHE_HOME=str(_SCRATCH / "xdg"),
)
if "PYTEST_XDIST_WORKER" in os.environ:  # several processes: one thread each, or they fight
    os.environ["OMP_NUM_THREADS"] = "1"
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's background job is born so
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def isolated(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """Give every test a cache of its own and the machine's switches as they are by default."""
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path_factory.mktemp("cache")))
    handler = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, handler)  # the command line ignores it while it ends


def pytest_unconfigure() -> None:
    shutil.rmtree(_SCRATCH, ignore_errors=True)


@pytest.fixture(scope="session")
def classifier():
    """A classifier with a tiny network, whose probabilities depend on the image."""
    import numpy as np

    from headstart.backbones.backbone import load
    from headstart.backbones.catalog import resolve
    from headstart.backbones.frozen import FrozenBackbone
    from headstart.data.demo.drawings import photos
    from headstart.metrics.selective import SelectedThreshold
    from headstart.models.heads.linear import LinearHead
    from headstart.models.tasks import ClassificationTask
    from headstart.models.transfer_model import TransferModel

    spec = resolve("timm/test_resnet")
    state = load(spec, pretrained=False, seed=0).trunk.state_dict()
    backbone = FrozenBackbone(spec=spec, state=state, origin={"sha256": "0" * 64})
    task = ClassificationTask(
        classes=("cat", "d\u00f6g", "=ant"),
        temperature=1.5,
        max_risk=0.1,
        selected=SelectedThreshold(
            threshold=0.6,
            coverage=0.5,
            risk=0.0,
            bound=0.09,
            max_risk=0.1,
            level=0.95,
            images=90,
            looks=1,
            provable=0.03,
        ),
    )
    head = LinearHead.random(backbone.width, 3, seed=0)
    model = TransferModel(backbone=backbone, head=head, task=task, engine="fp32")
    pieces = [np.asarray(photo.rotate(30 * i)) for photo in photos() for i in range(4)]
    features = model.embed(pieces).astype(np.float64)
    spread = features.std(axis=0)
    weight = head.weight * 4 / (spread + spread.mean())  # else all probabilities are nearly equal
    fitted = LinearHead(
        weight=weight.astype(np.float32),
        bias=(-weight @ features.mean(axis=0)).astype(np.float32),
    )
    return TransferModel(
        backbone=backbone, head=fitted, task=task, engine="fp32", record={"learned_from": []}
    )


@pytest.fixture(scope="session")
def classifier_graph(classifier):
    """The classifier's network as an ONNX graph; the exporter needs seconds for it."""
    from headstart.exports.onnx_file import convert

    return convert(classifier)


@pytest.fixture
def quick_export(classifier_graph, monkeypatch):
    """Let `headstart.export` use the graph of the classifier that was converted before."""
    from headstart.exports import onnx_file

    monkeypatch.setattr(onnx_file, "convert", lambda _: _copy_graph(classifier_graph))


@pytest.fixture(scope="session")
def exported_files(classifier, classifier_graph, tmp_path_factory):
    """The exported classifier by its input, ``image`` or ``batch``. Do not change the files."""
    import headstart
    from headstart.exports import onnx_file

    folder = tmp_path_factory.mktemp("exported")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx_file, "convert", lambda _: _copy_graph(classifier_graph))
        return {
            kind: headstart.export(classifier, out=folder / f"{kind}.onnx", input=kind).path
            for kind in ("image", "batch")
        }


def _copy_graph(graph):
    copy = type(graph)()
    copy.CopyFrom(graph)
    return copy
