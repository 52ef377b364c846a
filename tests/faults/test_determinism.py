"""A seed is a seed: cache on, off, full or damaged, and one thread or two give the same bytes."""

import hashlib
import os
from pathlib import Path

import pytest
import torch

from headstart.cache import Cache
from headstart.data.demo.classification import write
from headstart.workflows.fit import fit

N_FLIPPED = 40


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write("shapes", tmp_path_factory.mktemp("photos"))


def digest(run):
    files = ("model.safetensors", "predictions.csv")
    content = b"".join((Path(run.folder) / name).read_bytes() for name in files)
    return hashlib.sha256(content).hexdigest()


def flip(path):
    """Change bytes all over a file."""
    content = bytearray(path.read_bytes())
    for at in range(200, len(content), len(content) // N_FLIPPED):
        content[at] ^= 255
    path.write_bytes(content)


@pytest.mark.parametrize("method", ["linear-probe", "finetune"])
def test_a_run_gives_the_same_bytes_whatever_the_cache_holds(method, photos, counts, tmp_path):
    steps = {"epochs": 1} if method == "finetune" else {}

    def run(**changes):
        number = len(digests)
        settings = {"method": method, "engine": "fp32", "device": "cpu", **steps, **changes}
        digests.append(digest(fit(photos, out=tmp_path / str(number), progress=False, **settings)))

    digests: list[str] = []
    cache = Cache(tmp_path / "cache")
    run(cache=cache)  # an empty cache
    run(cache=cache)  # a full one
    cache.close()
    flip(cache.path)
    run(cache=cache)  # a damaged one
    run(cache=Cache(tmp_path / "small", budget_bytes=100_000))  # values are evicted at once
    run(no_cache=True)
    threads = torch.get_num_threads()
    torch.set_num_threads(min(2, os.cpu_count() or 1))
    try:
        run(no_cache=True)
    finally:
        torch.set_num_threads(threads)
    counts["runs that are compared byte for byte"] += len(digests)
    assert len(set(digests)) == 1, digests
