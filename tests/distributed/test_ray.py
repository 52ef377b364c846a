"""Tasks on a cluster: order, errors and starts; Ray is replaced where it is called."""

import sys
import types
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path

import numpy as np
import pytest

from headstart.backbones.frozen import FrozenBackbone
from headstart.cache import Cache
from headstart.data.dataset import Sample
from headstart.distributed import ray as module
from headstart.distributed.ray import cluster, cluster_address, is_on, map_tasks
from headstart.errors import DataError, MissingExtraError, SetupError, UsageError
from headstart.features.extractor import Extractor


class FakeRay(types.ModuleType):
    """Runs tasks in this process; counts starts, and the tasks in flight."""

    def __init__(self, cores: int = 2, failures: int = 0) -> None:
        super().__init__("ray")
        self.__spec__ = ModuleSpec("ray", None)
        self.cores, self.failures = cores, failures
        self.starts: list[str] = []
        self.stops = self.in_flight = self.most_in_flight = self.cancelled = 0
        self.exceptions = types.SimpleNamespace(
            RayError=type("RayError", (Exception,), {}),
        )
        self.exceptions.RayTaskError = type("RayTaskError", (self.exceptions.RayError,), {})

    def is_initialized(self) -> bool:
        return len(self.starts) > self.failures + self.stops

    def init(self, *, address: str, **_: object) -> None:
        self.starts.append(address)
        if len(self.starts) <= self.failures:
            raise RuntimeError("The current node timed out during startup")

    def shutdown(self) -> None:
        if len(self.starts) > self.failures:
            self.stops += 1

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": float(self.cores)}

    def put(self, value: object) -> types.SimpleNamespace:
        return types.SimpleNamespace(value=value, hex=lambda: str(id(value)))

    def remote(self, **options: object) -> Callable[..., types.SimpleNamespace]:
        def decorate(function):
            def send(*arguments):
                self.in_flight += 1
                self.most_in_flight = max(self.most_in_flight, self.in_flight)
                return types.SimpleNamespace(run=lambda: function(*arguments))

            return types.SimpleNamespace(remote=send)

        assert options["max_retries"] == 5
        return decorate

    def get(self, reference: types.SimpleNamespace) -> object:
        if hasattr(reference, "value"):
            return reference.value
        self.in_flight -= 1
        try:
            return reference.run()
        except Exception as cause:
            error = self.exceptions.RayTaskError()
            error.cause = cause
            raise error from cause

    def cancel(self, reference: object, *, force: bool) -> None:
        self.cancelled += 1


@pytest.fixture
def fake(monkeypatch):
    def install(**settings):
        ray = FakeRay(**settings)
        monkeypatch.setitem(sys.modules, "ray", ray)
        monkeypatch.setattr(module, "PAUSE", 0)
        return ray

    return install


def add(state: int, item: int) -> int:
    if item == 13:
        raise DataError("13 is not allowed. Remove it.")
    if item == 14:
        raise ZeroDivisionError("by zero")
    return state + item


@pytest.mark.parametrize(
    ("on", "address"),
    [
        ("", None),
        ("ray", "local"),
        ("ray:auto", "auto"),
        ("ray:h:1", "h:1"),
        ("ray:ray://h", "ray://h"),
    ],
)
def test_addresses(on, address):
    assert cluster_address(on) == address


@pytest.mark.parametrize("on", ["dask", "ray:", "Ray", "ray 1", ":", "local"])
def test_another_value_is_refused_before_anything_starts(on, fake):
    ray = fake()
    with pytest.raises(UsageError, match="--on ray"), cluster(on):
        pass
    assert ray.starts == []


def test_results_come_in_order_and_few_tasks_wait(fake):
    ray = fake(cores=2)
    with cluster("ray"):
        assert is_on()
        assert list(map_tasks(add, int, "100", range(10))) == list(range(100, 110))
    assert not is_on()
    assert (ray.starts, ray.stops) == (["local"], 1)
    assert ray.most_in_flight == 4  # two for each core


