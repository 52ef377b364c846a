"""A real Ray: the same features as in one process, also when a machine dies in the middle."""

import threading
import time

import numpy as np
import pytest

from headstart.backbones.frozen import FrozenBackbone
from headstart.cache import Cache
from headstart.data.dataset import Sample
from headstart.distributed.ray import cluster, map_tasks
from headstart.errors import SetupError
from headstart.features.extractor import Extractor

ray = pytest.importorskip("ray", reason="Ray is not installed; make ray installs it")
pytestmark = pytest.mark.filterwarnings("ignore")  # Ray leaves files and sockets open


def images(count: int) -> list[Sample]:
    rng = np.random.default_rng(0)
    return [Sample(image=rng.integers(0, 255, (64, 64, 3), np.uint8)) for _ in range(count)]


def slow(state: int, item: int) -> int:
    time.sleep(0.2)
    return state + item


def test_a_local_start() -> None:
    try:
        with cluster("ray"):
            assert list(map_tasks(slow, int, "1", range(4))) == [1, 2, 3, 4]
    except SetupError as error:
        if "did not start" not in str(error):
            raise
        pytest.skip(f"this machine is too busy: {error}")


@pytest.fixture
def nodes():
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    second = made.add_node(num_cpus=1)
    made.wait_for_nodes()
    yield made, second
    ray.shutdown()
    made.shutdown()


@pytest.mark.ray
def test_a_machine_that_dies_loses_nothing(tmp_path, nodes) -> None:
    made, second = nodes
    backbone = FrozenBackbone.open("embedded/efficientnet_lite0", offline=True)
    samples = images(800)
    here = Extractor(cache=Cache(tmp_path / "a"), engine="fp32").features(backbone, samples)
    counts = []

    def watch(step: str, done: int, total: int) -> None:
        if not counts:
            threading.Thread(target=made.remove_node, args=(second,), daemon=True).start()
        counts.append(done)

    with cluster(f"ray:{made.address}"):
        assert ray.cluster_resources()["CPU"] == 2
        extractor = Extractor(cache=Cache(tmp_path / "b"), engine="fp32", progress=watch)
        there = extractor.features(backbone, samples)
        assert ray.cluster_resources()["CPU"] == 1
    assert np.array_equal(here.values, there.values)
    assert counts == sorted(set(counts))  # no image twice
    assert counts[-1] == there.computed == 800