def test_a_task_that_takes_several_cores(fake):
    ray = fake(cores=5)
    with cluster("ray"):
        assert list(map_tasks(add, int, "0", range(9), cores=2)) == list(range(9))
        with pytest.raises(SetupError, match="OMP_NUM_THREADS=1"):
            list(map_tasks(add, int, "0", range(9), cores=6))
    assert ray.most_in_flight == 4


def test_an_error_of_headstart_arrives_as_it_is_and_the_rest_is_cancelled(fake):
    ray = fake()
    with pytest.raises(DataError, match="13 is not allowed"), cluster("ray"):
        list(map_tasks(add, int, "0", range(10, 30)))
    assert ray.cancelled == 3
    assert (ray.stops, is_on()) == (1, False)


def test_another_error_of_a_task_says_what_to_do(fake):
    fake()
    with pytest.raises(SetupError, match=r"by zero.*without --on"), cluster("ray"):
        list(map_tasks(add, int, "0", [14]))


@pytest.mark.parametrize(("failures", "is_reached"), [(0, True), (2, True), (3, False)])
def test_a_slow_start_is_tried_three_times(failures, is_reached, fake):
    ray = fake(failures=failures)
    if is_reached:
        with cluster("ray"):
            pass
    else:
        with pytest.raises(SetupError, match="did not start here"), cluster("ray"):
            pass
    assert len(ray.starts) == min(failures + 1, 3)


def test_a_cluster_that_does_not_answer_is_tried_once(fake):
    ray = fake(failures=1)
    with pytest.raises(SetupError, match=r"not found at h:1.*ray status"), cluster("ray:h:1"):
        pass
    assert ray.starts == ["h:1"]


def test_a_session_of_the_user_is_used_and_stays(fake):
    ray = fake()
    ray.init(address="mine")
    with cluster("ray"):
        assert list(map_tasks(add, int, "1", [1])) == [2]
    assert (ray.starts, ray.stops) == (["mine"], 0)


def test_without_ray_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"headstart\[ray\]"), cluster("ray"):
        pass


def test_several_processes_and_a_cluster_are_refused(monkeypatch, fake):
    ray = fake()
    monkeypatch.setattr(module, "world_size", lambda: 2)
    with pytest.raises(UsageError, match="without torchrun"), cluster("ray"):
        pass
    assert ray.starts == []


@pytest.fixture(scope="module")
def backbone():
    return FrozenBackbone.open("embedded/efficientnet_lite0", offline=True).until("stage1")


def images(count: int) -> list[Sample]:
    rng = np.random.default_rng(0)
    return [Sample(image=rng.integers(0, 255, (40, 40, 3), np.uint8)) for _ in range(count)]


def test_features_of_a_cluster_are_those_of_this_process(tmp_path, fake, backbone):
    samples = images(9)
    here = Extractor(cache=Cache(tmp_path / "a"), engine="fp32").features(backbone, samples)
    fake()
    with cluster("ray"):
        extractor = Extractor(cache=Cache(tmp_path / "b"), engine="fp32")
        there = extractor.features(backbone, samples)
        again = extractor.features(backbone, samples)
    assert np.array_equal(here.values, there.values)
    assert (there.computed, again.computed, again.reused) == (9, 0, 9)


def test_what_was_computed_before_an_unreadable_image_is_kept(
    tmp_path, fake, backbone, monkeypatch
):
    from headstart.features import extractor as extraction

    monkeypatch.setattr(extraction, "SHARD_BATCHES", 1)
    broken = Path(tmp_path / "x.png")
    broken.write_bytes(b"no image")
    samples = [*images(8), Sample(image=broken)]
    fake()
    extractor = Extractor(cache=Cache(tmp_path / "c"), engine="fp32")
    with pytest.raises(DataError, match=r"x\.png"), cluster("ray"):
        extractor.features(backbone, samples)
    assert extractor.features(backbone, samples[:8]).computed == 0
